"""The neural approach: its loss and gradient by definition, its protocols' honesty, and knots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special, stats
from scipy.interpolate import CubicSpline

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.by_distance import coefficients
from compute.approaches.neural import learners
from compute.approaches.neural import network as mlp
from compute.approaches.neural.knots import DistinctPoints, SplineKnots, points_for
from compute.approaches.neural.leave_one_out import apply, neural_leave_one_out
from compute.approaches.neural.network import ScalarMLP, initial_mlp
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.splits import fold_of_rows, hold_out
from compute.approaches.neural.training import _Fit, _targets, train

SMALL = NeuralOptions(width=16, epochs=6, learning_rate=1e-2, knots=None)
PARAMETERS = 50


def random_bank(
    number: int = 14, seed: int = 0, parameters: int = PARAMETERS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Adapters, their Gram matrix, and distances of datasets made of the same latent factors."""
    rng = np.random.default_rng(seed)
    latent = rng.dirichlet(np.full(4, 0.4), size=number)
    theta = latent @ rng.normal(size=(4, parameters)) + rng.normal(size=(number, parameters)) * 0.2 + 0.7
    distances = np.abs(latent[:, None] - latent).sum(axis=2) * rng.uniform(0.9, 1.1, size=(number, number))
    return theta, theta @ theta.T, distances


def by_definition(
    model: ScalarMLP, distances: np.ndarray, targets: np.ndarray, sources: np.ndarray
) -> np.ndarray:
    """Coefficients of targets over sources but themselves, row by row; zero elsewhere."""
    result = np.zeros(distances.shape)
    for i in targets:
        others = sources[sources != i]
        z = stats.zscore(distances[i, others], ddof=0)
        result[i, others] = special.softmax(-model(z).astype(np.float64))
    return result


def materialised_loss(c: np.ndarray, theta: np.ndarray, targets: np.ndarray) -> float:
    return float(np.mean((c[targets] @ theta - theta[targets]) ** 2))


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).sum(axis=1).max() / 2)


def same_parameters(a: ScalarMLP, b: ScalarMLP) -> bool:
    return all(np.array_equal(array, b.parameters[name]) for name, array in a.parameters.items())


# --- the loss and its gradient


def test_loss_is_the_error_of_materialised_adapters() -> None:
    theta, gram, distances = random_bank()
    result = train(distances, gram, np.arange(14), replace(SMALL, held_out=0.2, patience=100), PARAMETERS)
    fitted, held_out = result.rows, result.held_out_rows
    assert len(held_out) == 3
    assert_array_equal(np.sort(np.concatenate([fitted, held_out])), np.arange(14))
    c = by_definition(result.model, distances, fitted, fitted)
    assert_allclose(result.losses[result.best_epoch], materialised_loss(c, theta, fitted), rtol=1e-5)
    c = by_definition(result.model, distances, held_out, np.arange(14))
    assert_allclose(
        result.held_out_losses[result.best_epoch], materialised_loss(c, theta, held_out), rtol=1e-5
    )


def test_first_loss_is_that_of_the_initial_network() -> None:
    theta, gram, distances = random_bank()
    rows = np.arange(14)
    result = train(distances, gram, rows, replace(SMALL, held_out=0.0), PARAMETERS)
    initial = initial_mlp(16, SMALL.generator("initial"), np.float32)
    expected = materialised_loss(by_definition(initial, distances, rows, rows), theta, rows)
    assert_allclose(result.losses[0], expected, rtol=1e-5)
    assert len(result.losses) == SMALL.epochs + 1
    assert len(result.held_out_losses) == 0


