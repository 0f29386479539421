"""Training the network of equations (29) to (32) the way the paper describes: on the adapters themselves.

Every epoch evaluates the network at each distance of each row, multiplies the coefficients with all adapters,
subtracts the actual ones, and goes the same way back. It is timed on some of the rows and scaled by their number;
that the adapters are read from memory, not from a disk, is in its favour.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from compute.approaches.by_distance import softmin
from compute.approaches.neural.network import BATCH, ScalarMLP, backward, forward, initial_mlp

Float32 = NDArray[np.float32]


def epoch_seconds(
    store: AdapterStore,
    rows: list[int],
    distances: NDArray[np.float64],
    *,
    width: int,
    sample: int,
    columns: int,
) -> float:
    """Seconds of one epoch over all rows: `sample` targets, over at most `columns` of the p columns, scaled."""
    model = initial_mlp(width, np.random.default_rng(0), np.float32)
    scores = (distances - distances.mean(axis=1, keepdims=True)) / distances.std(axis=1, keepdims=True)
    parameters = store.shape[1]
    columns = min(columns, parameters)
    panel = store.read_panel(rows, 0, columns)
    targets = np.arange(min(sample, len(rows)))
    started = time.perf_counter()
    coefficients = _forward(model, scores[targets])
    network = time.perf_counter() - started
    started = time.perf_counter()
    slopes = _through_adapters(coefficients.astype(np.float32), panel, targets)
    adapters = (time.perf_counter() - started) * parameters / columns
    started = time.perf_counter()
    _backward(model, scores[targets], slopes)
    network += time.perf_counter() - started
    return (network + adapters) * len(rows) / len(targets)


def _forward(model: ScalarMLP, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    used = ~np.eye(*scores.shape, dtype=bool)
    return softmin(model(scores).astype(np.float64), used, 1.0)


def _through_adapters(coefficients: Float32, panel: Float32, targets: NDArray[np.intp]) -> Float32:
    """Derivative of the squared error by the coefficients."""
    error = coefficients @ panel
    error -= panel[targets]
    return error @ panel.T


def _backward(model: ScalarMLP, scores: NDArray[np.float64], slopes: Float32) -> None:
    points = scores.astype(np.float32).ravel()
    gradient = {name: np.zeros_like(array) for name, array in model.parameters.items()}
    for start in range(0, len(points), BATCH):
        batch = slice(start, start + BATCH)
        activations = forward(model.parameters, points[batch])
        backward(model.parameters, activations, slopes.ravel()[batch], gradient, add=True)
