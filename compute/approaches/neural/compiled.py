"""Inner loops of the network as machine code, by numba: see `compute.approaches.neural.piecewise`.

Nothing imports this module before a training is worth it. Every loop writes to its own columns or rows alone and sums
in an order that depends on nothing but the network, so that results do not depend on the number of threads.

Of the arrays: `lines` has shape (W, 4), a row (A, B, beta, gamma) a unit; `factors` shape (K, 2), a row (u, v) a point;
`weights` shape (W, W), a row a unit of the first layer, a column one of the second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from compute.types import FloatArray

Function = TypeVar("Function", bound=Callable[..., Any])
Array = NDArray[Any]
Places = NDArray[np.int64]

ENABLED = not vars(numba.config)["DISABLE_JIT"]
"""False where numba is told to interpret these loops, which NumPy is a hundred times faster than."""
# Sums may be taken in another order and products fused; what is not a number stays none.
_FAST = {"contract", "reassoc", "nsz"}


def _compiled(function: Function, inline: str = "never") -> Function:
    """Have a function compiled at its first call, and its machine code kept for other processes."""
    compile_ = functools.partial(numba.njit, nogil=True, error_model="numpy", fastmath=_FAST, inline=inline)
    try:
        kept: Any = compile_(cache=True)(function)
    except RuntimeError:
        # Neither this folder nor the user's own can be written: each process compiles for itself.
        kept = compile_()(function)
    return cast(Function, kept)


def _active(lines: FloatArray, factors: FloatArray, unit: int, point: int) -> bool:
    """Whether a unit passes its ReLU at a point; one that is not a number does, so that it shows in the values."""
    line = lines[unit]
    return not (factors[point, 0] * line[0] + factors[point, 1] * line[1] + line[2] <= 0.0)


_active = _compiled(_active)


@_compiled
def switches(lines: FloatArray, factors: FloatArray) -> tuple[Places, Places, FloatArray]:
    """Where each unit becomes active (+1) or stops being it (-1), the first point included.

    Returns
    -------
    Bounds of each unit's switches, shape (W + 1,); and their points, ascending for a unit, and signs.
    """
    bounds = np.zeros(len(lines) + 1, np.int64)
    for unit in range(len(lines)):
        number, before = 0, False
        for point in range(len(factors)):
            now = _active(lines, factors, unit, point)
            number += now != before
            before = now
        bounds[unit + 1] = bounds[unit] + number
    points, signs = np.empty(bounds[-1], np.int64), np.empty(bounds[-1])
    for unit in range(len(lines)):
        at, before = bounds[unit], False
        for point in range(len(factors)):
            now = _active(lines, factors, unit, point)
            if now != before:
                points[at], signs[at] = point, 1.0 if now else -1.0
                at += 1
            before = now
    return bounds, points, signs


# -- forward ---------------------------------------------------------------------------------------------


@functools.partial(_compiled, inline="always")
def _add_four(sums: FloatArray, rows: tuple[Array, Array, Array, Array], by: Array) -> None:
    """Add four rows to sums, times a factor each; these four are added in the rows' precision."""
    one, two, three, four = rows
    a, b, c, d = by[0], by[1], by[2], by[3]
    for i in range(len(sums)):
        sums[i] += (a * one[i] + b * two[i]) + (c * three[i] + d * four[i])


@_compiled
def forward_columns(
    start: int,
    stop: int,
    weights: Array,
    bias: Array,
    bounds: Places,
    units: Places,
    changes: Array,
    factors: FloatArray,
    linear: Array,
    by_scores: Array,
    by_scale: Array,
) -> None:
    """Write what the second layer's linear part is at each point, for units [start, stop) of it.

    `bounds` and `units` are the switches by point, a multiple of four at each; `changes`, shape (4, S), what each adds
    to the lines that are active. `linear` gets the whole; `by_scores` what of it the normalised scores of the first
    layer make, without beta and bias; `by_scale` the weights times gamma.
    """
    width = stop - start
    sums = np.zeros((4, width))
    for point in range(len(factors)):
        for at in range(bounds[point], bounds[point + 1], 4):
            one, two = weights[units[at], start:stop], weights[units[at + 1], start:stop]
            three, four = weights[units[at + 2], start:stop], weights[units[at + 3], start:stop]
            for q in range(4):
                _add_four(sums[q], (one, two, three, four), changes[q, at : at + 4])
        u, v = factors[point, 0], factors[point, 1]
        for i in range(width):
            scores = u * sums[0, i] + v * sums[1, i]
            by_scores[point, start + i] = scores
            by_scale[point, start + i] = sums[3, i]
            linear[point, start + i] = scores + sums[2, i] + bias[start + i]


@_compiled
def forward_rows(
    start: int,
    stop: int,
    linear: Array,
    scale: Array,
    shift: Array,
    last: Array,
    epsilon: float,
    inverse: FloatArray,
    values: FloatArray,
) -> None:
    """Normalise the second layer at the points [start, stop), in place, and write the values but for the last bias."""
    width = linear.shape[1]
    for point in range(start, stop):
        row = linear[point]
        total = 0.0
        for i in range(width):
            total += row[i]
        mean, squares = total / width, 0.0
        for i in range(width):
            squares += (row[i] - mean) ** 2
        inverse[point] = 1.0 / np.sqrt(squares / width + epsilon)
        value = 0.0
        for i in range(width):
            row[i] = (row[i] - mean) * inverse[point]
            hidden = row[i] * scale[i] + shift[i]
            # Not a maximum: what is not a number has to show.
            value += 0.0 if hidden <= 0.0 else hidden * last[i]
        values[point] = value


# -- backward --------------------------------------------------------------------------------------------


