"""Rows of files of every format, one after another, in bounded memory; nothing in them is checked but the form."""

from __future__ import annotations

import csv
import io
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bankdb.datasets.columns import Columns, Place, Values, examples_of
from bankdb.datasets.files.arrow import arrow_values
from bankdb.datasets.files.compressed import check_start, opened
from bankdb.datasets.files.json_rows import json_rows
from bankdb.datasets.files.limited import later, readable, too_large
from bankdb.datasets.forms.values import BadRows
from bankdb.datasets.parquet import parquet_values
from bankdb.datasets.splits import EXTENSIONS, SAVED, format_of, is_data_file
from bankdb.errors import DatasetError, one_line

_HEADS = (
    (b"BZh", "is compressed with bzip2; decompress it first"),
    (b"\xfd7zXZ", "is compressed with xz; decompress it first"),
    (b"PK\x03\x04", "is a ZIP archive; unpack it first"),
    (b"version https://git-lfs", "is only a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (b"\xff\xfe", "is UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16; save it as UTF-8"),
)
# Of the memory that a file may take: text has up to 4 bytes a character beside the file's own.
_CSV_SHARE = 16
# The csv module refuses cells above 131,072 characters unless told otherwise; this is its largest limit.
_LARGEST_CELL = 2**31 - 1


def values_of(file: Path, columns: Columns, memory: int, bad: BadRows) -> Values:
    """Yield input and output of each example, not yet checked, with the place it stands at.

    Parameters
    ----------
    memory
        Bytes that reading may take, beside what the caller keeps.
    bad
        What happens to rows that are no examples.

    Raises
    ------
    DatasetError
        The file cannot be read whole.
    PlanError
        It takes more memory than it may.
    """
    check_file(file, memory)
    extension = format_of(file.name)[0]
    if extension == ".parquet":
        return parquet_values(file, columns, memory, bad)
    if extension == SAVED:
        return arrow_values(file, columns, memory, bad)
    if extension == ".csv":
        return _csv_values(file, columns, memory, bad)
    rows = json_rows(file, extension == ".jsonl", columns, memory, bad)
    return examples_of(rows, columns.of_object, bad)


def check_file(file: Path, memory: int) -> None:
    """Refuse what is no readable file of a known format, by its name and its first bytes."""
    if os.path.isdir(file):
        raise DatasetError(f"{file}: a folder; expected a file, one of " + ", ".join(EXTENSIONS))
    if not os.path.isfile(file):
        raise DatasetError(f"{file}: not found; expected a dataset file")
    with readable(file), file.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise DatasetError(f"{file}: empty file; expected at least one example")
    extension, compression = format_of(file.name)
    _check_head(file, head)
    if not is_data_file(file.name) and extension != SAVED:
        what = f"{extension}{compression}"
        raise DatasetError(f"{file}: unknown format {what!r}; expected one of " + ", ".join(EXTENSIONS))
    check_start(file, head)
    if compression:
        with readable(file), opened(file, memory) as stream:
            _check_head(file, stream.read(64))


def _check_head(file: Path, head: bytes) -> None:
    for start, problem in _HEADS:
        if head.startswith(start):
            raise DatasetError(f"{file}: {problem}")


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


def _csv_values(file: Path, columns: Columns, memory: int, bad: BadRows) -> Values:
    size, most = file.stat().st_size, memory // _CSV_SHARE
    if size > most:
        raise too_large(file, f"{size:,}", most, memory, "save it as .jsonl, an object a line")
    rows = _csv_rows(file, memory)
    header = next(rows, (0, []))[1]
    if not header:
        return
    columns.settle(header, file, lambda name: False)
    if columns.chats:
        raise DatasetError(
            f"{file}: cells of {columns.names[0]!r} are text, expected lists of turns; save the dataset as .parquet "
            "or .jsonl"
        )
    if twice := [name for name, times in Counter(header).items() if times > 1]:
        raise DatasetError(
            f"{file}: column {one_line(repr(min(twice)), 60)} appears twice in the header; rename one"
        )

    def read(row: Sequence[str], place: Place) -> tuple[Any, Any]:
        if len(row) != len(header):
            raise DatasetError(
                f"{place}: {len(row)} cells where the header has {len(header)}; quote cells that hold commas"
            )
        return columns.of_cells(header, row, place)

    yield from examples_of(((Place(file, "line", line), row) for line, row in rows), read, bad)


def _csv_rows(file: Path, memory: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Rows that are not empty, with the line that each ends in."""
    # A cell may be all of the file, so that unpacked it may not be more than a plain one.
    with readable(file), opened(file, memory, memory // _CSV_SHARE) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        reader = csv.reader(stream, strict=True)
        try:
            with _LARGE_CELLS:
                yield from ((reader.line_num, row) for row in reader if row)
        except csv.Error as error:
            raise DatasetError(f"{file}, line {reader.line_num}: invalid CSV: {error}; correct it") from error
        except UnicodeDecodeError:
            with opened(file, memory) as again:
                for number, line in enumerate(iter(again.readline, b""), 1):
                    later(line, Place(file, "line", number))
            raise
