"""The rates of this machine, measured in seconds: on the workers of a cluster, all of them busy, and on the client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bankdb.arrays.durable import delete_tree, new_place
from bankdb.arrays.remote import Location, requests_at_once
from bankdb.arrays.zarr_arrays import create_array, open_array
from bankdb.progress import Progress
from compute.approaches.by_distance import coefficients
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.training import train
from compute.cluster.machine import core_count
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.forecasting.rates import MetricRate, Rates
from compute.forecasting.storage import best_seconds, storage_rates
from compute.gram.slices import partial_gram
from compute.metrics.base import Metric
from compute.metrics.distributions import TokenCounts
from compute.metrics.registry import FURTHER_METRIC_NAMES, METRIC_NAMES, get_metric
from compute.pairwise.plan import CHUNK_ROWS

# Of the products: sources, targets and columns; as of a panel, but narrower.
_SOURCES, _TARGETS, _COLUMNS = 256, 128, 32_768
_IDLE_TASKS = 200
# Largest side of a tile that is measured.
_LARGEST_SIDE = 2 * CHUNK_ROWS
# Adapters whose coefficients are made, and adapters that networks are trained on.
_ENTRIES, _TRAINED = 256, (16, 256)
_WIDTH, _KNOTS = 4000, 128


def measure_rates(
    cluster: Cluster,
    place: Location,
    progress: Progress,
    *,
    vocabulary: int,
    distinct: int,
    side: int,
    stored: Sequence[Location] = (),
) -> Rates:
    """Measure the rates of this machine; seconds.

    Parameters
    ----------
    cluster
        Its workers compute at the same time, as in a run.
    place
        Where files are written, and deleted again: on the disk, or the object store, that holds the arrays.
    vocabulary, distinct
        V, and distinct ids of a dataset.
    side
        Datasets on a side of a tile, as planned; at most 128 are measured.
    stored
        Rows that are there already, read for the rate of the storage: what was just written comes back more
        quickly.

    Raises
    ------
    ArrayStoreUnavailableError
        The store of a place on a URL failed.
    """
    side = max(2, min(side, _LARGEST_SIDE))
    every = range(cluster.slots)
    _run(cluster, progress, "warm up", warm, [(vocabulary, distinct, side)] * len(every))
    started = time.perf_counter()
    _run(cluster, progress, "measure tasks", _nothing, [()] * _IDLE_TASKS)
    task = (time.perf_counter() - started) / _IDLE_TASKS
    processors = _run(
        cluster, progress, "measure processors", processor_rates, [(vocabulary, distinct, side)] * len(every)
    )
    root = new_place(place, ".rates-")
    try:
        shares = [[str(file) for file in stored[i :: len(every)]] for i in every]
        places = [(str(root / str(i)), shares[i]) for i in every]
        disks = _run(cluster, progress, "measure storage", storage_rates, places)
        step = best_seconds(lambda: _small_step(cluster, progress, root / "step"), 3)
    finally:
        delete_tree(root)
    epoch, epoch_pair = epoch_seconds()
    client = {"task": task, "step": step, "epoch": epoch, "epoch_pair": epoch_pair, "cores": core_count()}
    sizes = {"vocabulary": vocabulary, "distinct": distinct, "width": _WIDTH, "knots": _KNOTS}
    rates = _rates(processors, disks, client | sizes)
    # Export is the client's, whose requests overlap as those of all workers do.
    return rates if requests_at_once(place) == 1 else replace(rates, chunk=rates.chunk / len(every))


def _rates(
    processors: Sequence[dict[str, Any]], disks: Sequence[dict[str, float]], other: dict[str, float]
) -> Rates:
    """Join what the workers found: means of their cores, and sums of their shares of the storage."""
    metrics = {
        name: MetricRate(*(_mean([worker["metrics"][name][k] for worker in processors]) for k in range(2)))
        for name in processors[0]["metrics"]
    }
    cores = {key: _mean([worker[key] for worker in processors]) for key in ("product", "symmetric", "entry")}
    threads = {
        key: _mean([worker[key] for worker in disks]) for key in ("decode", "encode", "chunk", "opening")
    }
    storage = {key: sum(worker[key] for worker in disks) for key in ("read", "write")}
    flush = 1 / sum(worker["files"] for worker in disks)
    return Rates(**cores, **threads, **storage, **other, flush=flush, metrics=metrics)


def _run(
    cluster: Cluster,
    progress: Progress,
    stage: str,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
) -> list[Any]:
    tasks = {str(index): values for index, values in enumerate(arguments)}
    return [result for _, result in run_tasks(cluster, stage, function, tasks, progress)]


def _small_step(cluster: Cluster, progress: Progress, path: Location) -> None:
    """Do what every step does besides its tasks: an array is made, and one task for each worker begins and ends."""
    create_array(path, shape=(1,), chunks=(1,), shards=None, dtype="float64", attributes={})
    _run(cluster, progress, "measure a step", _nothing, [()] * cluster.slots)
    open_array(path)[:]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _nothing() -> None:
    pass


def warm(vocabulary: int, distinct: int, side: int) -> None:
    """Load what the first tasks of a worker load."""
    blocks = [_datasets(vocabulary, distinct, side, seed) for seed in (0, 1)]
    for metric in _metrics(vocabulary):
        metric.both(*blocks)


# -- processors ----------------------------------------------------------------------------------------


def processor_rates(vocabulary: int, distinct: int, side: int) -> dict[str, Any]:
    """Measure one core: products, blocks of distances, and coefficients. Runs in a worker."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((_SOURCES, _COLUMNS), dtype=np.float32)
    weights = rng.random((_TARGETS, _SOURCES), dtype=np.float32)
    out = np.empty((_TARGETS, _COLUMNS), dtype=np.float32)
    product = best_seconds(lambda: np.matmul(weights, rows, out=out), 3)
    symmetric = best_seconds(lambda: partial_gram(rows, range(_SOURCES)), 3)
    distances = rng.random((_ENTRIES, _ENTRIES))
    own = np.eye(_ENTRIES, dtype=np.bool_)
    entry = best_seconds(lambda: coefficients(distances, own, "normalized"), 3)
    return {
        "product": 2 * _TARGETS * _SOURCES * _COLUMNS / product,
        "symmetric": _SOURCES**2 * _COLUMNS / symmetric,
        "entry": entry / _ENTRIES**2,
        "metrics": {
            name: _metric_rate(metric, vocabulary, distinct, side)
            for name, metric in zip(_NAMES, _metrics(vocabulary), strict=True)
        },
    }


