"""Inner loops as machine code, by numba; what they compute is said where they are called.

Nothing imports this module before a block is worth it (`blocks.compiled_kernels`). Each loop has a NumPy
counterpart, which is what runs where numba is not installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from compute.types import FloatArray

Function = TypeVar("Function", bound=Callable[..., Any])
Columns = NDArray[np.int32]
Rows = NDArray[np.uint32]

ENABLED = not vars(numba.config)["DISABLE_JIT"]
"""False where numba is told to interpret these loops, which NumPy is a hundred times faster than."""
WIDTH = 128
"""Ids at once. Of the sums of some hundred datasets (1 kB each) this is what a core's own cache holds."""
BLOCK = 256
"""Targets at once: their sums at WIDTH ids (256 kB) stay in a core's own cache while the sources pass."""
BUFFERED = 1024
"""Logarithms at once: the buffer stays in the first cache, and loops over it are long."""


def compiled(function: Function, *, fastmath: bool | set[str] = False) -> Function:
    """Have a function compiled at its first call, and its machine code kept for other processes."""
    compile_ = functools.partial(numba.njit, nogil=True, error_model="numpy", fastmath=fastmath)
    try:
        kept: Any = compile_(cache=True)(function)
    except RuntimeError:
        # Neither this folder nor the user's own can be written: each process compiles for itself.
        kept = compile_()(function)
    return cast(Function, kept)


# -- the logarithm -------------------------------------------------------------------------------------


def _reinterpreted(source: Any, target: Any, llvm: ir.Type) -> Any:
    """Return a function for compiled code that reads the 64 bits of one type as another type's."""

    def typed(context: Any, value: Any) -> Any:
        def generated(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], llvm)

        return target(source), generated

    return intrinsic(typed)


_bits = _reinterpreted(numba.float64, numba.int64, ir.IntType(64))
_number = _reinterpreted(numba.int64, numba.float64, ir.DoubleType())

_ROOT_HALF = np.int64(0x3FE6A09E667F3BCD)  # the bits of sqrt(1/2)
_EXPONENT = np.int64(-(1 << 52))
_BIAS = np.int64(1 << 62)
_FIELD = np.int64(0xFFF)
_TWO_52 = np.int64(0x4330000000000000)  # the bits of 2^52: with an integer in its last bits, 2^52 and that
_UNBIASED = 2.0**52 + 1024.0
_LOG_2 = float(np.log(2.0))
# log((1 + s) / (1 - s)) = 2 s + s z R(z) with z = s^2; R is the best polynomial, to 1.2e-18 of the logarithm,
# for (1 + s) / (1 - s) from sqrt(1/2) to sqrt(2).
_R0, _R1, _R2, _R3 = 0.6666666666666735, 0.3999999999941188, 0.2857142874280584, 0.22222198541920113
_R4, _R5, _R6 = 0.18183565578442368, 0.15314024851087876, 0.14796162160740797


def _logarithm(x: float) -> float:
    """Natural logarithm of a normal number above zero, to 2 units in the last place; no branch, no table."""
    bits = _bits(x)
    scaled = bits - _ROOT_HALF
    f = _number(bits - (scaled & _EXPONENT)) - 1.0
    exponent = _number((((scaled + _BIAS) >> np.int64(52)) & _FIELD) | _TWO_52) - _UNBIASED
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    r = (_R0 + _R1 * z) + w * ((_R2 + _R3 * z) + w * ((_R4 + _R5 * z) + w * _R6))
    # 2 s = f - s f keeps the leading term exact.
    result: float = exponent * _LOG_2 + (f - s * (f - z * r))
    return result


_logarithm = compiled(_logarithm, fastmath={"contract"})


def _logarithms(values: FloatArray, results: FloatArray) -> None:
    for n in range(len(values)):
        results[n] = _logarithm(values[n])


logarithms = compiled(_logarithms, fastmath={"contract"})
"""Natural logarithms of an array of normal numbers above zero, into another."""


# -- Wasserstein ---------------------------------------------------------------------------------------


