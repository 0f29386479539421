"""An adapter on its way into a bank, whole or not at all: its row reserved, written by any thread, and made ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from bankdb.errors import ArrayStoreUnavailableError
from bankdb.records import NewAdapter
from bankdb.storage.stored_bank import StoredBank

if TYPE_CHECKING:
    from bankdb.arrays.adapter_store import StoredRow
    from bankdb.peft.weights import SourceAdapter

New = Callable[[int, "StoredRow"], NewAdapter]
"""What is recorded of an adapter, from the number of its row and what the row is known by."""


class Storing:
    """An adapter whose row is reserved; rows have the order in which these are made.

    Parameters
    ----------
    first
        See `StoredBank.reserve`, whose errors are raised.

    Attributes
    ----------
    row
        Number of the row.
    """

    def __init__(
        self,
        bank: StoredBank,
        name: str,
        adapter: SourceAdapter,
        first: Mapping[str, Any] | None = None,
    ) -> None:
        self._bank, self._vector = bank, adapter.vector
        self.row = bank.reserve(name, adapter, first)
        self._written: Future[StoredRow] = Future()

    def write(self, *, beside: bool = False) -> None:
        """Write the row durably, once. What goes wrong is raised by `finish`.

        Parameters
        ----------
        beside
            Whether other threads use the bank meanwhile.
        """
        from bankdb.arrays.adapter_store import AdapterStore

        try:
            # What a store knows of its array is for one thread.
            store = AdapterStore(self._bank.store.path) if beside else self._bank.store
            self._written.set_result(store.write_row(self.row, self._vector))
        except BaseException as error:
            self._written.set_exception(error)

    def finish(self, new: New, *, replace: bool) -> tuple[bool, bool]:
        """Make the row ready, once it is written; if it cannot be, nothing is left of it.

        Parameters
        ----------
        replace
            Whether it takes the place of other content under its name.

        Returns
        -------
        Whether it was stored, which it is not if another process stored the same meanwhile, and whether in place of
        other content.

        Raises
        ------
        AdapterError, ConflictError
            It does not fit the bank, or other content is there under its name and is not to be replaced.
        """
        catalog, store = self._bank.catalog, self._bank.store
        try:
            added, freed = catalog.make_ready(new(self.row, self._written.result()), replace=replace)
        except ArrayStoreUnavailableError:
            raise  # what may be there of the row cannot be deleted now: it stays reserved, the next ingest clears it
        except BaseException:
            if catalog.abandon(self.row):
                store.delete(self.row)
            raise
        for unused in freed:
            store.delete(unused)
        return added, added and bool(freed)


def store_adapter(
    bank: StoredBank,
    name: str,
    adapter: SourceAdapter,
    new: New,
    *,
    replace: bool,
    first: Mapping[str, Any] | None = None,
) -> tuple[bool, bool]:
    """Reserve, write and finish one adapter: see `Storing`, whose errors are raised."""
    storing = Storing(bank, name, adapter, first)
    storing.write()
    return storing.finish(new, replace=replace)
