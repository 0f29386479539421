"""One combination: its vector of factors, or the tensors of an adapter, A and B of every module, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.shard_format import Checksums
from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.bank import AdapterBank
from bankdb.peft.layout import AdapterLayout
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import Sources, sources_of
from compute.combination.combine import combine_one
from compute.combination.delta import DeltaParts, delta_parts, delta_sum
from compute.combination.merged.single import merge_one, merged_sources
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
    return _factor_parts(bank, adapters, weights, method, progress).vector(bank.store, budget)


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
    return tensors_of(BankParts(bank).of(adapters, weights, space, rank, method), bank.store)


@dataclass(frozen=True, slots=True, eq=False)
class FactorParts:
    """What an adapter of averaged factors is combined from but the bank's rows, for whoever can read these.

    Attributes
    ----------
    sources
        The N rows.
    weights
        float32, shape (N,).
    row_sha256
        Of each row.
    method
        How they are merged.
    layout, scaling
        The bank's.
    """

    sources: Sources
    weights: NDArray[np.float32]
    row_sha256: Sequence[str]
    method: MergeMethod
    layout: AdapterLayout
    scaling: float

    def vector(self, store: AdapterStore, budget: int, threads: int | None = None) -> NDArray[np.float32]:
        """Return what `combined_vector` does, of the rows in `store`."""
        if not self.method.is_linear and np.count_nonzero(self.weights) > 1:
            merged = merged_sources(self.sources, self.weights, self.row_sha256, self.method)
            return merge_one(store, merged, self.layout, self.method, budget=budget, threads=threads)
        chunk = column_chunk(self.layout.size)
        return combine_one(store, self.sources, self.weights, chunk=chunk, budget=budget, threads=threads)


AdapterParts = FactorParts | DeltaParts
"""What an adapter is combined from: see `BankParts`."""


class BankParts:
    """What many adapters of one bank are combined from; the catalogue is asked once for what they have in common.

    Parameters
    ----------
    bank
        Whose catalogue nobody changes meanwhile, as within a snapshot of it.
    """

    def __init__(self, bank: AdapterBank) -> None:
        self._bank = bank
        self._common: FactorParts | None = None
        self._known: dict[int, tuple[np.float32, Checksums]] = {}  # by row: ratio of scalings, checksums

    def of(
        self,
        adapters: Sequence[AdapterRecord],
        weights: NDArray[np.float32],
        space: str,
        rank: int | str | None,
        method: MergeMethod = SUM,
    ) -> AdapterParts:
        """Return what an adapter is combined from, reading no row: see `combined_tensors`."""
        if space == "delta":
            return delta_parts(self._bank, adapters, weights, rank, SilentProgress(), method)
        common, known = self._asked(adapters), [self._known[record.row] for record in adapters]
        sources = replace(
            common.sources,
            rows=np.asarray([record.row for record in adapters], dtype=np.int64),
            ratios=np.asarray([ratio for ratio, _ in known], dtype=np.float32),
            checksums=np.stack([checksums for _, checksums in known]),
        )
        hashes = [record.row_sha256 for record in adapters]
        return replace(common, sources=sources, weights=weights, row_sha256=hashes, method=method)

    def _asked(self, adapters: Sequence[AdapterRecord]) -> FactorParts:
        """Return what all have in common, with all rows known that are asked for; no row is ever another adapter's."""
        lacking = [record for record in adapters if record.row not in self._known]
        if self._common is None or lacking:
            none = np.zeros(len(lacking), dtype=np.float32)
            self._common = _factor_parts(self._bank, lacking, none, SUM)
            sources = self._common.sources
            assert sources.checksums is not None
            for place, record in enumerate(lacking):
                self._known[record.row] = sources.ratios[place], sources.checksums[place]
        return self._common


def tensors_of(
    parts: AdapterParts, store: AdapterStore, memory: int | None = None, threads: int | None = None
) -> tuple[dict[str, NDArray[Any]], float]:
    """Return what `combined_tensors` does, of the rows in `store`.

    Parameters
    ----------
    memory, threads
        What may be used; None chooses. More threads, or more memory to combine factors, change no bit.
    """
    if isinstance(parts, DeltaParts):
        made = delta_sum(parts, store, memory, SilentProgress(), threads)
        return made.form.layout.unflatten(made.vector), made.form.scaling
    budget = _MEMORY if memory is None else min(memory, _MEMORY)
    return parts.layout.unflatten(parts.vector(store, budget, threads)), parts.scaling


def _factor_parts(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    method: MergeMethod,
    progress: Progress | None = None,
) -> FactorParts:
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    sources, hashes = sources_of(bank, adapters, progress), [record.row_sha256 for record in adapters]
    return FactorParts(sources, weights, hashes, method, bank.layout, scaling)
