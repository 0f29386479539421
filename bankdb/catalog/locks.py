"""Advisory locks between processes on one bank, freed however a process dies.

`FileLocks` are the kernel's, for a bank whose database is a file. A database server keeps its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from bankdb.errors import PlatformError

try:
    import fcntl
except ImportError as error:
    raise PlatformError(
        f"lora-bank runs on Linux and macOS, found {sys.platform}, which has no file locks of their kind (fcntl); "
        "on Windows, use it in WSL"
    ) from error

LockName = Literal["ingest", "compute"]


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
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def try_exclusive_lock(path: Path) -> Iterator[bool]:
    """Hold `path` alone if nobody else holds it; yields whether it does."""
    with _open(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def exclusive_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold `path` alone; calls `waiting` once if another process has to finish first."""
    with _open(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
