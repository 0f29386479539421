"""Rows straight from and into the shards of the arrays that hold adapters: ten times quicker than zarr.

zarr reads and writes any array by an asynchronous pipeline that costs milliseconds a chunk; combining
adapters takes tens of thousands of chunks. This knows the one layout that `bankdb.arrays.create_array`
makes (zarr 3 sharding: an index of offsets and lengths with a CRC32C at the end of each file; chunks of one
row, little-endian float32 under blosc, with a CRC32C of their own) and nothing else; any other array is
left to zarr. What it writes, zarr reads, and the other way round: tests hold that.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import BankFormatError

if TYPE_CHECKING:
    import zarr

Float32 = NDArray[np.float32]

_ABSENT = 2**64 - 1
_CHECKSUM_BYTES = 4
_BLOSC_HEADER_BYTES = 16


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

    def read(self, row: int, start: int, stop: int, out: Float32) -> None:
        """Read columns `start` to `stop` of a row into `out`, C-contiguous, shape (stop - start,).

        Raises
        ------
        BankFormatError
            A file is missing, truncated or damaged, or lacks chunks.
        """
        width = self.chunk * self.chunks_per_row
        for first in range(start // width * width, stop, width):
            begin, end = max(start, first), min(stop, first + width)
            self._read_shard(row, first, begin, end, out[begin - start : end - start])

    def _read_shard(self, row: int, first: int, start: int, stop: int, out: Float32) -> None:
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
                raw = os.pread(descriptor, length, offset)
                where = first + number * self.chunk
                begin, end = max(start, where), min(stop, where + self.chunk)
                part = out[begin - start : end - start]
                if not self._decode(raw, part, begin - where):
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

    def _decode(self, raw: bytes, part: Float32, skip: int) -> bool:
        """Decode a chunk, or some of it, into `part`; return False if it is damaged."""
        from numcodecs import blosc

        # The header states the decoded size; blosc would trust it, whatever it says.
        if len(raw) < _BLOSC_HEADER_BYTES + _CHECKSUM_BYTES or not _is_whole(raw):
            return False
        if int.from_bytes(raw[4:8], "little") != 4 * self.chunk:
            return False
        whole = part if len(part) == self.chunk else np.empty(self.chunk, dtype=np.float32)
        try:
            blosc.decompress(memoryview(raw)[:-_CHECKSUM_BYTES], whole)
        except RuntimeError:
            return False
        if whole is not part:
            part[:] = whole[skip : skip + len(part)]
        return True

    def _damaged(self, file: Path, row: int, reason: str) -> BankFormatError:
        return BankFormatError(f"{file}: row {row}: {reason}; {self.advice}")

    # -- writing --------------------------------------------------------------------------------

    def write(self, row: int, column: int, block: Float32) -> None:
        """Write one whole shard, flush it to the disk, and let it appear under its name.

        Parameters
        ----------
        row, column
            The shard's first; multiples of its height and width.
        block
            Shape (up to rows_per_shard, up to its width): less only at the edges of the array.
        """
        file = self.file(row, column)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Named as zarr names its own, so that what a killed writer leaves is found.
        partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as stream:
                for piece in self._encoded(block):
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def _encoded(self, block: Float32) -> Iterator[bytes]:
        from numcodecs import blosc

        index = np.full((self.rows_per_shard, self.chunks_per_row, 2), _ABSENT, dtype="<u8")
        offset = 0
        for i, row in enumerate(block):
            for j, first in enumerate(range(0, len(row), self.chunk)):
                chunk = self._padded(row[first : first + self.chunk])
                piece = _with_checksum(blosc.compress(chunk, b"lz4", 5, blosc.BITSHUFFLE))
                index[i, j] = offset, len(piece)
                offset += len(piece)
                yield piece
        yield _with_checksum(index.tobytes())

    def _padded(self, part: Float32) -> Float32:
        """Return a chunk at its full length: zarr stores the last one of a row so, filled with NaN."""
        if len(part) == self.chunk:
            return np.ascontiguousarray(part)
        whole = np.full(self.chunk, np.nan, dtype=np.float32)
        whole[: len(part)] = part
        return whole


def _with_checksum(data: bytes) -> bytes:
    from google_crc32c import value as crc32c

    return data + int(crc32c(data)).to_bytes(_CHECKSUM_BYTES, "little")


def _is_whole(data: bytes) -> bool:
    from google_crc32c import value as crc32c

    stored = int.from_bytes(data[-_CHECKSUM_BYTES:], "little")
    return int(crc32c(data[:-_CHECKSUM_BYTES])) == stored


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
