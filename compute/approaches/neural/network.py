"""The scalar network of the neural approach (arXiv 2507.01806, equations (29) to (31)), and its gradient.

`f: 1 -> W -> W -> 1`, linear layers, the first two followed by layer normalisation and ReLU, as arrays of
one floating type: float32 to train, float64 where a gradient is compared with finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError, ParameterError
from compute.types import FloatArray

Array = NDArray[np.floating[Any]]
Parameters = dict[str, Array]

NORM_EPSILON = 1e-5
"""Added to the variance of a layer normalisation."""
BATCH = 512
"""Points evaluated at once: 5 arrays of 512 x 4000 float32 are 41 MB."""
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
_ADAM_PIECE = 1 << 14
"""Entries updated at once, so that parameter, gradient and moments stay in cache between the operations."""


def parameter_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by name; weights have one row for each output."""
    return {
        "linear1.weight": (width, 1),
        "linear1.bias": (width,),
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "linear2.weight": (width, width),
        "linear2.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "linear3.weight": (1, width),
        "linear3.bias": (1,),
    }


@dataclass(frozen=True, slots=True, eq=False)
class ScalarMLP:
    """A function of one number, with its parameters by name.

    The names are those of a `torch.nn.Sequential` with modules `linear1, norm1, relu1, linear2, norm2, relu2,
    linear3`, and so are the shapes: the arrays are its state dict.

    Attributes
    ----------
    parameters
        Arrays of one floating type, as `parameter_shapes` gives them.
    """

    parameters: Mapping[str, Array]

    @property
    def width(self) -> int:
        """Units of each hidden layer."""
        return len(self.parameters["linear1.bias"])

    def __call__(self, x: Array) -> Array:
        """Evaluate at each entry of `x`; the result has its shape and the parameters' type."""
        dtype = self.parameters["linear1.bias"].dtype
        points = np.asarray(x).astype(dtype).ravel()
        values = np.empty(len(points), dtype=dtype)
        for start in range(0, len(points), BATCH):
            values[start : start + BATCH] = forward(self.parameters, points[start : start + BATCH]).values
        return values.reshape(np.shape(x))

    def to_arrays(self) -> dict[str, Array]:
        """Return the parameters by name, to be stored; not copies."""
        return dict(self.parameters)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> ScalarMLP:
        """Return the network of stored parameters.

        Raises
        ------
        ComputeError
            For a parameter missing or too many, a shape or type that does not fit, or entries not finite.
        """
        width = arrays["linear1.bias"].size if "linear1.bias" in arrays else 0
        expected = parameter_shapes(width)
        if set(arrays) != set(expected):
            raise ComputeError(
                f"neural model: expected the parameters {', '.join(expected)}, found"
                f" {', '.join(sorted(arrays)) or 'none'}; train it again"
            )
        for name, shape in expected.items():
            found = np.asarray(arrays[name])
            if found.shape != shape or found.dtype not in (np.float32, np.float64):
                raise ComputeError(
                    f"neural model: expected {name} of shape {shape} in float32, found shape {found.shape} of"
                    f" {found.dtype}; train it again"
                )
            if not np.isfinite(found).all():
                raise ComputeError(
                    f"neural model: expected finite entries of {name}, found NaN or infinity; train it again"
                )
        dtype = np.result_type(*arrays.values())
        return cls({name: np.ascontiguousarray(arrays[name], dtype=dtype) for name in expected})


