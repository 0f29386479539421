"""The network in passes over its weights: against its definition, complex-step derivatives, and the dense way."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from bankdb.errors import ComputeError
from compute.approaches.neural import first_layer, learners, piecewise
from compute.approaches.neural.learners import DenseLearner, learner_for
from compute.approaches.neural.leave_one_out import neural_leave_one_out
from compute.approaches.neural.network import BATCH, backward, forward, initial_mlp
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.piecewise import WEIGHTS, PiecewiseLearner
from compute.approaches.neural.training import train
from compute.approaches.neural.workspace import Workspace

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not for this Python yet"
)
OPTIONS = NeuralOptions(width=9, epochs=6, learning_rate=3e-2)
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ranges of columns, units and points in a network that is small."""
    for name, length in (("COLUMNS", 4), ("UNITS", 2), ("POINTS", 3)):
        monkeypatch.setattr(piecewise, name, length)


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training is worth it whose points are few enough."""
    monkeypatch.setattr(piecewise, "worth_compiling", lambda *_: True)


def learner(
    points: np.ndarray, options: NeuralOptions = OPTIONS, dtype: type = np.float64, threads: int = 1
) -> PiecewiseLearner:
    """One whose normalisations are not the identity, so that units switch on and off again."""
    made = PiecewiseLearner(points, options, dtype, Workspace(threads))
    rng = np.random.default_rng(options.seed + 1)
    for name, array in made.parameters.items():
        array += (0.4 * rng.normal(size=array.shape) * (not name.startswith("linear3"))).astype(dtype)
    return made


def by_definition(p: Arrays, x: float) -> complex:
    """Equations (30) and (31), for one number; also of complex parameters."""

    def hidden(values: np.ndarray, norm: str) -> np.ndarray:
        centred = values - values.sum() / len(values)
        scores = centred / np.sqrt((centred**2).sum() / len(values) + 1e-5)
        out = scores * p[f"{norm}.weight"] + p[f"{norm}.bias"]
        return np.where(out.real > 0, out, 0)

    first = hidden(p["linear1.weight"][:, 0] * x + p["linear1.bias"], "norm1")
    second = hidden(p["linear2.weight"] @ first + p["linear2.bias"], "norm2")
    return complex(p["linear3.weight"][0] @ second + p["linear3.bias"][0])


def derivatives(p: Arrays, points: np.ndarray, slopes: np.ndarray) -> Arrays:
    """Gradient of `sum(slopes * values)` by complex steps, which cancel nothing."""
    step, found = 1e-30, {}
    for name, array in p.items():
        found[name] = np.empty(array.shape)
        for place in np.ndindex(array.shape):
            moved = {key: value.astype(complex) for key, value in p.items()}
            moved[name][place] += step * 1j
            values = np.array([by_definition(moved, x) for x in points])
            found[name][place] = (slopes @ values).imag / step
    return found


def parameters_of(found: PiecewiseLearner) -> Arrays:
    return {name: np.array(array) for name, array in found.network().to_arrays().items()}


POINTS = st.lists(st.floats(-4, 4), min_size=1, max_size=12).map(np.array)


@settings(deadline=None, max_examples=60)
@given(points=POINTS, seed=st.integers(0, 999), width=st.integers(2, 11), in_order=st.booleans())
def test_values_are_those_of_the_definition(
    points: np.ndarray, seed: int, width: int, in_order: bool
) -> None:
    """In any order of the points: where they do not ascend, units switch many times."""
    points = np.sort(points) if in_order else points
    made = learner(points, replace(OPTIONS, seed=seed, width=width))
    p = parameters_of(made)
    expected = [by_definition(p, x).real for x in points]
    assert_allclose(made.values(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(points=POINTS, seed=st.integers(0, 999), in_order=st.booleans())
def test_gradient_is_that_of_the_dense_way(points: np.ndarray, seed: int, in_order: bool) -> None:
    points = np.sort(points) if in_order else points
    made = learner(points, replace(OPTIONS, seed=seed))
    p, slopes = parameters_of(made), np.random.default_rng(seed).normal(size=len(points))
    expected = {name: np.empty_like(array) for name, array in p.items()}
    backward(p, forward(p, points), slopes, expected, add=False)
    made.values()
    made.descend(slopes)
    # After one step the first moment is a tenth of the gradient.
    found = {**made.gradient, WEIGHTS: made.moments[0].T / 0.1}
    assert found.keys() == p.keys()
    for name, gradient in found.items():
        assert_allclose(gradient, expected[name], rtol=1e-8, atol=1e-8, err_msg=name)


def test_training_follows_a_plain_loop_of_complex_steps() -> None:
    """Five steps of Adam, as its paper writes them, down the squares of the values."""
    points = np.array([-2.0, -0.7, 0.1, 0.4, 1.9])
    options = replace(OPTIONS, width=5)
    made = learner(points, options)
    p = parameters_of(made)
    moments = {name: [np.zeros(array.shape), np.zeros(array.shape)] for name, array in p.items()}
    for step in range(1, 6):
        values = np.array([by_definition(p, x).real for x in points])
        assert_allclose(made.values(), values, rtol=1e-8, atol=1e-9)
        slopes = 2 * (values - points)
        made.descend(slopes)
        for name, gradient in derivatives(p, points, slopes).items():
            first, second = moments[name]
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient**2 - second)
            length = options.learning_rate * (first / (1 - 0.9**step))
            p[name] = p[name] - length / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    for name, array in parameters_of(made).items():
        assert_allclose(array, p[name], rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.torch
def test_training_follows_that_of_torch() -> None:
    import torch

    from tests.test_compute.test_approaches.test_neural.test_mlp import torch_sequential

    points = np.linspace(-2, 3, 40)
    made = learner(points, replace(OPTIONS, width=50))
    network = torch_sequential(made.network())
    optimiser = torch.optim.Adam(network.parameters(), lr=OPTIONS.learning_rate)
    x, wanted = torch.from_numpy(points)[:, None], np.cos(points)
    for _ in range(12):
        values = network(x)[:, 0]
        assert_allclose(made.values(), values.detach().numpy(), rtol=1e-6, atol=1e-7)
        made.descend(2 * (made.values() - wanted))
        optimiser.zero_grad()
        torch.sum((values - torch.from_numpy(wanted)) ** 2).backward()
        optimiser.step()


def test_switches_are_those_of_the_signs() -> None:
    """Units that are never active, always, from a point on, up to a point, in between, and at both ends."""
    u = np.array([-2.0, -1.0, 1.0, 2.0])
    factors = np.stack([u, 1.5 - np.abs(u)], axis=1)
    lines = np.array(
        [[0, 0, -1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [-1, 0, 0, 1], [0, 1, 0, 1], [0, -1, 0, 1]], dtype=float
    )
    bounds, points, signs = first_layer.loops().switches(lines, factors)
    found = [list(zip(points[a:b], signs[a:b], strict=True)) for a, b in itertools.pairwise(bounds)]
    assert found == [
        [],
        [(0, 1)],
        [(2, 1)],
        [(0, 1), (2, -1)],
        [(1, 1), (3, -1)],
        [(0, 1), (1, -1), (3, 1)],
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_changes_no_bit(dtype: type) -> None:
    points = np.linspace(-2, 3, 20)
    made = [learner(points, replace(OPTIONS, width=37), dtype, threads) for threads in (1, 3)]
    for _ in range(4):
        values = [one.values() for one in made]
        assert_array_equal(values[0], values[1])
        for one in made:
            one.keep()
            one.descend(values[0] - 1)
    for one in made:
        one.close()
    networks = [one.network().to_arrays() for one in made]
    for name, array in networks[0].items():
        assert_array_equal(array, networks[1][name], err_msg=name)


@given(kept=st.lists(st.booleans(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=20)
def test_what_was_kept_stays_and_keeping_changes_no_step(kept: list[bool]) -> None:
    points = np.linspace(-2, 3, 7)
    keeping, plain = learner(points), learner(points)
    expected = None
    for keep in kept:
        slopes = plain.values() - 1
        assert_array_equal(keeping.values(), plain.values())
        if keep:
            keeping.keep()
            expected = parameters_of(plain)
        keeping.descend(slopes)
        plain.descend(slopes)
    assert_array_equal(keeping.values(), plain.values())
    for name, array in keeping.network().to_arrays().items():
        assert_array_equal(array, (expected or parameters_of(plain))[name], err_msg=name)


@pytest.mark.parametrize("name", ["linear1.bias", "norm1.bias", "norm2.weight", "linear3.weight"])
def test_what_is_not_a_number_shows_in_the_values(name: str) -> None:
    made = learner(np.linspace(-2, 3, 7))
    made.parameters[name].reshape(-1)[3] = np.nan
    assert np.isnan(made.values()).all()


# --- whole trainings


def small_bank(number: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    latent = rng.dirichlet(np.full(4, 0.4), size=number)
    theta = latent @ rng.normal(size=(4, 50)) + rng.normal(size=(number, 50)) * 0.2
    return np.abs(latent[:, None] - latent).sum(axis=2), theta @ theta.T


def both_ways(monkeypatch: pytest.MonkeyPatch, run: Callable[[], np.ndarray]) -> Iterator[np.ndarray]:
    for quick in (True, False):
        monkeypatch.setattr(learners, "worth_it", lambda *_, quick=quick: quick)
        yield run()


def test_coefficients_are_those_of_the_dense_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """To what single precision leaves after twenty steps, which magnify it: less than 1e-4 in total variation."""
    distances, gram = small_bank()
    options = NeuralOptions(width=64, epochs=20, knots=40, folds=3)
    quick, dense = both_ways(
        monkeypatch, lambda: neural_leave_one_out(distances, gram, 1, options, workspace=Workspace(2))[0]
    )
    assert not np.array_equal(quick, dense)
    assert np.abs(quick - dense).sum(axis=1).max() / 2 < 1e-4


def test_losses_are_those_of_the_dense_way(monkeypatch: pytest.MonkeyPatch) -> None:
    distances, gram = small_bank()
    options = NeuralOptions(width=64, epochs=20, knots=40, held_out=0.2)
    quick, dense = both_ways(
        monkeypatch,
        lambda: np.stack(
            [(t := train(distances, gram, np.arange(20), options, 1)).losses, t.held_out_losses]
        ),
    )
    assert_allclose(quick, dense, rtol=1e-4)


@pytest.mark.usefixtures("worth_it")
def test_a_training_that_diverges_is_an_error() -> None:
    distances, gram = small_bank()
    options = NeuralOptions(width=16, knots=12, learning_rate=1e38)
    with np.errstate(all="ignore"), pytest.raises(ComputeError, match="smaller learning rate"):
        train(distances, gram, np.arange(20), options, 1, workspace=Workspace(2))


# --- which way


@pytest.mark.parametrize(
    ("width", "points", "quick"),
    [(4000, 128, True), (4000, BATCH, True), (4000, BATCH + 1, False), (64, 128, False)],
)
def test_small_networks_and_many_points_go_the_dense_way(width: int, points: int, quick: bool) -> None:
    assert piecewise.worth_it(width, points, 40) == quick


@pytest.mark.usefixtures("worth_it")
def test_without_numba_the_dense_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.linspace(-1, 1, 5)
    assert isinstance(learner_for(points, OPTIONS, np.float32), PiecewiseLearner)
    monkeypatch.setitem(sys.modules, "compute.approaches.neural.compiled", None)
    first_layer.kernels.cache_clear()
    try:
        assert isinstance(learner_for(points, OPTIONS, np.float32), DenseLearner)
    finally:
        first_layer.kernels.cache_clear()


def test_a_small_training_loads_no_compiler() -> None:
    program = (
        "import sys, numpy as np\n"
        "from compute.approaches.neural.options import NeuralOptions\n"
        "from compute.approaches.neural.training import train\n"
        "places = np.arange(6.0)\n"
        "train(abs(places[:, None] - places), np.eye(6), np.arange(6), NeuralOptions(width=8, epochs=2), 1)\n"
        "print([name for name in ('numba', 'llvmlite') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_initial_network_is_that_of_the_dense_way() -> None:
    made = PiecewiseLearner(np.linspace(-1, 1, 5), OPTIONS, np.float64)
    expected = initial_mlp(OPTIONS.width, OPTIONS.generator("initial"), np.float64).parameters
    order = [
        expected["linear1.bias"].tolist().index(value) for value in made.network().parameters["linear1.bias"]
    ]
    for name, array in made.network().parameters.items():
        wanted = expected[name]
        if name in piecewise.FIRST:
            wanted = wanted[order]
        assert_array_equal(array, wanted[:, order] if name == WEIGHTS else wanted, err_msg=name)
