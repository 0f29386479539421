"""The candidates of `selected`, and the choice among them by a loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.coefficients import leave_one_out_coefficients, new_coefficients
from compute.approaches.groups import same_unit
from compute.approaches.kinds.selected import Selected, best, candidates
from compute.approaches.options import PredictionOptions
from compute.metrics.registry import FURTHER_METRIC_NAMES, METRIC_NAMES
from compute.types import FloatArray

SELECTED = PredictionOptions(approach="selected")


class FakeLabels:
    """A loss that a function makes up, and what it was asked for."""

    def __init__(self, loss: Callable[[int, FloatArray], float]) -> None:
        self._loss = loss
        self.asked: list[tuple[int, FloatArray]] = []

    def loss(self, target: int, weights: FloatArray) -> float:
        self.asked.append((target, weights))
        return self._loss(target, weights)


def drawn(seed: int, rows: int, columns: int) -> dict[str, FloatArray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.1, 1, (rows, columns)) for name in Selected.metrics}


def test_the_metrics_are_all_that_need_no_options() -> None:
    assert sorted(Selected.metrics) == sorted((*METRIC_NAMES, *FURTHER_METRIC_NAMES))


def test_candidates_are_those_of_the_approaches_and_three_single_sources() -> None:
    by_metric = {name: rows[0] for name, rows in drawn(3, 1, 6).items()}
    excluded = np.asarray([False, True, False, False, False, False])
    found = candidates(by_metric, excluded)
    assert len(found) == 1 + 2 * 5 + 2
    nothing = np.zeros((1, 5), dtype=np.bool_)
    kept = np.flatnonzero(~excluded)
    for name, row in by_metric.items():
        for approach in ("nearest", "normalized"):
            way = PredictionOptions(metric=name, approach=approach)
            expected, _ = new_coefficients(way, row[None, kept], None, None, np.arange(5))
            np.testing.assert_allclose(found[f"{name} {approach}"][kept], expected[0], rtol=1e-12)
    order = sorted(kept.tolist(), key=by_metric["jensen-shannon"].__getitem__)
    for place, source in enumerate(order[:3], 1):
        name = "jensen-shannon nearest" + (f" {place}" if place > 1 else "")
        assert found[name][source] == 1
    assert nothing.shape == (1, 5)
    assert all(weights[1] == 0 for weights in found.values())


@given(
    seed=st.integers(0, 2**32),
    units=st.lists(st.integers(0, 2), min_size=4, max_size=9).filter(lambda units: len(set(units)) > 1),
)
def test_the_lowest_loss_is_taken_and_nothing_left_out_is_used(seed: int, units: list[int]) -> None:
    n = len(units)
    wanted = np.random.default_rng(seed).uniform(0, 1, n)
    labels = FakeLabels(lambda target, weights: float(abs(weights - np.roll(wanted, target)).sum()))
    numbers = np.unique(units, return_inverse=True)[1].astype(np.intp)
    by_metric = drawn(seed, n, n)
    values, fitted = leave_one_out_coefficients(
        SELECTED, None, None, numbers, labels=labels, by_metric=by_metric
    )
    assert fitted is not None
    excluded = same_unit(numbers)
    assert all(not weights[excluded[target]].any() for target, weights in labels.asked)
    for row, (weights, chosen) in enumerate(zip(values, fitted, strict=True)):
        made = candidates({name: d[row] for name, d in by_metric.items()}, excluded[row], own=row)
        losses = {name: labels.loss(row, one) for name, one in made.items()}
        least = min(losses.values())
        assert chosen["losses"] == losses
        assert chosen["losses"][chosen["chosen"]] == least
        assert_array_equal(weights, made[chosen["chosen"]])


def test_of_equal_losses_the_first_is_taken_and_equal_candidates_are_evaluated_once() -> None:
    labels = FakeLabels(lambda *_: 0.5)
    # Two sources, all metrics alike: uniform, one normalized, the nearest, and the other one.
    by_metric = dict.fromkeys(Selected.metrics, np.asarray([[0.3, 0.1]]))
    weights, fitted = new_coefficients(
        SELECTED, np.full((1, 2), np.nan), None, None, np.arange(2), labels=labels, by_metric=by_metric
    )
    assert fitted is not None
    assert fitted["chosen"] == "uniform"
    assert_array_equal(weights, [[0.5, 0.5]])
    asked = [tuple(one.astype(np.float32).tolist()) for _, one in labels.asked]
    assert len(asked) == len(set(asked)) == 4
    assert len(fitted["losses"]) == 12
    assert set(fitted["losses"].values()) == {0.5}


def test_a_single_source_leaves_no_choice() -> None:
    labels = FakeLabels(lambda *_: 2.0)
    by_metric = dict.fromkeys(Selected.metrics, np.asarray([[0.3]]))
    weights, _ = new_coefficients(
        SELECTED, np.full((1, 1), np.nan), None, None, np.arange(1), labels=labels, by_metric=by_metric
    )
    assert_array_equal(weights, [[1.0]])
    assert len(labels.asked) == 1


def test_rows_that_are_not_asked_for_are_not_evaluated() -> None:
    labels = FakeLabels(lambda target, weights: float(target))
    targets = np.asarray([False, True, False, True])
    values, fitted = leave_one_out_coefficients(
        SELECTED, None, None, np.arange(4), labels=labels, by_metric=drawn(1, 4, 4), targets=targets
    )
    assert {target for target, _ in labels.asked} == {1, 3}
    assert np.isnan(values[~targets]).all()
    np.testing.assert_allclose(values[targets].sum(axis=1), 1)
    assert fitted is not None
    assert [bool(one) for one in fitted] == targets.tolist()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -0.1])
def test_a_loss_that_is_none_is_an_error_that_names_the_candidate(loss: float) -> None:
    with pytest.raises(ComputeError, match="selected: expected a finite loss from 0 on of uniform for row 3"):
        best({"uniform": np.ones(1)}, FakeLabels(lambda *_: loss), 3)


def test_without_labels_it_says_what_makes_them() -> None:
    with pytest.raises(ParameterError, match="selected: expected labelled examples of each target"):
        leave_one_out_coefficients(SELECTED, None, None, np.arange(3), by_metric=drawn(0, 3, 3))


@pytest.mark.parametrize("examples", [0, -1, True, 2.5])
def test_examples_have_a_number(examples: object) -> None:
    with pytest.raises(ParameterError, match="examples: expected a whole number from 1 on"):
        PredictionOptions(approach="selected", examples=examples)  # type: ignore[arg-type]
