"""1-Wasserstein distance on token ids as points of the line (arXiv 2507.01806, appendix C.1.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from compute.metrics.aligned import Aligned, align
from compute.metrics.base import (
    Metric,
    Support,
    compiled_kernels,
    panel,
    panel_width,
    recompute_cancelled,
    support_bytes,
)
from compute.metrics.distributions import CountsRow, TokenCounts
from compute.types import FloatArray

ROUNDING = 4 * np.finfo(np.float64).eps
"""Rounding of one difference of two cumulative sums, with a margin."""
RELATIVE_ACCURACY = 1e-10
SAVED = 0.6
"""Nanoseconds that the compiled loop saves for each id of a pair."""


@dataclass(frozen=True, slots=True)
class Wasserstein(Metric):
    """`sum_k abs(F_P(k) - F_Q(k))` over token ids, in token ids."""

    name: ClassVar[str] = "wasserstein"
    short: ClassVar[str] = "wd"
    symmetric: ClassVar[bool] = True
    relative_cost: ClassVar[float] = 0.6
    dataset_pairs: ClassVar[int] = 45

    @property
    def key(self) -> str:
        """See `Metric.key`."""
        return self.name

    def block(self, targets: TokenCounts, sources: TokenCounts) -> FloatArray:
        """See `Metric.block`; T S U absolute differences, U the ids that occur in the block."""
        alone = targets is sources
        support = Support(targets, sources)
        # Between two ids of the support every cumulative sum is constant: scale by the gap, sum once.
        gaps = np.diff(support.ids, append=support.ids[-1:]).astype(np.float64)
        kernels = compiled_kernels(len(targets) * len(sources) * len(gaps), SAVED)
        distances: FloatArray
        if kernels is None:
            distances = _summed_panels(support, targets, sources, gaps)
        else:
            p = _rows(support, targets)
            q = p if alone else _rows(support, sources)
            distances = kernels.cumulative_distances(*p, *q, gaps, alone)
        bound = targets.vocabulary * ROUNDING / RELATIVE_ACCURACY
        recompute_cancelled(distances, bound, targets, sources, _distance, upper_only=alone)
        return distances

    def pair(self, p: CountsRow, q: CountsRow, vocabulary: int) -> float:
        """See `Metric.pair`."""
        return _distance(align(p, q))

    def workspace_bytes(self, targets: int, sources: int, vocabulary: int, nnz_per_dataset: int) -> int:
        """See `Metric.workspace_bytes`."""
        datasets = targets + sources
        columns = min(panel_width(datasets), vocabulary)
        # Two panels and the one being made, and two results of cdist beside the block and its transpose.
        panels = 2 * 8 * datasets * columns
        return support_bytes(datasets, vocabulary, nnz_per_dataset) + panels + 4 * 8 * targets * sources


def _rows(
    support: Support, counts: TokenCounts
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint32] | NDArray[np.uint64], FloatArray]:
    return counts.indptr, support.columns(counts.ids), counts.counts, counts.totals


def _summed_panels(
    support: Support, targets: TokenCounts, sources: TokenCounts, gaps: FloatArray
) -> FloatArray:
    from scipy.spatial.distance import cdist

    distances = np.zeros((len(targets), len(sources)))
    width = panel_width(len(targets) + len(sources))
    steps = zip(
        _cumulative_panels(support, targets, gaps, width),
        _cumulative_panels(support, sources, gaps, width),
        strict=True,
    )
    for target_panel, source_panel in steps:
        distances += cdist(target_panel, source_panel, "cityblock")
    return distances


def _cumulative_panels(
    support: Support, counts: TokenCounts, gaps: FloatArray, width: int
) -> Iterator[FloatArray]:
    """Cumulative sums at the support's ids, each times the gap to the next id, in panels of columns."""
    matrix = support.matrix(counts, counts.counts.astype(np.float64))
    totals = counts.totals[:, None]
    carried = np.zeros((len(counts), 1))
    for start, stop in support.panels(width):
        sums = panel(matrix, start, stop)
        sums[:, :1] += carried
        np.cumsum(sums, axis=1, out=sums)
        carried = sums[:, -1:].copy()
        sums /= totals
        sums *= gaps[start:stop]
        yield sums


def _distance(pair: Aligned) -> float:
    gaps = np.diff(pair.ids)
    return float(np.abs(pair.cumulative_difference[:-1]) @ gaps)
