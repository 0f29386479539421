"""`bank plan`: what a run over a whole bank will do, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import print_json, print_table, shown_progress, tell
from cli.option_rules import CheckedCommand
from cli.options import approach_option, bank_option, json_option, memory_option, metric_option, opened

if TYPE_CHECKING:
    from compute.approaches.options import PredictionOptions
    from compute.forecasting.rates import Rates
    from compute.forecasting.steps import BankShape, StepForecast

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank plan --measure\n"
    "  bank plan --metric all --approach neural --workers 8 --memory 64GiB --rates rates.json\n"
    "  bank plan --adapters 10000 --parameters 9437184 --workers 64 --memory 512GiB",
)
@bank_option
@click.option(
    "--adapters", type=click.IntRange(2, 10**9), help="Plan a bank of so many adapters, without a bank."
)
@click.option(
    "--parameters", type=click.IntRange(1, 10**13), help="With --adapters: parameters of an adapter."
)
@click.option(
    "--vocabulary",
    type=click.IntRange(1, 2**31 - 1),
    default=32_000,
    show_default=True,
    help="With --adapters: ids of the tokenizer.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 10**13),
    default=70_000,
    show_default=True,
    help="With --adapters: tokens of a dataset.",
)
@click.option(
    "--distinct",
    type=click.IntRange(1, 2**31 - 1),
    help="With --adapters: distinct ids of a dataset; those of a Zipf distribution if not given.",
)
@metric_option(many=True)
@approach_option()
@click.option("--weight-error", is_flag=True, help="As of bank predict: with the Gram matrix.")
@click.option(
    "--workers", type=click.IntRange(1, 1_000_000), help="Tasks that run at once; the cores if not given."
)
@memory_option
@click.option("--measure", is_flag=True, help="Measure the rates of this machine, for the expected time.")
@click.option(
    "--rates", "rates_file", type=click.Path(path_type=Path), help="Take the rates from this JSON file."
)
@click.option(
    "--save-rates",
    type=click.Path(path_type=Path),
    help="With --measure: write the rates to this file, to be given with --rates.",
)
@json_option
def plan(
    bank_path: Path,
    adapters: int | None,
    parameters: int | None,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    weight_error: bool,
    workers: int | None,
    memory: str | None,
    measure: bool,
    rates_file: Path | None,
    save_rates: Path | None,
    as_json: bool,
    **numbers: Any,
) -> None:
    """Print what 'bank predict --all' will do, and how long it may take, before anything runs.

    Each step with its tasks, bytes read and written (before compression), arithmetic, and the memory of a
    task; with one metric and one approach, '--export' too. The plan is of the whole run: what a bank has
    stored already is not computed again. Nothing of the bank is changed. Exit status 1 says that a step does
    not fit the memory.
    """
    from compute.cluster.machine import core_count, memory_budget, parse_memory
    from compute.forecasting.steps import forecast

    if (adapters is None) != (parameters is None):
        raise click.UsageError("--adapters and --parameters go together")
    if measure and rates_file is not None:
        raise click.UsageError("give --measure or --rates, not both")
    if save_rates is not None and not measure:
        raise click.UsageError("--save-rates goes with --measure")
    slots = core_count() if workers is None else workers
    budget = memory_budget(None if memory is None else parse_memory(memory)) // slots
    ways = _ways(metrics, approaches)
    shape = _shape(bank_path, adapters, parameters, **numbers)
    steps = forecast(
        shape, ways, slots=slots, budget=budget, weight_errors=weight_error, export=len(ways) == 1
    )
    rates = None
    if measure:
        rates = _measured(bank_path if adapters is None else None, shape, steps, save_rates)
    elif rates_file is not None:
        from compute.forecasting.rates import read_rates

        rates = read_rates(rates_file)
    _show(shape, steps, slots, budget, rates, as_json)
    if any(step.problem for step in steps):
        raise click.exceptions.Exit(1)


def _ways(metrics: tuple[str, ...], approaches: tuple[str, ...]) -> list[PredictionOptions]:
    from cli.options import Parameters

    return Parameters().combinations(metrics, approaches)


def _shape(bank_path: Path, adapters: int | None, parameters: int | None, **numbers: Any) -> BankShape:
    from compute.forecasting.steps import BankShape

    if adapters is not None and parameters is not None:
        return BankShape.of_numbers(adapters, parameters, **numbers)
    with opened(bank_path) as bank:
        return BankShape.of_bank(bank)


def _measured(
    bank_path: Path | None, shape: BankShape, steps: Sequence[StepForecast], save: Path | None
) -> Rates:
    """Measure beside the bank's arrays, reading its own rows, or in this folder where there is none."""
    from bankdb.arrays.remote import Location
    from compute.cluster.client import open_cluster
    from compute.cluster.options import ClusterOptions
    from compute.forecasting.measure import measure_rates
    from compute.forecasting.rates import write_rates

    place: Location = Path.cwd()
    stored: list[Location] = []
    progress = shown_progress()
    if bank_path is not None:
        with opened(bank_path) as bank:
            place = bank.arrays
            stored = [bank.store.file(record.row) for record in bank.adapters()]
    with open_cluster(ClusterOptions(), progress) as cluster:
        rates = measure_rates(
            cluster,
            place,
            progress,
            vocabulary=shape.vocabulary,
            distinct=shape.mean_distinct,
            side=max((step.side for step in steps), default=0) or shape.adapters,
            stored=stored,
        )
    if save is not None:
        write_rates(save, rates)
    return rates


