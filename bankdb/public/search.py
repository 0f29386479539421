"""What an owner, a collection or a library of the hub has for a bank: adapters, their datasets, and why others are out.

One listing of models and one of datasets bring commits, files and cards of all repositories, so that no pair needs a
request of its own before its download, and an unchanged one none at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bankdb.errors import SourceError, listed
from bankdb.public.candidates import Candidate, candidates, fit, library
from bankdb.public.found import FoundPairs
from bankdb.public.gathering import MOST_OWNERS, WORTH_LISTING, Wanting, gather
from bankdb.public.known import KnownBank, bank_of_owner
from bankdb.public.libraries import dataset_parts
from bankdb.public.listing.collection import collection_items
from bankdb.public.listing.repositories import ListedRepository, Listing
from bankdb.public.matching import Datasets, Match, match
from bankdb.records import RefusedPair
from bankdb.sources.hub import parse_reference
from bankdb.sources.hub_client import Kind, hub_endpoint


@dataclass(slots=True)
class Search:
    """A search of the hub for pairs that suit a bank.

    Attributes
    ----------
    wanting
        For which bank, and which adapters.
    listing
        What is known of repositories; several searches may share it.
    """

    wanting: Wanting
    listing: Listing = field(default_factory=Listing)

    def owner(self, owner: str) -> FoundPairs:
        """Search the repositories of an owner.

        Raises
        ------
        SourceError
            The hub cannot be asked, or the owner has no adapter.
        """
        models = self.listing.add("model", owner)
        found = candidates(models)
        if not found:
            there = f"{len(models):,} model repositories, none with an adapter_config.json"
            raise SourceError(
                f"{owner}: expected adapters that PEFT has saved on {hub_endpoint()}, found "
                f"{there if models else 'no model repository'}; check the owner's name, and set HF_TOKEN if they are "
                "private"
            )
        pool = _pool(f"the datasets of {owner}", self.listing.add("dataset", owner))
        known = bank_of_owner(owner)
        if known is not None and fit((known.base_model,), self.wanting.base_models) != "fits":
            known = None
        return self._found(owner, found, _by_card_or_name(pool), known)

    def collection(self, slug: str) -> FoundPairs:
        """Search the items of a collection, OWNER/TITLE-HASH.

        Its datasets are those that adapters are matched with; of one that has none, those of the adapters' owners.

        Raises
        ------
        SourceError
            The hub cannot be asked, or the collection has no adapter.
        """
        items = collection_items(slug, self.listing.session)
        models, refused = self._repositories("model", items.models)
        found = candidates(models)
        if not found and not refused:
            raise SourceError(
                f"collection {slug}: expected adapters that PEFT has saved, found {len(items.models):,} models, none "
                "with an adapter_config.json; name another collection"
            )
        datasets, lost = self._repositories("dataset", items.datasets)
        where = f"the collection's {len(datasets):,} datasets"
        if not items.datasets:
            owners = list(dict.fromkeys(one.repo_id.partition("/")[0] for one in models))[:MOST_OWNERS]
            where = f"the datasets of {listed(owners)}"
            datasets = [one for owner in owners for one in self.listing.add("dataset", owner)]
        found_pairs = self._found(f"collection {slug}", found, _by_card_or_name(_pool(where, datasets)))
        return found_pairs.also(refused + lost)

    def repository(self, adapter: str, dataset: str = "") -> FoundPairs | None:
        """Search a repository, or a folder of one, that holds a library: an adapter a folder.

        Parameters
        ----------
        adapter
            OWNER/NAME[/FOLDER][@REVISION].
        dataset
            The repository, or a folder of one, that has a folder or a file for each adapter. Empty for the one that the
            card names, or else the datasets of the owner.

        Returns
        -------
        None where it is one adapter, or none.

        Raises
        ------
        SourceError
            A repository cannot be had.
        """
        reference = parse_reference(adapter)
        repository = self.listing.of("model", reference.repo_id, reference.revision)
        found = library(repository, reference.folder)
        if not found:
            return None
        named = repository.datasets
        if dataset or len(named) == 1:
            place = parse_reference(dataset or named[0])
            pool = Datasets.of(
                f"the folders and files of dataset {place.place}",
                dataset_parts(place, self.listing.ask("dataset", place)),
            )
        else:
            owner = reference.repo_id.partition("/")[0]
            pool = _pool(f"the datasets of {owner}", self.listing.add("dataset", owner))
        return self._found(reference.place, found, lambda one: match(one.name, (), pool))

    def _found(
        self,
        where: str,
        found: list[Candidate],
        choose: Callable[[Candidate], Match | str],
        known: KnownBank | None = None,
    ) -> FoundPairs:
        done = gather(found, choose, self.wanting, self.listing, known)
        notes = [] if known is None else [usual(known)]
        if count := self.listing.unread_count:
            notes.append(
                f"{count:,} entries of the listing are no repositories: {', '.join(self.listing.unread)}, ..."
            )
        return FoundPairs(
            where,
            len(found),
            tuple(done.pairs),
            tuple(done.refused),
            done.other_base_models,
            done.unstated,
            done.not_wanted,
            done.present,
            None if known is None else known.group_pattern,
            tuple(notes),
            self.listing,
        )

    def _repositories(
        self, kind: Kind, ids: Iterable[str]
    ) -> tuple[list[ListedRepository], list[RefusedPair]]:
        """Return repositories by name, those of one owner by a listing; and those that cannot be had."""
        ids = list(ids)
        owners = Counter(one.partition("/")[0] for one in ids)
        for owner, count in owners.most_common(MOST_OWNERS):
            if count >= WORTH_LISTING:
                self.listing.add(kind, owner)
        there: list[ListedRepository] = []
        lost: list[RefusedPair] = []
        for repo_id in ids:
            try:
                there.append(self.listing.of(kind, repo_id))
            except SourceError as error:
                lost.append(RefusedPair(repo_id.partition("/")[2], str(error)))
        return there, lost


def usual(known: KnownBank) -> str:
    """Tell what is taken as usual with a public bank."""
    called = f"pairs are called as their {known.names}s are"
    return (
        f"{known.owner} is {known.name}: adapters {known.adapters}, {called}, groups by {known.group_pattern!r}; "
        "--include and --group-pattern take others"
    )


def _pool(where: str, repositories: Iterable[ListedRepository]) -> Datasets:
    return Datasets.of(
        where, ((one.name, f"{one.repo_id}@{one.information.revision}") for one in repositories)
    )


def _by_card_or_name(pool: Datasets) -> Callable[[Candidate], Match | str]:
    return lambda one: match(one.name, one.repository.datasets, pool)
