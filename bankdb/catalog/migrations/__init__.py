"""Alembic migrations of a bank's database, packaged with the code."""
