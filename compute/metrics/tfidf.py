"""Cosine distance of tf-idf vectors over token ids (Salton and Buckley, 1988, Term-weighting approaches).

The term frequency of an id is its share of a dataset's tokens; its inverse document frequency is the smoothed
`ln((1 + N) / (1 + n)) + 1`, n of the N datasets having the id. Ids that all datasets have, such as spaces and
full stops, count least.

The inverse document frequencies are those of all N datasets of the bank, a leave-one-out target among them:
its dataset is known when it is predicted for, its adapter is not. A new dataset is not counted: they stay the
bank's. They are part of the metric's key, and so a matrix is computed anew when the bank changes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bankdb.errors import ParameterError
from compute.metrics.aligned import Aligned, align
from compute.metrics.base import Metric, Support, panel, panel_width, recompute_cancelled, support_bytes
from compute.metrics.distributions import CountsRow, TokenCounts, probabilities
from compute.types import FloatArray

CANCELLED = 1e-5
"""Distances below this are computed from the difference of the vectors; above it, one minus the cosine has
ten digits."""


def inverse_document_frequencies(counts: TokenCounts) -> FloatArray:
    """`ln((1 + N) / (1 + n)) + 1` of each of V token ids, n of N datasets having it; shape (V,)."""
    having = np.bincount(counts.ids, minlength=counts.vocabulary)
    frequencies: FloatArray = np.log((1.0 + len(counts)) / (1.0 + having)) + 1.0
    return frequencies


@dataclass(frozen=True, slots=True, eq=False)
class TfIdf(Metric):
    """One minus the cosine of two tf-idf vectors, in [0, 1].

    Attributes
    ----------
    frequencies
        Shape (V,): inverse document frequency of each id, above zero.
    """

    name: ClassVar[str] = "tf-idf"
    short: ClassVar[str] = "tf-idf"
    symmetric: ClassVar[bool] = True
    frequencies: FloatArray

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(self.frequencies, dtype=np.float64)
        if values.ndim != 1 or not np.all((values > 0) & (values < np.inf)):
            raise ParameterError(
                "tf-idf: expected an inverse document frequency above 0 for each token id, found others;"
                " compute them from the bank's counts"
            )
        object.__setattr__(self, "frequencies", values)

    @property
    def key(self) -> str:
        """See `Metric.key`."""
        return f"tf-idf-{hashlib.sha256(self.frequencies.astype('<f8').tobytes()).hexdigest()[:16]}"

    def largest(self, vocabulary: int) -> float:
        """See `Metric.largest`."""
        return 1.0

    def block(self, targets: TokenCounts, sources: TokenCounts) -> FloatArray:
        """See `Metric.block`; a sparse product of unit vectors, a panel of ids at a time."""
        alone = targets is sources
        support = Support(targets, sources)
        left = support.matrix(targets, self._unit_values(targets))
        right = left if alone else support.matrix(sources, self._unit_values(sources))
        distances = np.ones((len(targets), len(sources)))
        for start, stop in support.panels(panel_width(len(sources))):
            distances -= left[:, start:stop] @ panel(right, start, stop).T
        np.clip(distances, 0.0, 1.0, out=distances)
        recompute_cancelled(distances, CANCELLED, targets, sources, self._distance, upper_only=alone)
        return distances

    def pair(self, p: CountsRow, q: CountsRow, vocabulary: int) -> float:
        """See `Metric.pair`."""
        self._check(vocabulary)
        return self._distance(align(p, q))

    def workspace_bytes(self, targets: int, sources: int, vocabulary: int, nnz_per_dataset: int) -> int:
        """See `Metric.workspace_bytes`."""
        datasets = targets + sources
        panels = 2 * 8 * sources * min(panel_width(sources), vocabulary)
        return (
            support_bytes(datasets, vocabulary, nnz_per_dataset, values=3)
            + panels
            + 5 * 8 * targets * sources
        )

    def _unit_values(self, counts: TokenCounts) -> FloatArray:
        """Entries of the tf-idf vectors of length 1; shape (nnz,)."""
        self._check(counts.vocabulary)
        values = probabilities(counts) * self.frequencies[counts.ids]
        unit: FloatArray = values / np.repeat(np.sqrt(counts.row_sums(values * values)), counts.lengths)
        return unit

    def _distance(self, pair: Aligned) -> float:
        """One minus the cosine of x and y = x - d, from the parts of y along x and across it.

        With these u and v it is `1 - u / h = v^2 / (h (h + u))`, h = sqrt(u^2 + v^2): nothing cancels, as the
        difference d of the distributions is exact.
        """
        x, d = (values * self.frequencies[pair.ids] for values in (pair.p, pair.difference))
        length = float(np.sqrt(x @ x))
        x /= length
        along = float(x @ d)
        across = d - along * x
        u, squared = max(length - along, 0.0), float(across @ across)
        h = math.sqrt(u * u + squared)
        return min(squared / (h * (h + u)), 1.0)

    def _check(self, vocabulary: int) -> None:
        if vocabulary != len(self.frequencies):
            raise ParameterError(
                f"tf-idf: expected counts over {len(self.frequencies)} token ids, found {vocabulary};"
                " use those of the same bank"
            )