def _cumulative(
    sums: FloatArray,
    start: int,
    stop: int,
    indptr: NDArray[np.int64],
    columns: Columns,
    counts: Rows,
    totals: FloatArray,
    gaps: FloatArray,
    position: NDArray[np.int64],
    carried: FloatArray,
) -> None:
    """Write the scaled cumulative sums at the columns [start, stop); `position` and `carried` move on."""
    width = stop - start
    for i in range(len(totals)):
        row = sums[i]
        row[:] = 0.0
        at, end = position[i], indptr[i + 1]
        while at < end and columns[at] < stop:
            row[columns[at] - start] = counts[at]
            at += 1
        position[i] = at
        # Sums of counts are exact.
        running = carried[i]
        for k in range(width):
            running += row[k]
            row[k] = running
        carried[i] = running
        for k in range(width):
            row[k] = row[k] / totals[i] * gaps[start + k]


_cumulative = compiled(_cumulative)


def _add_differences(p: FloatArray, q: FloatArray, distances: FloatArray, upper: bool) -> None:
    """Add the L1 distances of the rows, two targets by four sources at once, so that loads are shared."""
    for first in range(0, len(p), BLOCK):
        last = min(first + BLOCK, len(p))
        for j in range(first if upper else 0, len(q), 4):
            q0, q1, q2, q3 = q[j], q[j + 1], q[j + 2], q[j + 3]
            for i in range(first, min(last, j + 4) if upper else last, 2):
                p0, p1 = p[i], p[i + 1]
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = 0.0
                for k in range(WIDTH):
                    a0 += abs(p0[k] - q0[k])
                    a1 += abs(p0[k] - q1[k])
                    a2 += abs(p0[k] - q2[k])
                    a3 += abs(p0[k] - q3[k])
                    b0 += abs(p1[k] - q0[k])
                    b1 += abs(p1[k] - q1[k])
                    b2 += abs(p1[k] - q2[k])
                    b3 += abs(p1[k] - q3[k])
                distances[i, j] += a0
                distances[i, j + 1] += a1
                distances[i, j + 2] += a2
                distances[i, j + 3] += a3
                distances[i + 1, j] += b0
                distances[i + 1, j + 1] += b1
                distances[i + 1, j + 2] += b2
                distances[i + 1, j + 3] += b3


# Several sums side by side fill the vector registers; the differences themselves are as written.
_add_differences = compiled(_add_differences, fastmath={"reassoc", "nsz"})


def _cumulative_distances(
    target_indptr: NDArray[np.int64],
    target_columns: Columns,
    target_counts: Rows,
    target_totals: FloatArray,
    source_indptr: NDArray[np.int64],
    source_columns: Columns,
    source_counts: Rows,
    source_totals: FloatArray,
    gaps: FloatArray,
    upper: bool,
) -> FloatArray:
    targets, sources = len(target_totals), len(source_totals)
    # Rows of zeros fill up the last pair of targets and the last four sources.
    p, q = np.zeros((targets + targets % 2, WIDTH)), np.zeros((sources + -sources % 4, WIDTH))
    distances = np.zeros((len(p), len(q)))
    target_at, source_at = target_indptr[:-1].copy(), source_indptr[:-1].copy()
    target_sums, source_sums = np.zeros(targets), np.zeros(sources)
    for start in range(0, len(gaps), WIDTH):
        stop = min(start + WIDTH, len(gaps))
        _cumulative(
            p, start, stop, target_indptr, target_columns, target_counts, target_totals, gaps, target_at, target_sums
        )  # fmt: skip
        _cumulative(
            q, start, stop, source_indptr, source_columns, source_counts, source_totals, gaps, source_at, source_sums
        )  # fmt: skip
        _add_differences(p, q, distances, upper)
    return distances[:targets, :sources].copy()


cumulative_distances = compiled(_cumulative_distances)
"""`sum_k gaps[k] abs(F_P(k) - F_Q(k))` of targets and sources, both as compressed rows of counts.

With `upper` the entries below the diagonal mean nothing.
"""