def initial_mlp(
    width: int,
    generator: np.random.Generator,
    dtype: type[np.floating[Any]],
    place: NDArray[Any] | None = None,
) -> ScalarMLP:
    """Return a network with torch's default initialisation.

    Weights and biases of a linear layer are uniform within `1 / sqrt(inputs)` of 0; a layer normalisation
    starts as the identity. The weights of the second layer are drawn into `place`,
    in float32, if there is one.

    Raises
    ------
    ParameterError
        For a width below 2, where a layer normalisation has nothing to normalise.
    """
    if width < 2:
        raise ParameterError(f"width: expected at least 2, found {width}; 4000 is the default")
    parameters: Parameters = {}
    for name, shape in parameter_shapes(width).items():
        if name.startswith("linear"):
            bound = 1.0 if name.startswith("linear1") else 1.0 / math.sqrt(width)
            # Drawn in single precision: a double of each entry would double the peak.
            out = place if name == "linear2.weight" else None
            draw = generator.random(shape, dtype=np.float32, out=out)
            draw *= np.float32(2.0 * bound)
            draw -= np.float32(bound)
            parameters[name] = draw.astype(dtype, copy=False)
        else:
            parameters[name] = np.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=dtype)
    return ScalarMLP(parameters)


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What a forward pass leaves for the backward pass.

    Attributes
    ----------
    points, values
        Shape (K,): where the function was evaluated, and its values there.
    normalised
        Of each hidden layer, shape (K, W): its values before the affine part of the normalisation.
    inverse
        Of each hidden layer, shape (K, 1): one over the standard deviation that was divided by.
    hidden
        Of each hidden layer, shape (K, W): its output, after ReLU.
    """

    points: Array
    values: Array
    normalised: tuple[Array, Array]
    inverse: tuple[Array, Array]
    hidden: tuple[Array, Array]


def forward(parameters: Mapping[str, Array], points: Array) -> Activations:
    """Evaluate the function at points of shape (K,), all at once."""
    first = points[:, None] * parameters["linear1.weight"][:, 0] + parameters["linear1.bias"]
    normalised1, inverse1, hidden1 = _hidden(parameters, "norm1", first)
    second = hidden1 @ parameters["linear2.weight"].T
    second += parameters["linear2.bias"]
    normalised2, inverse2, hidden2 = _hidden(parameters, "norm2", second)
    values = hidden2 @ parameters["linear3.weight"][0] + parameters["linear3.bias"][0]
    return Activations(points, values, (normalised1, normalised2), (inverse1, inverse2), (hidden1, hidden2))


def _hidden(parameters: Mapping[str, Array], norm: str, values: Array) -> tuple[Array, Array, Array]:
    """Layer normalisation, affine map and ReLU; `values` become the normalised ones in place."""
    values -= values.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", values, values)[:, None] / values.shape[1]
    inverse = 1.0 / np.sqrt(variance + values.dtype.type(NORM_EPSILON))
    values *= inverse
    hidden = values * parameters[f"{norm}.weight"]
    hidden += parameters[f"{norm}.bias"]
    return values, inverse, np.maximum(hidden, 0, out=hidden)


def backward(
    parameters: Mapping[str, Array], activations: Activations, slopes: Array, gradient: Parameters, add: bool
) -> None:
    """Write the gradient of `sum(slopes * values)` with respect to the parameters.

    Parameters
    ----------
    parameters, activations
        As the forward pass took and returned them.
    slopes
        Shape (K,): derivative of the loss with respect to each value.
    gradient
        Arrays shaped as the parameters, which receive the result.
    add
        Add to what they hold, for a loss over several batches, rather than replace it.
    """
    hidden1, hidden2 = activations.hidden
    slopes = slopes.astype(activations.values.dtype, copy=False)
    _store(gradient, "linear3.weight", (slopes @ hidden2)[None, :], add)
    _store(gradient, "linear3.bias", slopes.sum(keepdims=True), add)
    second = _hidden_backward(
        parameters, activations, 2, slopes[:, None] * parameters["linear3.weight"], gradient, add
    )
    if add:
        gradient["linear2.weight"] += second.T @ hidden1
    else:
        np.matmul(second.T, hidden1, out=gradient["linear2.weight"])
    _store(gradient, "linear2.bias", second.sum(axis=0), add)
    first = _hidden_backward(parameters, activations, 1, second @ parameters["linear2.weight"], gradient, add)
    _store(gradient, "linear1.weight", (activations.points @ first)[:, None], add)
    _store(gradient, "linear1.bias", first.sum(axis=0), add)


def _hidden_backward(
    parameters: Mapping[str, Array],
    activations: Activations,
    layer: int,
    slopes: Array,
    gradient: Parameters,
    add: bool,
) -> Array:
    """From slopes by a hidden layer's output to those by its linear part; `slopes` are overwritten."""
    normalised = activations.normalised[layer - 1]
    slopes *= activations.hidden[layer - 1] > 0
    _store(gradient, f"norm{layer}.bias", slopes.sum(axis=0), add)
    _store(gradient, f"norm{layer}.weight", np.einsum("ij,ij->j", slopes, normalised), add)
    slopes *= parameters[f"norm{layer}.weight"]
    # The normalised values keep mean 0 and variance 1: what would change either does not pass.
    along = np.einsum("ij,ij->i", slopes, normalised)[:, None] / slopes.shape[1]
    slopes -= slopes.mean(axis=1, keepdims=True)
    slopes -= normalised * along
    slopes *= activations.inverse[layer - 1]
    return slopes


def _store(gradient: Parameters, name: str, value: Array, add: bool) -> None:
    if add:
        gradient[name] += value
    else:
        gradient[name][...] = value


def below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """Return arrays by their names below a prefix."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


class Adam:
    """Adam (arXiv 1412.6980, algorithm 1) with beta 0.9 and 0.999 and epsilon 1e-8, in place.

    It holds two more arrays for each parameter. A constant factor on the loss changes no step, other than
    through epsilon.
    """

    def __init__(self, parameters: Mapping[str, Array], learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.first = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.second = {name: np.zeros_like(array) for name, array in parameters.items()}
        self.steps = 0

    def rates(self, step: int) -> FloatArray:
        """Factors of a step, counted from 1, as `_update` takes them: two for each moment, then of the length."""
        correct1, correct2 = 1.0 - BETA1**step, math.sqrt(1.0 - BETA2**step)
        return np.array(
            [BETA1, 1.0 - BETA1, BETA2, 1.0 - BETA2, 1.0 / correct2, EPSILON, self.learning_rate / correct1]
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the moments, not copies, and the steps so far, by name."""
        steps = np.array([self.steps])
        return {"steps": steps, **below("first", self.first), **below("second", self.second)}

    def resume(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        self.steps = int(state["steps"][0])
        for name in self.first:
            self.first[name][...] = state[f"first.{name}"]
            self.second[name][...] = state[f"second.{name}"]

    def step(self, parameters: Mapping[str, Array], gradient: Mapping[str, Array]) -> None:
        """Update the parameters."""
        self.steps += 1
        rates = self.rates(self.steps).tolist()
        for name, array in parameters.items():
            whole = (array, gradient[name], self.first[name], self.second[name])
            flat = [entries.reshape(-1) for entries in whole]
            for start in range(0, array.size, _ADAM_PIECE):
                _update(rates, *(entries[start : start + _ADAM_PIECE] for entries in flat))


def _update(rates: Sequence[float], parameter: Array, gradient: Array, first: Array, second: Array) -> None:
    keep1, add1, keep2, add2, correct2, epsilon, length = rates
    first *= keep1
    first += gradient * add1
    second *= keep2
    scratch = gradient * gradient
    scratch *= add2
    second += scratch
    np.sqrt(second, out=scratch)
    scratch *= correct2
    scratch += epsilon
    np.divide(first, scratch, out=scratch)
    scratch *= length
    parameter -= scratch
