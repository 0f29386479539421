"""Rows straight from and into shards that are objects under a URL: ranges read many at once, shards put whole."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.remote import RemotePath, put, read_ranges
from bankdb.arrays.shard_format import (
    ABSENT,
    CHECKSUM_BYTES,
    NOT_THE_CATALOGUES,
    Checksums,
    Float32,
    ShardFormat,
)
from bankdb.errors import BankFormatError

if TYPE_CHECKING:
    from bankdb.arrays.uncached import UncachedReader

# Encoded bytes that are asked for, or sent, at once, beside the rows themselves: enough to keep many requests in
# flight, little to what a task may use. A single chunk or shard may be larger.
_IN_FLIGHT = 16 * 2**20
# Of one request: chunks of a row that follow each other are read together.
_RANGE = 4 * 2**20
# Indexes that are kept in this process; 16 bytes a chunk, 1.2 KB for a row of 9.4 M parameters.
_INDEXES_KEPT = 16_384

_indexes: OrderedDict[str, NDArray[np.uint64]] = OrderedDict()
_indexes_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Range:
    """Chunks of one row that lie one after another in its object."""

    position: int
    row: int
    file: RemotePath
    chunks: tuple[tuple[int, int, int], ...]  # number, offset, length

    @property
    def start(self) -> int:
        return self.chunks[0][1]

    @property
    def stop(self) -> int:
        return self.chunks[-1][1] + self.chunks[-1][2]


@dataclass(frozen=True, slots=True)
class RemoteShards:
    """The shards of an (N, p) array below a URL.

    Attributes
    ----------
    path
        Place of the array.
    format
        How chunks lie in a shard.
    advice
        What to do about a damaged object: the end of every error message.
    """

    path: RemotePath
    format: ShardFormat
    advice: str

    def file(self, row: int, column: int) -> RemotePath:
        """Return the object that holds an entry."""
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
        """Read columns of some rows into `panel`, shape (len(rows), stop - start), with C-contiguous rows.

        Parameters
        ----------
        uncached
            Not used: nothing of an object is in the page cache.
        checksums
            What the chunks that are read have to end with, shape (len(rows), chunks read); None does not compare
            them.

        Raises
        ------
        BankFormatError
            An object is missing, truncated or damaged, lacks chunks, or holds others than those expected.
        ArrayStoreUnavailableError
            The store failed.
        """
        width = self.format.width
        if stop - start == self.format.columns:
            # A whole row is read to be looked at, its index too: a request more among many bytes.
            forget(self.file(row, first) for row in rows for first in range(0, stop, width))
        for first in range(start // width * width, stop, width):
            begin, end = max(start, first), min(stop, first + width)
            part = panel[:, begin - start : end - start]
            wanted = list(enumerate(rows))
            expected = None
            if checksums is not None:
                done = begin // self.format.chunk - start // self.format.chunk
                expected = checksums[:, done : done + self.format.chunks_per_row]
            damaged = self._read_shards(wanted, first, begin, end, part, {}, expected)
            if damaged:
                # Perhaps the row was written anew since its index was read: once more, with its index as it is now.
                forget(self.file(row, first) for _, row in damaged)
                again = [item for item in wanted if item in damaged]
                self._read_shards(again, first, begin, end, part, damaged, expected)

    def _read_shards(
        self,
        wanted: Sequence[tuple[int, int]],
        first: int,
        start: int,
        stop: int,
        part: Float32,
        tried: dict[tuple[int, int], str],
        checksums: Checksums | None,
    ) -> dict[tuple[int, int], str]:
        """Read a column range within one shard a row; return what is damaged, with the reason, if not `tried`."""
        chunk = self.format.chunk
        numbers = range((start - first) // chunk, -(-(stop - first) // chunk))
        indexes = self._read_indexes([(row, self.file(row, first)) for _, row in wanted])
        ranges = [
            item
            for position, row in wanted
            for item in self._ranges(position, row, self.file(row, first), indexes[row], numbers)
        ]
        damaged: dict[tuple[int, int], str] = {}
        for batch in _batches(ranges):
            answers = read_ranges([(item.file, item.start, item.stop) for item in batch])
            for item, raw in zip(batch, answers, strict=True):
                expected = None if checksums is None else checksums[item.position]
                bad = self._decode(item, raw or b"", first, start, stop, part[item.position], expected)
                if bad is not None:
                    damaged[item.position, item.row] = bad
        for (_, row), reason in damaged.items():
            if tried:
                raise self._damaged(self.file(row, first), row, reason)
        return damaged

    def _decode(
        self,
        item: _Range,
        raw: bytes,
        first: int,
        start: int,
        stop: int,
        out: Float32,
        checksums: Checksums | None,
    ) -> str | None:
        """Decode the chunks of a range into `out`, columns `start` to `stop`; return what is wrong with one of them."""
        view = memoryview(raw)
        lowest = (start - first) // self.format.chunk
        for number, offset, length in item.chunks:
            where = first + number * self.format.chunk
            begin, end = max(start, where), min(stop, where + self.format.chunk)
            data = view[offset - item.start : offset - item.start + length]
            if len(data) < length or not self.format.decode(
                data, out[begin - start : end - start], begin - where
            ):
                return f"chunk {number} is truncated or damaged"
            end_of_chunk = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
            if checksums is not None and end_of_chunk != int(checksums[number - lowest]):
                return f"chunk {number} {NOT_THE_CATALOGUES}"
        return None

    def _ranges(
        self, position: int, row: int, file: RemotePath, index: NDArray[np.uint64], numbers: range
    ) -> Iterator[_Range]:
        """Join chunks that follow each other, up to the size of a request."""
        together: list[tuple[int, int, int]] = []
        for number in numbers:
            offset, length = (int(value) for value in index[row % self.format.rows_per_shard, number])
            if offset == ABSENT:
                raise self._damaged(file, row, f"chunk {number} is not there")
            follows = together and together[-1][1] + together[-1][2] == offset
            if together and not (follows and offset + length - together[0][1] <= _RANGE):
                yield _Range(position, row, file, tuple(together))
                together = []
            together.append((number, offset, length))
        if together:
            yield _Range(position, row, file, tuple(together))

    def _read_indexes(self, files: Sequence[tuple[int, RemotePath]]) -> dict[int, NDArray[np.uint64]]:
        """Return the index of each row's shard; those that this process has not read yet are read together."""
        indexes = {row: index for row, file in files if (index := _kept(file)) is not None}
        missing = [item for item in dict.fromkeys(files) if item[0] not in indexes]
        answers = read_ranges([(file, -self.format.index_bytes, None) for _, file in missing])
        for (row, file), raw in zip(missing, answers, strict=True):
            if raw is None:
                raise BankFormatError(f"{file}: row {row} is missing; {self.advice}")
            index = self.format.index(raw)
            if index is None:
                raise self._damaged(file, row, "its index does not match its checksum, truncated or damaged")
            _keep(file, index)
            indexes[row] = index
        return indexes

    def checksums(self, row: int) -> Checksums:
        """Return what each chunk of a row ends with, shape (chunks of the row,), as it is stored, unchecked.

        Raises
        ------
        BankFormatError
            An object is missing or truncated, or lacks chunks.
        """
        ends: list[tuple[RemotePath, int, int | None]] = []
        for first in range(0, self.format.columns, self.format.width):
            file = self.file(row, first)
            forget([file])
            index = self._read_indexes([(row, file)])[row][row % self.format.rows_per_shard]
            stored = index[: -(-min(self.format.width, self.format.columns - first) // self.format.chunk)]
            if (stored[:, 0] == ABSENT).any():
                raise self._damaged(file, row, "chunks are not there")
            ends += [
                (file, end - CHECKSUM_BYTES, end) for end in stored.astype(np.int64).sum(axis=1).tolist()
            ]
        found = read_ranges(ends)
        if any(item is None or len(item) < CHECKSUM_BYTES for item in found):
            raise self._damaged(self.file(row, 0), row, "it is truncated")
        return np.frombuffer(b"".join(item or b"" for item in found), "<u4")

    def prefetch(self, row: int, start: int, stop: int) -> None:
        """Do nothing: there is no cache between here and the store that could be filled."""

    def _damaged(self, file: RemotePath, row: int, reason: str) -> BankFormatError:
        return BankFormatError(f"{file}: row {row}: {reason}; {self.advice}")

    # -- writing --------------------------------------------------------------------------------

    def write(
        self, row: int, column: int, blocks: Sequence[Float32], checksums: list[int] | None = None
    ) -> None:
        """Write whole shards, one below the other: each is one object, which appears whole or not at all.

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
        ArrayStoreUnavailableError
            An object could not be written. Those before it were, whole.
        """
        waiting: dict[RemotePath, bytes] = {}
        for number, block in enumerate(blocks):
            data = b"".join(self.format.encoded(block, checksums))
            if waiting and sum(map(len, waiting.values())) + len(data) > _IN_FLIGHT:
                self._put(waiting)
                waiting = {}
            waiting[self.file(row + number * self.format.rows_per_shard, column)] = data
        self._put(waiting)

    def begin(self, row: int, column: int, blocks: Sequence[Float32]) -> Callable[[], None]:
        """Return what writes shards as `write` does, to be called once, in whatever thread.

        All of it waits for the store, which needs what is in `blocks` until then.
        """
        return functools.partial(self.write, row, column, blocks)

    def _put(self, objects: dict[RemotePath, bytes]) -> None:
        put(objects)
        forget(objects)


def forget(files: Iterable[RemotePath]) -> None:
    """Forget the indexes of objects that were written or deleted."""
    with _indexes_lock:
        for file in files:
            _indexes.pop(file.url, None)


def _kept(file: RemotePath) -> NDArray[np.uint64] | None:
    with _indexes_lock:
        return _indexes.get(file.url)


def _keep(file: RemotePath, index: NDArray[np.uint64]) -> None:
    with _indexes_lock:
        _indexes[file.url] = index
        while len(_indexes) > _INDEXES_KEPT:
            _indexes.popitem(last=False)


def _batches(ranges: Sequence[_Range]) -> Iterator[list[_Range]]:
    batch: list[_Range] = []
    size = 0
    for item in ranges:
        if batch and size + item.stop - item.start > _IN_FLIGHT:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.stop - item.start
    if batch:
        yield batch
