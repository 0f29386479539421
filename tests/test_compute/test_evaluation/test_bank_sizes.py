"""Curves over bank sizes: nested subsets, and each point against the coefficients made one target at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bankdb.errors import ParameterError
from compute.approaches.coefficients import leave_one_out_coefficients, new_coefficients
from compute.approaches.options import PredictionOptions
from compute.approaches.oracle import simplex_least_squares
from compute.evaluation.bank_sizes import bank_size_curve, nested_subsets, subset_coefficients
from tests.support.banks.drawn_bank import draw_bank

APPROACHES = ("attentional", "normalized", "uniform", "nearest", "matching", "tuned", "ridge", "oracle")


@given(number=st.integers(1, 30), seed=st.integers(0, 1000), data=st.data())
def test_subsets_are_nested_and_seeded(number: int, seed: int, data: st.DataObject) -> None:
    sizes = sorted(data.draw(st.sets(st.integers(1, number), min_size=1, max_size=4)))
    found = nested_subsets(number, sizes, 3, seed)
    again = nested_subsets(number, sizes, 2, seed)
    for draw, subsets in enumerate(found):
        assert [len(set(subset.tolist())) for subset in subsets] == sizes
        for small, large in itertools.pairwise(subsets):
            assert set(small) <= set(large)
        for subset in subsets:
            assert_array_equal(subset, np.sort(subset))
            assert subset.min() >= 0
            assert subset.max() < number
        if draw < 2:
            for one, other in zip(subsets, again[draw], strict=True):
                assert_array_equal(one, other)


def test_every_adapter_comes_first_equally_often() -> None:
    first = np.concatenate([subsets[0] for subsets in nested_subsets(6, [1], 3000, 0)])
    assert_allclose(np.bincount(first), 500, atol=100)


@pytest.mark.parametrize(("sizes", "draws", "seed"), [([], 1, 0), ([3, 2], 1, 0), ([0], 1, 0), ([10], 1, 0),
                                                      ([2, 2], 1, 0), ([2], 0, 0), ([2], 1, -1)])  # fmt: skip
def test_wrong_sizes_are_refused(sizes: list[int], draws: int, seed: int) -> None:
    with pytest.raises(ParameterError, match="bank sizes"):
        nested_subsets(9, sizes, draws, seed)


@pytest.mark.parametrize("approach", APPROACHES)
@pytest.mark.parametrize("groups", [None, 4])
def test_the_whole_bank_as_subset_is_plain_leave_one_out(approach: str, groups: int | None) -> None:
    distances, theta, units = draw_bank(2, 10, groups)
    options, gram = PredictionOptions(approach=approach), theta @ theta.T
    expected, _ = leave_one_out_coefficients(options, distances, gram, units)
    found = subset_coefficients(options, distances, gram, units, np.arange(10))
    assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("approach", APPROACHES)
@pytest.mark.parametrize("groups", [None, 4])
def test_a_target_outside_is_predicted_from_the_subset_as_a_new_dataset_is(
    approach: str, groups: int | None
) -> None:
    distances, theta, units = draw_bank(3, 12, groups)
    options, gram = PredictionOptions(approach=approach), theta @ theta.T
    subset = np.array([0, 2, 3, 5, 6, 8, 11])
    found = subset_coefficients(options, distances, gram, units, subset)
    for target in np.setdiff1d(np.arange(12), subset):
        sources = subset[units[subset] != units[target]]
        block = np.ix_(sources, sources)
        if approach == "oracle":
            expected = simplex_least_squares(gram[block], gram[target, sources])
        else:
            own = np.unique(units[sources], return_inverse=True)[1]
            rows, _ = new_coefficients(
                options, distances[target : target + 1, sources], distances[block], gram[block], own
            )
            expected = rows[0]
        assert_allclose(found[target, sources], expected, atol=1e-9)
        assert np.count_nonzero(found[target]) <= len(sources)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 9), approach=st.sampled_from(APPROACHES),
       groups=st.sampled_from([None, 2, 4]))  # fmt: skip
def test_only_the_subset_outside_of_the_unit_is_used(
    seed: int, size: int, approach: str, groups: int | None
) -> None:
    distances, theta, units = draw_bank(seed, 9, groups)
    (subset,) = nested_subsets(9, [size], 1, seed)[0]
    found = subset_coefficients(
        PredictionOptions(approach=approach), distances, theta @ theta.T, units, subset
    )
    needed = 2 if approach in ("tuned", "ridge") else 1
    for target in range(9):
        sources = subset[units[subset] != units[target]]
        if len(np.unique(units[sources])) < needed:
            assert np.isnan(found[target]).all()
        else:
            assert found[target].sum() == pytest.approx(1.0)
            assert_array_equal(np.delete(found[target], sources), 0.0)


def test_the_curve_is_the_mean_of_explicit_errors() -> None:
    distances, theta, units = draw_bank(4, 9, groups=3)
    options, sizes = PredictionOptions(approach="normalized"), [1, 4, 9]
    curve = bank_size_curve(options, distances, theta @ theta.T, units, sizes, draws=5, seed=3)
    for draw, subsets in enumerate(nested_subsets(9, sizes, 5, 3)):
        for size, subset in enumerate(subsets):
            c = subset_coefficients(options, distances, theta @ theta.T, units, subset)
            made = ~np.isnan(c).any(axis=1)
            error = np.linalg.norm(c[made] @ theta - theta[made], axis=1) / np.linalg.norm(
                theta[made], axis=1
            )
            assert curve.relative[draw, size] == pytest.approx(error.mean())
            assert curve.targets[draw, size] == made.sum()
    assert curve.sizes == (1, 4, 9)
    assert_allclose(curve.mean, curve.relative.mean(axis=0))
    assert_allclose(curve.spread, curve.relative.std(axis=0, ddof=1))
    # All draws hold the whole bank at its full size.
    assert_allclose(curve.spread[-1], 0.0, atol=1e-12)


def test_a_larger_bank_predicts_better_where_adapters_follow_datasets() -> None:
    distances, theta, units = draw_bank(8, 40)
    for approach in ("ridge", "oracle"):
        options = PredictionOptions(approach=approach)
        curve = bank_size_curve(options, distances, theta @ theta.T, units, [4, 12, 40], draws=3)
        assert curve.mean[0] > curve.mean[1] > curve.mean[2]


def test_sizes_without_a_prediction_have_no_number() -> None:
    distances, theta, units = draw_bank(0, 5)
    curve = bank_size_curve(
        PredictionOptions(approach="ridge"), distances, theta @ theta.T, units, [1, 5], draws=2
    )
    assert np.isnan(curve.mean[0])
    assert curve.targets[0].tolist() == [0, 5]
    with pytest.raises(ParameterError, match="neural"):
        bank_size_curve(PredictionOptions(approach="neural"), distances, theta @ theta.T, units, [5])
