"""An order of datasets in which near ones stand side by side."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError

REORDERED_UP_TO = 600
"""Turning the branches of the tree takes time that grows with the cube of N or faster."""


def clustered_order(
    distances: NDArray[np.float64], *, reordered_up_to: int = REORDERED_UP_TO
) -> NDArray[np.int64]:
    """Order of the leaves of a hierarchical clustering by average linkage: every cluster stands together.

    Up to `reordered_up_to` datasets, SciPy turns the tree's branches so that the distances between neighbours
    become small. Its order is not always the best one that the tree allows (scipy issue 11227), so the tree's
    own order is kept where that is shorter.

    Parameters
    ----------
    distances
        Shape (N, N); where it is not symmetric, the mean of both directions counts.

    Returns
    -------
    Indices, shape (N,).

    Raises
    ------
    ComputeError
        For distances that are negative or no finite numbers, or no square matrix.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    values = np.asarray(distances, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ComputeError(
            f"distances: expected a square matrix, found shape {values.shape}; compute them again"
        )
    if not ((values >= 0) & (values < np.inf)).all():
        raise ComputeError(
            "distances: expected finite numbers from 0 on, found others; compute the distances again"
        )
    number = len(values)
    if number < 3:
        return np.arange(number, dtype=np.int64)
    symmetric = values / 2 + values.T / 2
    np.fill_diagonal(symmetric, 0.0)
    condensed = squareform(symmetric, checks=False)
    tree = linkage(condensed, "average")
    orders = [leaves_list(tree)]
    if number <= reordered_up_to:
        orders.append(leaves_list(optimal_leaf_ordering(tree, condensed)))
    best = min(orders, key=lambda order: float(symmetric[order[:-1], order[1:]].sum()))
    return np.asarray(best, dtype=np.int64)


def runs_of_equal(labels: list[str]) -> list[tuple[int, int]]:
    """Start and stop of each stretch of two or more equal labels that follow each other."""
    edges = [0, *(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]), len(labels)]
    return [(start, stop) for start, stop in itertools.pairwise(edges) if stop - start > 1]
