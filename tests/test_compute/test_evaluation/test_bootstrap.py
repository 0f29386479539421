"""The paired bootstrap, against a loop, SciPy, and what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bankdb.errors import ParameterError
from compute.evaluation.bootstrap import RESAMPLES, gap_share, mean_difference, task_weights
from compute.evaluation.tables import shown_interval

SYSTEM = np.array([0.9, 0.2, 0.5, 0.7, 0.4, 0.8])
OTHER = np.array([0.5, 0.3, 0.5, 0.6, 0.1, 0.9])
BASE = np.array([0.1, 0.2, 0.0, 0.3, 0.1, 0.2])
OWN = np.array([1.0, 0.9, 0.8, 0.7, 0.9, 1.0])


def drawn(weights: np.ndarray) -> list[np.ndarray]:
    """The tasks of each resample, one by one."""
    tasks = weights.shape[1]
    return [np.repeat(np.arange(tasks), np.rint(row * tasks).astype(int)) for row in weights]


def test_weights_are_counts_of_drawn_tasks() -> None:
    weights = task_weights(6, resamples=500, seed=3)
    assert weights.shape == (500, 6)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(weights * 6, np.rint(weights * 6), atol=1e-12)
    # Each task is drawn as often as any other.
    np.testing.assert_allclose(weights.mean(axis=0), 1 / 6, atol=0.02)


def test_whole_units_are_drawn() -> None:
    units = np.array([0, 1, 0, 2, 1, 0])
    weights = task_weights(6, units=units, resamples=400, seed=5)
    counts = np.random.default_rng(5).multinomial(3, [1 / 3] * 3, size=400)
    for row, count in zip(weights, counts, strict=True):
        tasks = [
            task
            for unit, times in enumerate(count)
            for task in np.flatnonzero(units == unit).tolist() * times
        ]
        assert row @ SYSTEM == pytest.approx(np.mean(SYSTEM[tasks]))
    # Each by itself is the same as no units.
    np.testing.assert_array_equal(
        task_weights(6, units=np.arange(6), resamples=9, seed=1), task_weights(6, resamples=9, seed=1)
    )
    with pytest.raises(ParameterError, match="unit of each of 6 tasks"):
        task_weights(6, units=units[:5])


def test_the_seed_decides() -> None:
    assert np.array_equal(task_weights(5, resamples=9, seed=1), task_weights(5, resamples=9, seed=1))
    assert not np.array_equal(task_weights(5, resamples=9, seed=1), task_weights(5, resamples=9, seed=2))


def test_difference_equals_a_loop_over_resamples() -> None:
    weights = task_weights(6, resamples=400, seed=1)
    means = [np.mean(SYSTEM[tasks]) - np.mean(OTHER[tasks]) for tasks in drawn(weights)]
    found = mean_difference(weights, SYSTEM, OTHER)
    assert found.estimate == pytest.approx(np.mean(SYSTEM) - np.mean(OTHER))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_difference_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    system, other = rng.normal(0.6, 0.2, 40), rng.normal(0.5, 0.2, 40)
    found = mean_difference(task_weights(40, resamples=RESAMPLES, seed=0), system, other)
    expected = stats.bootstrap(
        (system, other),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    # Two draws of 10,000: their bounds differ by chance alone.
    assert found.low == pytest.approx(expected.low, abs=0.004)
    assert found.high == pytest.approx(expected.high, abs=0.004)


def test_share_equals_a_loop_over_resamples() -> None:
    weights = task_weights(6, resamples=400, seed=1)
    shares = [
        (np.mean(SYSTEM[tasks]) - np.mean(BASE[tasks])) / (np.mean(OWN[tasks]) - np.mean(BASE[tasks]))
        for tasks in drawn(weights)
    ]
    found = gap_share(weights, SYSTEM, BASE, OWN)
    assert found is not None
    assert found.estimate == pytest.approx((SYSTEM.mean() - BASE.mean()) / (OWN.mean() - BASE.mean()))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(shares, [2.5, 97.5])))


def test_share_of_the_ends() -> None:
    weights = task_weights(6, resamples=100)
    own, base = gap_share(weights, OWN, BASE, OWN), gap_share(weights, BASE, BASE, OWN)
    assert own is not None
    assert base is not None
    assert (own.estimate, own.low, own.high) == (1.0, 1.0, 1.0)
    assert (base.estimate, base.low, base.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("own", [BASE, BASE - 0.01, BASE + np.array([0.5, -0.4, 0, 0, 0, 0])])
def test_there_is_no_share_without_a_gap(own: np.ndarray) -> None:
    assert gap_share(task_weights(6, resamples=200), SYSTEM, BASE, own) is None


@given(
    shift=st.floats(-1, 1),
    values=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    seed=st.integers(0, 99),
)
def test_a_constant_difference_has_no_width(shift: float, values: list[float], seed: int) -> None:
    scores = np.array(values)
    found = mean_difference(task_weights(len(scores), resamples=50, seed=seed), scores + shift, scores)
    assert (found.estimate, found.low, found.high) == pytest.approx((shift,) * 3, abs=1e-9)


def test_the_interval_is_as_wide_as_it_should_be() -> None:
    """It holds the true mean in about 95 of 100 samples."""
    rng = np.random.default_rng(5)
    weights = task_weights(50, resamples=1000)
    hits = 0
    for _ in range(300):
        found = mean_difference(weights, rng.normal(0.3, 1, 50), np.zeros(50))
        hits += found.low <= 0.3 <= found.high
    assert 0.90 < hits / 300 < 0.98


def test_intervals_over_groups_cover_what_they_should() -> None:
    """Means of groups drawn around 0: about 95 of 100 intervals hold it, which tasks drawn singly would not."""
    rng = np.random.default_rng(0)
    units, zeros = np.repeat(np.arange(30), 5), np.zeros(150)
    together = task_weights(150, units=units, resamples=400)
    singly = task_weights(150, resamples=400)
    held = single = 0
    for _ in range(200):
        values = rng.normal(size=30)[units] + 0.1 * rng.normal(size=150)
        found = mean_difference(together, values, zeros)
        held += found.low <= 0 <= found.high
        found = mean_difference(singly, values, zeros)
        single += found.low <= 0 <= found.high
    assert 0.88 <= held / 200 <= 0.99
    assert single / 200 < 0.75


def test_blocks_of_resamples_are_one_stream() -> None:
    """More resamples begin with the fewer, however they are cut."""
    few = task_weights(4, resamples=300, seed=4)
    np.testing.assert_array_equal(task_weights(4, resamples=700, seed=4)[:300], few)
    counts = np.random.default_rng(4).multinomial(4, [1 / 4] * 4, size=300)
    np.testing.assert_array_equal(few, counts / 4)


def test_bad_input_is_refused() -> None:
    weights = task_weights(6, resamples=10)
    with pytest.raises(ParameterError, match="one score for each of 6 tasks, found shape"):
        mean_difference(weights, SYSTEM[:5], OTHER)
    with pytest.raises(ParameterError, match="finite scores"):
        mean_difference(weights, np.where(SYSTEM > 0.8, np.nan, SYSTEM), OTHER)
    for tasks, resamples in ((0, 1), (1, 0)):
        with pytest.raises(ParameterError, match="at least 1 task and 1 resample"):
            task_weights(tasks, resamples=resamples)


# -- of few targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "told"), [(1, False), (2, False), (3, False), (9, False), (10, True), (40, True)]
)
def test_an_interval_is_told_of_ten_targets_or_more(tasks: int, told: bool) -> None:
    rng = np.random.default_rng(tasks)
    own = rng.uniform(0.5, 1.0, tasks)
    weights = task_weights(tasks, resamples=2000)
    for found in (mean_difference(weights, own, own / 2), gap_share(weights, own * 0.7, own * 0.1, own)):
        assert found is not None
        assert (found.units, found.has_bounds) == (tasks, told)
        bounds = (found.low, found.high) if told else (None, None)
        assert found.bounds == bounds
        assert found.as_record() == {
            "estimate": found.estimate,
            "low": bounds[0],
            "high": bounds[1],
            "units": tasks,
        }
        assert shown_interval(found) == (
            f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
            if told
            else f"{found.estimate:+.3f}"
        )


def test_groups_count_where_they_are_drawn_whole() -> None:
    scores = np.random.default_rng(0).uniform(size=40)
    for groups, told in ((9, False), (10, True)):
        weights = task_weights(40, units=np.arange(40) % groups, resamples=500)
        found = mean_difference(weights, scores, scores[::-1])
        assert (found.units, found.has_bounds) == (groups, told)


@pytest.mark.slow
def test_below_ten_an_interval_holds_the_mean_less_often_than_it_says() -> None:
    """Why it is not told: of 1,000 samples of a normal distribution, of as many targets."""
    rng = np.random.default_rng(0)
    held = {}
    for tasks in (3, 5, 10):
        weights = task_weights(tasks, resamples=500)
        found = [
            mean_difference(weights, sample, np.zeros(tasks)) for sample in rng.normal(size=(1000, tasks))
        ]
        held[tasks] = np.mean([one.low <= 0 <= one.high for one in found])
    assert held[3] < 0.8
    assert held[5] < 0.87
    assert held[10] > 0.87
