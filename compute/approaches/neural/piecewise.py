"""The network and its gradient at K points in a few passes over the weights of its second layer.

The first layer maps a number x to W lines, which its normalisation divides by one number a point. With a and b its
weights and biases less their means, and v = 1 / sqrt(mean((a x + b)^2) + epsilon) and u = x v, unit j passes on
`max(u A_j + v B_j + beta_j, 0)` with `A = gamma a` and `B = gamma b`. Over ascending points a unit switches between
active and not once, rarely twice, so that the sum over the active units at a point is that at the point before, and
a few units more or less:

- forward, `sum_j W_ij hidden_j = u S_A + v S_B + S_beta`, where each S sums over the active units: W^2 operations for
  all points together, instead of K W^2;
- backward, the slopes by W_ij are `A_j T_u + B_j T_v + beta_j T_1`, where each T sums the slopes of unit i, times u, v
  and 1, over the points at which j is active: again a sum that runs over the points. Units that switch at the same points
  share their T;
- the slopes by A, B, beta, and so by all of the first layer, are the products of a unit's weights with its T. What its
  normalisation subtracts needs S_A, S_B, and S_gamma of the weights alone.

So an epoch takes about `40 W^2` operations and moves `28 W^2` bytes in float32: the weights are read in the pass
forward; read, stepped by Adam with its two moments, and written in the pass back. The dense way (`dense`) takes
`6 K W^2` operations. Sums over units and over points run in double precision; what is stored is float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.approaches.neural.network import (
    BATCH,
    NORM_EPSILON,
    Adam,
    Array,
    Parameters,
    ScalarMLP,
    initial_mlp,
    parameter_shapes,
)
from compute.approaches.neural.options import NeuralOptions
from compute.metrics.base import worth_compiling
from compute.types import FloatArray

COLUMNS = 1000
"""Units of the second layer at once: what a thread sums for these stays in its core's own cache."""
SAVED = 0.08
"""Nanoseconds that a point, a weight and an epoch take less than the dense way, on a core."""

Places = NDArray[np.int64]
WEIGHTS = "linear2.weight"


@functools.cache
def kernels() -> ModuleType | None:
    """Return the compiled loops, or None where numba is missing or told to compile nothing."""
    try:
        from compute.approaches.neural import compiled
    except ImportError:
        return None
    return compiled if compiled.ENABLED else None


def worth_it(width: int, points: int, epochs: int) -> bool:
    """Whether a training goes this way; it depends on these numbers alone, and on numba being there."""
    if points > BATCH or not worth_compiling(width * width * points * epochs, SAVED):
        return False
    return kernels() is not None


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
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
    def of(cls, parameters: Parameters, sites: FloatArray) -> _Layer:
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
        return cls(lines, centred, factors, *_loops().switches(lines, factors))

    def by_point(self) -> tuple[Places, Places, FloatArray]:
        """Bounds of the switches at each point, and their units and signs; units ascend within a point."""
        order = np.argsort(self.points, kind="stable")
        units = np.repeat(np.arange(len(self.lines)), np.diff(self.bounds))
        bounds = np.searchsorted(self.points[order], np.arange(len(self.factors) + 1))
        return bounds, units[order], self.signs[order]

    def patterns(self) -> tuple[Places, Places]:
        """Bounds of the groups of units that switch at the same points, and the units."""
        number, first = np.diff(self.bounds), self.bounds[:-1]
        side = len(self.factors) + 1
        padded = np.append(self.points, [0, 0])
        key = np.where(number > 0, 1 + padded[first], 0) * side
        key += np.where(number > 1, 1 + padded[first + 1], 0)
        # Rare, and a group of its own each.
        many = np.flatnonzero(number > 2)
        key[many] = side * side + side + many
        units = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[units], prepend=-1))
        return np.append(starts, len(units)), units

    def backward(self, dots: FloatArray, means: FloatArray, along: FloatArray) -> Parameters:
        """Return the gradient by the layer's parameters.

        Parameters
        ----------
        dots
            Shape (W, 3): products of each unit's weights with its T_u, T_v and T_1.
        means, along
            Shape (K,): means over the units of the slopes by the normalised scores, plain and times these.
        """
        u, v = self.factors.T
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


def _loops() -> Any:
    """Return the compiled loops, which are there."""
    found = kernels()
    assert found is not None, "worth_it() has told"
    return found


