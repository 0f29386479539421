"""The scalar network: against finite differences, against torch, and its way to disk and back."""

from __future__ import annotations

import io
import math
from collections import OrderedDict

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.neural import network as mlp
from compute.approaches.neural.network import (
    Adam,
    ScalarMLP,
    backward,
    forward,
    initial_mlp,
    parameter_shapes,
)

WIDTH = 7


def random_mlp(width: int = WIDTH, dtype: type = np.float64, seed: int = 0) -> ScalarMLP:
    """A network whose normalisations are not the identity either."""
    rng = np.random.default_rng(seed)
    initial = initial_mlp(width, rng, dtype).to_arrays()
    return ScalarMLP(
        {name: (a + rng.normal(size=a.shape) * 0.3).astype(dtype) for name, a in initial.items()}
    )


def empty_like(model: ScalarMLP) -> dict[str, np.ndarray]:
    return {name: np.full_like(array, np.nan) for name, array in model.parameters.items()}


def gradient_of(model: ScalarMLP, points: np.ndarray, slopes: np.ndarray) -> dict[str, np.ndarray]:
    gradient = empty_like(model)
    backward(model.parameters, forward(model.parameters, points), slopes, gradient, add=False)
    return gradient


def torch_sequential(model: ScalarMLP):  # type: ignore[no-untyped-def]
    import torch

    width = model.width
    modules = OrderedDict(
        linear1=torch.nn.Linear(1, width),
        norm1=torch.nn.LayerNorm(width),
        relu1=torch.nn.ReLU(),
        linear2=torch.nn.Linear(width, width),
        norm2=torch.nn.LayerNorm(width),
        relu2=torch.nn.ReLU(),
        linear3=torch.nn.Linear(width, 1),
    )
    network = torch.nn.Sequential(modules).to(torch.from_numpy(model.parameters["linear1.bias"]).dtype)
    network.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in model.to_arrays().items()})
    return network


def test_the_function_is_the_layers_written_out() -> None:
    model = random_mlp()
    p = model.parameters

    def normalise(values: np.ndarray, norm: str) -> np.ndarray:
        deviation = np.sqrt(np.var(values) + 1e-5)
        return np.maximum((values - np.mean(values)) / deviation * p[f"{norm}.weight"] + p[f"{norm}.bias"], 0)

    for x in (-3.0, -0.2, 0.0, 1.7):
        first = normalise(p["linear1.weight"] @ np.array([x]) + p["linear1.bias"], "norm1")
        second = normalise(p["linear2.weight"] @ first + p["linear2.bias"], "norm2")
        expected = p["linear3.weight"] @ second + p["linear3.bias"]
        assert_allclose(model(np.array([x])), expected, rtol=1e-12)


def test_gradient_equals_finite_differences() -> None:
    model = random_mlp()
    rng = np.random.default_rng(1)
    points, slopes = rng.normal(size=9), rng.normal(size=9)
    gradient = gradient_of(model, points, slopes)
    step = 1e-6
    for name, array in model.parameters.items():
        expected = np.empty_like(array)
        for place in np.ndindex(array.shape):
            before = array[place]
            array[place] = before + step
            above = slopes @ model(points)
            array[place] = before - step
            below = slopes @ model(points)
            array[place] = before
            expected[place] = (above - below) / (2 * step)
        assert_allclose(gradient[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_gradient_over_batches_is_that_of_all_points() -> None:
    model = random_mlp()
    rng = np.random.default_rng(2)
    points, slopes = rng.normal(size=10), rng.normal(size=10)
    gradient = empty_like(model)
    for start in range(0, 10, 4):
        batch = slice(start, start + 4)
        done = forward(model.parameters, points[batch])
        backward(model.parameters, done, slopes[batch], gradient, add=start > 0)
    for name, whole in gradient_of(model, points, slopes).items():
        assert_allclose(gradient[name], whole, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.torch
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-9), (np.float32, 2e-4)])
def test_values_and_gradient_equal_those_of_torch(dtype: type, rtol: float) -> None:
    import torch

    model = random_mlp(width=40, dtype=dtype)
    rng = np.random.default_rng(3)
    points, slopes = rng.normal(size=30).astype(dtype), rng.normal(size=30).astype(dtype)
    network = torch_sequential(model)
    values = network(torch.from_numpy(points)[:, None])[:, 0]
    assert_allclose(model(points), values.detach().numpy(), rtol=rtol, atol=rtol)
    values.backward(torch.from_numpy(slopes))
    gradient = gradient_of(model, points, slopes)
    for name, parameter in network.named_parameters():
        expected = parameter.grad.numpy()
        assert_allclose(gradient[name], expected, rtol=rtol, atol=rtol * np.abs(expected).max(), err_msg=name)