# -- Jensen-Shannon ------------------------------------------------------------------------------------


def _flush(
    mixed: FloatArray,
    less: FloatArray,
    used: int,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    pieces: int,
    rows: Rows,
    sums: FloatArray,
) -> None:
    """Add `m log m - less`, of the pieces that the buffers hold, to the sums of the sources."""
    for n in range(used):
        mixed[n] = mixed[n] * _logarithm(mixed[n]) - less[n]
    n = 0
    for piece in range(pieces):
        low, high = starts[piece], stops[piece]
        sources, values = rows[low:high], mixed[n : n + high - low]
        for at in range(high - low):
            sums[sources[at]] += values[at]
        n += high - low


_flush = compiled(_flush, fastmath={"contract"})


def _transpose(
    width: int, indptr: NDArray[np.int64], columns: Columns, halves: FloatArray, terms: FloatArray
) -> tuple[NDArray[np.int64], Rows, FloatArray, FloatArray]:
    """Turn compressed rows of two values into compressed columns, rows ascending in each."""
    starts = np.zeros(width + 1, np.int64)
    for column in columns:
        starts[column + 1] += 1
    starts = np.cumsum(starts)
    free = starts[:-1].copy()
    rows, first, second = np.empty(len(columns), np.uint32), np.empty(len(columns)), np.empty(len(columns))
    for row in range(len(indptr) - 1):
        for entry in range(indptr[row], indptr[row + 1]):
            at = free[columns[entry]]
            rows[at], first[at], second[at] = row, halves[entry], terms[entry]
            free[columns[entry]] += 1
    return starts, rows, first, second


_transpose = compiled(_transpose)


def _subtract_common(
    distances: FloatArray,
    width: int,
    indptr: NDArray[np.int64],
    columns: Columns,
    target_halves: FloatArray,
    target_terms: FloatArray,
    source_indptr: NDArray[np.int64],
    source_columns: Columns,
    source_row_halves: FloatArray,
    source_row_terms: FloatArray,
    upper: bool,
) -> None:
    targets, sources = distances.shape
    starts, rows, source_halves, source_terms = _transpose(
        width, source_indptr, source_columns, source_row_halves, source_row_terms
    )
    mixed, less = np.empty(max(BUFFERED, sources)), np.empty(max(BUFFERED, sources))
    # A piece: the sources that have one id of the target.
    first, last = np.empty(WIDTH, np.int64), np.empty(WIDTH, np.int64)
    position, begin = indptr[:-1].copy(), starts[:-1].copy()
    sums = np.empty(sources)
    for stop in range(WIDTH, width + WIDTH, WIDTH):
        for i in range(targets):
            sums[:] = 0.0
            used = pieces = 0
            at, end = position[i], indptr[i + 1]
            while at < end and columns[at] < stop:
                column = columns[at]
                low, high = begin[column], starts[column + 1]
                if upper:
                    # Targets come in order: sources before this one are done with.
                    while low < high and rows[low] < i:
                        low += 1
                    begin[column] = low
                if used + high - low > len(mixed):
                    _flush(mixed, less, used, first, last, pieces, rows, sums)
                    used = pieces = 0
                half, term = target_halves[at], target_terms[at]
                # Slices, so that the loop over them has no index that could be negative.
                m, both = mixed[used:], less[used:]
                halves, terms = source_halves[low:high], source_terms[low:high]
                for n in range(high - low):
                    m[n] = half + halves[n]
                    both[n] = term + terms[n]
                first[pieces], last[pieces] = low, high
                used += high - low
                pieces += 1
                at += 1
            position[i] = at
            _flush(mixed, less, used, first, last, pieces, rows, sums)
            for j in range(sources):
                distances[i, j] -= sums[j]


subtract_common = compiled(_subtract_common)
"""Subtract `m log m - a - b` over the ids that both have: `m` the sum of their halves, `a` and `b` their terms.

Targets and sources are compressed rows, below `width` columns. With `upper` the entries below the diagonal
mean nothing.
"""
