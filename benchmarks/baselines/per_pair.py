"""The way the paper describes, a pair at a time: the baseline that every distance is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

Histogram = tuple[NDArray[np.uint32], NDArray[np.uint32]]
EPSILON = 1e-10
SAMPLED = 1000


class PerPair:
    """Raw tokens and dense densities of a sample of datasets, and a function of two of them for each metric."""

    def __init__(self, histograms: Sequence[Histogram], vocabulary: int, seed: int = 0) -> None:
        self.tokens = [np.repeat(ids, counts) for ids, counts in histograms]
        self.dense = np.full((len(histograms), vocabulary), EPSILON)
        for row, (ids, counts) in zip(self.dense, histograms, strict=True):
            row[ids] += counts / counts.sum()
        self.rng = np.random.default_rng(seed)

    def wasserstein(self, i: int, j: int) -> float:
        return float(wasserstein_distance(self.tokens[i], self.tokens[j]))

    def kullback_leibler(self, i: int, j: int) -> float:
        p, q = self.dense[i], self.dense[j]
        return float(np.sum(p * np.log(p / q)))

    def jensen_shannon(self, i: int, j: int) -> float:
        p, q = self.dense[i], self.dense[j]
        m = (p + q) / 2
        return float(np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2

    def mmd(self, i: int, j: int) -> float:
        """Squared MMD of 1,000 tokens drawn from each, multiscale kernel."""
        x = self.rng.choice(self.tokens[i], SAMPLED).astype(np.float32)
        y = self.rng.choice(self.tokens[j], SAMPLED).astype(np.float32)
        return float(np.mean(_kernel(x, x) + _kernel(y, y) - 2 * _kernel(x, y)))


def _kernel(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    squared = (x[:, None] - y[None, :]) ** 2
    return np.asarray(sum(a * a / (a * a + squared) for a in (0.2, 0.5, 0.9, 1.3)))


def seconds_a_pair(
    function: Callable[[int, int], float], datasets: int, *, pairs: int, seed: int = 0
) -> float:
    """Mean time of some pairs, drawn at random."""
    drawn = np.random.default_rng(seed).integers(0, datasets, size=(pairs, 2))
    started = time.perf_counter()
    for i, j in drawn:
        function(int(i), int(j))
    return (time.perf_counter() - started) / pairs
