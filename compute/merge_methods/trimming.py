"""Magnitude pruning: of each tensor the largest values are kept, a share of them that is the density.

As PEFT's `magnitude_based_pruning` has it, `k = int(density * n)` values are kept, by `torch.topk`. Which of several
values of one magnitude at the border that takes is not specified; here it is the first ones, so that the result is the
same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Border:
    """What is kept of a tensor: magnitudes above the threshold, and those at it that come before a place.

    Attributes
    ----------
    threshold
        The smallest magnitude that is kept; infinity keeps nothing.
    stop
        Place in the tensor, from 0 on: of equal magnitudes those before it are kept.
    """

    threshold: float
    stop: int


def border_of(tensor: Float32, density: float) -> Border:
    """Return what is kept of a tensor, shape (n,).

    Parameters
    ----------
    density
        In (0, 1].
    """
    number = len(tensor)
    kept = int(density * number)
    if kept == 0:
        return Border(np.inf, 0)
    magnitudes = np.abs(tensor)
    threshold = np.partition(magnitudes, number - kept)[number - kept]
    at = np.flatnonzero(magnitudes == threshold)
    above = int(np.count_nonzero(magnitudes > threshold))
    return Border(float(threshold), int(at[kept - above - 1]) + 1)


def trim(values: Float32, border: Border, first: int = 0) -> None:
    """Set to zero, in place, what is not kept.

    Parameters
    ----------
    values
        Values of the tensor from place `first` on, shape (m,).
    """
    magnitudes = np.abs(values)
    dropped = magnitudes < border.threshold
    after = max(border.stop - first, 0)
    dropped[after:] |= magnitudes[after:] == border.threshold
    values[dropped] = 0
