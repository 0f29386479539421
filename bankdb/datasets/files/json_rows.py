"""Objects of JSON files, one after another in bounded memory: lines, a list, or one object that holds them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bankdb.datasets.columns import Columns, Place
from bankdb.datasets.files.compressed import opened
from bankdb.datasets.files.limited import decoded, later, readable, whole
from bankdb.datasets.files.shapes import holds_rows, rows_in
from bankdb.datasets.forms.values import BadRows
from bankdb.errors import DatasetError, PlanError, one_line
from bankdb.strict_json import RepeatedKeyError, unique_keys

# Shares of the memory that a file, or a line of one, may take: text has up to 4 bytes a character beside the
# file's own, and what JSON makes of 3 bytes, such as an empty list, takes up to 72.
_LINE_SHARE, _LIST_SHARE, _OBJECT_SHARE = 32, 12, 32
_ADVICE = "save it as .jsonl, an object a line"


def json_rows(
    file: Path, lines: bool, columns: Columns, memory: int, bad: BadRows
) -> Iterator[tuple[Place, Any]]:
    """Yield the values that examples stand in, whatever the file's name says of its shape.

    Parameters
    ----------
    lines
        Whether its name says that each line is one.
    """
    with readable(file), opened(file, memory) as stream:
        head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if head != b"[" and (lines or head == b"{") and _are_lines(file, lines, columns, memory):
        yield from _json_lines(file, memory, bad)
        return
    share = _OBJECT_SHARE if head == b"{" else _LIST_SHARE
    text = decoded(whole(file, memory, share, _ADVICE), file)
    if not text.strip():
        return
    if text.lstrip().startswith("["):
        yield from _list_items(text, file)
        return
    with _parsing(file):
        found = json.loads(text, object_pairs_hook=unique_keys)
    for number, item in enumerate(rows_in(found, columns, file), 1):
        yield Place(file, "example", number), item


def _are_lines(file: Path, named: bool, columns: Columns, memory: int) -> bool:
    """Whether the first line that holds anything is a value of its own, and more follows or its name says so."""
    most = memory // _LINE_SHARE
    with readable(file), opened(file, memory) as stream:
        first = b""
        while not first.strip() and (first := stream.readline(most)):
            pass
        more = any(line.strip() for line in iter(lambda: stream.readline(1 << 16), b""))
    try:
        found = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        # One value over many lines ends its first so; else whoever reads the line names the problem.
        return named and not (more and first.rstrip().endswith((b"{", b"[", b",")))
    return more or (named and not holds_rows(found, columns))


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


def _json_lines(file: Path, memory: int, bad: BadRows) -> Iterator[tuple[Place, Any]]:
    most = memory // _LINE_SHARE
    with readable(file), opened(file, memory) as stream:
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
            try:
                line = decoded(raw, place) if number == 1 else later(raw, place)
                if not line.strip():
                    continue
                with _parsing(place):
                    found = json.loads(line.removesuffix("\n"), object_pairs_hook=unique_keys)
            except DatasetError as error:
                bad.take(error)
            else:
                yield place, found


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
