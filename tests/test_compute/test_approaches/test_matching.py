"""Distribution matching against explicit mean embeddings and SciPy's general optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.matching import matching, matching_new
from compute.metrics.distributions import TokenCounts, dense
from compute.metrics.mmd import MaximumMeanDiscrepancy, MultiscaleKernel

VOCABULARY = 40


def draw_counts(seed: int, datasets: int = 7) -> TokenCounts:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(datasets):
        ids = np.sort(rng.choice(VOCABULARY, rng.integers(1, 15), replace=False))
        rows.append((ids, rng.integers(1, 50, len(ids))))
    return TokenCounts.stack(rows, VOCABULARY)


def kernel() -> np.ndarray:
    lags = np.abs(np.subtract.outer(np.arange(VOCABULARY), np.arange(VOCABULARY))).astype(float)
    return MultiscaleKernel().values(lags)


def squared_mmd_of_mixture(weights: np.ndarray, target: np.ndarray, sources: np.ndarray) -> float:
    d = target - weights @ sources
    return float(d @ kernel() @ d)


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_those_of_a_general_optimiser(seed: int) -> None:
    counts = draw_counts(seed)
    p = dense(counts)
    d = MaximumMeanDiscrepancy().block(counts, counts)
    found = matching(d, np.eye(len(p), dtype=bool))
    for row in range(len(p)):
        others = np.delete(np.arange(len(p)), row)
        best = minimize(
            squared_mmd_of_mixture,
            np.full(len(others), 1 / len(others)),
            args=(p[row], p[others]),
            method="SLSQP",
            bounds=[(0, 1)] * len(others),
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        assert found[row, row] == 0.0
        assert squared_mmd_of_mixture(found[row, others], p[row], p[others]) <= best.fun + 1e-12
        assert_allclose(found[row, others], best.x, atol=1e-5)
        new = matching_new(d[row, others], d[np.ix_(others, others)])
        assert_allclose(new, found[row, others], atol=1e-9)


def test_a_mixture_of_the_bank_is_found_again() -> None:
    """A new dataset that is two of the bank's, one of them twice."""
    counts = draw_counts(11)
    p = dense(counts)
    rows = [counts.row(i) for i in range(7)]
    total = [int(counts.totals[i]) for i in range(7)]
    mixed = np.zeros(VOCABULARY, dtype=np.int64)
    for index, share in ((2, 1), (5, 2)):
        mixed[rows[index][0]] += share * rows[index][1] * total[7 - index]
    target = TokenCounts.stack([(np.flatnonzero(mixed), mixed[mixed > 0])], VOCABULARY)
    metric = MaximumMeanDiscrepancy()
    weights = matching_new(metric.block(target, counts)[0], metric.block(counts, counts))
    assert_allclose(weights @ p, dense(target)[0], atol=1e-6)
    assert_allclose(np.flatnonzero(weights > 1e-6), [2, 5])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_rows_sum_to_one_and_leave_the_group_out(seed: int, groups: list[int]) -> None:
    units = np.array(groups)
    excluded = units[:, None] == units
    if excluded.all(axis=1).any():
        return
    counts = draw_counts(seed)
    found = matching(MaximumMeanDiscrepancy().block(counts, counts), excluded)
    assert_allclose(found.sum(axis=1), 1.0)
    assert (found >= 0).all()
    assert (found[excluded] == 0).all()


def test_what_is_no_matrix_of_distances_is_refused() -> None:
    with pytest.raises(ParameterError, match="shape"):
        matching(np.zeros((2, 3)), np.zeros((2, 3), dtype=bool))
    with pytest.raises(ComputeError, match="row 0 and column 1"):
        matching(np.array([[0, np.nan], [np.nan, 0]]), np.eye(2, dtype=bool))
