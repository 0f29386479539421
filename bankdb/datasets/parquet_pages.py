"""What a Parquet file says of itself before anything in it is decoded: column chunks and the headers of their pages.

Read here, since the library that decodes the pages believes these numbers, and ends the process for some of them.
Format: Thrift's compact protocol, `parquet.thrift` of the Apache Parquet project.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bankdb.errors import DatasetError

DELTA_BYTE_ARRAY = 7
"""An encoding in which each value may repeat the one before: a page may hold any multiple of its size."""
IN_DICTIONARIES = frozenset({0, 2, 3, 4, 8})
"""Encodings of columns whose strings may stay in dictionaries: plain ones, and dictionaries themselves."""
_DATA_PAGES = (0, 3)
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column of a row group: path, rows, values, encodings, bytes in the file, least and greatest value."""

    path: str
    rows: int
    values: int
    encodings: frozenset[int]
    start: int
    end: int
    range: tuple[bytes, bytes] | None


@dataclass(frozen=True, slots=True)
class Page:
    """What the header of a page says: its kind, bytes in memory and in the file, values, and their encoding."""

    kind: int
    unpacked: int
    packed: int
    values: int
    encoding: int
    header: int


def chunks_of(file: Path) -> list[Chunk]:
    """Return the column chunks of all row groups.

    Raises
    ------
    DatasetError
        The file says something of itself that cannot be.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(max(0, size - 8))
        tail = stream.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or not 0 < length <= size - 12:
            raise _not_whole(file, "its end is not a Parquet file's")
        stream.seek(size - 8 - length)
        footer = stream.read(length)
    try:
        fields = _Compact(footer).structure()
        return [_chunk(column[3], group[3], size) for group in fields.get(4, []) for column in group[1]]
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_whole(file, "what it says of its columns cannot be read") from error


def _chunk(fields: dict[int, Any], rows: int, size: int) -> Chunk:
    start, packed, values = fields[9], fields[7], fields[5]
    first = fields.get(11, 0)
    if 0 < first < start:
        start = first
    if min(start, packed, values) < 0 or start + packed > size:
        raise ValueError("outside the file")
    # In lists there may be more values than rows; fewer never, and elsewhere as many.
    if values < rows or (values > rows and len(fields[3]) == 1):
        raise ValueError("other numbers of values than of rows")
    statistics = fields.get(12, {})
    least, greatest = statistics.get(6), statistics.get(5)
    known = (least, greatest) if isinstance(least, bytes) and isinstance(greatest, bytes) else None
    path = b".".join(fields[3]).decode("utf-8", "replace")
    return Chunk(path, rows, values, frozenset(fields[2]), start, start + packed, known)


def pages_of(stream: BinaryIO, chunk: Chunk, file: Path) -> Iterator[Page]:
    """Yield the headers of a column chunk's pages.

    Raises
    ------
    DatasetError
        There is no page where one is said to be.
    """
    start, seen = chunk.start, 0
    while start < chunk.end and seen < chunk.values:
        stream.seek(start)
        try:
            page = _header(stream.read(min(_LONGEST_HEADER, chunk.end - start)))
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise _not_whole(file, f"no page at byte {start:,}") from error
        yield page
        start += page.header + page.packed
        seen += page.values if page.kind in _DATA_PAGES else 0


def _header(data: bytes) -> Page:
    reader = _Compact(data)
    fields = reader.structure()
    # 5, 7 and 8 are the headers of a data page, a dictionary and a data page of the second version.
    inner = fields.get(5) or fields.get(8) or fields.get(7) or {}
    encoding = inner.get(4 if 8 in fields else 2, 0)
    numbers: Sequence[Any] = (fields[1], fields[2], fields[3], inner.get(1, 0), encoding)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("no header of a page")
    return Page(numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], reader.at)


def _not_whole(file: Path, why: str) -> DatasetError:
    return DatasetError(f"{file}: not a whole Parquet file: {why}; copy or download it again")


class _Compact:
    """Reads Thrift's compact protocol: a structure becomes a dictionary by field numbers, a list a list."""

    _DEEPEST = 12

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def structure(self, depth: int = 0) -> dict[int, Any]:
        """Return the structure that begins here."""
        if depth > self._DEEPEST:
            raise ValueError("nested too deeply")
        found: dict[int, Any] = {}
        field = 0
        while byte := self.data[self.at]:
            self.at += 1
            field = field + (byte >> 4) if byte >> 4 else self._number()
            kind = byte & 15
            found[field] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        self.at += 1
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):
            return self._bytes(1)
        if kind in (4, 5, 6):
            return self._number()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            return self._list(depth)
        if kind == 12:
            return self.structure(depth + 1)
        raise ValueError(f"kind {kind} is not used here")

    def _list(self, depth: int) -> list[Any]:
        if depth > self._DEEPEST:
            raise ValueError("nested too deeply")
        byte = self._bytes(1)[0]
        number = byte >> 4 if byte >> 4 < 15 else self._varint()
        if number > len(self.data) - self.at:
            raise ValueError("a list longer than all that follows")
        return [self._value(byte & 15, depth + 1) for _ in range(number)]

    def _bytes(self, length: int) -> bytes:
        found = self.data[self.at : self.at + length]
        if len(found) < length:
            raise ValueError("cut off")
        self.at += length
        return found

    def _varint(self) -> int:
        found = shift = 0
        while shift < 70:
            byte = self.data[self.at]
            self.at += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
        raise ValueError("a number of more than 64 bits")

    def _number(self) -> int:
        found = self._varint()
        return (found >> 1) ^ -(found & 1)
