"""What the neural approach's networks take: today's way next to dense products, in one run, and how far they are apart.

python benchmarks/training/neural.py --metrics 4

Distances and the Gram matrix are synthetic, of the paper's number of datasets; the networks are those of the defaults,
six trainings of 40 epochs a metric. `--single` trains one of the six, on all rows, and applies it to these.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compute.approaches.neural.leave_one_out import apply, neural_leave_one_out
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.training import train
from compute.approaches.neural.workspace import Workspace
from compute.cluster.machine import core_count

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from baselines.dense_training import dense_training

Matrix = NDArray[np.float64]
BATCHES = 48
"""Points at once, for the same dense sums in another order."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Coefficients, and what they took: seconds, of the processor, and of the processor for an epoch (median)."""

    coefficients: Matrix
    seconds: float
    processor: float
    epoch: float


class Trainings:
    """The trainings of a metric."""

    def __init__(
        self, adapters: int, metric: int, options: NeuralOptions, threads: int, single: bool
    ) -> None:
        self.distances, self.gram = synthetic(adapters, metric)
        self.options, self.single = options, single
        self.workspace = Workspace(threads)
        self.told: list[float] = []

    def measured(self) -> Measured:
        self.told = []
        seconds, processor = time.perf_counter(), time.process_time()
        coefficients = self._one() if self.single else self._all()
        taken = time.perf_counter() - seconds, time.process_time() - processor
        return Measured(coefficients, *taken, float(np.median(np.diff(self.told))))

    def _report(self, *_: float) -> None:
        self.told.append(time.process_time())

    def _all(self) -> Matrix:
        """What a bank trains for a metric: the folds' networks, and one on all rows."""
        given = (self.distances, self.gram)
        coefficients, _ = neural_leave_one_out(
            *given, 1, self.options, report=self._report, workspace=self.workspace
        )
        train(*given, np.arange(len(self.gram)), self.options, 1, workspace=self.workspace)
        return coefficients

    def _one(self) -> Matrix:
        rows = np.arange(len(self.gram))
        given = (self.distances, self.gram, rows, self.options, 1, self._report)
        model = train(*given, workspace=self.workspace).model
        own = np.eye(len(rows), dtype=bool)
        return apply(model, self.distances, own, self.options, self_index=rows)


def synthetic(number: int, metric: int) -> tuple[Matrix, Matrix]:
    """Distances of datasets that mix twelve latent tasks, of another shape for each metric, and their Gram matrix."""
    rng = np.random.default_rng(0)
    latent = rng.dirichlet(np.full(12, 0.3), size=number)
    theta = latent @ rng.normal(size=(12, 400)) + 0.3 * rng.normal(size=(number, 400)) + 0.7
    apart = np.abs(latent[:, None] - latent).sum(axis=2) ** (0.5 + 0.5 * metric)
    noise = np.random.default_rng(1 + metric).uniform(0.9, 1.1, size=(number, number))
    distances = apart * np.triu(noise) + apart * np.triu(noise, 1).T
    np.fill_diagonal(distances, 0.0)
    return distances, theta @ theta.T


def variation(a: Matrix, b: Matrix) -> float:
    """Largest total variation of a row."""
    return float(np.abs(a - b).sum(axis=1).max() / 2)


def cells(found: Measured) -> list[str]:
    return [f"{found.seconds:.1f}", f"{found.processor:.1f}", f"{1e3 * found.epoch:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=502)
    parser.add_argument("--threads", type=int, default=core_count())
    parser.add_argument("--single", action="store_true", help="one training a metric instead of six")
    parser.add_argument(
        "--order", action="store_true", help="also dense sums in another order, of the first metric"
    )
    arguments = parser.parse_args()
    options = NeuralOptions()
    # The loops are compiled once a machine.
    Trainings(20, 0, options, arguments.threads, True).measured()
    taken = ("s", "processor s", "epoch ms")
    print(
        f"| metric | {' | '.join(f'dense, {t}' for t in taken)} | {' | '.join(f'now, {t}' for t in taken)} ",
        end="",
    )
    print(f"| ratio | total variation |\n|{'---|' * 9}", flush=True)
    for metric in range(arguments.metrics):
        trainings = Trainings(arguments.adapters, metric, options, arguments.threads, arguments.single)
        now = trainings.measured()
        with dense_training():
            dense = trainings.measured()
        last = [
            f"{dense.processor / now.processor:.2f}",
            f"{variation(now.coefficients, dense.coefficients):.1e}",
        ]
        print(f"| {' | '.join([str(metric), *cells(dense), *cells(now), *last])} |", flush=True)
        if arguments.order and metric == 0:
            with dense_training(batch=BATCHES):
                other = trainings.measured()
            apart = variation(other.coefficients, dense.coefficients)
            print(
                f"dense sums in batches of {BATCHES} points: {apart:.1e} from those of all points at once",
                flush=True,
            )


if __name__ == "__main__":
    main()
