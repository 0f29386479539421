"""The upgrade of a bank's schema: not while others use the old one, said, and with a copy of a file before it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from bankdb.catalog.migrations.apply import HEAD
from bankdb.errors import ConflictError

if TYPE_CHECKING:
    from bankdb.catalog.backend import Backend
    from bankdb.catalog.locks import LockName

_LOCKS: dict[LockName, str] = {"ingest": "stores adapters", "compute": "computes"}


def holds_bank(connection: Connection) -> bool:
    """Whether a database with the table of banks has a bank in it; a killed `init` may have left none."""
    return connection.execute(text("SELECT 1 FROM bank")).first() is not None


def begin_upgrade(
    backend: Backend, revision: str | None, held: contextlib.ExitStack, told: Callable[[str], None]
) -> None:
    """Have nobody else write, keep a copy where the database is a file, and say what is about to be done.

    The caller holds the database's write lock, upgrades, and ends `held` after its transaction: until then no other
    client, of this version or of an older one, begins to write rows. The copy goes again if the upgrade fails, which
    leaves the database as it was.

    Raises
    ------
    ConflictError
        Another client writes.
    FileSystemError
        There is no room for the copy, or it cannot be written.
    """
    locks = backend.locks(backend.folder)
    for name, what in _LOCKS.items():
        if not held.enter_context(locks.try_exclusive(name)):
            raise ConflictError(
                f"{backend.shown}: its schema {revision} has to become {HEAD}, and another process {what} in this "
                "bank now: run the same command again when that has ended"
            )
    copy = backend.keep_copy(revision)
    if copy is not None:
        held.push(_deleted_on_error(copy))
    safe = "in one transaction" if copy is None else f"as it was it is kept in {copy}"
    told(f"{backend.shown}: schema {revision} becomes {HEAD}, which older versions do not read; {safe}")


def _deleted_on_error(
    copy: Path,
) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    def delete(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            copy.unlink(missing_ok=True)

    return delete
