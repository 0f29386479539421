"""Reads the training examples of a dataset from JSONL, JSON, CSV or Parquet files.

An example is an `input` and the first of its `output`s (arXiv 2507.01806, section C.1.2). Anything
else is refused with the file, the line or row, and what to do about it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bankdb.datasets.splits import EXTENSIONS, choose_training_files, training_files
from bankdb.errors import DatasetError, listed, one_line

__all__ = ["TEXT_RULE", "Dataset", "choose_training_files", "read_dataset", "training_files"]

TEXT_RULE = "input + output[0]"
"""How an example becomes the text that is tokenised (section C.1.2)."""

# The csv module refuses cells above 131,072 characters unless told otherwise; this is its largest limit.
_LARGEST_CELL = 2**31 - 1
_HEADS = (
    (b"\x1f\x8b", "is compressed with gzip; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstandard; decompress it first"),
    (b"PK\x03\x04", "is a ZIP archive; unpack it first"),
    (b"version https://git-lfs", "is only a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (b"\xff\xfe", "is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16; save it as UTF-8"),
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The training examples of one dataset, in the order they were read.

    Attributes
    ----------
    inputs
        The input of each example.
    outputs
        The first output of each example.
    sha256
        Hash of the content, the same whatever the file format and the order of the examples.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.inputs)

    def texts(self) -> list[str]:
        """The text of each example that is tokenised: input and first output (section C.1.2)."""
        return [text + output for text, output in zip(self.inputs, self.outputs, strict=True)]


def read_dataset(
    files: Sequence[Path], *, input_column: str = "input", output_column: str = "output"
) -> Dataset:
    """Read the examples of all files, one after another.

    Parameters
    ----------
    files
        Files of the training split, as `training_files` returns them.
    input_column, output_column
        Names of the columns that hold the input (a string) and the output (a string, or a list of
        strings of which the first is used; in CSV always a string).

    Raises
    ------
    DatasetError
        When a file cannot be read whole, or an example is not what is expected.
    """
    if not files:
        raise DatasetError("no dataset file was given; expected at least one of " + ", ".join(EXTENSIONS))
    if input_column == output_column:
        raise DatasetError(
            f"input and output are both read from column {input_column!r}; "
            "give two different --input-column and --output-column"
        )
    columns = (input_column, output_column)
    inputs: list[str] = []
    outputs: list[str] = []
    digests: list[bytes] = []
    for file in files:
        before = len(inputs)
        for place, values in _values(Path(file), columns):
            text, output = _example(values, columns, place)
            digests.append(_digest(text, output, columns, place))
            inputs.append(text)
            outputs.append(output)
        if len(inputs) == before:
            raise DatasetError(f"{file}: no examples; expected at least one")
    content = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    return Dataset(tuple(inputs), tuple(outputs), content)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an example stands, for messages."""

    file: Path
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


_Values = Iterator[tuple[_Place, tuple[Any, Any]]]


def _values(file: Path, columns: tuple[str, str]) -> _Values:
    """Input and output of each example, not yet checked, with the place it stands at."""
    _check_file(file)
    extension = file.suffix.lower()
    if extension == ".parquet":
        return _parquet_values(file, columns)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}; check its permissions") from error
    text = _decoded(raw, file)
    if extension == ".csv":
        return _csv_values(text, file, columns)
    objects = _json_lines(text, file) if extension == ".jsonl" else _json_objects(text, file, columns)
    return ((place, _from_object(found, columns, place)) for place, found in objects)


def _check_file(file: Path) -> None:
    """Refuse what is no readable file of a known format, by its name and its first bytes."""
    if os.path.isdir(file):
        raise DatasetError(f"{file}: a folder; expected a file, one of " + ", ".join(EXTENSIONS))
    if not os.path.isfile(file):
        raise DatasetError(f"{file}: not found; expected a dataset file")
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}; check its permissions") from error
    if not head:
        raise DatasetError(f"{file}: empty file; expected at least one example")
    for start, problem in _HEADS:
        if head.startswith(start):
            raise DatasetError(f"{file}: {problem}")
    if file.suffix.lower() not in EXTENSIONS:
        raise DatasetError(
            f"{file}: unknown format {file.suffix!r}; expected one of " + ", ".join(EXTENSIONS)
        )


def _decoded(raw: bytes, file: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Counted in what the error holds, which lacks the byte order mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{file}, line {line}: not UTF-8; save the file as UTF-8") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} appears twice")
    return found


def _parsed(text: str, place: _Place | Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        at = (
            f"line {error.lineno}, column {error.colno}"
            if isinstance(place, Path)
            else f"column {error.colno}"
        )
        raise DatasetError(f"{place}: invalid JSON at {at}: {error.msg}; correct it") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place}: JSON that is not read: {error}; correct it") from error


def _json_lines(text: str, file: Path) -> Iterator[tuple[_Place, Any]]:
    # Not str.splitlines, which would also split at U+2028 and other separators inside strings.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = _Place(file, "line", number)
            yield place, _parsed(line, place)


