"""Sources of an ingest that stand for many pairs: an owner, a collection, a library, or what was found of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from bankdb.errors import ParameterError, SourceError
from bankdb.public.found import FoundPairs
from bankdb.public.gathering import Wanting
from bankdb.public.listing.repositories import Listing
from bankdb.public.search import Search
from bankdb.public.selection import EVERYTHING, Selection
from bankdb.records import PairReference, RefusedPair
from bankdb.sources.downloads.session import HubSession
from bankdb.sources.find import Source, each_source, references_of, resolver
from bankdb.sources.hub import references_from_arguments
from bankdb.sources.hub_client import HubReference, Information, Kind
from bankdb.sources.pairs import groups_in_names

if TYPE_CHECKING:
    from bankdb.sources.located import Located
    from bankdb.storage.stored_bank import StoredBank

_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")


@dataclass(slots=True)
class Searched:
    """What arguments of the hub stand for.

    Attributes
    ----------
    found
        Of owners, collections and libraries.
    single
        Arguments that name one adapter each.
    refused
        Those that cannot be had.
    listing
        What tells of the repositories without asking again.
    """

    found: list[FoundPairs] = field(default_factory=list)
    single: list[str] = field(default_factory=list)
    refused: list[RefusedPair] = field(default_factory=list)
    listing: Listing = field(default_factory=Listing)


WideSource: TypeAlias = "Source | FoundPairs | Searched"
"""A source of pairs, or what was found on the hub."""


def names_owner(argument: str) -> bool:
    """Whether an argument of the hub names an owner: it has no slash."""
    return _OWNER.fullmatch(argument) is not None


def search_hub(
    bank: StoredBank,
    arguments: Iterable[str],
    collections: Iterable[str] = (),
    selection: Selection = EVERYTHING,
    note: Callable[[str], None] | None = None,
) -> Searched:
    """Ask the hub what arguments stand for: `OWNER`, `ADAPTER[=DATASET]`, or a library of adapters likewise.

    Parameters
    ----------
    bank
        For which bank.
    collections
        Collections, OWNER/TITLE-HASH each.
    selection
        Which adapters of an owner, a collection or a library are wanted.
    note
        Called with a line for the user where the hub asks to wait.

    Raises
    ------
    SourceError
        An argument is of none of these forms, or an owner or a collection cannot be listed.
    ParameterError
        There is a selection, and nothing to select from.
    """
    arguments = list(arguments)
    named = references_from_arguments([one for one in arguments if not names_owner(one)])
    searched = Searched(listing=Listing(HubSession(note)))
    # One reading, where hundreds are looked for.
    present = {record.name: record for record in bank.adapters()}
    wanting = Wanting((bank.record.base_model, *bank.record.base_model_aliases), present.get, selection)
    search = Search(wanting, searched.listing)
    searched.found += [search.collection(slug) for slug in dict.fromkeys(collections)]
    searched.found += [search.owner(owner) for owner in dict.fromkeys(arguments) if names_owner(owner)]
    adapters = [one for one in arguments if not names_owner(one)]
    for argument, reference in zip(adapters, named, strict=True):
        try:
            found = search.repository(reference.adapter, reference.dataset)
        except SourceError as error:  # of this one alone; the others go on
            searched.refused.append(RefusedPair(reference.name, str(error)))
            continue
        if found is None:
            searched.single.append(argument)
        else:
            searched.found.append(found)
    if selection != EVERYTHING and searched.single:
        raise ParameterError(
            f"include, exclude, limit: {searched.single[0]} is one adapter; expected an owner, a collection or a "
            "library of adapters to choose from; leave them out, or ingest that one on its own"
        )
    return searched


def found_at(
    bank: StoredBank,
    place: str,
    collection: bool,
    include: Sequence[str],
    exclude: Sequence[str],
    limit: int | None,
) -> FoundPairs:
    """Return what one owner, collection or library has; see `AdapterBank.search_hub`."""
    selection = Selection(tuple(include), tuple(exclude), limit)
    searched = search_hub(bank, () if collection else (place,), (place,) if collection else (), selection)
    if searched.refused:
        raise SourceError(searched.refused[0].reason)
    if searched.single:
        raise ParameterError(
            f"{place}: is one adapter; expected an owner, a collection or a library of several; pass it to ingest"
        )
    return searched.found[0]


@dataclass(frozen=True, slots=True)
class Widened:
    """Sources without those that stand for many pairs; `refused` is what of these cannot be taken.

    `ask` tells of repositories of the hub what was listed of them.
    """

    sources: list[Source]
    refused: list[RefusedPair]
    listings: tuple[Listing, ...]

    def ask(self, kind: Kind, reference: HubReference) -> Information:
        """Tell of a repository; asks the hub where no listing has it. Raises SourceError."""
        for listing in self.listings:
            if listing.knows(kind, reference):
                return listing.ask(kind, reference)
        return self.listings[0].ask(kind, reference)


def referenced(
    bank: StoredBank,
    sources: WideSource | Iterable[WideSource],
    hub: bool,
    group_pattern: str | None,
    *,
    free: bool,
) -> tuple[list[PairReference], list[RefusedPair], Located]:
    """Return the pairs that sources name, what of them is refused, and what finds their files.

    Parameters
    ----------
    hub, group_pattern
        See `widened`.
    free
        Whether what is downloaded is deleted once it was used.

    Raises
    ------
    SourceError, ParameterError
        As `widened`; or a source names no pairs at all.
    """
    wide = widened(bank, sources, hub, group_pattern)
    found, refused = references_of(wide.sources, hub, group_pattern)
    resolve = resolver(bank.catalog.find, wide.ask if wide.listings else None, free_downloads=free)
    return found, [*wide.refused, *refused], resolve


def widened(
    bank: StoredBank, sources: WideSource | Iterable[WideSource], hub: bool, group_pattern: str | None
) -> Widened:
    """Put pairs in place of what stands for many of them.

    Parameters
    ----------
    hub
        Whether texts among the sources are arguments of the hub; see `search_hub`.
    group_pattern
        The user's; without one, that of a known public bank gives its pairs their groups.

    Raises
    ------
    SourceError, ParameterError
        As `search_hub` and `bankdb.sources.find.references_of`.
    """
    each, found, searched = _sorted_out(sources)
    if hub and (texts := [one for one in each if isinstance(one, str)]):
        each = [one for one in each if not isinstance(one, str)]
        searched.append(search_hub(bank, texts))
    refused: list[RefusedPair] = []
    for result in searched:
        each += references_from_arguments(result.single)
        refused += result.refused
        found += result.found
    for one in found:
        each += _grouped(one, group_pattern)
        refused += one.refused
    listings = [*(one.listing for one in found), *(one.listing for one in searched)]
    return Widened(each, refused, tuple(listings))


def _sorted_out(
    sources: WideSource | Iterable[WideSource],
) -> tuple[list[Source], list[FoundPairs], list[Searched]]:
    """Tell what was found on the hub from other sources."""
    given = each_source(sources, (FoundPairs, Searched))
    return (
        [one for one in given if not isinstance(one, FoundPairs | Searched)],
        [one for one in given if isinstance(one, FoundPairs)],
        [one for one in given if isinstance(one, Searched)],
    )


def _grouped(found: FoundPairs, group_pattern: str | None) -> Sequence[PairReference]:
    references = found.references
    if group_pattern is not None or found.group_pattern is None:
        return references
    groups = groups_in_names([one.name for one in references], found.group_pattern)
    return [replace(one, group=groups.get(one.name)) for one in references]
