"""How cost grows with the number of adapters N and with their size p: measured, and drawn on log-log axes.

    python benchmarks/scaling.py --out docs/scaling

writes scaling.json, with the machine's description, and scaling.svg. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
from synthetic import Shape, make_bank

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from bankdb.scaled_rows import sources_of
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.gram.matrix import gram_matrix
from compute.metrics.registry import METRIC_NAMES
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import distances
from compute.prediction.predict import predict
from compute.prediction.predict_all import predict_all

ADAPTERS = (32, 64, 128, 256, 512)
HIDDEN = (256, 512, 1024, 2048)
DENSE = PredictionOptions(metric="js", approach="normalized")
SLOPES = {"N": 2, "p": 1}
"""What the arithmetic grows with: pairs with N squared, everything else with p."""


def by_adapters(cluster: Cluster, folder: Path) -> Iterator[dict[str, Any]]:
    """N grows; p stays at 147,456, where distances are not hidden behind the adapters."""
    for number in ADAPTERS:
        shape = Shape(adapters=number, layers=2, hidden=1024)
        yield from _measured("N", number, shape, cluster, folder, [*METRIC_NAMES, "gram", "predict --all"])


def by_parameters(cluster: Cluster, folder: Path) -> Iterator[dict[str, Any]]:
    """p grows; N stays at 128."""
    for hidden in HIDDEN:
        shape = Shape(adapters=128, layers=4, hidden=hidden)
        steps = ["gram", "predict --all", "predict NEWDATA"]
        yield from _measured("p", shape.layout().size, shape, cluster, folder, steps)


def _measured(
    axis: str, size: int, shape: Shape, cluster: Cluster, folder: Path, steps: Sequence[str]
) -> Iterator[dict[str, Any]]:
    path = folder / "bank"
    with make_bank(path, shape) as bank:
        for step in steps:
            seconds = machine.timed(_step(bank, step, cluster))
            print(f"{axis} = {size:,}: {step} {seconds:.2f} s", flush=True)
            yield {"axis": axis, "size": size, "step": step, "seconds": seconds}
    for made in folder.glob("bank*"):
        shutil.rmtree(made) if made.is_dir() else made.unlink()


def _step(bank: AdapterBank, step: str, cluster: Cluster) -> Callable[[], object]:
    if step == "gram":
        adapters = bank.adapters()
        return lambda: gram_matrix(bank, adapters, sources_of(bank, adapters), cluster, SilentProgress())
    if step == "predict --all":
        coefficients(bank, DENSE, cluster=cluster)
        return lambda: predict_all(bank, DENSE, cluster=cluster, store="float32")
    if step == "predict NEWDATA":
        data = bank.path.with_name("bank-new.jsonl")
        data.write_text('{"input": "t1 t2 t2 t3", "output": ["t4"]}\n')
        _ = bank.tokenizer
        predict(bank, data, DENSE)
        return lambda: predict(bank, data, DENSE)
    return lambda: distances(bank, step, cluster=cluster)


def draw(points: list[dict[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scaling"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, plot in zip(("N", "p"), axes, strict=True):
        chosen = [point for point in points if point["axis"] == axis]
        for step in dict.fromkeys(point["step"] for point in chosen):
            line = [(point["size"], point["seconds"]) for point in chosen if point["step"] == step]
            plot.loglog(*zip(*line, strict=True), marker="o", markersize=4, label=step)
        sizes = sorted({point["size"] for point in chosen})
        last = max(point["seconds"] for point in chosen)
        guide = [last * (size / sizes[-1]) ** SLOPES[axis] for size in sizes]
        plot.loglog(sizes, guide, "--", color="0.6", label=f"slope {SLOPES[axis]}")
        plot.set_xlabel("adapters N" if axis == "N" else "parameters p of an adapter")
        plot.set_ylabel("seconds")
        plot.grid(visible=True, which="both", linewidth=0.3)
        plot.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def slopes(points: list[dict[str, Any]]) -> list[str]:
    """Exponent of each step between its two largest sizes."""
    told = []
    for axis in ("N", "p"):
        for step in dict.fromkeys(point["step"] for point in points if point["axis"] == axis):
            line = [(p["size"], p["seconds"]) for p in points if p["axis"] == axis and p["step"] == step]
            (a, s), (b, t) = line[-2:]
            told.append(f"{step}: {axis}^{math.log(t / s) / math.log(b / a):.2f}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/scaling"), help="path without an ending")
    parser.add_argument("--folder", type=Path, help="where banks are made and deleted again")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    points: list[dict[str, Any]] = []
    try:
        with open_cluster(ClusterOptions(), SilentProgress()) as cluster:
            # Workers import what they need, and compile it, before anything is timed.
            list(
                _measured(
                    "warm", 256, Shape(adapters=256, layers=1, hidden=256), cluster, folder, METRIC_NAMES
                )
            )
            for measured in (by_adapters, by_parameters):
                points += measured(cluster, folder)
    finally:
        shutil.rmtree(folder)
    title = machine.description()
    record = {"machine": title, "points": points, "growth": slopes(points)}
    arguments.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    draw(points, title, arguments.out.with_suffix(".svg"))
    print("\n".join(record["growth"]))


if __name__ == "__main__":
    main()
