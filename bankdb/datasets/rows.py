"""Rows of JSONL, JSON and CSV files, one after another, in bounded memory; nothing in them is checked but the form."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bankdb.datasets.columns import Columns, Place, Values
from bankdb.datasets.parquet import parquet_values
from bankdb.datasets.splits import EXTENSIONS
from bankdb.errors import DatasetError, PlanError, one_line
from bankdb.strict_json import RepeatedKeyError, unique_keys

_HEADS = (
    (b"\x1f\x8b", "is compressed with gzip; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstandard; decompress it first"),
    (b"BZh", "is compressed with bzip2; decompress it first"),
    (b"\xfd7zXZ", "is compressed with xz; decompress it first"),
    (b"PK\x03\x04", "is a ZIP archive; unpack it first"),
    (b"version https://git-lfs", "is only a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (b"\xff\xfe", "is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16; save it as UTF-8"),
)
# Shares of the memory that a file, or a line of one, may take: text has up to 4 bytes a character beside the
# file's own, and what JSON or CSV makes of 3 bytes, such as an empty list, takes up to 72.
_LINE_SHARE, _LIST_SHARE, _OBJECT_SHARE, _CSV_SHARE = 32, 12, 32, 16
# The csv module refuses cells above 131,072 characters unless told otherwise; this is its largest limit.
_LARGEST_CELL = 2**31 - 1


def values_of(file: Path, columns: Columns, memory: int) -> Values:
    """Yield input and output of each example, not yet checked, with the place it stands at.

    Parameters
    ----------
    memory
        Bytes that reading may take, beside what the caller keeps.

    Raises
    ------
    DatasetError
        The file cannot be read whole.
    PlanError
        It takes more memory than it may.
    """
    check_file(file)
    extension = file.suffix.lower()
    if extension == ".parquet":
        return parquet_values(file, columns, memory)
    if extension == ".csv":
        return _csv_values(file, columns, memory)
    objects = _json_lines(file, memory) if extension == ".jsonl" else _json_objects(file, columns, memory)
    return ((place, columns.of_object(found, place)) for place, found in objects)


def check_file(file: Path) -> None:
    """Refuse what is no readable file of a known format, by its name and its first bytes."""
    if os.path.isdir(file):
        raise DatasetError(f"{file}: a folder; expected a file, one of " + ", ".join(EXTENSIONS))
    if not os.path.isfile(file):
        raise DatasetError(f"{file}: not found; expected a dataset file")
    with _readable(file), file.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise DatasetError(f"{file}: empty file; expected at least one example")
    for start, problem in _HEADS:
        if head.startswith(start):
            raise DatasetError(f"{file}: {problem}")
    if file.suffix.lower() not in EXTENSIONS:
        raise DatasetError(
            f"{file}: unknown format {file.suffix!r}; expected one of " + ", ".join(EXTENSIONS)
        )


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror}; check its permissions") from error


def check_size(file: Path, share: int, memory: int, advice: str) -> None:
    """Raise PlanError for a file that takes more than a share of the memory."""
    size, most = file.stat().st_size, memory // share
    if size > most:
        raise PlanError(
            f"{file}: has {size:,} bytes, expected at most {most:,} where {memory >> 20} MiB may be used; "
            f"{advice}, or give more with --memory"
        )


def _decoded(raw: bytes, place: Place | Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Counted in what the error holds, which lacks the byte order mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        where = f"{place}, line {line}" if isinstance(place, Path) else f"{place}"
        raise DatasetError(f"{where}: not UTF-8; save the file as UTF-8") from error


# -- JSON -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _parsing(place: Place | Path) -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        at = f"column {error.colno}"
        if isinstance(place, Path):
            at = f"line {error.lineno}, {at}"
        raise DatasetError(f"{place}: invalid JSON at {at}: {error.msg}; correct it") from error
    except RepeatedKeyError as error:
        raise DatasetError(
            f"{place}: JSON that is not read: key {error.key} appears twice; correct it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{place}: JSON that is not read: {one_line(error)}; correct it") from error


def _json_lines(file: Path, memory: int) -> Iterator[tuple[Place, Any]]:
    most = memory // _LINE_SHARE
    with _readable(file), file.open("rb") as stream:
        number = 0
        # Not as text, which would also end lines at a carriage return.
        while raw := stream.readline(most + 1):
            number += 1
            place = Place(file, "line", number)
            if len(raw) > most:
                raise PlanError(
                    f"{place}: more than {most:,} bytes, the most where {memory >> 20} MiB may be used; "
                    "cut the example, or give more with --memory"
                )
            line = _decoded(raw, place) if number == 1 else _later(raw, place)
            if line.strip():
                with _parsing(place):
                    found = json.loads(line.removesuffix("\n"), object_pairs_hook=unique_keys)
                yield place, found


def _later(raw: bytes, place: Place) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{place}: not UTF-8; save the file as UTF-8") from error


def _json_objects(file: Path, columns: Columns, memory: int) -> Iterator[tuple[Place, Any]]:
    """Objects of a `.json` file: a list, `{"data": list}`, or, as is common on the hub, JSON lines."""
    with _readable(file), file.open("rb") as stream:
        head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if head == b"{" and (lines := _are_lines(file, memory)):
        yield from lines
        return
    check_size(
        file, _OBJECT_SHARE if head == b"{" else _LIST_SHARE, memory, "save it as .jsonl, an object a line"
    )
    with _readable(file):
        text = _decoded(file.read_bytes(), file)
    if not text.strip():
        return
    if text.lstrip().startswith("["):
        yield from _list_items(text, file)
        return
    with _parsing(file):
        found = json.loads(text, object_pairs_hook=unique_keys)
    for number, item in enumerate(columns.list_in(found, file), 1):
        yield Place(file, "example", number), item


def _are_lines(file: Path, memory: int) -> Iterator[tuple[Place, Any]] | None:
    """JSON lines, if the first line that holds anything is a value of its own and more follows."""
    most = memory // _LINE_SHARE
    with _readable(file), file.open("rb") as stream:
        first = b""
        while not first.strip() and (first := stream.readline(most)):
            pass
        more = any(line.strip() for line in iter(lambda: stream.readline(1 << 16), b""))
    try:
        json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None  # the full parse that follows names the problem
    return _json_lines(file, memory) if more else None


def _list_items(text: str, file: Path) -> Iterator[tuple[Place, Any]]:
    """Items of a list, one parsed after another: together they would take many times the text's size."""
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    blank = json.decoder.WHITESPACE.match  # type: ignore[attr-defined]
    end = blank(text, text.index("[") + 1).end()
    number = 0
    while text[end : end + 1] != "]" or number:
        number += 1
        with _parsing(file):
            found, end = decoder.raw_decode(text, end)
            end = blank(text, end).end()
            if text[end : end + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        yield Place(file, "example", number), found
        if text[end] == "]":
            break
        end = blank(text, end + 1).end()
    if text[end + 1 :].strip():
        with _parsing(file):
            raise json.JSONDecodeError("Extra data", text, end + 1)


# -- CSV --------------------------------------------------------------------------------------------


class _LargeCells:
    """Lifts the csv module's limit, which is of the whole process, while any file is read by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._before = csv.field_size_limit(_LARGEST_CELL)
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                csv.field_size_limit(self._before)


_LARGE_CELLS = _LargeCells()


def _csv_values(file: Path, columns: Columns, memory: int) -> Values:
    check_size(file, _CSV_SHARE, memory, "save it as .jsonl, an object a line")
    rows = _csv_rows(file)
    header = next(rows, (0, []))[1]
    if not header:
        return
    columns.check(header, file)
    if twice := [name for name, times in Counter(header).items() if times > 1]:
        raise DatasetError(
            f"{file}: column {one_line(repr(min(twice)), 60)} appears twice in the header; rename one"
        )
    for line, row in rows:
        place = Place(file, "line", line)
        if len(row) != len(header):
            raise DatasetError(
                f"{place}: {len(row)} cells where the header has {len(header)}; quote cells that hold commas"
            )
        yield place, columns.of_cells(header, row, place)


def _csv_rows(file: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Rows that are not empty, with the line that each ends in."""
    with _readable(file), file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        try:
            with _LARGE_CELLS:
                yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise DatasetError(f"{file}, line {reader.line_num}: invalid CSV: {error}; correct it") from error
        except UnicodeDecodeError:
            with file.open("rb") as raw:
                for number, line in enumerate(iter(raw.readline, b""), 1):
                    _later(line, Place(file, "line", number))
            raise
