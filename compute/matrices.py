"""The matrices of a bank that its approaches need: distances, and the Gram matrix of the adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from compute.approaches import needs_gram
from compute.cluster import Cluster
from compute.combine import Sources
from compute.distances import DistanceMatrix, distance_matrix, ready_adapters, token_counts
from compute.gram import gram_matrix
from compute.groups import excluded_sources
from compute.options import NO_DISTANCES, PredictionOptions


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
    bank: AdapterBank, options: PredictionOptions, cluster: Cluster, progress: Progress
) -> DistanceMatrix:
    """Return all distances of a bank by the metric of `options`; the caller holds the compute lock."""
    counts = token_counts(bank, ready_adapters(bank)) if options.needs_counts else None
    return distance_matrix(bank, options.resolve_metric(counts), cluster, progress)


def compute_matrices(
    bank: AdapterBank, options: PredictionOptions, cluster: Cluster, progress: Progress
) -> Matrices:
    """Return the matrices of a bank that the approach needs; the caller holds the compute lock.

    Raises
    ------
    ParameterError
        The bank has fewer than two adapters, or nothing is left for a target when its group is left out.
    """
    adapters = ready_adapters(bank)
    n = len(adapters)
    if n < 2:
        raise ParameterError(
            f"{bank.path}: leave-one-out needs at least 2 adapters, the bank has {n}; ingest more"
        )
    names, groups = ([getattr(record, key) for record in adapters] for key in ("name", "group"))
    units, _ = excluded_sources(names, groups, options.leave_out)
    distances, metric, gram = None, "none", None
    if options.approach not in NO_DISTANCES:
        found = compute_distances(bank, options, cluster, progress)
        distances, metric = found.values, found.metric
    if needs_gram(options):
        gram = gram_matrix(bank, adapters, sources_of(bank, adapters), cluster, progress)
    return Matrices(adapters, units, distances, metric, gram)


def sources_of(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> Sources:
    """Return the rows to combine, with what brings each to the bank's scaling."""
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    return Sources(
        rows=np.asarray([record.row for record in adapters], dtype=np.int64),
        ratios=np.asarray([record.scaling / scaling for record in adapters], dtype=np.float32),
        b_segments=bank.layout.b_segments(),
    )