@pytest.mark.parametrize(("knots", "batch"), [(None, 512), (None, 7), (12, 512), (12, 5)])
def test_gradient_equals_finite_differences(
    knots: int | None, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learners, "BATCH", batch)
    monkeypatch.setattr(mlp, "BATCH", batch)
    _, gram, distances = random_bank(8)
    options = replace(SMALL, width=5, knots=knots)
    fitted, held_out = np.arange(6), np.arange(6, 8)
    _, targets = _targets(distances, gram, fitted, held_out, options)
    fit = _Fit(targets, options, np.float64)
    learner = fit.learner
    assert isinstance(learner, learners.DenseLearner)
    assert len(learner.sites) == (knots or 6 * 5 + 2 * 7)
    monkeypatch.setattr(learner.adam, "step", lambda *_: None)
    learner.descend(fit._record(learner.values()))

    def loss() -> float:
        fit._record(learner.values())
        return fit.losses[0][-1]

    step = 1e-5
    for name, array in learner.parameters.items():
        expected = np.empty_like(array)
        for place in np.ndindex(array.shape):
            before = array[place]
            array[place] = before + step
            above = loss()
            array[place] = before - step
            expected[place] = (above - loss()) / (2 * step)
            array[place] = before
        assert_allclose(learner.gradient[name], expected, rtol=1e-5, atol=1e-8, err_msg=name)


@pytest.mark.torch
def test_training_follows_that_of_torch_on_materialised_adapters() -> None:
    import torch

    from tests.test_compute.test_approaches.test_neural.test_mlp import torch_sequential

    theta, gram, distances = random_bank()
    rows = np.arange(14)
    options = replace(SMALL, held_out=0.0, epochs=5, learning_rate=1e-3)
    result = train(distances, gram, rows, options, PARAMETERS)
    network = torch_sequential(initial_mlp(16, options.generator("initial"), np.float64))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    others = ~np.eye(14, dtype=bool)
    z = np.stack([stats.zscore(distances[i, others[i]], ddof=0) for i in rows])
    adapters = torch.from_numpy(theta)
    losses = []
    for _ in range(6):
        weights = torch.softmax(-network(torch.from_numpy(z)[..., None])[..., 0], dim=1)
        c = torch.zeros(14, 14, dtype=torch.float64)
        c[torch.from_numpy(others)] = weights.reshape(-1)
        loss = torch.mean((c @ adapters - adapters) ** 2)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert_allclose(result.losses, losses, rtol=1e-3)
    assert losses[-1] < 0.99 * losses[0]


def test_training_does_better_than_equal_shares_and_the_normalized_approach() -> None:
    theta, gram, distances = random_bank(30)
    options = NeuralOptions(width=64, epochs=40, knots=48, learning_rate=1e-2)
    c, _ = neural_leave_one_out(distances, gram, PARAMETERS, options)
    rows, excluded = np.arange(30), np.eye(30, dtype=bool)
    others = {a: coefficients(distances, excluded, a) for a in ("uniform", "normalized")}
    least = min(materialised_loss(other, theta, rows) for other in others.values())
    assert materialised_loss(c, theta, rows) < 0.9 * least


def test_scale_and_common_part_of_the_adapters_do_not_matter() -> None:
    theta, gram, distances = random_bank()
    rows = np.arange(14)
    plain = train(distances, gram, rows, SMALL, PARAMETERS)
    for other in (theta * 1e-4, theta + 5.0):
        result = train(distances, other @ other.T, rows, SMALL, PARAMETERS)
        scale = 1e-8 if other[0, 0] < 1 else 1.0
        assert_allclose(result.losses, plain.losses * scale, rtol=1e-4)
        assert_array_equal(result.rows, plain.rows)


def test_number_of_parameters_scales_the_losses_alone() -> None:
    _, gram, distances = random_bank()
    one = train(distances, gram, np.arange(14), SMALL, 1)
    ten = train(distances, gram, np.arange(14), SMALL, 10)
    assert_allclose(one.losses, 10 * ten.losses)
    assert same_parameters(one.model, ten.model)


# --- early stopping, seeds, rows


