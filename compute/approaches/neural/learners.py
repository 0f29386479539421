"""What a training asks of a network that learns; and the plain way to do it, by products of dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from compute.approaches.neural.network import (
    BATCH,
    Activations,
    Adam,
    Array,
    Parameters,
    ScalarMLP,
    backward,
    below,
    forward,
    initial_mlp,
)
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.piecewise import WEIGHTS, PiecewiseLearner, evaluate, worth_it
from compute.approaches.neural.workspace import State, Workspace
from compute.types import FloatArray


class Learner(Protocol):
    """A network of initial parameters by the seed, that is evaluated at fixed points and steps against slopes there."""

    def values(self) -> FloatArray:
        """Evaluate at the points; shape (K,)."""

    def descend(self, slopes: FloatArray) -> None:
        """Make a step of Adam against the loss's derivatives by the values that were evaluated last; shape (K,)."""

    def keep(self) -> None:
        """Keep the network as it is now, in place of what was kept before."""

    def network(self) -> ScalarMLP:
        """Return the network that was kept, or that of now where none was."""

    def state(self) -> State:
        """Return all that the next epoch reads, by name; not copies."""

    def resume(self, state: State) -> bool:
        """Go on from what `state` returned at the same points and options; False if that learned another way."""

    def close(self) -> None:
        """Give back what is not memory."""


def learner_for(
    sites: FloatArray,
    options: NeuralOptions,
    dtype: type[np.floating[Any]],
    workspace: Workspace | None = None,
) -> Learner:
    """Return what learns at these points, ascending ones: the quicker way where it is worth it."""
    if worth_it(options.width, len(sites), options.epochs):
        return PiecewiseLearner(sites, options, dtype, workspace)
    return DenseLearner(sites, options, dtype)


def evaluating(model: ScalarMLP, options: NeuralOptions, threads: int) -> Callable[[FloatArray], FloatArray]:
    """Return what evaluates a network at ascending points: the quicker way where its training was worth it."""

    def values(points: FloatArray) -> FloatArray:
        if worth_it(model.width, len(points), options.epochs):
            return evaluate(model, points, threads)
        return model(points).astype(np.float64)

    return values


class DenseLearner:
    """By products of matrices: `6 K W^2` operations an epoch, in batches where the points are many."""

    def __init__(self, sites: FloatArray, options: NeuralOptions, dtype: type[np.floating[Any]]) -> None:
        self.sites: Array = sites.astype(dtype)
        self.parameters: Parameters = dict(
            initial_mlp(options.width, options.generator("initial"), dtype).parameters
        )
        self.gradient: Parameters = {name: np.empty_like(array) for name, array in self.parameters.items()}
        self.adam = Adam(self.parameters, options.learning_rate)
        self._kept: Parameters | None = None
        self._activations: Activations | None = None

    def values(self) -> FloatArray:
        """Evaluate at the sites; the activations stay where one batch holds them all."""
        if len(self.sites) > BATCH:
            return ScalarMLP(self.parameters)(self.sites).astype(np.float64)
        self._activations = forward(self.parameters, self.sites)
        return self._activations.values.astype(np.float64)

    def descend(self, slopes: FloatArray) -> None:
        """Make a step of Adam against the slopes by the values."""
        for start in range(0, len(self.sites), BATCH):
            batch = slice(start, start + BATCH)
            done = self._activations or forward(self.parameters, self.sites[batch])
            backward(self.parameters, done, slopes[batch], self.gradient, add=start > 0)
        self._activations = None
        self.adam.step(self.parameters, self.gradient)

    def keep(self) -> None:
        """Copy the parameters."""
        if self._kept is None:
            self._kept = {name: np.empty_like(array) for name, array in self.parameters.items()}
        for name, array in self.parameters.items():
            self._kept[name][...] = array

    def network(self) -> ScalarMLP:
        """Return the network that was kept, or that of now where none was."""
        return ScalarMLP(self._kept or self.parameters)

    def state(self) -> State:
        """Return the parameters, those that were kept, and what Adam has."""
        kept = {} if self._kept is None else below("kept", self._kept)
        return below("now", self.parameters) | kept | self.adam.state()

    def resume(self, state: State) -> bool:
        """Go on from what `state` returned; not from a state of passes over the weights."""
        if f"now.{WEIGHTS}" not in state:
            return False
        self.adam.resume(state)
        for name, array in self.parameters.items():
            array[...] = state[f"now.{name}"]
        if "kept.linear1.weight" in state:
            self._kept = {name: state[f"kept.{name}"].copy() for name in self.parameters}
        return True

    def close(self) -> None:
        """Nothing is held."""
