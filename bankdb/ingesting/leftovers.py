"""What killed processes left in a bank, cleared."""

from __future__ import annotations

from bankdb.arrays.durable import partial_files
from bankdb.storage.stored_bank import StoredBank


def clear_leftovers(bank: StoredBank) -> list[str]:
    """Clear what killed processes left, unless some process is ingesting now; return what was cleared."""
    with bank.nobody_ingesting() as alone:
        return clear_leftovers_locked(bank) if alone else []


def clear_leftovers_locked(bank: StoredBank, *, everywhere: bool = False) -> list[str]:
    """Clear what killed processes left; the caller is inside `nobody_ingesting`.

    Parameters
    ----------
    everywhere
        Whether to look for unfinished files in the folders of whole rows too, where no ingest writes.
    """
    bank.ownership.check_now()  # what is left over here, another copy of the bank may call ready
    cleared: list[str] = []
    for reserved in bank.catalog.reserved():
        bank.store.delete(reserved.row)
        bank.catalog.clear_reserved([reserved.row])
        cleared.append(f"row {reserved.row}, reserved for {reserved.name}")
    for file in partial_files(bank.store.path, below=everywhere):
        file.unlink(missing_ok=True)
        cleared.append(f"unfinished file {file.name}")
    ready = {record.row for record in bank.adapters()}
    limit = bank.record.next_row
    for row in bank.store.rows_on_disk():
        if row not in ready and row < limit:
            bank.store.delete(row)
            cleared.append(f"row {row} of a removed adapter")
    return cleared
