"""Rates of a machine, and the time that a forecast takes at them. `compute.forecasting.measure` measures them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bankdb.arrays.durable import write_whole
from bankdb.errors import ParameterError
from bankdb.strict_json import parse_object
from compute.forecasting.steps import StepForecast
from compute.pairwise.plan import busiest

_AGAIN = "write the file again with `bank plan --measure --save-rates FILE`"
# Share of the shorter of arithmetic and storage that adds to the longer: the first read and the last write of a
# worker, and what both want of the memory. Measured: see docs/scale.md.
_NOT_HIDDEN = 0.5
# Arrays that the task of a tile opens: distances, and five of counts for rows and for columns.
_TILE_ARRAYS = 13
# Metrics whose time goes with the ids that datasets have; that of others goes with the vocabulary.
_BY_DISTINCT = ("jensen-shannon", "tf-idf")


@dataclass(frozen=True, slots=True)
class MetricRate:
    """Seconds of a core for each dataset that a tile reads, and for each pair of it, with its mirror."""

    dataset: float
    pair: float


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does while all of its cores are busy.

    Attributes
    ----------
    product, symmetric
        flop/s of a core: a float32 product as of a panel, and one of a matrix with its own transpose.
    read, write
        byte/s of the storage, for all workers together: a row's chunks that no cache holds, and flushed shards.
    decode, encode
        byte/s of a core: checking and unpacking what was read, packing what is written.
    flush
        Seconds a small file that is written and flushed, for all workers together.
    chunk
        Seconds of a core for a chunk that is read through zarr; from an object store, of all requests together.
    opening
        Seconds of a core for a stored array that is opened.
    task, step
        Seconds a task that does nothing, of scheduler and client; and a step of such tasks, one for each worker.
    entry
        Seconds an entry of a matrix of coefficients.
    epoch, epoch_pair
        Seconds an epoch of the neural approach, at `width` and `knots`, and more for each pair of adapters.
    cores
        Of the machine that trains.
    vocabulary, distinct
        Of the datasets that `metrics` were measured on; `distinct` ids in each.
    width, knots
        Of the network that `epoch` was measured on.
    metrics
        By metric.
    """

    product: float
    symmetric: float
    read: float
    write: float
    decode: float
    encode: float
    flush: float
    chunk: float
    opening: float
    task: float
    step: float
    entry: float
    epoch: float
    epoch_pair: float
    cores: float
    vocabulary: float
    distinct: float
    width: float
    knots: float
    metrics: Mapping[str, MetricRate]

    def to_json(self) -> dict[str, Any]:
        """Return the rates as JSON has them."""
        return asdict(self)


def write_rates(path: Path, rates: Rates) -> None:
    """Write rates to a file, in place of what was there."""
    write_whole(path, json.dumps(rates.to_json(), indent=2) + "\n")


