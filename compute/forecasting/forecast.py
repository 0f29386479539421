"""A run counted before it runs: its steps, and the time that they may take on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bankdb.arrays.durable import write_whole
from bankdb.arrays.remote import Location
from bankdb.bank import AdapterBank
from bankdb.errors import ConflictError, ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.shown import html_summary, size_text, text_summary
from compute.approaches.options import PredictionOptions, each_way
from compute.cluster.client import open_cluster
from compute.cluster.machine import core_count, memory_budget
from compute.cluster.options import ClusterLike
from compute.forecasting.measure import measure_rates
from compute.forecasting.rates import Rates, expected_seconds, read_rates
from compute.forecasting.shape import BankShape
from compute.forecasting.steps import StepForecast, forecast_steps

HEADINGS = ("step", "tasks", "read", "written", "GFlop", "memory of a task", "expected time")
# Steps that a forecast shows of itself in text.
_LISTED = 10


@dataclass(frozen=True, slots=True, repr=False)
class Forecast:
    """What `predict_all` will do on a bank from nothing.

    Attributes
    ----------
    shape
        The size of the bank.
    steps
        Each with its tasks, bytes read and written (before compression), arithmetic and memory.
    workers
        Tasks that run at once.
    task_memory
        Bytes that one of them may use.
    rates
        Of the machine; None where they were not asked for.
    seconds
        Of each step at these rates; None where the time is not known.
    """

    shape: BankShape
    steps: tuple[StepForecast, ...]
    workers: int
    task_memory: int
    rates: Rates | None
    seconds: tuple[float | None, ...]

    @property
    def problems(self) -> dict[str, str]:
        """Steps that do not fit the memory, each with what would be needed; empty if all do."""
        return {step.name: step.problem for step in self.steps if step.problem is not None}

    @property
    def total_seconds(self) -> float | None:
        """Of all steps whose time is known; None without rates. The start of processes is not counted."""
        return None if self.rates is None else sum(value for value in self.seconds if value is not None)

    def rows(self) -> list[tuple[object, ...]]:
        """Return a row of text a step, under `HEADINGS`."""
        times = ["not known" if value is None else time_text(value) for value in self.seconds]
        return [(*_row(step), time) for step, time in zip(self.steps, times, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "adapters": self.shape.adapters,
            "parameters": self.shape.parameters,
            "vocabulary": self.shape.vocabulary,
            "distinct": self.shape.mean_distinct,
            "workers": self.workers,
            "memory_per_task": self.task_memory,
            "steps": [_record(*pair) for pair in zip(self.steps, self.seconds, strict=True)],
            "seconds": self.total_seconds,
            "rates": None if self.rates is None else self.rates.to_json(),
        }

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as JSON; return the file. Raises ConflictError if one is there and is not to be replaced."""
        target = Path(path)
        if target.exists() and not overwrite:
            raise ConflictError(f"{target}: already there; choose another path, or give overwrite=True")
        write_whole(target, json.dumps(self.to_dict(), indent=2) + "\n")
        return target

    def __repr__(self) -> str:
        """Return the size of the bank, and a line a step."""
        rows = self.rows()
        steps = {str(name): self._told(*row) for name, *row in rows[:_LISTED]}
        more = {"further steps": str(len(rows) - _LISTED)} if len(rows) > _LISTED else {}
        return text_summary(self._title(), steps | more | self._total())

    def _repr_html_(self) -> str:
        shown = len(HEADINGS) - (self.rates is None)
        return html_summary(
            self._title(), self._total(), HEADINGS[:shown], [row[:shown] for row in self.rows()]
        )

    def _told(self, tasks: object, read: object, written: object, *rest: object) -> str:
        if not read:
            return str(tasks)  # does not fit
        where = "on the client" if tasks == "client" else f"{tasks} tasks"
        return f"{where}, reads {read}, writes {written}" + ("" if self.rates is None else f", {rest[-1]}")

    def _title(self) -> str:
        shape = self.shape
        return f"Forecast for {shape.adapters:,} adapters of {shape.parameters:,} parameters, {self.workers:,} workers"

    def _total(self) -> dict[str, str]:
        total = self.total_seconds
        return {} if total is None else {"expected in all": time_text(total)}


