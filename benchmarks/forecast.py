"""Compares what `bank plan` expects with what each step of a real run takes, on a synthetic bank.

python benchmarks/forecast.py --markdown forecast.md
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import machine
from synthetic import Shape, make_bank

from bankdb.arrays.durable import delete_tree
from bankdb.arrays.remote import located
from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from bankdb.scaled_rows import sources_of
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.forecasting.measure import measure_rates, warm
from compute.forecasting.rates import Rates, expected_seconds
from compute.forecasting.shape import BankShape
from compute.forecasting.steps import forecast_steps
from compute.gram.matrix import gram_matrix
from compute.metrics.registry import METRIC_NAMES
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import distances
from compute.prediction.predict_all import predict_all

DENSE = PredictionOptions(metric="js", approach="normalized")
NEURAL = PredictionOptions(metric="js", approach="neural")
SILENT = SilentProgress()


@dataclass(frozen=True, slots=True)
class Compared:
    """A step with the time that was expected and the time that it took."""

    step: str
    expected: float
    measured: float

    def cells(self) -> str:
        ratio = self.expected / self.measured
        return f"| {self.step} | {self.expected:.2f} | {self.measured:.2f} | {ratio:.2f} |"


class Comparison:
    """One bank, one cluster, and the rates that were measured before."""

    def __init__(self, bank: AdapterBank, cluster: Cluster, rates: Rates, folder: Path) -> None:
        self.bank, self.cluster, self.rates, self.folder = bank, cluster, rates, folder
        self.shape = BankShape.of_bank(bank)

    def _expected(self, kind: str, way: PredictionOptions) -> float:
        steps = forecast_steps(
            self.shape,
            [way],
            slots=self.cluster.slots,
            budget=self.cluster.task_budget,
            weight_errors=kind == "gram",
        )
        times = [
            expected_seconds(
                step, self.rates, self.cluster.slots, self.shape.vocabulary, self.shape.mean_distinct
            )
            for step in steps
            if step.kind == kind
        ]
        return sum(time for time in times if time is not None)

    def _forget(self) -> None:
        if isinstance(self.bank.store.path, Path):
            machine.drop_cache(self.bank.store.path)

    def rows(self) -> Iterator[Compared]:
        # Loads what the client loads, and writes the token counts for workers, once for a bank.
        distances(self.bank, "tf-idf", cluster=self.cluster)
        for name in METRIC_NAMES:
            way = PredictionOptions(metric=name)
            seconds = machine.timed(lambda name=name: distances(self.bank, name, cluster=self.cluster))
            yield Compared(f"distances {name}", self._expected("distances", way), seconds)
        adapters = self.bank.adapters()
        sources = sources_of(self.bank, adapters)
        self._forget()
        seconds = machine.timed(lambda: gram_matrix(self.bank, adapters, sources, self.cluster, SILENT))
        yield Compared("gram, cold", self._expected("gram", DENSE), seconds)
        seconds = machine.timed(lambda: coefficients(self.bank, NEURAL, cluster=self.cluster))
        yield Compared("coefficients neural", self._expected("coefficients", NEURAL), seconds)
        self._forget()
        made = []
        made.append(predict_all(self.bank, DENSE, cluster=self.cluster))
        machine.drop_cache(self.bank.store.path)
        seconds = machine.timed(lambda: made[0].save(self.folder / "out", cluster=self.cluster))
        yield Compared("export, cold", self._expected("combine", DENSE), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--folder", type=Path, help="where the bank is made and deleted again")
    parser.add_argument("--arrays", metavar="URL", help="an empty place for the arrays, deleted again")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    shape = Shape(adapters=arguments.adapters, layers=arguments.layers, hidden=arguments.hidden)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        with (
            make_bank(folder / "bank", shape, arguments.arrays) as bank,
            open_cluster(ClusterOptions(), SILENT) as cluster,
        ):
            text = compare(bank, cluster, folder)
    finally:
        shutil.rmtree(folder)
        if arguments.arrays:
            delete_tree(located(arguments.arrays))
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)


def compare(bank: AdapterBank, cluster: Cluster, folder: Path) -> str:
    size = BankShape.of_bank(bank)
    steps = forecast_steps(size, [DENSE], slots=cluster.slots, budget=cluster.task_budget)
    rates = []
    took = machine.timed(
        lambda: rates.append(
            measure_rates(
                cluster,
                bank.arrays,
                SILENT,
                vocabulary=size.vocabulary,
                distinct=size.mean_distinct,
                side=max(step.side for step in steps),
                stored=[bank.store.file(record.row) for record in bank.adapters()],
            )
        )
    )
    print(f"rates in {took:.1f} s: {rates[0]}", flush=True)
    cluster.client.run(warm, size.vocabulary, size.mean_distinct, 128)
    cluster.client.run(_imports)
    lines = [
        f"N = {size.adapters}, p = {size.parameters:,}, V = {size.vocabulary:,}, {size.mean_distinct:,} distinct ids a "
        f"dataset; {cluster.slots} workers; rates measured in {took:.1f} s. {machine.description()}.",
        "",
        "| step | expected s | measured s | ratio |",
        "|---|---|---|---|",
    ]
    for row in Comparison(bank, cluster, rates[0], folder).rows():
        print(row.cells(), flush=True)
        lines.append(row.cells())
    return "\n".join(lines) + "\n"


def _imports() -> None:
    """Import in a worker what its first task would import: a step is timed, not the start of a process."""


if __name__ == "__main__":
    main()
