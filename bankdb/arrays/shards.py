"""Rows straight from and into the shards of the arrays that hold adapters: ten times quicker than zarr.

zarr reads and writes any array by an asynchronous pipeline that costs milliseconds a chunk; combining
adapters takes tens of thousands of chunks. This knows the one layout that `bankdb.arrays.zarr_arrays.create_array`
makes, `bankdb.arrays.shard_format`, and nothing else; any other array is left to zarr.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import fsync_path, naming, partial_of
from bankdb.arrays.metadata import METADATA, read_layout
from bankdb.arrays.remote import Location, RemotePath
from bankdb.arrays.remote_shards import RemoteShards
from bankdb.arrays.shard_format import (
    ABSENT,
    BLOSC_HEADER_BYTES,
    CHECKSUM_BYTES,
    PLAIN_FLAG,
    Float32,
    ShardFormat,
    checksum,
)
from bankdb.errors import BankFormatError

if TYPE_CHECKING:
    import zarr

    from bankdb.arrays.uncached import UncachedReader


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of an (N, p) array in a folder.

    Attributes
    ----------
    path
        Folder of the array.
    format
        How chunks lie in a shard.
    advice
        What to do about a damaged file: the end of every error message.
    """

    path: Path
    format: ShardFormat
    advice: str

    @classmethod
    def of(cls, array: zarr.Array[Any], path: Path, advice: str) -> Shards | None:
        """Describe an array, or return None if it is not of the one layout that is known here."""
        found = ShardFormat.of(array)
        return None if found is None else cls(path, found, advice)

    def file(self, row: int, column: int) -> Path:
        """Return the file that holds an entry."""
        return self.path.joinpath(*self.format.key(row, column))

    # -- reading --------------------------------------------------------------------------------

    def read_rows(
        self,
        rows: Sequence[int],
        start: int,
        stop: int,
        panel: Float32,
        uncached: UncachedReader | None = None,
    ) -> None:
        """Read columns of some rows into `panel`, shape (len(rows), stop - start); see `read`."""
        for position, row in enumerate(rows):
            self.read(row, start, stop, panel[position], uncached)

    def read(
        self, row: int, start: int, stop: int, out: Float32, uncached: UncachedReader | None = None
    ) -> None:
        """Read columns `start` to `stop` of a row into `out`, C-contiguous, shape (stop - start,).

        Parameters
        ----------
        uncached
            Reads past the page cache.

        Raises
        ------
        BankFormatError
            A file is missing, truncated or damaged, or lacks chunks.
        """
        width = self.format.width
        for first in range(start // width * width, stop, width):
            begin, end = max(start, first), min(stop, first + width)
            self._read_shard(row, first, begin, end, out[begin - start : end - start], uncached)

    def prefetch(self, row: int, start: int, stop: int) -> None:
        """Ask the kernel to read these columns of a row into its cache; nothing is raised, `read` tells."""
        width = self.format.width
        for first in range(start // width * width, stop, width):
            with contextlib.suppress(OSError, BankFormatError):
                self._prefetch_shard(row, first, max(start, first), min(stop, first + width))

    def _prefetch_shard(self, row: int, first: int, start: int, stop: int) -> None:
        file = self.file(row, first)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            index = self._index(descriptor, file, row)[row % self.format.rows_per_shard]
            wanted = index[(start - first) // self.format.chunk : -(-(stop - first) // self.format.chunk)]
            wanted = wanted[wanted[:, 0] != ABSENT].astype(np.int64)
            if len(wanted):
                # One request: a row's chunks lie one after another.
                begin, end = int(wanted[:, 0].min()), int(wanted.sum(axis=1).max())
                os.posix_fadvise(descriptor, begin, end - begin, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    def _read_shard(
        self,
        row: int,
        first: int,
        start: int,
        stop: int,
        out: Float32,
        uncached: UncachedReader | None,
    ) -> None:
        file = self.file(row, first)
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise self._damaged(file, row, error.strerror or "cannot be opened") from error
        try:
            index = self._index(descriptor, file, row)[row % self.format.rows_per_shard]
            for number in range(
                (start - first) // self.format.chunk, -(-(stop - first) // self.format.chunk)
            ):
                offset, length = (int(value) for value in index[number])
                if offset == ABSENT:
                    raise self._damaged(file, row, f"chunk {number} is not there")
                where = first + number * self.format.chunk
                begin, end = max(start, where), min(stop, where + self.format.chunk)
                part = out[begin - start : end - start]
                if uncached is None:
                    whole = self._read_chunk(descriptor, offset, length, part, begin - where)
                else:
                    raw = uncached.read(file, offset, length)
                    whole = len(raw) == length and self.format.decode(raw, part, begin - where)
                if not whole:
                    raise self._damaged(file, row, f"chunk {number} is truncated or damaged")
        except OSError as error:
            raise self._damaged(file, row, error.strerror or "cannot be read") from error
        finally:
            os.close(descriptor)

    def _index(self, descriptor: int, file: Path, row: int) -> NDArray[np.uint64]:
        end = os.fstat(descriptor).st_size
        size = self.format.index_bytes
        index = self.format.index(os.pread(descriptor, size, max(end - size, 0)))
        if index is None:
            raise self._damaged(file, row, "its index does not match its checksum, truncated or damaged")
        return index

    def _read_chunk(self, descriptor: int, offset: int, length: int, part: Float32, skip: int) -> bool:
        """Read a chunk, or some of it, into `part`; return False if it is damaged."""
        if len(part) == self.format.chunk and length == BLOSC_HEADER_BYTES + part.nbytes + CHECKSUM_BYTES:
            header, end = bytearray(BLOSC_HEADER_BYTES), bytearray(CHECKSUM_BYTES)
            values = part.view(np.uint8)
            if os.preadv(descriptor, [header, values.data, end], offset) != length:
                return False
            if header[2] & PLAIN_FLAG:
                return self.format.states_its_size(header) and checksum(bytes(header), values) == bytes(end)
        raw = os.pread(descriptor, length, offset)
        return len(raw) == length and self.format.decode(raw, part, skip)

    def _damaged(self, file: Path, row: int, reason: str) -> BankFormatError:
        return BankFormatError(f"{file}: row {row}: {reason}; {self.advice}")

    # -- writing --------------------------------------------------------------------------------

    def write(self, row: int, column: int, blocks: Sequence[Float32]) -> None:
        """Write whole shards, one below the other, flush them together, and let them appear under their names.

        Their folders are left to flush: `bankdb.arrays.durable.fsync_folders`.

        Parameters
        ----------
        row, column
            Of the first shard; multiples of a shard's height and width.
        blocks
            One for each shard, shape (rows_per_shard, its width); less only at the edges of the array.

        Raises
        ------
        OSError
            A file cannot be written; it is named. None of the shards that are not whole appears.
        """
        self.begin(row, column, blocks)()

    def begin(self, row: int, column: int, blocks: Sequence[Float32]) -> Callable[[], None]:
        """Write shards as `write` does, but neither flush them nor let them appear yet.

        Returns
        -------
        What does that, to be called once, in whatever thread: it hardly computes, and waits for the disk.
        """
        files = [self.file(row + i * self.format.rows_per_shard, column) for i in range(len(blocks))]
        partials = [partial_of(file) for file in files]
        with _none_left(partials):
            for file, partial, block in zip(files, partials, blocks, strict=True):
                with naming(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with partial.open("wb") as stream:
                        stream.writelines(self.format.encoded(block))
                        stream.flush()
                        _begin_writing(stream.fileno())

        def end() -> None:
            # After all are written: the disk has the next ones to do while one is waited for.
            with _none_left(partials):
                for file, partial in zip(files, partials, strict=True):
                    with naming(file):
                        fsync_path(partial)
                        partial.replace(file)

        return end


@contextlib.contextmanager
def _none_left(partials: Sequence[Path]) -> Iterator[None]:
    """Delete files that an error kept from getting their names."""
    try:
        yield
    except BaseException:
        for partial in partials:
            partial.unlink(missing_ok=True)
        raise


def _begin_writing(descriptor: int) -> None:
    """Let the disk begin with what is in the kernel's cache, rather than at the flush that waits for it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def shards_of(array: zarr.Array[Any], location: Location, advice: str) -> Shards | RemoteShards | None:
    """Describe an array wherever it is, or return None if it is not of the one layout that is known here."""
    if isinstance(location, RemotePath):
        found = ShardFormat.of(array)
        return None if found is None else RemoteShards(location, found, advice)
    return Shards.of(array, location, advice)


def read_row(location: Location, row: int, advice: str) -> Float32:
    """Read a whole row of a sharded array that this project wrote, shape (columns,).

    Raises
    ------
    BankFormatError
        The row, or the array's metadata, are missing or damaged; the message ends with `advice`.
    """
    layout, _ = read_layout(location)
    if layout.shards is None:
        raise BankFormatError(f"{location / METADATA}: an array in shards was expected; {advice}")
    form = ShardFormat.from_layout(layout)
    out = np.empty((1, form.columns), dtype=np.float32)
    kind = RemoteShards if isinstance(location, RemotePath) else Shards
    kind(location, form, advice).read_rows([row], 0, form.columns, out)  # type: ignore[arg-type]
    values: Float32 = out[0]
    return values