def test_early_stopping_keeps_the_best_epoch() -> None:
    theta, gram, distances = random_bank()
    # Distances without meaning: what is learned of the fitted rows soon hurts the others.
    distances = np.random.default_rng(3).uniform(1, 2, size=(14, 14))
    options = replace(SMALL, epochs=200, held_out=0.3, patience=4)
    result = train(distances, gram, np.arange(14), options, PARAMETERS)
    assert result.best_epoch == np.argmin(result.held_out_losses)
    assert len(result.losses) == len(result.held_out_losses) == result.best_epoch + 4 + 1 < 200
    c = by_definition(result.model, distances, result.held_out_rows, np.arange(14))
    assert_allclose(
        materialised_loss(c, theta, result.held_out_rows), result.held_out_losses.min(), rtol=1e-5
    )


def test_held_out_rows_do_not_change_what_is_fitted() -> None:
    theta, gram, distances = random_bank()
    options = replace(SMALL, held_out=0.2, patience=100)
    plain = train(distances, gram, np.arange(14), options, PARAMETERS)
    theta[plain.held_out_rows] += np.random.default_rng(1).normal(size=(3, PARAMETERS))
    other = train(distances, theta @ theta.T, np.arange(14), options, PARAMETERS)
    assert_allclose(other.losses, plain.losses, rtol=1e-6)
    assert not np.allclose(other.held_out_losses, plain.held_out_losses, rtol=1e-3)


def test_training_reads_its_rows_alone() -> None:
    _, gram, distances = random_bank()
    rows = np.array([1, 2, 4, 5, 7, 8, 9, 12])
    plain = train(distances, gram, rows, SMALL, PARAMETERS)
    outside = np.ones(14, dtype=bool)
    outside[rows] = False
    for matrix in (gram, distances):
        matrix[outside] = matrix[:, outside] = np.nan
    np.fill_diagonal(distances, np.nan)
    again = train(distances, gram, rows[::-1], SMALL, PARAMETERS)
    assert same_parameters(again.model, plain.model)


def test_the_seed_decides_everything() -> None:
    _, gram, distances = random_bank()
    for protocol in ("cross-fitted", "published"):
        options = replace(SMALL, protocol=protocol)
        c, _ = neural_leave_one_out(distances, gram, PARAMETERS, options)
        again, _ = neural_leave_one_out(distances, gram, PARAMETERS, options)
        other, _ = neural_leave_one_out(distances, gram, PARAMETERS, replace(options, seed=1))
        assert_array_equal(c, again)
        assert not np.array_equal(c, other)


# --- protocols


@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_cross_fitted_rows_do_not_know_their_own_adapter(held_out: float) -> None:
    theta, gram, distances = random_bank()
    options = replace(SMALL, held_out=held_out)
    plain, _ = neural_leave_one_out(distances, gram, PARAMETERS, options)
    fold = fold_of_rows(14, options)
    for i in (0, 5, 13):
        other = theta.copy()
        other[i] = np.random.default_rng(i).normal(size=PARAMETERS) * 3
        changed = gram.copy()
        changed[i] = changed[:, i] = other @ other[i]
        c, _ = neural_leave_one_out(distances, changed, PARAMETERS, options)
        assert_array_equal(c[fold == fold[i]], plain[fold == fold[i]])
        if held_out == 0.0:
            # Every other fold's network was trained on it.
            assert np.all(np.any(c[fold != fold[i]] != plain[fold != fold[i]], axis=1))


def test_published_rows_may_know_their_own_adapter() -> None:
    theta, gram, distances = random_bank()
    options = replace(SMALL, protocol="published")
    c, (result,) = neural_leave_one_out(distances, gram, PARAMETERS, options)
    assert len(result.rows) == round(0.8 * 14)
    assert len(result.held_out_rows) == 0
    assert result.best_epoch == SMALL.epochs
    everything = np.arange(14)
    assert_allclose(c, by_definition(result.model, distances, everything, everything), rtol=1e-5, atol=1e-9)
    c_rows = by_definition(result.model, distances, result.rows, result.rows)
    assert_allclose(result.losses[-1], materialised_loss(c_rows, theta, result.rows), rtol=1e-5)


