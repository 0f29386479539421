"""How far combinations are from the adapters themselves, from the Gram matrix alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from compute.approaches.oracle import checked_gram
from compute.types import FloatArray

_SMALLEST_NORM = math.sqrt(float(np.finfo(np.float32).tiny))


@dataclass(frozen=True, slots=True, eq=False)
class WeightSpaceErrors:
    """Errors of predicted adapters, of shape (M,) each.

    Attributes
    ----------
    mse
        Mean squared difference of a parameter.
    cosine
        Cosine of predicted and actual adapter; NaN where one of them is zero, or too small.
    relative
        Norm of the difference over the norm of the actual adapter; NaN where that is zero, or too small: a squared
        norm below the smallest normal float32, in which the products were made, has no digits that can be trusted.
    """

    mse: FloatArray
    cosine: FloatArray
    relative: FloatArray


def weight_space_errors(
    c: FloatArray, gram: FloatArray, targets: NDArray[np.integer[Any]], parameters: int
) -> WeightSpaceErrors:
    """Errors of the predictions `c @ Theta` of the adapters in rows `targets`, without forming them.

    With `e = c - onehot(target)` the squared error is `e G e^T`.

    Parameters
    ----------
    c
        Shape (M, N): coefficients.
    gram
        Shape (N, N): inner products of the adapters.
    targets
        Shape (M,): the row that each prediction is meant to equal.
    parameters
        p, the number of parameters of an adapter.

    Raises
    ------
    ParameterError
        For shapes that differ, targets outside the bank, or no parameters.
    ComputeError
        For entries of the Gram matrix that are not finite.
    """
    gram = checked_gram(gram)
    number = len(gram)
    if c.ndim != 2 or c.shape != (len(targets), number) or np.any((targets < 0) | (targets >= number)):
        raise ParameterError(
            f"coefficients: expected shape {(len(targets), number)} and targets below {number}, found shape"
            f" {c.shape}; give one row for each target"
        )
    if parameters < 1:
        raise ParameterError(f"parameters: expected at least 1, found {parameters}; give the adapters' size")
    rows = np.arange(len(targets))
    difference = np.array(c, dtype=np.float64)
    difference[rows, targets] -= 1.0
    squared = np.maximum(np.einsum("ij,ij->i", difference @ gram, difference), 0.0)
    products = c @ gram
    predicted = np.sqrt(np.maximum(np.einsum("ij,ij->i", products, c), 0.0))
    predicted = np.where(predicted < _SMALLEST_NORM, 0.0, predicted)
    actual = np.sqrt(np.maximum(gram[targets, targets], 0.0))
    actual = np.where(actual < _SMALLEST_NORM, 0.0, actual)
    cosine = _ratio(products[rows, targets], predicted * actual)
    return WeightSpaceErrors(
        squared / parameters, np.clip(cosine, -1.0, 1.0), _ratio(np.sqrt(squared), actual)
    )


def _ratio(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    """Divide; NaN where the denominator is zero."""
    ratios: FloatArray = np.full(len(numerators), np.nan)
    np.divide(numerators, denominators, out=ratios, where=denominators > 0)
    return ratios
