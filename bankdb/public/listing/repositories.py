"""Repositories of the hub as a listing has them: their commits, files and cards, without a request for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bankdb.errors import SourceError, printable
from bankdb.public.listing.answers import entries
from bankdb.sources.adapter_files import CONFIG_FILE
from bankdb.sources.downloads.session import HubSession
from bankdb.sources.hub import is_repository
from bankdb.sources.hub_client import (
    HubReference,
    Information,
    Kind,
    PinnedFile,
    hub_endpoint,
    repository_information,
)

# What a listing is asked to bring of each repository (`expand` of the API).
_EXPAND = ("sha", "siblings", "cardData", "tags", "gated", "usedStorage")
_COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_FILES = 10_000
"""Files of one repository that are looked at."""
_MOST_FILES_OF_ALL = 1_000_000
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ListedRepository:
    """A repository as it was listed.

    Attributes
    ----------
    repo_id
        OWNER/NAME.
    information
        Its commit, files and card.
    gated
        Whether its files are for those alone who were granted access.
    size
        Bytes of its files as far as the hub states them, else of all that it stores of the repository; None unknown.
    """

    kind: Kind
    repo_id: str
    information: Information
    gated: bool = False
    size: int | None = None

    @property
    def name(self) -> str:
        """The name without the owner's."""
        return self.repo_id.partition("/")[2]

    @property
    def base_models(self) -> tuple[str, ...]:
        """The base models that its card or its tags name."""
        stated = self.information.card.get("base_model")
        named = [stated] if isinstance(stated, str) else stated if isinstance(stated, list) else []
        tagged = [tag.rpartition(":")[2] for tag in self.information.tags if tag.startswith("base_model:")]
        return tuple(dict.fromkeys(one for one in (*named, *tagged) if isinstance(one, str) and one))

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets that its card names."""
        named = self.information.card.get("datasets")
        named = [named] if isinstance(named, str) else named if isinstance(named, list) else []
        return tuple(dict.fromkeys(one for one in named if isinstance(one, str) and one))

    def is_adapter(self) -> bool:
        """Whether it has an adapter's configuration, at its top or in a folder."""
        inside = f"/{CONFIG_FILE}"
        return any(name == CONFIG_FILE or name.endswith(inside) for name in self.information.files)