def _show(
    shape: BankShape,
    steps: Sequence[StepForecast],
    slots: int,
    budget: int,
    rates: Rates | None,
    as_json: bool,
) -> None:
    seconds = _seconds(shape, steps, slots, rates)
    timed = [value for value in seconds if value is not None]
    if as_json:
        print_json(
            {
                "adapters": shape.adapters,
                "parameters": shape.parameters,
                "vocabulary": shape.vocabulary,
                "distinct": shape.mean_distinct,
                "workers": slots,
                "memory_per_task": budget,
                "steps": [_record(*pair) for pair in zip(steps, seconds, strict=True)],
                "seconds": sum(timed) if rates is not None else None,
                "rates": None if rates is None else rates.to_json(),
            }
        )
        return
    tell(
        f"{shape.adapters:,} adapters of {shape.parameters:,} parameters; {shape.mean_distinct:,} distinct ids of "
        f"{shape.vocabulary:,} a dataset; {slots} workers, {size_text(budget)} a task"
    )
    headings = ["step", "tasks", "read", "written", "GFlop", "memory of a task"]
    rows = [_row(step) for step in steps]
    if rates is not None:
        headings.append("expected time")
        for row, value in zip(rows, seconds, strict=True):
            row.append("not known" if value is None else time_text(value))
    print_table(headings, rows)
    for step in steps:
        if step.problem is not None:
            tell(f"{step.name}: {step.problem}")
    if rates is None:
        tell("for the expected time: --measure, or --rates FILE")
    else:
        missing = len(seconds) - len(timed)
        without = f", without {missing} steps whose time is not known" if missing else ""
        tell(f"expected in all: {time_text(sum(timed))}{without}; the start of the processes not counted")


def _row(step: StepForecast) -> list[object]:
    if step.problem is not None:
        return [step.name, "does not fit", "", "", "", ""]
    size = (size_text(step.read), size_text(step.written))
    return [step.name, step.tasks or "client", *size, step.flops // 10**9, size_text(step.memory)]


def _seconds(
    shape: BankShape, steps: Sequence[StepForecast], slots: int, rates: Rates | None
) -> list[float | None]:
    if rates is None:
        return [None] * len(steps)
    from compute.forecasting.rates import expected_seconds

    return [expected_seconds(step, rates, slots, shape.vocabulary, shape.mean_distinct) for step in steps]


def _record(step: StepForecast, seconds: float | None) -> dict[str, Any]:
    shown = ("name", "tasks", "read", "written", "files", "flops", "memory", "problem")
    values = asdict(step)
    return {key: values[key] for key in shown} | {"seconds": seconds}


def size_text(size: int) -> str:
    """Return bytes in the unit that suits them."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {_UNITS[unit]}" if value < 1000 else f"{value:.0f} {_UNITS[unit]}"


def time_text(seconds: float) -> str:
    """Return seconds in the unit that suits them."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


COMMANDS = (plan,)
