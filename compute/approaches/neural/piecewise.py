"""The network and its gradient at K points in a few passes over the weights of its second layer.

The first layer maps a number x to W lines, which its normalisation divides by one number a point. With a and b its
weights and biases less their means, and v = 1 / sqrt(mean((a x + b)^2) + epsilon) and u = x v, unit j passes on
`max(u A_j + v B_j + beta_j, 0)` with `A = gamma a` and `B = gamma b`. Over ascending points a unit switches between
active and not once, rarely twice, so that the sum over the active units at a point is that at the point before, and
a few units more or less:

- forward, `sum_j W_ij hidden_j = u S_A + v S_B + S_beta`, where each S sums over the active units: W^2 operations for
  all points together, instead of K W^2;
- backward, the slopes by W_ij are `A_j T_u + B_j T_v + beta_j T_1`, where each T sums the slopes of unit i, times u, v
  and 1, over the points at which j is active: again a sum that runs over the points. Units that switch at the same
  points share their T;
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

COLUMNS, UNITS, POINTS = 1000, 250, 32
"""Units of the second layer, of the first, and points that a thread passes over at once."""
SAVED = 0.08
"""Nanoseconds that a point, a weight and an epoch take less than the dense way, on a core."""

Places = NDArray[np.int64]
FIRST, WEIGHTS = ("linear1.weight", "linear1.bias", "norm1.weight", "norm1.bias"), "linear2.weight"


@functools.cache
def kernels() -> ModuleType | None:
    """Return the compiled loops, or None where numba is missing or told to compile nothing."""
    try:
        import compute.approaches.neural.compiled as loops
    except ImportError:
        return None
    return loops if loops.ENABLED else None


def worth_it(width: int, points: int, epochs: int) -> bool:
    """Whether a training goes this way; it depends on these numbers alone, and on numba being there."""
    return is_quicker(width, points, epochs) and kernels() is not None


def is_quicker(width: int, points: int, epochs: int) -> bool:
    """Whether a training would go this way with numba."""
    return points <= BATCH and worth_compiling(width * width * points * epochs, SAVED)


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


def _loops() -> Any:
    """Return the compiled loops, which are there."""
    found = kernels()
    assert found is not None, "worth_it() has told"
    return found


Share = Callable[[Callable[[int, int], None], Sequence[tuple[int, int]]], None]
"""What has a task done for all ranges, before it returns."""


class _Forward:
    """The network at points, and what the way back needs of it.

    Attributes
    ----------
    layer
        The first layer.
    values
        Shape (K,).
    second
        The second layer's normalised linear part, shape (K, W); its gamma and beta, and the last weights.
    inverse
        One over what that part was divided by, shape (K,).
    by_scores, by_scale
        See `compiled.forward_columns`.
    """

    def __init__(self, p: Parameters, weights: Array, sites: FloatArray, share: Share, place: Array) -> None:
        layer = self.layer = _Layer.of(p, sites)
        loops = _loops()
        linear, self.by_scores, self.by_scale = place
        of = (weights, p["linear2.bias"], *layer.by_point(weights.dtype), layer.factors)
        written = (linear, self.by_scores, self.by_scale)

        def columns(start: int, stop: int) -> None:
            loops.forward_columns(start, stop, *of, *written)

        share(columns, _ranges(len(weights), COLUMNS))
        self.second = (linear, p["norm2.weight"], p["norm2.bias"], p["linear3.weight"][0])
        self.inverse, self.values = np.empty(len(sites)), np.empty(len(sites))

        def rows(start: int, stop: int) -> None:
            loops.forward_rows(start, stop, *self.second, NORM_EPSILON, self.inverse, self.values)

        share(rows, _ranges(len(sites), POINTS))
        self.values += p["linear3.bias"][0]


def evaluate(model: ScalarMLP, points: FloatArray, threads: int) -> FloatArray:
    """Evaluate a network at ascending points, which are at most `BATCH`; its weights are read where they lie."""
    weights = np.ascontiguousarray(model.parameters[WEIGHTS].T)
    sites = points.astype(weights.dtype).astype(np.float64)
    with _Threads(threads) as shared:
        place = np.empty((3, len(sites), len(weights)), weights.dtype)
        return _Forward(dict(model.parameters), weights, sites, shared.share, place).values


class _Threads:
    """Threads that share passes, as long as a with statement lasts; one is that of the caller."""

    def __init__(self, number: int) -> None:
        self._pool = ThreadPoolExecutor(number) if number > 1 else None

    def share(self, task: Callable[[int, int], None], ranges: Sequence[tuple[int, int]]) -> None:
        """Have a task done for all ranges."""
        if self._pool is None:
            for start, stop in ranges:
                task(start, stop)
        else:
            for future in [self._pool.submit(task, *limits) for limits in ranges]:
                future.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Leftovers:
    """Large arrays that one training leaves for the next: a system clears memory more slowly than these are used."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []

    def take(self, width: int, dtype: type[np.floating[Any]]) -> Array:
        """Return an array of shape (width, width); what is in it means nothing."""
        while self._arrays:
            array = self._arrays.pop()
            if array.shape == (width, width) and array.dtype == dtype:
                return array
        return np.empty((width, width), dtype)

    def leave(self, array: Array) -> None:
        """Leave an array that nobody uses any more."""
        self._arrays.append(array)


