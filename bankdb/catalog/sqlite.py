"""SQLite behind a bank: one file, write-ahead log, writers one after the other.

Who may not write the file, or its folder, reads it as it is: SQLite makes no files for that, and no locks.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from bankdb.arrays.durable import fsync_path
from bankdb.catalog.locks import FileLocks, check_byte_locks
from bankdb.errors import BankError, BankFormatError, BankNotFoundError, FileSystemError, one_line

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
        self._path = Path(self.shown)
        self.folder = self._path.parent
        if not create:
            _check_file(self._path)
        self.read_only = not create and not _writable(self._path)
        self._unchanging = _state(self._path) if self.read_only and not _has_log(self._path) else None
        if self.read_only:
            url = _reading_url(self._path, immutable=self._unchanging is not None)
        else:
            check_byte_locks(self._path.parent)
        self.engine = _engine(url, self.read_only)

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
            "attempt to write a readonly database": "the folder or file is read-only; make it writable, or use "
            "a copy of the bank",
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

    def check_unchanged(self) -> None:
        """Raise BankFormatError if a file that is read without locks was written since it was opened."""
        if self._unchanging is not None and _state(self._path) != self._unchanging:
            raise BankFormatError(
                f"{self.shown}: was changed by its owner while it was read; run the same command again"
            )

    def copy_to(self, path: Path) -> None:
        """Write a copy of the database as it is now."""
        source: Any = self.engine.raw_connection()
        with contextlib.closing(source), contextlib.closing(sqlite3.connect(path)) as target:
            source.driver_connection.backup(target)

    def keep_copy(self, revision: str | None) -> Path:
        """Write a copy beside the file, whole after a crash, called after its schema and the time; return its path."""
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
        copy = self.folder / f"{self._path.stem}.schema-{revision or 'none'}.{moment}{self._path.suffix}"
        unfinished = copy.with_name(f".{copy.name}.partial")
        try:
            for left in self.folder.glob(f".{self._path.stem}.schema-*.partial"):
                left.unlink()  # by an upgrade that was killed: two do not run at once
            # As readable as the database is, from its first byte.
            os.close(
                os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, self._path.stat().st_mode & 0o777)
            )
            with (
                contextlib.closing(sqlite3.connect(self._path)) as source,
                contextlib.closing(sqlite3.connect(unfinished)) as target,
            ):
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")
            fsync_path(unfinished)
            unfinished.replace(copy)
            fsync_path(self.folder)
        except (OSError, sqlite3.Error) as error:
            unfinished.unlink(missing_ok=True)
            raise FileSystemError(
                f"{copy}: the copy that is kept before the schema is upgraded cannot be written ({one_line(error)}), "
                "so nothing was changed: see that there is room for it, and run the same command again"
            ) from error
        return copy

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


def _writable(path: Path) -> bool:
    effective = os.access in os.supports_effective_ids
    return all(os.access(one, os.W_OK, effective_ids=effective) for one in (path, path.parent))


def _has_log(path: Path) -> bool:
    """Whether there is a write-ahead log with something in it, of a client that runs or was killed."""
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def _state(path: Path) -> tuple[int, int, bool]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, _has_log(path)


def _reading_url(path: Path, *, immutable: bool) -> URL:
    """Of a file that is only read; without a log also without locks, for which SQLite would have to make files."""
    options = {"mode": "ro", "uri": "true"} | ({"immutable": "1"} if immutable else {})
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=options)


def _engine(url: URL, read_only: bool) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: it would begin them DEFERRED.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        write = connection.get_execution_options().get("bank_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
