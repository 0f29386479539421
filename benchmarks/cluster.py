"""What a cluster of worker processes gains and costs: one worker and two, the overhead of a task.

    python benchmarks/cluster.py --out docs/cluster

Distances by four metrics of two synthetic banks and one dense combination, on one worker process and on two; the
share of the time in which workers compute is of what Dask's own task stream records. The same on one plain process
and on two, which have no scheduler and no connections, in the same turns: what the machine gives to a second one.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import multiprocessing
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from distributed import performance_report
from synthetic import Shape, make_bank

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.cluster.tasks import run_tasks
from compute.metrics.registry import METRIC_NAMES
from compute.prediction.matrices import distances
from compute.prediction.predict_all import predict_all

DISTANCES = {n: Shape(adapters=n, layers=1, hidden=64) for n in (502, 1536)}
COMBINATION = Shape(adapters=256, layers=14, hidden=2048, rank=16)
NOTHING = 1000
# A machine is shared: one worker and two take turns, and the best of so many is what they can do.
ROUNDS = 4
MEMORY = 4 << 30
# A report is committed as it is below this size, and compressed above.
PLAIN_BYTES = 1 << 20


class Plain:
    """Processes that take tasks from a queue, in place of a Dask client: as much of one as `run_tasks` asks for."""

    status = "running"

    def __init__(self, workers: int) -> None:
        # A cluster before has left the settings of the workers' allocator in the environment.
        self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        self.workers = workers

    def submit(self, function: Callable[..., Any], *arguments: Any, key: Any, **options: Any) -> PlainFuture:
        return PlainFuture(key, self.pool.submit(function, *arguments))

    def scheduler_info(self) -> dict[str, Any]:
        return {"workers": {number: {"nthreads": 1} for number in range(self.workers)}}


@dataclass(frozen=True)
class PlainFuture:
    key: Any
    future: Future[Any]

    def add_done_callback(self, function: Callable[[PlainFuture], None]) -> None:
        self.future.add_done_callback(lambda _: function(self))

    def result(self) -> Any:
        return self.future.result()


def nothing(number: int) -> int:
    """Return what is given: a task that costs what any task costs."""
    return number


def computed(cluster: Cluster, begin: float, end: float) -> float:
    """Return the share of the workers' time between two moments in which tasks ran."""
    stream = cluster.client.get_task_stream(start=begin, stop=end)
    spans = [span for task in stream for span in task["startstops"] if span["action"] == "compute"]
    seconds = sum(min(span["stop"], end) - max(span["start"], begin) for span in spans)
    return seconds / (cluster.slots * (end - begin))


def timed(cluster: Cluster, function: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a step, and the share of the workers' time that they computed; 0 if nobody recorded it."""
    begin = time.time()
    function()
    end = time.time()
    return end - begin, 0.0 if isinstance(cluster.client, Plain) else computed(cluster, begin, end)


def steps(
    cluster: Cluster, narrow: dict[int, AdapterBank], wide: AdapterBank
) -> dict[str, tuple[float, float]]:
    ways = [PredictionOptions(metric=name) for name in METRIC_NAMES]
    dense = PredictionOptions(metric="js", approach="attentional")
    distances(wide, [dense], cluster=cluster)  # so that the second step is the combination alone
    found = {}
    for n, bank in narrow.items():
        # The first distances of a worker load the compiled loops, about a second for each process, and of each size
        # they take memory that is new, which a virtual machine may have to ask its host for.
        for turn in ("first", "again"):
            found[f"distances, N = {n}, {turn}"] = timed(
                cluster, lambda bank=bank: distances(bank, ways, cluster=cluster)
            )
            shutil.rmtree(bank.array_path("distances"))
    found["combine"] = timed(cluster, lambda: predict_all(wide, dense, cluster=cluster, store="float32"))
    shutil.rmtree(wide.array_path("predictions"))
    return found


def overhead(cluster: Cluster) -> float:
    """Return the seconds that a task takes which does nothing."""
    tasks = {f"{number}": (number,) for number in range(NOTHING)}
    begin = time.perf_counter()
    for _ in run_tasks(cluster, "nothing", nothing, tasks, SilentProgress()):
        pass
    return (time.perf_counter() - begin) / NOTHING


def keep_report(html: Path, out: Path) -> Path:
    """Move a report to its place, without this machine's folders; compressed if it is large."""
    text = html.read_text().replace(f"{Path(__file__).resolve().parents[1]}/", "")
    html.write_text(re.sub(r"/[\w./-]*/(?=python3\.\d+/)", "", text))
    if html.stat().st_size < PLAIN_BYTES:
        return Path(shutil.copy(html, out / "performance_report.html"))
    packed = out / "performance_report.html.gz"
    packed.write_bytes(gzip.compress(html.read_bytes(), 9, mtime=0))
    return packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the report and the numbers")
    parser.add_argument("--folder", type=Path, help="where banks are made, and kept if it is given")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    try:
        _measure(folder, arguments.out)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


def _bank(path: Path, shape: Shape) -> AdapterBank:
    return AdapterBank.open(path) if path.exists() else make_bank(path, shape)


def _measure(folder: Path, out: Path) -> None:
    found: dict[str, Any] = {"machine": machine.description()}
    with contextlib.ExitStack() as stack:
        narrow = {
            n: stack.enter_context(_bank(folder / f"narrow-{n}", shape)) for n, shape in DISTANCES.items()
        }
        wide = stack.enter_context(_bank(folder / "wide", COMBINATION))
        found["combination of"] = f"N = {len(wide)}, p = {wide.layout.size}"
        turns: dict[str, list[tuple[float, float]]] = {}
        for workers in (1, 2) * ROUNDS:
            # The memory of a task is the same, so that the pieces are.
            options = ClusterOptions(workers=workers, memory=MEMORY * workers)
            with open_cluster(options, SilentProgress()) as cluster:
                with performance_report(str(folder / "report.html")):
                    measured = steps(cluster, narrow, wide)
                for name, result in measured.items():
                    turns.setdefault(f"{name}, {workers} workers", []).append(result)
                found[f"a task that does nothing, {workers} workers"] = overhead(cluster)
            plain = Plain(workers)
            with plain.pool:
                for name, result in steps(Cluster(plain, workers, MEMORY, ""), narrow, wide).items():
                    turns.setdefault(f"{name}, {workers} plain", []).append(result)
    for name, results in turns.items():
        seconds, share = min(results)
        found[name] = {"seconds": seconds, "computing": share, "turns": [result[0] for result in results]}
    for name in measured:
        for kind, what in (("workers", "speed-up"), ("plain", "speed-up of plain processes")):
            one, two = (found[f"{name}, {count} {kind}"] for count in (1, 2))
            found[f"{name}, {what}"] = one["seconds"] / two["seconds"]
    found["report"] = keep_report(folder / "report.html", out).name
    (out / "measured.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
