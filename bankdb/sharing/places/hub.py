"""The hub as a place of shared banks and adapters, and what it says when something fails, in one line.

The client is `huggingface_hub`, with its own variables: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bankdb.errors import BankFormatError, ParameterError, PublishError, SourceError, one_line
from bankdb.progress import quiet_loggers
from bankdb.sharing.form import AGAIN
from bankdb.sharing.places.opened import file_sha256
from bankdb.sources.downloads.cache import RepositoryCache, content_of
from bankdb.sources.downloads.files import RemoteFile, download
from bankdb.sources.downloads.session import HubSession
from bankdb.sources.hub_client import HubReference, repository_information

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]
_TRIES = "what is there already is not sent again: run the same command again"


class SharedHub:
    """A shared bank in a repository of the hub, at the commit that its branch has when it is opened.

    Parameters
    ----------
    reference
        The repository, of kind dataset.
    folder
        Where files are put while they are downloaded.
    note
        Is told when the hub asks to wait.

    Raises
    ------
    SourceError
        It is not there, gated, or cannot be reached.
    """

    side_by_side = 4

    def __init__(
        self, reference: HubReference, folder: Path, note: Callable[[str], None] | None = None
    ) -> None:
        from huggingface_hub import is_offline_mode

        if is_offline_mode():
            raise SourceError(
                f"{reference.repo_id}: HF_HUB_OFFLINE is set; unset it, or pull from a folder or FILE.tar"
            )
        self.where, self._folder, self._session = reference.repo_id, folder, HubSession(note)
        found = repository_information("dataset", reference)
        self.revision, self._files = found.revision, found.files

    def has(self, path: str) -> bool:
        """Whether a file is there."""
        return path in self._files

    def paths(self) -> set[str]:
        """Return the paths of all files."""
        return set(self._files)

    def fetch(self, path: str, target: Path, most: int) -> str:
        """Download a file: see `bankdb.sharing.places.opened.Shared`."""
        if path not in self._files:
            raise BankFormatError(f"{self.where}: {path}: is missing; {AGAIN}")
        file = self._files[path]
        if file.size is None or file.size > most:
            raise BankFormatError(
                f"{self.where}: {path}: at most {most:,} bytes were expected, {file.size} found; {AGAIN}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        # A place for each: what several have in common is not taken away from one that is still to read it.
        cache = RepositoryCache(self._folder / hashlib.sha256(path.encode()).hexdigest()[:32])
        content = content_of(file.sha256 or file.git_hash, file.size)
        wanted = RemoteFile("dataset", self.where, self.revision, path, content)
        with hub_errors("dataset", self.where, downloading=True):
            found = download(wanted, self._session, endpoint(), cache)
        os.replace(os.path.realpath(found), target)
        shutil.rmtree(cache.folder)
        return file.sha256 or str(file_sha256(target))

    def close(self) -> None:
        """Give up what is still being downloaded."""
        self._session.stop()


def endpoint() -> str:
    """Return the hub's address; read here because the client reads the variable only when it is imported."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def writing_client(what: str) -> HfApi:
    """Return a client that may publish.

    Raises
    ------
    ParameterError
        There is no token, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        raise ParameterError(
            f"{what}: HF_HUB_OFFLINE is set; unset it to publish, or push to a folder or FILE.tar"
        )
    if get_token() is None:
        raise ParameterError(
            f"{what}: a token is needed to publish; make one with write access at {endpoint()}/settings/tokens and set "
            "HF_TOKEN, or run `hf auth login`"
        )
    return HfApi(endpoint=endpoint(), library_name="lora-bank")


@contextlib.contextmanager
def hub_errors(kind: Kind, repo_id: str, *, downloading: bool = False) -> Iterator[None]:
    """Turn what the client raises, often many lines, into one line: a SourceError, or of what is sent a PublishError.

    A full disk stays what it is.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # The client's HTTP library has changed between versions; this is the root of that library's errors.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (OSError, ValueError, RuntimeError, transport) as error:
        if isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
        ):
            raise
        reason = f"{kind} {repo_id}: {_explained(error, kind, repo_id, downloading)}"
        raise (SourceError if downloading else PublishError)(reason) from error


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """Keep the client from drawing bars of its own and from warning of what is told otherwise."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    kept = are_progress_bars_disabled()
    if not kept:
        disable_progress_bars()
    try:
        with quiet_loggers("huggingface_hub"):
            yield
    finally:
        if not kept:
            enable_progress_bars()


def _explained(error: Exception, kind: Kind, repo_id: str, downloading: bool) -> str:
    from huggingface_hub import errors, is_offline_mode

    for inner in (error, error.__cause__, error.__context__):
        if isinstance(inner, errors.HfHubHTTPError):
            page = repo_id if kind == "model" else f"datasets/{repo_id}"
            return _of_status(inner, page, repo_id, downloading)
    if is_offline_mode():
        return "HF_HUB_OFFLINE is set; unset it"
    reason = one_line(error.__cause__ or error)
    return f"the connection to {endpoint()} failed ({reason}); {'try again' if downloading else _TRIES}"


def _of_status(error: Exception, page: str, repo_id: str, downloading: bool) -> str:
    from huggingface_hub import errors

    status = error.response.status_code  # type: ignore[attr-defined]
    at, owner = endpoint(), repo_id.partition("/")[0]
    if isinstance(error, errors.GatedRepoError):
        return f"is gated; accept its terms at {at}/{page} and set HF_TOKEN"
    if downloading:
        return f"{at} answered with status {status}; " + (
            "set a valid HF_TOKEN" if status in (401, 403, 404) else "try again later"
        )
    advice = {
        401: "HF_TOKEN is not valid there, or the repository is not yours to see; make a token at "
        f"{at}/settings/tokens",
        403: f"the token may not write there; give it write access to {owner} at {at}/settings/tokens, or choose "
        "another OWNER",
        404: "there is no such repository, or the token may not see it",
        409: f"it was changed by another meanwhile; {_TRIES}",
        412: f"it was changed by another meanwhile; {_TRIES}",
        413: "a file is too large for it, or the storage is used up; make room there",
        429: f"it asks to wait; {_TRIES}, later",
    }.get(status, f"{_TRIES}, later")
    return f"{at} answered with status {status}: {advice}"
