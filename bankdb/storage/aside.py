"""What is computed from a bank that may only be read: it goes to a temporary folder, and with the bank's end."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL

from bankdb.arrays.durable import copy_folder
from bankdb.catalog.database import Database
from bankdb.progress import Progress

# Stored predictions are as large as the bank, and are no part of anything else.
_TAKEN_OVER = ("distributions", "distances", "gram", "neural")


class Bank(Protocol):
    """What is known here of a bank: where its records and derived arrays are."""

    path: Path
    derived: Any

    def array_path(self, kind: str) -> Any:
        """Return the place of a derived array."""

    def use_database(self, database: Database, folder: Path) -> None:
        """Take records from a database, and locks from a folder."""


@contextlib.contextmanager
def computed_aside(bank: Bank, database: Database, progress: Progress) -> Iterator[None]:
    """Have a bank keep its records and derived arrays in a temporary folder, beginning with those that it has.

    The adapters themselves are read where they are.
    """
    with tempfile.TemporaryDirectory(prefix="lora-bank-") as name:
        folder = Path(name)
        progress.note(
            f"{bank.path}: may only be read; what is computed goes to a folder in {folder.parent}, and is not kept"
        )
        database.copy_to(folder / "bank.db")
        for kind in _TAKEN_OVER:
            copy_folder(bank.array_path(kind), folder / f"{kind}.zarr")
        database.close()
        aside = Database(URL.create("sqlite", database=str(folder / "bank.db")))
        bank.use_database(aside, folder)
        bank.derived = folder
        yield
        aside.close()
