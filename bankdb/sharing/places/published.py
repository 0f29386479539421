"""Where a bank is written to: a folder, a tar, a repository of the hub. Each is called whole by its last file alone."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bankdb.arrays.durable import fsync_path, write_file
from bankdb.errors import ConflictError, FileSystemError
from bankdb.sharing.form import ABOUT, CARD, SUMS
from bankdb.sharing.places.hub import SharedHub, hub_errors, writing_client
from bankdb.sharing.places.opened import Shared, SharedFolder, SharedTar, file_sha256
from bankdb.sharing.places.place import Place

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

# Bytes and files that are sent together, and files of a commit: the hub takes some hundred of these well.
_OF_DISKS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR), "check the path and its permissions"
    ),
}
_SENT_TOGETHER, _FILES_TOGETHER, _FILES_OF_A_COMMIT = 64 << 20, 60, 300


class Target(Protocol):
    """A place to write a shared bank to."""

    made: str
    """What is said of the place when it was made."""

    def there(self) -> tuple[Shared | None, set[str]]:
        """Return what is there: opened, if it is a whole shared bank, and the paths of its files.

        Raises
        ------
        ConflictError
            Something else is there.
        """

    def put(self, files: Mapping[str, bytes]) -> int:
        """Write files by path; return how many of them were not there already, byte for byte, where that is known."""

    def finish(self, files: Mapping[str, bytes], gone: set[str]) -> None:
        """Write the last files, take away others, and call it whole."""

    def abandon(self) -> None:
        """Leave it as it is: what is there is not sent again by the same command."""


class TargetFolder:
    """A folder, new or with a shared bank."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.made = folder, ""

    def there(self) -> tuple[Shared | None, set[str]]:
        """Return what is there: see `Target`."""
        if not os.path.lexists(self._folder):
            return None, set()
        if not self._folder.is_dir():
            raise ConflictError(
                f"{self._folder}: a folder was expected, something else found; choose another name"
            )
        paths = {
            path.relative_to(self._folder).as_posix()
            for path in self._folder.rglob("*")
            if path.is_file() or path.is_symlink()
        }
        _check_ours(paths, str(self._folder))
        return (SharedFolder(self._folder) if SUMS in paths else None), paths

    def put(self, files: Mapping[str, bytes]) -> int:
        """Write files: see `Target`."""
        new = 0
        for path, data in files.items():
            target = self._folder / path
            if target.is_file() and file_sha256(target) == hashlib.sha256(data).hexdigest():
                continue
            with contextlib.suppress(FileNotFoundError):
                (self._folder / SUMS).unlink()  # not whole until the end
            with naming_disk(target):
                write_file(target, data)
            new += 1
        return new

    def finish(self, files: Mapping[str, bytes], gone: set[str]) -> None:
        """Write the last files: see `Target`."""
        last = dict(files)
        sums = last.pop(SUMS)
        self.put(last)
        for path in gone:
            (self._folder / path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (self._folder / path).parent.rmdir()
        self.put({SUMS: sums})

    def abandon(self) -> None:
        """Leave it: files that are whole stay."""


class TargetTar:
    """A new tar, which appears whole. Of the same bank it has the same bytes, wherever it is made."""

    def __init__(self, path: Path) -> None:
        self._path, self.made = path, ""
        self._partial = path.with_name(f".{path.name}.partial")
        self._tar: tarfile.TarFile | None = None

    def there(self) -> tuple[Shared | None, set[str]]:
        """Return what is there: see `Target`."""
        if not os.path.lexists(self._path):
            return None, set()
        if not self._path.is_file():
            raise ConflictError(
                f"{self._path}: a file was expected, something else found; choose another name"
            )
        return SharedTar(self._path), set()

    def put(self, files: Mapping[str, bytes]) -> int:
        """Write files: see `Target`."""
        with naming_disk(self._partial):
            if self._tar is None:
                self._partial.parent.mkdir(parents=True, exist_ok=True)
                self._tar = tarfile.open(self._partial, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            for path, data in files.items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(data), 0o644
                self._tar.addfile(member, io.BytesIO(data))
        return len(files)

    def finish(self, files: Mapping[str, bytes], gone: set[str]) -> None:
        """Write the last files: see `Target`."""
        self.put(files)
        assert self._tar is not None
        with naming_disk(self._partial):
            self._tar.close()
            fsync_path(self._partial)
            self._partial.replace(self._path)
            fsync_path(self._path.absolute().parent)

    def abandon(self) -> None:
        """Delete what was written: half of a tar is of no use."""
        if self._tar is not None:
            with contextlib.suppress(OSError):
                self._tar.close()
            self._partial.unlink(missing_ok=True)


class TargetHub:
    """A repository of the hub, made where there is none. Files are sent some at a time, and appear in a few commits."""

    def __init__(self, place: Place, folder: Path, public: bool) -> None:
        assert place.reference is not None
        if place.reference.revision is not None:
            raise ConflictError(
                f"{place}: a bank is pushed to the main branch; leave out @{place.reference.revision}"
            )
        self._reference, self._repo_id = place.reference, place.reference.repo_id
        self._folder, self._public, self.made = folder, public, ""
        self._api = writing_client(self._repo_id)
        self._begun = False
        self._waiting: list[CommitOperationAdd] = []
        self._sent: list[CommitOperationAdd] = []

    def there(self) -> tuple[Shared | None, set[str]]:
        """Return what is there: see `Target`; the repository is made."""
        with hub_errors("dataset", self._repo_id):
            known = self._api.repo_exists(self._repo_id, repo_type="dataset")
            if not known:
                self._api.create_repo(
                    self._repo_id, repo_type="dataset", exist_ok=True, private=not self._public
                )
                kind = "public" if self._public else "private"
                self.made = f"made the {kind} repository {self._repo_id}"
        found = SharedHub(self._reference, self._folder)
        paths = found.paths()
        _check_ours(paths, self._repo_id)
        return (found if SUMS in paths else None), paths

    def put(self, files: Mapping[str, bytes]) -> int:
        """Send files: see `Target`. The hub itself knows which it has."""
        from huggingface_hub import CommitOperationAdd

        self._waiting += [CommitOperationAdd(path, data) for path, data in files.items()]
        size = sum(one.upload_info.size for one in self._waiting)
        # The first at once: a token that is refused is known before all is made.
        if not self._begun or size >= _SENT_TOGETHER or len(self._waiting) >= _FILES_TOGETHER:
            self._send()
        if len(self._sent) >= _FILES_OF_A_COMMIT:
            self._commit([])
        return len(files)

    def _send(self) -> None:
        with hub_errors("dataset", self._repo_id):
            self._api.preupload_lfs_files(self._repo_id, self._waiting, repo_type="dataset")
        self._begun = True
        self._sent += self._waiting
        self._waiting = []

    def _commit(self, gone: list[CommitOperationDelete]) -> None:
        if self._waiting:
            self._send()
        if not self._sent and not gone:
            return
        with hub_errors("dataset", self._repo_id):
            self._api.create_commit(
                self._repo_id,
                [*self._sent, *gone],
                commit_message="A bank of LoRA adapters, by bank push",
                repo_type="dataset",
            )
        self._sent = []

    def finish(self, files: Mapping[str, bytes], gone: set[str]) -> None:
        """Send the last files: see `Target`."""
        from huggingface_hub import CommitOperationDelete

        self.put(files)
        self._commit([CommitOperationDelete(path) for path in sorted(gone)])

    def abandon(self) -> None:
        """Leave it: what the hub has it keeps."""


def _check_ours(paths: set[str], where: str) -> None:
    strange = sorted(path for path in paths if path not in (".gitattributes", CARD))
    if strange and ABOUT not in paths:
        raise ConflictError(f"{where}: holds {strange[0]!r} and no shared bank; choose another place")


@contextlib.contextmanager
def naming_disk(path: Path) -> Iterator[None]:
    """Turn what a disk says that is full, or not to be written, into one line.

    Raises
    ------
    FileSystemError
        It said so.
    """
    try:
        yield
    except OSError as error:
        advice = _OF_DISKS.get(error.errno or 0)
        if advice is None:
            raise
        raise FileSystemError(
            f"{error.filename or path}: cannot be written ({error.strerror}); {advice}, and run the same command again"
        ) from error


def target_of(place: Place, folder: Path, public: bool) -> Target:
    """Return the place to write to.

    Parameters
    ----------
    folder
        Where files of the hub are put while they are downloaded.
    """
    if place.kind == "hub":
        return TargetHub(place, folder, public)
    return TargetTar(place.path) if place.kind == "tar" else TargetFolder(place.path)
