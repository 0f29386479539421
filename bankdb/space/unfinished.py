"""Files that writers of derived arrays have not finished: those that run, and those that were killed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.arrays.durable import is_linked, partial_files
from bankdb.records import DERIVED_KINDS

if TYPE_CHECKING:
    from bankdb.storage.stored_bank import StoredBank


def unfinished(bank: StoredBank) -> list[Path]:
    """Return the files that running or killed writers have not finished."""
    roots = [bank.array_path(kind) for kind in DERIVED_KINDS]
    return [file for root in roots if not is_linked(root, bank.derived) for file in partial_files(root)]


def clear_unfinished(bank: StoredBank) -> list[str]:
    """Delete what killed writers left half written, and return its names; nobody computes meanwhile."""
    files = unfinished(bank)
    for file in files:
        file.unlink(missing_ok=True)
    return [file.name for file in files]
