"""Connections and transactions; what differs between kinds of databases is in `sqlite` and `postgresql`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, ColumnElement, Connection, UnaryExpression, func, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, MultipleResultsFound
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import FlushError, StaleDataError
from sqlalchemy.sql.operators import custom_op

from bankdb.catalog.backend import Backend
from bankdb.catalog.locks import BankLocks
from bankdb.catalog.migrations.announced import begin_upgrade, holds_bank
from bankdb.catalog.migrations.apply import HEAD, current_revision, upgrade
from bankdb.catalog.schema import (
    DAMAGED,
    SHOWN,
    Base,
    GenerationRow,
    PieceRow,
    PredictionRow,
    RunRow,
    Sealed,
    damage_of,
)
from bankdb.errors import BankFormatError, BankNotFoundError, ConflictError, listed, one_line

_COMPUTED = (RunRow, PieceRow, PredictionRow, GenerationRow)
# Records that are in memory at once while all are looked at.
_AT_ONCE = 500
_log = logging.getLogger(__name__)
_Record = TypeVar("_Record", bound=Base)


class Database:
    """An engine, and sessions whose commit and rollback are in one place.

    Parameters
    ----------
    url
        SQLAlchemy URL: `sqlite:///PATH`, or `postgresql+psycopg://USER@HOST/DATABASE`.
    create
        Make the tables when they are not there yet.
    told
        Is given the line that says that a bank's schema is upgraded; a logger's warning if not given.

    Raises
    ------
    BankNotFoundError
        There is no such database, or it holds no bank, and `create` is false.
    ConflictError
        No bank can be made there: the database holds something else. Or it is of an older schema, and another process
        writes.
    BankFormatError
        The database is not a bank's, or was written by a newer version.
    DatabaseUnavailableError
        Its server cannot be reached.
    FileSystemError
        It is of an older schema, and the copy that is kept of it cannot be written.
    """

    def __init__(
        self, url: str | URL, *, create: bool = False, told: Callable[[str], None] | None = None
    ) -> None:
        self._backend = _backend(make_url(url), create)
        self.shown = self._backend.shown
        self.read_only = self._backend.read_only
        try:
            with self.read() as session:
                revision = current_revision(session.connection())
            if revision != HEAD and self.read_only:
                raise BankFormatError(
                    f"{self.shown}: schema revision {revision}, this version needs {HEAD}, and the bank may only be "
                    "read here; run `bank list` once where it may be written, which brings it to that, or copy it"
                )
            if revision != HEAD:
                # Others are kept out until the transaction has ended.
                with ExitStack() as held, self.write() as session:
                    self._migrate(session, create, held, told or _log.warning)
        except BaseException:
            self.close()
            raise

    def _migrate(self, session: Session, create: bool, held: ExitStack, told: Callable[[str], None]) -> None:
        connection = session.connection()
        revision = current_revision(connection)
        if revision == HEAD:
            return
        # Another program's tables, and its revision if it keeps one, are left alone.
        tables = sorted(inspect(connection).get_table_names())
        if "bank" not in tables:
            if not create:
                raise BankNotFoundError(
                    f"{self.shown}: the database holds no bank; make one with `bank init`"
                )
            _check_new(self._backend, connection, tables)
        elif revision is not None and revision > HEAD:
            raise BankFormatError(
                f"{self.shown}: schema revision {revision}, but this version knows up to {HEAD}: "
                "upgrade lora-bank"
            )
        elif holds_bank(connection):
            begin_upgrade(self._backend, revision, held, told)
        upgrade(connection)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session for reading; nothing that it did is kept."""
        with self._session(write=False) as session:
            yield session
            session.rollback()
            self._backend.check_unchanged()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session that holds the write lock from its start; committed at the end, or rolled back."""
        with self._session(write=True) as session:
            yield session
            session.commit()

    @contextmanager
    def _session(self, *, write: bool) -> Iterator[Session]:
        session = Session(self._backend.engine, expire_on_commit=False, info={SHOWN: self.shown})
        try:
            session.connection(execution_options=self._backend.options(write))
            yield session
        except DBAPIError as error:
            raise self._backend.explain(error) from error
        except (MultipleResultsFound, StaleDataError, FlushError) as error:
            raise BankFormatError(
                f"{self.shown}: its records contradict each other ({one_line(error)}): the file is damaged; restore it "
                "from a copy"
            ) from error
        except UnicodeDecodeError as error:
            raise BankFormatError(
                f"{self.shown}: text in it is not UTF-8: the file is damaged; restore it from a copy"
            ) from error
        finally:
            session.close()  # rolls back what was not committed

    def integrity_problems(self) -> list[str]:
        """Return what the database itself reports as damaged, and its records' checksums; empty when it is whole."""
        with self.read() as session:
            problems = [
                f"{problem}; restore it from a copy"
                for problem in self._backend.integrity_problems(session.connection())
            ]
            return problems + [damage_of(row) for row in self._damaged(session)] + self._without_key(session)

    def drop_damaged(self) -> list[str]:
        """Delete damaged records of what was computed; return what was deleted."""
        with self.write() as session:
            damaged = [row for row in self._damaged(session) if isinstance(row, _COMPUTED)]
            for row in damaged:
                session.delete(row)
            return [damage_of(row).partition(":")[0] for row in damaged]

    def _damaged(self, session: Session) -> list[Sealed]:
        """Load every record; return those that do not match their checksums."""
        session.info[DAMAGED] = damaged = list[Sealed]()
        for model in Sealed.__subclasses__():
            for _ in session.scalars(select(model).execution_options(yield_per=_AT_ONCE)):
                pass
        return damaged

    def _without_key(self, session: Session) -> list[str]:
        """Return the tables with a record whose primary key reads NULL, in the words of a message."""
        lost = []
        for model in Base.__subclasses__():
            for table in model.__subclasses__() or [model]:
                keys = [column.is_(None) for column in inspect(table).primary_key]
                if session.scalar(select(func.count()).select_from(table).where(*keys)):
                    lost.append(_lost_key(table))
        return lost

    def copy_to(self, path: Path) -> None:
        """Write a read-only database as a file of SQLite's that may be written."""
        self._backend.copy_to(path)

    def locks(self, folder: Path) -> BankLocks:
        """Return the locks between the clients of the bank in `folder`."""
        return self._backend.locks(folder)

    def close(self) -> None:
        """Give every connection back."""
        self._backend.engine.dispose()


