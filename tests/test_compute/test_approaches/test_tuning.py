"""Fitted temperature and top-k against a nested loop over explicit adapters, and their honesty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bankdb.errors import ComputeError, ParameterError
from compute.approaches import tuned as tuning
from compute.approaches.groups import same_unit
from compute.approaches.tuned import Setting, apply, default_grid, fit, leave_one_out, nested_losses
from tests.support.banks.drawn_bank import draw_bank


def weights_without(
    distances: np.ndarray, row: int, allowed: np.ndarray, standardising: np.ndarray, s: Setting, spread: float
) -> np.ndarray:
    """Coefficients of one row, a source at a time."""
    values = distances[row, standardising]
    shift, scale = (values.mean(), values.std()) if s.scale == "row" else (0.0, spread)
    scores = (distances[row] - shift) / scale
    sources = sorted(np.flatnonzero(allowed).tolist(), key=lambda j: (distances[row, j], j))[: s.top_k]
    weights = np.zeros(len(distances))
    weights[sources] = np.exp(-(scores[sources] - scores[sources].min()) / s.temperature)
    return weights / weights.sum()


def losses_by_loop(
    distances: np.ndarray, theta: np.ndarray, units: np.ndarray, grid: list[Setting]
) -> np.ndarray:
    spread = distances[units[:, None] != units].std()
    number = units.max() + 1
    losses = np.zeros((len(grid), number + 1))
    for index, setting in enumerate(grid):
        for left_out in [*range(number), -1]:
            found = []
            for row in np.flatnonzero(units != left_out):
                sources = units != units[row]
                w = weights_without(distances, row, sources & (units != left_out), sources, setting, spread)
                found.append(((w @ theta - theta[row]) ** 2).sum())
            losses[index, left_out] = np.mean(found)
    return losses


GRID = [
    Setting(scale, temperature, top_k)
    for scale in ("row", "bank")
    for temperature in (5.0, 0.7, 0.02)
    for top_k in (None, 4, 2, 1)
]


@pytest.mark.parametrize("groups", [None, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_a_nested_loop(seed: int, groups: int | None) -> None:
    distances, theta, units = draw_bank(seed, groups=groups)
    found, spread = nested_losses(distances, theta @ theta.T, units, GRID)
    assert spread == pytest.approx(distances[units[:, None] != units].std())
    assert_allclose(found, losses_by_loop(distances, theta, units, GRID), rtol=1e-8)
    whole, _ = nested_losses(distances, theta @ theta.T, units, GRID, nested=False)
    assert_allclose(whole[:, 0], found[:, -1], rtol=1e-12)


def test_losses_do_not_depend_on_how_pairs_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    distances, theta, units = draw_bank(5, 12, groups=6)
    found, _ = nested_losses(distances, theta @ theta.T, units, GRID)
    monkeypatch.setattr(tuning, "ENTRIES_AT_ONCE", 20)
    assert_allclose(nested_losses(distances, theta @ theta.T, units, GRID)[0], found, rtol=1e-12)


@pytest.mark.parametrize("groups", [None, 4])
def test_each_row_has_the_setting_that_is_best_for_the_others(groups: int | None) -> None:
    distances, theta, units = draw_bank(7, groups=groups)
    tuned = fit(distances, theta @ theta.T, units, GRID)
    losses = losses_by_loop(distances, theta, units, GRID)
    for row, setting in enumerate(tuned.settings):
        assert losses[GRID.index(setting), units[row]] <= losses[:, units[row]].min() * (1 + 1e-8)
    assert losses[GRID.index(tuned.overall), -1] <= losses[:, -1].min() * (1 + 1e-8)
    weights = leave_one_out(distances, units, tuned)
    for row, setting in enumerate(tuned.settings):
        sources = units != units[row]
        expected = weights_without(distances, row, sources, sources, setting, tuned.spread)
        assert_allclose(weights[row], expected, atol=1e-12)


@pytest.mark.slow
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
    assert_allclose(after[same], before[same], rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), number=st.integers(3, 12), groups=st.sampled_from([None, 3, 5]))
def test_rows_sum_to_one_and_leave_the_unit_out(seed: int, number: int, groups: int | None) -> None:
    distances, theta, units = draw_bank(seed, number, groups)
    if units.max() < 2:
        return
    found = leave_one_out(distances, units, fit(distances, theta @ theta.T, units))
    assert_allclose(found.sum(axis=1), 1.0)
    assert (found >= 0).all()
    assert (found[same_unit(units)] == 0).all()


def test_distances_within_a_unit_are_not_read() -> None:
    distances, theta, units = draw_bank(3, groups=4)
    expected = fit(distances, theta @ theta.T, units)
    assert fit(np.where(same_unit(units), np.nan, distances), theta @ theta.T, units).settings == (
        expected.settings
    )


def test_a_bank_where_nothing_helps_is_mixed_evenly() -> None:
    """Adapters that have nothing to do with their datasets: the mean of the others is the best there is."""
    rng = np.random.default_rng(0)
    distances, _, units = draw_bank(0, 40)
    theta = rng.normal(size=(40, 2000))
    tuned = fit(distances, theta @ theta.T, units)
    assert {setting.top_k for setting in tuned.settings} == {None}
    assert min(setting.temperature for setting in tuned.settings) >= 7.0


def test_equal_adapters_and_equal_distances_choose_the_first_of_the_grid() -> None:
    units = np.arange(5)
    tuned = fit(np.ones((5, 5)), np.ones((5, 5)), units)
    assert tuned.overall == default_grid()[0]
    assert_allclose(leave_one_out(np.ones((5, 5)), units, tuned), (1 - np.eye(5)) / 4)


def test_too_small_a_bank_and_damage_are_errors() -> None:
    with pytest.raises(ParameterError, match="at least 2"):
        fit(np.zeros((3, 3)), np.eye(3), np.zeros(3, dtype=np.intp))
    two = fit(np.ones((2, 2)), np.eye(2), np.arange(2))
    assert two.settings == ()
    with pytest.raises(ParameterError, match="at least 3"):
        leave_one_out(np.ones((2, 2)), np.arange(2), two)
    with pytest.raises(ComputeError, match="row 0 and column 1"):
        fit(np.full((3, 3), np.nan), np.eye(3), np.arange(3))


def test_a_setting_is_applied_to_new_targets_by_the_banks_spread() -> None:
    row = np.array([[0.0, 1.0, 3.0]])
    none = np.zeros((1, 3), dtype=bool)
    found = apply(Setting("bank", 0.5, 2), 4.0, row, none)
    assert_allclose(found[0, 0] / found[0, 1], np.exp(1.0 / (0.5 * 4.0)))
    assert_array_equal(found[0, 2], 0.0)
