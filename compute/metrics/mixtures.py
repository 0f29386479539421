"""Terms of the Jensen-Shannon divergence that belong to one dataset, and its compiled loop over what two have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from compute.metrics.base import Support
from compute.metrics.distributions import TokenCounts, in_blocks, probabilities, row_blocks
from compute.types import FloatArray

SUMMED_ROWS = 32
"""Datasets whose terms are summed at once."""
LOOP_ENTRIES = 2**22
"""Entries of both sides that compiled loops have at once (200 MB with all their terms)."""


class MixtureTerms:
    """The terms of one block of the Jensen-Shannon divergence.

    With `h(x) = x log x - eps log eps`, zero at eps, the divergence is
    `sum h(p + eps) / 2 + sum h(q + eps) / 2 - sum h((p + q) / 2 + eps)` over all ids. Outside the support of
    P the last term is `h(q / 2 + eps)`: its sum over the support of Q less that over the support of P.

    Attributes
    ----------
    halves, outside
        `p / 2` and `h(p / 2 + eps)`, shape (nnz,); empty if they are not `kept`.
    """

    def __init__(self, support: Support, counts: TokenCounts, epsilon: float, *, kept: bool) -> None:
        self.counts = counts
        self._support, self._epsilon, self._totals = support, epsilon, counts.totals
        self._floor = epsilon * math.log(epsilon) if epsilon else 0.0
        self.halves, self.outside = np.empty((2, 0))
        half_entropies, outside_sums = np.empty((2, len(counts)))
        size = max(len(counts), 1) if kept else SUMMED_ROWS
        for rows in row_blocks(len(counts), size):
            some = counts.select(rows)
            halves, outside, own = in_blocks(self._terms, probabilities(some), 3)
            half_entropies[rows] = some.row_sums(own) / 2
            outside_sums[rows] = some.row_sums(outside)
            if kept:
                self.halves, self.outside = halves, outside
        # What the sums are made of, which bounds their rounding.
        self.magnitudes = np.abs(half_entropies) + 1.0
        # The inner loop subtracts x log x without the floor; here it is given back.
        self.target_terms = half_entropies + self._floor * counts.lengths
        self.source_terms = half_entropies - outside_sums

    def _mixed(self, p: FloatArray) -> tuple[FloatArray, FloatArray]:
        mixed = p / 2 + self._epsilon
        return p / 2, mixed * np.log(mixed) - self._floor

    def _terms(self, p: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        smoothed = p + self._epsilon
        return *self._mixed(p), smoothed * np.log(smoothed) - self._floor

    def cuts(self, panels: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        """Where the entries of each row are cut by panels of columns; shape (B, panels + 1)."""
        last = self._support.ids[[stop - 1 for _, stop in panels]].astype(self.counts.ids.dtype)
        cuts = np.empty((len(self.counts), len(panels) + 1), dtype=np.int64)
        cuts[:, 0] = self.counts.indptr[:-1]
        for row in range(len(cuts)):
            cuts[row, 1:] = np.searchsorted(self.counts.row(row)[0], last, side="right")
        cuts[:, 1:] += cuts[:, :1]
        return cuts

    def rows(
        self, first: NDArray[np.int64], last: NDArray[np.int64], column: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], FloatArray, FloatArray]:
        """Compressed rows for the compiled loop: half of the mixture, and what the mixture's term replaces.

        Of the entries [first, last) of each row, whose columns count from `column`. With the halves smoothed by
        eps / 2 their sum is the mixture; `m log m` comes without the floor, of which each side's term therefore
        lacks half.
        """
        entries = [slice(*ends) for ends in zip(first.tolist(), last.tolist(), strict=True)]
        columns = np.concatenate([self._support.columns(self.counts.ids[some]) for some in entries])
        columns -= column
        shares = np.concatenate([self.counts.counts[some] for some in entries])
        smoothed, terms = in_blocks(self._mixed, shares / np.repeat(self._totals, last - first), 2)
        if self._epsilon:
            smoothed += self._epsilon / 2
            terms += self._floor / 2
        return np.concatenate([[0], np.cumsum(last - first)]), columns, smoothed, terms


def distances_by_loops(kernels: ModuleType, support: Support, p: MixtureTerms, q: MixtureTerms) -> FloatArray:
    """Distances by compiled loops: a logarithm for each id that both have.

    A panel of ids at a time, so that what the loops read is made for few entries at once. For an id of one of
    them alone the mixture is half of it: what its outside terms say.
    """
    alone = p is q
    distances: FloatArray = p.source_terms[:, None] + q.source_terms
    width = len(support.ids) * LOOP_ENTRIES // (len(p.counts.ids) + len(q.counts.ids))
    # Whole steps of the loop, which adds up in them: the panels do not change a digit.
    panels = list(support.panels(max(1, width // kernels.WIDTH) * kernels.WIDTH))
    target_cuts = p.cuts(panels)
    source_cuts = target_cuts if alone else q.cuts(panels)
    for n, (start, stop) in enumerate(panels):
        rows = p.rows(target_cuts[:, n], target_cuts[:, n + 1], start)
        others = rows if alone else q.rows(source_cuts[:, n], source_cuts[:, n + 1], start)
        kernels.subtract_common(distances, stop - start, *rows, *others, alone)
    return distances
