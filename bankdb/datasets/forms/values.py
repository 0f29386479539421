"""What single values are: strings, numbers and booleans as their text, and what else there may be."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from bankdb.errors import DatasetError, one_line

_LONGEST_NAME = 40


def shown(name: object) -> str:
    """Return a column's name as messages show it."""
    return one_line(repr(name), _LONGEST_NAME)


def kind_of(value: Any) -> str:
    """Say what a value of JSON is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {str: "a string", dict: "an object", list: "a list", int: "a number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def is_turns(value: Any) -> bool:
    """Whether a value is a conversation: a list of objects."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


class Plain:
    """Turns numbers and booleans into their text, as JSON writes them, and counts them.

    Attributes
    ----------
    number, first
        How many there were, and the first as text.
    """

    def __init__(self) -> None:
        self.number, self.first = 0, ""

    def text(self, value: Any) -> Any:
        """Return the text of a number or boolean; anything else as it is."""
        if type(value) is str or not isinstance(value, bool | int | float):
            return value
        if isinstance(value, float) and not math.isfinite(value):
            return value  # not a number: refused like what is missing
        self.number += 1
        found = json.dumps(value)
        self.first = self.first or found
        return found

    def texts(self, value: Any) -> Any:
        """Return the same of each item of a list, or of the value."""
        return list(map(self.text, value)) if isinstance(value, list) else self.text(value)


class BadRows:
    """What happens to rows that are no examples: an error, or they are skipped and counted.

    Attributes
    ----------
    number, first
        How many were skipped, and the error of the first.
    """

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self.number, self.first = 0, ""

    def take(self, error: DatasetError) -> None:
        """Count a row. Raises its error unless such rows are skipped."""
        if not self._skip:
            raise error
        self.number += 1
        self.first = self.first or str(error)

    def note(self, read: int) -> list[str]:
        """Say how many rows were skipped beside those that were read."""
        if not self.number:
            return []
        return [f"{self.number:,} of {self.number + read:,} rows are skipped, the first: {self.first}"]


def joined(parts: Sequence[str]) -> str:
    """Return names in quotes, as a sentence lists them."""
    quoted = list(map(shown, parts))
    return " and ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))
