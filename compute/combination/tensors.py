"""One combination as the tensors of an adapter: A and B of every module, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.bank import AdapterBank
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import sources_of
from compute.combination.combine import combine_one
from compute.combination.delta import delta_adapter

_MEMORY = 2**28


def combined_tensors(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    space: str,
    rank: int | str | None,
) -> tuple[dict[str, NDArray[Any]], float]:
    """Return A and B of every module, by name, and the scaling of their product.

    Parameters
    ----------
    weights
        float32, shape (N,): of each of the adapters.
    space, rank
        See `PredictionOptions`.

    Raises
    ------
    BankFormatError
        A row that is needed is damaged.
    """
    if space == "delta":
        made = delta_adapter(bank, adapters, weights, rank)
        return made.form.layout.unflatten(made.vector), made.form.scaling
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    vector = combine_one(
        bank.store,
        sources_of(bank, adapters),
        weights,
        chunk=column_chunk(bank.layout.size),
        budget=_MEMORY,
    )
    return bank.layout.unflatten(vector), scaling
