"""Rows of a bank as they are combined: each brought to the bank's scaling when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.shard_format import Float32
from bankdb.arrays.uncached import UncachedReader
from bankdb.bank import AdapterBank
from bankdb.peft.checks import check_scalings
from bankdb.records import AdapterRecord


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The rows that are combined.

    Attributes
    ----------
    rows
        Rows of the adapters' array, shape (N,).
    ratios
        float32, shape (N,): each source's scaling over the bank's; 1 leaves it as it is.
    b_segments
        Half-open column ranges of the B factors.
    """

    rows: NDArray[np.int64]
    ratios: Float32
    b_segments: tuple[tuple[int, int], ...]


def read_scaled(
    store: AdapterStore, sources: Sources, which: Sequence[int], start: int, stop: int
) -> Float32:
    """Read columns of some sources at the bank's scaling, shape (len(which), stop - start)."""
    panel = np.empty((len(which), stop - start), dtype=np.float32)
    read_scaled_into(panel, store, sources, which, start, stop)
    return panel


def read_scaled_into(
    panel: Float32,
    store: AdapterStore,
    sources: Sources,
    which: Sequence[int],
    start: int,
    stop: int,
    uncached: UncachedReader | None = None,
) -> None:
    """Read as `read_scaled` does, into rows of `panel` that are there already."""
    store.read_into(sources.rows[list(which)].tolist(), start, stop, panel, uncached)
    ratios = sources.ratios[list(which)]
    scaled = np.flatnonzero(ratios != 1).tolist()
    if not scaled:
        return
    inside = [
        slice(max(first, start) - start, min(last, stop) - start)
        for first, last in sources.b_segments
        if first < stop and last > start
    ]
    with np.errstate(over="ignore"):  # whoever combines it looks at the result
        for position in scaled:
            for columns in inside:
                panel[position, columns] *= ratios[position]


def sources_of(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> Sources:
    """Return the rows to combine, with what brings each to the bank's scaling.

    Raises
    ------
    BankFormatError
        Layout or scalings in the database are damaged.
    """
    layout, scaling = bank.layout, bank.record.scaling
    check_scalings(adapters, layout.rank)
    assert scaling is not None, "a bank with adapters has a scaling"
    return Sources(
        rows=np.asarray([record.row for record in adapters], dtype=np.int64),
        ratios=np.asarray([record.scaling / scaling for record in adapters], dtype=np.float32),
        b_segments=layout.b_segments(),
    )
