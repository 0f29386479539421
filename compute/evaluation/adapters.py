"""The adapters of the systems that an evaluation compares, and their tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.bank import AdapterBank, ready_adapters
from bankdb.progress import Progress
from bankdb.scaled_rows import sources_of
from compute.approaches.options import PredictionOptions
from compute.approaches.weight_errors import weight_space_errors
from compute.cluster.options import Cluster
from compute.combination.combine import combine_one
from compute.combination.delta import check_rank_fits, delta_adapter
from compute.evaluation.systems import EvaluatedAdapter, System, compared_systems
from compute.prediction.coefficients import compute_coefficients
from compute.prediction.matrices import compute_gram
from compute.prediction.session import computing

BASE_SHA256 = hashlib.sha256(b"no adapter").hexdigest()
_MEMORY = 2**28


def evaluated_adapters(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> tuple[list[System], dict[str, dict[str, EvaluatedAdapter | None]]]:
    """Return the systems, and for each adapter of the bank what every system answers with.

    Ways of the same name are one. The registered systems come first.
    """
    systems = compared_systems(ways)
    reading = [one.reads for one in systems if one.reads is not None]
    for way in reading:
        check_rank_fits(bank, way.rank)
    with computing(bank, cluster, progress) as used:
        gram = compute_gram(bank, used, progress)
        predictions = compute_coefficients(bank, reading, used, progress)
    made = iter(predictions)
    records = predictions[0].adapters if predictions else ready_adapters(bank)
    rows: dict[str, dict[str, EvaluatedAdapter | None]] = {record.name: {} for record in records}
    for one in systems:
        weights = None if one.reads is None else next(made)
        errors = None
        if weights is not None:
            targets = np.arange(len(records))
            errors = weight_space_errors(weights.values, gram, targets, bank.layout.size).relative
        for record, adapter in zip(records, one.adapters(records, weights, errors), strict=True):
            rows[record.name][one.system.name] = adapter
    return [one.system for one in systems], rows


def adapter_tensors(bank: AdapterBank, adapter: EvaluatedAdapter) -> tuple[dict[str, NDArray[Any]], float]:
    """Return A and B of every module, by name, and the scaling of their product.

    Raises
    ------
    BankFormatError
        A row that is needed is damaged.
    """
    if adapter.space == "delta":
        made = delta_adapter(bank, adapter.sources, adapter.weights, adapter.rank)
        return made.form.layout.unflatten(made.vector), made.form.scaling
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    vector = combine_one(
        bank.store,
        sources_of(bank, adapter.sources),
        adapter.weights,
        chunk=column_chunk(bank.layout.size),
        budget=_MEMORY,
    )
    return bank.layout.unflatten(vector), scaling
