"""PostgreSQL behind a bank: transactions, locks between clients on any machine, a server that goes away.

A database holds one bank, so that the numbers of its advisory locks are fixed (they are counted by
database). See "Explicit Locking" and "System Administration Functions" in PostgreSQL's documentation.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DBAPIError

from bankdb.catalog.locks import LockName
from bankdb.catalog.url import shown_database
from bankdb.errors import BankError, BankFormatError, ConflictError, DatabaseUnavailableError, one_line

if TYPE_CHECKING:
    import psycopg

LOCK_SECONDS = 120.0

_LOCK_SPACE = 0x6C6F7261  # "lora"
_WRITE_LOCK = 1
_LOCK_NUMBERS: dict[LockName, int] = {"ingest": 2, "compute": 3}

# What the client asks of the network, where the URL does not: a server that vanished is noticed.
_CONNECT = {
    "connect_timeout": 15,
    "keepalives_idle": 60,
    "keepalives_interval": 10,
    "keepalives_count": 6,
    "client_encoding": "utf8",
}
# What a connection asks of the server: durable commits, as SQLite's are, and that a client whose machine
# vanished is noticed, since its locks live as long as its connection.
_SESSION = {
    "synchronous_commit": "on",
    "tcp_keepalives_idle": "60",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "6",
}
# Classes of SQLSTATE that mean that the server is not there, or not for us.
_AWAY = ("08", "28", "3D", "53300", "57P")
_ADVICE = {
    "55P03": f"another client held the lock for {LOCK_SECONDS:.0f} s; try again",
    "53100": "free some space on the server and run the same command again",
    "25006": "the server is read-only; connect to the primary",
    "42501": "the user may not do this; connect as the owner of the bank's tables, or grant it",
    "42P01": "a table is missing; restore the database from a copy",
    "42703": "a column is missing; restore the database from a copy",
    "XX001": "the database is damaged; restore it from a copy",
    "XX002": "the database is damaged; restore it from a copy",
}


class PostgresqlBackend:
    """A database on a server. See `bankdb.catalog.backend.Backend`.

    Raises
    ------
    DatabaseUnavailableError
        The driver is not installed. Whether the server is there shows with the first connection.
    """

    read_only = False
    folder = Path()

    def __init__(self, url: URL) -> None:
        self.shown = shown_database(url)
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise DatabaseUnavailableError(
                f"{self.shown}: the driver psycopg is not installed ({one_line(error)}): "
                "pip install 'psycopg[binary]>=3.2'"
            ) from error
        arguments: dict[str, Any] = {key: value for key, value in _CONNECT.items() if key not in url.query}
        arguments["fallback_application_name"] = f"lora-bank {os.getpid()}"  # what pg_stat_activity shows
        # A connection that was idle while the server restarted is replaced before it is used.
        self.engine = create_engine(url, connect_args=arguments, pool_pre_ping=True)
        parameters = self.engine.dialect.create_connect_args(url)[1]
        self._locks = AdvisoryLocks({**parameters, **arguments}, self._explain)
        self._listen()

    def _listen(self) -> None:
        @event.listens_for(self.engine, "connect")
        def _on_connect(connection: psycopg.Connection[Any], _record: Any) -> None:
            connection.autocommit = True  # in a transaction, a rollback would take the settings back
            _configure(connection, LOCK_SECONDS)
            connection.autocommit = False

        @event.listens_for(self.engine, "begin")
        def _on_begin(connection: Connection) -> None:
            if connection.get_execution_options().get("bank_write", False):
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_SPACE}, {_WRITE_LOCK})")
                # After the transaction began: a server that restarts from here on ends it too.
                try:
                    self._locks.check()
                except BankError:
                    connection.invalidate()  # it may be lost too, and then cannot be rolled back
                    raise

    def options(self, write: bool) -> dict[str, Any]:
        """Return the execution options of a transaction.

        A writer waits for its lock first and must then see what was committed meanwhile: each of its
        statements sees the newest. A reader sees one state.
        """
        level = "READ COMMITTED" if write else "REPEATABLE READ"
        return {"bank_write": write, "isolation_level": level}

    def check_new(self, connection: Connection) -> None:
        """Raise ConflictError unless the database can hold any text."""
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise ConflictError(
                f"{self.shown}: expected a database with encoding UTF8, found {encoding}; "
                "make one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            )

    def check_unchanged(self) -> None:
        """A reader sees one state."""

    def copy_to(self, path: Path) -> None:
        """Never asked: see `read_only`."""
        raise NotImplementedError

    def keep_copy(self, revision: str | None) -> None:
        """Nothing: the server does what changes tables in one transaction too."""

    def explain(self, error: DBAPIError) -> BankError:
        """Return the error that says in one line what happened and what to do."""
        return self._explain(error.orig or error, error.connection_invalidated)

    def _explain(self, error: BaseException, gone: bool = False) -> BankError:
        import psycopg

        state = getattr(error, "sqlstate", None)
        first = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        reason = one_line(first or error) or type(error).__name__
        lost = state is None and isinstance(error, psycopg.OperationalError)
        if gone or lost or (state or "").startswith(_AWAY):
            return DatabaseUnavailableError(
                f"{self.shown}: the database cannot be reached ({reason}): check the server, the URL and the "
                "password (PGPASSWORD or ~/.pgpass); what was done is kept, the same command goes on from there"
            )
        return BankFormatError(
            f"{self.shown}: {reason}: {_ADVICE.get(state or '', 'see --debug for the statement')}"
        )

    def integrity_problems(self, connection: Connection) -> list[str]:
        """Nothing: the server holds its constraints at all times, and checks pages as it reads them."""
        return []

    def locks(self, folder: Path) -> AdvisoryLocks:
        """Return locks that the server keeps, so that they hold between machines."""
        return self._locks


class AdvisoryLocks:
    """Locks that the server keeps, each on a connection of its own: it frees them however a client dies.

    Parameters
    ----------
    parameters
        How the server is reached, in psycopg's words.
    explain
        Turns an error of the driver into a `BankError`.
    """

    def __init__(self, parameters: dict[str, Any], explain: Callable[[BaseException], BankError]) -> None:
        self._parameters = parameters
        self._explain = explain
        self._held: dict[int, psycopg.Connection[Any]] = {}
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def shared(self, name: LockName) -> Iterator[None]:
        """Hold a lock together with other sharers; waits while somebody holds it alone."""
        with self._connected() as connection:
            self._ask(connection, "pg_advisory_lock_shared", name)
            yield

    @contextlib.contextmanager
    def try_exclusive(self, name: LockName) -> Iterator[bool]:
        """Hold a lock alone if nobody else holds it; yields whether it does."""
        with self._connected() as connection:
            yield bool(self._ask(connection, "pg_try_advisory_lock", name))

    @contextlib.contextmanager
    def exclusive(self, name: LockName, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold a lock alone; calls `waiting` once if another client has to finish first."""
        with self._connected() as connection:
            if not self._ask(connection, "pg_try_advisory_lock", name):
                waiting()
                self._ask(connection, "pg_advisory_lock", name)
            yield

    def check(self) -> None:
        """Raise DatabaseUnavailableError if a lock is no longer held, since its connection was lost."""
        with self._guard:
            held = list(self._held.values())
        for connection in held:
            self._execute(connection, "SELECT 1")

    def _ask(self, connection: psycopg.Connection[Any], function: str, name: LockName) -> Any:
        number = _LOCK_NUMBERS[name]
        row = self._execute(connection, f"SELECT {function}({_LOCK_SPACE}, {number})").fetchone()
        with self._guard:
            self._held[id(connection)] = connection
        return None if row is None else row[0]

    def _execute(self, connection: psycopg.Connection[Any], statement: str) -> psycopg.Cursor[Any]:
        import psycopg

        try:
            return connection.execute(statement.encode())
        except psycopg.Error as error:
            raise self._explain(error) from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        import psycopg

        try:
            connection = psycopg.connect(**self._parameters, autocommit=True)
            _configure(connection, 0)
        except psycopg.Error as error:
            raise self._explain(error) from error
        try:
            yield connection
        finally:
            with self._guard:
                self._held.pop(id(connection), None)
            # After a close alone, the server would free the lock a moment later than the next may ask for it;
            # a connection that is lost holds none.
            with contextlib.suppress(psycopg.Error), connection:
                connection.execute("SELECT pg_advisory_unlock_all()")


def _configure(connection: psycopg.Connection[Any], lock_seconds: float) -> None:
    settings = _SESSION | {"lock_timeout": str(int(lock_seconds * 1000))}
    connection.execute("; ".join(f"SET {name} = {value}" for name, value in settings.items()).encode())
