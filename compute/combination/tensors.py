"""One combination: its vector of factors, or the tensors of an adapter, A and B of every module, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.bank import AdapterBank
from bankdb.peft.layout import AdapterLayout
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import Sources, sources_of
from compute.combination.combine import combine_one
from compute.combination.delta import DeltaParts, delta_parts, delta_sum
from compute.combination.merged.single import MergedSources, merge_one, merged_sources
from compute.merge_methods.method import SUM, MergeMethod

_MEMORY, _LEAST = 2**28, 2**26


def combined_vector(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    budget: int = _MEMORY,
    progress: Progress | None = None,
    method: MergeMethod = SUM,
) -> NDArray[np.float32]:
    """Combine factors, at the bank's scaling, reading what has a weight once; float32, shape (p,).

    One source alone is itself, by whatever method, as with PEFT.

    Parameters
    ----------
    weights
        float32, shape (N,): of each of the adapters.
    budget
        Bytes that may be used beside the vector.
    method
        How they are combined; the weighted sum if not given.

    Raises
    ------
    BankFormatError
        A row that is needed is damaged.
    PlanError
        A merge method does not fit the budget.
    """
    sources = sources_of(bank, adapters, progress)
    if (merged := _merged(sources, adapters, weights, method)) is not None:
        return merge_one(bank.store, merged, bank.layout, method, budget=budget)
    return combine_one(
        bank.store,
        sources,
        weights,
        chunk=column_chunk(bank.layout.size),
        budget=budget,
    )


def beside_vector(bank: AdapterBank, memory: int) -> int:
    """Return the bytes that remain to combine with beside the vector and a copy of it; 64 MiB at the least."""
    return max(memory - 8 * bank.layout.size, _LEAST)


def combined_tensors(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    space: str,
    rank: int | str | None,
    method: MergeMethod = SUM,
) -> tuple[dict[str, NDArray[Any]], float]:
    """Return A and B of every module, by name, and the scaling of their product.

    Parameters
    ----------
    weights
        float32, shape (N,): of each of the adapters.
    space, rank, method
        See `PredictionOptions`.

    Raises
    ------
    BankFormatError
        A row that is needed is damaged.
    """
    return adapter_parts(bank, adapters, weights, space, rank, method).tensors(bank.store)


@dataclass(frozen=True, slots=True, eq=False)
class AdapterParts:
    """All that an adapter is combined from but the bank's rows, for whoever can read these.

    Attributes
    ----------
    sources
        The N rows.
    weights
        float32, shape (N,).
    layout, scaling
        The bank's.
    method
        How they are merged.
    merged
        In place of sources and weights, where the method is another than the weighted sum.
    delta
        In place of all these, for an adapter that is combined in delta space.
    """

    sources: Sources
    weights: NDArray[np.float32]
    layout: AdapterLayout
    scaling: float
    method: MergeMethod = SUM
    merged: MergedSources | None = None
    delta: DeltaParts | None = None

    def tensors(
        self, store: AdapterStore, memory: int | None = None, threads: int | None = None
    ) -> tuple[dict[str, NDArray[Any]], float]:
        """Return what `combined_tensors` does.

        Parameters
        ----------
        store
            Where the rows are.
        memory, threads
            What may be used; None chooses. More threads, or more memory to combine factors, change no bit.
        """
        if self.delta is not None:
            made = delta_sum(self.delta, store, memory, SilentProgress(), threads)
            return made.form.layout.unflatten(made.vector), made.form.scaling
        budget = _MEMORY if memory is None else min(memory, _MEMORY)
        return self.layout.unflatten(self._vector(store, budget, threads)), self.scaling

    def _vector(self, store: AdapterStore, budget: int, threads: int | None) -> NDArray[np.float32]:
        if self.merged is not None:
            return merge_one(store, self.merged, self.layout, self.method, budget=budget, threads=threads)
        chunk = column_chunk(self.layout.size)
        return combine_one(store, self.sources, self.weights, chunk=chunk, budget=budget, threads=threads)


def adapter_parts(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    space: str,
    rank: int | str | None,
    method: MergeMethod = SUM,
) -> AdapterParts:
    """Return what an adapter is combined from, reading no row: see `combined_tensors`."""
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    if space == "delta":
        delta = delta_parts(bank, adapters, weights, rank, SilentProgress(), method)
        return AdapterParts(delta.stored, weights, bank.layout, scaling, method, delta=delta)
    sources = sources_of(bank, adapters)
    merged = _merged(sources, adapters, weights, method)
    return AdapterParts(sources, weights, bank.layout, scaling, method, merged)


def _merged(
    sources: Sources, adapters: Sequence[AdapterRecord], weights: NDArray[np.float32], method: MergeMethod
) -> MergedSources | None:
    """Return how sources enter, unless by a weighted sum; one alone is itself, by whatever method."""
    if method.is_linear or np.count_nonzero(weights) < 2:
        return None
    return merged_sources(sources, weights, [record.row_sha256 for record in adapters], method)
