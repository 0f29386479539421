"""Pairs that a manifest names: a CSV or JSONL file with name, adapter, dataset and, if wanted, group and licence."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bankdb.errors import BankError, SourceError, printable
from bankdb.records import PairReference, RefusedPair, is_hub_reference

LAYOUT = (
    "expected a folder with datasets/NAME/ (or datasets/NAME.jsonl, .json, .csv, .parquet) and adapters/NAME/, "
    "or a manifest (.csv or .jsonl) with name, adapter and dataset"
)
_REQUIRED = ("name", "adapter", "dataset")


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
        text = source.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"{source}: cannot be read: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{source}: not UTF-8; save the manifest as UTF-8") from error
    rows = _csv_rows(text, source) if extension == ".csv" else _jsonl_rows(text)
    folder = Path(os.path.abspath(source)).parent
    for line, row in rows:
        where = f"line {line}"
        if isinstance(row, dict) and isinstance(row.get("name"), str) and row["name"].strip():
            where = row["name"]
        try:
            yield _manifest_pair(row, folder)
        except BankError as error:
            yield RefusedPair(printable(where), f"{source}, line {line}: {error}")


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
        raise SourceError(
            f"{source}: no column {missing[0]!r} in the header; expected name, adapter, dataset "
            f"and, if wanted, group and licence; found {', '.join(map(repr, header))}"
        )
    if twice := [column for column in header if column and header.count(column) > 1]:
        raise SourceError(f"{source}: column {twice[0]!r} appears twice in the header; remove one")
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
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, f"invalid JSON: {error}; correct it"
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
        lacking = next(key for key in _REQUIRED if not values[key])
        raise SourceError(f"{lacking!r} is missing; expected name, adapter and dataset")
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
    return os.path.abspath(folder / text)