def test_cross_fitted_coefficients_are_those_of_each_folds_network() -> None:
    _, gram, distances = random_bank()
    c, results = neural_leave_one_out(distances, gram, PARAMETERS, SMALL)
    fold = fold_of_rows(14, SMALL)
    assert len(results) == SMALL.trainings == 5
    for k, result in enumerate(results):
        seen = np.union1d(result.rows, result.held_out_rows)
        assert_array_equal(seen, np.flatnonzero(fold != k))
        expected = by_definition(result.model, distances, np.flatnonzero(fold == k), np.arange(14))
        assert_allclose(c[fold == k], expected[fold == k], rtol=1e-5, atol=1e-9)
    assert_array_equal(np.diag(c), 0.0)
    assert_allclose(c.sum(axis=1), 1.0, rtol=1e-12)


def test_groups_stay_together() -> None:
    _, gram, distances = random_bank()
    groups = ["a", "b", "a", None, "c", "b", "d", "d", "c", None, "a", "e", "e", "b"]
    options = replace(SMALL, folds=3, held_out=0.2)
    plain, results = neural_leave_one_out(distances, gram, PARAMETERS, options, groups)
    fold = fold_of_rows(14, options, groups)
    for name in "abcde":
        members = [i for i, group in enumerate(groups) if group == name]
        assert len(set(fold[members])) == 1
        for result in results:
            assert len(np.intersect1d(members, result.held_out_rows)) in (0, len(members))
    # All adapters of a group change: none of its rows does.
    members = [0, 2, 10]
    gram[np.ix_(members, np.arange(14))] *= 1.5
    gram[np.ix_(np.arange(14), members)] *= 1.5
    c, _ = neural_leave_one_out(distances, gram, PARAMETERS, options, groups)
    assert_array_equal(c[members], plain[members])


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=12),
    folds=st.integers(2, 5),
    seed=st.integers(0, 9),
)
def test_folds_hold_whole_groups_and_are_balanced(sizes: list[int], folds: int, seed: int) -> None:
    groups = [f"g{k}" for k, size in enumerate(sizes) for _ in range(size)]
    options = NeuralOptions(folds=folds, seed=seed)
    if len(sizes) < folds:
        with pytest.raises(ParameterError, match="folds: expected at most"):
            fold_of_rows(len(groups), options, groups)
        return
    fold = fold_of_rows(len(groups), options, groups)
    assert all(len({int(fold[i]) for i, g in enumerate(groups) if g == name}) == 1 for name in set(groups))
    counts = np.bincount(fold, minlength=folds)
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= max(sizes)


def test_folds_without_groups_differ_by_one_row_at_most() -> None:
    counts = np.bincount(fold_of_rows(502, NeuralOptions()), minlength=5)
    assert sorted(counts) == [100, 100, 100, 101, 101]


def test_a_group_is_held_out_whole_and_the_smallest_where_all_are_large() -> None:
    options = NeuralOptions(held_out=0.1)
    groups = ["a"] * 8 + ["b"] * 5 + ["c"] * 7
    fitted, held_out = hold_out(np.arange(20), 20, options, groups)
    assert_array_equal(held_out, np.arange(8, 13))
    assert_array_equal(fitted, np.setdiff1d(np.arange(20), held_out))
    with pytest.raises(ParameterError, match="held_out: expected at least 3"):
        hold_out(np.arange(8), 20, options, groups)


def test_progress_counts_epochs_over_all_trainings() -> None:
    _, gram, distances = random_bank()
    seen: list[tuple[int, float]] = []
    options = replace(SMALL, held_out=0.0)
    _, results = neural_leave_one_out(
        distances, gram, PARAMETERS, options, report=lambda epoch, loss: seen.append((epoch, loss))
    )
    assert [epoch for epoch, _ in seen] == list(range(1, options.trainings * options.epochs + 1))
    assert_allclose([loss for _, loss in seen], np.concatenate([r.losses[1:] for r in results]))


# --- application


