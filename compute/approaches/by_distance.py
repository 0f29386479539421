"""From distances to coefficients of a convex combination (arXiv 2507.01806, appendix C.1.4)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError, ParameterError
from compute.types import COMPATIBLE, FloatArray

APPROACHES = ("attentional", "normalized", "uniform", "nearest")
NO_SPREAD = 1e-12
"""A row whose distances differ by less than this share of the largest differs by rounding alone."""


def coefficients(
    distances: FloatArray,
    excluded: NDArray[np.bool_],
    approach: str,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    compatible: str = "correct",
    self_index: NDArray[np.integer[Any]] | None = None,
) -> FloatArray:
    """Coefficients of M targets over N sources; shape (M, N), rows sum to 1.

    Parameters
    ----------
    distances
        Shape (M, N), `D[i, j] = rho(target i, source j)`. Entries that are excluded are not read.
    excluded
        Shape (M, N): sources that a target must not use; they get exactly 0.
    approach
        `attentional`: softmin of each row (28). `normalized`: softmin of its z-scores, with the population
        standard deviation; where all distances are equal, every z-score is 0. `uniform`: equal shares, the
        distances are not read. `nearest`: all on the smallest distance, the first of equal ones.
    temperature
        Divides the distances, or the z-scores, before the softmin.
    top_k
        Keep the k largest coefficients of a row, the first of equal ones, and normalise again.
    compatible
        `published` takes mean and deviation of `normalized` over the distance to the target itself as well,
        which is then left out of the softmin as ever.
    self_index
        Shape (M,): column of the target itself, for `published`; None where it is not among the sources.

    Raises
    ------
    ParameterError
        For options out of range, shapes that differ, or a row with every source excluded.
    ComputeError
        For a distance that is needed and is negative, infinite or NaN.
    """
    _check_options(approach, temperature, top_k, compatible)
    distances = np.asarray(distances, dtype=np.float64)
    used = used_entries(distances, excluded, self_index)
    if approach == "uniform":
        weights = used / used.sum(axis=1, keepdims=True)
    else:
        own = used.copy()
        if approach == "normalized" and compatible == "published" and self_index is not None:
            own[np.arange(len(own)), self_index] = True
        check_distances(distances, own)
        weights = _weights(distances, used, own, approach, temperature)
    return weights if top_k is None else _keep_largest(weights, top_k)


def effective_sources(c: FloatArray) -> FloatArray:
    """Effective number of sources of each row of coefficients, `1 / sum w^2`; shape (M,)."""
    sources: FloatArray = 1.0 / np.einsum("ij,ij->i", c, c)
    return sources


def _weights(
    distances: FloatArray,
    used: NDArray[np.bool_],
    standardised: NDArray[np.bool_],
    approach: str,
    temperature: float,
) -> FloatArray:
    """Coefficients of the approaches that read distances."""
    if approach == "nearest":
        nearest = np.argmin(np.where(used, distances, np.inf), axis=1)
        weights = np.zeros(distances.shape)
        weights[np.arange(len(weights)), nearest] = 1.0
        return weights
    if approach == "normalized":
        distances = z_scores(distances, standardised)
    return softmin(distances, used, temperature)


def softmin(values: FloatArray, used: NDArray[np.bool_], temperature: float) -> FloatArray:
    """Softmin of each row over the used entries; the others get 0."""
    # The minimum goes first: it is exact, and nothing that follows can become inf - inf.
    smallest = np.min(values, axis=1, where=used, initial=np.inf, keepdims=True)
    above = np.where(used, values, np.inf) - smallest
    with np.errstate(over="ignore"):
        weights: FloatArray = np.exp(-(above / temperature))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def z_scores(distances: FloatArray, used: NDArray[np.bool_]) -> FloatArray:
    """z-score of each row over the used entries, by the population standard deviation."""
    smallest = np.min(distances, axis=1, where=used, initial=np.inf, keepdims=True)
    largest = np.max(distances, axis=1, where=used, initial=0.0, keepdims=True)
    spread = largest - smallest
    flat = spread <= NO_SPREAD * largest
    # z-scores do not change with shift and scale; on [0, 1] no square or sum can overflow.
    values = np.where(used, distances, smallest) - smallest
    values /= np.where(flat, 1.0, spread)
    number = used.sum(axis=1, keepdims=True)
    values -= values.sum(axis=1, keepdims=True) / number
    deviation = np.sqrt(np.sum(values * values, axis=1, where=used, keepdims=True) / number)
    return np.where(flat, 0.0, values / np.where(flat, 1.0, deviation))


def _keep_largest(weights: FloatArray, top_k: int) -> FloatArray:
    order = np.argsort(-weights, axis=1, kind="stable")[:, :top_k]
    kept = np.zeros(weights.shape)
    np.put_along_axis(kept, order, np.take_along_axis(weights, order, axis=1), axis=1)
    kept /= kept.sum(axis=1, keepdims=True)
    return kept


def _check_options(approach: str, temperature: float, top_k: int | None, compatible: str) -> None:
    if approach not in APPROACHES:
        raise ParameterError(
            f"approach: expected one of {', '.join(APPROACHES)}, found {approach!r}; use one of them"
        )
    if compatible not in COMPATIBLE:
        raise ParameterError(
            f"compatible: expected correct or published, found {compatible!r}; use one of them"
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ParameterError(f"temperature: expected a number above 0, found {temperature}; 1 is the default")
    if top_k is not None and top_k < 1:
        raise ParameterError(f"top-k: expected a whole number from 1 on, found {top_k}; leave it out for all")


def used_entries(
    distances: FloatArray, excluded: NDArray[np.bool_], self_index: NDArray[np.integer[Any]] | None
) -> NDArray[np.bool_]:
    """Entries that are not excluded, after all shapes are checked."""
    if distances.ndim != 2 or excluded.shape != distances.shape or excluded.dtype != np.bool_:
        raise ParameterError(
            f"excluded: expected true or false for each of the {distances.shape} distances, found shape"
            f" {excluded.shape} of {excluded.dtype}; mark each entry"
        )
    rows, columns = distances.shape
    if self_index is not None and (
        self_index.shape != (rows,) or np.any((self_index < 0) | (self_index >= columns))
    ):
        raise ParameterError(
            f"self_index: expected one column below {columns} for each of {rows} rows, found"
            f" {self_index.tolist()[:5]}; give each target's own column"
        )
    used = ~excluded
    empty = np.flatnonzero(~used.any(axis=1))
    if len(empty):
        raise ParameterError(
            f"coefficients of row {empty[0]}: expected at least one source, found all {columns} excluded;"
            " exclude fewer or add adapters to the bank"
        )
    return used


def check_distances(distances: FloatArray, used: NDArray[np.bool_]) -> None:
    """Raise ComputeError, naming row and column, for a used distance that is negative or no finite number."""
    wrong = used & ~((distances >= 0) & (distances < np.inf))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ComputeError(
            f"distance of row {row} and column {column}: expected a finite number from 0 on, found"
            f" {distances[row, column]}; compute the distances again"
        )
