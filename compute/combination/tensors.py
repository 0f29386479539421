"""One combination: its vector of factors, or the tensors of an adapter, A and B of every module, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.bank import AdapterBank
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import sources_of
from compute.combination.combine import combine_one
from compute.combination.delta import delta_adapter
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
    sources = sources_of(bank, adapters, progress)
    if not method.is_linear and np.count_nonzero(weights) > 1:
        merged = merged_sources(sources, weights, [record.row_sha256 for record in adapters], method)
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
    if space == "delta":
        made = delta_adapter(bank, adapters, weights, rank, method=method)
        return made.form.layout.unflatten(made.vector), made.form.scaling
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    return bank.layout.unflatten(combined_vector(bank, adapters, weights, method=method)), scaling
