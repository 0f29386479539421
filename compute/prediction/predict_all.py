"""The workflows over a whole bank: distances, coefficients, and leave-one-out predictions of all N."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import partial_files
from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, PredictionRecord, RunRecord
from compute.approaches.by_distance import effective_sources
from compute.approaches.options import PredictionOptions
from compute.approaches.oracle import weight_space_errors
from compute.approaches.registry import Fitted, leave_one_out_coefficients
from compute.cluster.client import Cluster, ClusterOptions, open_cluster
from compute.combination.delta import check_rank_fits
from compute.combination.predictions import combine_missing, open_predictions
from compute.gram.matrix import gram_matrix
from compute.pairwise.matrix import ready_adapters
from compute.prediction.matrices import Matrices, compute_distances, compute_matrices, sources_of
from compute.prediction.neural_models import neural_coefficients

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """Leave-one-out coefficients of a bank.

    Attributes
    ----------
    adapters
        The N adapters, by row; the order of both axes.
    values
        float64, shape (N, N); rows sum to 1, the diagonal is 0.
    effective
        1 / sum of squared coefficients of each row, shape (N,).
    metric
        The metric's key, or `none` for an approach that reads no distances.
    options
        How they were made.
    fitted
        For `tuned` and `ridge`: what was chosen for each target.
    """

    adapters: tuple[AdapterRecord, ...]
    values: NDArray[np.float64]
    effective: NDArray[np.float64]
    metric: str
    options: PredictionOptions
    fitted: tuple[Fitted, ...] | None = None


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


@contextlib.contextmanager
def _computing(bank: AdapterBank, cluster: Cluster | None, progress: Progress) -> Iterator[Cluster]:
    """Hold the compute lock, with the caller's cluster or threads of this process for as long as it takes."""
    with contextlib.ExitStack() as stack:
        if cluster is None:
            cluster = stack.enter_context(open_cluster(ClusterOptions(processes=False), progress))
        stack.enter_context(bank.computing(progress))
        _clear_unfinished(bank)
        yield cluster
        _clear_unfinished(bank)


def _clear_unfinished(bank: AdapterBank) -> None:
    """Delete what killed workers left half written; whoever holds the lock, and has no task, is alone."""
    for kind in ("distances", "gram", "predictions"):
        for file in partial_files(bank.array_path(kind)):
            file.unlink(missing_ok=True)


# -- distances and coefficients, labelled --------------------------------------------------------------


def distances(
    bank: AdapterBank,
    metric: str = "jensen-shannon",
    *,
    kernel: str = "multiscale",
    sigma: float | None = None,
    compatible: str = "correct",
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> xarray.DataArray:
    """Return the distance matrix with names on its axes: `target` (rows), `source` (columns).

    Computes what is not stored yet. See `PredictionOptions` for the parameters.
    """
    options = PredictionOptions(metric=metric, kernel=kernel, sigma=sigma, compatible=compatible)
    (matrix,) = distances_by(bank, [options], cluster=cluster, progress=progress)
    return matrix


def distances_by(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> list[xarray.DataArray]:
    """Return the distance matrix of each way's metric, in their order; all are computed side by side."""
    import xarray

    shown = progress or SilentProgress()
    with _computing(bank, cluster, shown) as used:
        matrices = compute_distances(bank, ways, used, shown)
    return [
        xarray.DataArray(
            matrix.values, _coordinates(matrix.adapters), ("target", "source"), name=matrix.metric
        )
        for matrix in matrices
    ]


def coefficients(
    bank: AdapterBank,
    options: PredictionOptions | None = None,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> xarray.DataArray:
    """Return the leave-one-out coefficients with names on their axes: `target` (rows), `source` (columns)."""
    (matrix,) = coefficients_by(bank, [options or PredictionOptions()], cluster=cluster, progress=progress)
    return matrix


def coefficients_by(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> list[xarray.DataArray]:
    """Return the coefficients of each way, in their order; the distances are computed side by side."""
    import xarray

    shown = progress or SilentProgress()
    with _computing(bank, cluster, shown) as used:
        found = compute_coefficients(bank, ways, used, shown)
    return [
        xarray.DataArray(
            way.values,
            _coordinates(way.adapters) | {"effective_sources": ("target", way.effective)},
            ("target", "source"),
            name=way.options.approach,
        )
        for way in found
    ]


def _coordinates(adapters: Sequence[AdapterRecord]) -> dict[str, Any]:
    names = [record.name for record in adapters]
    return {"target": names, "source": names}


def leave_one_out(
    bank: AdapterBank,
    options: PredictionOptions | None = None,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> Coefficients:
    """Return the leave-one-out coefficients with the records of the adapters that they are of.

    Raises
    ------
    ParameterError
        The bank has fewer than two adapters, or the rank asked for is above what its modules can have.
    """
    options = options or PredictionOptions()
    check_rank_fits(bank, options.rank)
    shown = progress or SilentProgress()
    with _computing(bank, cluster, shown) as used:
        return compute_coefficients(bank, [options], used, shown)[0]


def all_coefficients(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> tuple[list[Coefficients], NDArray[np.float64]]:
    """Return the leave-one-out coefficients of each way, and the Gram matrix of the adapters."""
    shown = progress or SilentProgress()
    with _computing(bank, cluster, shown) as used:
        adapters = ready_adapters(bank)
        gram = gram_matrix(bank, adapters, sources_of(bank, adapters), used, shown)
        return compute_coefficients(bank, ways, used, shown), gram


def compute_coefficients(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> list[Coefficients]:
    """Return the leave-one-out coefficients of each way; the caller holds the compute lock.

    Raises
    ------
    ParameterError
        The bank has fewer than two adapters, so that nothing is left when one is left out.
    """
    matrices = compute_matrices(bank, ways, cluster, progress)
    return [
        _coefficients(bank, options, found, progress) for options, found in zip(ways, matrices, strict=True)
    ]


def _coefficients(
    bank: AdapterBank, options: PredictionOptions, found: Matrices, progress: Progress
) -> Coefficients:
    adapters, units, fitted = found.adapters, found.units, None
    if options.approach == "neural":
        distances, gram = found.distances, found.gram
        assert distances is not None
        assert gram is not None
        left_out = None if options.leave_out == "adapter" else units
        values = neural_coefficients(
            bank, adapters, found.metric, distances, gram, options.neural, progress, left_out
        )
    else:
        values, fitted = leave_one_out_coefficients(options, found.distances, found.gram, units)
    return Coefficients(adapters, values, effective_sources(values), found.metric, options, fitted)


def bank_matrices(
    bank: AdapterBank,
    options: PredictionOptions,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> Matrices:
    """Return the matrices of a bank that the approach needs; computes what is not stored yet."""
    shown = progress or SilentProgress()
    with _computing(bank, cluster, shown) as used:
        return compute_matrices(bank, [options], used, shown)[0]


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
    with _computing(bank, cluster, shown) as used:
        found = compute_coefficients(bank, ways, used, shown)
        adapters = found[0].adapters
        sources = sources_of(bank, adapters)
        errors: list[NDArray[np.float64] | None] = [None] * len(found)
        if weight_errors:
            gram = gram_matrix(bank, adapters, sources, used, shown)
            targets, size = np.arange(len(adapters)), bank.layout.size
            errors = [weight_space_errors(way.values, gram, targets, size).relative for way in found]
        runs = [open_predictions(bank, adapters, way.values, way.metric, way.options) for way in found]
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
