"""What is known of the initialisations of a bank's A factors, read from where `compare` has put it; without NumPy.

Averaging A and B apart is exact for adapters with one A. Those that were trained from one seed begin with one, and stay
near it; the A of others are as good as orthogonal, and the average of their factors is not that of their products.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bankdb.arrays.metadata import read_metadata
from bankdb.errors import BankFormatError
from bankdb.records import AdapterRecord

if TYPE_CHECKING:
    from bankdb.arrays.remote import Location
    from bankdb.storage.stored_bank import StoredBank

SHARED = 0.5
"""Cosine from which on two adapters are taken to share their initialisation."""
GROUPS, NEAREST = "groups", "nearest"
"""Attributes of the array: for each of its entries the number of its group, and the cosine to the nearest other."""
LISTED = "entries"
"""`bankdb.derived.LISTED`, which comes with NumPy."""
_NAMED = 3  # groups that a line names before it sums up the others
_APART = "averaged apart, their A and B lose part of what the adapters do; `--space delta` loses less"


@dataclass(frozen=True, slots=True)
class Initialisations:
    """What is known of some adapters.

    Attributes
    ----------
    adapters
        How many they are.
    groups
        Number of the group of each that was compared, by row; adapters of one group share their initialisation.
    nearest
        Cosine of its A factors with those of the nearest other, by row, where that is known.
    """

    adapters: int
    groups: Mapping[int, int]
    nearest: Mapping[int, float]

    def sizes(self) -> list[int]:
        """Return the sizes of the groups of more than one adapter, the largest first."""
        return sorted((size for size in Counter(self.groups.values()).values() if size > 1), reverse=True)

    @property
    def is_one(self) -> bool:
        """Whether all adapters that were compared share one."""
        return len(set(self.groups.values())) <= 1

    def told(self) -> str:
        """Say in one line who shares one."""
        known, sizes = len(self.groups), self.sizes()
        if not known:
            return "not compared yet; the next ingest compares them"
        if known == 1 and self.adapters == 1:
            return "of one adapter, nothing to compare with"
        alone = known - sum(sizes)
        if alone == self.adapters:
            return f"the A factors of all {self.adapters:,} adapters have each their own"
        named = sizes if len(sizes) <= _NAMED + 1 else sizes[:_NAMED]
        parts = [f"{size} {'another' if place else 'share one'}" for place, size in enumerate(named)]
        if len(named) < len(sizes):
            parts.append(f"{sum(sizes) - sum(named)} are in {len(sizes) - len(named)} smaller groups")
        if alone:
            parts.append(f"{alone} {'has its' if alone == 1 else 'have each their'} own")
        if self.adapters > known:
            parts.append(f"{self.adapters - known} not compared yet")
        if sizes[:1] == [self.adapters]:
            return f"the A factors of all {self.adapters:,} adapters share one"
        return f"of the A factors of {self.adapters:,} adapters {', '.join(parts)}"

    def advice(self) -> str:
        """Say what averaging their factors apart means, where they began apart; else nothing."""
        return "" if self.is_one else f"{self.told()}; {_APART}"

    def told_of(self, row: int) -> str:
        """Say in one line with how many others the adapter of a row shares one."""
        if row not in self.groups:
            return "not compared yet; the next ingest compares it"
        others = Counter(self.groups.values())[self.groups[row]] - 1
        text = f"its A factors share one with {others:,} of {self.adapters - 1:,} others"
        text = text if others else "its A factors have their own"
        cosine = self.nearest.get(row)
        return text if cosine is None else f"{text}; cosine to the nearest {cosine:.2f}"


def key_of(record: AdapterRecord) -> str:
    """Return what tells an adapter's A factors from all others: its row and its values."""
    return _key(record.row, record.row_sha256)


def _key(row: int, row_sha256: str) -> str:
    return f"{row}:{row_sha256}"


def place_of(bank: StoredBank, layout: str) -> tuple[Location, str]:
    """Return where the A factors of a layout were compared, and what that is made from."""
    made_from = hashlib.sha256(f"A factors, sampled\n{layout}".encode()).hexdigest()
    return bank.array_path("initialisation") / made_from[:16], made_from


def initialisations_of(bank: StoredBank, adapters: Sequence[AdapterRecord]) -> Initialisations:
    """Return what is known of some adapters of a bank.

    Raises
    ------
    BankFormatError
        What is known was changed since it was written.
    """
    return known_of(bank, {record.row: key_of(record) for record in adapters})


def keys_of(bank: StoredBank) -> dict[int, str]:
    """Return what tells each adapter of a bank, by row, ascending: `key_of`, of two columns and no more.

    A record that is damaged gives a key that nothing is known of, and is read and compared as another adapter would be.
    """
    found = sorted(bank.catalog.glance("row", "row_sha256"))
    return {row: _key(row, row_sha256) for row, row_sha256 in found}


def known_of(bank: StoredBank, keys: Mapping[int, str]) -> Initialisations:
    """Return what is known of the adapters of some rows, each with what tells it from all others."""
    layout = bank.record.layout
    unknown = Initialisations(len(keys), {}, {})
    if layout is None:
        return unknown
    path, made_from = place_of(bank, layout)
    found = read_metadata(path)
    if found is None or not found.sealed or found.attributes.get("made_from") != made_from:
        return unknown
    about = found.attributes
    entries = dict(zip(about[LISTED], zip(about[GROUPS], about[NEAREST], strict=True), strict=True))
    known = {row: entries[key] for row, key in keys.items() if key in entries}
    nearest = {row: cosine for row, (_, cosine) in known.items() if cosine is not None}
    # The nearest of a list that has gone or grown may be another one.
    complete = len(known) == len(entries) == len(bank)
    return Initialisations(
        len(keys), {row: group for row, (group, _) in known.items()}, nearest if complete else {}
    )


def told_of(bank: StoredBank, row: int | None = None) -> str:
    """Say in one line what is known of a bank's adapters, or of the one of a row; also that it cannot be read."""
    try:
        found = known_of(bank, keys_of(bank))
    except BankFormatError as error:
        return f"not known: {error}"
    return found.told() if row is None else found.told_of(row)


def summary_of(bank: StoredBank, adapters: Sequence[AdapterRecord]) -> str:
    """Say what averaging adapters apart means, where they began apart; else who shares one, or why it is not known."""
    try:
        found = initialisations_of(bank, adapters)
    except BankFormatError as error:
        return f"not known: {error}"
    return found.advice() or found.told()


def advice_of(bank: StoredBank, adapters: Sequence[AdapterRecord]) -> str:
    """Say what averaging the factors of some adapters apart means, where they began apart; else nothing."""
    try:
        return initialisations_of(bank, adapters).advice()
    except BankFormatError:  # who shows it, and verification, say so
        return ""
