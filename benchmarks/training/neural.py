"""What the neural approach's networks take: today's way next to dense products, in one run, and how far they are apart.

python benchmarks/training/neural.py --metrics 4

Distances and the Gram matrix are synthetic, of the paper's number of datasets; the networks are those of the defaults,
so that a metric is six trainings of 40 epochs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compute.approaches.neural.leave_one_out import apply, neural_leave_one_out
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.training import train
from compute.approaches.neural.workspace import Leftovers
from compute.cluster.machine import core_count

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from baselines.dense_training import dense_training

Matrix = NDArray[np.float64]
BATCHES = 48


@dataclass(frozen=True, slots=True)
class Measured:
    """Coefficients, and what they took."""

    coefficients: Matrix
    seconds: float
    processor: float


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


def measured(run: Callable[[], Matrix]) -> Measured:
    seconds, processor = time.perf_counter(), time.process_time()
    coefficients = run()
    return Measured(coefficients, time.perf_counter() - seconds, time.process_time() - processor)


def variation(a: Matrix, b: Matrix) -> float:
    """Largest total variation of a row."""
    return float(np.abs(a - b).sum(axis=1).max() / 2)


def whole_metric(distances: Matrix, gram: Matrix, options: NeuralOptions, threads: int) -> Matrix:
    """What a bank trains for a metric: the folds' networks, and one on all rows."""
    leftovers = Leftovers()
    coefficients, _ = neural_leave_one_out(distances, gram, 1, options, threads=threads, leftovers=leftovers)
    train(distances, gram, np.arange(len(gram)), options, 1, threads=threads, leftovers=leftovers)
    return coefficients


def other_order(distances: Matrix, gram: Matrix, options: NeuralOptions, threads: int) -> list[float]:
    """How far one network's coefficients are from dense ones: today's way, and dense sums in another order."""
    rows, excluded = np.arange(len(gram)), np.eye(len(gram), dtype=bool)

    def coefficients() -> Matrix:
        model = train(distances, gram, rows, options, 1, threads=threads).model
        return apply(model, distances, excluded, options, self_index=rows)

    now = coefficients()
    with dense_training():
        dense = coefficients()
    with dense_training(batch=BATCHES):
        return [variation(now, dense), variation(coefficients(), dense)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=502)
    parser.add_argument("--epochs", type=int, default=NeuralOptions().epochs)
    parser.add_argument("--threads", type=int, default=core_count())
    parser.add_argument(
        "--order", action="store_true", help="also one network by dense sums in another order"
    )
    arguments = parser.parse_args()
    options = NeuralOptions(epochs=arguments.epochs)
    # The loops are compiled once a machine.
    distances, gram = synthetic(20, 0)
    train(distances, gram, np.arange(20), options, 1, threads=arguments.threads)
    print("| metric | dense: s | processor s | now: s | processor s | ratio | total variation |", flush=True)
    print(f"|{'---|' * 7}")
    totals = np.zeros(4)
    for metric in range(arguments.metrics):
        distances, gram = synthetic(arguments.adapters, metric)
        ways = (distances, gram, options, arguments.threads)
        now = measured(lambda ways=ways: whole_metric(*ways))
        with dense_training():
            dense = measured(lambda ways=ways: whole_metric(*ways))
        taken = [dense.seconds, dense.processor, now.seconds, now.processor]
        totals += taken
        row = [str(metric), *(f"{value:.1f}" for value in taken), f"{dense.processor / now.processor:.2f}"]
        print(f"| {' | '.join(row)} | {variation(now.coefficients, dense.coefficients):.1e} |", flush=True)
    row = ["all", *(f"{value:.1f}" for value in totals), f"{totals[1] / totals[3]:.2f}"]
    print(f"| {' | '.join(row)} | |")
    if arguments.order:
        now_apart, order_apart = other_order(*synthetic(arguments.adapters, 0), options, arguments.threads)
        print(f"one network: now and dense {now_apart:.1e}, dense in batches of {BATCHES} {order_apart:.1e}")


if __name__ == "__main__":
    main()
