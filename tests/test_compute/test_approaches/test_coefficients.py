"""Coefficients from distances: definitions written out row by row, limits, and refusals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.by_distance import APPROACHES, coefficients, effective_sources

every_approach = pytest.mark.parametrize("approach", APPROACHES)


ANY_DISTANCE = st.floats(0, 1e3)


@st.composite
def problems(draw: st.DrawFn, distances: st.SearchStrategy = ANY_DISTANCE) -> tuple[np.ndarray, np.ndarray]:
    """Distances and exclusions with at least one source a row; excluded distances may be anything."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 7)))
    values = draw(arrays(np.float64, shape, elements=distances))
    excluded = draw(arrays(np.bool_, shape))
    free = draw(arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    excluded[np.arange(shape[0]), free] = False
    junk = draw(st.sampled_from([np.nan, np.inf, -1.0, 0.0]))
    return np.where(excluded, junk, values), excluded


def random_problem(rows: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.gamma(2.0, size=(rows, rows)), np.eye(rows, dtype=bool)


def test_attentional_is_the_softmin_of_each_row() -> None:
    distances, excluded = random_problem()
    excluded[2, 4] = True
    for temperature in (0.3, 1.0, 7.0):
        found = coefficients(distances, excluded, "attentional", temperature=temperature)
        for i in range(6):
            used = ~excluded[i]
            assert_allclose(found[i, used], special.softmax(-distances[i, used] / temperature), rtol=1e-12)


def test_normalized_is_the_softmin_of_z_scores() -> None:
    distances, excluded = random_problem()
    excluded[2, 4] = True
    for temperature in (0.3, 1.0, 7.0):
        found = coefficients(distances, excluded, "normalized", temperature=temperature)
        for i in range(6):
            used = ~excluded[i]
            z = stats.zscore(distances[i, used], ddof=0)
            assert_allclose(found[i, used], special.softmax(-z / temperature), rtol=1e-12)


def test_published_takes_z_scores_with_the_distance_to_itself() -> None:
    distances, excluded = random_problem()
    np.fill_diagonal(distances, 0.0)
    excluded[2, 4] = True
    distances[2, 4] = np.nan
    found = coefficients(
        distances, excluded, "normalized", compatible="published", self_index=np.arange(6), temperature=0.5
    )
    for i in range(6):
        used = ~excluded[i]
        row = np.where(used, distances[i], np.nan)
        row[i] = 0.0
        z = stats.zscore(row, ddof=0, nan_policy="omit")
        assert_allclose(found[i, used], special.softmax(-z[used] / 0.5), rtol=1e-12)
        assert found[i, i] == 0.0


def test_published_without_itself_among_the_sources_is_the_correct_one() -> None:
    distances, excluded = random_problem()
    correct = coefficients(distances, excluded, "normalized")
    assert_array_equal(coefficients(distances, excluded, "normalized", compatible="published"), correct)
    attentional = coefficients(
        distances, excluded, "attentional", compatible="published", self_index=np.arange(6)
    )
    assert_array_equal(attentional, coefficients(distances, excluded, "attentional"))


def test_uniform_and_nearest() -> None:
    distances = np.array([[0.0, 2.0, 1.0, 1.0], [3.0, 0.0, 4.0, 5.0]])
    excluded = np.array([[True, False, False, False], [False, True, False, True]])
    assert_allclose(
        coefficients(distances, excluded, "uniform"), [[0, 1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5, 0]], rtol=1e-15
    )
    # Of two equally near sources the first is taken.
    assert_array_equal(coefficients(distances, excluded, "nearest"), [[0, 0, 1, 0], [1, 0, 0, 0]])
    nothing_known = np.full(distances.shape, np.nan)
    assert_array_equal(
        coefficients(nothing_known, excluded, "uniform"), coefficients(distances, excluded, "uniform")
    )


@every_approach
@settings(max_examples=100)
@given(problem=problems(), temperature=st.floats(1e-3, 1e3), top_k=st.none() | st.integers(1, 9))
def test_rows_are_convex_combinations(
    approach: str, problem: tuple[np.ndarray, np.ndarray], temperature: float, top_k: int | None
) -> None:
    distances, excluded = problem
    kept = distances.copy()
    found = coefficients(distances, excluded, approach, temperature=temperature, top_k=top_k)
    assert_allclose(found.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert (found >= 0).all()
    assert (found[excluded] == 0.0).all()
    assert_array_equal(distances, kept)
    if top_k is not None:
        assert (np.count_nonzero(found, axis=1) <= top_k).all()
    for i in range(len(found)):
        alone = coefficients(
            distances[i : i + 1], excluded[i : i + 1], approach, temperature=temperature, top_k=top_k
        )
        assert_allclose(alone[0], found[i], rtol=1e-13)


@every_approach
@settings(max_examples=100)
@given(problem=problems(st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1e300, 1.7e308])), tiny=st.booleans())
def test_extreme_magnitudes_stay_convex_combinations(
    approach: str, problem: tuple[np.ndarray, np.ndarray], tiny: bool
) -> None:
    distances, excluded = problem
    for temperature in (1e-300, 5e-324) if tiny else (1e300, 1.0):
        with np.errstate(all="raise", under="ignore"):
            found = coefficients(distances, excluded, approach, temperature=temperature)
        assert_allclose(found.sum(axis=1), 1.0, rtol=0, atol=1e-12)
        assert (found[excluded] == 0.0).all()


@settings(max_examples=100)
@given(problem=problems(), top_k=st.integers(1, 7))
def test_top_k_keeps_the_largest_in_proportion(problem: tuple[np.ndarray, np.ndarray], top_k: int) -> None:
    distances, excluded = problem
    for approach in APPROACHES:
        full = coefficients(distances, excluded, approach)
        found = coefficients(distances, excluded, approach, top_k=top_k)
        for i in range(len(full)):
            order = sorted(range(full.shape[1]), key=lambda j: (-full[i, j], j))[:top_k]
            expected = np.zeros(full.shape[1])
            expected[order] = full[i, order] / full[i, order].sum()
            assert_allclose(found[i], expected, rtol=1e-12)


@pytest.mark.parametrize("approach", ["attentional", "normalized"])
@settings(max_examples=100)
@given(problem=problems(st.integers(0, 50).map(float)))
def test_limits_and_order_in_temperature(approach: str, problem: tuple[np.ndarray, np.ndarray]) -> None:
    distances, excluded = problem
    uniform = coefficients(distances, excluded, "uniform")
    hot = coefficients(distances, excluded, approach, temperature=1e9)
    assert_allclose(hot, uniform, atol=1e-6)
    cold = coefficients(distances, excluded, approach, temperature=1e-4)
    smallest = np.where(excluded, np.inf, distances)
    nearest = smallest == smallest.min(axis=1, keepdims=True)
    assert_allclose(cold, nearest / nearest.sum(axis=1, keepdims=True), atol=1e-12)
    # The hotter, the more sources share; the nearest source never gains.
    temperatures = [0.1, 0.5, 1.0, 2.0, 10.0]
    rows = [coefficients(distances, excluded, approach, temperature=t) for t in temperatures]
    numbers = [effective_sources(c) for c in rows]
    for cooler, hotter in pairwise(numbers):
        assert (hotter >= cooler * (1 - 1e-12)).all()
    for cooler, hotter in pairwise(rows):
        assert (hotter.max(axis=1) <= cooler.max(axis=1) * (1 + 1e-12)).all()


def test_equal_distances_share_equally_even_when_rounding_differs() -> None:
    excluded = np.eye(4, dtype=bool)
    expected = coefficients(np.zeros((4, 4)), excluded, "uniform")
    for distances in (
        np.zeros((4, 4)),
        np.full((4, 4), 0.1),
        np.full((4, 4), 1.7e308),
        np.log(2) * (1 + 1e-16 * np.arange(16).reshape(4, 4)),
    ):
        assert_allclose(coefficients(distances, excluded, "normalized"), expected, rtol=1e-14)


def test_z_scores_do_not_change_with_shift_and_scale() -> None:
    distances, excluded = random_problem()
    expected = coefficients(distances, excluded, "normalized")
    assert_allclose(coefficients(distances * 1e200, excluded, "normalized"), expected, rtol=1e-12)
    assert_allclose(coefficients(distances + 50.0, excluded, "normalized"), expected, rtol=1e-10)


def test_top_k_of_many_equal_coefficients_takes_the_first() -> None:
    found = coefficients(np.ones((1, 500)), np.zeros((1, 500), dtype=bool), "uniform", top_k=60)
    assert_allclose(found, np.where(np.arange(500) < 60, 1 / 60, 0.0)[None], rtol=1e-14)


def test_effective_sources() -> None:
    assert_allclose(effective_sources(np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]])), [4, 1, 2])


