"""SQLite behind a bank: one file, write-ahead log, writers one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from bankdb.catalog.locks import FileLocks
from bankdb.errors import BankError, BankFormatError, BankNotFoundError, one_line

BUSY_SECONDS = 120.0


class SqliteBackend:
    """A file. See `bankdb.catalog.backend.Backend`.

    Raises
    ------
    BankNotFoundError
        There is no such file, or it is empty, and `create` is false.
    BankFormatError
        The file is no SQLite database.
    """

    def __init__(self, url: URL, *, create: bool) -> None:
        self.shown = str(url.database)
        if not create:
            _check_file(Path(self.shown))
        self.engine = _engine(url)

    def options(self, write: bool) -> dict[str, Any]:
        """Return the execution options of a transaction."""
        return {"bank_write": write}

    def check_new(self, connection: Connection) -> None:
        """Any file will do."""

    def explain(self, error: DBAPIError) -> BankError:
        """Return the error that says in one line what happened and what to do."""
        reason = one_line(error.orig) or type(error).__name__
        advice = {
            "database is locked": f"another process held the lock for {BUSY_SECONDS:.0f} s; try again",
            "attempt to write a readonly database": "the folder or file is read-only; make it writable",
            "unable to open database file": "the folder is missing, or may not be read or written",
            "database or disk is full": "free some space and run the same command again",
            "disk I/O error": "the disk reported an error; check its space and health",
            "malformed": "the file is damaged; restore it from a copy",
            "Could not decode": "the file is damaged; restore it from a copy",
            "no such column": "the file is damaged; restore it from a copy",
            "file is not a database": "the file is damaged or not a bank's; restore it from a copy",
        }
        hint = next((text for key, text in advice.items() if key in reason), "see --debug for the statement")
        return BankFormatError(f"{self.shown}: {reason}: {hint}")

    def integrity_problems(self, connection: Connection) -> list[str]:
        """Return what the database itself reports as damaged."""
        found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
        orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        problems = [line for line in found if line != "ok"]
        return problems + [f"foreign key of {row[0]} row {row[1]} points nowhere" for row in orphans]

    def locks(self, folder: Path) -> FileLocks:
        """Return locks on files in the bank's folder."""
        return FileLocks(folder)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise BankNotFoundError(f"{path}: no bank here; make one with `bank init`, or pass --bank PATH")
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise BankNotFoundError(f"{path}: empty; an interrupted `bank init` is finished by running it again")
    if head != b"SQLite format 3\0":
        raise BankFormatError(
            f"{path}: expected a SQLite database, found {head!r}: the file is damaged or not a bank's"
        )


def _engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: it would begin them DEFERRED.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        write = connection.get_execution_options().get("bank_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
