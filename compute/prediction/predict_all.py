"""The workflows over a whole bank: distances, coefficients, and leave-one-out predictions of all N."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.remote import Location
from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import PredictionRecord, RunRecord
from bankdb.scaled_rows import sources_of
from compute.approaches.options import PredictionOptions
from compute.approaches.weight_errors import weight_space_errors
from compute.cluster.options import Cluster
from compute.combination.predictions import combine_missing, open_predictions
from compute.gram.matrix import gram_matrix
from compute.prediction.coefficients import Coefficients, compute_coefficients
from compute.prediction.session import computing

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, eq=False)
class PredictedBank:
    """All N leave-one-out predictions, stored.

    Attributes
    ----------
    run
        The run that made them.
    coefficients
        What they are combinations by.
    path
        zarr group with `adapters` (N, p) and `coefficients` (N, N), both float32.
    relative_error
        `norm(predicted - own) / norm(own)` of each target, shape (N,), where it was asked for.
    """

    run: RunRecord
    coefficients: Coefficients
    path: Location
    relative_error: NDArray[np.float64] | None


# -- distances and coefficients, labelled --------------------------------------------------------------


# -- all N predictions ---------------------------------------------------------------------------------


def predict_all(
    bank: AdapterBank,
    options: PredictionOptions | None = None,
    *,
    cluster: Cluster | None = None,
    weight_errors: bool = False,
    progress: Progress | None = None,
) -> PredictedBank:
    """Predict every adapter of the bank from all the others, and store the predictions.

    What a run that was killed had finished is not computed again.

    Parameters
    ----------
    weight_errors
        Also compute, through the Gram matrix, how far each prediction is from the adapter's own weights.

    Raises
    ------
    BankNotFoundError, ParameterError
        The bank is empty, or has a single adapter.
    PlanError
        The work does not fit the memory budget.
    ComputeError, BankFormatError
        A piece failed, or a stored row is damaged; what was done is kept.
    """
    (predicted,) = predict_all_ways(
        bank,
        [options or PredictionOptions()],
        cluster=cluster,
        weight_errors=weight_errors,
        progress=progress,
    )
    return predicted


def predict_all_ways(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    cluster: Cluster | None = None,
    weight_errors: bool = False,
    progress: Progress | None = None,
) -> list[PredictedBank]:
    """Predict every adapter from all the others in several ways, in one pass over the adapters.

    See `predict_all`; the results are in the order of `ways`.
    """
    shown = progress or SilentProgress()
    if not ways:
        return []
    if any(options.space != "factors" for options in ways):
        raise ParameterError(
            "space: stored predictions are of factors, delta found; export folders: with --export, or export_delta"
        )
    with computing(bank, cluster, shown) as used:
        found = compute_coefficients(bank, ways, used, shown)
        adapters = found[0].adapters
        sources = sources_of(bank, adapters)
        errors: list[NDArray[np.float64] | None] = [None] * len(found)
        if weight_errors:
            gram = gram_matrix(bank, adapters, sources, used, shown)
            targets, size = np.arange(len(adapters)), bank.layout.size
            errors = [weight_space_errors(way.values, gram, targets, size).relative for way in found]
        runs = [open_predictions(bank, adapters, way.values, way.metric, way.options, shown) for way in found]
        combine_missing(bank, runs, sources, used, shown)
        for (run, _), way, error in zip(runs, found, errors, strict=True):
            _store_records(bank, run, way, error)
            bank.runs.finish(run.id)
    return [
        PredictedBank(run, way, path, error)
        for (run, path), way, error in zip(runs, found, errors, strict=True)
    ]


def _store_records(
    bank: AdapterBank, run: RunRecord, found: Coefficients, error: NDArray[np.float64] | None
) -> None:
    """Store what each prediction is made of; what an earlier command stored of the same run stays."""
    stored = {record.target: record for record in bank.runs.predictions(run.id)}
    # What was multiplied with: the coefficients in single precision.
    weights = found.values.astype(np.float32)
    records = []
    for index, adapter in enumerate(found.adapters):
        used = np.flatnonzero(weights[index])
        record = PredictionRecord(
            run_id=run.id,
            target=adapter.name,
            sources=tuple(found.adapters[source].row for source in used),
            weights=tuple(float(weight) for weight in weights[index, used]),
            effective_sources=float(found.effective[index]),
            relative_error=None if error is None else float(error[index]),
            exported_to=None,
            export_dtype=None,
        )
        before = stored.get(adapter.name)
        if before is not None:
            record = replace(record, exported_to=before.exported_to, export_dtype=before.export_dtype)
            if error is None:
                record = replace(record, relative_error=before.relative_error)
        records.append(record)
    if records != list(stored.values()):
        bank.runs.store_predictions(records)
