"""Where the hub's client keeps files, so that it finds ours and we find its.

    HF_HUB_CACHE/models--OWNER--NAME/blobs/HASH                   the content
                                    /snapshots/COMMIT/PATH        a link to it
                                    /refs/BRANCH                  the commit that a branch was at

HASH is a file's ETag: the SHA-256 of what is in large file storage, the hash that git has of other files
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bankdb.errors import SourceError

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """What a file's content is: its hash as the hub names it, 64 or 40 hexadecimal digits, and its size in bytes."""

    etag: str
    size: int | None = None

    def hasher(self, size: int) -> Any:
        """Return what is updated with the content of so many bytes, and then has `etag` as its hexadecimal digest."""
        if _SHA256.fullmatch(self.etag):
            return hashlib.sha256()
        # git: Documentation/gitformat-loose; SHA-1 is git's choice of a name, not a defence.
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the content itself, if that is what it is called by."""
        return self.etag if _SHA256.fullmatch(self.etag) else None

    def is_in(self, path: Path) -> bool:
        """Whether a file is there that has this content."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if self.size is not None and size != self.size:
                    return False
                digest = self.hasher(size)
                while piece := file.read(_PIECE):
                    digest.update(piece)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        return bool(digest.hexdigest() == self.etag)


def content_of(etag: str | None, size: int | None) -> Content | None:
    """Return what is known by an ETag and a size; None if that is no hash of content."""
    text = (etag or "").removeprefix("W/").strip('"').lower()
    return Content(text, size) if _SHA256.fullmatch(text) or _GIT.fullmatch(text) else None


@dataclass(frozen=True, slots=True)
class RepositoryCache:
    """The files of one repository in the cache."""

    folder: Path

    @classmethod
    def of(cls, kind: str, repo_id: str) -> RepositoryCache:
        """Return that of a repository, in the cache that HF_HOME and HF_HUB_CACHE name."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return cls(
            Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo_id, repo_type=kind)
        )

    def pointer(self, commit: str, path: str) -> Path:
        """Return where a file at a commit is found. Raises SourceError for a path that leads elsewhere."""
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path or not parts.parts:
            raise SourceError(
                f"{self.folder.name}: a file called {path!r}, which is no path of a repository; not read"
            )
        return self.folder / "snapshots" / commit / parts

    def blob(self, content: Content) -> Path:
        """Return where a content is kept."""
        return self.folder / "blobs" / content.etag

    def partial(self, content: Content) -> Path:
        """Return where a content is kept until it is whole; it is gone on with after a kill."""
        return self.folder / "blobs" / f"{content.etag}.lora-bank.incomplete"

    def keep(self, content: Content, data: bytes | memoryview) -> None:
        """Keep a whole content."""
        folder = os.path.join(self.folder, "blobs")
        if not os.path.isdir(folder):
            os.makedirs(folder, exist_ok=True)
        blob = os.path.join(folder, content.etag)
        aside = f"{blob}.{uuid.uuid4().hex[:8]}.incomplete"
        try:
            with open(aside, "wb") as out:
                out.write(data)
            os.replace(aside, blob)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            raise

    def linked_content(self, pointer: Path) -> Content | None:
        """Return what a link in a snapshot says that the content is; None if it is no link, or to something else."""
        try:
            return content_of(Path(os.readlink(pointer)).name, None)
        except OSError:
            return None

    def link(self, pointer: Path, content: Content) -> None:
        """Let a snapshot have a content; a copy of the link that is there already is replaced."""
        if not pointer.parent.is_dir():
            pointer.parent.mkdir(parents=True, exist_ok=True)
        depth = str(pointer).count(os.sep) - str(self.folder).count(os.sep) - 1
        target = f"{'../' * depth}blobs/{content.etag}"
        with contextlib.suppress(OSError, NotImplementedError):
            os.symlink(target, pointer)
            return
        aside = pointer.with_name(f".{uuid.uuid4().hex}.link")
        try:
            os.symlink(target, aside)
        except (
            OSError,
            NotImplementedError,
        ):  # a disk without links holds the file itself, as the client does
            os.replace(self.blob(content), pointer)
            return
        os.replace(aside, pointer)

    def note_branch(self, branch: str, commit: str) -> None:
        """Note at which commit a branch was, so that the client finds it offline."""
        file = self.folder / "refs" / branch
        if ".." in PurePosixPath(branch).parts or PurePosixPath(branch).is_absolute():
            return
        with contextlib.suppress(OSError):  # a cache that is read-only serves as well without
            if file.is_file() and file.read_text() == commit:
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.tmp")
            aside.write_text(commit)
            os.replace(aside, file)

    def free(self, pointer: Path) -> None:
        """Delete a snapshot's file, and its content unless another snapshot has it too; and folders left empty."""
        content = self.linked_content(pointer)
        with self.locked(content) if content else contextlib.nullcontext():
            pointer.unlink(missing_ok=True)
            if content and not any(self.linked_content(Path(other)) == content for other in self._pointers()):
                self.blob(content).unlink(missing_ok=True)
        for folder in pointer.parents:
            if folder == self.folder or not _removed(folder):
                break
        if not (self.folder / "snapshots").exists():  # then branches are names of nothing
            shutil.rmtree(self.folder / "refs", ignore_errors=True)
            _removed(self.folder / "blobs")
            _removed(self.folder)

    def _pointers(self) -> Iterator[str]:
        for folder, _, names in os.walk(self.folder / "snapshots"):
            yield from (os.path.join(folder, name) for name in names)

    @contextlib.contextmanager
    def locked(self, content: Content, wait: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """Hold the lock that the client holds too while it downloads this content.

        Parameters
        ----------
        wait
            Called with seconds while another process has it; may raise.
        """
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        file = self.folder.parent / ".locks" / self.folder.name / f"{content.etag}.lock"
        if not file.parent.is_dir():
            file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(WeakFileLock(file, timeout=0.1))
                    break
                except Timeout:
                    wait(0.1)
            yield


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
