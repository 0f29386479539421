"""Pairs whose adapter or dataset is on the Hugging Face hub, pinned to a commit before anything is downloaded.

`huggingface_hub` does the downloading, with its own cache and progress, and honours its environment
variables: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from bankdb.datasets.splits import choose_training_files
from bankdb.errors import SourceError, listed
from bankdb.records import HUB_PREFIX, Pair, PairReference, is_hub_reference
from bankdb.sources.adapter_files import CONFIG_FILE, WEIGHTS_FILE, adapter_below, local_adapter, notes_of
from bankdb.sources.downloads.held import HeldFiles
from bankdb.sources.downloads.session import HubSession
from bankdb.sources.hub_client import (
    CARD_FILE,
    HubReference,
    Information,
    PinnedRepository,
    downloaded,
    repository_information,
)
from bankdb.sources.pairs import both_sides, check_name, local_dataset, name_key

_Files = TypeVar("_Files")
_ID_PART = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(f"{_ID_PART}/{_ID_PART}")


@dataclass(frozen=True, slots=True)
class PinnedPair:
    """A pair with every hub side pinned to a full commit hash; nothing is downloaded yet.

    `adapter` and `dataset` are local paths where that side is local; sources and revisions are what
    `records.Pair` will carry, so that a pair already in a bank is known before any download.
    """

    name: str
    adapter: PinnedRepository | Path
    dataset: PinnedRepository | tuple[Path, ...]
    adapter_source: str
    dataset_source: str
    adapter_revision: str | None
    dataset_revision: str | None
    group: str | None
    licence: str | None
    notes: tuple[str, ...] = ()


def parse_reference(text: str) -> HubReference:
    """Parse `hub:OWNER/NAME[@REVISION]`; the prefix may be left out.

    Raises
    ------
    SourceError
        When it is not of this form.
    """
    repo_id, at, revision = text.removeprefix(HUB_PREFIX).partition("@")
    well_formed = _REPOSITORY.fullmatch(repo_id) and ".." not in repo_id and "--" not in repo_id
    if not well_formed or (at and not re.fullmatch(r"[!-~]+", revision)):
        raise SourceError(
            f"{ascii(text)[1:-1]!r} is no hub reference; expected OWNER/NAME or OWNER/NAME@REVISION, "
            "as in the address of the repository's page"
        )
    return HubReference(repo_id, revision or None)


def references_from_arguments(arguments: Sequence[str]) -> list[PairReference]:
    """Pairs named on the command line as `ADAPTER[@REVISION][=DATASET[@REVISION]]`.

    Without a dataset (then `PairReference.dataset` is empty) it is the one that the adapter's model card
    names. A pair is called as its adapter's repository is, without the owner.

    Raises
    ------
    SourceError
        When an argument is not of this form, or two adapters would have one name.
    """
    references: list[PairReference] = []
    owners: dict[str, str] = {}
    for argument in arguments:
        first, equals, second = argument.partition("=")
        adapter = parse_reference(first)
        dataset = str(parse_reference(second)) if equals else ""
        name = adapter.repo_id.partition("/")[2]
        check_name(name)
        if (key := name_key(name)) in owners:
            raise SourceError(
                f"{owners[key]} and {adapter.repo_id} would both be called {name!r}; "
                "give them names of your own in a manifest (.csv or .jsonl)"
            )
        owners[key] = adapter.repo_id
        references.append(PairReference(name, str(adapter), dataset))
    return references


def pin(reference: PairReference, session: HubSession | None = None) -> PinnedPair:
    """Ask the hub for the commit of each side, one small request each; nothing is downloaded.

    Raises
    ------
    SourceError
        When a repository or revision cannot be had, or the model card names no single dataset.
    AdapterError, DatasetError
        When a side has not the files that are read; weights as pickle only are refused here.
    """
    information, text = None, reference.dataset
    if not text and is_hub_reference(reference.adapter):
        hub_adapter = parse_reference(reference.adapter)
        information = repository_information("model", hub_adapter)
        text = _dataset_of_card(hub_adapter, information)
    adapter, dataset = both_sides(
        lambda: _adapter_side(reference.adapter, information), lambda: _dataset_side(text)
    )
    return PinnedPair(
        name=reference.name,
        adapter=adapter.files,
        dataset=dataset.files,
        adapter_source=adapter.source,
        dataset_source=dataset.source,
        adapter_revision=adapter.revision,
        dataset_revision=dataset.revision,
        group=reference.group,
        licence=reference.licence or adapter.licence,
        notes=adapter.notes,
    )


@dataclass(frozen=True, slots=True)
class _Side(Generic[_Files]):
    files: _Files
    source: str
    revision: str | None = None
    licence: str | None = None
    notes: tuple[str, ...] = ()


def _adapter_side(text: str, information: Information | None) -> _Side[PinnedRepository | Path]:
    if not is_hub_reference(text):
        found = local_adapter(text)
        return _Side(found.path, str(found.path), notes=found.notes)
    reference = parse_reference(text)
    information = information or repository_information("model", reference)
    below = adapter_below(information.files, f"adapter {reference.repo_id}")
    pinned = _pinned_adapter(reference, information, below)
    source, notes = f"{HUB_PREFIX}{reference.repo_id}", notes_of(below, information.files)
    return _Side(pinned, source, pinned.revision, _licence(information), notes)


def _dataset_side(text: str) -> _Side[PinnedRepository | tuple[Path, ...]]:
    if not is_hub_reference(text):
        return _Side(local_dataset(text), os.path.abspath(text))
    reference = parse_reference(text)
    pinned = _pinned_dataset(reference)
    return _Side(pinned, f"{HUB_PREFIX}{reference.repo_id}", pinned.revision)


def fetch(pinned: PinnedPair, session: HubSession | None = None, held: HeldFiles | None = None) -> Pair:
    """Download what of a pinned pair is not in the hub's cache yet, at the pinned commits.

    Parameters
    ----------
    pinned
        The pair.
    session, held
        What the requests of one command share, and the files that its pairs use.

    Raises
    ------
    SourceError
        When a file cannot be downloaded, or is not what the hub says it is.
    FileSystemError
        When the disk is full.
    """
    adapter, dataset = pinned.adapter, pinned.dataset
    if isinstance(adapter, PinnedRepository):
        # All files of an adapter repository that are read lie in one folder.
        adapter = downloaded(adapter, session, held, pinned.name)[0].parent
    if isinstance(dataset, PinnedRepository):
        dataset = downloaded(dataset, session, held, pinned.name)
    return Pair(
        name=pinned.name,
        adapter=adapter,
        dataset=dataset,
        adapter_source=pinned.adapter_source,
        dataset_source=pinned.dataset_source,
        adapter_revision=pinned.adapter_revision,
        dataset_revision=pinned.dataset_revision,
        group=pinned.group,
        licence=pinned.licence,
        notes=pinned.notes,
    )


def fetch_configuration(
    pinned: PinnedPair, session: HubSession | None = None, held: HeldFiles | None = None
) -> Path:
    """Download the adapter's configuration alone, which is small; return its folder. Raises as `fetch` does."""
    adapter = pinned.adapter
    if isinstance(adapter, PinnedRepository):
        adapter = downloaded(replace(adapter, files=adapter.files[:1]), session, held, pinned.name)[0].parent
    return adapter


