"""The matrices of a bank that its approaches need: distances, and the Gram matrix of the adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bankdb.progress import SilentProgress
from compute.prediction.session import computing

if TYPE_CHECKING:
    import xarray

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.errors import ParameterError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import sources_of
from compute.approaches.groups import excluded_sources
from compute.approaches.options import PredictionOptions
from compute.cluster.options import Cluster
from compute.gram.matrix import gram_matrix
from compute.pairwise.counts import token_counts
from compute.pairwise.matrix import DistanceMatrix, distance_matrices


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """What an approach makes coefficients from.

    Attributes
    ----------
    adapters
        The N adapters, by row.
    units
        Shape (N,): number from 0 on of what each is left out with: itself, or its group.
    distances
        float64, shape (N, N), rows are targets; None for an approach that reads none.
    metric
        The metric's key, or `none`.
    gram
        float64, shape (N, N); None for an approach that does not need it.
    """

    adapters: tuple[AdapterRecord, ...]
    units: NDArray[np.intp]
    distances: NDArray[np.float64] | None
    metric: str
    gram: NDArray[np.float64] | None


def compute_distances(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> list[DistanceMatrix]:
    """Return all distances of a bank by the metric of each way; the caller holds the compute lock."""
    counts = token_counts(bank, ready_adapters(bank)) if any(way.needs_counts for way in ways) else None
    return distance_matrices(bank, [way.resolve_metric(counts) for way in ways], cluster, progress)


def compute_matrices(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> list[Matrices]:
    """Return the matrices of a bank that each way needs; the caller holds the compute lock.

    Raises
    ------
    ParameterError
        The bank has fewer than two adapters, groups are to be left out and no dataset has one, or nothing is left
        for a target when its group is left out.
    """
    adapters = ready_adapters(bank)
    n = len(adapters)
    if n < 2:
        raise ParameterError(
            f"{bank.path}: leave-one-out needs at least 2 adapters, the bank has {n}; ingest more"
        )
    names, groups = ([getattr(record, key) for record in adapters] for key in ("name", "group"))
    if not any(groups) and any(way.leave_out == "group" for way in ways):
        raise ParameterError(
            f"{bank.path}: no dataset has a group, so that leaving out groups would leave out adapters alone; set "
            "groups with `bank group --pattern REGEX`, or give --group-pattern to `bank ingest`"
        )
    units = [excluded_sources(names, groups, way.leave_out)[0] for way in ways]
    reading = [way for way in ways if way.how.reads_distances]
    found = iter(compute_distances(bank, reading, cluster, progress) if reading else [])
    gram = None
    if any(way.how.reads_gram for way in ways):
        gram = gram_matrix(bank, adapters, sources_of(bank, adapters), cluster, progress)
    matrices = []
    for way, unit in zip(ways, units, strict=True):
        distances = next(found) if way.how.reads_distances else None
        matrices.append(
            Matrices(
                adapters,
                unit,
                None if distances is None else distances.values,
                "none" if distances is None else distances.metric,
                gram if way.how.reads_gram else None,
            )
        )
    return matrices


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
    with computing(bank, cluster, shown) as used:
        matrices = compute_distances(bank, ways, used, shown)
    return [
        xarray.DataArray(
            matrix.values, coordinates(matrix.adapters), ("target", "source"), name=matrix.metric
        )
        for matrix in matrices
    ]


def coordinates(adapters: Sequence[AdapterRecord]) -> dict[str, Any]:
    """Return the names on both axes of a matrix over these adapters."""
    names = [record.name for record in adapters]
    return {"target": names, "source": names}


def bank_matrices(
    bank: AdapterBank,
    options: PredictionOptions,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> Matrices:
    """Return the matrices of a bank that the approach needs; computes what is not stored yet."""
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        return compute_matrices(bank, [options], used, shown)[0]
