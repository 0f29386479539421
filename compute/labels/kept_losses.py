"""Losses on one set of examples, kept as they come: a killed run goes on there, the same again computes nothing."""

from __future__ import annotations

import numpy as np

from bankdb.arrays.chunks import read_chunks, write_chunks
from bankdb.arrays.metadata import ArrayLayout
from bankdb.bank import AdapterBank
from bankdb.derived import LISTED, find_array, make_array, set_attributes
from bankdb.progress import Progress

# A loss a chunk, which appears whole. No chunk is there but those of losses.
_LAYOUT = ArrayLayout((1_000_000,), (1,), "float64")


class KeptLosses:
    """The losses of adapters on one set of examples, in the bank; the caller holds the compute lock.

    Parameters
    ----------
    made_from
        Hash of all that they depend on but the adapter: the examples, the base model, the tokenizer, the dtype.

    Raises
    ------
    BankFormatError
        What is kept is damaged.
    """

    def __init__(self, bank: AdapterBank, made_from: str, progress: Progress) -> None:
        self._bank, self._path = bank, bank.array_path("losses") / made_from[:16]
        found = find_array(bank, self._path, _LAYOUT, made_from, progress)
        if found is None:
            make_array(bank, self._path, _LAYOUT, made_from, {LISTED: []})
            found = {LISTED: []}
        adapters = [str(adapter) for adapter in found[LISTED]]
        values = read_chunks(self._path, [slice(len(adapters))], delete=self._path)
        self._losses = dict(zip(adapters, map(float, values), strict=True))

    def find(self, adapter: str) -> float | None:
        """Return the loss of the adapter of this hash; None if it is not known."""
        return self._losses.get(adapter)

    def keep(self, adapter: str, loss: float) -> None:
        """Store the loss of an adapter, at once and durably."""
        write_chunks(self._path, [len(self._losses)], np.asarray([loss], dtype=np.float64))
        self._losses[adapter] = loss
        # Last: it makes the entry count.
        set_attributes(self._bank, self._path, **{LISTED: list(self._losses)})