def _pinned_adapter(reference: HubReference, information: Information, below: str) -> PinnedRepository:
    places = [f"{below}/{name}" if below else name for name in (CONFIG_FILE, WEIGHTS_FILE)]
    wanted = [name for name in (*places, CARD_FILE) if name in information.files]
    files = tuple(information.files[name] for name in wanted)
    return PinnedRepository(
        "model", reference.repo_id, information.revision, files, _branch(reference, information)
    )


def _pinned_dataset(reference: HubReference) -> PinnedRepository:
    information = repository_information("dataset", reference)
    names = choose_training_files(information.files, f"dataset {reference.repo_id}")
    files = tuple(information.files[name] for name in names)
    return PinnedRepository(
        "dataset", reference.repo_id, information.revision, files, _branch(reference, information)
    )


def _branch(reference: HubReference, information: Information) -> str | None:
    return None if reference.revision == information.revision else reference.revision or "main"


def _licence(information: Information) -> str | None:
    """The licence that the model card states, or else the hub's own tag."""
    stated = information.card.get("license")
    if stated == "other" and isinstance(information.card.get("license_name"), str):
        stated = information.card["license_name"]
    if isinstance(stated, list):
        stated = ", ".join(str(part) for part in stated)
    if isinstance(stated, str) and stated:
        return stated
    tagged = [tag.removeprefix("license:") for tag in information.tags if tag.startswith("license:")]
    return ", ".join(tagged) or None


def _dataset_of_card(reference: HubReference, information: Information) -> str:
    named = information.card.get("datasets") or []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or len(named) != 1:
        found = listed([ascii(name) for name in named]) if isinstance(named, list) and named else "none"
        raise SourceError(
            f"adapter {reference.repo_id}: its model card should name one dataset, found {found}; "
            f"name the dataset: {reference.repo_id}=OWNER/DATASET"
        )
    return str(parse_reference(str(named[0])))
