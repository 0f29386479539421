"""Rows of a Parquet file, in bounded memory.

A few bytes of Parquet may stand for gigabytes: a page that is compressed, a string of a dictionary that a million
rows share, a prefix that each value repeats. So the headers of all pages are read first, strings stay in
dictionaries, and rows come in batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from bankdb.datasets.columns import Columns, looks_like_text
from bankdb.datasets.rows import Place, Values
from bankdb.errors import DatasetError, one_line

_BATCH = 1024
# Shares of the memory: of one page, and of what a batch of rows may come to.
_PAGE_SHARE, _BATCH_SHARE = 8, 16
_MOST_HEADER = 1 << 20
_DELTA_BYTE_ARRAY = 7  # each value may repeat the one before


def parquet_values(file: Path, columns: Columns, memory: int) -> Values:
    """Yield input and output of each row, not yet checked, with the place it stands at.

    Raises
    ------
    DatasetError
        The file cannot be read whole, a column is not of strings, or it takes more memory than it may.
    """
    import pyarrow.parquet as pq

    number = 0
    with _whole(file):
        with pq.ParquetFile(file) as table:
            _check_schema(table, columns, file)
            paths = {name: _paths(table, name) for name in _wanted(table, columns)}
            indices = [index for found in paths.values() for index in found]
            rows = _rows_of_batch(file, table.metadata, indices, memory)
            leaves = [table.schema.column(index).path for index in indices]
        with pq.ParquetFile(file, read_dictionary=leaves, buffer_size=1 << 20) as table:
            for batch in table.iter_batches(rows, columns=leaves, use_threads=False):
                found = {name: _texts(batch.column(name)) for name in paths}
                for values in zip(*found.values(), strict=True):
                    number += 1
                    place = Place(file, "row", number)
                    for name, value in zip(list(paths)[2:], values[2:], strict=True):
                        if isinstance(value, str) and value.strip():
                            columns.refuse(name, place)
                    yield place, (values[0], values[1])


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise DatasetError(
            f"{file}: not a whole Parquet file: {one_line(error)}; copy or download it again"
        ) from error


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _check_schema(table: Any, columns: Columns, file: Path) -> None:
    """Refuse columns that cannot be strings, before reading any of them; note the others that hold text."""
    schema = table.schema_arrow
    columns.check(schema.names, file)
    for name in columns.names:
        if schema.names.count(name) > 1:
            raise DatasetError(f"{file}: column {name!r} appears twice; rename one")
        kind = schema.field(name).type
        if name == columns.names[1] and _is_list(kind):
            kind = kind.value_type
        if not _is_text(kind):
            allowed = "string" if name == columns.names[0] else "string or a list of strings"
            raise DatasetError(
                f"{file}: column {name!r} is of type {one_line(schema.field(name).type)}; "
                f"expected {allowed}; convert it, or name another column"
            )
    for field in schema:
        if field.name not in columns.names and _is_text(field.type) and _has_text(table, field.name):
            columns.unread[field.name] = None


def _has_text(table: Any, name: str) -> bool:
    """Whether a column seems to hold text, by the smallest and largest value of its first rows."""
    (index, *_) = (*_paths(table, name), None)
    if index is None or not table.metadata.num_row_groups:
        return False
    statistics = table.metadata.row_group(0).column(index).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return any(looks_like_text(str(value)) for value in (statistics.min, statistics.max))


def _wanted(table: Any, columns: Columns) -> list[str]:
    """The two columns, and those whose text may not be left out."""
    names = table.schema_arrow.names
    more = [name for name in names if name not in columns.names and columns.refuses(name)]
    return [*columns.names, *(name for name in more if _is_text(table.schema_arrow.field(name).type))]


def _paths(table: Any, name: str) -> list[int]:
    """Positions of a column's leaves."""
    paths = [table.schema.column(index).path for index in range(len(table.schema))]
    return [index for index, path in enumerate(paths) if path == name or path.startswith(f"{name}.")]


def _texts(column: Any) -> list[Any]:
    """Values of a column as Python objects; rows with the same string share it."""
    import pyarrow.compute as pc

    inner = column.values if _is_list(column.type) else column
    if not hasattr(inner, "dictionary"):
        return list(column.to_pylist())
    used = pc.unique(inner.indices).drop_null()
    texts: dict[int | None, str] = dict(
        zip(used.to_pylist(), inner.dictionary.take(used).to_pylist(), strict=True)
    )
    if not _is_list(column.type):
        return [texts.get(index) for index in inner.indices.to_pylist()]
    rows = (scalar.values if scalar.is_valid else None for scalar in column)
    return [None if row is None else [texts.get(index) for index in row.indices.to_pylist()] for row in rows]


