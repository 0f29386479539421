"""Pairs that a manifest names: a CSV or JSONL file with name, adapter, dataset and, if wanted, group and licence."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bankdb.errors import BankError, SourceError, listed, one_line, printable
from bankdb.records import PairReference, RefusedPair, is_hub_reference
from bankdb.strict_json import unique_keys

LAYOUT = (
    "expected a folder with datasets/NAME/ (or datasets/NAME.jsonl, .json, .csv, .parquet) and adapters/NAME/, "
    "or a manifest (.csv or .jsonl) with name, adapter and dataset"
)
_REQUIRED = ("name", "adapter", "dataset")
_LARGEST, _LONGEST_SHOWN, _MOST_LINES = 64 << 20, 80, 8


def in_manifest(source: Path) -> Iterator[PairReference | RefusedPair]:
    """Yield the pairs of a manifest, in its order; a row that is incomplete as refused, with its line.

    Raises
    ------
    SourceError
        The file as a whole is no manifest.
    """
    extension = source.suffix.lower()
    if extension not in (".csv", ".jsonl"):
        raise SourceError(f"{source}: unknown kind of manifest {extension!r}; {LAYOUT}")
    try:
        if source.stat().st_size > _LARGEST:
            raise SourceError(
                f"{source}: has more than {_LARGEST >> 20} MiB, expected a manifest, a line a pair"
            )
        text = source.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"{source}: cannot be read: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{source}: not UTF-8; save the manifest as UTF-8") from error
    rows = list(_csv_rows(text, source) if extension == ".csv" else _jsonl_rows(text))
    _check_pairs([row for _, row in rows], source)
    folder = Path(os.path.abspath(source)).parent
    nameless: list[RefusedPair] = []
    for line, row in rows:
        named = isinstance(row, dict) and isinstance(row.get("name"), str) and row["name"].strip()
        try:
            yield _manifest_pair(row, folder)
        except BankError as error:
            reason = f"{source}, line {line}: {error}"
            if isinstance(row, dict) and named:
                yield RefusedPair(printable(row["name"])[:_LONGEST_SHOWN], reason)
            else:
                nameless.append(RefusedPair(f"line {line}", reason))
    yield from nameless[:_MOST_LINES]
    if more := nameless[_MOST_LINES:]:
        lines = listed([pair.name.removeprefix("line ") for pair in more])
        yield RefusedPair(f"{len(more)} more lines", f"{source}, lines {lines}: refused like these")


def _check_pairs(rows: list[dict[str, Any] | str], source: Path) -> None:
    """Raise SourceError for a file none of whose lines names a pair: it is no manifest, whatever it is."""
    objects = [row for row in rows if isinstance(row, dict)]
    if not objects or any(not {"name", "adapter"}.isdisjoint(row) for row in objects):
        return
    keys = listed([one_line(repr(key), 40) for key in objects[0]]) or "none"
    raise SourceError(
        f"{source}: no manifest: its lines have {keys}, expected name, adapter and dataset; if it is a dataset, "
        "name it in a manifest with its adapter, or predict for it with bank predict"
    )


def _csv_rows(text: str, source: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each row as an object, or what is wrong with it."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(row)]
    except csv.Error as error:
        raise SourceError(f"{source}, line {reader.line_num}: invalid CSV: {error}; correct it") from error
    if not rows:
        raise SourceError(f"{source}: empty manifest; {LAYOUT}")
    header = [column.strip() for column in rows[0][1]]
    if missing := [column for column in _REQUIRED if column not in header]:
        split = [mark for mark in (";", "\t") if any(mark in column for column in header)]
        raise SourceError(
            f"{source}: no column {' and no column '.join(map(repr, missing))} in the header; expected name, adapter, "
            f"dataset and, if wanted, group and licence; found {listed([one_line(repr(name), 60) for name in header])}"
            + (f"; separate the cells by commas, not by {split[0]!r}" if split else "")
        )
    if twice := [column for column, times in Counter(header).items() if column and times > 1]:
        raise SourceError(
            f"{source}: column {one_line(repr(twice[0]), 60)} appears twice in the header; remove one"
        )
    for line, row in rows[1:]:
        if len(row) == len(header):
            yield line, dict(zip(header, row, strict=True))
        else:
            yield line, f"{len(row)} cells where the header has {len(header)}; quote cells that hold commas"


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Each line's object, or what is wrong with it."""
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            yield line, f"invalid JSON: {one_line(error)}; correct it"
            continue
        yield line, row if isinstance(row, dict) else "not an object; expected name, adapter and dataset"


def _manifest_pair(row: dict[str, Any] | str, folder: Path) -> PairReference:
    if isinstance(row, str):
        raise SourceError(row)
    values = {key: _cell(row, key) for key in (*_REQUIRED, "group", "licence", "license")}
    name, adapter, dataset = (values[key] for key in _REQUIRED)
    if values["licence"] and values["license"] and values["licence"] != values["license"]:
        raise SourceError("'licence' and 'license' differ; keep one")
    # A model card on the hub may name the dataset; nothing on local disk does.
    if not name or not adapter or not (dataset or is_hub_reference(adapter)):
        lacking = [key for key in _REQUIRED if not values[key]]
        missing = (
            f"{lacking[0]!r} is missing"
            if len(lacking) == 1
            else f"{', '.join(map(repr, lacking))} are missing"
        )
        raise SourceError(f"{missing}; expected name, adapter and dataset")
    return PairReference(
        name,
        _located(adapter, folder),
        _located(dataset, folder) if dataset else "",
        values["group"],
        values["licence"] or values["license"],
    )


def _cell(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise SourceError(f"{key!r} is {json.dumps(value)[:40]}; expected a string")
    # A name is judged as it stands; around the others a space can only be a slip.
    return (value if key == "name" else value.strip()) or None


def _located(text: str, folder: Path) -> str:
    if is_hub_reference(text):
        return text
    if "\0" in text:
        raise SourceError("a path has a NUL character; correct it")
    path = os.path.abspath(folder / text)
    if os.path.exists(path):
        return path
    if text == "~" or text.startswith("~/"):  # as a shell would
        return os.path.abspath(os.path.expanduser(text))
    problem = None
    if "\\" in text:
        problem = "backslashes; put / between folders"
    elif text.startswith("~") or "$" in text:
        problem = "what a shell would replace; write the path out, or begin it with ~/"
    if problem:
        raise SourceError(f"there is nothing at {one_line(printable(text), 200)}, which has {problem}")
    return path
