"""What `database.py` asks of a kind of database; `sqlite.py` and `postgresql.py` answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from bankdb.catalog.locks import BankLocks
from bankdb.errors import BankError


class Backend(Protocol):
    """A kind of database.

    Attributes
    ----------
    shown
        How messages name the database; without a password.
    engine
        Its engine; a connection that begins with the execution option `bank_write` waits until no other
        has begun so and not ended yet, and sees all that was committed before.
    folder
        Where locks in files are, if it has such.
    read_only
        Whether this process may not write it.
    """

    shown: str
    folder: Path
    engine: Engine
    read_only: bool

    def options(self, write: bool) -> dict[str, Any]:
        """Return the execution options of a transaction."""

    def check_new(self, connection: Connection) -> None:
        """Raise ConflictError if no bank can be made in this database, whatever it holds."""

    def explain(self, error: DBAPIError) -> BankError:
        """Return the error that says in one line what happened and what to do."""

    def check_unchanged(self) -> None:
        """Raise BankFormatError if what was read may not be of one state."""

    def copy_to(self, path: Path) -> None:
        """Write a copy as a file of SQLite's; asked of a read-only database alone."""

    def keep_copy(self, revision: str | None) -> Path | None:
        """Keep a copy beside a file, as it was last committed, and return its path; None for a server's database.

        Raises
        ------
        FileSystemError
            It cannot be written.
        """

    def integrity_problems(self, connection: Connection) -> list[str]:
        """Return what the database itself reports as damaged."""

    def locks(self, folder: Path) -> BankLocks:
        """Return the locks between the clients of the bank in `folder`."""
