"""What a bank takes on its disk or in its object store, by what it is; without NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bankdb.arrays.durable import sizes_below

if TYPE_CHECKING:
    from bankdb.storage.stored_bank import StoredBank

_DATABASE = ("bank.db", "bank.db-wal", "bank.db-shm", "bank.db-journal")
_ARRAYS = ".zarr"


def used(bank: StoredBank) -> dict[str, int]:
    """Return the bytes of a bank's files, or objects, by what they are, the most first.

    Arrays have their folder's name without its end, such as `adapters` or `distances`; `database` is SQLite's files,
    `other` what is none of these and lies in the bank's folder. A catalogue on a server is not counted.

    Raises
    ------
    ArrayStoreUnavailableError
        The store of a bank on a URL failed.
    """
    places = [bank.path] if bank.location.arrays is None else [bank.path, bank.arrays]
    sizes: dict[str, int] = {}
    for place in places:
        for name, size in sizes_below(place).items():
            kind = _kind_of(name)
            sizes[kind] = sizes.get(kind, 0) + size
    return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))


def _kind_of(name: str) -> str:
    top, below, _ = name.partition("/")
    if top in _DATABASE:
        return "database"
    if below and top.endswith(_ARRAYS):
        return top.removesuffix(_ARRAYS)
    return top if below and top in {"tokenizer", "evaluations", "orphans"} else "other"
