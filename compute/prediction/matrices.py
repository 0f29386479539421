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
from compute.approaches.groups import excluded_sources
from compute.approaches.options import NO_DISTANCES, PredictionOptions
from compute.approaches.registry import needs_gram
from compute.cluster.client import Cluster
from compute.combination.combine import Sources
from compute.gram.matrix import gram_matrix
from compute.pairwise.counts import token_counts
from compute.pairwise.matrix import DistanceMatrix, distance_matrices, ready_adapters


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
        The bank has fewer than two adapters, or nothing is left for a target when its group is left out.
    """
    adapters = ready_adapters(bank)
    n = len(adapters)
    if n < 2:
        raise ParameterError(
            f"{bank.path}: leave-one-out needs at least 2 adapters, the bank has {n}; ingest more"
        )
    names, groups = ([getattr(record, key) for record in adapters] for key in ("name", "group"))
    units = [excluded_sources(names, groups, way.leave_out)[0] for way in ways]
    reading = [way for way in ways if way.approach not in NO_DISTANCES]
    found = iter(compute_distances(bank, reading, cluster, progress) if reading else [])
    gram = None
    if any(needs_gram(way) for way in ways):
        gram = gram_matrix(bank, adapters, sources_of(bank, adapters), cluster, progress)
    matrices = []
    for way, unit in zip(ways, units, strict=True):
        distances = None if way.approach in NO_DISTANCES else next(found)
        matrices.append(
            Matrices(
                adapters,
                unit,
                None if distances is None else distances.values,
                "none" if distances is None else distances.metric,
                gram if needs_gram(way) else None,
            )
        )
    return matrices


def sources_of(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> Sources:
    """Return the rows to combine, with what brings each to the bank's scaling."""
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    return Sources(
        rows=np.asarray([record.row for record in adapters], dtype=np.int64),
        ratios=np.asarray([record.scaling / scaling for record in adapters], dtype=np.float32),
        b_segments=bank.layout.b_segments(),
    )