@_compiled
def backward_rows(
    start: int,
    stop: int,
    slopes: FloatArray,
    normalised: Array,
    scale: Array,
    shift: Array,
    last: Array,
    means: FloatArray,
    along: FloatArray,
) -> None:
    """Write means over the second layer of the slopes by its normalised values, plain and times those values."""
    width = normalised.shape[1]
    for point in range(start, stop):
        row = normalised[point]
        plain, times = 0.0, 0.0
        for i in range(width):
            slope = 0.0 if row[i] * scale[i] + shift[i] <= 0.0 else last[i] * scale[i]
            plain += slope
            times += slope * row[i]
        means[point], along[point] = slopes[point] * plain / width, slopes[point] * times / width


@_compiled
def backward_columns(
    start: int,
    stop: int,
    slopes: FloatArray,
    normalised: Array,
    scale: Array,
    shift: Array,
    last: Array,
    inverse: FloatArray,
    means: FloatArray,
    along: FloatArray,
    factors: FloatArray,
    gradient: FloatArray,
    by_linear: Array,
    sums: FloatArray,
) -> None:
    """Take slopes by the values back to the second layer's linear part, for units [start, stop) of it.

    `gradient`, shape (4, W), gets that by the last weights, gamma, beta and bias of the layer; `by_linear`, shape
    (K, W), the slopes; `sums`, shape (K + 1, 3, W), their sums from each point on, times u, v and 1.
    """
    gradient[:, start:stop] = 0.0
    sums[-1, :, start:stop] = 0.0
    for point in range(len(slopes) - 1, -1, -1):
        u, v, slope = factors[point, 0], factors[point, 1], slopes[point]
        for unit in range(start, stop):
            value = normalised[point, unit]
            hidden = value * scale[unit] + shift[unit]
            by_hidden = 0.0 if hidden <= 0.0 else slope * last[unit]
            gradient[0, unit] += 0.0 if hidden <= 0.0 else slope * hidden
            gradient[1, unit] += by_hidden * value
            gradient[2, unit] += by_hidden
            linear = inverse[point] * (by_hidden * scale[unit] - means[point] - value * along[point])
            gradient[3, unit] += linear
            by_linear[point, unit] = linear
            sums[point, 0, unit] = sums[point + 1, 0, unit] + u * linear
            sums[point, 1, unit] = sums[point + 1, 1, unit] + v * linear
            sums[point, 2, unit] = sums[point + 1, 2, unit] + linear


@_compiled
def row_products(start: int, stop: int, rows: Array, others: Array, products: FloatArray) -> None:
    """Write the inner products of rows [start, stop) of two matrices."""
    for k in range(start, stop):
        total = 0.0
        for i in range(rows.shape[1]):
            total += np.float64(rows[k, i]) * others[k, i]
        products[k] = total


# -- the step --------------------------------------------------------------------------------------------


@functools.partial(_compiled, inline="always")
def _advance(
    before: Array, after: Array, first: Array, second: Array, line: Array, sums: Array, rates: Array
) -> None:
    """One step of Adam for a row of weights; `rates` are as `piecewise` makes them."""
    a, b, beta = line[0], line[1], line[2]
    by_u, by_v, by_one = sums[0], sums[1], sums[2]
    keep1, add1, keep2, add2, correct2, epsilon, length = (
        rates[0], rates[1], rates[2], rates[3], rates[4], rates[5], rates[6],
    )  # fmt: skip
    for i in range(len(before)):
        slope = a * by_u[i] + b * by_v[i] + beta * by_one[i]
        moment = keep1 * first[i] + add1 * slope
        square = keep2 * second[i] + add2 * (slope * slope)
        first[i] = moment
        second[i] = square
        after[i] = before[i] - length * moment / (np.sqrt(square) * correct2 + epsilon)


@_compiled
def step_units(
    start: int,
    stop: int,
    weights: Array,
    after: Array,
    in_place: bool,
    first: Array,
    second: Array,
    sums: FloatArray,
    patterns: Places,
    units: Places,
    bounds: Places,
    points: Places,
    signs: FloatArray,
    lines: Array,
    rates: Array,
    dots: FloatArray,
) -> None:
    """Move the weights of the units at [start, stop) by a step of Adam, and write their dot products before it.

    `units` are in the order of their `patterns`: those of one, which switch at the same points, have the same three
    sums over the points at which they are active. `bounds`, `points` and `signs` are the switches by unit. `dots`,
    shape (W, 3), gets the products of each unit's weights with the sums.
    """
    exact, active = np.empty(sums.shape[1:]), np.empty(sums.shape[1:], weights.dtype)
    by_u, by_v, by_one = active[0], active[1], active[2]
    zero = weights.dtype.type(0.0)
    for place in range(start, stop):
        unit = units[place]
        if place == start or patterns[place] != patterns[place - 1]:
            exact[:] = 0.0
            for at in range(bounds[unit], bounds[unit + 1]):
                for q in range(3):
                    for i in range(sums.shape[2]):
                        exact[q, i] += signs[at] * sums[points[at], q, i]
            active[:] = exact
        row = weights[unit]
        dot_u, dot_v, dot_one = zero, zero, zero
        for i in range(len(row)):
            dot_u += row[i] * by_u[i]
            dot_v += row[i] * by_v[i]
            dot_one += row[i] * by_one[i]
        dots[unit, 0], dots[unit, 1], dots[unit, 2] = dot_u, dot_v, dot_one
        # The same row twice, so that the compiler knows: loops over two that may overlap are not vectorised.
        if in_place:
            _advance(row, row, first[unit], second[unit], lines[unit], active, rates)
        else:
            _advance(row, after[unit], first[unit], second[unit], lines[unit], active, rates)
