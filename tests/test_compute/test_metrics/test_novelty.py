"""Whether a dataset is farther from a bank than the bank's own are from each other: the kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from compute.metrics.distributions import TokenCounts
from compute.metrics.novelty import FEWEST, LEVEL, Novelty, nearest_of_others, novelty, units_apart
from compute.metrics.registry import get_metric

SCORES = st.lists(st.floats(0, 10), min_size=1, max_size=80)


def against(own: list[float], nearest: float, **more: float) -> Novelty:
    return novelty("js", {"far": nearest + 1, "near": nearest}, np.asarray(own), **more)


@given(SCORES)
def test_of_datasets_alike_no_more_than_the_level_are_called_novel(scores: list[float]) -> None:
    """Each in turn is the new one: whatever the values, the share is bounded. That is what the p-value promises."""
    called = sum(
        against(scores[:index] + scores[index + 1 :], score).novel for index, score in enumerate(scores)
    )
    assert called <= LEVEL * len(scores)


@given(SCORES, st.floats(0, 10))
def test_the_p_value_is_the_share_that_is_as_far(scores: list[float], nearest: float) -> None:
    found = against(scores, nearest)
    if len(scores) < FEWEST:
        assert (found.compared, found.p_value, found.novel) == (0, None, False)
        return
    assert found.source == "near"
    assert found.p_value == (1 + sum(score >= nearest for score in scores)) / (1 + len(scores))
    assert found.nearer + found.equally_far == len(scores)
    assert found.novel == (found.p_value <= LEVEL) == bool(found.told())


def test_targets_without_another_unit_are_not_counted() -> None:
    own = [0.1] * 20
    assert against([*own, np.inf, np.inf], 0.5).compared == 20
    assert against([*own[:8], np.inf, np.inf], 0.5).compared == 0


def test_a_verdict_needs_nineteen_datasets() -> None:
    assert [against([0.1] * count, 0.5).novel for count in (10, 18, 19)] == [False, False, True]


def test_maximal_distances_are_a_verdict_of_any_bank() -> None:
    found = against([], float(np.log(2)), largest=float(np.log(2)))
    assert found.novel
    assert found.maximal
    assert found.told().startswith("shares no token with any source")
    assert not against([], 0.69, largest=float(np.log(2))).novel


def test_what_is_told_names_source_share_and_groups() -> None:
    found = novelty("js", {"near": 0.5}, np.asarray([0.1] * 60 + [0.6]), groups_left_out=True)
    assert "near, is 0.5 away, farther than 98% of 61 of the bank's datasets" in found.told()
    assert "groups left out" in found.told()
    assert "groups" not in novelty("js", {"near": 0.5}, np.asarray([0.1] * 30)).told()


# -- who is compared with whom -------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from("uvwxyz")), max_size=30),
)
def test_units_are_connected_by_group_or_content(datasets: list[tuple[str | None, str]]) -> None:
    edges = np.asarray(
        [
            [content == same or (group is not None and group == other) for other, same in datasets]
            for group, content in datasets
        ],
        dtype=np.int8,
    ).reshape(len(datasets), len(datasets))
    labels = connected_components(edges, directed=False)[1] if len(datasets) else np.empty(0)
    units = units_apart([group for group, _ in datasets], [content for _, content in datasets])
    np.testing.assert_array_equal(units[:, None] == units, labels[:, None] == labels)


def test_the_nearest_is_looked_for_in_other_units() -> None:
    distances = np.asarray([[0.0, 0.1, 0.5], [0.1, 0.0, 0.4], [0.5, 0.4, 0.0]])
    units = np.asarray([0, 0, 2])
    np.testing.assert_array_equal(nearest_of_others(distances, units, units), [0.5, 0.4, 0.4])
    alone = np.zeros(3, dtype=np.intp)
    np.testing.assert_array_equal(nearest_of_others(distances, alone, alone), [np.inf] * 3)


# -- the largest distance ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jensen-shannon", "jensen-shannon-published", "tf-idf"])
def test_datasets_without_a_common_token_are_at_the_largest_distance(name: str) -> None:
    vocabulary = 50
    ids = [np.arange(start, start + 10) for start in (0, 10, 20, 15)]
    counts = TokenCounts.stack([(row, np.arange(1, 11)) for row in ids], vocabulary)
    frequencies = np.linspace(1, 2, vocabulary)
    compatible = "published" if name.endswith("published") else "correct"
    metric = get_metric(name.removesuffix("-published"), compatible=compatible, frequencies=frequencies)
    found = metric.block(counts.select(np.asarray([0])), counts)[0]
    largest = metric.largest(vocabulary)
    # Smoothing gives ids that a dataset lacks a little of its mass.
    np.testing.assert_allclose(found[1:], largest, rtol=1e-7 if compatible == "published" else 1e-12)
    some = metric.block(counts.select(np.asarray([1])), counts)[0]
    assert some[3] < 0.9 * largest


@pytest.mark.parametrize("name", ["wasserstein", "kullback-leibler", "mmd"])
def test_others_know_no_largest_distance(name: str) -> None:
    assert get_metric(name).largest(50) == np.inf