@st.composite
def new_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 30)))
    values = draw(arrays(np.float64, shape, elements=st.floats(0, 1e6)))
    excluded = draw(arrays(np.bool_, shape))
    free = draw(arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    excluded[np.arange(shape[0]), free] = False
    return np.where(excluded, np.nan, values), excluded


@settings(deadline=None)
@given(rows=new_rows(), knots=st.sampled_from([None, 4, 128]))
def test_rows_sum_to_one_and_excluded_get_nothing(
    rows: tuple[np.ndarray, np.ndarray], knots: int | None
) -> None:
    distances, excluded = rows
    model = initial_mlp(8, np.random.default_rng(0), np.float32)
    c = apply(model, distances, excluded, replace(SMALL, knots=knots))
    assert_array_equal(c[excluded], 0.0)
    assert np.all(c >= 0)
    assert_allclose(c.sum(axis=1), 1.0, rtol=1e-12)


def test_a_new_dataset_is_one_row() -> None:
    _, gram, distances = random_bank()
    model = train(distances, gram, np.arange(14), SMALL, PARAMETERS).model
    row = np.random.default_rng(0).gamma(2.0, size=(1, 14))
    c = apply(model, row, np.zeros((1, 14), dtype=bool), SMALL)
    z = stats.zscore(row[0], ddof=0)
    assert_allclose(c[0], special.softmax(-model(z).astype(np.float64)), rtol=1e-6)


def test_published_scores_count_the_distance_to_itself() -> None:
    _, gram, distances = random_bank()
    np.fill_diagonal(distances, 0.0)
    options = replace(SMALL, compatible="published", protocol="published")
    c, (result,) = neural_leave_one_out(distances, gram, PARAMETERS, options)
    for i in range(14):
        others = np.arange(14) != i
        z = stats.zscore(distances[i], ddof=0)[others]
        assert_allclose(c[i, others], special.softmax(-result.model(z).astype(np.float64)), rtol=1e-5)
    correct, _ = neural_leave_one_out(distances, gram, PARAMETERS, replace(options, compatible="correct"))
    assert total_variation(c, correct) > 1e-6


# --- knots


@settings(deadline=None)
@given(
    numbers=arrays(np.float64, st.integers(20, 60), elements=st.floats(-20, 20), unique=True),
    knots=st.integers(4, 19),
    seed=st.integers(0, 99),
)
def test_knots_are_a_cubic_spline_and_its_transpose(numbers: np.ndarray, knots: int, seed: int) -> None:
    points = points_for(numbers, knots)
    assert isinstance(points, SplineKnots)
    assert len(points.points) == knots
    rng = np.random.default_rng(seed)
    values, slopes = rng.normal(size=knots), rng.normal(size=len(numbers))
    expected = CubicSpline(np.arcsinh(points.points), values)(np.arcsinh(numbers))
    assert_allclose(points.spread(values), expected, atol=1e-7 * (1 + np.abs(expected).max()))
    assert_allclose(points.gather(slopes) @ values, slopes @ points.spread(values), rtol=1e-7, atol=1e-9)


def test_distinct_numbers_are_evaluated_once_each() -> None:
    numbers = np.array([2.0, -1.0, 2.0, 0.5, -1.0, 2.0])
    for knots in (None, 4, 100):
        points = points_for(numbers, knots)
        assert isinstance(points, DistinctPoints)
        assert_array_equal(points.points, [-1.0, 0.5, 2.0])
        assert_array_equal(points.spread(points.points), numbers)
        assert_array_equal(points.gather(np.array([1.0, 2, 3, 4, 5, 6])), [7.0, 4.0, 10.0])


@pytest.mark.parametrize("power", [1.0, 6.0])
def test_knots_give_the_coefficients_of_exact_evaluation(power: float) -> None:
    """To 1e-3 in total variation of each row; the sixth power gives scores far out on one side."""
    _, gram, distances = random_bank(60)
    distances **= power
    knots = NeuralOptions(width=256, learning_rate=3e-3)
    result = train(distances, gram, np.arange(60), knots, PARAMETERS)
    excluded = np.eye(60, dtype=bool)
    exact = apply(result.model, distances, excluded, replace(knots, knots=None))
    assert total_variation(apply(result.model, distances, excluded, knots), exact) < 1e-3
    # The network is far from where it began, so that this is no small change of equal shares.
    assert total_variation(exact, coefficients(distances, excluded, "uniform")) > 0.3


def test_training_at_knots_reaches_the_loss_of_exact_training() -> None:
    theta, gram, distances = random_bank(30)
    rows, excluded = np.arange(30), np.eye(30, dtype=bool)
    options = NeuralOptions(width=64, held_out=0.0, learning_rate=3e-3)
    losses = []
    for knots in (128, None):
        chosen = replace(options, knots=knots)
        model = train(distances, gram, rows, chosen, PARAMETERS).model
        losses.append(materialised_loss(apply(model, distances, excluded, chosen), theta, rows))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


# --- refusals


@pytest.mark.parametrize(
    "option",
    [
        {"width": 1},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"seed": -1},
        {"knots": 3},
        {"protocol": "honest"},
        {"folds": 1},
        {"training_share": 0.0},
        {"training_share": 1.2},
        {"held_out": 1.0},
        {"held_out": -0.1},
        {"patience": 0},
        {"compatible": "paper"},
    ],
)
def test_options_out_of_range_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=f"^{next(iter(option))}: expected"):
        NeuralOptions(**option)  # type: ignore[arg-type]


