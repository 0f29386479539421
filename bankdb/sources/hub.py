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

from bankdb.datasets.splits import choose_training_files, is_data_file
from bankdb.errors import SourceError, listed
from bankdb.records import HUB_PREFIX, Pair, PairReference, is_hub_reference
from bankdb.sources.adapter_files import CONFIG_FILE, WEIGHTS_FILE, adapter_below, local_adapter, notes_of
from bankdb.sources.downloads.cache import RepositoryCache
from bankdb.sources.downloads.held import HeldFiles
from bankdb.sources.downloads.session import HubSession
from bankdb.sources.hub_client import (
    CARD_FILE,
    Ask,
    HubReference,
    Information,
    PinnedRepository,
    asked_once,
    downloaded,
    repository_information,
)
from bankdb.sources.pairs import both_sides, check_name, local_dataset, name_key

_Files = TypeVar("_Files")
_ID_PART = r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(f"{_ID_PART}/{_ID_PART}")
_LONGEST_FOLDER = 500


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
    """Parse `hub:OWNER/NAME[/FOLDER][@REVISION]`; the prefix may be left out.

    Raises
    ------
    SourceError
        When it is not of this form.
    """
    place, at, revision = text.removeprefix(HUB_PREFIX).partition("@")
    owner, _, rest = place.partition("/")
    name, slash, folder = rest.partition("/")
    if (
        not is_repository(f"{owner}/{name}")
        or (slash and not _is_folder(folder))
        or (at and not re.fullmatch(r"[!-~]+", revision))
    ):
        raise SourceError(
            f"{ascii(text)[1:-1]!r} is no hub reference; expected OWNER/NAME or OWNER/NAME@REVISION, "
            "as in the address of the repository's page, or OWNER/NAME/FOLDER for what lies in a folder of it"
        )
    return HubReference(f"{owner}/{name}", revision or None, folder)


def is_repository(text: str) -> bool:
    """Whether a text can be the name of a repository on the hub, OWNER/NAME."""
    return _REPOSITORY.fullmatch(text) is not None and ".." not in text and "--" not in text


def _is_folder(text: str) -> bool:
    parts = text.split("/")
    return (
        len(text) <= _LONGEST_FOLDER
        and text.isprintable()
        and "\\" not in text
        and all(part.strip() and part not in (".", "..") for part in parts)
    )


