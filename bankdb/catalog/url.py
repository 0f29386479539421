"""The URL of a catalogue in PostgreSQL: which one is taken, and how it is shown."""

from __future__ import annotations

import os

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from bankdb.errors import ParameterError

_DRIVER = "postgresql+psycopg"


def parse_database(text: str) -> URL:
    """Return the URL of a PostgreSQL database, for the driver that is used here.

    Raises
    ------
    ParameterError
        It is no URL of a PostgreSQL database. The message does not repeat it: it may hold a password.
    """
    expected = "expected postgresql+psycopg://USER@HOST/DATABASE"
    try:
        url = make_url(text)
        port = url.port
    except (ArgumentError, ValueError) as error:
        raise ParameterError(f"the database's URL cannot be read; {expected}") from error
    if url.drivername not in {"postgresql", _DRIVER}:
        raise ParameterError(
            f"a database of the kind {url.drivername!r} is not supported; {expected}, or leave it away for SQLite"
        )
    if not url.database or port == 0:
        raise ParameterError(f"the database's URL names no database or the port 0; {expected}")
    # libpq takes a password among the options too, where no library would hide it.
    password = url.query.get("password")
    if isinstance(password, str):
        url = url.set(password=password).difference_update_query(["password"])
    return url.set(drivername=_DRIVER)


def shown_database(url: URL) -> str:
    """Return how messages name a database: SQLite's file, or server and database without a password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    # Options are left out: some of libpq's are secrets. Host and port may be among them, or libpq's defaults.
    host = url.host or _option(url, "host") or os.environ.get("PGHOST", "")
    port = url.port or _option(url, "port") or os.environ.get("PGPORT", "5432")
    user = "" if url.username is None else f"{url.username}@"
    return f"postgresql://{user}{f'[{host}]' if '::' in host else host}:{port}/{url.database}"


def _option(url: URL, name: str) -> str:
    value = url.query.get(name, "")
    return value if isinstance(value, str) else ",".join(value)