@dataclass(slots=True)
class Listing:
    """What is known of repositories; `ask` tells it, and asks the hub for others, by `session`.

    `unread` are entries that are none of the owner's repositories, as they can be shown: how many, and the first.
    """

    session: HubSession = field(default_factory=HubSession)
    known: dict[tuple[Kind, str], ListedRepository] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    unread_count: int = 0
    _asked: dict[tuple[Kind, str, str | None], Information | str] = field(default_factory=dict)

    def knows(self, kind: Kind, reference: HubReference) -> bool:
        """Whether it tells of a repository without asking the hub."""
        listed = self.known.get((kind, reference.repo_id))
        asked = (kind, reference.repo_id, reference.revision) in self._asked
        return asked or (listed is not None and reference.revision in (None, listed.information.revision))

    def ask(self, kind: Kind, reference: HubReference) -> Information:
        """Tell of a repository what was listed, if that is its revision; else ask the hub, once. Raises SourceError."""
        listed = self.known.get((kind, reference.repo_id))
        if listed is not None and reference.revision in (None, listed.information.revision):
            return listed.information
        key = (kind, reference.repo_id, reference.revision)
        if key not in self._asked:
            try:
                answer = repository_information(kind, reference, self.session)
                self._asked |= {key: answer, (kind, reference.repo_id, answer.revision): answer}
            except SourceError as error:
                self._asked[key] = str(error)
        remembered = self._asked[key]
        if isinstance(remembered, str):
            raise SourceError(remembered)
        return remembered

    def add(self, kind: Kind, owner: str) -> tuple[ListedRepository, ...]:
        """List an owner's repositories of a kind, in the order of the hub.

        Raises
        ------
        SourceError
            The listing cannot be had.
        """
        what, files = f"{kind}s of {owner}", 0
        found: dict[str, ListedRepository] = {}
        for entry in entries(f"{kind}s", {"author": owner, "expand": list(_EXPAND)}, what, self.session):
            repository = parsed(kind, entry)
            if repository is None or repository.repo_id.partition("/")[0].casefold() != owner.casefold():
                self.unread_count += 1
                if len(self.unread) < _SHOWN:
                    self.unread.append(_shown(entry))
                continue
            files += len(repository.information.files)
            if files > _MOST_FILES_OF_ALL:
                raise SourceError(
                    f"{what}: more than {_MOST_FILES_OF_ALL:,} files in all; name those that are wanted in a manifest "
                    "(.csv or .jsonl)"
                )
            found.setdefault(repository.repo_id, repository)
        self.known |= {(kind, repo_id): one for repo_id, one in found.items()}
        return tuple(found.values())

    def check_access(self, kind: Kind, repo_id: str) -> None:
        """Raise SourceError for a gated repository where there is no token: nothing is asked then."""
        from huggingface_hub import get_token

        listed = self.known.get((kind, repo_id))
        if listed is not None and listed.gated and not get_token():
            page = repo_id if kind == "model" else f"datasets/{repo_id}"
            raise SourceError(
                f"{'adapter' if kind == 'model' else 'dataset'} {repo_id}: is gated; accept its terms at "
                f"{hub_endpoint()}/{page} and set HF_TOKEN"
            )

    def of(self, kind: Kind, repo_id: str, revision: str | None = None) -> ListedRepository:
        """Return a repository, from the listing or from the hub. Raises SourceError."""
        listed = self.known.get((kind, repo_id))
        if listed is not None and revision in (None, listed.information.revision):
            return listed
        information = self.ask(kind, HubReference(repo_id, revision))
        return ListedRepository(kind, repo_id, information, size=_size(information.files.values()))


def parsed(kind: Kind, entry: Any) -> ListedRepository | None:
    """Read an entry of a listing; None for what is no repository with a commit."""
    if not isinstance(entry, dict):
        return None
    repo_id, sha, siblings = entry.get("id"), entry.get("sha"), entry.get("siblings")
    if not (isinstance(repo_id, str) and is_repository(repo_id)):
        return None
    if not (isinstance(sha, str) and _COMMIT.fullmatch(sha)) or not isinstance(siblings or [], list):
        return None
    files = dict(_files((siblings or [])[: MOST_FILES + 1]))
    tags, card = entry.get("tags"), entry.get("cardData")
    information = Information(
        sha,
        files,
        card if isinstance(card, dict) else {},
        tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        listed=True,
    )
    size = _size(files.values())
    return ListedRepository(
        kind,
        repo_id,
        information,
        bool(entry.get("gated")),
        size if size is not None else _bytes(entry.get("usedStorage")),
    )


def _files(siblings: Iterable[Any]) -> Iterable[tuple[str, PinnedFile]]:
    for one in siblings:
        name = one.get("rfilename") if isinstance(one, Mapping) else None
        if not isinstance(name, str) or not _is_path(name):
            continue
        large = one.get("lfs") if isinstance(one.get("lfs"), Mapping) else {}
        sha256 = large.get("sha256")
        size = _bytes(large.get("size", one.get("size")))
        whole = isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)
        yield name, PinnedFile(name, size, sha256 if whole else None)


def _is_path(name: str) -> bool:
    """Whether a name can be a file's path below a folder."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


def _bytes(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60
    return value if whole else None


def _size(files: Iterable[PinnedFile]) -> int | None:
    sizes = [file.size for file in files]
    return None if not sizes or None in sizes else sum(size or 0 for size in sizes)


def _shown(entry: Any) -> str:
    name = entry.get("id") if isinstance(entry, dict) else entry
    return printable(str(name))[:80]