# -- pages ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Page:
    """What the header of a page says: bytes in the file and in memory, values, and how they are encoded."""

    kind: int
    unpacked: int
    packed: int
    values: int
    encoding: int
    header: int


def _rows_of_batch(file: Path, metadata: Any, indices: list[int], memory: int) -> int:
    """Return how many rows may be read at once. Raises DatasetError for pages that take too much."""
    size = file.stat().st_size
    longest = values = 0
    with file.open("rb") as stream:
        for group in range(metadata.num_row_groups):
            for index in indices:
                chunk = metadata.row_group(group).column(index)
                values = max(values, chunk.num_values)
                for page in _pages(stream, chunk, size, file):
                    most = memory // _PAGE_SHARE
                    repeated = page.unpacked * (page.values if page.encoding == _DELTA_BYTE_ARRAY else 1)
                    if max(page.unpacked, repeated) > most and page.unpacked > 0:
                        raise DatasetError(
                            f"{file}: a page of it may take {max(page.unpacked, repeated):,} bytes, expected at most "
                            f"{most:,} where {memory >> 20} MiB may be used; save it as .jsonl, or give more with "
                            "--memory"
                        )
                    longest = max(longest, page.unpacked)
    if values * 16 > memory // _PAGE_SHARE and any(
        metadata.schema.column(i).max_repetition_level for i in indices
    ):
        raise DatasetError(
            f"{file}: {values:,} values in lists of one row group, expected at most {memory // _PAGE_SHARE // 16:,} "
            f"where {memory >> 20} MiB may be used; save it in smaller row groups, or give more with --memory"
        )
    return max(1, min(_BATCH, memory // _BATCH_SHARE // max(longest, 1)))


def _pages(stream: BinaryIO, chunk: Any, size: int, file: Path) -> Iterator[_Page]:
    """Read the headers of a column chunk's pages, which are what decides what reading it takes."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (first := chunk.dictionary_page_offset) < start:
        start = first
    end = start + chunk.total_compressed_size
    if not 0 <= start <= end <= size:
        raise DatasetError(
            f"{file}: not a whole Parquet file: a column is said to end at byte {end:,} of {size:,}; copy or "
            "download it again"
        )
    seen = 0
    while start < end and seen < chunk.num_values:
        stream.seek(start)
        try:
            page = _header(stream.read(min(_MOST_HEADER, end - start)))
        except (IndexError, ValueError, RecursionError) as error:
            raise DatasetError(
                f"{file}: not a whole Parquet file: no page at byte {start:,}; copy or download it again"
            ) from error
        yield page
        start += page.header + page.packed
        seen += page.values if page.kind in (0, 3) else 0


class _Compact:
    """Reads Thrift's compact protocol, as far as headers of pages need it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def varint(self) -> int:
        found = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def number(self) -> int:
        found = self.varint()
        return (found >> 1) ^ -(found & 1)

    def skip(self, kind: int, depth: int = 0) -> Any:
        """Read a value of a kind and return it, if it is a number or a structure."""
        if depth > 8:
            raise ValueError("nested too deeply")
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            self.at += 1
        elif kind in (4, 5, 6):
            return self.number()
        elif kind == 7:
            self.at += 8
        elif kind == 8:
            length = self.varint()
            self.at += length
        elif kind == 12:
            return self.structure(depth + 1)
        else:
            raise ValueError(f"kind {kind} is in no header of a page")
        return None

    def structure(self, depth: int = 0) -> dict[int, Any]:
        found: dict[int, Any] = {}
        field = 0
        while byte := self.data[self.at]:
            self.at += 1
            field = field + (byte >> 4) if byte >> 4 else self.number()
            found[field] = self.skip(byte & 15, depth)
        self.at += 1
        return found


def _header(data: bytes) -> _Page:
    reader = _Compact(data)
    fields = reader.structure()
    # 5, 7 and 8 are the headers of a data page, a dictionary and a data page of the second version.
    inner = fields.get(5) or fields.get(8) or fields.get(7) or {}
    encoding = inner.get(4 if 8 in fields else 2, 0)
    numbers = (fields.get(1, 0), fields.get(2, -1), fields.get(3, -1), inner.get(1, 0), encoding)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("no header of a page")
    return _Page(*numbers, reader.at)
