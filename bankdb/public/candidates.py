"""Adapters that a listing has, one a repository or one a folder of a library, and whether they suit a bank."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from bankdb.errors import AdapterError
from bankdb.public.listing.repositories import ListedRepository
from bankdb.sources.adapter_files import CONFIG_FILE, adapter_below
from bankdb.sources.hub import is_repository

Fit = Literal["fits", "other", "unstated"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter of a listing.

    Attributes
    ----------
    folder
        Where in the repository it is; empty for the repository itself.
    name
        As it is called after its repository, or after its folder.
    """

    repository: ListedRepository
    folder: str
    name: str

    @property
    def place(self) -> str:
        """The repository and the folder."""
        return f"{self.repository.repo_id}/{self.folder}" if self.folder else self.repository.repo_id


def candidates(repositories: Iterable[ListedRepository]) -> list[Candidate]:
    """Return the adapters of repositories: one of each, but of a library of several one of each folder."""
    found: list[Candidate] = []
    for repository in repositories:
        if not repository.is_adapter():
            continue
        found += library(repository) or [Candidate(repository, "", repository.name)]
    return found


def library(repository: ListedRepository, folder: str = "") -> list[Candidate]:
    """Return the adapters of a repository, or of a folder of it, that has several; else none."""
    folders = _library_folders(repository.information.below(folder))
    names = folder_names(folders) if folders else {}
    return [
        Candidate(repository, f"{folder}/{below}" if folder else below, names[below]) for below in folders
    ]


def _library_folders(files: Collection[str]) -> list[str]:
    """Return the folders of the adapters of a library, sorted; none where one adapter is certainly meant."""
    if CONFIG_FILE in files:
        return []
    inside = f"/{CONFIG_FILE}"
    folders = sorted(name.removesuffix(inside) for name in files if name.endswith(inside))
    if len(folders) < 2:
        return []
    try:
        adapter_below(files, "")
    except AdapterError:
        return folders
    return []  # the checkpoints of one run


def folder_names(folders: Sequence[str]) -> dict[str, str]:
    """Call adapters as their folders are, without what all of these begin and end with."""
    parts = [folder.split("/") for folder in folders]
    first = _alike(parts)
    last = _alike([part[first:][::-1] for part in parts])
    return {
        folder: "-".join(part[first : len(part) - last] or part)
        for folder, part in zip(folders, parts, strict=True)
    }


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """Return how many items all sequences begin with."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*parts, strict=False)))


def fit(stated: Sequence[str], base_models: Sequence[str]) -> Fit:
    """Whether a card that names base models names the bank's; a path of somebody's machine says nothing.

    Parameters
    ----------
    stated
        What the card and the tags name.
    base_models
        The bank's own, and its aliases.
    """
    from bankdb.peft.weights import is_base_model

    if any(is_base_model(one, base_models) for one in stated):
        return "fits"
    return "other" if any(is_repository(one) for one in stated) else "unstated"
