"""Rows of an Arrow file as `Dataset.save_to_disk` writes it, mapped into memory rather than read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bankdb.datasets.columns import Columns, Place, Values, examples_of, looks_like_text
from bankdb.datasets.files.arrow_columns import check_schema, is_list, is_text, values_in
from bankdb.datasets.forms.values import BadRows
from bankdb.errors import DatasetError, one_line

_ROWS = 64
# Shares of the memory: of the columns of a few rows, and of one conversation.
_SHARE = 16
_RECORD_BATCH, _DICTIONARY = 3, 2


def arrow_values(file: Path, columns: Columns, memory: int, bad: BadRows) -> Values:
    """Yield input and output of each row, not yet checked, with the place it stands at.

    Raises
    ------
    DatasetError
        The file cannot be read whole, or a column is not of strings.
    PlanError
        It takes more memory than it may.
    """
    import pyarrow as pa

    with _whole(file):
        _check_messages(file)
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            names = check_schema(reader.schema, columns, file)
            for name in names:
                _check_kind(reader.schema.field(name).type, name, file)
            yield from examples_of(_records(reader, names, columns, file, memory), columns.of_record, bad)


def _records(
    reader: Any, names: list[str], columns: Columns, file: Path, memory: int
) -> Iterator[tuple[Place, dict[str, Any]]]:
    number = 0
    for batch in reader:
        batch.validate(full=True)
        if number == 0:
            _note_unread(batch, columns)
        for row in _rows(batch, names, file, memory):
            number += 1
            yield Place(file, "row", number), row


def _rows(batch: Any, names: list[str], file: Path, memory: int) -> Iterator[dict[str, Any]]:
    for start in range(0, batch.num_rows, _ROWS):
        part = batch.slice(start, _ROWS)
        found = [values_in(part.column(name), memory // _SHARE, file) for name in names]
        for values in zip(*found, strict=True):
            yield dict(zip(names, values, strict=True))


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, KeyError, IndexError) as error:
        raise DatasetError(
            f"{file}: not a whole Arrow file as datasets saves it: {one_line(error)}; save it again"
        ) from error


def _note_unread(batch: Any, columns: Columns) -> None:
    """Note the other columns that seem to hold text, by the first row."""
    for name in batch.schema.names:
        if name in columns.names or not is_text(batch.schema.field(name).type) or not batch.num_rows:
            continue
        first = batch.column(name)[0].as_py()
        if first is not None and looks_like_text(first):
            columns.unread[name] = None


def _check_kind(kind: Any, name: str, file: Path) -> None:
    """Refuse types whose values may be many times what is in the file; `datasets` writes none of them."""
    import pyarrow.types as types

    if is_list(kind):
        empty = types.is_fixed_size_list(kind) and kind.list_size == 0
        if not empty:
            _check_kind(kind.value_type, name, file)
            return
    elif types.is_struct(kind) and kind.num_fields:
        for number in range(kind.num_fields):
            _check_kind(kind.field(number).type, name, file)
        return
    elif (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_primitive(kind)
        or types.is_null(kind)
    ):
        return
    raise DatasetError(f"{file}: column {name!r} holds {one_line(kind)}; write it as Parquet")


# -- what a file says of itself -------------------------------------------------------------------------


def _check_messages(file: Path) -> None:
    """Refuse compressed buffers, which say themselves how large they become, and dictionaries.

    Format: the Flatbuffers tables Message and RecordBatch of Arrow's `format/Message.fbs`.
    """
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        if source.size() == 0:
            raise DatasetError(f"{file}: empty file; expected at least one example")
        for message in pa.ipc.MessageReader.open_stream(source):
            raw = message.metadata.to_pybytes()
            table = int.from_bytes(raw[:4], "little")
            kind = _field(raw, table, 1)
            body = _field(raw, table, 2)
            if kind is None or raw[kind] == _DICTIONARY:
                raise DatasetError(
                    f"{file}: holds dictionaries, which datasets does not write; write it as Parquet"
                )
            if raw[kind] != _RECORD_BATCH or body is None:
                continue
            batch = body + int.from_bytes(raw[body : body + 4], "little")
            if _field(raw, batch, 3) is not None:
                raise DatasetError(f"{file}: its buffers are compressed; write it as Parquet")


def _field(raw: bytes, table: int, number: int) -> int | None:
    """Return where a field of a table is, None where it is left out."""
    vtable = table - int.from_bytes(raw[table : table + 4], "little", signed=True)
    size = int.from_bytes(raw[vtable : vtable + 2], "little")
    entry = 4 + 2 * number
    if entry + 2 > size:
        return None
    offset = int.from_bytes(raw[vtable + entry : vtable + entry + 2], "little")
    return table + offset if offset else None
