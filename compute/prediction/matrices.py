"""The matrices of a bank that its approaches need: distances, and the Gram matrix of the adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.errors import ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import sources_of
from compute.approaches.groups import excluded_sources
from compute.approaches.options import PredictionOptions
from compute.cluster.options import Cluster, ClusterLike
from compute.gram.matrix import gram_matrix
from compute.pairwise.counts import token_counts
from compute.pairwise.forms import unlike_forms
from compute.pairwise.matrix import DistanceMatrix, distance_matrices
from compute.prediction.session import computing

Metrics: TypeAlias = "list[str] | list[PredictionOptions] | tuple[str | PredictionOptions, ...]"


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
    by_metric
        Of each metric that the approach declares, by its full name: float64, shape (N, N).
    """

    adapters: tuple[AdapterRecord, ...]
    units: NDArray[np.intp]
    distances: NDArray[np.float64] | None
    metric: str
    gram: NDArray[np.float64] | None
    by_metric: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def declared_metrics(way: PredictionOptions) -> list[PredictionOptions]:
    """Return options with each of the metrics that an approach declares: at their defaults, but for `compatible`."""
    return [
        PredictionOptions(metric=name, approach="nearest", compatible=way.compatible)
        for name in way.how.metrics
    ]


def compute_distances(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> list[DistanceMatrix]:
    """Return all distances of a bank by the metric of each way; the caller holds the compute lock."""
    adapters = ready_adapters(bank)
    for note in unlike_forms(bank, adapters):
        progress.note(note)
    counts = token_counts(bank, adapters) if any(way.needs_counts for way in ways) else None
    return distance_matrices(bank, [way.resolve_metric(counts) for way in ways], cluster, progress)


def compute_gram(bank: AdapterBank, cluster: Cluster, progress: Progress) -> NDArray[np.float64]:
    """Return the inner products of a bank's adapters, shape (N, N); the caller holds the compute lock."""
    adapters = ready_adapters(bank)
    return gram_matrix(bank, adapters, sources_of(bank, adapters, progress), cluster, progress)


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
    reading += [one for way in ways for one in declared_metrics(way)]
    computed = compute_distances(bank, reading, cluster, progress) if reading else []
    found = iter(computed)
    further = iter(computed[sum(way.how.reads_distances for way in ways) :])
    gram = compute_gram(bank, cluster, progress) if any(way.how.reads_gram for way in ways) else None
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
                {name: next(further).values for name in way.how.metrics},
            )
        )
    return matrices


@overload
def distances(
    bank: AdapterBank,
    metric: str | PredictionOptions = ...,
    *,
    kernel: str = ...,
    sigma: float | None = ...,
    compatible: str = ...,
    cluster: ClusterLike = ...,
    progress: Progress | None = ...,
) -> DistanceMatrix: ...


@overload
def distances(
    bank: AdapterBank,
    metric: Metrics,
    *,
    kernel: str = ...,
    sigma: float | None = ...,
    compatible: str = ...,
    cluster: ClusterLike = ...,
    progress: Progress | None = ...,
) -> list[DistanceMatrix]: ...


def distances(
    bank: AdapterBank,
    metric: str | PredictionOptions | Metrics = "jensen-shannon",
    *,
    kernel: str = "multiscale",
    sigma: float | None = None,
    compatible: str = "correct",
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> DistanceMatrix | list[DistanceMatrix]:
    """Compute the distances between all datasets of a bank that are not stored yet, and return them all.

    Parameters
    ----------
    metric
        Name of a metric, `js`, `wd`, `kl`, `mmd`, `tf-idf` or in full; or options, whose metric it is. Of a list, a
        list of matrices in its order, which are computed side by side.
    kernel, sigma, compatible
        See `PredictionOptions`; of metrics that are given by name.
    cluster
        Options, a `distributed.Client`, or None: the default client if there is one, else threads.

    Raises
    ------
    BankNotFoundError
        The bank is empty.
    PlanError, ComputeError
        The work does not fit the memory; or a piece of it failed, and what was done is kept.

    Examples
    --------
    >>> distances(bank).to_xarray().sel(target="task001", source="task001").item()
    0.0
    >>> [matrix.metric for matrix in distances(bank, ["js", "wd"])]
    ['jensen-shannon', 'wasserstein']
    """
    several = [metric] if isinstance(metric, str | PredictionOptions) else list(metric)
    ways = [
        PredictionOptions(metric=each, kernel=kernel, sigma=sigma, compatible=compatible)
        if isinstance(each, str)
        else each
        for each in several
    ]
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        matrices = compute_distances(bank, ways, used, shown)
    return matrices[0] if isinstance(metric, str | PredictionOptions) else matrices
