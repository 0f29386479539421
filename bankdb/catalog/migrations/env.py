"""Alembic's entry point; the connection comes from the caller, never from a file."""

from __future__ import annotations

from alembic import context

from bankdb.catalog.schema import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
