"""Distribution matching: the mixture of the bank's distributions that is nearest to the target's.

The weights minimise `MMD^2(P, sum_j w_j P_j)` over the simplex: kernel mean matching (Gretton et al., 2009,
Covariate shift by kernel mean matching) with whole datasets instead of single examples to weight; Iyer,
Nath and Sarawagi (2014, Maximum mean discrepancy for class ratio estimation) solve the same programme. The
squared MMD is `norm(mu_P - mu_Q)^2` of the mean embeddings mu, so that for weights that sum to 1

    norm(mu - sum_j w_j mu_j)^2 = sum_j w_j norm(mu - mu_j)^2 - 1/2 sum_jk w_j w_k norm(mu_j - mu_k)^2.

With t the target's distances and D the sources', both squared MMD, this is `w^T t - w^T D w / 2`: the
distances are all that is needed. Up to what the simplex does not see, -D / 2 is a Gram matrix of the mean
embeddings, and the programme is that of the oracle with mean embeddings in the place of adapters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from compute.approaches.by_distance import check_distances
from compute.approaches.oracle import oracle, simplex_least_squares
from compute.types import FloatArray


def matching(distances: FloatArray, excluded: NDArray[np.bool_]) -> FloatArray:
    """Coefficients of the nearest mixture for each dataset of a bank; shape (N, N), rows sum to 1.

    Parameters
    ----------
    distances
        Shape (N, N): squared MMD.
    excluded
        Shape (N, N): sources that a row must not use, at least itself.

    Raises
    ------
    ParameterError
        For shapes that differ, or a row with every source excluded.
    ComputeError
        For distances that are negative or not finite, or that are no squared distances between points.
    """
    return oracle(_inner_products(distances), excluded)


def matching_new(to_sources: FloatArray, between_sources: FloatArray) -> FloatArray:
    """Coefficients of the nearest mixture for one new dataset over S sources; shape (S,), sum 1.

    Parameters
    ----------
    to_sources
        Shape (S,): squared MMD of the new dataset and each source.
    between_sources
        Shape (S, S): squared MMD of the sources.

    Raises
    ------
    ParameterError, ComputeError
        As `matching`.
    """
    row = np.asarray(to_sources, dtype=np.float64)[None, :]
    check_distances(row, np.ones(row.shape, dtype=bool))
    return simplex_least_squares(_inner_products(between_sources), -0.5 * row[0])


def _inner_products(distances: FloatArray) -> FloatArray:
    """-D / 2: inner products of the mean embeddings, up to a term for each row and each column."""
    distances = np.asarray(distances, dtype=np.float64)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise ParameterError(
            f"matching: expected squared MMD between all sources, found shape {distances.shape}; compute them"
        )
    check_distances(distances, np.ones(distances.shape, dtype=bool))
    return -0.5 * distances
