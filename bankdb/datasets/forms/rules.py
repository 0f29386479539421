"""By which rule rows become input and output: recognised by the names of the columns, or as a user says."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from bankdb.datasets.forms.values import joined, shown
from bankdb.errors import BankFormatError, DatasetError
from bankdb.templates.sandbox import ChatTemplate

TEXT_RULE = "input + output[0]"
"""How an example becomes the text that is tokenised (arXiv 2507.01806, section C.1.2)."""

COLUMNS, ALPACA, CHAT, CHAT_PAIR, TEXT = "columns", "alpaca", "chat", "chat pair", "text"
"""Two columns; an instruction before the input; all turns in one column; turns in two; one column."""

CHATS = ("messages", "conversations")
_PAIRS = (("prompt", "completion"), ("question", "answer"))
_DEFAULT = ("input", "output")


@dataclass(frozen=True, slots=True)
class Rule:
    """How rows are read.

    Attributes
    ----------
    form
        One of the five.
    columns
        Those that are read, in their order; of Alpaca's the second may be missing.
    template
        Of chats: hash of the chat template; None where roles and texts are written in lines.
    skips
        Whether rows that are no examples were skipped, rather than refused.
    """

    form: str
    columns: tuple[str, ...]
    template: str | None = None
    skips: bool = False

    @property
    def as_text(self) -> str:
        """What is stored with a dataset, from which `of_text` makes the same rule."""
        if self.is_usual and not self.skips:
            return TEXT_RULE  # as it was stored when there was no other
        about: dict[str, Any] = {"form": self.form, "columns": list(self.columns)}
        about |= {} if self.template is None else {"template": self.template}
        about |= {"skips": True} if self.skips else {}
        return f"{TEXT_RULE}; {json.dumps(about, sort_keys=True)}"

    @classmethod
    def of_text(cls, text: str) -> Rule:
        """Return the rule that was stored. Raises BankFormatError for one that this version does not know."""
        if text == TEXT_RULE:
            return cls(COLUMNS, _DEFAULT)
        try:
            about = json.loads(text.removeprefix(f"{TEXT_RULE}; "))
            found = cls(
                str(about["form"]),
                tuple(map(str, about["columns"])),
                about.get("template"),
                bool(about.get("skips")),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BankFormatError(
                f"text rule {text[:80]!r}: not known to this version; upgrade lora-bank, or ingest the dataset again"
            ) from error
        return found

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that have to be there."""
        return (self.columns[0], *self.columns[2:]) if self.form == ALPACA else self.columns

    @property
    def is_usual(self) -> bool:
        """Whether it is the one that there was before there were others."""
        return self.form == COLUMNS and self.columns == _DEFAULT

    @property
    def is_chat(self) -> bool:
        """Whether the columns hold conversations."""
        return self.form in (CHAT, CHAT_PAIR)

    @property
    def kind(self) -> str:
        """What texts by this rule have in common, whatever their columns are called."""
        if self.is_chat:
            return "chat in lines" if self.template is None else f"chat by template {self.template[:8]}"
        return {COLUMNS: "input and output", ALPACA: "instruction, input and output"}.get(
            self.form, "one text"
        )

    def __str__(self) -> str:
        """Say it in one line."""
        if self.form == TEXT:
            return f"one text, {shown(self.columns[0])}"
        if self.form == ALPACA:
            first, second, output = map(shown, self.columns)
            return f"Alpaca: {first}, a new line and {second}, then {output}"
        if self.form == COLUMNS:
            return " then ".join(map(shown, self.columns))
        how = "lines of role and text, as no chat template lies beside the tokenizer"
        if self.template is not None:
            how = f"the tokenizer's chat template {self.template[:8]}"
        turns = "before the last answer, then that" if self.form == CHAT else "one after the other"
        return f"chat: the turns in {joined(self.columns)} {turns}, by {how}"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a user wants datasets to be read.

    Attributes
    ----------
    input_column, output_column
        Read these two as they are, and recognise nothing; where one is given, the other is `input` or `output`.
    text_column
        Read this one alone.
    skip_bad_rows
        Skip rows that are no examples, and say how many.
    template
        What gives the template that chats are written by; asked when there is one. None, also from it, writes roles and
        texts in lines.
    stored
        Read again as this rule says, which was stored when the dataset was read.
    otherwise
        The rule for columns that tell nothing by their names.
    """

    input_column: str | None = None
    output_column: str | None = None
    text_column: str | None = None
    skip_bad_rows: bool = False
    template: Callable[[], ChatTemplate | None] | None = None
    stored: Rule | None = None
    otherwise: Rule | None = None

    @property
    def rule(self) -> Rule | None:
        """The rule that is asked for; None is to be recognised.

        Raises
        ------
        DatasetError
            Options contradict each other.
        """
        if self.stored is not None:
            return self.stored
        pair = self.input_column, self.output_column
        if self.text_column is not None:
            if pair != (None, None):
                raise DatasetError(
                    f"text column {self.text_column!r} is the whole text; leave out --input-column and --output-column"
                )
            return Rule(TEXT, (self.text_column,), skips=self.skip_bad_rows)
        if pair == (None, None):
            return None
        first, second = (name or default for name, default in zip(pair, _DEFAULT, strict=True))
        if first == second:
            raise DatasetError(
                f"input and output are both read from column {first!r}; give two different --input-column and "
                "--output-column, or --text-column for a single text"
            )
        return Rule(COLUMNS, (first, second), skips=self.skip_bad_rows)

    @classmethod
    def again(cls, rule: Rule, template: Callable[[], ChatTemplate | None]) -> Reading:
        """Return how to read what was read by a rule."""
        return cls(skip_bad_rows=rule.skips, template=template, stored=rule)

    @property
    def elsewhere(self) -> Reading:
        """How to read the same dataset where somebody else has put it: as its columns say, or else as before."""
        return replace(self, stored=None, otherwise=self.stored)

    def template_used(self) -> ChatTemplate | None:
        """The template that chats are written by: what is read again has the one that it had.

        Raises
        ------
        DatasetError
            There is another one now.
        """
        stored = None if self.stored is None or not self.stored.is_chat else self.stored
        if self.template is None or (stored is not None and stored.template is None):
            return None
        found = self.template()
        if stored is not None and (found is None or found.sha256 != stored.template):
            raise DatasetError(
                f"chats of this dataset were written by the chat template {str(stored.template)[:8]}, which is not the "
                "tokenizer's now; put the original file back, or ingest the pair again with --replace"
            )
        return found

    def recognised(self, names: Collection[str], holds_turns: Callable[[str], bool]) -> Rule | None:
        """Return the rule that the names of columns tell, None where they tell none.

        Parameters
        ----------
        holds_turns
            Whether a column holds conversations.
        """
        there, of = frozenset(names), functools.partial(Rule, skips=self.skip_bad_rows)
        if {"instruction", "output"} <= there:
            return of(ALPACA, ("instruction", "input", "output"))
        if there.issuperset(_DEFAULT):
            return of(COLUMNS, _DEFAULT)
        for name in CHATS:
            if name in there:
                return of(CHAT, (name,), self._template_sha256())
        for pair in _PAIRS:
            if there.issuperset(pair):
                turns = all(map(holds_turns, pair))
                return of(CHAT_PAIR, pair, self._template_sha256()) if turns else of(COLUMNS, pair)
        other = self.otherwise
        return other if other is not None and there.issuperset(other.needed) else None

    def _template_sha256(self) -> str | None:
        found = self.template_used()
        return None if found is None else found.sha256
