"""The layout of the shards that hold adapters: how chunks are encoded, decoded and found; bytes alone, no files.

A shard is zarr 3's: an index of offsets and lengths with a CRC32C at its end; chunks of one row, little-endian
float32 under blosc, with a CRC32C of their own. What is encoded here zarr reads, and the other way round: tests
hold that.

A chunk is compressed only where that is worth its time. Values that were born in half precision shrink to
half; the noise of trained float32 weights by a tenth, at an eighth of the speed. Such chunks are plain: blosc's
container around the values as they are, read into their place without a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import zarr

    from bankdb.arrays.metadata import ArrayLayout

Float32 = NDArray[np.float32]
Checksums = NDArray[np.uint32]
"""What chunks end with: the CRC32C of a chunk as it is stored."""
NOT_THE_CATALOGUES = (
    "is whole, but not the one that the bank stored: of another row, or written through another bank"
)


# Offset of a chunk that is not there.
ABSENT = 2**64 - 1
CHECKSUM_BYTES = 4
BLOSC_HEADER_BYTES = 16
# Bit of the flags, the third byte of blosc's header: the values follow as they are.
PLAIN_FLAG = 0x02
# Versions, flags, size of an item, and of all items, of a block, and of the container.
_HEADER = struct.Struct("<2sBBIII")
# Version of blosc's container and of LZ4 within it, the first two bytes; the compressor, in the upper bits of the
# flags, and a bit of them that is never set.
_VERSIONS, _LZ4, _RESERVED_FLAG = b"\x02\x01", 1, 0x08
# Offset in a file that can be asked for.
_FARTHEST = 2**62
# A chunk is compressed if it takes this share of its size at the most, as far as a sample tells.
_WORTH = 0.75
_SAMPLE = 4096


@dataclass(frozen=True, slots=True)
class ShardFormat:
    """How the chunks of an (N, p) array lie in its shards.

    Attributes
    ----------
    columns
        p, the width of the array.
    chunk
        Columns of a chunk; a chunk has one row.
    rows_per_shard, chunks_per_row
        Chunks of a shard, down and across.
    """

    columns: int
    chunk: int
    rows_per_shard: int
    chunks_per_row: int

    @classmethod
    def of(cls, array: zarr.Array[Any]) -> ShardFormat | None:
        """Describe an array, or return None if it is not of the one layout that is known here."""
        if not _is_known(array):
            return None
        shard, chunk = array.shards, array.chunks
        assert shard is not None, "checked by _is_known"
        return cls(int(array.shape[1]), int(chunk[1]), int(shard[0]), shard[1] // chunk[1])

    @classmethod
    def from_layout(cls, layout: ArrayLayout) -> ShardFormat:
        """Describe a sharded array of a layout that this project writes."""
        assert layout.shards is not None, "the caller knows that there are shards"
        rows, width = layout.shards
        return cls(layout.shape[1], layout.chunks[1], rows, width // layout.chunks[1])

    @property
    def width(self) -> int:
        """Columns of a shard."""
        return self.chunk * self.chunks_per_row

    def key(self, row: int, column: int) -> tuple[str, str, str]:
        """Return the names, from the array's folder on, that lead to the shard with an entry."""
        return "c", str(row // self.rows_per_shard), str(column // self.width)

    # -- decoding -------------------------------------------------------------------------------

    @property
    def index_bytes(self) -> int:
        """Length of the index, with which a shard ends."""
        return 16 * self.rows_per_shard * self.chunks_per_row + CHECKSUM_BYTES

    def index(self, raw: bytes) -> NDArray[np.uint64] | None:
        """Return offset and length of each chunk, shape (rows_per_shard, chunks_per_row, 2); None if damaged."""
        if len(raw) < self.index_bytes or not is_whole(raw):
            return None
        entries = np.frombuffer(raw[:-CHECKSUM_BYTES], dtype="<u8").reshape(-1, 2)
        stored = entries[entries[:, 0] != ABSENT]
        longest = BLOSC_HEADER_BYTES + 4 * self.chunk + CHECKSUM_BYTES
        if (stored[:, 0] > _FARTHEST).any() or (stored[:, 1] > longest).any():
            return None  # no shard is so long: whoever reads takes as much memory as this says
        return entries.reshape(self.rows_per_shard, self.chunks_per_row, 2)

    def decode(self, raw: bytes | memoryview, part: Float32, skip: int) -> bool:
        """Decode a chunk, from column `skip` of it on, into `part`; return False if it is damaged."""
        whole = part if len(part) == self.chunk else np.empty(self.chunk, dtype=np.float32)
        if damage_of(raw, whole) is not None:
            return False
        if whole is not part:
            part[:] = whole[skip : skip + len(part)]
        return True

    def states_its_size(self, header: bytes | bytearray | memoryview) -> bool:
        """Whether blosc's header states the size that a chunk has."""
        return int.from_bytes(header[4:8], "little") == 4 * self.chunk

    # -- encoding -------------------------------------------------------------------------------

    def encoded(self, block: Float32, checksums: list[int] | None = None) -> Iterator[bytes | memoryview]:
        """Encode the rows of a shard, shape (rows_per_shard, width) or less at the edges, piece by piece.

        Parameters
        ----------
        checksums
            Gets the CRC32C that each chunk ends with, in their order.
        """
        index = np.full((self.rows_per_shard, self.chunks_per_row, 2), ABSENT, dtype="<u8")
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
                end = checksum(start, values)
                if checksums is not None:
                    checksums.append(int.from_bytes(end, "little"))
                yield end
                length = len(start) + (0 if values is None else len(values)) + CHECKSUM_BYTES
                index[i, j] = offset, length
                offset += length
        entries = index.tobytes()
        yield entries
        yield checksum(entries)

    def _padded(self, part: Float32) -> Float32:
        """Return a chunk at its full length: zarr stores the last one of a row so, filled with NaN."""
        if len(part) == self.chunk:
            return np.ascontiguousarray(part)
        whole = np.full(self.chunk, np.nan, dtype=np.float32)
        whole[: len(part)] = part
        return whole


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
    return header[:BLOSC_HEADER_BYTES]


def damage_of(raw: bytes | memoryview, out: NDArray[Any]) -> str | None:
    """Unpack a chunk with its CRC32C into `out`, C-contiguous; return what is wrong with it, or None.

    blosc believes what a container says of itself, and reads and writes beyond its memory where that is not true:
    it is looked at before.
    """
    from numcodecs import blosc

    if len(raw) < BLOSC_HEADER_BYTES + CHECKSUM_BYTES or not is_whole(raw):
        return "the chunk is truncated or damaged"
    packed = memoryview(raw)[:-CHECKSUM_BYTES]
    wrong = _container_problem(packed, out.nbytes, out.itemsize)
    if wrong is not None:
        return f"the chunk is damaged ({wrong})"
    try:
        blosc.decompress(packed, out)
    except RuntimeError as error:
        return f"the chunk cannot be unpacked ({error})"
    return None


def _container_problem(packed: memoryview, size: int, item: int) -> str | None:
    """Return what blosc's container states that no chunk of `size` bytes, in items, can have; None if nothing."""
    versions, flags, itemsize, stated, block, length = _HEADER.unpack_from(packed)
    if versions != _VERSIONS or flags >> 5 != _LZ4 or flags & _RESERVED_FLAG:
        return f"blosc with LZ4 expected, versions {packed[0]}, {packed[1]} and flags {flags} found"
    if (stated, itemsize) != (size, item) or length > len(packed):
        return (
            f"{size} bytes in items of {item} within {len(packed)} expected, "
            f"{stated} in items of {itemsize} within {length} stated"
        )
    if not 0 < block <= size:
        return f"blocks of {block} bytes stated"
    starts = BLOSC_HEADER_BYTES + 4 * -(-size // block)
    if flags & PLAIN_FLAG:
        return None if length == BLOSC_HEADER_BYTES + size else "its length is not that of plain values"
    if starts > length:
        return "it ends before its blocks"
    offsets = struct.unpack_from(f"<{(starts - BLOSC_HEADER_BYTES) // 4}i", packed, BLOSC_HEADER_BYTES)
    inside = min(offsets) >= starts and max(offsets) <= length - 4
    return None if inside else "a block lies outside of it"


def checksum(start: bytes, rest: NDArray[np.uint8] | None = None) -> bytes:
    """Return the CRC32C of the two together, little-endian."""
    # Not zarr's own, which keeps the interpreter to itself: threads that read together would wait for it.
    from crc32c import crc32c

    found = crc32c(start)
    return (found if rest is None else crc32c(rest.data, found)).to_bytes(CHECKSUM_BYTES, "little")


def is_whole(data: bytes | memoryview) -> bool:
    """Whether data ends with the CRC32C of what is before it."""
    values = np.frombuffer(data, np.uint8, len(data) - CHECKSUM_BYTES)
    return checksum(b"", values) == data[-CHECKSUM_BYTES:]


def _is_known(array: zarr.Array[Any]) -> bool:
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

    codecs: tuple[Any, ...] = tuple(getattr(array.metadata, "codecs", ()))
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec) or array.shards is None:
        return False
    index: tuple[Any, ...] = tuple(codecs[0].index_codecs)
    return (
        _plain(codecs[0].index_location) == "end"
        and is_known_chunk(tuple(codecs[0].codecs))
        and [type(item) for item in index] == [BytesCodec, Crc32cCodec]
        and _plain(index[0].endian) == "little"
        and array.ndim == 2
        and bool(array.dtype == np.dtype("<f4"))
        and bool(array.chunks[0] == 1)
    )


def is_known_chunk(codecs: tuple[Any, ...]) -> bool:
    """Whether chunks are little-endian values under blosc, with a CRC32C at the end."""
    from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

    return [type(item) for item in codecs] == [BytesCodec, BloscCodec, Crc32cCodec] and _plain(
        codecs[0].endian
    ) == "little"


def _plain(value: Any) -> str:
    """Return an option as text: an enumeration in some versions of zarr, text in others."""
    return str(getattr(value, "value", value))
