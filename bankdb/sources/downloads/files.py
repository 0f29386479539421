"""One file of the hub, by one request: asked for at its commit, resumed where it broke off, held against its hash.

`hf_hub_download` asks for a file's hash before it asks for the file, two requests each, and begins a file anew after it
was killed. The answer to the second has the hash too: `X-Linked-Etag` of the hub's own answer where it sends elsewhere
for a large file (that of the other host is another hash), `ETag` where it sends the file itself.
"""

from __future__ import annotations

import errno
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

from bankdb.errors import FileSystemError, SourceError
from bankdb.sources.downloads.body import AT_ONCE, body
from bankdb.sources.downloads.cache import Content, RepositoryCache, content_of
from bankdb.sources.downloads.session import HubSession, transport_errors

_RANGE = re.compile(r"bytes (?P<start>\d{1,18})-\d+/(?P<size>\d{1,18}|\*)")
# A file of at most so many bytes is held in memory until it is whole: it needs no lock, and no place to go on from.
_SMALL = 1 << 16
# A file whose size nobody states may have so many bytes.
_LARGEST_UNSTATED = 1 << 30
# How often a file is asked for from another place in it, as no connection that breaks would have it.
_MOST_PLACES = 3
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository at a commit; `content` as far as it is known before it is asked for."""

    kind: Literal["model", "dataset"]
    repo_id: str
    commit: str
    path: str
    content: Content | None


@dataclass(slots=True)
class _Received:
    """What is on the disk of a content that is not whole: so many bytes, and the hash of those."""

    size: int = 0
    digest: Any = None


class _AskAgainError(Exception):
    """The same file has to be asked for again, from another place in it."""


class _DamagedError(SourceError):
    """Other bytes came than those that were stated."""


class _TruncatedError(SourceError):
    """Fewer bytes came than were stated, though the connection did not break."""


def is_cached(file: RemoteFile) -> bool:
    """Whether the cache has a file, whole: its content has the hash that is known, or that it is called by."""
    cache = RepositoryCache.of(file.kind, file.repo_id)
    pointer = cache.pointer(file.commit, file.path)
    if not pointer.exists():
        return False
    content = file.content or cache.linked_content(pointer)
    return content is None or content.is_in(pointer)


def download(
    file: RemoteFile, session: HubSession, endpoint: str, cache: RepositoryCache | None = None
) -> Path:
    """Have a file in the hub's cache, whole.

    Parameters
    ----------
    cache
        Another place than the hub's cache; a full disk is raised as it is then.

    Returns
    -------
    Path
        Where it is, below its commit's snapshot.

    Raises
    ------
    SourceError
        What the hub sends is not what it says that the file is, or it says nothing.
    FileSystemError
        The disk is full.
    StoppedError
        The session was stopped.
    HfHubHTTPError, or another error of the client's transport
        The hub refused, or could not be reached, also when it was asked again.
    """
    try:
        return _Download(file, session, endpoint, cache).run()
    except OSError as error:
        if error.errno not in _FULL or cache is not None:
            raise
        where = RepositoryCache.of(file.kind, file.repo_id).folder.parent
        raise FileSystemError(
            f"{where}: {os.strerror(error.errno or 0)} while {file.repo_id}/{file.path} was downloaded; free some "
            "space, have the cache elsewhere by HF_HOME, or keep no downloads by --no-cache, and run the same command "
            "again; what was stored stays"
        ) from error


class _Download:
    def __init__(
        self, file: RemoteFile, session: HubSession, endpoint: str, cache: RepositoryCache | None
    ) -> None:
        from huggingface_hub import hf_hub_url

        self._file, self._session = file, session
        self._cache = cache or RepositoryCache.of(file.kind, file.repo_id)
        self._pointer = self._cache.pointer(file.commit, file.path)
        self._content = file.content
        self._received, self._expected = _Received(), False
        self._url = hf_hub_url(
            file.repo_id, file.path, repo_type=file.kind, revision=file.commit, endpoint=endpoint
        )

    def run(self) -> Path:
        asked = broken = damaged = 0
        while True:
            before = self._received.size
            try:
                return self._try()
            except _AskAgainError:
                asked += 1
                if asked > _MOST_PLACES:
                    raise SourceError(
                        f"{self._url}: the hub sends other parts than it is asked for; try again later"
                    ) from None
            except _DamagedError:
                self._session.reads_connections = False  # should that be why
                damaged += 1
                if damaged > 1:
                    raise
            except (_TruncatedError, transport_errors()) as error:
                broken = 1 if self._received.size > before else broken + 1
                self._session.wait_after(error, broken)

    def _is_there(self, content: Content) -> bool:
        """Whether another snapshot has this content; this one is given it too."""
        if not content.is_in(self._cache.blob(content)):
            return False
        self._cache.link(self._pointer, content)
        return True

    def _try(self) -> Path:
        if self._content is not None:
            if self._is_small(self._content):
                return self._pointer if self._is_there(self._content) else self._asked(self._content)
            with self._cache.locked(self._content, self._session.wait):
                return self._pointer if self._is_there(self._content) else self._asked(self._content)
        with self._session.get(self._url, self._headers(0)) as response:
            content = stated_content(response, self._file)
            if content is None:
                raise SourceError(
                    f"{self._url}: the hub states no hash by which this file could be checked; expected the header "
                    "ETag or X-Linked-Etag, check HF_ENDPOINT"
                )
            self._content = content
            if self._is_small(content):
                return self._pointer if self._is_there(content) else self._write_small(response, content)
            with self._cache.locked(content, self._session.wait):
                if self._is_there(content):
                    return self._pointer
                if self._cache.partial(content).exists():
                    raise _AskAgainError  # it is gone on with
                return self._write(response, content)

    def _asked(self, content: Content) -> Path:
        """Ask for what is not there yet of a content; the caller holds its lock."""
        if self._is_small(content):
            self._begin_anew()
        else:
            self._resume(content)
        if self._received.size == content.size and content.size:
            return self._finish(content)
        with self._session.get(self._url, self._headers(self._received.size)) as response:
            stated = stated_content(response, self._file)
            if stated is not None and stated.etag != content.etag:
                raise SourceError(
                    f"{self._url}: the hub said that this file has the hash {content.etag[:12]}, and says "
                    f"{stated.etag[:12]} now; try again later"
                )
            if content.size is None and stated is not None:
                content = stated
            if self._is_small(content):
                return self._write_small(response, content)
            return self._write(response, content)

    def _is_small(self, content: Content) -> bool:
        return (
            content.size is not None and content.size <= _SMALL and not self._cache.partial(content).exists()
        )

    def _write_small(self, response: Any, content: Content) -> Path:
        """Receive a whole file in memory, and keep it if it is the one."""
        assert content.size is not None
        self._expect(content)
        self._begin_anew()
        if response.status_code == 416 or range_start(response):
            raise _AskAgainError
        self._received = _Received(0, content.hasher(content.size))
        whole = io.BytesIO()
        try:
            self._copy(response, whole, content)
        except (_TruncatedError, transport_errors()):
            self._leave(whole.getvalue(), content)
            raise
        if self._received.digest.hexdigest() != content.etag:
            self._begin_anew()
            raise _DamagedError(self._unlike(content, f"{content.size} others"))
        self._cache.keep(content, whole.getbuffer())
        self._cache.link(self._pointer, content)
        return self._pointer

    def _leave(self, begun: bytes, content: Content) -> None:
        """Write what came of a small file, so that it is gone on with as a large one is."""
        self._begin_anew()
        if begun:
            partial = self._cache.partial(content)
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(begun)

    def _headers(self, start: int) -> dict[str, str]:
        # Compressed on the way, a file would be of another size than is stated, and no range of it could be asked for.
        headers = {**self._session.headers(), "Accept-Encoding": "identity"}
        return headers | {"Range": f"bytes={start}-"} if start else headers

    def _resume(self, content: Content) -> None:
        """Learn what is on the disk already of a content, unless that is known."""
        if self._received.digest is not None:
            return
        try:
            with self._cache.partial(content).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if content.size is None or size > content.size:
                    return
                self._received = _Received(0, content.hasher(content.size))
                while piece := file.read(1 << 20):
                    self._received.digest.update(piece)
                    self._received.size += len(piece)
        except FileNotFoundError:
            return
        self._session.count(self._received.size)

    def _write(self, response: Any, content: Content) -> Path:
        partial = self._cache.partial(content)
        partial.parent.mkdir(parents=True, exist_ok=True)
        self._expect(content)
        begins = range_start(response)
        if response.status_code == 416 or (begins and begins != self._received.size):
            self._forget(partial)
            raise _AskAgainError
        with partial.open("r+b" if begins else "wb") as out:
            if not begins:
                self._begin_anew()
                size = content.size if content.size is not None else 0
                self._received = _Received(0, content.hasher(size))
            out.seek(self._received.size)
            out.truncate()
            self._copy(response, out, content)
        return self._finish(content)

    def _copy(self, response: Any, out: BinaryIO, content: Content) -> None:
        most = _LARGEST_UNSTATED if content.size is None else content.size
        received, held = self._received, bytearray()
        try:
            for piece in body(response, direct=self._session.reads_connections):
                if received.size + len(held) + len(piece) > most:
                    raise _DamagedError(self._unlike(content, f"more than {most} bytes"))
                if len(piece) >= AT_ONCE and not held:
                    self._keep(piece, out)
                    continue
                held += piece
                if len(held) >= AT_ONCE:
                    whole, held = held, bytearray()
                    self._keep(whole, out)
        finally:
            self._keep(held, out)
            out.flush()
        if content.size is not None and received.size < content.size:
            raise _TruncatedError(self._unlike(content, f"{received.size} bytes"))

    def _keep(self, piece: bytes | bytearray | memoryview, out: BinaryIO) -> None:
        out.write(piece)
        self._received.digest.update(piece)
        self._received.size += len(piece)
        self._session.count(len(piece))

    def _finish(self, content: Content) -> Path:
        partial, received = self._cache.partial(content), self._received
        same = received.digest.hexdigest() == content.etag
        if content.size is None:  # git's hash begins with the size
            same = Content(content.etag, received.size).is_in(partial)
        if not same:
            size = received.size
            self._forget(partial)
            raise _DamagedError(self._unlike(content, f"{size} others"))
        os.replace(partial, self._cache.blob(content))
        self._cache.link(self._pointer, content)
        return self._pointer

    def _expect(self, content: Content) -> None:
        if content.size is not None and not self._expected:
            self._expected = True
            self._session.count(expected=content.size)

    def _begin_anew(self) -> None:
        self._session.count(-self._received.size)
        self._received = _Received()

    def _forget(self, partial: Path) -> None:
        self._begin_anew()
        partial.unlink(missing_ok=True)

    def _unlike(self, content: Content, found: str) -> str:
        kind = "adapter" if self._file.kind == "model" else "dataset"
        return (
            f"{kind} {self._file.repo_id}: {self._file.path} is not the file that the hub describes "
            f"({content.size} bytes of hash {content.etag[:12]} were expected, {found} came); try again later"
        )


def stated_content(response: Any, file: RemoteFile) -> Content | None:
    """Return what an answer says that the file's content is; None if it says no hash that is one of content.

    Raises
    ------
    SourceError
        It is an answer about another commit.
    """
    asked = (response.history[0] if response.history else response).url
    for answer in (*response.history, response):
        commit = answer.headers.get("x-repo-commit")
        if commit is not None and commit != file.commit:
            raise SourceError(
                f"{file.repo_id}/{file.path}: commit {file.commit[:12]} was asked for, {commit[:12]} came; try again "
                "later"
            )
        if etag := answer.headers.get("x-linked-etag"):
            return content_of(etag, _number(answer.headers.get("x-linked-size")))
    if _origin(response.url) != _origin(asked):
        return None  # the ETag of another host is another hash
    return content_of(response.headers.get("etag"), _whole_size(response))


def range_start(response: Any) -> int:
    """Return the first byte that an answer has: 0 where it is the whole file."""
    found = _RANGE.fullmatch(response.headers.get("content-range") or "")
    return int(found["start"]) if response.status_code == 206 and found else 0


def _whole_size(response: Any) -> int | None:
    if response.headers.get("content-encoding", "identity") != "identity":
        return None
    if response.status_code == 206:
        found = _RANGE.fullmatch(response.headers.get("content-range") or "")
        return _number(found["size"]) if found else None
    return _number(response.headers.get("content-length"))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 19 else None


def _origin(url: Any) -> tuple[str, str, int | None]:
    parts = urlsplit(str(url))
    return parts.scheme, parts.hostname or "", parts.port
