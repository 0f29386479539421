"""The kinds of databases that the contract tests run on, one by one.

A module with `EVERY_BACKEND = True` has each of its tests that use a database's fixtures run on every kind;
other modules, and tests marked `sqlite`, on SQLite alone.
"""

from __future__ import annotations

import dataclasses
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select

from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.catalog.schema import DAMAGED, Sealed
from bankdb.catalog.url import parse_database
from bankdb.storage.location import BankLocation
from tests.support.servers.postgres_server import PostgresServer

# The schema before the newest.
BEFORE = "0002"
BACKENDS = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgres))


def parametrize_backend(metafunc: pytest.Metafunc) -> None:
    """Run a test of the contract on every kind of database."""
    of_contract = getattr(metafunc.module, "EVERY_BACKEND", False)
    alone = metafunc.definition.get_closest_marker("sqlite") is not None
    if "backend" in metafunc.fixturenames and of_contract and not alone:
        metafunc.parametrize("backend", BACKENDS)


def execute(bank: AdapterBank, statement: str, *, seal: bool = True) -> None:
    """Change a bank's database behind the bank's back; bytes are given as SQLite's x'00'.

    With `seal`, as a faulty program would: the records' checksums are made anew.
    """
    url = bank.location.database
    if url is None:
        with closing(sqlite3.connect(bank.path / "bank.db")) as connection, connection:
            connection.execute(statement)
    else:
        assert url.host is not None
        with psycopg.connect(
            host=url.host, port=url.port, user="owner", dbname=url.database, autocommit=True
        ) as other:
            other.execute(re.sub(r"\bx'(\w*)'", r"'\\x\1'::bytea", statement).encode())
    if seal:
        with closing(Database(bank.location.database_url)) as database:
            seal_again(database)


def seal_again(database: Database) -> None:
    """Make the checksum of every record that was changed behind the bank's back."""
    with database.write() as session:
        session.info[DAMAGED] = damaged = list[Sealed]()
        for model in Sealed.__subclasses__():
            session.scalars(select(model)).all()
        for row in damaged:
            row.checksum = None  # a change: what is written is sealed


def move_database(folder: Path, server: PostgresServer) -> None:
    """Give the copied bank in `folder` a copy of its database."""
    location = BankLocation.of(folder)
    assert location.database is not None
    url = parse_database(server.borrow(location.database.database))
    dataclasses.replace(location, database=url).record()


def downgraded(database: Database) -> None:
    """Have a database of the newest schema be one of the schema before, by that schema's own script."""
    config = Config()
    config.set_main_option("script_location", "bankdb:catalog/migrations")
    with database.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, BEFORE)


def take_back(folder: Path) -> None:
    """Do so with the database of the bank in `folder`."""
    with closing(Database(BankLocation.of(folder).database_url)) as database:
        downgraded(database)
