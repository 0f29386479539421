"""The steps in the order of `predict --all`, each timed once, cold where it says so."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import machine
import numpy as np
from baselines.materialised import epoch_seconds
from baselines.per_pair import PerPair, seconds_a_pair
from baselines.stored_first import store_and_save
from synthetic import Shape

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from bankdb.scaled_rows import sources_of
from compute.approaches.neural.leave_one_out import apply
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.options import PredictionOptions
from compute.cluster.options import Cluster
from compute.gram.matrix import gram_matrix
from compute.metrics.registry import METRIC_NAMES
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import distances
from compute.prediction.networks.models import stored_model
from compute.prediction.predict import predict
from compute.prediction.predict_all import predict_all

DENSE = PredictionOptions(metric="js", approach="normalized")
PAPER = [
    PredictionOptions(metric=metric, approach=approach)
    for metric in METRIC_NAMES
    for approach in ("attentional", "normalized", "neural")
]


@dataclass(frozen=True, slots=True)
class Row:
    """A step: what it took, what it had to do, and what it is compared with; zero where nothing is."""

    step: str
    seconds: float
    flops: float = 0.0
    read: float = 0.0
    written: float = 0.0
    peak: int = 0
    other_way: float = 0.0
    limit: float = 0.0
    note: str = ""

    def cells(self) -> list[str]:
        gib = 2**30
        return [
            self.step,
            f"{self.seconds:.2f}",
            f"{self.flops / 1e9:.0f}" if self.flops else "",
            f"{self.read / gib:.2f}" if self.read else "",
            f"{self.written / gib:.2f}" if self.written else "",
            f"{self.peak / gib:.2f}" if self.peak else "",
            f"{self.other_way / self.seconds:.{0 if self.other_way > 10 * self.seconds else 2}f} x faster"
            if self.other_way
            else "",
            f"{self.seconds / self.limit:.2f} x the limit" if self.limit else "",
        ]


class Bench:
    """One bank, one cluster, and the rates of this machine."""

    STEPS = ("distances", "gram", "neural", "combine", "sparse", "memory", "experiment", "new")

    def __init__(self, bank: AdapterBank, shape: Shape, limits: machine.Limits, cluster: Cluster) -> None:
        self.bank = bank
        self.n, self.p, self.v = len(bank), bank.layout.size, shape.vocabulary
        self.limits = limits
        self.cluster = cluster

    def rows(self, steps: Sequence[str]) -> Iterator[Row]:
        for step in steps:
            found = getattr(self, step)()
            yield from [found] if isinstance(found, Row) else found

    def _timed(self, function: Callable[[], object]) -> tuple[float, int]:
        peak = machine.Peak()
        with peak.watch():
            seconds = machine.timed(function)
        return seconds, peak.bytes

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
        total_way = 0.0
        self._forget("distances", "distributions")
        for metric, (way, pairs, both) in ways.items():
            seconds, peak = self._timed(
                lambda metric=metric: distances(self.bank, metric, cluster=self.cluster)
            )
            number = self.n**2 if both else self.n * (self.n + 1) // 2
            other = seconds_a_pair(way, sample, pairs=pairs) * number
            total_way += other
            yield Row(f"distances {metric}", seconds, peak=peak, other_way=other)
        self._forget("distances")
        ways_at_once = [replace(DENSE, metric=metric) for metric in METRIC_NAMES]
        seconds, peak = self._timed(lambda: coefficients(self.bank, ways_at_once, cluster=self.cluster))
        yield Row("distances, all four at once", seconds, peak=peak, other_way=total_way)

    def gram(self) -> Row:
        self._forget("gram")
        machine.drop_cache(self.bank.store.path)
        seconds, peak = self._timed(self._gram)
        flops, read = self.n**2 * self.p, self._stored(self.bank.store.path)
        return Row("gram, cold", seconds, flops, read, 0, peak, 0, self.limits.seconds(flops, read))

    def _gram(self) -> np.ndarray:
        adapters = self.bank.adapters()
        sources = sources_of(self.bank, adapters)
        return gram_matrix(self.bank, adapters, sources, self.cluster, SilentProgress())

    def neural(self) -> Row:
        """After distances and the Gram matrix, which are stored by now."""
        options = replace(DENSE, approach="neural")
        matrix = distances(self.bank, "js", cluster=self.cluster)
        self._gram()
        seconds, peak = self._timed(lambda: coefficients(self.bank, options, cluster=self.cluster))
        trainings = options.neural.trainings + 1
        epoch = epoch_seconds(
            self.bank.store,
            [record.row for record in self.bank.adapters()],
            matrix.values,
            width=options.neural.width,
            sample=4,
            columns=2_000_000,
        )
        note = (
            f"Neural, cross-fitted: {trainings} trainings of up to {options.neural.epochs} epochs. The other way is an "
            f"epoch on materialised adapters, {epoch:.0f} s, as many times; scaled from 4 of {self.n} rows. "
            f"{self._knots(matrix.values, options.neural)}"
        )
        other = epoch * trainings * options.neural.epochs
        return Row("neural coefficients, js", seconds, peak=peak, other_way=other, note=note)

    def _knots(self, values: np.ndarray, options: NeuralOptions) -> str:
        """How far coefficients at knots are from exact ones, of one network over some rows."""
        model = stored_model(self.bank, "jensen-shannon", options, self.bank.adapters(), SilentProgress())
        rows = np.arange(0, self.n, max(1, self.n // 12))
        own = np.zeros((len(rows), self.n), dtype=bool)
        own[np.arange(len(rows)), rows] = True
        at_knots, exact = (
            apply(model, values[rows], own, used, self_index=rows)
            for used in (options, replace(options, knots=None))
        )
        variation = 0.5 * np.abs(at_knots - exact).sum(axis=1).max()
        return (
            f"At knots and exactly the same network gives coefficients {variation:.1e} apart at most, in total "
            "variation of a row."
        )

    def combine(self) -> Iterator[Row]:
        yield from self._both_ways("js normalized", DENSE, 2.0 * self.n**2 * self.p)

    def sparse(self) -> Iterator[Row]:
        """Few sources for each target: the product is sparse."""
        kept = max(2, self.n // 50)
        options = replace(DENSE, top_k=kept)
        yield from self._both_ways(f"top {kept}", options, 2.0 * kept * self.n * self.p)

    def _both_ways(self, name: str, options: PredictionOptions, flops: float) -> Iterator[Row]:
        """All predictions as folders: stored first and read again, as before, and in one pass."""
        coefficients(self.bank, options, cluster=self.cluster)
        read, out = self._stored(self.bank.store.path), self.bank.path.with_name("folders")
        ways = {
            "stored first": lambda: store_and_save(self.bank, options, out, self.cluster),
            "in one pass": lambda: predict_all(self.bank, options, cluster=self.cluster).save(
                out, cluster=self.cluster
            ),
        }
        before = 0.0
        for way, run in ways.items():
            self._forget("predictions")
            machine.drop_cache(self.bank.store.path)
            seconds, peak = self._timed(run)
            written = self._stored(out)
            shutil.rmtree(out)
            limit = self.limits.seconds(flops, read, written)
            title = f"predict --all --export, {name}, cold, {way}"
            yield Row(title, seconds, flops, read, written, peak, before, limit)
            before = seconds
        self._forget("predictions")

    def memory(self) -> Row:
        """The command itself, in processes of its own, under a budget."""
        self._forget("predictions")
        machine.drop_cache(self.bank.store.path)
        out = self.bank.path.with_name("folders")
        words = ("predict", "--all", "--metric", "js", "--approach", "normalized", "--memory", "1GiB")
        seconds, peak = self._command(*words, "--export", out)
        shutil.rmtree(out)
        return Row("the same in one pass, as a command, --memory 1GiB", seconds, peak=peak)

    def _command(self, *words: object) -> tuple[float, int]:
        command = [sys.executable, "-m", "cli.main", *map(str, words), "--bank", str(self.bank.path)]
        peak = machine.Peak()
        started = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        child = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        with peak.watch(child.pid):
            status = child.wait()
        if status:
            raise SystemExit(f"{' '.join(command)} ended with exit status {status}")
        return time.perf_counter() - started, peak.bytes

    def experiment(self) -> Iterator[Row]:
        """The paper's whole experiment as one command, from nothing stored but the bank; and any one adapter of it."""
        self._forget("predictions", "distances", "gram", "neural", "distributions")
        machine.drop_cache(self.bank.store.path)
        approaches = dict.fromkeys(way.approach for way in PAPER)
        words = [word for approach in approaches for word in ("--approach", approach)]
        seconds, peak = self._command("predict", "--all", "--metric", "all", *words, "--weight-error")
        read, kept = self._stored(self.bank.store.path), self._stored(self.bank.array_path("predictions"))
        stored = 4.0 * len(PAPER) * self.n * self.p
        note = (
            f"The whole experiment predicts {len(PAPER) * self.n:,} adapters. It keeps {kept / 2**20:.1f} MiB of them, "
            f"where all numbers of each in float32 would be {stored / 2**30:.0f} GiB."
        )
        title = f"the whole experiment, {len(PAPER)} x {self.n}, as a command, cold"
        yield Row(title, seconds, self.n**2 * self.p, read, kept, peak, note=note)
        run = self.bank.runs.all("predictions")[-1].id
        yield self._one_of(run)

    def _one_of(self, run: int) -> Row:
        """One of its adapters, in seconds that a user waits; of three, the middle one, from a warm cache."""
        out, times, peaks = self.bank.path.with_name("one"), [], []
        for adapter in self.bank.adapters()[:4]:
            seconds, peak = self._command("export", adapter.name, "--prediction", run, "--out", out)
            times.append(seconds)
            peaks.append(peak)
            written = self._stored(out)
            shutil.rmtree(out)
        read = self._stored(self.bank.store.path)
        title = "bank export --prediction, warm"
        return Row(title, sorted(times[1:])[1], 2 * self.n * self.p, read, written, max(peaks))

    def new(self) -> Row:
        texts = self.bank.path.with_name("new.jsonl")
        ((ids, counts),) = self.bank.catalog.token_counts([self.bank.adapters()[0].row])
        words = np.repeat(ids, np.minimum(counts, 3))
        text = json.dumps({"input": " ".join(f"t{word}" for word in words), "output": ["t1"]})
        texts.write_text(text + "\n")
        _ = self.bank.tokenizer
        # More than once: what the kernel reads a first time is the first that it forgets.
        for _ in range(3):
            predict(self.bank, texts, DENSE)
        seconds, peak = self._timed(lambda: predict(self.bank, texts, DENSE))
        flops, read = 2 * self.n * self.p, self._stored(self.bank.store.path)
        return Row("predict NEWDATA, warm", seconds, flops, read, 0, peak)

    def _forget(self, *kinds: str) -> None:
        """Delete derived arrays and their runs, as if nothing had been computed."""
        for kind in kinds:
            for run in self.bank.runs.all(kind):
                self.bank.runs.delete(run.id)
            shutil.rmtree(self.bank.path / f"{kind}.zarr", ignore_errors=True)

    @staticmethod
    def _stored(path: Path) -> int:
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