@pytest.mark.torch
def test_steps_of_adam_equal_those_of_torch() -> None:
    import torch

    model = random_mlp()
    network = torch_sequential(model)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    adam = Adam(model.parameters, 1e-3)
    rng = np.random.default_rng(4)
    for _ in range(6):
        gradient = {name: rng.normal(size=a.shape) * 1e-7 for name, a in model.parameters.items()}
        for name, parameter in network.named_parameters():
            parameter.grad = torch.from_numpy(gradient[name])
        optimiser.step()
        adam.step(model.parameters, gradient)
    for name, parameter in network.named_parameters():
        assert_allclose(model.parameters[name], parameter.detach().numpy(), rtol=1e-10, err_msg=name)


def test_adam_by_its_definition_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "_ADAM_PIECE", 3)
    array = np.array([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])
    expected, m, v = array.copy(), np.zeros((3, 2)), np.zeros((3, 2))
    adam = Adam({"a": array}, 0.1)
    for t in range(1, 5):
        g = np.cos(np.arange(6.0).reshape(3, 2) * t)
        adam.step({"a": array}, {"a": g})
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert_allclose(array, expected, rtol=1e-12)


def test_initial_parameters_are_uniform_within_one_over_the_root_of_the_inputs() -> None:
    model = initial_mlp(200, np.random.default_rng(0), np.float32)
    assert {name: a.shape for name, a in model.parameters.items()} == parameter_shapes(200)
    for name, array in model.parameters.items():
        assert array.dtype == np.float32
        if name.startswith("norm"):
            assert_array_equal(array, 1.0 if name.endswith("weight") else 0.0)
        elif array.size > 1:
            bound = 1.0 if name.startswith("linear1") else 1 / math.sqrt(200)
            assert np.abs(array).max() <= bound * (1 + 1e-6)
            assert stats.kstest(array.ravel(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3


@pytest.mark.torch
def test_initial_parameters_are_distributed_as_those_of_torch() -> None:
    width = 150
    ours = initial_mlp(width, np.random.default_rng(0), np.float32)
    fresh = torch_sequential(ours)
    for module in fresh:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, parameter in fresh.named_parameters():
        theirs = parameter.detach().numpy().ravel()
        if name.startswith("norm"):
            assert_array_equal(ours.parameters[name], theirs)
        elif theirs.size > 1:
            assert stats.ks_2samp(ours.parameters[name].ravel(), theirs).pvalue > 1e-3


def test_the_seed_decides_the_initial_parameters() -> None:
    same = [initial_mlp(9, np.random.default_rng(5), np.float32).parameters for _ in range(2)]
    other = initial_mlp(9, np.random.default_rng(6), np.float32).parameters
    assert_array_equal(same[0]["linear2.weight"], same[1]["linear2.weight"])
    assert not np.array_equal(same[0]["linear2.weight"], other["linear2.weight"])


def test_evaluation_keeps_the_shape_and_does_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_mlp()
    x = np.random.default_rng(0).normal(size=(3, 4))
    whole = model(x)
    assert whole.shape == (3, 4)
    assert model(np.array([])).shape == (0,)
    monkeypatch.setattr(mlp, "BATCH", 5)
    assert_allclose(model(x), whole, rtol=1e-12)
    assert_allclose(model(x[1, 2]), whole[1, 2], rtol=1e-12)


def test_stored_arrays_give_the_same_function() -> None:
    model = random_mlp(dtype=np.float32)
    file = io.BytesIO()
    np.savez(file, **model.to_arrays())
    file.seek(0)
    with np.load(file) as stored:
        again = ScalarMLP.from_arrays({name: stored[name] for name in stored.files})
    x = np.linspace(-2, 2, 9)
    assert again.width == WIDTH
    assert_array_equal(again(x), model(x))
    assert again(x).dtype == np.float32


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("linear2.bias", None),
        ("linear1.bias", None),
        ("linear4.bias", np.zeros(1, dtype=np.float32)),
        ("linear2.weight", np.zeros((WIDTH, WIDTH + 1), dtype=np.float32)),
        ("linear2.weight", np.zeros((WIDTH, WIDTH), dtype=np.int32)),
        ("linear3.bias", np.full(1, np.nan, dtype=np.float32)),
    ],
)
def test_stored_arrays_that_are_not_a_network_are_refused(name: str, array: np.ndarray | None) -> None:
    arrays = random_mlp(dtype=np.float32).to_arrays()
    if array is None:
        del arrays[name]
    else:
        arrays[name] = array
    with pytest.raises(ComputeError, match="train it again"):
        ScalarMLP.from_arrays(arrays)


def test_a_width_of_one_is_refused() -> None:
    with pytest.raises(ParameterError, match="width: expected at least 2"):
        initial_mlp(1, np.random.default_rng(0), np.float32)
