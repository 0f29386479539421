"""Pairs read, checked and tokenized: beside what is stored, a few ahead of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bankdb.catalog.catalog import changed_pair
from bankdb.datasets.limits import memory_budget
from bankdb.datasets.read import Examples
from bankdb.errors import SourceError, printable
from bankdb.ingesting.counted import Counted, count_dataset, dataset_to_count
from bankdb.ingesting.report import IngestOptions
from bankdb.records import Pair
from bankdb.storage.expected import Expected, is_unchanged
from bankdb.storage.stored_bank import StoredBank

if TYPE_CHECKING:
    from bankdb.peft.opened import FreedVectors
    from bankdb.peft.weights import SourceAdapter

# Pairs prepared ahead of the one being written: reading and tokenizing overlap with writing.
AHEAD = 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pair that was read, checked and tokenized, ready to be stored."""

    pair: Pair
    adapter: SourceAdapter
    counted: Counted


def prepare(
    bank: StoredBank,
    pair: Pair,
    expected: Expected,
    options: IngestOptions,
    freed: FreedVectors,
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
    adapter = expected.load(pair.adapter, options.taking, pair.weights_sha256, freed)
    adapter = replace(adapter, notes=(*pair.notes, *notes_on(adapter, pair.adapter)))
    return Prepared(pair, adapter, _counted(bank, pair, options))


def _counted(bank: StoredBank, pair: Pair, options: IngestOptions) -> Counted:
    if options.counter is None:
        name, memory = str(pair.dataset[0]), _share(options)
        return count_dataset(
            pair.dataset, options.reading, bank.tokenizer, name, memory=memory, of_texts=options.memory
        )
    return options.counter(
        dataset_to_count(
            pair.dataset, options.reading, bank.path / "tokenizer", bank.record.tokenizer_fingerprint
        )
    )


def _read(pair: Pair, options: IngestOptions) -> Examples:
    return Examples(pair.dataset, options.reading, memory=_share(options))


def _share(options: IngestOptions) -> int:
    """Return the bytes for one of the pairs that are prepared at a time."""
    return max(1, memory_budget(options.memory) // AHEAD)


def _check_text(pair: Pair) -> None:
    """Refuse what no database stores as text: a path that is not UTF-8, half of a surrogate pair, NUL."""
    for text in (pair.adapter_source, pair.dataset_source, pair.group or "", pair.licence or ""):
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise SourceError(f"{printable(text)}: not valid Unicode text; rename the folder, or correct it")