def references_from_arguments(arguments: Sequence[str]) -> list[PairReference]:
    """Pairs named on the command line as `ADAPTER[@REVISION][=DATASET[@REVISION]]`.

    Without a dataset (then `PairReference.dataset` is empty) it is the one that the adapter's model card
    names. A pair is called as its adapter's repository is, without the owner, or as its adapter's folder is.

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
        name = adapter.place.rpartition("/")[2]
        check_name(name)
        if (key := name_key(name)) in owners:
            raise SourceError(
                f"{owners[key]} and {adapter.place} would both be called {name!r}; "
                "give them names of your own in a manifest (.csv or .jsonl)"
            )
        owners[key] = adapter.place
        references.append(PairReference(name, str(adapter), dataset))
    return references


def pin(reference: PairReference, ask: Ask = repository_information) -> PinnedPair:
    """Find the commit and the files of each side; nothing is downloaded.

    Parameters
    ----------
    reference
        The pair.
    ask
        What tells of a repository. The hub does in one small request; a listing that holds it does in none.

    Raises
    ------
    SourceError
        When a repository or revision cannot be had, or the model card names no single dataset.
    AdapterError, DatasetError
        When a side has not the files that are read; weights as pickle only are refused here.
    """
    ask, text = asked_once(ask), reference.dataset
    if not text and is_hub_reference(reference.adapter):
        hub_adapter = parse_reference(reference.adapter)
        text = _dataset_of_card(hub_adapter, ask("model", hub_adapter))
    adapter, dataset = both_sides(
        lambda: _adapter_side(reference.adapter, ask), lambda: _dataset_side(text, ask)
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


def _adapter_side(text: str, ask: Ask) -> _Side[PinnedRepository | Path]:
    if not is_hub_reference(text):
        found = local_adapter(text)
        return _Side(found.path, str(found.path), notes=found.notes)
    reference = parse_reference(text)
    information = ask("model", reference)
    files = information.below(reference.folder)
    below = adapter_below(files, f"adapter {reference.place}")
    pinned = _pinned_adapter(reference, information, below)
    source, notes = f"{HUB_PREFIX}{reference.place}", notes_of(below, files)
    return _Side(pinned, source, pinned.revision, _licence(information), notes)


def _dataset_side(text: str, ask: Ask) -> _Side[PinnedRepository | tuple[Path, ...]]:
    if not is_hub_reference(text):
        return _Side(local_dataset(text), os.path.abspath(text))
    reference = parse_reference(text)
    pinned = _pinned_dataset(reference, ask("dataset", reference))
    return _Side(pinned, f"{HUB_PREFIX}{reference.place}", pinned.revision)


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
    adapter, dataset, weights = pinned.adapter, pinned.dataset, None
    if isinstance(adapter, PinnedRepository):
        # All files of an adapter repository that are read lie in one folder.
        folder = downloaded(adapter, session, held, pinned.name)[0].parent
        weights = _weights_sha256(adapter, folder)
        adapter = folder
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
        weights_sha256=weights,
    )


def _weights_sha256(adapter: PinnedRepository, folder: Path) -> str | None:
    """Hash of the weights, which they were held against a moment ago; None where they were not held against one.

    A listing states none: then it is what the answer to the download stated, by which the cache calls the file.
    """
    stated = next((file.sha256 for file in adapter.files if file.path.endswith(WEIGHTS_FILE)), None)
    if stated is not None:
        return stated
    content = RepositoryCache.of(adapter.kind, adapter.repo_id).linked_content(folder / WEIGHTS_FILE)
    return None if content is None else content.sha256


def fetch_configuration(
    pinned: PinnedPair, session: HubSession | None = None, held: HeldFiles | None = None
) -> Path:
    """Download the adapter's configuration alone, which is small; return its folder. Raises as `fetch` does."""
    adapter = pinned.adapter
    if isinstance(adapter, PinnedRepository):
        adapter = downloaded(replace(adapter, files=adapter.files[:1]), session, held, pinned.name)[0].parent
    return adapter


def _pinned_adapter(reference: HubReference, information: Information, below: str) -> PinnedRepository:
    folder = "/".join(part for part in (reference.folder, below) if part)
    places = [f"{folder}/{name}" if folder else name for name in (CONFIG_FILE, WEIGHTS_FILE)]
    # The card's file is for whoever asks again offline; what it says is known already.
    card = () if information.listed else (CARD_FILE,)
    wanted = [name for name in (*places, *card) if name in information.files]
    files = tuple(information.files[name] for name in wanted)
    return PinnedRepository(
        "model", reference.repo_id, information.revision, files, _branch(reference, information)
    )


def _pinned_dataset(reference: HubReference, information: Information) -> PinnedRepository:
    names = dataset_files(reference, information)
    files = tuple(information.files[name] for name in names)
    return PinnedRepository(
        "dataset", reference.repo_id, information.revision, files, _branch(reference, information)
    )


def _branch(reference: HubReference, information: Information) -> str | None:
    return None if reference.revision == information.revision else reference.revision or "main"


def dataset_files(reference: HubReference, information: Information) -> tuple[str, ...]:
    """Return the paths of a dataset's training files: of a repository, of a folder of it, or one file of it.

    Raises
    ------
    DatasetError
        There is no single, whole training split.
    """
    if reference.folder in information.files and is_data_file(reference.folder):
        return (reference.folder,)
    inside = information.below(reference.folder)
    names = choose_training_files(inside, f"dataset {reference.place}")
    return tuple(inside[name].path for name in names)


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
