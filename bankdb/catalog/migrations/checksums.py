"""A checksum on every record, so that a value that changed in the database's file is an error when it is read.

A database holds its pages and indexes together; no `integrity_check` knows what was in a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# What `json.dumps` would do, without looking at its options each time.
_json = json.JSONEncoder().encode
UNSEALED: Mapping[str, frozenset[str]] = {
    # The numbers that a database gives are held by what refers to them; these bytes have a checksum of their own.
    "token_distribution": frozenset({"id", "ids", "counts"}),
    "piece": frozenset(),
}
"""Columns that a table's checksum leaves out; `id` where none are named."""


def sealed_columns(table: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the columns that a record's checksum covers, with their kinds.

    Parameters
    ----------
    columns
        Each column's kind: `real`, or anything else.
    """
    left_out = UNSEALED.get(table, frozenset({"id"})) | {"checksum"}
    return {name: kind for name, kind in columns.items() if name not in left_out}


def record_checksum(table: str, kinds: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """Return the sha256 of a record's values, the same whichever database they went through.

    Parameters
    ----------
    kinds
        As `sealed_columns` returns them.
    values
        The record's, by column; what is not there is NULL.
    """
    plain = [[name, _plain(kinds[name], values.get(name))] for name in sorted(kinds)]
    return hashlib.sha256(_json([table, plain]).encode()).hexdigest()


def _plain(kind: str, value: Any) -> Any:
    if value is None or type(value) is str:
        return value
    if kind == "real" and isinstance(value, int | float):
        number = float(value)
        # SQLite stores NaN as NULL, and a whole number, a negative zero too, as an integer.
        return None if number != number else ["real", (number + 0.0).hex()]
    if isinstance(value, bytes):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | str):
        return value
    return [type(value).__name__, repr(value)]
