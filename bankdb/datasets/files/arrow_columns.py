"""Columns of Arrow and Parquet: which types are read, and their values as Python's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bankdb.datasets.columns import Columns
from bankdb.errors import DatasetError, PlanError, one_line


def is_text(kind: Any) -> bool:
    """Whether a type is of strings."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_list(kind: Any) -> bool:
    """Whether a type is of lists."""
    import pyarrow.types as types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_turns(kind: Any) -> bool:
    """Whether a type is of conversations: lists of structures."""
    import pyarrow.types as types

    return is_list(kind) and bool(types.is_struct(kind.value_type))


def _is_number(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def check_schema(schema: Any, columns: Columns, file: Path) -> list[str]:
    """Settle how rows are read, and return the columns that are, with those that may not be left out.

    Raises
    ------
    DatasetError
        Columns are missing, twice there, or cannot be of strings; told before reading any of them.
    """
    columns.settle(schema.names, file, lambda name: is_turns(schema.field(name).type))
    names = [name for name in dict.fromkeys(columns.names) if name in schema.names]
    for name in names:
        if schema.names.count(name) > 1:
            raise DatasetError(f"{file}: column {name!r} appears twice; rename one")
    # An input that is null throughout is none.
    names = [name for name in names if name in columns.both or str(schema.field(name).type) != "null"]
    wrong = [problem for name in names if (problem := _wrong(schema.field(name).type, name, columns))]
    if wrong:
        raise DatasetError(f"{file}: {', and '.join(wrong)}; convert it, or name another column")
    others = [field for field in schema if field.name not in columns.names]
    names += [field.name for field in others if is_text(field.type) and columns.refuses(field.name)]
    return names + [field.name for field in others if _is_bool(field.type) and columns.rates(field.name)]


def _is_bool(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_boolean(kind))


def _wrong(kind: Any, name: str, columns: Columns) -> str:
    if columns.chats:
        return (
            "" if is_turns(kind) else f"column {name!r} is of type {one_line(kind)}; expected a list of turns"
        )
    listed = name == columns.both[1] and len(columns.names) > 1
    inner = kind.value_type if listed and is_list(kind) else kind
    if is_text(inner) or _is_number(inner):
        return ""
    allowed = "string or a list of strings" if listed else "string"
    return f"column {name!r} is of type {one_line(kind)}; expected {allowed}"


def values_in(column: Any, most: int, file: Path) -> Iterator[Any]:
    """Yield the values of a column as Python objects; rows with the same string share it.

    Parameters
    ----------
    most
        Bytes that the strings of one conversation may have.
    """
    if is_turns(column.type):
        return _conversations(column, most, file)
    return iter(_texts(column))


def _texts(column: Any) -> list[Any]:
    import pyarrow.compute as pc

    listed = is_list(column.type)
    inner = column.values if listed else column
    if _is_narrow(inner.type):
        return [_shortened(value, listed, inner.type.bit_width) for value in column.to_pylist()]
    if not hasattr(inner, "dictionary"):
        return list(column.to_pylist())
    used = pc.unique(inner.indices).drop_null()
    texts: dict[int | None, str] = dict(
        zip(used.to_pylist(), inner.dictionary.take(used).to_pylist(), strict=True)
    )
    if not listed:
        return [texts.get(index) for index in inner.indices.to_pylist()]
    rows = (scalar.values if scalar.is_valid else None for scalar in column)
    return [None if row is None else [texts.get(index) for index in row.indices.to_pylist()] for row in rows]


def _is_narrow(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_float16(kind) or types.is_float32(kind))


def _shortened(value: Any, listed: bool, bits: int) -> Any:
    """Return a number of few bits as the shortest decimal that stands for it: 0.1, not 0.10000000149."""
    import numpy as np

    if listed and value is not None:
        return [_shortened(item, False, bits) for item in value]
    return None if value is None else float(str((np.float16 if bits == 16 else np.float32)(value)))


def _conversations(column: Any, most: int, file: Path) -> Iterator[Any]:
    for row in column:
        turns = row.values if row.is_valid else None
        if turns is not None and (size := _size(turns)) > most:
            raise PlanError(
                f"{file}: a conversation has {size:,} bytes, expected at most {most:,}; cut it, or give more with "
                "--memory"
            )
        yield None if turns is None else turns.to_pylist()


def _size(values: Any) -> int:
    """Bytes that strings come to as Python objects, however often one is repeated."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    kind = values.type
    if types.is_dictionary(kind):
        lengths = pc.binary_length(values.dictionary)
        return int(pc.sum(lengths.take(values.indices)).as_py() or 0) + 64 * len(values)
    if is_text(kind):
        return int(pc.sum(pc.binary_length(values)).as_py() or 0) + 64 * len(values)
    if types.is_struct(kind):
        return sum(_size(values.field(number)) for number in range(kind.num_fields)) + 64 * len(values)
    if is_list(kind):
        return _size(values.flatten()) + 64 * len(values)
    return 64 * len(values)