def read_rates(path: Path) -> Rates:
    """Read rates from a file.

    Raises
    ------
    ParameterError
        There is no such file, or it is not one of rates; a number is missing, unknown, or not above zero.
    """
    try:
        return rates_of(parse_object(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ParameterError(f"{path}: no rates can be read there ({error.strerror}); {_AGAIN}") from error
    except ValueError as error:
        raise ParameterError(f"{path}: {error}; {_AGAIN}") from error


def rates_of(values: Mapping[str, Any]) -> Rates:
    """Return the rates of parsed JSON. Raises ValueError, with a reason that names no file."""
    names = [field.name for field in fields(Rates)]
    unknown = sorted(set(values) ^ set(names))
    if unknown:
        raise ValueError(
            f"expected the rates {', '.join(names)}, found missing or unknown: {', '.join(unknown)}"
        )
    metrics = values["metrics"]
    if not isinstance(metrics, dict) or not all(isinstance(rate, dict) for rate in metrics.values()):
        raise ValueError("metrics: expected an object with an object for each metric")
    metric_rates = {
        name: MetricRate(
            _number(f"{name} dataset", rate.get("dataset"), least=0.0),
            _number(f"{name} pair", rate.get("pair")),
        )
        for name, rate in metrics.items()
    }
    # More pairs may cost an epoch nothing that can be measured.
    numbers = {
        name: _number(name, values[name], least=0.0 if name == "epoch_pair" else None)
        for name in names
        if name != "metrics"
    }
    return Rates(**numbers, metrics=metric_rates)


def _number(name: str, value: Any, *, least: float | None = None) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not (value > 0 if least is None else value >= least):
        raise ValueError(
            f"{name}: expected a number {'above' if least is None else 'from'} 0, found {value!r}"
        )
    return float(value)


def expected_seconds(
    step: StepForecast, rates: Rates, workers: int, vocabulary: int, distinct: int
) -> float | None:
    """Return the time that a step takes on so many workers of one thread; without the start of processes.

    Cores are taken to be as many as workers, and the storage to be one for all: more workers do not make it
    faster.

    Parameters
    ----------
    vocabulary, distinct
        V, and the distinct ids of a dataset on average.

    Returns
    -------
    Seconds, or None where the step cannot run, or its time depends on what is fitted.

    Raises
    ------
    ParameterError
        The rates lack a metric.
    """
    if step.problem is not None or not step.timed:
        return None
    if step.kind == "distances" and step.detail not in rates.metrics:
        known = ", ".join(rates.metrics)
        raise ParameterError(f"rates: expected one of {step.detail}, found {known}; {_AGAIN}")
    storage = step.read / rates.read + step.written / rates.write + step.files * rates.flush
    if step.kind == "distances":
        work = _distances(step, rates, vocabulary, distinct)
        seconds = _waves(step, workers) * work + storage
    else:
        seconds = _KINDS[step.kind](step, rates, workers, storage)
    return max(seconds, step.tasks * rates.task) + rates.step


def _waves(step: StepForecast, workers: int) -> float:
    """Share of the whole work that the busiest worker does; where no costs are known, tasks are alike."""
    if step.costs:
        return busiest(dict(step.costs), workers) / sum(cost * count for cost, count in step.costs)
    return -(-step.tasks // workers) / step.tasks


def _distances(step: StepForecast, rates: Rates, vocabulary: int, distinct: int) -> float:
    rate = rates.metrics[step.detail]
    size = distinct / rates.distinct if step.detail in _BY_DISTINCT else vocabulary / rates.vocabulary
    computed = size * (rate.dataset * step.datasets + rate.pair * step.pair_hundredths / 100)
    return computed + step.tasks * _TILE_ARRAYS * rates.opening


def _overlapped(work: float, storage: float) -> float:
    """Time of arithmetic and storage side by side: the longer of the two, and what is not hidden of the other."""
    return max(work, storage) + _NOT_HIDDEN * min(work, storage)


def _gram(step: StepForecast, rates: Rates, workers: int, storage: float) -> float:
    work = step.flops / rates.symmetric + step.read / rates.decode
    return _overlapped(_waves(step, workers) * work, storage)


def _combine(step: StepForecast, rates: Rates, workers: int, storage: float) -> float:
    work = step.flops / rates.product + step.read / rates.decode + step.written / rates.encode
    return _overlapped(_waves(step, workers) * work, storage)


def _coefficients(step: StepForecast, rates: Rates, _: int, storage: float) -> float:
    """The client's cores train; everything else is one thread."""
    made = step.pairs * rates.entry + storage
    if not step.epochs:
        return made
    if step.points:
        network = 6 * step.width**2 * step.points / (rates.product * rates.cores)
    else:
        network = rates.epoch * step.width**2 / rates.width**2
    # In double precision, at half the rate.
    loss = 2 * step.pairs * math.isqrt(step.pairs) / (rates.product * rates.cores / 2)
    return made + step.epochs * (network + rates.epoch_pair * step.pairs + loss)


def _export(step: StepForecast, rates: Rates, _: int, storage: float) -> float:
    """Threads of the client; they read through zarr, which is one thread's work."""
    return step.chunks * rates.chunk + step.written / rates.encode + storage


_KINDS: dict[str, Callable[[StepForecast, Rates, int, float], float]] = {
    "gram": _gram,
    "coefficients": _coefficients,
    "combine": _combine,
    "export": _export,
}
