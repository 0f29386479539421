"""The first layer of the network as lines that switch: see `compute.approaches.neural.piecewise`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.approaches.neural.network import NORM_EPSILON, Array, Parameters
from compute.types import FloatArray

Places = NDArray[np.int64]


@functools.cache
def kernels() -> ModuleType | None:
    """Return the compiled loops, or None where numba is missing or told to compile nothing."""
    try:
        import compute.approaches.neural.compiled as loops
    except ImportError:
        return None
    return loops if loops.ENABLED else None


def loops() -> Any:
    """Return the compiled loops, which are there."""
    found = kernels()
    assert found is not None, "piecewise.worth_it() has told"
    return found


@dataclass(frozen=True, slots=True, eq=False)
class FirstLayer:
    """The first layer at the points: see the module.

    Attributes
    ----------
    lines
        (A, B, beta, gamma) of each unit, shape (W, 4).
    centred
        Weights and biases less their means, shape (W, 2).
    factors
        (u, v) of each point, shape (K, 2).
    bounds, points, signs
        The switches of each unit, ascending: unit j has those from `bounds[j]` to `bounds[j + 1]`.
    """

    lines: FloatArray
    centred: FloatArray
    factors: FloatArray
    bounds: Places
    points: Places
    signs: FloatArray

    @classmethod
    def of(cls, parameters: Parameters, sites: FloatArray) -> FirstLayer:
        """Return the layer of these parameters at some points."""
        linear = np.stack([parameters["linear1.weight"][:, 0], parameters["linear1.bias"]], axis=1)
        centred = linear.astype(np.float64)
        centred -= centred.mean(axis=0)
        products = centred.T @ centred / len(centred)
        variance = sites**2 * products[0, 0] + 2 * sites * products[0, 1] + products[1, 1]
        v = 1.0 / np.sqrt(variance + NORM_EPSILON)
        gamma = parameters["norm1.weight"].astype(np.float64)
        lines = np.empty((len(centred), 4))
        lines[:, :2] = centred * gamma[:, None]
        lines[:, 2], lines[:, 3] = parameters["norm1.bias"], gamma
        factors = np.stack([sites * v, v], axis=1)
        return cls(lines, centred, factors, *loops().switches(lines, factors))

    def by_point(self, dtype: np.dtype[Any]) -> tuple[Places, Places, Array]:
        """The switches by point, as `compiled.forward_columns` takes them; those that fill up change nothing."""
        number = np.bincount(self.points, minlength=len(self.factors))
        bounds = np.concatenate([[0], np.cumsum(-(-number // 4) * 4)])
        order = np.argsort(self.points, kind="stable")
        places = np.arange(len(order)) + np.repeat(bounds[:-1] - (np.cumsum(number) - number), number)
        units = np.zeros(bounds[-1], dtype=np.int64)
        changes = np.zeros((4, bounds[-1]), dtype)
        units[places] = np.repeat(np.arange(len(self.lines)), np.diff(self.bounds))[order]
        changes[:, places] = (self.lines[units[places]] * self.signs[order][:, None]).T
        return bounds, units, changes

    def patterns(self) -> tuple[Places, Places]:
        """Pattern of each unit, ascending, and the units in that order; those of one switch at the same points."""
        number, first = np.diff(self.bounds), self.bounds[:-1]
        side = len(self.factors) + 1
        padded = np.append(self.points, [0, 0])
        key = np.where(number > 0, 1 + padded[first], 0) * side
        key += np.where(number > 1, 1 + padded[first + 1], 0)
        # Rare, and a pattern of its own each.
        many = np.flatnonzero(number > 2)
        key[many] = side * side + side + many
        units = np.argsort(key, kind="stable")
        return key[units], units

    def backward(self, dots: FloatArray, means: FloatArray, along: FloatArray) -> Parameters:
        """Return the gradient by the layer's parameters.

        Parameters
        ----------
        dots
            Shape (W, 3): products of each unit's weights with its T_u, T_v and T_1.
        means, along
            Shape (K,): means over the units of the slopes by the normalised scores, plain and times these.
        """
        gamma = self.lines[:, 3:]
        by_centred = gamma * dots[:, :2]
        by_centred -= self.factors.T @ means
        crossed = (self.factors.T * along) @ self.factors
        by_centred -= self.centred @ crossed
        return {
            "linear1.weight": by_centred[:, :1],
            "linear1.bias": by_centred[:, 1],
            "norm1.weight": np.einsum("ij,ij->i", self.centred, dots[:, :2]),
            "norm1.bias": dots[:, 2],
        }
