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

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.approaches.neural.first_layer import FirstLayer, kernels, loops
from compute.approaches.neural.network import (
    BATCH,
    NORM_EPSILON,
    Adam,
    Array,
    Parameters,
    ScalarMLP,
    below,
    initial_mlp,
    parameter_shapes,
)
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.workspace import Share, State, Threads, Workspace, ranges
from compute.metrics.base import worth_compiling
from compute.types import FloatArray

COLUMNS, UNITS, POINTS = 1000, 250, 32
"""Units of the second layer, of the first, and points that a thread passes over at once."""
SAVED = 0.08
"""Nanoseconds that a point, a weight and an epoch take less than the dense way, on a core."""

Places = NDArray[np.int64]
FIRST, WEIGHTS = ("linear1.weight", "linear1.bias", "norm1.weight", "norm1.bias"), "linear2.weight"
BY_UNIT = "linear2.by.unit"
"""Of a state: weights that lie otherwise than those of the dense way."""


def worth_it(width: int, points: int, epochs: int) -> bool:
    """Whether a training goes this way; it depends on these numbers alone, and on numba being there."""
    return is_quicker(width, points, epochs) and kernels() is not None


def is_quicker(width: int, points: int, epochs: int) -> bool:
    """Whether a training would go this way with numba."""
    return points <= BATCH and worth_compiling(width * width * points * epochs, SAVED)


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
        layer, compiled = FirstLayer.of(p, sites), loops()
        self.layer = layer
        linear, self.by_scores, self.by_scale = place
        of = (weights, p["linear2.bias"], *layer.by_point(weights.dtype), layer.factors)
        written = (linear, self.by_scores, self.by_scale)

        def columns(start: int, stop: int) -> None:
            compiled.forward_columns(start, stop, *of, *written)

        share(columns, ranges(len(weights), COLUMNS))
        self.second = (linear, p["norm2.weight"], p["norm2.bias"], p["linear3.weight"][0])
        self.inverse, self.values = np.empty(len(sites)), np.empty(len(sites))

        def rows(start: int, stop: int) -> None:
            compiled.forward_rows(start, stop, *self.second, NORM_EPSILON, self.inverse, self.values)

        share(rows, ranges(len(sites), POINTS))
        self.values += p["linear3.bias"][0]


