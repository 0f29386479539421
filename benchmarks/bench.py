"""Times each step on a synthetic bank, next to the per-pair way and the machine's limit in the same run.

python benchmarks/bench.py --size small --markdown docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import machine
from steps import Bench, Row
from synthetic import Shape, make_bank

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions

SIZES = {
    "tiny": Shape(adapters=48, layers=2, hidden=512),
    "small": Shape(adapters=256, layers=8, hidden=1024),
    "quarter": Shape(adapters=502, layers=32, hidden=1024),
    "paper": Shape(adapters=502, layers=32, hidden=4096),
}
HEADINGS = ("step", "s", "GFlop", "GiB read", "GiB written", "peak GiB", "the other way", "machine's limit")


def markdown(rows: list[Row], shape: Shape, limits: machine.Limits, p: int) -> str:
    lines = [
        f"N = {shape.adapters}, p = {p:,}, V = {shape.vocabulary:,}, about {shape.tokens:,} tokens a dataset. "
        f"{machine.description()}; measured in the same run: float32 product {limits.product / 1e9:.0f} GFlop/s, "
        f"read {limits.read / 1e9:.2f} GB/s, write {limits.write / 1e9:.2f} GB/s.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
    ]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    notes = [row.note for row in rows if row.note]
    return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--folder", type=Path, help="where the bank is made and deleted again")
    parser.add_argument("--bank", type=Path, help="a synthetic bank of that size that is there already")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--steps", nargs="+", choices=Bench.STEPS, default=list(Bench.STEPS))
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    shape = SIZES[arguments.size]
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        started = time.perf_counter()
        bank = AdapterBank.open(arguments.bank) if arguments.bank else make_bank(folder / "bank", shape)
        seconds = time.perf_counter() - started
        print(
            f"bank of {len(bank)} adapters of {bank.layout.size:,} parameters in {seconds:.0f} s", flush=True
        )
        limits = machine.measure(folder, bank.store.path)
        print(limits, flush=True)
        rows = []
        with open_cluster(ClusterOptions(workers=arguments.workers), SilentProgress()) as cluster:
            bench = Bench(bank, shape, limits, cluster)
            cluster.client.run(_warm)
            for row in bench.rows(arguments.steps):
                print("  ".join(cell for cell in row.cells() if cell), row.note, flush=True)
                rows.append(row)
        text = markdown(rows, shape, limits, bank.layout.size)
        if arguments.markdown:
            arguments.markdown.write_text(text)
        print(text)
    finally:
        shutil.rmtree(folder)


def _warm() -> None:
    """Import in a worker what its first task would import: a step is timed, not the start of a process."""
    import numpy as np

    import compute.combination.combine
    import compute.pairwise.matrix  # noqa: F401
    from compute.metrics.distributions import TokenCounts
    from compute.metrics.registry import METRIC_NAMES, get_metric

    counts = TokenCounts.stack([(np.arange(2), np.array([1, 2]))] * 8, 4)
    for name in METRIC_NAMES:
        get_metric(name).block(counts, counts)


if __name__ == "__main__":
    main()
