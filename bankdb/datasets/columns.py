"""The two columns that are read, and what the others hold: text that is not read is never passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bankdb.errors import DatasetError, listed, one_line

# The task itself stands there, in the format of Alpaca: without it, other tasks over the same inputs look the same.
_INSTRUCTIONS = frozenset({"instruction", "instructions"})
_CHATS = frozenset({"messages", "conversations", "conversation", "chosen", "rejected", "dialog", "dialogue"})
_MOST_NAMES, _LONGEST_NAME = 6, 40
# How pandas and `datasets` write a list into a cell: ['a', 'b'], or NumPy's ['a' 'b'].
_LIST_CELL = re.compile(r"""\s*\[\s*(['"]).*\1\s*\]\s*""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an example stands, for messages."""

    file: Path
    unit: str
    number: int

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.file}, {self.unit} {self.number}"


Values = Iterator[tuple[Place, tuple[Any, Any]]]


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


class Columns:
    """Names of the columns with the input and the output of an example.

    Attributes
    ----------
    names
        The two.
    unread
        Other columns that have text.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names
        self.unread: dict[str, None] = {}
        self._rows = self._lists = 0
        self._first_list = ""

    def check(self, there: Sequence[str], place: object) -> None:
        """Raise DatasetError if one of the two is not among the columns."""
        lacking = [
            (name, option)
            # Of prompts alone both are the same column.
            for name, option in zip(
                dict.fromkeys(self.names), ("--input-column", "--output-column"), strict=False
            )
            if name not in there
        ]
        if not lacking:
            return
        missing = " and no column ".join(repr(name) for name, _ in lacking)
        if chat := sorted(_CHATS & set(there)):
            raise DatasetError(
                f"{place}: no column {missing}, but chat data in {chat[0]!r}; write each conversation as two strings, "
                f"{self.names[0]!r} and {self.names[1]!r}"
            )
        columns = listed([shown(name) for name in there]) or "none"
        advice = "name the right one with " + " and ".join(option for _, option in lacking)
        if list(there) == ["text"] and len(set(self.names)) > 1:
            advice = f"rename it to {self.names[0]!r}, and add a column {self.names[1]!r} of empty strings"
        elif len(there) == 1 and any(mark in str(there[0]) for mark in ";\t"):
            advice = "separate the cells by commas"
        raise DatasetError(f"{place}: no column {missing}; the columns are {columns}; {advice}")

    def of_object(self, found: Any, place: object) -> tuple[Any, Any]:
        """Return the two values of an object."""
        first, second = self.names
        if not isinstance(found, dict):
            raise DatasetError(f"{place}: {kind_of(found)}; expected an object with {first!r} and {second!r}")
        if first not in found or second not in found:
            self.check(list(found), place)
        for name, value in found.items():
            if type(value) is str and name != first and name != second:
                self._look(name, value, place)
        return found[first], found[second]

    def of_cells(self, header: Sequence[str], row: Sequence[str], place: object) -> tuple[str, str]:
        """Return the two cells of a row."""
        first, second = self.names
        values = dict(zip(header, row, strict=True))
        for name, value in values.items():
            if name not in (first, second):
                self._look(name, value, place)
        self._rows += 1
        if _LIST_CELL.fullmatch(values[second]):
            self._lists += 1
            self._first_list = self._first_list or str(place).rpartition(", ")[2]
        return values[first], values[second]

    def list_in(self, found: Any, file: Path) -> list[Any]:
        """Return the examples of a JSON file that is no list: one object, or `{"data": list}`."""
        first, second = self.names
        if isinstance(found, dict):
            lists = [key for key, value in found.items() if isinstance(value, list)]
            if first in found:
                return [found]
            if lists == ["data"]:
                return list(found["data"])
        keys = f" with {listed([shown(key) for key in found])}" if isinstance(found, dict) else ""
        raise DatasetError(
            f"{file}: {kind_of(found)}{keys}; expected a list of objects with {first!r} and {second!r}"
        )

    def refuses(self, name: str) -> bool:
        """Whether text in this column, which is not read, changes what the examples are."""
        other = {*self.names} & _INSTRUCTIONS
        return name.lower() in _INSTRUCTIONS or bool(other and name == "input")

    def _look(self, name: str, value: str, place: object) -> None:
        if len(name) <= 20 and self.refuses(name) and value.strip():
            self.refuse(name, place)
        text = len(self.unread) <= _MOST_NAMES and name not in self.unread and looks_like_text(value)
        if text:
            self.unread[name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"] = None

    def refuse(self, name: str, place: object) -> None:
        """Raise DatasetError for text that would be left out."""
        first, second = self.names
        raise DatasetError(
            f"{place}: has text in {name!r}, which would be left out: only {first!r} and {second!r} are read; write "
            f"{name!r} and {first!r} into one column, without {name!r}"
        )

    def notes(self, file: Path) -> list[str]:
        """Say, when all of a file was read, what of it was not used, and what may not be what it seems.

        Raises
        ------
        DatasetError
            Each cell of the output is a list that was written as text.
        """
        notes = []
        if self.unread:
            names = list(map(shown, self.unread))
            some = listed(names[:_MOST_NAMES]) + (" and more" if len(names) > _MOST_NAMES else "")
            notes.append(
                f"{file}: text in {some} is not used, only {self.names[0]!r} and {self.names[1]!r} are read"
            )
        if self._lists and self._lists == self._rows:
            raise DatasetError(
                f"{file}: each cell of {self.names[1]!r} is a list written as text, such as in {self._first_list}; "
                "save the dataset as .parquet or .jsonl, where a list stays one"
            )
        if self._lists:
            notes.append(
                f"{file}: {self._lists} of {self._rows} cells of {self.names[1]!r} look like lists (the first in "
                f"{self._first_list}); their brackets and quotes are counted as text"
            )
        self.unread, self._rows, self._lists, self._first_list = {}, 0, 0, ""
        return notes


def looks_like_text(value: str) -> bool:
    """Whether a value may be text to learn from, rather than a name, a number or an address."""
    return len(value.split(None, 1)) > 1 or not value.isascii()
