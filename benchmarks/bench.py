"""Times each step on a synthetic bank, next to the per-pair way and the machine's limit in the same run.

python benchmarks/bench.py --size small --markdown docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
from per_pair import PerPair, seconds_a_pair
from synthetic import Shape, make_bank

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from compute.cluster import Cluster, ClusterOptions, open_cluster
from compute.gram import gram_matrix
from compute.new_dataset import predict
from compute.options import PredictionOptions
from compute.predict import coefficients, distances, predict_all, sources_of

SIZES = {
    "tiny": Shape(adapters=48, layers=2, hidden=512),
    "small": Shape(adapters=256, layers=8, hidden=1024),
    "paper": Shape(adapters=502, layers=32, hidden=4096),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A step: what it took, what it had to do, and what it is compared with; zero where nothing is."""

    step: str
    seconds: float
    flops: float = 0.0
    read: float = 0.0
    written: float = 0.0
    peak: int = 0
    per_pair: float = 0.0
    limit: float = 0.0

    def cells(self) -> list[str]:
        gib = 2**30
        return [
            self.step,
            f"{self.seconds:.2f}",
            f"{self.flops / 1e9:.0f}" if self.flops else "",
            f"{self.read / gib:.2f}" if self.read else "",
            f"{self.written / gib:.2f}" if self.written else "",
            f"{self.peak / gib:.2f}",
            f"{self.per_pair / self.seconds:.0f} x faster" if self.per_pair else "",
            f"{self.seconds / self.limit:.2f} x the limit" if self.limit else "",
        ]


HEADINGS = ["step", "s", "GFlop", "GiB read", "GiB written", "peak GiB", "per-pair way", "machine's limit"]


class Bench:
    """The steps in the order of `predict --all`, each timed once, cold where it says so."""

    def __init__(self, bank: AdapterBank, shape: Shape, limits: machine.Limits, cluster: Cluster) -> None:
        self.bank = bank
        self.n, self.p, self.v = len(bank), bank.layout.size, shape.vocabulary
        self.limits = limits
        self.cluster = cluster

    def _timed(self, function: Callable[[], object]) -> tuple[float, int]:
        peak = machine.Peak()
        with peak.watch():
            seconds = machine.timed(function)
        return seconds, peak.bytes

    def rows(self) -> Iterator[Row]:
        yield from self.distances()
        yield self.gram()
        yield self.combine()
        yield self.new_dataset()

    def distances(self) -> Iterator[Row]:
        sample = min(self.n, 40)
        rows = [record.row for record in self.bank.adapters()[:sample]]
        baseline = PerPair(self.bank.catalog.token_counts(rows), self.v)
        ways = {
            "wasserstein": (baseline.wasserstein, 40, False),
            "kullback-leibler": (baseline.kullback_leibler, 400, True),
            "jensen-shannon": (baseline.jensen_shannon, 400, False),
            "mmd": (baseline.mmd, 20, False),
        }
        total = total_way = 0.0
        peaks = 0
        for metric, (way, pairs, both) in ways.items():
            seconds, peak = self._timed(
                lambda metric=metric: distances(self.bank, metric, cluster=self.cluster)
            )
            number = self.n**2 if both else self.n * (self.n + 1) // 2
            per_pair = seconds_a_pair(way, sample, pairs=pairs) * number
            total, total_way, peaks = total + seconds, total_way + per_pair, max(peaks, peak)
            yield Row(f"distances {metric}", seconds, peak=peak, per_pair=per_pair)
        yield Row("distances, all four", total, peak=peaks, per_pair=total_way)

    def gram(self) -> Row:
        adapters = self.bank.adapters()
        machine.drop_cache(self.bank.store.path)

        def step() -> None:
            sources = sources_of(self.bank, adapters)
            gram_matrix(self.bank, adapters, sources, self.cluster, SilentProgress())

        seconds, peak = self._timed(step)
        flops, read = self.n**2 * self.p, self._stored(self.bank.store.path)
        return Row("gram, cold", seconds, flops, read, 0, peak, 0, self.limits.seconds(flops, read))

    def combine(self) -> Row:
        options = PredictionOptions(metric="js", approach="normalized")
        coefficients(self.bank, options, cluster=self.cluster)
        machine.drop_cache(self.bank.store.path)
        seconds, peak = self._timed(lambda: predict_all(self.bank, options, cluster=self.cluster))
        flops = 2 * self.n**2 * self.p
        read = self._stored(self.bank.store.path)
        written = self._stored(self.bank.array_path("predictions"))
        limit = self.limits.seconds(flops, read, written)
        return Row("predict --all, cold", seconds, flops, read, written, peak, 0, limit)

    def new_dataset(self) -> Row:
        texts = self.bank.path.with_name("new.jsonl")
        ((ids, counts),) = self.bank.catalog.token_counts([self.bank.adapters()[0].row])
        words = np.repeat(ids, np.minimum(counts, 3))
        texts.write_text('{"input": "' + " ".join(f"t{word}" for word in words) + '", "output": ["t1"]}\n')
        options = PredictionOptions(metric="js", approach="normalized")
        _ = self.bank.tokenizer
        predict(self.bank, texts, options)
        seconds, peak = self._timed(lambda: predict(self.bank, texts, options))
        flops, read = 2 * self.n * self.p, self._stored(self.bank.store.path)
        return Row("predict NEWDATA, warm", seconds, flops, read, 0, peak)

    @staticmethod
    def _stored(path: Path) -> int:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def markdown(rows: list[Row], shape: Shape, limits: machine.Limits, p: int) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"N = {shape.adapters}, p = {p:,}, V = {shape.vocabulary:,}, about {shape.tokens:,} tokens a dataset. "
        f"{machine.description()}; measured in the same run: float32 product {limits.product / 1e9:.0f} GFlop/s, "
        f"read {limits.read / 1e9:.2f} GB/s, write {limits.write / 1e9:.2f} GB/s.",
        "",
        "The per-pair way is timed on a sample of pairs on one core and scaled by their number. The limit is the "
        "larger of the flops at the product rate and the stored bytes at the read and write rates.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
    ]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--folder", type=Path, help="where the bank is made and deleted again")
    parser.add_argument("--bank", type=Path, help="a synthetic bank of that size that is there already")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    shape = SIZES[arguments.size]
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        started = time.perf_counter()
        bank = AdapterBank.open(arguments.bank) if arguments.bank else make_bank(folder / "bank", shape)
        print(
            f"bank of {len(bank)} adapters of {bank.layout.size:,} parameters in {time.perf_counter() - started:.0f} s"
        )
        limits = machine.measure(folder)
        with open_cluster(ClusterOptions(workers=arguments.workers), SilentProgress()) as cluster:
            rows = []
            for row in Bench(bank, shape, limits, cluster).rows():
                print("  ".join(cell for cell in row.cells() if cell), flush=True)
                rows.append(row)
        text = markdown(rows, shape, limits, bank.layout.size)
        if arguments.markdown:
            arguments.markdown.write_text(text)
        print(text)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
