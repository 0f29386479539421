"""Pairs read, checked and tokenized: beside what is stored, a few ahead of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bankdb.catalog.catalog import changed_pair
from bankdb.datasets.limits import memory_budget
from bankdb.datasets.read import Examples
from bankdb.errors import SourceError, printable
from bankdb.ingesting.report import IngestOptions
from bankdb.records import Pair
from bankdb.storage.expected import Expected, is_unchanged
from bankdb.storage.stored_bank import StoredBank

if TYPE_CHECKING:
    from bankdb.datasets.forms.rules import Rule
    from bankdb.datasets.tokenizer import TokenHistogram
    from bankdb.peft.weights import SourceAdapter

# Pairs prepared ahead of the one being written: reading and tokenizing overlap with writing.
AHEAD = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pair that was read, checked and tokenized, ready to be stored."""

    pair: Pair
    adapter: SourceAdapter
    content_sha256: str
    examples: int
    notes: tuple[str, ...]
    rule: Rule
    histogram: TokenHistogram


def prepare(
    bank: StoredBank,
    pair: Pair,
    expected: Expected,
    options: IngestOptions,
) -> Prepared | None:
    """Read, check and tokenize a pair; None if the bank has the very same already."""
    from bankdb.peft.checks import notes_on

    _check_text(pair)
    present = bank.catalog.find(pair.name)
    if present is not None:
        stored = _read(pair, options)
        stored.pass_over()
        if is_unchanged(bank, present, pair, stored.sha256):
            return None
        if not options.replace:
            raise changed_pair(pair.name)
    adapter = expected.load(pair.adapter, options.taking)
    adapter = replace(adapter, notes=(*pair.notes, *notes_on(adapter, pair.adapter)))
    dataset = _read(pair, options)
    histogram = bank.tokenizer.count(dataset.texts(), str(pair.dataset[0]), options.memory)
    return Prepared(
        pair,
        adapter,
        dataset.sha256,
        len(dataset),
        dataset.notes,
        dataset.rule,
        histogram,
    )


def _read(pair: Pair, options: IngestOptions) -> Examples:
    return Examples(
        pair.dataset,
        options.reading,
        memory=max(
            1, memory_budget(options.memory) // AHEAD
        ),  # of one of the pairs that are prepared at a time
    )


def _check_text(pair: Pair) -> None:
    """Refuse what no database stores as text: a path that is not UTF-8, half of a surrogate pair, NUL."""
    for text in (pair.adapter_source, pair.dataset_source, pair.group or "", pair.licence or ""):
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise SourceError(f"{printable(text)}: not valid Unicode text; rename the folder, or correct it")
