"""Coefficients by any approach that trains no network, from a bank's matrices; the Gram matrix where needed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from compute.approaches import ridge as kernel_ridge
from compute.approaches import tuned as tuning
from compute.approaches.by_distance import coefficients
from compute.approaches.groups import same_unit
from compute.approaches.matching import matching, matching_new
from compute.approaches.options import NEEDS_GRAM, NO_DISTANCES, PredictionOptions
from compute.approaches.oracle import oracle
from compute.types import FloatArray

Fitted = dict[str, Any]
"""What was chosen for one target by the bank's own rows, under the names of the settings."""


def leave_one_out_coefficients(
    options: PredictionOptions,
    distances: FloatArray | None,
    gram: FloatArray | None,
    units: NDArray[np.intp],
) -> tuple[FloatArray, tuple[Fitted, ...] | None]:
    """Coefficients of each dataset over those outside of its unit; shape (N, N), rows sum to 1.

    Parameters
    ----------
    options
        Any approach but `neural`.
    distances
        Shape (N, N), rows are targets; None for an approach that reads none.
    gram
        Shape (N, N): inner products of the adapters; None for an approach that does not need it.
    units
        Shape (N,): number from 0 on of what each row is left out with.

    Returns
    -------
    The coefficients, and for `tuned` and `ridge` what was chosen for each row.

    Raises
    ------
    ParameterError
        Nothing is left to combine or to fit on.
    ComputeError
        For a distance or a Gram matrix that is damaged.
    """
    excluded = same_unit(units)
    if options.approach == "oracle":
        return oracle(_given(gram), excluded), None
    if options.approach == "matching":
        return matching(_given(distances), excluded), None
    if options.approach == "tuned":
        tuned = tuning.fit(_given(distances), _given(gram), units)
        weights = tuning.leave_one_out(_given(distances), units, tuned)
        return weights, tuple(map(asdict, tuned.settings))
    if options.approach == "ridge":
        ridge = kernel_ridge.fit(_given(distances), _given(gram), units)
        weights = kernel_ridge.leave_one_out(_given(distances), units, ridge)
        return weights, tuple(map(asdict, ridge.rows))
    if options.approach in NO_DISTANCES:
        distances = np.zeros(excluded.shape)
    by_distance = coefficients(
        _given(distances),
        excluded,
        options.approach,
        temperature=options.temperature,
        top_k=options.top_k,
        compatible=options.compatible,
        self_index=np.arange(len(units)),
    )
    return by_distance, None


def new_coefficients(
    options: PredictionOptions,
    to_sources: FloatArray,
    between_sources: FloatArray | None,
    gram: FloatArray | None,
    units: NDArray[np.intp],
) -> tuple[FloatArray, Fitted | None]:
    """Coefficients of M targets that are not among the S sources; shape (M, S), rows sum to 1.

    Parameters
    ----------
    options
        Any approach but `neural` and `oracle`.
    to_sources
        Shape (M, S); not read by `uniform`.
    between_sources
        Shape (S, S): for `matching`, `tuned` and `ridge`.
    gram
        Shape (S, S): for `tuned` and `ridge`.
    units
        Shape (S,): number of what each source is left out with, where these two are fitted.

    Returns
    -------
    The coefficients, and for `tuned` and `ridge` what was chosen.

    Raises
    ------
    ParameterError, ComputeError
        As `leave_one_out_coefficients`.
    """
    if options.approach == "oracle" or options.approach == "neural":
        raise ParameterError(
            f"approach: {options.approach} has no coefficients for new datasets by distances"
        )
    if options.approach == "matching":
        return np.stack([matching_new(row, _given(between_sources)) for row in to_sources]), None
    if options.approach == "tuned":
        tuned = tuning.fit(_given(between_sources), _given(gram), units, nested=False)
        none = np.zeros(to_sources.shape, dtype=np.bool_)
        return tuning.apply(tuned.overall, tuned.spread, to_sources, none), asdict(tuned.overall)
    if options.approach == "ridge":
        ridge = kernel_ridge.fit(_given(between_sources), _given(gram), units, nested=False)
        weights = kernel_ridge.new_target(to_sources, _given(between_sources), ridge.overall, ridge.median)
        return weights, asdict(ridge.overall)
    by_distance = coefficients(
        np.zeros(to_sources.shape) if options.approach in NO_DISTANCES else to_sources,
        np.zeros(to_sources.shape, dtype=np.bool_),
        options.approach,
        temperature=options.temperature,
        top_k=options.top_k,
        compatible=options.compatible,
    )
    return by_distance, None


def needs_matrices(options: PredictionOptions) -> bool:
    """Whether a prediction for a new dataset needs the bank's own distances."""
    return options.approach in ("matching", "tuned", "ridge")


def needs_gram(options: PredictionOptions) -> bool:
    """Whether the approach needs the Gram matrix of the adapters."""
    return options.approach in NEEDS_GRAM


def _given(matrix: FloatArray | None) -> FloatArray:
    assert matrix is not None, "the caller gives what the approach needs"
    return matrix
