"""From the adapters of a listing to the pairs of a bank: wanted, with a dataset, pinned; and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from bankdb.errors import AdapterError, DatasetError, SourceError
from bankdb.public.candidates import Candidate, fit
from bankdb.public.found import FoundPair, is_present
from bankdb.public.known import KnownBank
from bankdb.public.listing.repositories import MOST_FILES, Listing
from bankdb.public.matching import Match
from bankdb.public.selection import Selection, by_number
from bankdb.records import AdapterRecord, PairReference, RefusedPair
from bankdb.sources.hub import PinnedPair, parse_reference, pin
from bankdb.sources.hub_client import HubReference, PinnedRepository
from bankdb.sources.pairs import check_name, name_key

# From so many repositories of one owner on they are listed rather than asked for one by one; of at most so many owners.
WORTH_LISTING, MOST_OWNERS = 3, 20


@dataclass(frozen=True, slots=True)
class Wanting:
    """For which bank pairs are looked for, and which.

    Attributes
    ----------
    base_models
        The names of the bank's base model.
    find
        What the bank has under a name.
    selection
        Which adapters are wanted.
    """

    base_models: tuple[str, ...]
    find: Callable[[str], AdapterRecord | None]
    selection: Selection


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An adapter that is wanted, as its pair is called, with its dataset or why there is none."""

    candidate: Candidate
    name: str
    match: Match | str
    stated: bool


@dataclass(slots=True)
class Gathered:
    """What becomes of a listing's adapters; see `bankdb.public.found.FoundPairs`."""

    pairs: list[FoundPair] = field(default_factory=list)
    refused: list[RefusedPair] = field(default_factory=list)
    other_base_models: Counter[str] = field(default_factory=Counter)
    unstated: int = 0
    not_wanted: int = 0
    present: int = 0


def gather(
    found: Sequence[Candidate],
    choose: Callable[[Candidate], Match | str],
    wanting: Wanting,
    listing: Listing,
    known: KnownBank | None = None,
) -> Gathered:
    """Choose among adapters, find the dataset of each, and pin both.

    Parameters
    ----------
    found
        The adapters.
    choose
        Returns an adapter's dataset, or why there is none.
    known
        What is usual with them, if they are of a known public bank.
    """
    done = Gathered()
    wanted = _wanted(found, choose, wanting, known, done)
    _list_datasets(wanted, listing)
    names: dict[str, str] = {}
    for number, one in enumerate(wanted):
        if len(done.pairs) == wanting.selection.limit:
            done.not_wanted += len(wanted) - number
            break
        try:
            pair = _pinned(one, listing, names)
        except (AdapterError, DatasetError, SourceError) as error:
            done.refused.append(RefusedPair(one.name, str(error)))
            continue
        done.pairs.append(pair)
        done.unstated += not one.stated
        done.present += is_present(pair.pinned, wanting.find(one.name))
    return done


def _wanted(
    found: Sequence[Candidate],
    choose: Callable[[Candidate], Match | str],
    wanting: Wanting,
    known: KnownBank | None,
    done: Gathered,
) -> list[_Wanted]:
    """Return the adapters that are wanted, task20 before task100; count the others."""
    wanted: list[_Wanted] = []
    usual = None if known is None else known.adapters
    for candidate in found:
        chosen = choose(candidate)
        dataset = parse_name(chosen.dataset) if isinstance(chosen, Match) else ""
        stated = candidate.repository.base_models
        suits = fit(stated, wanting.base_models)
        if not wanting.selection.wants(candidate.name, dataset, usual):
            done.not_wanted += 1
        elif suits == "other":
            done.other_base_models[stated[0]] += 1
        else:
            name = dataset if dataset and known is not None and known.names == "dataset" else candidate.name
            wanted.append(_Wanted(candidate, name, chosen, suits == "fits"))
    return sorted(wanted, key=lambda one: (by_number(one.name), one.candidate.place))


def parse_name(dataset: str) -> str:
    """Return the last part of a dataset's place, without its revision."""
    return dataset.partition("@")[0].rpartition("/")[2]


def _list_datasets(wanted: Iterable[_Wanted], listing: Listing) -> None:
    """List the datasets of owners of whom several are named by cards, rather than ask for each."""
    named = {one.match.dataset for one in wanted if isinstance(one.match, Match) and one.match.how == "card"}
    unknown = [
        text.partition("@")[0] for text in named if ("dataset", text.partition("@")[0]) not in listing.known
    ]
    owners = Counter(text.partition("/")[0] for text in unknown)
    for owner, count in owners.most_common(MOST_OWNERS):
        if count >= WORTH_LISTING:
            listing.add("dataset", owner)


def _pinned(one: _Wanted, listing: Listing, names: dict[str, str]) -> FoundPair:
    """Pin both sides of a pair; raises what is wrong with it."""
    candidate, repository = one.candidate, one.candidate.repository
    if isinstance(one.match, str):
        raise SourceError(one.match)
    check_name(one.name)
    other = names.setdefault(name_key(one.name), candidate.place)
    if other != candidate.place:
        raise SourceError(
            f"{candidate.place} would be called {one.name!r} as {other} is; leave one out by --exclude, or give them "
            "names of your own in a manifest (.csv)"
        )
    if len(repository.information.files) > MOST_FILES:
        raise SourceError(
            f"{repository.repo_id}: more than {MOST_FILES:,} files, expected an adapter; name its folder in a manifest "
            "(.csv), as hub:OWNER/NAME/FOLDER"
        )
    adapter = HubReference(repository.repo_id, repository.information.revision, candidate.folder)
    dataset = parse_reference(one.match.dataset)
    listing.check_access("model", repository.repo_id)
    listing.check_access("dataset", dataset.repo_id)
    pinned = pin(PairReference(one.name, str(adapter), str(dataset)), listing.ask)
    dataset = HubReference(dataset.repo_id, pinned.dataset_revision, dataset.folder)
    reference = PairReference(one.name, str(adapter), str(dataset))
    return FoundPair(reference, pinned, one.match.how, _size(pinned, candidate, dataset, listing))


def _size(pinned: PinnedPair, candidate: Candidate, dataset: HubReference, listing: Listing) -> int | None:
    """Return the bytes of a pair's files; where the hub does not state them, those of the two repositories."""
    listed = listing.known.get(("dataset", dataset.repo_id))
    whole = (
        None if candidate.folder else candidate.repository.size,
        None if dataset.folder or listed is None else listed.size,
    )
    sizes = []
    for side, of_repository in zip((pinned.adapter, pinned.dataset), whole, strict=True):
        files = side.files if isinstance(side, PinnedRepository) else ()
        stated = [file.size for file in files]
        sizes.append(of_repository if not stated or None in stated else sum(size or 0 for size in stated))
    return None if None in sizes else sum(size or 0 for size in sizes)
