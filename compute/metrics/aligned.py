"""Two datasets on their common ids, with the difference of their distributions free of cancellation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.metrics.distributions import CountsRow
from compute.types import FloatArray

LARGEST_PRODUCT = 2**62
"""Products and their partial sums up to this fit in 64 bits; above it Python's own integers are used."""


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """Distributions p and q on the union of their supports.

    Attributes
    ----------
    ids
        Shape (n,): ids in either support, ascending.
    p, q
        Shape (n,): probabilities.
    numerators
        Shape (n,): `(p - q) * denominator` as exact integers, int64 or (for billions of tokens) Python's.
    denominator
        Product of the two totals.
    """

    ids: NDArray[np.int64]
    p: FloatArray
    q: FloatArray
    numerators: NDArray[Any]
    denominator: float

    @property
    def difference(self) -> FloatArray:
        """Shape (n,): p - q, rounded once."""
        return self.numerators.astype(np.float64) / self.denominator

    @property
    def cumulative_difference(self) -> FloatArray:
        """Shape (n,): the difference of the cumulative distributions at the ids, rounded once; it ends in 0."""
        return np.cumsum(self.numerators).astype(np.float64) / self.denominator


def align(p: CountsRow, q: CountsRow) -> Aligned:
    """Put two datasets on the union of their ids.

    With counts c and totals N, `p - q = (c_p N_q - c_q N_p) / (N_p N_q)`: integers until the division, so
    that nearly equal datasets keep every digit of their difference.
    """
    ids = np.union1d(p[0], q[0]).astype(np.int64)
    counts_p, counts_q = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    counts_p[np.searchsorted(ids, p[0])] = p[1]
    counts_q[np.searchsorted(ids, q[0])] = q[1]
    total_p, total_q = int(counts_p.sum()), int(counts_q.sum())
    numerators: NDArray[Any]
    if total_p * total_q <= LARGEST_PRODUCT:
        numerators = counts_p * total_q - counts_q * total_p
    else:
        numerators = counts_p.astype(object) * total_q - counts_q.astype(object) * total_p
    return Aligned(ids, counts_p / total_p, counts_q / total_q, numerators, float(total_p * total_q))
