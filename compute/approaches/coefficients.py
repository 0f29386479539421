"""Coefficients by any approach, from a bank's matrices; whatever made them, they are checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError
from compute.approaches.base import Approach, Fitted, Labels, LeaveOneOut, NewDatasets
from compute.approaches.groups import same_unit
from compute.approaches.options import PredictionOptions
from compute.types import FloatArray

SUM_TOLERANCE = 1e-6
"""Largest difference of a row's sum to 1 that is taken for rounding."""


def leave_one_out_coefficients(
    options: PredictionOptions,
    distances: FloatArray | None,
    gram: FloatArray | None,
    units: NDArray[np.intp],
    excluded: NDArray[np.bool_] | None = None,
    *,
    labels: Labels | None = None,
    by_metric: Mapping[str, FloatArray] | None = None,
    targets: NDArray[np.bool_] | None = None,
) -> tuple[FloatArray, tuple[Fitted, ...] | None]:
    """Coefficients of each dataset over those outside of its unit; shape (N, N), rows sum to 1.

    Parameters
    ----------
    options
        Any approach; for one with a network, it is trained here and not kept.
    distances
        Shape (N, N), rows are targets; None for an approach that reads none.
    gram
        Shape (N, N): inner products of the adapters; None for an approach that does not need it.
    units
        Shape (N,): number from 0 on of what each row is left out with.
    excluded
        Shape (N, N): sources that a row must not use; None for those of its unit.
    labels, by_metric, targets
        See `LeaveOneOut`.

    Returns
    -------
    The coefficients, NaN in rows that are not asked for, and for an approach that chooses what was chosen for each row.

    Raises
    ------
    ParameterError
        Nothing is left to combine or to fit on.
    ComputeError
        For a distance or a Gram matrix that is damaged, or coefficients of no convex combination.
    """
    excluded = same_unit(units) if excluded is None else excluded
    made = options.how.leave_one_out(
        LeaveOneOut(options, distances, gram, units, excluded, labels, by_metric or {}, targets)
    )
    if targets is None:
        return _checked(made.coefficients, excluded, options.how), made.fitted
    weights = np.full(excluded.shape, np.nan)
    weights[targets] = _checked(made.coefficients[targets], excluded[targets], options.how)
    return weights, made.fitted


def new_coefficients(
    options: PredictionOptions,
    to_sources: FloatArray,
    between_sources: FloatArray | None,
    gram: FloatArray | None,
    units: NDArray[np.intp],
    *,
    labels: Labels | None = None,
    by_metric: Mapping[str, FloatArray] | None = None,
) -> tuple[FloatArray, Fitted | None]:
    """Coefficients of M targets that are not among the S sources; shape (M, S), rows sum to 1.

    Parameters
    ----------
    options
        Any approach that does not know the answer; for one with a network, it is trained here and not kept.
    to_sources
        Shape (M, S); not read by an approach that reads no distances.
    between_sources
        Shape (S, S): for an approach that reads the bank's own matrices.
    gram
        Shape (S, S): for those of them that read it.
    units
        Shape (S,): number of what each source is left out with, where something is fitted.
    labels, by_metric
        See `NewDatasets`.

    Returns
    -------
    The coefficients, and for an approach that chooses what was chosen.

    Raises
    ------
    ParameterError, ComputeError
        As `leave_one_out_coefficients`.
    """
    made = options.how.new_dataset(
        NewDatasets(options, to_sources, between_sources, gram, units, labels, by_metric or {})
    )
    nothing = np.zeros(to_sources.shape, dtype=np.bool_)
    return _checked(made.coefficients, nothing, options.how), made.fitted[0] if made.fitted else None


def _checked(weights: FloatArray, excluded: NDArray[np.bool_], how: Approach) -> FloatArray:
    """Return coefficients of combinations of the sources that may be used, convex ones unless they may be signed.

    Anything else is an error.
    """
    approach = how.name
    if weights.shape != excluded.shape or weights.dtype != np.float64:
        raise ComputeError(
            f"{approach}: expected coefficients of shape {excluded.shape} of float64, found {weights.shape} of"
            f" {weights.dtype}; tell its author"
        )
    sums = weights.sum(axis=1)
    # A sum that is no number is not within the tolerance either.
    wrong = ~(np.abs(sums - 1) <= SUM_TOLERANCE)
    if not how.signed:
        wrong |= weights.min(axis=1, initial=0.0) < 0
    wrong |= np.any(weights, axis=1, where=excluded)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ComputeError(
            f"{approach}: expected coefficients {'' if how.signed else 'from 0 on '}that sum to 1, and 0 for what is"
            f" left out, found row {row}"
            f" with the sum {sums[row]:.6g} and the least {weights[row].min():.3g}; tell its author"
        )
    return weights