def forecast(
    bank: AdapterBank | BankShape,
    options: PredictionOptions | Sequence[PredictionOptions] | None = None,
    *,
    workers: int | None = None,
    memory: int | None = None,
    weight_errors: bool = False,
    export: bool | None = None,
    store: bool = False,
    rates: Rates | str | Path | None = None,
    measure: bool = False,
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> Forecast:
    """Count what `predict_all` will do before anything runs, and tell how long it may take.

    What a bank has stored already is counted as if it were not; nothing of the bank is changed.

    Parameters
    ----------
    bank
        A bank, or the size of one that is not there: `BankShape.of_numbers(10_000, 9_437_184)`.
    workers, memory
        Tasks that run at once, and the bytes that they may use together; default: the cores and half of the memory
        of this machine.
    weight_errors
        As of `predict_all`.
    export, store
        Whether predictions of the first way are saved as folders (default: of one way), and whether all are stored.
    rates
        Of the machine, or the file that holds them, for the expected time.
    measure
        Measure the rates of this machine instead, beside the bank's arrays, or in the current folder; seconds.
    cluster
        Where they are measured: options, a `distributed.Client`, or None, the default client or threads.

    Raises
    ------
    ParameterError, BankNotFoundError
        A number is out of its range, or the rates are both given and to be measured; or the bank is empty.

    Examples
    --------
    >>> forecast(BankShape.of_numbers(500, 1_000_000), workers=4, memory=8 << 30).problems
    {}
    """
    if measure and rates is not None:
        raise ParameterError("rates: expected them given or measured, found both; leave one out")
    ways, slots = each_way(options), _slots(workers)
    budget = memory_budget(memory) // slots
    shape = bank if isinstance(bank, BankShape) else BankShape.of_bank(bank)
    saved = len(ways) == 1 if export is None else export
    asked = {"weight_errors": weight_errors, "export": saved, "store": store}
    steps = forecast_steps(shape, ways, slots=slots, budget=budget, **asked)
    if measure:
        rates = _measured(bank, shape, steps, cluster, progress or SilentProgress())
    elif isinstance(rates, str | Path):
        rates = read_rates(Path(rates))
    seconds = tuple(None if rates is None else _seconds(step, rates, slots, shape) for step in steps)
    return Forecast(shape, steps, slots, budget, rates, seconds)


def _slots(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise ParameterError(f"workers: expected at least 1, found {workers}; leave it out for all cores")
    return core_count() if workers is None else workers


def _seconds(step: StepForecast, rates: Rates, slots: int, shape: BankShape) -> float | None:
    return expected_seconds(step, rates, slots, shape.vocabulary, shape.mean_distinct)


def _measured(
    bank: AdapterBank | BankShape,
    shape: BankShape,
    steps: Sequence[StepForecast],
    cluster: ClusterLike,
    progress: Progress,
) -> Rates:
    """Measure beside the bank's arrays, reading its own rows, or in this folder where there is none."""
    place: Location = Path.cwd()
    stored: list[Location] = []
    if isinstance(bank, AdapterBank):
        place, stored = bank.arrays, [bank.store.file(record.row) for record in bank.adapters()]
    with open_cluster(cluster, progress) as used:
        return measure_rates(
            used,
            place,
            progress,
            vocabulary=shape.vocabulary,
            distinct=shape.mean_distinct,
            side=max((step.side for step in steps), default=0) or shape.adapters,
            stored=stored,
        )


def _row(step: StepForecast) -> tuple[object, ...]:
    if step.problem is not None:
        return (step.name, "does not fit", "", "", "", "")
    sizes = size_text(step.read), size_text(step.written)
    return (step.name, step.tasks or "client", *sizes, step.flops // 10**9, size_text(step.memory))


def _record(step: StepForecast, seconds: float | None) -> dict[str, Any]:
    shown = ("name", "tasks", "read", "written", "files", "flops", "memory", "problem")
    values = asdict(step)
    return {key: values[key] for key in shown} | {"seconds": seconds}


def time_text(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
