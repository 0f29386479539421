"""What making a bank needs: a folder that is free for it, and its own copy of the tokenizer."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.arrays import fsync_path
from bankdb.catalog import Catalog
from bankdb.database import Database
from bankdb.errors import BankNotFoundError, ConflictError, TokenizerError
from bankdb.location import LOCATION_FILE, UNFINISHED_LOCATION_FILE, BankLocation

if TYPE_CHECKING:
    from bankdb.tokens import BankTokenizer

# What an interrupted `create` may have left.
_OWN_FILES = {
    "bank.db",
    "bank.db-journal",
    "bank.db-wal",
    "bank.db-shm",
    "tokenizer",
    ".ingest.lock",
    ".compute.lock",
    LOCATION_FILE,
    UNFINISHED_LOCATION_FILE,
}


def check_free(folder: Path) -> None:
    """Raise ConflictError unless a bank can be made in `folder`: nothing is there, or what a killed `init` left."""
    if folder.exists() and not folder.is_dir():
        raise ConflictError(f"{folder}: a file is in the way; choose another path with --bank")
    if not folder.is_dir():
        return
    strange = sorted(item.name for item in folder.iterdir() if item.name not in _OWN_FILES)
    if strange:
        what = "a bank with adapters" if "adapters.zarr" in strange else f"{strange[0]!r}"
        raise ConflictError(f"{folder}: not empty, holds {what}; choose another folder with --bank")
    location = BankLocation.of(folder)
    if location.database is not None or (folder / "bank.db").is_file():
        # Left by an `init` that was killed before the bank's own record was written.
        with contextlib.closing(Database(location.database_url, create=True)) as database:
            try:
                Catalog(database).bank()
            except BankNotFoundError:
                return
        raise ConflictError(f"{folder}: a bank is already here; use it, or choose another folder with --bank")


def save_tokenizer(tokenizer: BankTokenizer, folder: Path) -> None:
    """Copy a tokenizer's files into the bank, and load them again to see that they are the same tokenizer."""
    from bankdb.tokens import BankTokenizer

    if folder.is_dir():
        shutil.rmtree(folder)  # left by an interrupted `create`, maybe of another tokenizer
    tokenizer.save(folder)
    for item in (*folder.rglob("*"), folder):
        fsync_path(item)
    if BankTokenizer(folder).fingerprint != tokenizer.fingerprint:
        raise TokenizerError(
            f"{tokenizer.name}: loads as another tokenizer after it was saved to {folder}; "
            "save it with the installed transformers and pass that folder"
        )