def identity_in(url: URL) -> str | None:
    """Return the identity of the bank that a database holds, None for a database in which one can be made.

    Nothing is made or changed there, and the schema may be any version's.

    Raises
    ------
    ConflictError
        It holds something else.
    DatabaseUnavailableError, BankFormatError
        It cannot be reached, or not be read.
    """
    backend = _backend(url, create=True)
    try:
        with backend.engine.connect().execution_options(**backend.options(False)) as connection:
            tables = sorted(inspect(connection).get_table_names())
            if "bank" not in tables:
                _check_new(backend, connection, tables)
                return None
            identity = connection.scalar(text("SELECT identity FROM bank"))
            return None if identity is None else str(identity)
    except DBAPIError as error:
        raise backend.explain(error) from error
    finally:
        backend.engine.dispose()


def _check_new(backend: Backend, connection: Connection, tables: Sequence[str]) -> None:
    """Raise ConflictError unless a bank can be made in a database that has these tables."""
    if tables:
        raise ConflictError(
            f"{backend.shown}: expected an empty database, found the tables {listed(tables)}; "
            "make a database for the bank alone"
        )
    backend.check_new(connection)


def _backend(url: URL, create: bool) -> Backend:
    if url.get_backend_name() == "sqlite":
        from bankdb.catalog.sqlite import SqliteBackend

        return SqliteBackend(url, create=create)
    from bankdb.catalog.postgresql import PostgresqlBackend

    return PostgresqlBackend(url)


# -- records by their keys ------------------------------------------------------------------------------
#
# A damaged index gives another record than was asked for, or none, and SQLite does not notice: it takes the values of
# an index for those of the record. What is found is compared with what was asked for, and with its own checksum; that
# there is none is believed only when the records themselves were looked through.


def found(session: Session, model: type[_Record], **key: Any) -> _Record | None:
    """Return the one record with these values, or None.

    Raises
    ------
    BankFormatError
        The database's index leads elsewhere.
    """
    row = session.scalars(select(model).where(*_matching(model, key))).one_or_none()
    if row is None:
        if _has_indexes_apart(session) and some(session, model, **key):
            raise _index_damaged(session, model)
        return None
    if any(getattr(row, name) != value for name, value in key.items()):
        raise _index_damaged(session, model)
    return row


def every(session: Session, model: type[_Record], **key: Any) -> list[_Record]:
    """Return all records with these values, by primary key; as many as an index of them has.

    Raises
    ------
    BankFormatError
        There are fewer or more of them in an index: the file is damaged.
    """
    rows = some(session, model, **key)
    counted = session.scalar(select(func.count()).select_from(model).where(*_matching(model, key)))
    if counted != len(rows):
        raise _index_damaged(session, model)
    return rows


def counted(session: Session, model: type[Base], **key: Any) -> int:
    """Return how many records have these values, in the table and in an index alike; else raise BankFormatError."""
    query = select(func.count()).select_from(model)
    number = session.scalar(query.where(*_matching(model, key)))
    if _has_indexes_apart(session) and number != session.scalar(
        query.where(*_matching(model, key, by_index=False))
    ):
        raise _index_damaged(session, model)
    return int(number or 0)


def some(session: Session, model: type[_Record], **key: Any) -> list[_Record]:
    """Return the records with these values as they lie in the table, by primary key; by no index of SQLite's."""
    apart = _has_indexes_apart(session)
    query = select(model).where(*_matching(model, key, by_index=not apart))
    order = [_in_table(column) if apart else column for column in inspect(model).primary_key]
    rows = session.scalars(query.order_by(*order)).all()
    if None in rows:  # so SQLAlchemy gives a record whose primary key reads NULL
        raise BankFormatError(f"{session.info[SHOWN]}: {_lost_key(model)}")
    return list(rows)


def _matching(
    model: type[Base], key: Mapping[str, Any], *, by_index: bool = True
) -> list[ColumnElement[bool]]:
    columns = {name: inspect(model).columns[name] for name in key}
    if by_index:
        return [columns[name] == value for name, value in key.items()]
    return [_in_table(columns[name]) == value for name, value in key.items()]


def _in_table(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Behind a sign SQLite reads a column in the table itself: https://www.sqlite.org/optoverview.html#uplus."""
    return UnaryExpression(column, operator=custom_op("+"))


def _has_indexes_apart(session: Session) -> bool:
    """Whether the database takes what an index says for what is in the record."""
    return session.get_bind().dialect.name == "sqlite"


def _index_damaged(session: Session, model: type[Base]) -> BankFormatError:
    return BankFormatError(
        f"{session.info[SHOWN]}: the index of its records of {_called(model)} is not that of the records, the file is "
        "damaged: restore it from a copy"
    )


def _lost_key(model: type[Base]) -> str:
    return f"a record of {_called(model)} has no number: the file is damaged; restore it from a copy"


def _called(model: type[Base]) -> str:
    return str(model.__tablename__).replace("_", " ")
