"""Trainings that are interrupted after any epoch go on from there to the last bit, by either way of learning."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from compute.approaches.neural import learners
from compute.approaches.neural.leave_one_out import neural_leave_one_out
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.training import Trained, train
from compute.approaches.neural.workspace import Rows, State, Workspace
from compute.types import FloatArray

OPTIONS = NeuralOptions(width=24, epochs=7, learning_rate=3e-2, folds=3, patience=3, knots=32)
COMPILED = pytest.param(
    True,
    id="passes",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("numba") is None, reason="numba is not for this Python yet"
    ),
)


class StoppedError(Exception):
    """What a signal does, at a moment that a test knows."""


@dataclass
class Memory:
    """Keeps copies, and stops what trains after every so many of them."""

    stop_after: int | None = None
    states: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict)
    folds: dict[bytes, np.ndarray] = field(default_factory=dict)
    kept: int = 0

    def state(self, rows: Rows) -> State | None:
        return self.states.get(rows.tobytes())

    def keep_state(self, rows: Rows, state: Mapping[str, np.ndarray]) -> None:
        self.states[rows.tobytes()] = {name: np.array(array) for name, array in state.items()}
        self._count()

    def coefficients(self, rows: Rows) -> FloatArray | None:
        return self.folds.get(rows.tobytes())

    def keep_coefficients(self, rows: Rows, values: FloatArray) -> None:
        self.folds[rows.tobytes()] = values.copy()
        self._count()

    def _count(self) -> None:
        self.kept += 1
        if self.stop_after is not None and self.kept % self.stop_after == 0:
            raise StoppedError


@pytest.fixture
def bank() -> tuple[np.ndarray, np.ndarray]:
    """Distances and inner products of adapters that are made of the same few factors."""
    rng = np.random.default_rng(3)
    latent = rng.dirichlet(np.full(4, 0.4), size=16)
    theta = latent @ rng.normal(size=(4, 50)) + rng.normal(size=(16, 50)) * 0.2
    return np.abs(latent[:, None] - latent).sum(axis=2), theta @ theta.T


@pytest.fixture(params=[COMPILED, pytest.param(False, id="dense")])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(learners, "worth_it", lambda *_: request.param)
    return bool(request.param)


def assert_same(found: Trained, expected: Trained) -> None:
    assert_array_equal(found.losses, expected.losses)
    assert_array_equal(found.held_out_losses, expected.held_out_losses)
    assert found.best_epoch == expected.best_epoch
    for name, array in expected.model.parameters.items():
        assert_array_equal(found.model.parameters[name], array)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_a_training_that_is_stopped_after_each_epoch(
    bank: tuple[np.ndarray, np.ndarray], held_out: float
) -> None:
    options, rows = replace(OPTIONS, held_out=held_out), np.arange(16)
    expected = train(*bank, rows, options, 50)
    memory, stops = Memory(stop_after=1), 0
    while True:
        epochs: list[int] = []
        try:
            found = train(
                *bank, rows, options, 50, lambda e, _, to=epochs: to.append(e), workspace=Workspace(2, memory)
            )
        except StoppedError:
            stops += 1
            # Nothing is done twice: the epoch after the one that was kept, and no other.
            assert epochs == ([stops - 1] if stops > 1 else [])
            continue
        break
    assert stops >= 3
    assert_same(found, expected)


@pytest.mark.usefixtures("way")
def test_the_best_epoch_may_be_one_before_the_interruption(bank: tuple[np.ndarray, np.ndarray]) -> None:
    """Steps that are too long: the best network is an early one, and what was kept of it comes back."""
    options = replace(OPTIONS, learning_rate=0.5, held_out=0.3, patience=5)
    expected = train(*bank, np.arange(16), options, 50)
    assert expected.best_epoch < len(expected.losses) - 2
    memory = Memory(stop_after=expected.best_epoch + 2)
    with pytest.raises(StoppedError):
        train(*bank, np.arange(16), options, 50, workspace=Workspace(1, memory))
    memory.stop_after = None
    assert_same(train(*bank, np.arange(16), options, 50, workspace=Workspace(1, memory)), expected)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("protocol", ["cross-fitted", "published"])
@pytest.mark.parametrize("stop_after", [1, 4, 7, 11])
def test_leave_one_out(bank: tuple[np.ndarray, np.ndarray], protocol: str, stop_after: int) -> None:
    options = replace(OPTIONS, protocol=protocol)
    expected, _ = neural_leave_one_out(*bank, 50, options)
    memory, trained = Memory(stop_after=stop_after), []
    for _ in range(60):
        finished = len(memory.folds)
        try:
            found, trained = neural_leave_one_out(*bank, 50, options, workspace=Workspace(1, memory))
        except StoppedError:
            continue
        break
    else:
        pytest.fail("it never came to its end")
    assert_array_equal(found, expected)
    # The network of `published` is wanted for new datasets; of the folds' ones nobody asks for more.
    assert len(trained) == (1 if protocol == "published" else options.folds - finished)


def test_the_state_of_the_other_way_is_not_taken(
    bank: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("numba") is None:
        pytest.skip("numba is not for this Python yet")
    rows = np.arange(16)
    for quick in (True, False):
        memory = Memory(stop_after=3)
        monkeypatch.setattr(learners, "worth_it", lambda *_, quick=quick: quick)
        with pytest.raises(StoppedError):
            train(*bank, rows, OPTIONS, 50, workspace=Workspace(1, memory))
        memory.stop_after = None
        monkeypatch.setattr(learners, "worth_it", lambda *_, quick=quick: not quick)
        expected = train(*bank, rows, OPTIONS, 50)
        assert_same(train(*bank, rows, OPTIONS, 50, workspace=Workspace(1, memory)), expected)
