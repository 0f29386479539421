"""The workflows over a whole bank: distances, coefficients, and leave-one-out predictions of all N."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays import (
    column_chunk,
    create_array,
    ensure_group,
    fsync_path,
    fsync_written,
    open_array,
    partial_files,
)
from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, PredictionRecord, RunRecord
from compute.cluster import Cluster, ClusterOptions, open_cluster, run_tasks
from compute.coefficients import coefficients as row_coefficients
from compute.coefficients import effective_sources
from compute.combine import Sources, combine_panel, shard_files
from compute.distances import DistanceMatrix, distance_matrix, ready_adapters, token_counts
from compute.gram import gram_matrix
from compute.options import NO_DISTANCES, PredictionOptions
from compute.oracle import oracle, weight_space_errors
from compute.tiles import SHARD_ROWS, plan_panels

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
    """

    adapters: tuple[AdapterRecord, ...]
    values: NDArray[np.float64]
    effective: NDArray[np.float64]
    metric: str
    options: PredictionOptions


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
    path: Path
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
    import xarray

    options = PredictionOptions(metric=metric, kernel=kernel, sigma=sigma, compatible=compatible)
    shown = progress or SilentProgress()
    with _computing(bank, cluster, shown) as used:
        found = compute_distances(bank, options, used, shown)
    return xarray.DataArray(
        found.values, _coordinates(found.adapters), ("target", "source"), name=found.metric
    )