def test_arrays_that_do_not_fit_are_refused() -> None:
    _, gram, distances = random_bank()
    rows = np.arange(14)
    for wrong in (
        (distances[:5], gram, rows, 1),
        (distances, gram[:5, :5], rows, 1),
        (distances, gram, rows, 0),
    ):
        with pytest.raises(ParameterError):
            train(*wrong[:3], SMALL, wrong[3])
    for wrong_rows in ([0, 1, 14], [0, 1, 1, 2], [-1, 2, 3], [0, 1]):
        with pytest.raises(ParameterError):
            train(distances, gram, np.array(wrong_rows), SMALL, PARAMETERS)
    with pytest.raises(ParameterError, match="groups: expected one for each of 14"):
        train(distances, gram, rows, SMALL, PARAMETERS, groups=["a"] * 3)
    with pytest.raises(ParameterError, match="folds: expected at most 14"):
        neural_leave_one_out(distances, gram, PARAMETERS, replace(SMALL, folds=15))
    model = initial_mlp(8, np.random.default_rng(0), np.float32)
    with pytest.raises(ParameterError, match="all 14 excluded"):
        apply(model, distances, np.ones((14, 14), dtype=bool), SMALL)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_distances_that_are_no_distances_are_refused(value: float) -> None:
    _, gram, distances = random_bank()
    distances[2, 3] = value
    with pytest.raises(ComputeError, match="distance of row"):
        train(distances, gram, np.arange(14), SMALL, PARAMETERS)
    model = initial_mlp(8, np.random.default_rng(0), np.float32)
    with pytest.raises(ComputeError, match="distance of row 2 and column 3"):
        apply(model, distances, np.eye(14, dtype=bool), SMALL)


def test_a_gram_matrix_that_cannot_be_learned_from_is_refused() -> None:
    theta, gram, distances = random_bank()
    rows = np.arange(14)
    damaged = gram.copy()
    damaged[1, 2] = np.nan
    with pytest.raises(ComputeError, match="Gram matrix: expected finite entries"):
        train(distances, damaged, rows, SMALL, PARAMETERS)
    for equal in (np.tile(theta[0], (14, 1)), np.zeros((14, PARAMETERS))):
        with pytest.raises(ComputeError, match="expected adapters that differ"):
            train(distances, equal @ equal.T, rows, SMALL, PARAMETERS)


def test_a_training_that_diverges_is_an_error() -> None:
    _, gram, distances = random_bank()
    with (
        np.errstate(all="ignore"),
        pytest.raises(ComputeError, match="smaller learning rate"),
    ):
        train(distances, gram, np.arange(14), replace(SMALL, learning_rate=1e38), PARAMETERS)
