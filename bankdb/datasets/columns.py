"""The columns that are read, and what the others hold: text that is not read is never passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bankdb.datasets.forms.chat import Chat
from bankdb.datasets.forms.rules import ALPACA, CHAT, COLUMNS, TEXT, Reading
from bankdb.datasets.forms.values import BadRows, Plain, is_turns, joined, kind_of, shown
from bankdb.errors import DatasetError, listed

# The task itself stands there, in the format of Alpaca: without it, other tasks over the same inputs look the same.
_INSTRUCTIONS = frozenset({"instruction", "instructions"})
_OTHER_CHATS = frozenset({"messages", "conversations", "conversation", "dialog", "dialogue"})
_PREFERENCES = frozenset({"chosen", "rejected"})
# Whether the completion of a prompt is a good one, in the format of TRL's unpaired preferences.
_RATED, _RATING = ("prompt", "completion"), "label"
_MOST_NAMES, _LONGEST_NAME = 6, 40
# How pandas and `datasets` write a list into a cell: ['a', 'b'], or NumPy's ['a' 'b'].
_LIST_CELL = re.compile(r"""\s*\[\s*(['"]).*\1\s*\]\s*""", re.DOTALL)
_OPTIONS = ("--input-column", "--output-column")


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
_Row = TypeVar("_Row")


def examples_of(
    rows: Iterable[tuple[Place, _Row]], read: Callable[[_Row, Place], tuple[Any, Any]], bad: BadRows
) -> Values:
    """Yield what `read` makes of each row; a row that it refuses goes to `bad`."""
    for place, row in rows:
        try:
            example = read(row, place)
        except DatasetError as error:
            bad.take(error)
        else:
            yield place, example


class Columns:
    """Which columns hold input and output of an example, told by the first rows or by a user; a context.

    Parameters
    ----------
    bare
        Whether outputs of chats are the answers alone, for comparisons.
    split
        Which is read of a file that holds several: `train` or `test`.
    option
        What names the column of a single text, for messages.

    Attributes
    ----------
    rule
        How rows are read, None before any was seen.
    unread
        Other columns that have text.
    shape
        How the examples lie in a file of JSON, where it is not the usual one.
    """

    def __init__(
        self, reading: Reading, bare: bool = False, split: str = "train", option: str = "--text-column"
    ) -> None:
        self.split, self.shape, self._option = split, "", option
        self._reading, self.rule = reading, reading.rule
        self._given = self.rule is not None and reading.stored is None
        self._bare, self._plain = bare, Plain()
        self._written: Chat | None = None
        self.unread: dict[str, None] = {}
        self._rows = self._lists = 0
        self._first_list = ""

    def __enter__(self) -> Columns:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process of a chat template, if one runs."""
        if self._written is not None:
            self._written.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that are read; of none that are known yet, those that are expected."""
        return ("input", "output") if self.rule is None else self.rule.columns

    @property
    def both(self) -> tuple[str, str]:
        """What messages call the input and the output."""
        names = self.names
        if self.rule is not None and self.rule.form == ALPACA:
            return names[0], names[2]
        return names[0], names[-1]

    @property
    def chats(self) -> bool:
        """Whether the columns hold conversations."""
        return self.rule is not None and self.rule.is_chat

    @property
    def _chat(self) -> Chat:
        if self._written is None:
            self._written = Chat(self._reading.template_used(), self._bare)
        return self._written

    # -- recognition ----------------------------------------------------------------------------

    def settle(self, there: Sequence[str], place: object, holds_turns: Callable[[str], bool]) -> None:
        """Find out how rows are read, unless it is known, and check that their columns are there.

        Raises
        ------
        DatasetError
            The columns tell nothing, or one that is read is not among them.
        """
        again = self.rule is not None and self._reading.stored is not None and self.rule.is_usual
        # Versions that stored no other rule stored this one whatever columns they were told to read.
        if self.rule is None or (again and self._missing(there)):
            self.rule = self._reading.recognised(there, holds_turns) or self.rule
        if self.rule is None or self._missing(there):
            self._refuse_columns(there, place)

    def _missing(self, there: Sequence[str]) -> list[str]:
        names = self.names if self.rule is None else self.rule.needed
        return [name for name in dict.fromkeys(names) if name not in there]

    def _refuse_columns(self, there: Sequence[str], place: object) -> None:
        lacking = self._missing(there)
        missing = " and no column ".join(map(repr, lacking))
        columns = listed([shown(name) for name in there]) or "none"
        if preferred := sorted(_PREFERENCES & set(there)):
            raise DatasetError(
                f"{place}: no column {missing}, but preferences in {preferred[0]!r}; write the prompt and the chosen "
                "answer into the columns 'prompt' and 'completion'"
            )
        if chat := sorted(_OTHER_CHATS & set(there)):
            raise DatasetError(
                f"{place}: no column {missing}, but chat data in {chat[0]!r}; it is read from 'messages' or "
                "'conversations' alone: leave --input-column and --output-column out, or rename it"
            )
        form = COLUMNS if self.rule is None else self.rule.form
        options = dict(zip(self.both, (self._option,) if form == TEXT else _OPTIONS, strict=False))
        named = [options[name] for name in lacking if name in options]
        advice = "name the right one with " + " and ".join(named) if named else "write it, or name others"
        if len(there) == 1 and any(mark in str(there[0]) for mark in ";\t"):
            advice = "separate the cells by commas"
        elif len(there) == 1 and self.rule is None:
            advice = f"for a single text, --text-column {there[0]}"
        raise DatasetError(f"{place}: no column {missing}; the columns are {columns}; {advice}")

    def knows(self, found: Any) -> bool:
        """Whether an object has the columns of an example, whatever they hold."""
        return isinstance(found, dict) and bool(self.names_in(found))

    def names_in(self, found: Mapping[str, Any]) -> list[str]:
        """Return the columns of an object that would be read, none where the object does not have them all."""
        rule = self.rule or self._reading.recognised(found, lambda name: is_turns(found[name]))
        lacking = rule is None or any(name not in found for name in rule.needed)
        return [] if lacking or rule is None else [name for name in rule.columns if name in found]

    def is_other(self, found: Mapping[str, Any]) -> bool:
        """Whether an object is an example of a kind that is not read."""
        return not (_OTHER_CHATS | _PREFERENCES).isdisjoint(found)

    # -- rows -----------------------------------------------------------------------------------

    def of_object(self, found: Any, place: object) -> tuple[Any, Any]:
        """Return input and output of an object."""
        first, second = self.both
        if not isinstance(found, dict):
            raise DatasetError(f"{place}: {kind_of(found)}; expected an object with {first!r} and {second!r}")
        if self.rule is None or any(name not in found for name in self.both):
            self.settle(list(found), place, lambda name: is_turns(found[name]))
        names = self.names
        for name, value in found.items():
            if name in names:
                continue
            if type(value) is str:
                self._look(name, value, place)
            elif is_turns(value) and name in _OTHER_CHATS:
                self.unread[name] = None
        return self.example(found, place)

    def of_cells(self, header: Sequence[str], row: Sequence[str], place: object) -> tuple[Any, Any]:
        """Return input and output of a row of cells."""
        values = dict(zip(header, row, strict=True))
        names = self.names
        for name, value in values.items():
            if name not in names:
                self._look(name, value, place)
        self._rows += 1
        if _LIST_CELL.fullmatch(values[names[-1]]):
            self._lists += 1
            self._first_list = self._first_list or str(place).rpartition(", ")[2]
        return self.example(values, place)

    def of_record(self, row: Mapping[str, Any], place: object) -> tuple[Any, Any]:
        """Return input and output of a row of typed columns: those that are read, and those that may hold no text."""
        for name, value in row.items():
            if name not in self.names and isinstance(value, str) and value.strip():
                self.refuse(name, place)
        return self.example(row, place)

    def example(self, row: Mapping[str, Any], place: object) -> tuple[Any, Any]:
        """Return input and output of a row that has the columns, not yet checked but for chats."""
        assert self.rule is not None, "the columns are settled"
        names, plain = self.rule.columns, self._plain
        if _RATING in row and self.rates(_RATING) and str(row[_RATING]).lower() == "false":
            raise DatasetError(
                f"{place}: {_RATING!r} is false: the completion is not one to learn; leave such rows out, or pass "
                "--skip-bad-rows"
            )
        if self.rule.form == COLUMNS:
            return plain.text(row[names[0]]), plain.texts(row[names[1]])
        if self.rule.form == ALPACA:
            task = _instructed(plain.text(row[names[0]]), plain.text(row.get(names[1])), names, place)
            return task, plain.texts(row[names[2]])
        if self.rule.form == TEXT:
            return plain.text(row[names[0]]), ""
        if self.rule.form == CHAT:
            return self._chat.of_turns(row[names[0]], names[0], place)
        return self._chat.of_pair([row[name] for name in names], names, place)

    # -- what is not read -----------------------------------------------------------------------

    def refuses(self, name: str) -> bool:
        """Whether text in this column, which is not read, changes what the examples are."""
        return not self._given and name.lower() in _INSTRUCTIONS

    def rates(self, name: str) -> bool:
        """Whether a column, which is not read, says which of the examples are no good ones."""
        return name == _RATING and not self._given and self.rule is not None and self.rule.columns == _RATED

    def _look(self, name: str, value: str, place: object) -> None:
        if len(name) <= 20 and self.refuses(name) and value.strip():
            self.refuse(name, place)
        text = len(self.unread) <= _MOST_NAMES and name not in self.unread and looks_like_text(value)
        if text:
            self.unread[name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"] = None

    def refuse(self, name: str, place: object) -> None:
        """Raise DatasetError for text that would be left out."""
        first = self.names[0]
        raise DatasetError(
            f"{place}: has text in {name!r}, which would be left out: only {joined(self.names)} are read; write "
            f"{name!r} and {first!r} into one column, without {name!r}, or leave it out with --input-column "
            "and --output-column"
        )

    def notes(self, file: Path) -> list[str]:
        """Say, when all of a file was read, what of it was not used, and what may not be what it seems.

        Raises
        ------
        DatasetError
            Each cell of the output is a list that was written as text.
        """
        notes, read = [], joined(self.names)
        if self.shape:
            notes.append(f"{file}: is {self.shape}")
        output = self.names[-1]
        if self.unread:
            names = list(map(shown, self.unread))
            some = listed(names[:_MOST_NAMES]) + (" and more" if len(names) > _MOST_NAMES else "")
            notes.append(
                f"{file}: text in {some} is not used, only {read} {'is' if len(self.names) == 1 else 'are'} read"
            )
        if self._lists and self._lists == self._rows:
            raise DatasetError(
                f"{file}: each cell of {output!r} is a list written as text, such as in {self._first_list}; "
                "save the dataset as .parquet or .jsonl, where a list stays one"
            )
        if self._lists:
            notes.append(
                f"{file}: {self._lists} of {self._rows} cells of {output!r} look like lists (the first in "
                f"{self._first_list}); their brackets and quotes are counted as text"
            )
        if self._plain.number:
            notes.append(
                f"{file}: {self._plain.number:,} values are numbers or booleans, read as their text, such as "
                f"{self._plain.first[:_LONGEST_NAME]}"
            )
        self.unread, self._rows, self._lists, self._first_list, self.shape = {}, 0, 0, "", ""
        self._plain = Plain()
        return notes

    def notes_at_end(self) -> list[str]:
        """Say, when all files were read, by which rule that was, unless it is the usual one or a user's own."""
        usual = self.rule is None or self.rule.is_usual
        told = [] if usual or self._given else [f"read as {self.rule}"]
        return [*told, *([] if self._written is None else self._written.notes())]


def _instructed(task: Any, text: Any, names: Sequence[str], place: object) -> Any:
    """Return an instruction, and the input in a line of its own if there is one."""
    for name, value in zip(names, (task, text), strict=False):
        if value is not None and not isinstance(value, str):
            raise DatasetError(f"{place}: {name!r} is {kind_of(value)}; expected a string")
    if task is None and text is None:
        return None
    return "\n".join(part for part in (task, text) if part is not None and part.strip())


def looks_like_text(value: str) -> bool:
    """Whether a value may be text to learn from, rather than a name, a number or an address."""
    return len(value.split(None, 1)) > 1 or not value.isascii()