def _json_objects(text: str, file: Path, columns: tuple[str, str]) -> Iterator[tuple[_Place, Any]]:
    """Objects of a `.json` file: a list, `{"data": list}`, or, as is common on the hub, JSON lines."""
    if not text.strip():
        return iter(())
    if text.lstrip().startswith("{") and _has_more_values(text):
        return _json_lines(text, file)
    found = _parsed(text, file)
    if isinstance(found, dict):
        lists = [key for key, value in found.items() if isinstance(value, list)]
        if columns[0] in found:
            found = [found]
        elif lists == ["data"]:
            found = found["data"]
    if not isinstance(found, list):
        keys = f" with {listed([repr(key) for key in found])}" if isinstance(found, dict) else ""
        raise DatasetError(
            f"{file}: {_kind(found)}{keys}; expected a list of objects with {columns[0]!r} and {columns[1]!r}"
        )
    return ((_Place(file, "example", number), item) for number, item in enumerate(found, 1))


def _has_more_values(text: str) -> bool:
    """Whether another value follows the first."""
    start = len(text) - len(text.lstrip())
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return False  # the full parse that follows names the problem
    return bool(text[end:].strip())


def _from_object(found: Any, columns: tuple[str, str], place: _Place) -> tuple[Any, Any]:
    if not isinstance(found, dict):
        raise DatasetError(
            f"{place}: {_kind(found)}; expected an object with {columns[0]!r} and {columns[1]!r}"
        )
    _check_columns(list(found), columns, place)
    return found[columns[0]], found[columns[1]]


def _check_columns(there: Sequence[str], columns: tuple[str, str], place: _Place | Path) -> None:
    for column, option in zip(columns, ("--input-column", "--output-column"), strict=True):
        if column not in there:
            names = listed([repr(name) for name in there]) or "none"
            raise DatasetError(
                f"{place}: no column {column!r}; the columns are {names}; name the right one with {option}"
            )


def _csv_values(text: str, file: Path, columns: tuple[str, str]) -> _Values:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DatasetError(f"{file}, line {reader.line_num}: invalid CSV: {error}; correct it") from error
    finally:
        csv.field_size_limit(before)
    if not rows:
        return iter(())
    header = rows[0][1]
    _check_columns(header, columns, file)
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DatasetError(f"{file}: column {twice[0]!r} appears twice in the header; rename one")
    return _csv_rows(rows, file, columns)


def _csv_rows(rows: list[tuple[int, list[str]]], file: Path, columns: tuple[str, str]) -> _Values:
    header = rows[0][1]
    first, second = (header.index(column) for column in columns)
    for line, row in rows[1:]:
        place = _Place(file, "line", line)
        if len(row) != len(header):
            raise DatasetError(
                f"{place}: {len(row)} cells where the header has {len(header)}; quote cells that hold commas"
            )
        yield place, (row[first], row[second])


def _parquet_values(file: Path, columns: tuple[str, str]) -> _Values:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            _check_parquet_schema(schema, columns, file)
            for batch in table.iter_batches(columns=list(columns)):
                inputs, outputs = (batch.column(column).to_pylist() for column in columns)
                for values in zip(inputs, outputs, strict=True):
                    number += 1
                    yield _Place(file, "row", number), values
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{file}: not a whole Parquet file: {one_line(error)}; copy or download it again"
        ) from error


def _check_parquet_schema(schema: Any, columns: tuple[str, str], file: Path) -> None:
    """Refuse columns that cannot be strings, before reading any of them."""
    import pyarrow.types as types

    _check_columns(schema.names, columns, file)
    for column in columns:
        if schema.names.count(column) > 1:
            raise DatasetError(f"{file}: column {column!r} appears twice; rename one")
        kind = schema.field(column).type
        if column == columns[1] and (
            types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        ):
            kind = kind.value_type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            allowed = "string" if column == columns[0] else "string or a list of strings"
            raise DatasetError(
                f"{file}: column {column!r} is of type {one_line(schema.field(column).type)}; "
                f"expected {allowed}; convert it, or name another column"
            )


def _example(values: tuple[Any, Any], columns: tuple[str, str], place: _Place) -> tuple[str, str]:
    """Check one example and take the first of its outputs."""
    text, output = values
    if not isinstance(text, str):
        raise DatasetError(f"{place}: {columns[0]!r} is {_kind(text)}; expected a string")
    if isinstance(output, list):
        if not output:
            raise DatasetError(f"{place}: {columns[1]!r} is an empty list; expected at least one string")
        for item in output:
            if not isinstance(item, str):
                raise DatasetError(f"{place}: {columns[1]!r} has {_kind(item)} in its list; expected strings")
        output = output[0]
    if not isinstance(output, str):
        raise DatasetError(
            f"{place}: {columns[1]!r} is {_kind(output)}; expected a string or a list of strings"
        )
    if not text and not output:
        raise DatasetError(f"{place}: input and output are both empty; remove the example")
    return text, output


def _digest(text: str, output: str, columns: tuple[str, str], place: _Place) -> bytes:
    """Hash of one example; each part is preceded by its length, so that no two examples look alike."""
    digest = hashlib.sha256()
    for column, part in zip(columns, (text, output), strict=True):
        if "\0" in part:
            raise DatasetError(
                f"{place}: {column!r} has a NUL character, a sign of a damaged file; remove it"
            )
        try:
            encoded = part.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"{place}: {column!r} has half of a surrogate pair, which is no character; remove it"
            ) from error
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {str: "a string", dict: "an object", list: "a list", int: "a number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")