class PiecewiseLearner:
    """A network that learns at ascending points, in the passes that the module describes; see `learners.Learner`.

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
    leftovers
        Memory of earlier trainings, which gets that of this one when it is closed.
    """

    def __init__(
        self,
        sites: FloatArray,
        options: NeuralOptions,
        dtype: type[np.floating[Any]],
        threads: int,
        leftovers: Leftovers | None = None,
    ) -> None:
        width = options.width
        self.sites = sites.astype(dtype).astype(np.float64)
        self.leftovers = leftovers or Leftovers()
        self.moments = tuple(self.leftovers.take(width, dtype) for _ in range(2))
        place = self.moments[0] if dtype is np.float32 else None
        initial = dict(initial_mlp(width, options.generator("initial"), dtype, place).parameters)
        order = _Layer.of(initial, self.sites).patterns()[1]
        # A row a unit of the first layer, those that switch together beside each other: they are passed over in order.
        self.weights: Array = _transposed(initial.pop(WEIGHTS), order, self.leftovers.take(width, dtype))
        for moment in self.moments:
            moment.fill(0.0)
        self.parameters: Parameters = {
            name: array[order] if name in FIRST else array for name, array in initial.items()
        }
        self.adam = Adam(self.parameters, options.learning_rate)
        self.gradient: Parameters = {}
        self._kept: tuple[Parameters, Array] | None = None
        self._place = np.empty((4, len(sites), width), dtype)
        self._sums = np.empty((len(sites) + 1, 3, width))
        self._threads = _Threads(threads)
        self._forward: _Forward | None = None

    def close(self) -> None:
        """End the threads, and leave memory; nothing else may be asked of the learner but its network."""
        self._threads.close()
        unused = [*self.moments]
        if self._kept is not None and self._kept[1] is not self.weights:
            unused.append(self.weights)
        for array in unused:
            self.leftovers.leave(array)
        self.moments = ()

    def keep(self) -> None:
        """Keep the network as it is now, in place of what was kept before; the weights are not copied."""
        if self._kept is not None and self._kept[1] is not self.weights:
            self.leftovers.leave(self._kept[1])
        self._kept = ({name: array.copy() for name, array in self.parameters.items()}, self.weights)

    def network(self) -> ScalarMLP:
        """Return the network that was kept, or that of now where none was."""
        others, weights = self._kept or (self.parameters, self.weights)
        named = {**others, WEIGHTS: weights.T}
        return ScalarMLP({name: named[name] for name in parameter_shapes(1)})

    def values(self) -> FloatArray:
        """Evaluate at the sites."""
        place = self._place[:3]
        self._forward = _Forward(self.parameters, self.weights, self.sites, self._threads.share, place)
        return self._forward.values

    def descend(self, slopes: FloatArray) -> None:
        """Make a step of Adam against the slopes by the values at the sites, which were evaluated last."""
        done, loops = self._forward, _loops()
        assert done is not None, "values() comes first"
        means, along = np.empty((2, len(slopes)))

        def rows(start: int, stop: int) -> None:
            loops.backward_rows(start, stop, slopes, *done.second, means, along)

        self._threads.share(rows, _ranges(len(slopes), POINTS))
        by_second = np.empty((4, len(self.weights)))
        by_linear, sums = self._place[3], self._sums
        back = (done.inverse, means, along, done.layer.factors, by_second, by_linear, sums)

        def columns(start: int, stop: int) -> None:
            loops.backward_columns(start, stop, slopes, *done.second, *back)

        self._threads.share(columns, _ranges(len(self.weights), COLUMNS))
        dots = self._step(done.layer)
        first = done.layer.backward(dots, *self._through_norm(done, by_linear))
        last = {"linear3.weight": by_second[:1], "linear3.bias": slopes.sum(keepdims=True)}
        names = ("norm2.weight", "norm2.bias", "linear2.bias")
        self.gradient = first | dict(zip(names, by_second[1:], strict=True)) | last
        dtype = self.weights.dtype
        self.adam.step(
            self.parameters, {name: np.ascontiguousarray(g, dtype) for name, g in self.gradient.items()}
        )

    def _step(self, layer: _Layer) -> FloatArray:
        """Step the weights, into other memory where those of now are kept; return the units' products with the sums."""
        before, sums = self.weights, self._sums
        in_place = self._kept is None or self._kept[1] is not before
        if not in_place:
            self.weights = self.leftovers.take(len(before), before.dtype.type)
        arrays = (before, self.weights, in_place, *self.moments)
        switches = (*layer.patterns(), layer.bounds, layer.points, layer.signs)
        lines = np.ascontiguousarray(layer.lines[:, :3], before.dtype)
        rates = self.adam.rates(self.adam.steps + 1).astype(before.dtype)
        dots = np.empty((len(before), 3))

        def units(start: int, stop: int) -> None:
            _loops().step_units(start, stop, *arrays, sums, *switches, lines, rates, dots)

        self._threads.share(units, _ranges(len(before), UNITS))
        return dots

    def _through_norm(self, done: _Forward, by_linear: Array) -> tuple[FloatArray, FloatArray]:
        """Means over the first layer of the slopes by its normalised scores, plain and times these; each shape (K,)."""
        means, along = np.empty((2, len(by_linear)))

        def rows(start: int, stop: int) -> None:
            for others, products in ((done.by_scale, means), (done.by_scores, along)):
                _loops().row_products(start, stop, by_linear, others, products)

        self._threads.share(rows, _ranges(len(by_linear), POINTS))
        return means / by_linear.shape[1], along / by_linear.shape[1]


def _transposed(weights: Array, order: Places, result: Array) -> Array:
    """Write a copy with a row for each column, in this order; some rows at a time, which a core's cache holds."""
    for start in range(0, len(weights), POINTS):
        result[:, start : start + POINTS] = weights[start : start + POINTS, order].T
    return result


def _ranges(number: int, length: int) -> list[tuple[int, int]]:
    return [(start, min(start + length, number)) for start in range(0, number, length)]
