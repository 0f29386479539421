"""The adapters of the systems that an evaluation compares, and their tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.progress import Progress
from compute.approaches.options import PredictionOptions
from compute.approaches.weight_errors import weight_space_errors
from compute.cluster.options import Cluster
from compute.combination.delta_shapes import check_rank_fits
from compute.combination.tensors import AdapterParts, BankParts, tensors_of
from compute.evaluation.systems import EvaluatedAdapter, System, compared_systems
from compute.labels.answer_labels import LabelOptions
from compute.prediction.coefficients import compute_coefficients
from compute.prediction.matrices import compute_gram
from compute.prediction.session import computing

BASE_SHA256 = hashlib.sha256(b"no adapter").hexdigest()


def evaluated_adapters(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    cluster: Cluster,
    progress: Progress,
    labels: LabelOptions | None = None,
) -> tuple[list[System], dict[str, dict[str, EvaluatedAdapter | None]]]:
    """Return the systems, and for each adapter of the bank what every system answers with.

    Ways of the same name are one. The registered systems come first. Where labels are read, targets that are not
    asked for have coefficients of NaN.
    """
    systems = compared_systems(ways)
    reading = [one.reads for one in systems if one.reads is not None]
    for way in reading:
        check_rank_fits(bank, way.rank)
    with computing(bank, cluster, progress) as used:
        gram = compute_gram(bank, used, progress)
        predictions = compute_coefficients(bank, reading, used, progress, labels)
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


def made_of(adapter: EvaluatedAdapter | None, scaling: float) -> str:
    """Return what the answers of an adapter, or for None of the base model alone, are kept under."""
    return BASE_SHA256 if adapter is None else adapter.sha256(scaling)


def adapter_tensors(bank: AdapterBank, adapter: EvaluatedAdapter) -> tuple[dict[str, NDArray[Any]], float]:
    """Return A and B of every module, by name, and the scaling of their product.

    Raises
    ------
    BankFormatError
        A row that is needed is damaged.
    """
    return tensors_of(parts_of(BankParts(bank), adapter), bank.store)


def parts_of(parts: BankParts, adapter: EvaluatedAdapter) -> AdapterParts:
    """Return what whoever can read the bank's rows makes the same tensors of."""
    return parts.of(adapter.sources, adapter.weights, adapter.space, adapter.rank, adapter.method)
