"""Rows of a Parquet file, in bounded memory.

A few bytes of Parquet may stand for gigabytes: a page that is compressed, a string of a dictionary that a million
rows share, a prefix that each value repeats. So the headers of all pages are read first, strings stay in
dictionaries, and rows come in batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bankdb.datasets.columns import Columns, Place, Values, examples_of, looks_like_text
from bankdb.datasets.files.arrow_columns import check_schema, is_text, values_in
from bankdb.datasets.forms.values import BadRows
from bankdb.datasets.parquet_pages import DELTA_BYTE_ARRAY, IN_DICTIONARIES, Chunk, chunks_of, pages_of
from bankdb.errors import DatasetError, PlanError, one_line

_BATCH = 1024
# Shares of the memory: of one page, and of what a batch of rows may come to. A value in a list takes so many bytes.
_PAGE_SHARE, _BATCH_SHARE = 8, 16
_VALUE_BYTES, _BUFFER = 16, 1 << 20


def parquet_values(file: Path, columns: Columns, memory: int, bad: BadRows) -> Values:
    """Yield input and output of each row, not yet checked, with the place it stands at.

    Raises
    ------
    DatasetError
        The file cannot be read whole, or a column is not of strings.
    PlanError
        It takes more memory than it may.
    """
    import pyarrow.parquet as pq

    with _whole(file):
        chunks = chunks_of(file)
        with pq.ParquetFile(file) as table:
            schema, leaves = table.schema_arrow, map(table.schema.column, range(len(table.schema)))
            # They alone can stay in dictionaries.
            strings = {leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"}
        names = check_schema(schema, columns, file)
        _note_unread(schema, chunks, columns)
        wanted = [chunk for chunk in chunks if _is_of(chunk, names)]
        rows = _rows_of_batch(file, wanted, memory)
        shared = {chunk.path for chunk in wanted}
        shared -= {chunk.path for chunk in wanted if not chunk.encodings <= IN_DICTIONARIES}
        shared &= strings
        paths = sorted({chunk.path for chunk in wanted}) or names
        with pq.ParquetFile(file, read_dictionary=sorted(shared), buffer_size=_BUFFER) as table:
            batches = _batches(file, table, rows, paths)
            expected = sum(chunk.rows for chunk in wanted if chunk.path == paths[0])
            found = _records(batches, names, expected, file, memory // _BATCH_SHARE)
            yield from examples_of(found, columns.of_record, bad)


def _records(
    batches: Iterator[Any], names: Sequence[str], expected: int, file: Path, most: int
) -> Iterator[tuple[Place, dict[str, Any]]]:
    number = 0
    for batch in batches:
        found = [values_in(batch.column(name), most, file) for name in names]
        for values in zip(*found, strict=True):
            number += 1
            yield Place(file, "row", number), dict(zip(names, values, strict=True))
    if number != expected:
        raise OSError(f"{expected} rows are said to be there, and {number} are")


def _batches(file: Path, table: Any, rows: int, leaves: Sequence[str]) -> Iterator[Any]:
    """Yield the rows in batches; where a list's strings are in more than one dictionary, without dictionaries."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for group in range(table.num_row_groups):
        how = {"batch_size": rows, "row_groups": [group], "columns": leaves, "use_threads": False}
        done = 0
        try:
            for batch in table.iter_batches(**how):
                done += batch.num_rows
                yield batch
        except pa.ArrowNotImplementedError:
            with pq.ParquetFile(file, buffer_size=_BUFFER) as plain:
                for batch in plain.iter_batches(**how):
                    again = min(done, batch.num_rows)
                    done -= again
                    yield batch.slice(again)


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, KeyError) as error:
        raise DatasetError(
            f"{file}: not a whole Parquet file: {one_line(error)}; copy or download it again"
        ) from error


def _note_unread(schema: Any, chunks: Sequence[Chunk], columns: Columns) -> None:
    """Note the other columns that seem to hold text, by the least and greatest value of their first rows."""
    first = {chunk.path: chunk.range for chunk in reversed(chunks)}
    for field in schema:
        if field.name in columns.names or not is_text(field.type):
            continue
        values = first.get(field.name)
        if values is None or any(looks_like_text(value.decode("utf-8", "replace")) for value in values):
            columns.unread[field.name] = None


def _is_of(chunk: Chunk, names: Sequence[str]) -> bool:
    return any(chunk.path == name or chunk.path.startswith(f"{name}.") for name in names)


# -- memory -----------------------------------------------------------------------------------------


def _rows_of_batch(file: Path, chunks: Sequence[Chunk], memory: int) -> int:
    """Return how many rows may be read at once. Raises PlanError for pages or lists that take too much."""
    most = memory // _PAGE_SHARE
    longest = 0
    with file.open("rb") as stream:
        for chunk in chunks:
            in_lists = "." in chunk.path
            if in_lists and chunk.values * _VALUE_BYTES > most:
                raise _too_large(file, f"the lists of a row group have {chunk.values:,} values", most, memory)
            for page in pages_of(stream, chunk, file):
                repeats = in_lists and page.encoding == DELTA_BYTE_ARRAY
                taken = page.unpacked * (max(1, page.values) if repeats else 1)
                if taken > most:
                    raise _too_large(file, f"a page may take {taken:,} bytes", most, memory)
                longest = max(longest, page.unpacked)
    return max(1, min(_BATCH, memory // _BATCH_SHARE // max(longest, 1)))


def _too_large(file: Path, what: str, most: int, memory: int) -> PlanError:
    return PlanError(
        f"{file}: {what}, expected at most {most:,} bytes where {memory >> 20} MiB may be used; save it as .jsonl, "
        "or give more with --memory"
    )
