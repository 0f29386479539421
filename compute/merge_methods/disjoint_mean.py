"""TIES' election and disjoint mean, added up a source at a time, or as matrix products for many targets at once.

For each place a sign is elected: that of the sum of all values, or of all signs, where 0 counts as positive. The
result is `sum of w_j x_j / divisor` over the sources whose value has that sign, where the divisor is their number
(PEFT's `disjoint_merge`) or the sum of their weights; 0 where there are none. Both sides are added up apart, so that
one pass over the sources is enough:

    votes = sum_j x_j or sign(x_j),   upper = sum_{x_j > 0} w_j x_j,   lower = sum_{x_j < 0} w_j x_j,

with the divisors of either side. Votes are in double precision: what decides a sign depends on no order of summation
but where the sum is zero to 1e-16 of its terms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

PLACE_BYTES = 8 + 4 * 4 + 3 * 4
"""Bytes that a `DisjointMean` takes for a place, with what adding a source takes for a while."""


class DisjointMean:
    """The disjoint mean of sources that come one after another.

    Parameters
    ----------
    places
        Number of values of a source.
    majority_sign
        `total` or `frequency`.
    by_number
        Whether the divisor is the number of sources, and not the sum of their weights.
    """

    def __init__(self, places: int, majority_sign: str, by_number: bool) -> None:
        self._frequency, self._by_number = majority_sign == "frequency", by_number
        self._votes: Float64 = np.zeros(places)
        self._sums, self._divisors = np.zeros((2, 2, places), dtype=np.float32)

    def add(self, values: Float32, weights: Float32 | np.float32) -> None:
        """Add a source that has a coefficient.

        Parameters
        ----------
        values
            Shape (places,).
        weights
            Of the source: one number, or one for each place.
        """
        self._votes += np.sign(values) if self._frequency else values
        for side, has_sign in enumerate((values > 0, values < 0)):
            self._sums[side] += np.where(has_sign, values, 0) * weights
            self._divisors[side] += has_sign if self._by_number else has_sign * weights

    def mean(self) -> Float32:
        """Return the disjoint mean, shape (places,)."""
        return _elected(self._votes, self._sums, self._divisors)


def disjoint_means(
    weights: Float32, values: Float32, majority_sign: str, by_number: bool, out: Float32
) -> None:
    """Set `out` to the disjoint means of many targets: five products of a weighted sum's size, one of them in double.

    What overflows is infinite, or no number, in `out`.

    Parameters
    ----------
    weights
        Shape (M, K); a source of weight zero has no part in the target's election.
    values
        Shape (K, c).
    out
        Shape (M, c).
    """
    used = weights != 0
    votes = used.astype(np.float64) @ (np.sign(values) if majority_sign == "frequency" else values).astype(
        np.float64
    )
    shares = used.astype(np.float32) if by_number else weights
    sums, divisors = [], []
    for has_sign in (values > 0, values < 0):
        sums.append(weights @ np.where(has_sign, values, np.float32(0)))
        divisors.append(shares @ has_sign.astype(np.float32))
    out[:] = _elected(votes, np.stack(sums), np.stack(divisors))


def _elected(votes: Float64, sums: Float32, divisors: Float32) -> Float32:
    side = np.where(votes >= 0, 0, 1)[None]
    total = np.take_along_axis(sums, side, axis=0)[0]
    divisor = np.take_along_axis(divisors, side, axis=0)[0]
    found: Float32 = np.divide(total, divisor, out=np.zeros_like(total), where=divisor != 0)
    return found
