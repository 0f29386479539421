"""Pairs that a listing of the hub has for a bank, before anything of them is downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from bankdb.errors import listed, printable
from bankdb.public.listing.repositories import Listing
from bankdb.public.matching import How
from bankdb.records import AdapterRecord, PairReference, RefusedPair
from bankdb.shown import html_summary, size_text, text_summary
from bankdb.sources.hub import PinnedPair

_LISTED = 10
_HOW: dict[How, str] = {
    "card": "dataset named by the model card",
    "number": "dataset of the same task number",
    "name": "dataset of the same name",
    "given": "dataset given",
}


@dataclass(frozen=True, slots=True)
class FoundPair:
    """A pair of a listing, pinned.

    Attributes
    ----------
    reference
        Both sides with the commit that was listed.
    pinned
        The files that would be downloaded.
    how
        By what the dataset was found.
    size
        Bytes of these files, as far as the hub states them; else of what it stores of the two repositories. None where
        it states neither.
    """

    reference: PairReference
    pinned: PinnedPair
    how: How
    size: int | None


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """What a listing has for a bank; `AdapterBank.ingest` takes it as a source.

    Attributes
    ----------
    where
        What was listed.
    adapters
        How many adapters it has.
    pairs
        Those that are wanted and have a dataset, by name.
    refused
        Those that are wanted and cannot be read, or have no dataset, with the reason.
    other_base_models
        How many are of each other base model, as their cards say; they are left out.
    unstated
        How many of `pairs` name no base model in their card: their configuration decides when it is read.
    not_wanted
        How many were left out by name, or are beyond the limit.
    present
        How many of `pairs` the bank has already, at that commit.
    group_pattern
        The one that is usual with this public bank, if it is a known one.
    notes
        What was left out or taken as usual, a line each.
    listing
        What tells of the repositories without asking again.
    """

    where: str
    adapters: int
    pairs: tuple[FoundPair, ...]
    refused: tuple[RefusedPair, ...]
    other_base_models: Counter[str]
    unstated: int
    not_wanted: int
    present: int
    group_pattern: str | None = None
    notes: tuple[str, ...] = ()
    listing: Listing = field(default_factory=Listing, repr=False, compare=False)

    @property
    def references(self) -> tuple[PairReference, ...]:
        """The pairs, as `AdapterBank.ingest` takes them."""
        return tuple(pair.reference for pair in self.pairs)

    def also(self, refused: Iterable[RefusedPair]) -> FoundPairs:
        """Return the same with others refused too."""
        return replace(self, refused=(*self.refused, *refused))

    def by(self) -> Counter[How]:
        """Return how many datasets were found by what."""
        return Counter(pair.how for pair in self.pairs)

    def size(self, find: Callable[[str], AdapterRecord | None]) -> tuple[int, int]:
        """Return the bytes to download of pairs that a bank has not yet, and of how many of them no size is known."""
        sizes = [pair.size for pair in self.pairs if not is_present(pair.pinned, find(pair.reference.name))]
        return sum(size or 0 for size in sizes), sizes.count(None)

    def facts(self) -> dict[str, object]:
        """Return what was found, as it is shown: a line a count, those that are zero left out."""
        counts: dict[str, object] = {"adapters": self.adapters}
        if self.not_wanted:
            counts["left out by name, or beyond the limit"] = self.not_wanted
        if others := self.other_base_models.total():
            shown = [printable(name)[:100] for name, _ in self.other_base_models.most_common()]
            counts["of another base model"] = f"{others:,} ({listed(shown, 3)})"
        if self.refused:
            counts["cannot be taken"] = len(self.refused)
        counts["pairs"] = len(self.pairs)
        counts |= {f"  {_HOW[how]}": count for how, count in self.by().items()}
        if self.unstated:
            counts["  base model not stated, decided by the configuration"] = self.unstated
        if self.present:
            counts["  in the bank already"] = self.present
        return counts

    def __repr__(self) -> str:
        """Return the counts, and the first that cannot be taken."""
        reasons = {one.name: one.reason for one in self.refused[:_LISTED]}
        return text_summary(f"FoundPairs: {self.where}", self.facts() | reasons)

    def _repr_html_(self) -> str:
        rows = [(one.name, one.reason) for one in self.refused[:_LISTED]]
        title = f"FoundPairs: {self.where}"
        return html_summary(
            title, self.facts(), ("cannot be taken", "why"), rows, len(self.refused) - len(rows)
        )


def download_text(size: int, unknown: int) -> str:
    """Return bytes to download, as they are shown."""
    more = f", and {unknown:,} pairs whose size the hub does not state" if unknown else ""
    return f"about {size_text(size)}{more}"


def is_present(pinned: PinnedPair, present: AdapterRecord | None) -> bool:
    """Whether a bank has a pair of the hub at that very commit of both sides."""
    return (
        present is not None
        and None not in (pinned.adapter_revision, pinned.dataset_revision)
        and (
            (present.source, present.dataset_source, present.revision, present.dataset_revision)
            == (
                pinned.adapter_source,
                pinned.dataset_source,
                pinned.adapter_revision,
                pinned.dataset_revision,
            )
        )
    )
