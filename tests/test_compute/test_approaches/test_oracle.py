"""The oracle against optimality conditions, SciPy's solvers and known solutions; weight-space errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from scipy import optimize

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.oracle import oracle, simplex_least_squares
from compute.approaches.weight_errors import weight_space_errors


def assert_optimal(
    theta: np.ndarray, target: np.ndarray, weights: np.ndarray, tolerance: float = 1e-8
) -> None:
    """Feasible, and no source lies further towards the target than those that are used."""
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    residual = weights @ theta - target
    # Products with the residual about the target: the origin does not matter, nor does what all share.
    about = theta - target
    products = about @ residual
    level = residual @ residual
    # The Gram matrix is about the origin: rounding there is all that can be asked for.
    scale = np.max(np.sum((theta - theta.mean(axis=0)) ** 2, axis=1)) + 1e-7 * np.max(
        np.sum(theta**2, axis=1)
    )
    assert products.min() >= level - tolerance * scale
    assert_allclose(products[weights > 0], level, rtol=0, atol=tolerance * scale)


def unrelated(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(30, 400))


def families(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(5, 200))[rng.integers(0, 5, 40)] + 0.2 * rng.normal(size=(40, 200))


def inside_the_hull(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(40, 3))


def duplicates(rng: np.random.Generator) -> np.ndarray:
    theta = rng.normal(size=(12, 60))
    return np.concatenate([theta, theta, theta[:5]])


def decaying_spectrum(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(40, 60)) * 10.0 ** (-np.arange(60) / 6)


def common_part(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(25, 300)) + 30 * rng.normal(size=300)


def unequal_norms(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(30, 300)) * 10 ** rng.uniform(-2, 2, (30, 1))


def all_equal(rng: np.random.Generator) -> np.ndarray:
    return np.tile(rng.normal(size=50), (6, 1))


def all_zero(rng: np.random.Generator) -> np.ndarray:
    return np.zeros((4, 5))


BANKS = (
    unrelated,
    families,
    inside_the_hull,
    duplicates,
    decaying_spectrum,
    common_part,
    unequal_norms,
    all_equal,
    all_zero,
)
every_bank = pytest.mark.parametrize("bank", BANKS, ids=lambda bank: bank.__name__)


@every_bank
def test_every_row_is_optimal(bank: Callable[[np.random.Generator], np.ndarray]) -> None:
    theta = bank(np.random.default_rng(0))
    excluded = np.eye(len(theta), dtype=bool)
    excluded[0, : len(theta) // 2] = True
    weights = oracle(theta @ theta.T, excluded)
    assert_array_equal(weights[excluded], 0.0)
    for i, sources in enumerate(~excluded):
        assert_optimal(theta[sources], theta[i], weights[i, sources])


@every_bank
def test_one_row_equals_scipy_non_negative_least_squares(
    bank: Callable[[np.random.Generator], np.ndarray],
) -> None:
    """The nearest point of a hull, about the target: `min |Z u|^2 + (sum u - 1)^2`, u >= 0, scaled to sum 1."""
    theta = bank(np.random.default_rng(1))
    target, sources = theta[0], theta[1:]
    weights = simplex_least_squares(sources @ sources.T, sources @ target)
    about = (sources - target).T
    size = max(np.abs(about).max(), 1.0)
    solution, _ = optimize.nnls(
        np.vstack([about / size, np.ones(len(sources))]), np.append(np.zeros(len(about)), 1.0), maxiter=5000
    )
    best = np.linalg.norm(about @ (solution / solution.sum()))
    assert np.linalg.norm(about @ weights) <= best * (1 + 1e-8) + 1e-5 * size


@pytest.mark.parametrize("seed", range(5))
def test_small_problems_equal_a_general_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, target = rng.normal(size=(6, 9)), 0.3 * rng.normal(size=9)
    gram, cross = theta @ theta.T, theta @ target
    found = simplex_least_squares(gram, cross)
    general = optimize.minimize(
        lambda w: w @ gram @ w - 2 * cross @ w,
        np.full(6, 1 / 6),
        jac=lambda w: 2 * (gram @ w - cross),
        bounds=[(0, 1)] * 6,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(6)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert general.success
    assert_allclose(found, general.x, atol=1e-6)
    assert found @ gram @ found - 2 * cross @ found <= general.fun + 1e-12


def test_known_solutions() -> None:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(8, 100))
    gram = theta @ theta.T
    assert_allclose(simplex_least_squares(gram, theta @ theta[3]), np.eye(8)[3], atol=1e-12)
    mixture = np.array([0.5, 0, 0.2, 0.3, 0, 0, 0, 0])
    assert_allclose(simplex_least_squares(gram, theta @ (mixture @ theta)), mixture, atol=1e-9)
    # Orthogonal unit sources, target at the origin: equal shares.
    assert_allclose(simplex_least_squares(np.eye(5), np.zeros(5)), np.full(5, 0.2), atol=1e-12)
    # The projection of a point onto a segment, inside it and beyond its end.
    ends = np.array([[0.0, 0.0], [4.0, 0.0]])
    for point, share in (([1.0, 5.0], 0.25), ([9.0, 1.0], 1.0), ([-2.0, 1.0], 0.0)):
        found = simplex_least_squares(ends @ ends.T, ends @ np.array(point))
        assert_allclose(found, [1 - share, share], atol=1e-12)
    assert_array_equal(simplex_least_squares(np.array([[3.0]]), np.array([1.0])), [1.0])


def test_an_adapter_that_is_there_twice_is_found() -> None:
    theta = np.random.default_rng(0).normal(size=(10, 80))
    theta[7] = theta[2]
    weights = oracle(theta @ theta.T, np.eye(10, dtype=bool))
    assert_allclose(weights[2], np.eye(10)[7], atol=1e-12)
    assert_allclose(weights[7], np.eye(10)[2], atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 6)).flatmap(
        lambda shape: arrays(np.float64, (shape[0] + 1, shape[1]), elements=st.integers(-3, 3).map(float))
    )
)
def test_degenerate_problems_are_solved(theta: np.ndarray) -> None:
    """Small integers: sources that coincide, lie on a line, or surround the target."""
    target, sources = theta[0], theta[1:]
    assert_optimal(sources, target, simplex_least_squares(sources @ sources.T, sources @ target))


def test_the_oracle_is_never_worse_than_other_coefficients() -> None:
    rng = np.random.default_rng(4)
    theta = families(rng)
    gram = theta @ theta.T
    number = len(theta)
    excluded = np.eye(number, dtype=bool)
    best = weight_space_errors(oracle(gram, excluded), gram, np.arange(number), theta.shape[1]).mse
    for _ in range(20):
        other = rng.dirichlet(np.full(number, 0.1), number)
        np.fill_diagonal(other, 0.0)
        other /= other.sum(axis=1, keepdims=True)
        errors = weight_space_errors(other, gram, np.arange(number), theta.shape[1]).mse
        assert (best <= errors * (1 + 1e-9)).all()


def test_errors_equal_those_of_materialised_predictions() -> None:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(9, 500))
    targets = np.array([4, 0, 4, 8])
    c = rng.dirichlet(np.ones(9), 4)
    found = weight_space_errors(c, theta @ theta.T, targets, 500)
    predicted, actual = c @ theta, theta[targets]
    norms = np.linalg.norm(actual, axis=1)
    assert_allclose(found.mse, np.mean((predicted - actual) ** 2, axis=1), rtol=1e-10)
    cosine = np.sum(predicted * actual, axis=1) / np.linalg.norm(predicted, axis=1) / norms
    assert_allclose(found.cosine, cosine, rtol=1e-10)
    assert_allclose(found.relative, np.linalg.norm(predicted - actual, axis=1) / norms, rtol=1e-10)


def test_errors_of_perfect_and_of_zero_adapters() -> None:
    theta = np.random.default_rng(0).normal(size=(3, 50))
    theta[2] = 0.0
    found = weight_space_errors(np.eye(3), theta @ theta.T, np.arange(3), 50)
    assert_array_equal(found.mse, np.zeros(3))
    assert_allclose(found.cosine, [1, 1, np.nan], rtol=1e-12)
    assert_array_equal(found.relative, [0, 0, np.nan])


@pytest.mark.parametrize(
    ("size", "known"), [(1.0, True), (1e-15, True), (1e-17, True), (1e-22, False), (1e-40, False)]
)
def test_errors_of_tiny_adapters_are_right_or_not_a_number(size: float, known: bool) -> None:
    theta = np.random.default_rng(0).normal(size=(4, 50))
    c = np.full((4, 4), 1 / 3) * (1 - np.eye(4))
    expected = weight_space_errors(c, theta @ theta.T, np.arange(4), 50)
    theta *= size
    found = weight_space_errors(c, theta @ theta.T, np.arange(4), 50)
    for values, right in ((found.relative, expected.relative), (found.cosine, expected.cosine)):
        assert_allclose(values, right if known else np.full(4, np.nan), rtol=1e-9)


def test_distant_targets_and_equal_sources() -> None:
    assert_array_equal(oracle(np.zeros((0, 0)), np.zeros((0, 0), dtype=bool)), np.zeros((0, 0)))
    theta = np.array([[0.0, 0.0], [1e-3, 0.0], [0.0, 1e-3]])
    target = np.array([1e3, 5e2])
    assert_allclose(simplex_least_squares(theta @ theta.T, theta @ target), [0, 1, 0], atol=1e-12)
    alike = np.tile([2.0, 3.0], (4, 1))
    found = simplex_least_squares(alike @ alike.T, alike @ target)
    assert found.sum() == pytest.approx(1.0)
    assert (found >= 0).all()


def test_bad_input_is_refused() -> None:
    gram, excluded = np.eye(3), np.eye(3, dtype=bool)
    damaged = gram.copy()
    damaged[1, 2] = np.nan
    with pytest.raises(ComputeError, match="row 1 and column 2"):
        oracle(damaged, excluded)
    with pytest.raises(ComputeError, match="row 1 and column 2"):
        weight_space_errors(gram, damaged, np.arange(3), 5)
    with pytest.raises(ComputeError, match="symmetric"):
        oracle(np.triu(np.ones((3, 3))), excluded)
    with pytest.raises(ComputeError, match="negative eigenvalue"):
        simplex_least_squares(np.array([[1.0, 5.0, 0.0], [5.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), np.zeros(3))
    with pytest.raises(ComputeError, match="finite"):
        simplex_least_squares(gram, np.array([1.0, np.inf, 0.0]))
    for call in (
        lambda: oracle(gram[:2], excluded),
        lambda: oracle(gram, excluded[:2]),
        lambda: oracle(gram, np.eye(3)),
        lambda: oracle(gram, np.ones((3, 3), dtype=bool)),
        lambda: simplex_least_squares(gram, np.zeros(2)),
        lambda: simplex_least_squares(np.zeros((0, 0)), np.zeros(0)),
        lambda: weight_space_errors(gram[:2], gram, np.arange(3), 5),
        lambda: weight_space_errors(gram, gram, np.array([0, 1, 3]), 5),
        lambda: weight_space_errors(gram, gram, np.arange(3), 0),
    ):
        with pytest.raises(ParameterError):
            call()
