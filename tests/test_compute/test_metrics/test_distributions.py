"""Counts, the distributions derived from them, and the median heuristic."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bankdb.errors import DatasetError, ParameterError
from compute.metrics.distributions import (
    TokenCounts,
    dense,
    median_sigma,
    merge_last_two,
    probabilities,
)


def rows_of(vocabulary: int, largest: int = 50) -> st.SearchStrategy:
    row = st.dictionaries(st.integers(0, vocabulary - 1), st.integers(1, largest), min_size=1, max_size=12)
    return st.lists(row, min_size=1, max_size=5)


def counts_of(rows: list[dict[int, int]], vocabulary: int) -> TokenCounts:
    pairs = [
        (np.array(sorted(row), np.uint32), np.array([row[k] for k in sorted(row)], np.uint32)) for row in rows
    ]
    return TokenCounts.stack(pairs, vocabulary)


def tokens_of(row: dict[int, int]) -> np.ndarray:
    return np.repeat(list(row), list(row.values()))


@given(rows_of(20))
def test_derived_arrays_follow_from_raw_tokens(rows: list[dict[int, int]]) -> None:
    counts = counts_of(rows, 20)
    histograms = np.array([np.bincount(tokens_of(row), minlength=20) for row in rows])
    expected = histograms / histograms.sum(axis=1, keepdims=True)
    assert len(counts) == len(rows)
    assert_array_equal(counts.totals, histograms.sum(axis=1))
    assert_array_equal(dense(counts), expected)
    assert_array_equal(probabilities(counts), expected[expected > 0])


@given(rows_of(20), st.data())
def test_select_takes_rows_in_order(rows: list[dict[int, int]], data: st.DataObject) -> None:
    counts = counts_of(rows, 20)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    selected = counts.select(np.array(chosen, dtype=np.int64))
    assert len(selected) == len(chosen)
    for new, old in enumerate(chosen):
        for found, expected in zip(selected.row(new), counts.row(old), strict=True):
            assert_array_equal(found, expected)


def test_no_rows_is_a_block_of_nothing() -> None:
    empty = TokenCounts.stack([], 5)
    assert len(empty) == 0
    assert empty.totals.shape == (0,)
    assert dense(empty).shape == (0, 5)


def test_types_and_pickle() -> None:
    counts = TokenCounts.stack([(np.array([1, 3]), np.array([2, 4_000_000_000]))], 4)
    assert (counts.indptr.dtype, counts.ids.dtype, counts.counts.dtype) == (np.int64, np.uint32, np.uint32)
    again = pickle.loads(pickle.dumps(counts))
    assert_array_equal(again.counts, [2, 4_000_000_000])
    assert again.vocabulary == 4
    with pytest.raises(AttributeError):
        counts.vocabulary = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([1, 7], [1, 1], "dataset 1: expected token ids in .0, 7., found 7"),
        ([-1, 3], [1, 1], "dataset 1: expected token ids in .0, 7., found -1"),
        ([3, 1], [1, 1], "dataset 1: expected ids ascending"),
        ([3, 3], [1, 1], "dataset 1: expected ids ascending"),
        ([1, 3], [1, 0], "dataset 1: expected counts in .1, 4294967295., found 0"),
        ([1, 3], [1, -2], "dataset 1: expected counts in .1, 4294967295., found -2"),
        ([1, 3], [1, 2**32], "dataset 1: expected counts in .1, 4294967295., found 4294967296"),
        ([], [], "dataset 1: expected at least one token, found none"),
        ([1, 3], [1], "dataset 1: expected one count for each token id"),
    ],
)
def test_bad_rows_are_refused(ids: list[int], counts: list[int], message: str) -> None:
    good = (np.array([0, 6]), np.array([1, 1]))
    with pytest.raises(DatasetError, match=message) as error:
        TokenCounts.stack([good, (np.array(ids, np.int64), np.array(counts, np.int64))], 7)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("indptr", [[0, 1], [1, 2], [0, 3], [0, 2, 1, 2], []])
def test_bad_row_pointers_are_refused(indptr: list[int]) -> None:
    with pytest.raises(DatasetError, match="expected"):
        TokenCounts(np.array(indptr, np.int64), np.array([0, 1], np.uint32), np.array([1, 1], np.uint32), 3)


def test_fractional_counts_are_refused() -> None:
    with pytest.raises(DatasetError, match="integers"):
        TokenCounts.stack([(np.array([0]), np.array([1.5]))], 3)


@given(rows_of(6))
def test_merged_bins_are_numpy_histograms(rows: list[dict[int, int]]) -> None:
    merged = merge_last_two(counts_of(rows, 6))
    assert merged.vocabulary == 5
    for index, row in enumerate(rows):
        expected, _ = np.histogram(tokens_of(row), bins=np.arange(6))
        found = np.zeros(5)
        found[merged.row(index)[0]] = merged.row(index)[1]
        assert_array_equal(found, expected)


def test_merging_needs_two_ids() -> None:
    with pytest.raises(ParameterError, match="at least 2 ids"):
        merge_last_two(counts_of([{0: 1}], 1))


def test_a_merged_bin_holds_two_of_the_largest_counts() -> None:
    merged = merge_last_two(counts_of([{1: 2**32 - 1, 2: 2**32 - 1}, {0: 3}], 3))
    assert [merged.row(0)[1].tolist(), merged.row(1)[1].tolist()] == [[2**33 - 2], [3]]
    assert merged.totals.tolist() == [2**33 - 2, 3]
    assert merged.select(np.array([0])).counts.tolist() == [2**33 - 2]


def brute_force_median(rows: list[dict[int, int]]) -> int:
    """Lower weighted median in exact fractions."""
    pooled: dict[int, Fraction] = {}
    for row in rows:
        for token, count in row.items():
            pooled[token] = pooled.get(token, Fraction(0)) + Fraction(count, sum(row.values()))
    weights: dict[int, Fraction] = {}
    for k, p in pooled.items():
        for m, q in pooled.items():
            if k != m:
                weights[abs(k - m)] = weights.get(abs(k - m), Fraction(0)) + p * q
    total, running = sum(weights.values()), Fraction(0)
    for lag in sorted(weights):
        running += weights[lag]
        if 2 * running >= total:
            return lag
    raise AssertionError


@settings(max_examples=200)
@given(rows_of(40).filter(lambda rows: len({k for row in rows for k in row}) > 1))
def test_median_sigma_is_the_weighted_median(rows: list[dict[int, int]]) -> None:
    assert median_sigma(counts_of(rows, 40)) == brute_force_median(rows)


def test_median_sigma_of_an_exact_tie_is_the_lower_one() -> None:
    # Lag 1 from (0, 1), and lags 9 and 10 from id 10, half as heavy as the other two: a half and a half.
    rows = [{0: 2, 1: 2, 10: 1}]
    assert brute_force_median(rows) == median_sigma(counts_of(rows, 30_000)) == 1.0
    assert median_sigma(counts_of([{0: 1, 1: 1, 10: 1}], 30_000)) == 9.0


def test_median_sigma_without_two_ids_is_refused() -> None:
    with pytest.raises(DatasetError, match="at least two different token ids"):
        median_sigma(counts_of([{3: 7}, {3: 1}], 10))
