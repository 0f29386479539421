"""Matrices as small integers for pictures, that a page turns back into numbers when one points at a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = 256
"""Of a picture's palette. The first is for entries that are exactly zero or not there."""
FINE_UP_TO = 256
"""Matrices of more adapters than this take one byte an entry, smaller ones two."""
FLOOR = 1e-6
"""Coefficients below this share of the largest are shown as if they were at it."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedMatrix:
    """A matrix in steps between its smallest and its largest entry.

    Attributes
    ----------
    codes
        uint8 or uint16, shape (N, N). 0 is zero, or nothing; other entries are from `first` to `last`.
    low, high
        What `first` and `last` stand for.
    logarithmic
        Whether the steps are equal in the logarithm.
    cut
        Whether entries smaller than `low` are shown as `low`.
    """

    codes: NDArray[Any]
    low: float
    high: float
    logarithmic: bool
    cut: bool = False

    @property
    def last(self) -> int:
        """The code of `high`."""
        return largest_code(len(self.codes))

    @property
    def first(self) -> int:
        """The code of `low`: the first of the second colour."""
        return (self.last + 1) // COLOURS

    def decode(self) -> NDArray[np.float64]:
        """Return the entries that the codes stand for."""
        share = (self.codes.astype(np.float64) - self.first) / (self.last - self.first)
        if self.logarithmic:
            values = np.exp(np.log(self.low) + share * (np.log(self.high) - np.log(self.low)))
        else:
            values = self.low + share * (self.high - self.low)
        return np.where(self.codes == 0, 0.0, values)


def largest_code(number: int) -> int:
    """The largest code in pictures of so many adapters."""
    return 65535 if number <= FINE_UP_TO else 255


def encode_coefficients(values: NDArray[np.float64]) -> EncodedMatrix:
    """Encode coefficients in equal steps of the logarithm; zero stays exactly zero."""
    positive = values > 0
    high = float(values.max()) if positive.any() else 1.0
    smallest = float(values[positive].min()) if positive.any() else high
    low = max(smallest, FLOOR * high)
    with np.errstate(divide="ignore"):
        logarithms = np.log(np.where(positive, values, 1.0))
    codes = _codes(logarithms, positive, float(np.log(low)), float(np.log(high)))
    return EncodedMatrix(codes, low, high, logarithmic=True, cut=smallest < low)


def encode_distances(values: NDArray[np.float64]) -> EncodedMatrix:
    """Encode distances in equal steps; the diagonal, a dataset's distance to itself, is left out."""
    others = ~np.eye(len(values), dtype=np.bool_)
    entries = values[others] if others.any() else np.zeros(1)
    low, high = float(entries.min()), float(entries.max())
    return EncodedMatrix(_codes(values, others, low, high), low, high, logarithmic=False)


def _codes(values: NDArray[np.float64], shown: NDArray[np.bool_], low: float, high: float) -> NDArray[Any]:
    last = largest_code(len(values))
    first = (last + 1) // COLOURS
    share = np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.ones(values.shape)
    codes = first + np.rint(share * (last - first))
    return np.where(shown, codes, 0).astype(np.uint16 if last > 255 else np.uint8)
