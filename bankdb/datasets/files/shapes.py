"""In which shapes people write a table as one object of JSON: by splits, as pandas does, or one example alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bankdb.datasets.columns import Columns
from bankdb.datasets.forms.values import is_turns, kind_of, shown
from bankdb.errors import DatasetError, listed

_HELD_OUT = frozenset({"test", "validation", "valid", "val", "dev", "eval"})
_MOST_KEYS = 6


def holds_rows(found: Any, columns: Columns) -> bool:
    """Whether the one value of a file is a table rather than an example."""
    if not isinstance(found, dict):
        return False
    if columns.knows(found):
        read = [found[name] for name in columns.names_in(found)]
        return all(isinstance(value, list | dict) and not is_turns(value) for value in read)
    return not columns.is_other(found) and any(isinstance(value, list | dict) for value in found.values())


def rows_in(found: Any, columns: Columns, file: Path) -> Iterable[Any]:
    """Return the examples of a value of JSON that is no list of them.

    Raises
    ------
    DatasetError
        It is of no shape that is read; the message says of which it is.
    """
    if not isinstance(found, dict):
        raise _not_rows(found, columns, file)
    if columns.knows(found):
        return _of_columns(found, columns, file)
    if isinstance(found.get("columns"), list) and isinstance(found.get("data"), list):
        return _of_split(found, columns, file)
    if (chosen := _split_of(found, columns, file)) is not None:
        return chosen
    lists = [key for key, value in found.items() if isinstance(value, list)]
    if lists == ["data"]:
        return list(found["data"])
    if found and all(isinstance(value, dict) and columns.knows(value) for value in found.values()):
        columns.shape = "an object of examples by their numbers, pandas' orient='index'"
        return list(found.values())
    raise _not_rows(found, columns, file)


def _of_columns(found: Mapping[str, Any], columns: Columns, file: Path) -> Iterable[Any]:
    """One example; or columns, each a list or an object of values by their numbers."""
    names = columns.names_in(found)
    read = [found[name] for name in names]
    if all(isinstance(value, dict) for value in read):
        columns.shape = "an object of columns, each by the numbers of its rows, pandas' orient='columns'"
        values = {name: list(value.values()) for name, value in found.items() if isinstance(value, dict)}
        keys = {name: list(value) for name, value in found.items() if isinstance(value, dict)}
        if any(keys[name] != list(read[0]) for name in names):
            raise DatasetError(f"{file}: an object of columns that have not the same rows; save it as .jsonl")
        return _rows_of(values, len(read[0]))
    if all(isinstance(value, list) and not is_turns(value) for value in read):
        columns.shape = "an object of columns, each a list"
        lengths = {name: len(found[name]) for name in names}
        if len(set(lengths.values())) > 1:
            shapes = ", ".join(f"{shown(name)} has {length:,}" for name, length in lengths.items())
            raise DatasetError(f"{file}: an object of columns of other lengths: {shapes}; save it as .jsonl")
        lists = {name: value for name, value in found.items() if isinstance(value, list)}
        return _rows_of(lists, len(read[0]))
    return [found]


def _rows_of(values: Mapping[str, list[Any]], number: int) -> Iterator[Any]:
    whole = {name: items for name, items in values.items() if len(items) == number}
    return (dict(zip(whole, row, strict=True)) for row in zip(*whole.values(), strict=True))


def _of_split(found: Mapping[str, Any], columns: Columns, file: Path) -> Iterator[Any]:
    columns.shape = "an object with columns and data, pandas' orient='split'"
    names = found["columns"]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise DatasetError(
            f"{file}: {columns.shape}, whose columns are not named, or twice; save it as .jsonl"
        )
    for number, row in enumerate(found["data"], 1):
        if not isinstance(row, list) or len(row) != len(names):
            raise DatasetError(
                f"{file}, example {number}: expected a list of {len(names)} values as there are columns, found "
                f"{kind_of(row)}"
            )
        yield dict(zip(names, row, strict=True))


def _split_of(found: Mapping[str, Any], columns: Columns, file: Path) -> Iterable[Any] | None:
    """Examples of the split that is asked for, where an object holds several by their names; None where it does not."""
    splits = [key for key in found if key == "train" or key in _HELD_OUT]
    if not splits or any(isinstance(found[key], list | dict) for key in found.keys() - set(splits)):
        return None
    if columns.split not in splits:
        raise DatasetError(
            f"{file}: an object with the splits {listed(list(map(shown, splits)))}; expected {columns.split!r} among "
            "them"
        )
    columns.shape = f"the split {columns.split!r} of an object of splits"
    chosen = found[columns.split]
    return chosen if isinstance(chosen, list) else rows_in(chosen, columns, file)


def _not_rows(found: Any, columns: Columns, file: Path) -> DatasetError:
    first, second = columns.both
    about = kind_of(found)
    if isinstance(found, dict):
        keys = [shown(key) for key in found]
        about += f" with {listed(keys)}"
        if 0 < len(found) <= _MOST_KEYS:
            about += f" ({listed([_shape(value) for value in found.values()])})"
    return DatasetError(
        f"{file}: {about}; expected a list of objects with {first!r} and {second!r}, or with others that "
        "--input-column and --output-column name"
    )


def _shape(value: Any) -> str:
    if not isinstance(value, list | dict) or not value:
        return kind_of(value)
    first = kind_of(value[0] if isinstance(value, list) else next(iter(value.values())))
    return f"{kind_of(value)} of {len(value):,}, the first {first}"