def evaluate(model: ScalarMLP, points: FloatArray, threads: int) -> FloatArray:
    """Evaluate a network at ascending points, which are at most `BATCH`; its weights are read where they lie."""
    weights = np.ascontiguousarray(model.parameters[WEIGHTS].T)
    sites = points.astype(weights.dtype).astype(np.float64)
    with Threads(threads) as shared:
        place = np.empty((3, len(sites), len(weights)), weights.dtype)
        return _Forward(dict(model.parameters), weights, sites, shared.share, place).values


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
    workspace
        Of earlier trainings; it gets the memory of this one when that is closed.
    """

    def __init__(
        self,
        sites: FloatArray,
        options: NeuralOptions,
        dtype: type[np.floating[Any]],
        workspace: Workspace | None = None,
    ) -> None:
        width = options.width
        self.sites = sites.astype(dtype).astype(np.float64)
        self.workspace = workspace or Workspace()
        self.moments = tuple(self.workspace.take(width, dtype) for _ in range(2))
        place = self.moments[0] if dtype is np.float32 else None
        initial = dict(initial_mlp(width, options.generator("initial"), dtype, place).parameters)
        order = FirstLayer.of(initial, self.sites).patterns()[1]
        # A row a unit of the first layer, those that switch together beside each other: they are passed over in order.
        self.weights: Array = _transposed(initial.pop(WEIGHTS), order, self.workspace.take(width, dtype))
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
        self._threads = Threads(self.workspace.threads)
        self._forward: _Forward | None = None

    def close(self) -> None:
        """End the threads, and leave memory; nothing else may be asked of the learner but its network."""
        self._threads.close()
        unused = [*self.moments]
        if self._kept is not None and self._kept[1] is not self.weights:
            unused.append(self.weights)
        for array in unused:
            self.workspace.leave(array)
        self.moments = ()

    def keep(self) -> None:
        """Keep the network as it is now, in place of what was kept before; the weights are not copied."""
        if self._kept is not None and self._kept[1] is not self.weights:
            self.workspace.leave(self._kept[1])
        self._kept = ({name: array.copy() for name, array in self.parameters.items()}, self.weights)

    def network(self) -> ScalarMLP:
        """Return the network that was kept, or that of now where none was."""
        others, weights = self._kept or (self.parameters, self.weights)
        named = {**others, WEIGHTS: weights.T}
        return ScalarMLP({name: named[name] for name in parameter_shapes(1)})

    def state(self) -> State:
        """Return the parameters, those that were kept, and the moments; the kept weights where they are others."""
        moments = dict(zip(("first", "second"), self.moments, strict=True))
        state = below("now", self.parameters | {BY_UNIT: self.weights}) | self.adam.state()
        state |= {f"{name}.{BY_UNIT}": moment for name, moment in moments.items()}
        if self._kept is not None:
            state |= below("kept", self._kept[0])
            if self._kept[1] is not self.weights:
                state[f"kept.{BY_UNIT}"] = self._kept[1]
        return state

    def resume(self, state: State) -> bool:
        """Go on from what `state` returned; not from a state of dense matrices."""
        if f"now.{BY_UNIT}" not in state:
            return False
        self.adam.resume(state)
        whole = self.parameters | {BY_UNIT: self.weights}
        for name, array in whole.items():
            array[...] = state[f"now.{name}"]
        for name, moment in zip(("first", "second"), self.moments, strict=True):
            moment[...] = state[f"{name}.{BY_UNIT}"]
        if "kept.linear1.weight" in state:
            weights = self.weights
            if f"kept.{BY_UNIT}" in state:
                weights = self.workspace.take(len(weights), weights.dtype.type)
                weights[...] = state[f"kept.{BY_UNIT}"]
            self._kept = ({name: state[f"kept.{name}"].copy() for name in self.parameters}, weights)
        return True

    def values(self) -> FloatArray:
        """Evaluate at the sites."""
        place = self._place[:3]
        self._forward = _Forward(self.parameters, self.weights, self.sites, self._threads.share, place)
        return self._forward.values

    def descend(self, slopes: FloatArray) -> None:
        """Make a step of Adam against the slopes by the values at the sites, which were evaluated last."""
        done, compiled = self._forward, loops()
        assert done is not None, "values() comes first"
        means, along = np.empty((2, len(slopes)))

        def rows(start: int, stop: int) -> None:
            compiled.backward_rows(start, stop, slopes, *done.second, means, along)

        self._threads.share(rows, ranges(len(slopes), POINTS))
        by_second = np.empty((4, len(self.weights)))
        by_linear, sums = self._place[3], self._sums
        back = (done.inverse, means, along, done.layer.factors, by_second, by_linear, sums)

        def columns(start: int, stop: int) -> None:
            compiled.backward_columns(start, stop, slopes, *done.second, *back)

        self._threads.share(columns, ranges(len(self.weights), COLUMNS))
        dots = self._step(done.layer)
        first = done.layer.backward(dots, *self._through_norm(done, by_linear))
        last: Parameters = {"linear3.weight": by_second[:1], "linear3.bias": slopes.sum(keepdims=True)}
        names = ("norm2.weight", "norm2.bias", "linear2.bias")
        self.gradient = first | dict(zip(names, by_second[1:], strict=True)) | last
        dtype = self.weights.dtype
        self.adam.step(
            self.parameters, {name: np.ascontiguousarray(g, dtype) for name, g in self.gradient.items()}
        )

    def _step(self, layer: FirstLayer) -> FloatArray:
        """Step the weights, into other memory where those of now are kept; return the units' products with the sums."""
        before, sums = self.weights, self._sums
        in_place = self._kept is None or self._kept[1] is not before
        if not in_place:
            self.weights = self.workspace.take(len(before), before.dtype.type)
        arrays = (before, self.weights, in_place, *self.moments)
        switches = (*layer.patterns(), layer.bounds, layer.points, layer.signs)
        lines = np.ascontiguousarray(layer.lines[:, :3], before.dtype)
        rates = self.adam.rates(self.adam.steps + 1).astype(before.dtype)
        dots = np.empty((len(before), 3))

        def units(start: int, stop: int) -> None:
            loops().step_units(start, stop, *arrays, sums, *switches, lines, rates, dots)

        self._threads.share(units, ranges(len(before), UNITS))
        return dots

    def _through_norm(self, done: _Forward, by_linear: Array) -> tuple[FloatArray, FloatArray]:
        """Means over the first layer of the slopes by its normalised scores, plain and times these; each shape (K,)."""
        means, along = np.empty((2, len(by_linear)))

        def rows(start: int, stop: int) -> None:
            for others, products in ((done.by_scale, means), (done.by_scores, along)):
                loops().row_products(start, stop, by_linear, others, products)

        self._threads.share(rows, ranges(len(by_linear), POINTS))
        return means / by_linear.shape[1], along / by_linear.shape[1]


def _transposed(weights: Array, order: Places, result: Array) -> Array:
    """Write a copy with a row for each column, in this order; some rows at a time, which a core's cache holds."""
    for start in range(0, len(weights), POINTS):
        result[:, start : start + POINTS] = weights[start : start + POINTS, order].T
    return result
