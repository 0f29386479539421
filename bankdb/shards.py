"""Rows straight from and into the shards of the arrays that hold adapters: ten times quicker than zarr.

zarr reads and writes any array by an asynchronous pipeline that costs milliseconds a chunk; combining
adapters takes tens of thousands of chunks. This knows the one layout that `bankdb.arrays.create_array`
makes (zarr 3 sharding: an index of offsets and lengths with a CRC32C at the end of each file; chunks of one
row, little-endian float32 under blosc, with a CRC32C of their own) and nothing else; any other array is
left to zarr. What it writes, zarr reads, and the other way round: tests hold that.

A chunk is compressed only where that is worth its time. Values that were born in half precision shrink to
half; the noise of trained float32 weights by a tenth, at an eighth of the speed. Such chunks are plain: blosc's
container around the values as they are, read into their place without a copy.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays import fsync_path
from bankdb.errors import BankFormatError

if TYPE_CHECKING:
    import zarr

    from bankdb.uncached import UncachedReader

Float32 = NDArray[np.float32]

_ABSENT = 2**64 - 1
_CHECKSUM_BYTES = 4
_BLOSC_HEADER_BYTES = 16
# Bit of the flags, the third byte of blosc's header: the values follow as they are.
_PLAIN_FLAG = 0x02
# A chunk is compressed if it takes this share of its size at the most, as far as a sample tells.
_WORTH = 0.75
_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class Shards:
    """Where the chunks of an (N, p) array are.

    Attributes
    ----------
    path
        Folder of the array.
    columns
        p, the width of the array.
    chunk
        Columns of a chunk; a chunk has one row.
    rows_per_shard, chunks_per_row
        Chunks of a shard, down and across.
    advice
        What to do about a damaged file: the end of every error message.
    """

    path: Path
    columns: int
    chunk: int
    rows_per_shard: int
    chunks_per_row: int
    advice: str

    @classmethod
    def of(cls, array: zarr.Array[Any], path: Path, advice: str) -> Shards | None:
        """Describe an array, or return None if it is not of the one layout that is known here."""
        if not _is_known(array):
            return None
        shard, chunk = array.shards, array.chunks
        assert shard is not None, "checked by _is_known"
        return cls(path, int(array.shape[1]), int(chunk[1]), int(shard[0]), shard[1] // chunk[1], advice)

    def file(self, row: int, column: int) -> Path:
        """Return the file that holds an entry."""
        width = self.chunk * self.chunks_per_row
        return self.path / "c" / str(row // self.rows_per_shard) / str(column // width)

    # -- reading --------------------------------------------------------------------------------

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
        width = self.chunk * self.chunks_per_row
        for first in range(start // width * width, stop, width):
            begin, end = max(start, first), min(stop, first + width)
            self._read_shard(row, first, begin, end, out[begin - start : end - start], uncached)

    def prefetch(self, row: int, start: int, stop: int) -> None:
        """Ask the kernel to read these columns of a row into its cache; nothing is raised, `read` tells."""
        width = self.chunk * self.chunks_per_row
        for first in range(start // width * width, stop, width):
            with contextlib.suppress(OSError, BankFormatError):
                self._prefetch_shard(row, first, max(start, first), min(stop, first + width))

    def _prefetch_shard(self, row: int, first: int, start: int, stop: int) -> None:
        file = self.file(row, first)
        descriptor = os.open(file, os.O_RDONLY)
        try:
            index = self._index(descriptor, file, row)[row % self.rows_per_shard]
            wanted = index[(start - first) // self.chunk : -(-(stop - first) // self.chunk)]
            wanted = wanted[wanted[:, 0] != _ABSENT].astype(np.int64)
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
            index = self._index(descriptor, file, row)[row % self.rows_per_shard]
            for number in range((start - first) // self.chunk, -(-(stop - first) // self.chunk)):
                offset, length = (int(value) for value in index[number])
                if offset == _ABSENT:
                    raise self._damaged(file, row, f"chunk {number} is not there")
                where = first + number * self.chunk
                begin, end = max(start, where), min(stop, where + self.chunk)
                part = out[begin - start : end - start]
                if uncached is None:
                    whole = self._read_chunk(descriptor, offset, length, part, begin - where)
                else:
                    raw = uncached.read(file, offset, length)
                    whole = len(raw) == length and self._decode(raw, part, begin - where)
                if not whole:
                    raise self._damaged(file, row, f"chunk {number} is truncated or damaged")
        except OSError as error:
            raise self._damaged(file, row, error.strerror or "cannot be read") from error
        finally:
            os.close(descriptor)

    def _index(self, descriptor: int, file: Path, row: int) -> NDArray[np.uint64]:
        size = 16 * self.rows_per_shard * self.chunks_per_row + _CHECKSUM_BYTES
        end = os.fstat(descriptor).st_size
        raw = os.pread(descriptor, size, max(end - size, 0))
        if len(raw) < size or not _is_whole(raw):
            raise self._damaged(file, row, "its index does not match its checksum, truncated or damaged")
        entries = np.frombuffer(raw[:-_CHECKSUM_BYTES], dtype="<u8")
        return entries.reshape(self.rows_per_shard, self.chunks_per_row, 2)

    def _read_chunk(self, descriptor: int, offset: int, length: int, part: Float32, skip: int) -> bool:
        """Read a chunk, or some of it, into `part`; return False if it is damaged."""
        if len(part) == self.chunk and length == _BLOSC_HEADER_BYTES + part.nbytes + _CHECKSUM_BYTES:
            header, end = bytearray(_BLOSC_HEADER_BYTES), bytearray(_CHECKSUM_BYTES)
            values = part.view(np.uint8)
            if os.preadv(descriptor, [header, values.data, end], offset) != length:
                return False
            if header[2] & _PLAIN_FLAG:
                return self._states_its_size(header) and _crc32c(bytes(header), values) == bytes(end)
        raw = os.pread(descriptor, length, offset)
        return len(raw) == length and self._decode(raw, part, skip)

    def _decode(self, raw: bytes | memoryview, part: Float32, skip: int) -> bool:
        """Decode a chunk, or some of it, into `part`; return False if it is damaged."""
        from numcodecs import blosc

        if len(raw) < _BLOSC_HEADER_BYTES + _CHECKSUM_BYTES or not _is_whole(raw):
            return False
        if not self._states_its_size(raw):
            return False
        whole = part if len(part) == self.chunk else np.empty(self.chunk, dtype=np.float32)
        try:
            blosc.decompress(memoryview(raw)[:-_CHECKSUM_BYTES], whole)
        except RuntimeError:
            return False
        if whole is not part:
            part[:] = whole[skip : skip + len(part)]
        return True

    def _states_its_size(self, header: bytes | bytearray | memoryview) -> bool:
        """Whether blosc's header states the size that a chunk has; blosc trusts it, whatever it says."""
        return int.from_bytes(header[4:8], "little") == 4 * self.chunk

    def _damaged(self, file: Path, row: int, reason: str) -> BankFormatError:
        return BankFormatError(f"{file}: row {row}: {reason}; {self.advice}")

    # -- writing --------------------------------------------------------------------------------

    def write(self, row: int, column: int, blocks: Sequence[Float32]) -> None:
        """Write whole shards, one below the other, flush them together, and let them appear under their names.

        Their folders are left to flush: `bankdb.arrays.fsync_folders`.

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
        files = [self.file(row + i * self.rows_per_shard, column) for i in range(len(blocks))]
        # Named as zarr names its own, so that what a killed writer leaves is found.
        partials = [file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial") for file in files]
        try:
            for file, partial, block in zip(files, partials, blocks, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as stream:
                    stream.writelines(self._encoded(block))
                    stream.flush()
                    _begin_writing(stream.fileno())
            # After all are written: the disk has the next ones to do while one is waited for.
            for file, partial in zip(files, partials, strict=True):
                fsync_path(partial)
                partial.replace(file)
        except OSError as error:
            if error.filename is None:  # a full disk is told by calls that know no name
                error.filename = str(file)
            raise
        finally:
            for partial in partials:
                partial.unlink(missing_ok=True)

    def _encoded(self, block: Float32) -> Iterator[bytes | memoryview]:
        index = np.full((self.rows_per_shard, self.chunks_per_row, 2), _ABSENT, dtype="<u8")
        offset = 0
        for i, row in enumerate(block):
            for j, first in enumerate(range(0, len(row), self.chunk)):
                chunk = self._padded(row[first : first + self.chunk])
                start, values = _compressed(chunk), None
                if start is None:
                    start, values = _plain_header(chunk.nbytes), chunk.view(np.uint8)
                yield start
                if values is not None:
                    yield values.data
                yield _crc32c(start, values)
                length = len(start) + (0 if values is None else len(values)) + _CHECKSUM_BYTES
                index[i, j] = offset, length
                offset += length
        entries = index.tobytes()
        yield entries
        yield _crc32c(entries)

    def _padded(self, part: Float32) -> Float32:
        """Return a chunk at its full length: zarr stores the last one of a row so, filled with NaN."""
        if len(part) == self.chunk:
            return np.ascontiguousarray(part)
        whole = np.full(self.chunk, np.nan, dtype=np.float32)
        whole[: len(part)] = part
        return whole


def _begin_writing(descriptor: int) -> None:
    """Let the disk begin with what is in the kernel's cache, rather than at the flush that waits for it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _compressed(chunk: Float32) -> bytes | None:
    """Return a chunk compressed by blosc, or None if that is not worth its time."""
    from numcodecs import blosc

    for part in (chunk[:_SAMPLE], chunk):
        packed: bytes = blosc.compress(part, b"lz4", 5, blosc.BITSHUFFLE)
        if len(packed) > _WORTH * part.nbytes:
            return None
    return packed