_NAMES = (*METRIC_NAMES, *FURTHER_METRIC_NAMES)


def _metrics(vocabulary: int) -> list[Metric]:
    return [
        get_metric(name, frequencies=np.ones(vocabulary) if name == "tf-idf" else None) for name in _NAMES
    ]


def _metric_rate(metric: Metric, vocabulary: int, distinct: int, side: int) -> tuple[float, float]:
    """Seconds a dataset and a pair, of a tile.

    Of metrics that do much once a dataset, by a tile of half the side too. The others take compiled loops for
    large tiles alone, so that two sizes would tell of two programs.
    """
    rows, columns = (_datasets(vocabulary, distinct, side, seed) for seed in (0, 1))
    whole = best_seconds(lambda: metric.both(rows, columns))
    if metric.name in ("wasserstein", "jensen-shannon"):
        return 0.0, whole / side**2
    few = np.arange(max(1, side // 2))
    half = best_seconds(lambda: metric.both(rows.select(few), columns.select(few)))
    # whole = 2 s a + s^2 b, half = 2 h a + h^2 b
    each = max(0.0, (half * side**2 - whole * len(few) ** 2) / (2 * len(few) * side * (side - len(few))))
    return each, max((whole - 2 * side * each) / side**2, 1e-12)


def _datasets(vocabulary: int, distinct: int, number: int, seed: int) -> TokenCounts:
    """Counts of datasets that have half of their ids in common, and not the frequent ones: none is near another."""
    rng = np.random.default_rng(seed)
    common = min(distinct // 2, vocabulary)
    zipf = (1 + 20 * distinct // np.arange(1, distinct + 1)).astype(np.uint32)
    rows = []
    for _ in range(number):
        rest = rng.choice(vocabulary - common, distinct - common, replace=False) + common
        ids = np.sort(np.concatenate([np.arange(common), rest])).astype(np.uint32)
        rows.append((ids, rng.permutation(zipf)))
    return TokenCounts.stack(rows, vocabulary)


# -- training ------------------------------------------------------------------------------------------


def epoch_seconds() -> tuple[float, float]:
    """Return the time of an epoch with hardly any pairs, and what it takes more for each pair."""
    few, many = (_epoch(number) for number in _TRAINED)
    return few, max(0.0, many - few) / _TRAINED[1] ** 2


def _epoch(adapters: int) -> float:
    """Return the time of an epoch after the first, on all cores, as the client trains; the median of five."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((adapters, 2 * adapters))
    places = rng.random(adapters)
    options = NeuralOptions(width=_WIDTH, knots=_KNOTS, epochs=6, protocol="published", training_share=1.0)
    told: list[float] = []
    train(
        np.abs(places[:, None] - places),
        rows @ rows.T,
        np.arange(adapters),
        options,
        rows.shape[1],
        lambda *_: told.append(time.perf_counter()),
    )
    return float(np.median(np.diff(told)))
