"""Where a function of one number is evaluated so that its values at very many are known.

Either at each distinct number, or at few knots with a cubic spline through them. Both are linear in the
function's values: `spread` takes the values at the points to all numbers, `gather`, its transpose, takes a
gradient back.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from compute.types import FloatArray

DEGREE = 3
FEWEST_KNOTS = DEGREE + 1


class Points(Protocol):
    """Points of evaluation for a fixed list of n numbers."""

    @property
    def points(self) -> FloatArray:
        """Where to evaluate, ascending; shape (K,)."""

    def spread(self, values: FloatArray) -> FloatArray:
        """Values at all n numbers from those at the K points."""

    def gather(self, slopes: FloatArray) -> FloatArray:
        """Derivatives by the K values from those by the n values that `spread` gives."""


def points_for(numbers: FloatArray, knots: int | None) -> Points:
    """Return knots for these numbers, or the distinct numbers where they are not more, or `knots` is None.

    Raises
    ------
    ParameterError
        For fewer knots than a cubic needs.
    """
    if knots is not None and knots < FEWEST_KNOTS:
        raise ParameterError(
            f"knots: expected at least {FEWEST_KNOTS}, found {knots}; leave it out for exact"
        )
    distinct, places = np.unique(numbers, return_inverse=True)
    if knots is None or len(distinct) <= knots:
        return DistinctPoints(distinct, places)
    return SplineKnots(numbers, knots)


class DistinctPoints:
    """Each distinct number itself."""

    def __init__(self, distinct: FloatArray, places: NDArray[np.intp]) -> None:
        self.points: FloatArray = distinct
        self._places = places

    def spread(self, values: FloatArray) -> FloatArray:
        """Values at all numbers."""
        spread: FloatArray = values[self._places]
        return spread

    def gather(self, slopes: FloatArray) -> FloatArray:
        """Sum of the derivatives of equal numbers."""
        sums: FloatArray = np.bincount(self._places, slopes, len(self.points)).astype(np.float64, copy=False)
        return sums


class SplineKnots:
    """Knots from the smallest to the largest number, equally far apart in `asinh`, with a cubic spline.

    z-scores have unit deviation and, for some metrics, long tails. `asinh` is linear where they are dense and
    logarithmic in the tails. Quantiles would leave the nearest sources, which get most of the coefficients,
    to a few knots only. The spline is the one without a knot at the second and the last but one point.

    The weights of a number take about 50 bytes.
    """

    def __init__(self, numbers: FloatArray, knots: int) -> None:
        from scipy.interpolate import BSpline

        positions = np.arcsinh(numbers)
        sites = np.linspace(positions.min(), positions.max(), knots)
        ends = DEGREE + 1
        breaks = np.concatenate([[sites[0]] * ends, sites[2:-2], [sites[-1]] * ends])
        self.points: FloatArray = np.sinh(sites)
        self._weights = BSpline.design_matrix(positions, breaks, DEGREE)
        self._collocation: NDArray[Any] = BSpline.design_matrix(sites, breaks, DEGREE).toarray()

    def spread(self, values: FloatArray) -> FloatArray:
        """Values of the spline at all numbers."""
        spline: FloatArray = self._weights @ np.linalg.solve(self._collocation, values)
        return spline

    def gather(self, slopes: FloatArray) -> FloatArray:
        """Derivatives by the values at the knots."""
        by_spline = np.asarray(self._weights.T @ slopes)
        gathered: FloatArray = np.linalg.solve(self._collocation.T, by_spline)
        return gathered
