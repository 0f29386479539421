"""How near merge methods come to the trained weights: the relative error of a bank's leave-one-out predictions.

    python -m benchmarks.merge_methods.weights BANK [--density 0.2,0.5,0.8]

Prints the table of docs/coefficients.md. Nothing is generated, nothing is stored but coefficients.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bankdb
import compute
from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import read_scaled, sources_of
from compute.approaches.groups import LEAVE_OUT
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions
from compute.combination.merged.borders import merge_of
from compute.merge_methods.method import METHODS, WEIGHTS, MergeMethod, merge_method

WAY = PredictionOptions(metric="tf-idf")
Float32 = NDArray[np.float32]


def predicted(
    bank: AdapterBank, adapters: tuple[AdapterRecord, ...], coefficients: Float32, method: MergeMethod
) -> Float32:
    """Return all predictions, shape (N, p)."""
    progress, sources = SilentProgress(), sources_of(bank, adapters)
    every = np.arange(len(adapters))
    with open_cluster(ClusterOptions(processes=False), progress) as cluster:
        merge = merge_of(bank, adapters, sources, method, cluster, progress)
    if merge is None:
        return coefficients @ read_scaled(bank.store, sources, every.tolist(), 0, bank.layout.size)
    values = read_scaled(bank.store, merge.as_read(sources), every.tolist(), 0, bank.layout.size)
    merge.prune(values, every, 0)
    out = np.empty_like(values)
    merge.merge(out, coefficients, every, values, 0)
    return out


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--density", default="0.2,0.5,0.8")
    asked = parser.parse_args()
    densities = [float(text) for text in asked.density.split(",")]
    methods = [merge_method()] + [
        merge_method(name, density, weights=weights)
        for weights in WEIGHTS
        for name in METHODS[1:]
        for density in densities
    ]
    with bankdb.open(asked.bank) as bank:
        found = [compute.coefficients(bank, replace(WAY, leave_out=one)) for one in LEAVE_OUT]
        adapters = found[0].adapters
        own = read_scaled(
            bank.store, sources_of(bank, adapters), list(range(len(adapters))), 0, bank.layout.size
        )
        norms = np.linalg.norm(own, axis=1)
        print("| merge | weights | density | adapter left out | norm | group left out | norm |")
        print(f"|{'---|' * 7}")
        for method in methods:
            cells = [method.name, method.weights or "", str(method.density or "")]
            for one in found:
                made = predicted(bank, adapters, one.values.astype(np.float32), method)
                error = float(np.mean(np.linalg.norm(made - own, axis=1) / norms))
                cells += [f"{error:.3f}", f"{np.mean(np.linalg.norm(made, axis=1) / norms):.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
