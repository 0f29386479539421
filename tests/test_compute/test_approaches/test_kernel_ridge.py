"""Kernel ridge against an explicit regression, explicit leave-one-out, and its honesty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.groups import same_unit
from compute.approaches.oracle import project_to_simplex
from compute.approaches.ridge import (
    Ridge,
    affine_weights,
    fit,
    kernel_matrix,
    leave_one_out,
    nested_losses,
    new_target,
)
from tests.support.banks.drawn_bank import draw_bank

GRID = [Ridge(s, penalty) for s in (3.0, 0.3) for penalty in (10.0, 0.5, 0.01)]


def by_saddle_point(kernel: np.ndarray, to_target: np.ndarray, penalty: float) -> np.ndarray:
    n = len(kernel)
    matrix = np.block([[kernel + penalty * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    return np.linalg.solve(matrix, np.append(to_target, 1.0))[:n]


def losses_by_loop(
    distances: np.ndarray, theta: np.ndarray, units: np.ndarray, grid: list[Ridge]
) -> np.ndarray:
    n = len(distances)
    median = np.median(distances[~np.eye(n, dtype=bool)])
    losses = np.zeros((len(grid), units.max() + 2))
    for index, chosen in enumerate(grid):
        kernel = np.exp(-distances / (chosen.scale * median))
        for left_out in [*range(units.max() + 1), -1]:
            found = []
            for row in np.flatnonzero(units != left_out):
                sources = np.flatnonzero((units != units[row]) & (units != left_out))
                w = by_saddle_point(kernel[np.ix_(sources, sources)], kernel[row, sources], chosen.penalty)
                found.append(((w @ theta[sources] - theta[row]) ** 2).sum())
            losses[index, left_out] = np.mean(found)
    return losses


@pytest.mark.parametrize("seed", range(3))
def test_weights_minimise_the_penalised_regression(seed: int) -> None:
    """min over f = c + K a of the squared errors and the penalty, with the prediction linear in the data."""
    distances, theta, _ = draw_bank(seed, 7)
    kernel = kernel_matrix(distances, 2.0)
    sources, values, penalty = np.arange(1, 7), theta[1:, 0], 0.4
    inner = kernel[np.ix_(sources, sources)]

    def objective(x: np.ndarray) -> float:
        residual = values - x[0] - inner @ x[1:]
        return float(residual @ residual + penalty * x[1:] @ inner @ x[1:])

    best = minimize(objective, np.zeros(7), method="BFGS", options={"gtol": 1e-10}).x
    predicted = best[0] + kernel[0, sources] @ best[1:]
    weights = affine_weights(inner, kernel[:1, sources], penalty)[0]
    assert weights @ values == pytest.approx(predicted, rel=1e-6)
    assert_allclose(weights, by_saddle_point(inner, kernel[0, sources], penalty), atol=1e-10)
    assert weights.sum() == pytest.approx(1.0)


def test_far_from_all_sources_or_much_penalised_it_is_the_mean() -> None:
    distances, _, _ = draw_bank(0, 6)
    far = new_target(np.full((1, 6), 1e6), distances, Ridge(0.01, 1.0), 1.0)
    assert_allclose(far, np.full((1, 6), 1 / 6), atol=1e-6)
    kernel = kernel_matrix(distances, 1.0)
    assert_allclose(affine_weights(kernel, kernel[:1], 1e9), np.full((1, 6), 1 / 6), atol=1e-6)


@pytest.mark.parametrize("groups", [None, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_a_nested_loop(seed: int, groups: int | None) -> None:
    distances, theta, units = draw_bank(seed, groups=groups)
    gram = theta @ theta.T
    found = nested_losses(distances, gram, units, GRID)
    assert_allclose(found, losses_by_loop(distances, theta, units, GRID), rtol=1e-7)
    assert_allclose(nested_losses(distances, gram, units, GRID, nested=False)[:, 0], found[:, -1])


@pytest.mark.parametrize("groups", [None, 4])
def test_leave_one_out_is_the_regression_without_the_unit(groups: int | None) -> None:
    distances, theta, units = draw_bank(4, groups=groups)
    fitted = fit(distances, theta @ theta.T, units, GRID)
    losses = losses_by_loop(distances, theta, units, GRID)
    found = leave_one_out(distances, units, fitted)
    for row, chosen in enumerate(fitted.rows):
        assert losses[GRID.index(chosen), units[row]] <= losses[:, units[row]].min() * (1 + 1e-7)
        sources = np.flatnonzero(units != units[row])
        block = np.ix_(sources, sources)
        new = new_target(distances[row : row + 1, sources], distances[block], chosen, fitted.median)
        assert_allclose(found[row, sources], new[0], atol=1e-9)


def test_negative_weights_go_to_the_nearest_point_of_the_simplex() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(5, 4))
    points += (1 - points.sum(axis=1, keepdims=True)) / 4
    found = project_to_simplex(points, np.ones(points.shape, dtype=bool))
    for point, near in zip(points, found, strict=True):
        best = minimize(
            lambda w, point=point: ((w - point) ** 2).sum(),
            np.full(4, 0.25),
            method="SLSQP",
            bounds=[(0, 1)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14},
        )
        assert_allclose(near, best.x, atol=1e-6)


@pytest.mark.parametrize("groups", [None, 4])
def test_signed_weights_are_the_regressions_own(groups: int | None) -> None:
    """Of which `ridge` takes the nearest point of the simplex; here some are negative, and all rows sum to 1."""
    distances, theta, units = draw_bank(4, groups=groups)
    fitted = fit(distances, theta @ theta.T, units, [Ridge(3.0, 0.01)])
    found = leave_one_out(distances, units, fitted, signed=True)
    kernel = kernel_matrix(distances, 3.0 * fitted.median)
    assert found.min() < 0
    for row in range(len(units)):
        sources = np.flatnonzero(units != units[row])
        inner = kernel[np.ix_(sources, sources)]
        assert_allclose(found[row, sources], by_saddle_point(inner, kernel[row, sources], 0.01), atol=1e-8)
        near = project_to_simplex(found[row : row + 1, sources], np.ones((1, len(sources)), dtype=bool))
        assert_allclose(leave_one_out(distances, units, fitted)[row, sources], near[0], atol=1e-8)
    assert_allclose(found.sum(axis=1), 1)
    assert (found[units[:, None] == units] == 0).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    row=st.integers(0, 8),
    factor=st.floats(-100, 100),
    groups=st.sampled_from([None, 4]),
)
def test_a_rows_coefficients_do_not_depend_on_its_own_adapter_or_its_groups(
    seed: int, row: int, factor: float, groups: int | None
) -> None:
    distances, theta, units = draw_bank(seed, groups=groups)
    if units.max() < 2:
        return
    before = leave_one_out(distances, units, fit(distances, theta @ theta.T, units))
    same = units == units[row]
    changed = theta.copy()
    changed[same] = factor * np.random.default_rng([seed, 1]).normal(size=theta[same].shape)
    after = leave_one_out(distances, units, fit(distances, changed @ changed.T, units))
    assert_allclose(after[same], before[same], rtol=1e-7, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), number=st.integers(3, 12), groups=st.sampled_from([None, 3, 5]))
def test_rows_sum_to_one_and_leave_the_unit_out(seed: int, number: int, groups: int | None) -> None:
    distances, theta, units = draw_bank(seed, number, groups)
    if units.max() < 2:
        return
    # Not symmetric, as Kullback-Leibler is, and of no negative type.
    distances = distances**2 * np.random.default_rng(seed).uniform(0.5, 1.5, distances.shape)
    found = leave_one_out(distances, units, fit(distances, theta @ theta.T, units))
    assert_allclose(found.sum(axis=1), 1.0)
    assert (found >= 0).all()
    assert (found[same_unit(units)] == 0).all()


def test_a_bank_whose_adapters_follow_their_datasets_is_predicted_better_than_by_the_mean() -> None:
    distances, theta, units = draw_bank(1, 40)
    weights = leave_one_out(distances, units, fit(distances, theta @ theta.T, units))
    mean = (1 - np.eye(40)) / 39
    error, of_mean = (((w @ theta - theta) ** 2).sum() for w in (weights, mean))
    assert error < 0.5 * of_mean


def test_too_small_a_bank_and_damage_are_errors() -> None:
    with pytest.raises(ParameterError, match="at least 2"):
        fit(np.zeros((3, 3)), np.eye(3), np.zeros(3, dtype=np.intp))
    two = fit(np.ones((2, 2)), np.eye(2), np.arange(2))
    with pytest.raises(ParameterError, match="at least 3"):
        leave_one_out(np.ones((2, 2)), np.arange(2), two)
    with pytest.raises(ComputeError, match="row 0 and column 1"):
        fit(np.full((3, 3), np.nan), np.eye(3), np.arange(3))
    with pytest.raises(ComputeError, match="row 0 and column 0"):
        new_target(np.full((1, 3), -1.0), np.ones((3, 3)), Ridge(1.0, 1.0), 1.0)
