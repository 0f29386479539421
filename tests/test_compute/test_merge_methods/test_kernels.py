"""Trimming, dropping and the disjoint mean, against what they are defined as."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bankdb.errors import ParameterError
from compute.approaches.options import PredictionOptions
from compute.merge_methods.disjoint_mean import DisjointMean, disjoint_means
from compute.merge_methods.dropping import drop, drop_key, kept
from compute.merge_methods.method import DENSITY, merge_method
from compute.merge_methods.trimming import border_of, trim

# Few values, so that magnitudes are often equal, zero among them.
VALUES = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


def rows(least: int = 1, most: int = 40) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float32, st.integers(least, most), elements=VALUES)


# -- trimming ------------------------------------------------------------------------------------------


@given(rows(), st.floats(1e-3, 1))
def test_the_largest_are_kept_and_of_equal_ones_the_first(tensor: np.ndarray, density: float) -> None:
    order = np.argsort(-np.abs(tensor), kind="stable")[: int(density * len(tensor))]
    expected = np.zeros_like(tensor)
    expected[order] = tensor[order]
    trim(found := tensor.copy(), border_of(tensor, density))
    np.testing.assert_array_equal(found, expected)


@given(rows(), st.floats(1e-3, 1), st.data())
def test_parts_are_trimmed_as_the_whole(tensor: np.ndarray, density: float, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(tensor)))
    border = border_of(tensor, density)
    whole, parts = tensor.copy(), tensor.copy()
    trim(whole, border)
    trim(parts[:cut], border)
    trim(parts[cut:], border, cut)
    np.testing.assert_array_equal(parts, whole)


# -- dropping ------------------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1), st.integers(0, 300), st.integers(1, 200), st.floats(1e-3, 1))
def test_a_part_is_dropped_as_in_the_whole(seed: int, first: int, number: int, density: float) -> None:
    key = drop_key(seed, "row")
    whole = kept(key, 0, first + number, density)
    np.testing.assert_array_equal(kept(key, first, number, density), whole[first:])


def test_as_many_are_kept_as_the_density_says_and_sources_are_independent() -> None:
    """Shares of 200,000 within five standard deviations, of single sources and of both at once."""
    number = 200_000
    for density in (0.1, 0.5, 0.9):
        one, other = (kept(drop_key(0, name), 0, number, density) for name in ("one", "other"))
        for share, expected in (
            (one.mean(), density),
            (other.mean(), density),
            ((one & other).mean(), density**2),
            ((one[1:] & one[:-1]).mean(), density**2),
        ):
            assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / number)
    assert kept(drop_key(0, "one"), 0, number, 1.0).all()


def test_other_seeds_and_sources_drop_others() -> None:
    masks = [
        kept(drop_key(*key), 0, 64, 0.5).tobytes() for key in ((0, "a"), (1, "a"), (0, "b"), (0, "a", "q"))
    ]
    assert len(set(masks)) == len(masks)


def test_what_is_left_is_divided_by_the_density() -> None:
    values = np.arange(1, 65, dtype=np.float32)
    key = drop_key(0, "a")
    drop(found := values.copy(), key, 0, 0.25)
    drop(plain := values.copy(), key, 0, 0.25, rescale=False)
    mask = kept(key, 0, 64, 0.25)
    np.testing.assert_array_equal(found, np.where(mask, values * 4, 0))
    np.testing.assert_array_equal(plain, np.where(mask, values, 0))


# -- the disjoint mean ---------------------------------------------------------------------------------


def by_definition(values: np.ndarray, weights: np.ndarray, majority_sign: str, by_number: bool) -> np.ndarray:
    """A place at a time, in double precision."""
    found = np.zeros(values.shape[1])
    for place, column in enumerate(values.astype(float).T):
        votes = np.sign(column).sum() if majority_sign == "frequency" else column.sum()
        agree = np.sign(column) == (1 if votes >= 0 else -1)
        if agree.any():
            divisor = agree.sum() if by_number else weights[agree].sum()
            found[place] = (weights[agree] * column[agree]).sum() / divisor
    return found


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=VALUES),
    st.sampled_from(list(product(("total", "frequency"), (False, True)))),
    st.data(),
)
def test_disjoint_mean(values: np.ndarray, way: tuple[str, bool], data: st.DataObject) -> None:
    """One source after another, and as products for several targets, of which some have no part of some sources."""
    targets = data.draw(st.integers(1, 3))
    shares = st.sampled_from([0.0, 0.125, 0.25, 1.0])
    weights = data.draw(hnp.arrays(np.float32, (targets, len(values)), elements=shares))
    out = np.empty((targets, values.shape[1]), np.float32)
    disjoint_means(weights, values, *way, out)
    for row, found in zip(weights, out, strict=True):
        used = np.flatnonzero(row)
        expected = by_definition(values[used], row[used].astype(float), *way)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
        mean = DisjointMean(values.shape[1], *way)
        for source in used:
            mean.add(values[source], row[source])
        np.testing.assert_allclose(mean.mean(), expected, rtol=1e-6, atol=1e-7)


@given(hnp.arrays(np.float32, (3, 5), elements=VALUES))
def test_a_convex_mean_lies_between_what_it_is_of(values: np.ndarray) -> None:
    out = np.empty((1, 5), np.float32)
    disjoint_means(np.asarray([[0.5, 0.375, 0.125]], np.float32), values, "total", False, out)
    assert (out[0] <= values.max(axis=0).clip(0) + 1e-6).all()
    assert (out[0] >= values.min(axis=0).clip(None, 0) - 1e-6).all()


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_options", "expected"),
    [
        ({"merge": "tie"}, "merge: expected one of linear, ties"),
        ({"density": 0.3}, "density: not for merge linear"),
        ({"merge_weights": "peft"}, "merge-weights: not for merge linear"),
        ({"merge": "dare-linear", "majority_sign": "total"}, "majority-sign: not for merge dare-linear"),
        ({"merge": "ties", "merge_seed": 0}, "merge-seed: not for merge ties"),
        ({"merge": "ties", "density": 0.0}, "density: expected a number above 0"),
        ({"merge": "ties", "density": 1.5}, "density: expected a number above 0"),
        ({"merge": "ties", "density": float("nan")}, "density: expected a number above 0"),
        ({"merge": "ties", "density": True}, "density: expected a number above 0"),
        ({"merge": "ties", "majority_sign": "mean"}, "majority-sign: expected total or frequency"),
        ({"merge": "ties", "merge_weights": "plain"}, "merge-weights: expected convex or peft"),
        ({"merge": "dare-ties", "merge_seed": -1}, "merge-seed: expected a whole number from 0 on"),
        (
            {"merge": "ties", "approach": "ridge-signed"},
            "merge-weights: expected peft for ties with ridge-signed",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(given_options: dict[str, object], expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        PredictionOptions(**given_options)  # type: ignore[arg-type]


def test_defaults_are_told_with_the_method_and_a_sum_is_told_as_ever() -> None:
    assert PredictionOptions().parameters() == {}
    assert PredictionOptions(merge="dare-ties").parameters() == {
        "merge": "dare-ties",
        "density": DENSITY,
        "majority_sign": "total",
        "merge_weights": "convex",
        "merge_seed": 0,
    }
    assert merge_method().parameters() == {}
