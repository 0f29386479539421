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
    NOT_THE_CATALOGUES,
    PLAIN_FLAG,
    Checksums,
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
        checksums: Checksums | None = None,
    ) -> None:
        """Read columns of some rows into `panel`, shape (len(rows), stop - start); see `read`.

        Parameters
        ----------
        checksums
            What the chunks that are read have to end with, shape (len(rows), chunks read).
        """
        for position, row in enumerate(rows):
            expected = None if checksums is None else checksums[position]
            self.read(row, start, stop, panel[position], uncached, expected)

    def read(
        self,
        row: int,
        start: int,
        stop: int,
        out: Float32,
        uncached: UncachedReader | None = None,
        checksums: Checksums | None = None,
    ) -> None:
        """Read columns `start` to `stop` of a row into `out`, C-contiguous, shape (stop - start,).

        Parameters
        ----------
        uncached
            Reads past the page cache.
        checksums
            What the chunks that are read have to end with, shape (chunks read,); None does not compare them.

        Raises
        ------
        BankFormatError
            A file is missing, truncated or damaged, lacks chunks, or holds others than those expected.
        """
        width = self.format.width
        for first in range(start // width * width, stop, width):
            begin, end = max(start, first), min(stop, first + width)
            expected = None
            if checksums is not None:
                done = begin // self.format.chunk - start // self.format.chunk
                expected = checksums[done : done + self.format.chunks_per_row]
            self._read_shard(row, first, begin, end, out[begin - start : end - start], uncached, expected)

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
        checksums: Checksums | None,
    ) -> None:
        file = self.file(row, first)
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError as error:
            raise self._damaged(file, row, error.strerror or "cannot be opened") from error
        try:
            index = self._index(descriptor, file, row)[row % self.format.rows_per_shard]
            lowest = (start - first) // self.format.chunk
            for number in range(lowest, -(-(stop - first) // self.format.chunk)):
                offset, length = (int(value) for value in index[number])
                if offset == ABSENT:
                    raise self._damaged(file, row, f"chunk {number} is not there")
                where = first + number * self.format.chunk
                begin = max(start, where)
                part = out[begin - start : min(stop, where + self.format.chunk) - start]
                if uncached is None:
                    end = self._read_chunk(descriptor, offset, length, part, begin - where)
                else:
                    end = self._decoded(uncached.read(file, offset, length), length, part, begin - where)
                if end is None:
                    raise self._damaged(file, row, f"chunk {number} is truncated or damaged")
                if checksums is not None and int.from_bytes(end, "little") != checksums[number - lowest]:
                    raise self._damaged(file, row, f"chunk {number} {NOT_THE_CATALOGUES}")
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

    def _read_chunk(
        self, descriptor: int, offset: int, length: int, part: Float32, skip: int
    ) -> bytes | None:
        """Read a chunk, or some of it, into `part`; return what it ends with, or None if it is damaged."""
        if len(part) == self.format.chunk and length == BLOSC_HEADER_BYTES + part.nbytes + CHECKSUM_BYTES:
            header, end = bytearray(BLOSC_HEADER_BYTES), bytearray(CHECKSUM_BYTES)
            values = part.view(np.uint8)
            if os.preadv(descriptor, [header, values.data, end], offset) != length:
                return None
            if header[2] & PLAIN_FLAG:
                whole = self.format.states_its_size(header) and checksum(bytes(header), values) == bytes(end)
                return bytes(end) if whole else None
        return self._decoded(os.pread(descriptor, length, offset), length, part, skip)

    def _decoded(self, raw: bytes | memoryview, length: int, part: Float32, skip: int) -> bytes | None:
        whole = len(raw) == length and self.format.decode(raw, part, skip)
        return bytes(raw[-CHECKSUM_BYTES:]) if whole else None

    def checksums(self, row: int) -> Checksums:
        """Return what each chunk of a row ends with, shape (chunks of the row,), as it is stored, unchecked.

        Raises
        ------
        BankFormatError
            A file is missing or truncated, or lacks chunks.
        """
        found = []
        for first in range(0, self.format.columns, self.format.width):
            file = self.file(row, first)
            try:
                with file.open("rb") as stream:
                    index = self._index(stream.fileno(), file, row)[row % self.format.rows_per_shard]
                    stored = index[
                        : -(-min(self.format.width, self.format.columns - first) // self.format.chunk)
                    ]
                    if (stored[:, 0] == ABSENT).any():
                        raise self._damaged(file, row, "chunks are not there")
                    ends = stored.astype(np.int64).sum(axis=1) - CHECKSUM_BYTES
                    found += [os.pread(stream.fileno(), CHECKSUM_BYTES, end) for end in ends.tolist()]
            except OSError as error:
                raise self._damaged(file, row, error.strerror or "cannot be read") from error
            if any(len(item) < CHECKSUM_BYTES for item in found):
                raise self._damaged(file, row, "it is truncated")
        return np.frombuffer(b"".join(found), "<u4")

    def _damaged(self, file: Path, row: int, reason: str) -> BankFormatError:
        return BankFormatError(f"{file}: row {row}: {reason}; {self.advice}")

    # -- writing --------------------------------------------------------------------------------

    def write(
        self, row: int, column: int, blocks: Sequence[Float32], checksums: list[int] | None = None
    ) -> None:
        """Write whole shards, one below the other, flush them together, and let them appear under their names.

        Their folders are left to flush: `bankdb.arrays.durable.fsync_folders`.

        Parameters
        ----------
        row, column
            Of the first shard; multiples of a shard's height and width.
        blocks
            One for each shard, shape (rows_per_shard, its width); less only at the edges of the array.
        checksums
            Gets what each chunk ends with, in their order.

        Raises
        ------
        OSError
            A file cannot be written; it is named. None of the shards that are not whole appears.
        """
        self.begin(row, column, blocks, checksums)()

    def begin(
        self, row: int, column: int, blocks: Sequence[Float32], checksums: list[int] | None = None
    ) -> Callable[[], None]:
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
                        stream.writelines(self.format.encoded(block, checksums))
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
