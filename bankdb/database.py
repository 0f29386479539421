"""Connections and transactions: the only module that knows which database is behind a bank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from bankdb.errors import BankError, BankFormatError, BankNotFoundError
from bankdb.messages import one_line
from bankdb.migrations.apply import HEAD, current_revision, upgrade

_BUSY_SECONDS = 120.0


def now() -> str:
    """Return the time as ISO 8601 text in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Database:
    """An engine, and sessions whose commit and rollback are in one place.

    Parameters
    ----------
    url
        SQLAlchemy URL; `sqlite:///PATH` by default for a bank on disk.
    create
        Make the tables when they are not there yet.

    Raises
    ------
    BankNotFoundError
        There is no such database, and `create` is false.
    BankFormatError
        The file is not a bank's database, or was written by a newer version.
    """

    def __init__(self, url: str | URL, *, create: bool = False) -> None:
        address = make_url(url)
        self._sqlite = address.get_backend_name() == "sqlite"
        self._shown = str(address.database) if self._sqlite else address.render_as_string(hide_password=True)
        if self._sqlite:
            self._check_file(Path(address.database or ""), create)
        self._engine = _engine(address, self._sqlite)
        try:
            with self.read() as session:
                revision = current_revision(session.connection())
            if revision != HEAD:
                with self.write() as session:
                    self._migrate(session, create)
        except BaseException:
            self.close()
            raise

    def _check_file(self, path: Path, create: bool) -> None:
        if create:
            return
        if not path.is_file():
            raise BankNotFoundError(f"{path}: no bank here; make one with `bank init`, or pass --bank PATH")
        with path.open("rb") as file:
            head = file.read(16)
        if not head:
            raise BankNotFoundError(
                f"{path}: empty; an interrupted `bank init` is finished by running it again"
            )
        if head != b"SQLite format 3\0":
            raise BankFormatError(
                f"{path}: expected a SQLite database, found {head!r}: the file is damaged or not a bank's"
            )

    def _migrate(self, session: Session, create: bool) -> None:
        connection = session.connection()
        revision = current_revision(connection)
        if revision == HEAD:
            return
        if revision is None and not create:
            raise BankNotFoundError(f"{self._shown}: the database holds no bank; make one with `bank init`")
        if revision is not None and revision > HEAD:
            raise BankFormatError(
                f"{self._shown}: schema revision {revision}, but this version knows up to {HEAD}: "
                "upgrade lora-bank"
            )
        upgrade(connection)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session for reading; nothing that it did is kept."""
        with self._session({}) as session:
            yield session
            session.rollback()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session that holds the write lock from its start; committed at the end, or rolled back."""
        with self._session({"bank_write": True}) as session:
            yield session
            session.commit()

    @contextmanager
    def _session(self, options: dict[str, Any]) -> Iterator[Session]:
        session = Session(self._engine, expire_on_commit=False)
        try:
            session.connection(execution_options=options)
            yield session
        except DBAPIError as error:
            raise self._explain(error) from error
        except UnicodeDecodeError as error:
            raise BankFormatError(
                f"{self._shown}: text in it is not UTF-8: the file is damaged; restore it from a copy"
            ) from error
        finally:
            session.close()  # rolls back what was not committed

    def _explain(self, error: DBAPIError) -> BankError:
        reason = one_line(error.orig) or type(error).__name__
        advice = {
            "database is locked": f"another process held the lock for {_BUSY_SECONDS:.0f} s; try again",
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
        return BankFormatError(f"{self._shown}: {reason}: {hint}")

    def integrity_problems(self) -> list[str]:
        """Return what the database itself reports as damaged; empty when it is whole."""
        if not self._sqlite:
            return []
        with self.read() as session:
            connection = session.connection()
            found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
            orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
        problems = [line for line in found if line != "ok"]
        return problems + [f"foreign key of {row[0]} row {row[1]} points nowhere" for row in orphans]

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()


def _engine(url: URL, sqlite: bool) -> Engine:
    if not sqlite:
        return create_engine(url)
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: it would begin them DEFERRED.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        write = connection.get_execution_options().get("bank_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
