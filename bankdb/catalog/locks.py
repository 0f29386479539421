"""Advisory locks between processes on one bank, freed however a process dies.

`FileLocks` are the kernel's, for a bank whose database is a file. A database server keeps its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from bankdb.errors import FileSystemError, PlatformError

try:
    import fcntl
except ImportError as error:
    raise PlatformError(
        f"lora-bank runs on Linux and macOS, found {sys.platform}, which has no file locks of their kind (fcntl); "
        "on Windows, use it in WSL"
    ) from error

LockName = Literal["ingest", "compute"]

# What a call gives for a lock that the file system does not keep; others are of the disk.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_ADVICE = (
    "keep the bank's folder on a local disk, where its arrays may go elsewhere (bank init --arrays FOLDER), or its "
    "catalogue in PostgreSQL (bank init --database URL)"
)


class BankLocks(Protocol):
    """The locks between the clients of one bank."""

    def shared(self, name: LockName) -> AbstractContextManager[None]:
        """Hold a lock together with other sharers; waits while somebody holds it alone."""

    def try_exclusive(self, name: LockName) -> AbstractContextManager[bool]:
        """Hold a lock alone if nobody else holds it; yields whether it does."""

    def exclusive(self, name: LockName, waiting: Callable[[], None]) -> AbstractContextManager[None]:
        """Hold a lock alone; calls `waiting` once if another client has to finish first."""


class FileLocks:
    """A file for each lock, in the bank's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def shared(self, name: LockName) -> AbstractContextManager[None]:
        """Hold a lock together with other sharers; waits while somebody holds it alone."""
        return shared_lock(self._file(name))

    def try_exclusive(self, name: LockName) -> AbstractContextManager[bool]:
        """Hold a lock alone if nobody else holds it; yields whether it does."""
        return try_exclusive_lock(self._file(name))

    def exclusive(self, name: LockName, waiting: Callable[[], None]) -> AbstractContextManager[None]:
        """Hold a lock alone; calls `waiting` once if another process has to finish first."""
        return exclusive_lock(self._file(name), waiting)

    def _file(self, name: LockName) -> Path:
        return self._folder / f".{name}.lock"


@contextlib.contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold `path` together with other sharers; waits while somebody holds it alone."""
    with _open(path) as descriptor:
        _flock(path, descriptor, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def try_exclusive_lock(path: Path) -> Iterator[bool]:
    """Hold `path` alone if nobody else holds it; yields whether it does."""
    with _open(path) as descriptor:
        yield _flock(path, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def exclusive_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold `path` alone; calls `waiting` once if another process has to finish first.

    Raises
    ------
    FileSystemError
        The file may not be written, or its file system keeps no such locks.
    """
    with _open(path) as descriptor:
        if not _flock(path, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            waiting()
            _flock(path, descriptor, fcntl.LOCK_EX)
        yield


def _flock(path: Path, descriptor: int, operation: int) -> bool:
    """Lock, and return whether it did; it does not where another has the lock and it was not to wait."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise FileSystemError(
                f"{path}: cannot be locked (flock: {error.strerror}): the file system it is on keeps no such locks, "
                f"as some network disks do not; {_ADVICE}"
            ) from error
        raise
    return True


def check_byte_locks(folder: Path) -> None:
    """Raise FileSystemError if the folder's file system does not keep the locks that SQLite needs.

    SQLite would say that another process holds the lock, after minutes. Nothing stays locked; a folder where no lock
    was taken yet is not looked at.
    """
    path = folder / ".ingest.lock"
    if not path.is_file():
        return
    with _open(path) as descriptor:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(descriptor, fcntl.LOCK_UN)
        except (BlockingIOError, PermissionError):
            pass  # another process asks just now
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise FileSystemError(
                    f"{folder}: SQLite cannot lock its database (fcntl: {error.strerror}): the file system it is on "
                    f"keeps no locks of parts of files, as some network disks do not; {_ADVICE}"
                ) from error
            raise


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS} and path.exists():
            raise FileSystemError(
                f"{path}: cannot be opened to lock the bank ({error.strerror}): it is read-only here; make the folder "
                "and its files writable, or use a copy of the bank"
            ) from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)