@cache
def _plain_header(size: int) -> bytes:
    """Return what blosc puts before `size` bytes of float32 that it leaves as they are."""
    from numcodecs import blosc

    header: bytes = blosc.compress(np.zeros(size // 4, np.float32), b"lz4", 0, blosc.BITSHUFFLE)
    return header[:_BLOSC_HEADER_BYTES]


def _crc32c(start: bytes, rest: NDArray[np.uint8] | None = None) -> bytes:
    """Return the CRC32C of the two together, little-endian."""
    # Not zarr's own, which keeps the interpreter to itself: threads that read together would wait for it.
    from crc32c import crc32c

    checksum = crc32c(start)
    return (checksum if rest is None else crc32c(rest.data, checksum)).to_bytes(_CHECKSUM_BYTES, "little")


def _is_whole(data: bytes | memoryview) -> bool:
    values = np.frombuffer(data, np.uint8, len(data) - _CHECKSUM_BYTES)
    return _crc32c(b"", values) == data[-_CHECKSUM_BYTES:]


def _is_known(array: zarr.Array[Any]) -> bool:
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec

    codecs: tuple[Any, ...] = tuple(getattr(array.metadata, "codecs", ()))
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec) or array.shards is None:
        return False
    inner: tuple[Any, ...] = tuple(codecs[0].codecs)
    index: tuple[Any, ...] = tuple(codecs[0].index_codecs)
    return (
        _plain(codecs[0].index_location) == "end"
        and [type(item) for item in inner] == [BytesCodec, BloscCodec, Crc32cCodec]
        and [type(item) for item in index] == [BytesCodec, Crc32cCodec]
        and all(_plain(item.endian) == "little" for item in (inner[0], index[0]))
        and array.ndim == 2
        and bool(array.dtype == np.dtype("<f4"))
        and bool(array.chunks[0] == 1)
    )


def _plain(value: Any) -> str:
    """Return an option as text: an enumeration in some versions of zarr, text in others."""
    return str(getattr(value, "value", value))