@pytest.mark.parametrize("approach", ["attentional", "normalized", "nearest"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-9])
def test_distances_that_are_used_must_be_numbers_from_zero(approach: str, value: float) -> None:
    distances, excluded = random_problem()
    distances[3, 5] = value
    with pytest.raises(ComputeError, match="row 3 and column 5"):
        coefficients(distances, excluded, approach)
    excluded[3, 5] = True
    assert np.isfinite(coefficients(distances, excluded, approach)).all()


def test_published_needs_the_distance_to_itself() -> None:
    distances, excluded = random_problem()
    distances[1, 1] = np.nan
    with pytest.raises(ComputeError, match="row 1 and column 1"):
        coefficients(distances, excluded, "normalized", compatible="published", self_index=np.arange(6))


@pytest.mark.parametrize(
    "options",
    [
        {"approach": "oracle"},
        {"approach": "Normalized"},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_k": -3},
        {"compatible": "legacy"},
        {"excluded": np.ones((6, 6), dtype=bool)},
        {"excluded": np.zeros((5, 6), dtype=bool)},
        {"excluded": np.zeros((6, 6))},
        {"self_index": np.arange(5)},
        {"self_index": np.arange(1, 7)},
    ],
)
@every_approach
def test_wrong_options_are_refused(approach: str, options: dict[str, Any]) -> None:
    distances, excluded = random_problem()
    arguments: dict[str, Any] = {"excluded": excluded, "approach": approach} | options
    with pytest.raises(ParameterError) as error:
        coefficients(distances, arguments.pop("excluded"), arguments.pop("approach"), **arguments)
    assert "\n" not in str(error.value)
