"""The adapters of a bank as one zarr array: N rows of p float32, a row a file, or an object under a URL.

Row numbers come from the catalogue and are never used twice. A row that the catalogue does not call
ready does not exist, whatever the array holds there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import fsync_folders, fsync_path, is_partial, partial_files
from bankdb.arrays.metadata import ArrayLayout, read_rows_metadata, write_unsealed_array
from bankdb.arrays.remote import Location, RemotePath, delete, objects_below
from bankdb.arrays.remote_shards import RemoteShards, forget
from bankdb.arrays.shard_format import Checksums, ShardFormat
from bankdb.arrays.shards import Shards
from bankdb.arrays.zarr_arrays import chunk_file, column_chunk, create_array
from bankdb.errors import AdapterError, BankFormatError, BankNotFoundError

if TYPE_CHECKING:
    from bankdb.arrays.uncached import UncachedReader

Vector = NDArray[np.float32]


class StoredRow(NamedTuple):
    """What a stored row is known by.

    Attributes
    ----------
    sha256
        Of its values, little-endian float32.
    checksums
        uint32, shape (chunks,): what each of its chunks ends with, the CRC32C of it as it is stored.
    """

    sha256: str
    checksums: Checksums


_ROW_FOLDER = re.compile(r"0|[1-9][0-9]*")
# Values that are looked at together: what is found of them stays in a core's cache.
_AT_ONCE = 1 << 16
# Bytes of a row from which on it is worth another thread to hash it.
_LARGE = 1 << 20
_OBJECT = re.compile(r"zarr\.json|c/(0|[1-9][0-9]*)/0")
_RESTORE = "`bank verify --repair` restores it from its source"


class AdapterStore:
    """Reads and writes rows of `adapters.zarr`.

    Parameters
    ----------
    path
        The array's folder, or its URL.
    opened
        Its metadata, where they were read already.
    """

    def __init__(self, path: Location, opened: tuple[ArrayLayout, dict[str, Any]] | None = None) -> None:
        self.path = path
        self._opened = opened
        self._shards: tuple[ArrayLayout, Shards | RemoteShards] | None = None

    def create(self, parameters: int, identity: str, owner: str | None = None) -> None:
        """Make the array for rows of `parameters` columns; the caller knows that no row is ready."""
        columns = column_chunk(parameters)
        shard = -(-parameters // columns) * columns
        create_array(
            self.path,
            shape=(0, parameters),
            chunks=(1, columns),
            shards=(1, shard),
            dtype="float32",
            attributes={"bank": identity} | ({} if owner is None else {"owner": owner}),
        )
        self._opened = None

    def grow(self, rows: int, *, opened: bool = False) -> None:
        """Make room for row numbers below `rows`; the caller holds the bank's write lock.

        Parameters
        ----------
        opened
            Whether the metadata were read since that is held.
        """
        if not opened:
            self._opened = None
        layout, attributes = self._metadata()
        there, columns = layout.shape
        if rows > there:
            write_unsealed_array(self.path, replace(layout, shape=(rows, columns)), attributes)
            self._opened = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows ever reserved, and p."""
        rows, columns = self._metadata()[0].shape
        return rows, columns

    def _metadata(self) -> tuple[ArrayLayout, dict[str, Any]]:
        """Read the array's metadata, once."""
        if self._opened is None:
            self._opened = read_rows_metadata(self.path)
        return self._opened

    def identity(self) -> str:
        """Return the identity of the bank that the array was made for."""
        return str(self._metadata()[1].get("bank", ""))

    def owner(self) -> str | None:
        """Return the mark of the catalogue that writes here, as it is now; None if there is none, or no array."""
        self._opened = None
        try:
            mark = self._metadata()[1].get("owner")
        except BankNotFoundError:
            return None
        return None if mark is None else str(mark)

    def set_owner(self, mark: str) -> None:
        """Mark the array as written by one catalogue; nothing happens if there is no array yet."""
        self._opened = None
        try:
            layout, attributes = self._metadata()
        except BankNotFoundError:
            return
        write_unsealed_array(self.path, layout, attributes | {"owner": mark})
        self._opened = None

    def write(self, row: int, vector: Vector) -> str:
        """Write a row as `write_row` does; return the sha256 of its little-endian bytes."""
        return self.write_row(row, vector).sha256

    def write_row(self, row: int, vector: Vector) -> StoredRow:
        """Write a row durably; return what it is known by.

        In a folder it is flushed to the disk; under a URL, the store has acknowledged it.

        Raises
        ------
        BankFormatError
            The array has no such row, or the vector is not of its width.
        AdapterError
            The vector has values that are not finite: a missing chunk reads as NaN.
        ArrayStoreUnavailableError
            The store of a URL failed.
        """
        rows, columns = self._shape_with(row)
        if row >= rows or vector.shape != (columns,):
            raise BankFormatError(
                f"{self.path}: cannot write row {row} of {vector.shape} into an array of {self.shape}"
            )
        if not is_finite(vector):
            raise AdapterError(f"{self.path}: row {row} was expected to be finite, NaN or Inf found")
        if vector.nbytes < _LARGE:
            return StoredRow(row_sha256(vector), self._write(row, vector))
        with ThreadPoolExecutor(1, "row-sha256") as beside:  # hashing takes as long as writing
            digest = beside.submit(row_sha256, vector)
            checksums = self._write(row, vector)
            return StoredRow(digest.result(), checksums)

    def _write(self, row: int, vector: Vector) -> NDArray[np.uint32]:
        """Write a row that was checked; return what its chunks end with."""
        written: list[int] = []
        self._known_shards().write(row, 0, [np.ascontiguousarray(vector, dtype=np.float32)[None, :]], written)
        fsync_folders(self.path, [self.file(row)])
        return np.asarray(written, dtype="<u4")

    def read(self, row: int) -> Vector:
        """Read one row, shape (p,). Raises BankFormatError if it is missing or damaged."""
        row_values: Vector = self.read_rows([row])[0]
        return row_values

    def read_rows(self, rows: Sequence[int]) -> Vector:
        """Read whole rows, shape (len(rows), p). Raises BankFormatError naming a bad one."""
        return self.read_panel(rows, 0, self.shape[1])

    def read_panel(self, rows: Sequence[int], start: int, stop: int) -> Vector:
        """Read columns `start` to `stop` of some rows, shape (len(rows), stop - start).

        Raises
        ------
        BankFormatError
            A row is missing, truncated or otherwise unreadable; it is named.
        """
        panel = np.empty((len(rows), stop - start), dtype=np.float32)
        self.read_into(rows, start, stop, panel)
        return panel

    def read_into(
        self,
        rows: Sequence[int],
        start: int,
        stop: int,
        panel: Vector,
        uncached: UncachedReader | None = None,
        checksums: Checksums | None = None,
    ) -> None:
        """Read columns `start` to `stop` of some rows into `panel`, shape (len(rows), stop - start).

        Parameters
        ----------
        panel
            Its rows are C-contiguous. What it holds after an error is undefined.
        uncached
            Reads past the page cache.
        checksums
            The catalogue's, of the chunks that are read: shape (len(rows), chunks). None compares nothing, for
            whoever looks at the whole row's sha256.

        Raises
        ------
        BankFormatError
            As `read_panel`; or a chunk is not the catalogue's.
        """
        for row in rows:
            self._check_row(row)
        self._known_shards().read_rows(rows, start, stop, panel, uncached, checksums)

    def read_stored(self, row: int) -> tuple[Vector, StoredRow]:
        """Read one row, shape (p,), with what it is known by. Raises BankFormatError as `read` does."""
        self._check_row(row)
        checksums = self._known_shards().checksums(row)  # before the chunks, which are held against them
        vector = np.empty((1, self.shape[1]), dtype=np.float32)
        self.read_into([row], 0, vector.shape[1], vector, None, checksums[None])
        return vector[0], StoredRow(row_sha256(vector[0]), checksums)

    @property
    def chunk(self) -> int:
        """Columns of a stored chunk."""
        return column_chunk(self.shape[1])

    def prefetch(self, rows: Sequence[int], start: int, stop: int) -> None:
        """Ask the kernel for columns that will be read soon: a disk works while a processor does."""
        if hasattr(os, "posix_fadvise"):
            shards = self._known_shards()
            for row in rows:
                shards.prefetch(row, start, stop)

    def _check_row(self, row: int) -> None:
        file = self.file(row)
        # An object that is missing is told by reading it: a request less.
        if isinstance(file, Path) and not file.is_file():
            raise BankFormatError(f"{file}: row {row} is missing; {_RESTORE}")
        rows, _ = self._shape_with(row)
        if row >= rows:
            raise BankFormatError(f"{self.path}: row {row} is beyond the array's {rows} rows; {_RESTORE}")

    def _known_shards(self) -> Shards | RemoteShards:
        """Return the array's shards. zarr would read others too, and believe what their chunks say of themselves."""
        layout = self._metadata()[0]
        if self._shards is None or self._shards[0] is not layout:
            form = ShardFormat.from_layout(layout)
            remote = isinstance(self.path, RemotePath)
            kind = RemoteShards if remote else Shards
            self._shards = (layout, kind(self.path, form, _RESTORE))  # type: ignore[arg-type]
        return self._shards[1]

    def _shape_with(self, row: int) -> tuple[int, int]:
        """The array's shape; looked up again if another process may have grown it to hold `row`."""
        if row >= self.shape[0]:
            self._opened = None
        return self.shape

    def delete(self, row: int) -> None:
        """Delete a row's file, if it is there, and what unfinished writes left; nothing that is foreign."""
        file = self.file(row)
        if isinstance(file, RemotePath):
            delete(file)
            forget([file])
            return
        folder = file.parent
        if not folder.is_dir():
            return
        for item in (file, *partial_files(folder)):
            if item.is_file():
                item.unlink()
        fsync_path(folder)
        if not _entries(folder):
            folder.rmdir()
            fsync_path(folder.parent)

    def file(self, row: int) -> Location:
        """Return the file, or the object, that holds a row."""
        return chunk_file(self.path, row, 0)

    def rows_on_disk(self) -> list[int]:
        """Return the row numbers for which something is stored, ready or not."""
        if isinstance(self.path, RemotePath):
            rows = {name.split("/")[0] for name in objects_below(self.path / "c") if "/" in name}
            return sorted(int(row) for row in rows if _ROW_FOLDER.fullmatch(row))
        try:
            with os.scandir(str(self.path / "c")) as entries:
                # What an entry is comes with its name: tens of thousands are not asked one by one.
                return sorted(int(item.name) for item in entries if _is_row(item))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def foreign_files(self) -> list[Location]:
        """Return entries that no version of this array could have written."""
        if isinstance(self.path, RemotePath):
            names = objects_below(self.path)
            return [self.path / name for name in names if not _OBJECT.fullmatch(name)]
        strange = [item for item in _entries(self.path) if item.name not in {"c", "zarr.json"}]
        for folder in _entries(self.path / "c"):
            if not _is_row(folder):
                strange.append(folder)
                continue
            strange += [item for item in _entries(folder) if item.name != "0" or item.is_dir()]
        # By name: a file being written has another one a moment later.
        return sorted(item for item in strange if not is_partial(item.name))


def is_finite(vector: Vector) -> bool:
    """Whether no value of a vector, shape (p,), is NaN or infinite."""
    parts = (vector[start : start + _AT_ONCE] for start in range(0, len(vector), _AT_ONCE))
    return all(bool(np.isfinite(part).all()) for part in parts)


def _is_row(folder: Path | os.DirEntry[str]) -> bool:
    return _ROW_FOLDER.fullmatch(folder.name) is not None and not folder.is_file()


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is none, or if another process removed it meanwhile."""
    try:
        return [folder / name for name in os.listdir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def row_sha256(vector: Vector) -> str:
    """Return the sha256 of a row's values as little-endian float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()
