"""Talks to the Hugging Face hub through `huggingface_hub`: what is in a repository, and its files.

Whatever goes wrong becomes one line that says what to do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote, urlsplit

from bankdb.errors import SourceError, one_line
from bankdb.records import HUB_PREFIX
from bankdb.sources.downloads.cache import RepositoryCache, content_of
from bankdb.sources.downloads.files import RemoteFile, download, is_cached
from bankdb.sources.downloads.held import HeldFiles
from bankdb.sources.downloads.session import HubSession

Kind = Literal["model", "dataset"]

CARD_FILE = "README.md"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _NotAHubsError(Exception):
    """An answer that no hub gives."""


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the hub, or what lies in a folder of it.

    Attributes
    ----------
    repo_id
        OWNER/NAME.
    revision
        A branch, tag or commit, or None for its main branch.
    folder
        A path within it, without slashes at its ends; empty for the repository itself.
    """

    repo_id: str
    revision: str | None = None
    folder: str = ""

    @property
    def place(self) -> str:
        """The repository and the folder, as they are recorded and shown."""
        return f"{self.repo_id}/{self.folder}" if self.folder else self.repo_id

    def __str__(self) -> str:
        """The reference as it stands in a manifest."""
        return f"{HUB_PREFIX}{self.text}"

    @property
    def text(self) -> str:
        """The same without the prefix."""
        return self.place + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A file of a repository at one commit; size (bytes) and hash as far as the hub states them.

    `sha256` is that of a file in large file storage; `git_hash` the one that git has of another, 40 digits.
    """

    path: str
    size: int | None = None
    sha256: str | None = None
    git_hash: str | None = None


@dataclass(frozen=True, slots=True)
class PinnedRepository:
    """A repository at one commit, with those of its files that are to be downloaded.

    `branch` is by which branch or tag it was found, if by one.
    """

    kind: Kind
    repo_id: str
    revision: str
    files: tuple[PinnedFile, ...]
    branch: str | None = None


@dataclass(frozen=True, slots=True)
class Information:
    """What the hub, or its cache when offline, says of a repository at one commit.

    `listed` says that it comes with a listing of many, of which nobody needs the card's file.
    """

    revision: str
    files: dict[str, PinnedFile]
    card: dict[str, Any]
    tags: tuple[str, ...]
    listed: bool = False

    def below(self, folder: str) -> dict[str, PinnedFile]:
        """Return the files of a folder by their paths within it; those of the repository for no folder."""
        if not folder:
            return self.files
        inside = f"{folder}/"
        return {
            name.removeprefix(inside): file for name, file in self.files.items() if name.startswith(inside)
        }


Ask: TypeAlias = Callable[[Kind, HubReference], Information]
"""What tells of a repository at a revision: the hub, or a listing of it. Raises SourceError."""


def hub_endpoint() -> str:
    """Address of the hub; read here because the client reads the variable only when it is imported."""
    from huggingface_hub import constants

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        well_formed = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        well_formed = False
    if not well_formed:
        raise SourceError(f"HF_ENDPOINT is {endpoint!r}; expected an address such as https://huggingface.co")
    return endpoint


def repository_information(
    kind: Kind, reference: HubReference, session: HubSession | None = None
) -> Information:
    """Ask for the commit, the files and the card of a repository, in one request.

    Raises
    ------
    SourceError
        When there is no answer, or none that can be used.
    """
    from huggingface_hub import is_offline_mode

    with _hub_errors(kind, reference.repo_id, reference.revision):
        if is_offline_mode():
            return _cached_information(kind, reference)
        return _asked_information(kind, reference, session or HubSession())


def asked_once(ask: Ask) -> Ask:
    """Return what asks for each repository at a revision once, also where that was an error."""
    answers: dict[tuple[Kind, str, str | None], Information | SourceError] = {}

    def remembered(kind: Kind, reference: HubReference) -> Information:
        key = (kind, reference.repo_id, reference.revision)
        if key not in answers:
            try:
                answers[key] = ask(kind, reference)
            except SourceError as error:
                answers[key] = error
        answer = answers[key]
        if isinstance(answer, SourceError):
            raise SourceError(str(answer)) from answer
        return answer

    return remembered


def _asked_information(kind: Kind, reference: HubReference, session: HubSession) -> Information:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    endpoint = hub_endpoint()
    try:
        # HfApi.repo_info asks the same, but gives up at once when the hub says that it is busy.
        answer = session.json(
            f"{endpoint}/api/{kind}s/{reference.repo_id}/revision/{quote(reference.revision or 'main', safe='')}",
            build_hf_headers(),
            {"blobs": True},
        )
        return _parsed_information(answer)
    except (json.JSONDecodeError, UnicodeDecodeError, _NotAHubsError) as error:
        raise SourceError(
            f"{endpoint}: its answer is not a hub's; check HF_ENDPOINT and the network's proxy"
        ) from error


def _parsed_information(answer: Any) -> Information:
    try:
        return _information(answer)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _NotAHubsError from error


def _information(answer: Any) -> Information:
    files = {}
    for file in answer["siblings"]:
        large = file.get("lfs") or {}
        size = large.get("size", file.get("size"))
        files[file["rfilename"]] = PinnedFile(
            file["rfilename"], size, large.get("sha256"), None if large else file.get("blobId")
        )
    if not _COMMIT.fullmatch(answer["sha"]):
        raise ValueError(f"{answer['sha']!r} is no commit")
    return Information(
        answer["sha"], files, dict(answer.get("cardData") or {}), tuple(answer.get("tags") or ())
    )


def _cached_information(kind: Kind, reference: HubReference) -> Information:
    """What the local cache holds of a repository: the way of HF_HUB_OFFLINE."""
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import metadata_load, snapshot_download

    found = snapshot_download(
        reference.repo_id, repo_type=kind, revision=reference.revision, local_files_only=True
    )
    folder = Path(found)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    card: dict[str, Any] = {}
    if CARD_FILE in names:
        try:
            card = metadata_load(folder / CARD_FILE) or {}
        except (ValueError, yaml.YAMLError) as error:
            raise SourceError(
                f"{folder / CARD_FILE}: front matter that is not read: {one_line(error)}"
            ) from error
    return Information(folder.name, {name: PinnedFile(name) for name in names}, card, ())


def downloaded(
    repository: PinnedRepository,
    session: HubSession | None = None,
    held: HeldFiles | None = None,
    user: str = "",
) -> tuple[Path, ...]:
    """Local paths of a repository's files, in the hub's cache; downloaded if they are not there yet.

    Parameters
    ----------
    session, held, user
        What the requests of one command share; what pairs use, and which pair this is for.

    Raises
    ------
    SourceError
        When a file cannot be downloaded, or is not what the hub says it is.
    FileSystemError
        When the disk is full.
    """
    session, held = session or HubSession(), held or HeldFiles(free=False)
    with _hub_errors(repository.kind, repository.repo_id, repository.revision):
        found = tuple(_download(repository, file, session, held, user) for file in repository.files)
        if repository.branch is not None:
            cache = RepositoryCache.of(repository.kind, repository.repo_id)
            cache.note_branch(repository.branch, repository.revision)
    return found


def _download(
    repository: PinnedRepository, file: PinnedFile, session: HubSession, held: HeldFiles, user: str
) -> Path:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError

    content = content_of(file.sha256 or file.git_hash, file.size)
    wanted = RemoteFile(repository.kind, repository.repo_id, repository.revision, file.path, content)
    cache = RepositoryCache.of(repository.kind, repository.repo_id)
    pointer = cache.pointer(repository.revision, file.path)
    held.hold(user, pointer, cache)
    if is_cached(wanted):
        return pointer
    if is_offline_mode():
        raise LocalEntryNotFoundError(f"{pointer} is not there, or damaged")
    there = os.path.lexists(pointer)
    download(wanted, session, hub_endpoint())
    if not there:
        held.downloaded(pointer)
    return pointer


@contextmanager
def _hub_errors(kind: Kind, repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises, often many lines, into one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    # The client's HTTP library has changed between versions; this is the root of that library's errors.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    what = f"{'adapter' if kind == 'model' else 'dataset'} {repo_id}"
    page = repo_id if kind == "model" else f"datasets/{repo_id}"
    try:
        yield
    # RuntimeError comes from the client's own download engine.
    except (OSError, ValueError, RuntimeError, transport) as error:
        raise SourceError(f"{what}: {_explained(error, page, revision)}") from error


def _explained(error: Exception, page: str, revision: str | None) -> str:
    from huggingface_hub import errors, is_offline_mode

    endpoint = hub_endpoint()
    match error:
        case errors.GatedRepoError():
            return f"is gated; accept its terms at {endpoint}/{page} and set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return (
                f"has no revision {revision or 'main'!r} on {endpoint}; check its branches, tags and commits"
            )
        case errors.RepositoryNotFoundError():
            return f"not found on {endpoint}; check OWNER/NAME, and set HF_TOKEN if it is private"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            hint = "set a valid HF_TOKEN" if status in (401, 403) else "try again later"
            return f"{endpoint} answered with status {status}; {hint}"
        case _ if is_offline_mode():
            return (
                f"HF_HUB_OFFLINE is set and revision {revision or 'main'!r} is not whole in the cache; unset it, "
                "or name a commit that was downloaded before as OWNER/NAME@COMMIT"
            )
        case errors.LocalEntryNotFoundError():
            return (
                f"cannot be downloaded from {endpoint}: {one_line(error.__cause__ or error)}; try again later"
            )
        case OSError() | ValueError() | RuntimeError():
            return f"download failed: {one_line(error)}; try again"
        case _:
            reason = f"{type(error).__name__}: {one_line(error)}"
            return f"cannot reach {endpoint} ({reason}); check the network and HF_ENDPOINT"