def coefficients(
    bank: AdapterBank,
    options: PredictionOptions | None = None,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> xarray.DataArray:
    """Return the leave-one-out coefficients with names on their axes: `target` (rows), `source` (columns)."""
    import xarray

    options = options or PredictionOptions()
    shown = progress or SilentProgress()
    with _computing(bank, cluster, shown) as used:
        found = compute_coefficients(bank, options, used, shown)
    coordinates = _coordinates(found.adapters) | {"effective_sources": ("target", found.effective)}
    return xarray.DataArray(found.values, coordinates, ("target", "source"), name=options.approach)


def _coordinates(adapters: Sequence[AdapterRecord]) -> dict[str, Any]:
    names = [record.name for record in adapters]
    return {"target": names, "source": names}


def compute_distances(
    bank: AdapterBank, options: PredictionOptions, cluster: Cluster, progress: Progress
) -> DistanceMatrix:
    """Return all distances of a bank by the metric of `options`; the caller holds the compute lock."""
    counts = token_counts(bank, ready_adapters(bank)) if options.needs_counts else None
    return distance_matrix(bank, options.resolve_metric(counts), cluster, progress)


def compute_coefficients(
    bank: AdapterBank, options: PredictionOptions, cluster: Cluster, progress: Progress
) -> Coefficients:
    """Return the leave-one-out coefficients of a bank; the caller holds the compute lock.

    Raises
    ------
    ParameterError
        The bank has fewer than two adapters, so that nothing is left when one is left out.
    """
    adapters = ready_adapters(bank)
    n = len(adapters)
    if n < 2:
        raise ParameterError(
            f"{bank.path}: leave-one-out needs at least 2 adapters, the bank has {n}; ingest more"
        )
    excluded = np.eye(n, dtype=np.bool_)
    metric = "none"
    if options.approach == "oracle":
        gram = gram_matrix(bank, adapters, sources_of(bank, adapters), cluster, progress)
        values = oracle(gram, excluded)
    else:
        matrix = np.zeros((n, n))
        if options.approach not in NO_DISTANCES:
            found = compute_distances(bank, options, cluster, progress)
            matrix, adapters, metric = found.values, found.adapters, found.metric
        values = row_coefficients(
            matrix,
            excluded,
            options.approach,
            temperature=options.temperature,
            top_k=options.top_k,
            compatible=options.compatible,
            self_index=np.arange(n),
        )
    return Coefficients(adapters, values, effective_sources(values), metric, options)


def sources_of(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> Sources:
    """Return the rows to combine, with what brings each to the bank's scaling."""
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    return Sources(
        rows=np.asarray([record.row for record in adapters], dtype=np.int64),
        ratios=np.asarray([record.scaling / scaling for record in adapters], dtype=np.float32),
        b_segments=bank.layout.b_segments(),
    )


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
    options = options or PredictionOptions()
    shown = progress or SilentProgress()
    with _computing(bank, cluster, shown) as used:
        found = compute_coefficients(bank, options, used, shown)
        sources = sources_of(bank, found.adapters)
        error = None
        if weight_errors:
            gram = gram_matrix(bank, found.adapters, sources, used, shown)
            targets = np.arange(len(found.adapters))
            error = weight_space_errors(found.values, gram, targets, bank.layout.size).relative
        run, path = _open_predictions(bank, found)
        _combine_missing(bank, run, path, sources, used, shown)
        _store_records(bank, run, found, error)
        bank.runs.finish(run.id)
    return PredictedBank(run, found, path, error)


def _open_predictions(bank: AdapterBank, found: Coefficients) -> tuple[RunRecord, Path]:
    """Find the run of these coefficients over these rows, or begin it; write C once, to be read by URL."""
    weights = found.values.astype(np.float32)
    rows = " ".join(f"{record.row}:{record.row_sha256}:{record.scaling}" for record in found.adapters)
    digest = hashlib.sha256(rows.encode())
    digest.update(f"{bank.record.scaling} {found.metric} {found.options}".encode())
    digest.update(weights.tobytes())
    name = digest.hexdigest()[:16]
    parameters = {
        "metric": found.metric,
        "approach": found.options.approach,
        **found.options.parameters(),
        "inputs": digest.hexdigest(),
        "array": f"predictions.zarr/{name}/adapters",
    }
    run = bank.runs.begin("predictions", parameters)
    root = bank.array_path("predictions")
    path = root / name
    if not _complete(path, run):
        bank.runs.reopen(run.id)
        ensure_group(root)
        _create_predictions(path, run, bank.layout.size, weights)
    return run, path


def _complete(path: Path, run: RunRecord) -> bool:
    if not (path / "zarr.json").is_file():
        return False
    arrays = [path / "coefficients", path / "adapters"]
    return all(
        (item / "zarr.json").is_file() and open_array(item).attrs.get("run") == run.inputs_sha256
        for item in arrays
    )


def _create_predictions(path: Path, run: RunRecord, parameters: int, weights: NDArray[np.float32]) -> None:
    if path.exists():
        shutil.rmtree(path)
    ensure_group(path)
    targets, sources = weights.shape
    mark = {"run": run.inputs_sha256}
    chunk = column_chunk(parameters)
    stored = create_array(
        path / "coefficients",
        shape=weights.shape,
        chunks=(min(targets, 1024), sources),
        shards=None,
        dtype="float32",
        attributes=mark,
    )
    stored[:, :] = weights
    fsync_written(path / "coefficients", (path / "coefficients" / "c").glob("*/*"))
    create_array(
        path / "adapters",
        shape=(targets, parameters),
        chunks=(1, chunk),
        shards=(SHARD_ROWS, chunk),
        dtype="float32",
        attributes=mark,
    )
    fsync_path(path)


def _combine_missing(
    bank: AdapterBank, run: RunRecord, path: Path, sources: Sources, cluster: Cluster, progress: Progress
) -> None:
    predictions = path / "adapters"
    targets, parameters = open_array(predictions).shape
    chunk = column_chunk(parameters)
    panels = plan_panels(targets, len(sources.rows), parameters, chunk=chunk, budget=cluster.task_budget)
    done = bank.runs.done_pieces(run.id)
    missing = {
        panel.name: panel
        for panel in panels
        if panel.name not in done
        or not all(file.is_file() for file in shard_files(predictions, panel, chunk))
    }
    tasks = {
        name: (str(bank.store.path.absolute()), str(path.absolute()), sources, panel, chunk)
        for name, panel in missing.items()
    }
    if not tasks:
        return
    for name, _ in run_tasks(cluster, "combine", combine_panel, tasks, progress):
        bank.runs.mark_done(run.id, {name: run.inputs_sha256})


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
