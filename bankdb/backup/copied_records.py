"""Every record of a catalogue, from one database to another: SQLite's file is the form in which a backup keeps them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sqlalchemy import URL, Connection, insert, select, text

from bankdb.arrays.durable import fsync_path
from bankdb.catalog.database import Database
from bankdb.catalog.schema import Base

# Records in memory at once: one of token counts takes a megabyte.
_AT_ONCE = 50


def sqlite_url(file: Path) -> URL:
    """Return the URL of a file."""
    return URL.create("sqlite", database=str(file.absolute()))


def copy_to_file(source: Database, file: Path) -> None:
    """Write every record into a new file of SQLite's, and flush it."""
    with contextlib.closing(Database(sqlite_url(file), create=True)) as target:
        copy_records(source, target)
    fsync_path(file)


def copy_records(source: Database, target: Database) -> None:
    """Write every record into a database with the bank's tables and no records, in one transaction.

    Each has the values and the checksum that it had; what is read is of one state.
    """
    with source.read() as reading, target.write() as writing:
        there = writing.connection()
        for table in Base.metadata.sorted_tables:
            found = reading.connection().execute(select(table), execution_options={"yield_per": _AT_ONCE})
            for part in found.mappings().partitions(_AT_ONCE):
                there.execute(insert(table), [dict(record) for record in part])
        _count_on(there)


def _count_on(connection: Connection) -> None:
    """Have a server give the next numbers of its own; SQLite does by itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in Base.metadata.sorted_tables:
        if [column.name for column in table.primary_key] == ["id"]:
            connection.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), coalesce(max(id), 1), "
                    f"max(id) IS NOT NULL) FROM {table.name}"
                )
            )