class PiecewiseLearner:
    """A network that learns at ascending points, in the passes that the module describes; see `learner.Learner`.

    Parameters
    ----------
    sites
        Where it is evaluated, shape (K,).
    options
        Of them: width, learning rate, and seed.
    dtype
        Of parameters, moments, and values of the second layer.
    threads
        That share the passes; the results do not depend on their number.
    """

    def __init__(
        self, sites: FloatArray, options: NeuralOptions, dtype: type[np.floating[Any]], threads: int
    ) -> None:
        self.sites = sites.astype(dtype).astype(np.float64)
        initial = initial_mlp(options.width, options.generator("initial"), dtype)
        self.parameters: Parameters = {
            name: array for name, array in initial.parameters.items() if name != WEIGHTS
        }
        # A row a unit of the first layer: a pass takes those that switch together.
        self.weights: Array = np.ascontiguousarray(initial.parameters[WEIGHTS].T)
        self.adam = Adam(self.parameters, options.learning_rate)
        self.moments = (np.zeros_like(self.weights), np.zeros_like(self.weights))
        self._kept: tuple[Parameters, Array] | None = None
        self._spare: Array | None = None
        shape = (len(sites), options.width)
        self._linear, self._by_scores, self._by_scale = (np.empty(shape, dtype) for _ in range(3))
        self._inverse = np.empty(len(sites))
        self._columns = _ranges(options.width, COLUMNS)
        self._rows = _ranges(len(sites), max(1, len(sites) // (4 * threads)))
        self._threads = ThreadPoolExecutor(threads) if threads > 1 else None
        self._layer: _Layer | None = None

    def close(self) -> None:
        """End the threads."""
        if self._threads is not None:
            self._threads.shutdown()

    def keep(self) -> None:
        """Keep the network as it is now, in place of what was kept before; the weights are not copied."""
        if self._kept is not None and self._kept[1] is not self.weights:
            self._spare = self._kept[1]
        self._kept = ({name: array.copy() for name, array in self.parameters.items()}, self.weights)

    def network(self) -> ScalarMLP:
        """Return the network that was kept, or that of now where none was."""
        others, weights = self._kept or (self.parameters, self.weights)
        named = {**others, WEIGHTS: weights.T}
        return ScalarMLP({name: named[name] for name in parameter_shapes(1)})

    def values(self) -> FloatArray:
        """Evaluate at the sites."""
        p, loops = self.parameters, _loops()
        layer = self._layer = _Layer.of(p, self.sites)
        switches = layer.by_point()

        def columns(start: int, stop: int) -> None:
            loops.forward_columns(
                start,
                stop,
                self.weights,
                p["linear2.bias"],
                *switches,
                layer.lines,
                layer.factors,
                self._linear,
                self._by_scores,
                self._by_scale,
            )

        self._share(columns, self._columns)
        values = np.empty(len(self.sites))
        last = p["linear3.weight"][0]

        def rows(start: int, stop: int) -> None:
            loops.forward_rows(
                start,
                stop,
                self._linear,
                p["norm2.weight"],
                p["norm2.bias"],
                last,
                NORM_EPSILON,
                self._inverse,
                values,
            )

        self._share(rows, self._rows)
        return values + np.float64(p["linear3.bias"][0])

    def descend(self, slopes: FloatArray) -> None:
        """Make a step of Adam against the slopes by the values at the sites, which were evaluated last."""
        p, loops, layer = self.parameters, _loops(), self._layer
        assert layer is not None, "values() comes first"
        second = (self._linear, p["norm2.weight"], p["norm2.bias"], p["linear3.weight"][0])
        means, along = np.empty((2, len(self.sites)))

        def rows(start: int, stop: int) -> None:
            loops.backward_rows(start, stop, slopes, *second, means, along)

        self._share(rows, self._rows)
        gradient = np.zeros((4, len(self.weights)))
        by_linear = np.empty_like(self._linear)
        dots = np.empty((len(self._columns), len(self.weights), 3))
        step = self._step(layer)

        def columns(start: int, stop: int) -> None:
            sums = np.zeros((len(slopes) + 1, 3, stop - start))
            back = (self._inverse, means, along, layer.factors, gradient, by_linear, sums)
            loops.backward_columns(start, stop, slopes, *second, *back)
            step(start, stop, sums, dots[start // COLUMNS])

        self._share(columns, self._columns)
        self._descend_others(layer, slopes, gradient, by_linear, dots.sum(axis=0))

    def _step(self, layer: _Layer) -> Callable[[int, int, FloatArray, FloatArray], None]:
        """Return what steps some columns of the weights; they go elsewhere where those of now are kept."""
        before, loops = self.weights, _loops()
        in_place = self._kept is None or self._kept[1] is not before
        if not in_place:
            self.weights = np.empty_like(before) if self._spare is None else self._spare
            self._spare = None
        after, patterns = self.weights, layer.patterns()
        lines = np.ascontiguousarray(layer.lines[:, :3], before.dtype)
        rates = self.adam.rates(self.adam.steps + 1).astype(before.dtype)

        def step(start: int, stop: int, sums: FloatArray, dots: FloatArray) -> None:
            loops.step_columns(
                start,
                stop,
                before,
                after,
                in_place,
                *self.moments,
                sums,
                *patterns,
                layer.bounds,
                layer.points,
                layer.signs,
                lines,
                rates,
                dots,
            )

        return step

    def _descend_others(
        self,
        layer: _Layer,
        slopes: FloatArray,
        by_second: FloatArray,
        by_linear: Array,
        dots: FloatArray,
    ) -> None:
        """Make the step of all parameters but the second layer's weights."""
        means, along = np.empty((2, len(slopes)))

        def rows(start: int, stop: int) -> None:
            for others, products in ((self._by_scale, means), (self._by_scores, along)):
                _loops().row_products(start, stop, by_linear, others, products)

        self._share(rows, self._rows)
        width = len(by_second[0])
        gradient = layer.backward(dots, means / width, along / width) | {
            "linear3.weight": by_second[:1],
            "norm2.weight": by_second[1],
            "norm2.bias": by_second[2],
            "linear2.bias": by_second[3],
            "linear3.bias": slopes.sum(keepdims=True),
        }
        dtype = self.weights.dtype
        self.adam.step(
            self.parameters, {name: np.ascontiguousarray(g, dtype) for name, g in gradient.items()}
        )

    def _share(self, task: Callable[[int, int], None], ranges: Sequence[tuple[int, int]]) -> None:
        """Have all ranges done, by the threads."""
        if self._threads is None:
            for start, stop in ranges:
                task(start, stop)
        else:
            for future in [self._threads.submit(task, *limits) for limits in ranges]:
                future.result()


def _ranges(number: int, length: int) -> list[tuple[int, int]]:
    return [(start, min(start + length, number)) for start in range(0, number, length)]
