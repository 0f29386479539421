"""Bring a database to the newest revision, and tell which one it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bankdb.errors import BankFormatError, one_line

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD = "0003"


def upgrade(connection: Connection) -> None:
    """Run every migration that the database has not had yet, in the caller's transaction.

    Raises
    ------
    BankFormatError
        The database is at a revision that never was.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "bankdb:catalog/migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise BankFormatError(
            f"the database's schema revision is not known ({one_line(error)}): restore it from a copy"
        ) from error


def current_revision(connection: Connection) -> str | None:
    """Return the revision that the database is at; None if it has never been migrated."""
    from sqlalchemy import inspect, text

    if "alembic_version" not in inspect(connection).get_table_names():
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if not isinstance(revision, str | None):
        raise BankFormatError(
            f"{revision!r} is no schema revision: the file is damaged; restore it from a copy"
        )
    return revision
