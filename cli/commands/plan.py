"""`bank plan`: what a run over a whole bank will do, before anything runs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.combining.options import merge_option
from cli.commands.assess import max_examples_option
from cli.commands.evaluating.planned import plan_evaluation
from cli.display import print_json, print_table, shown_progress, tell
from cli.option_rules import CheckedCommand
from cli.options import (
    Parameters,
    approach_option,
    bank_option,
    json_option,
    memory_option,
    metric_option,
    opened,
)

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from compute.forecasting.forecast import Forecast
    from compute.forecasting.shape import BankShape


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank plan --measure\n"
    "  bank plan --metric all --workers 8 --memory 64GiB --rates rates.json\n"
    "  bank plan --evaluate --model ./smollm2 --measure\n"
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
@merge_option
@click.option("--weight-error", is_flag=True, help="As of bank predict: with the Gram matrix.")
@click.option("--store", is_flag=True, help="As of bank predict: all predicted numbers are stored.")
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
@click.option(
    "--evaluate",
    is_flag=True,
    help="Plan 'bank evaluate' instead: answers, tokens, the memory of a worker, and with --measure the time.",
)
@click.option(
    "--model", help="With --evaluate: folder or hub name of the base model; the bank's if not given."
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="With --evaluate: folder with NAME/test.jsonl, as there."
)
@max_examples_option
@json_option
def plan(
    bank_path: Path,
    adapters: int | None,
    parameters: int | None,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    weight_error: bool,
    store: bool,
    workers: int | None,
    memory: str | None,
    measure: bool,
    rates_file: Path | None,
    save_rates: Path | None,
    as_json: bool,
    merge: str,
    **numbers: Any,
) -> None:
    """Print what 'bank predict --all' will do, and how long it may take, before anything runs.

    Each step with its tasks, bytes read and written (before compression), arithmetic, and the memory of a
    task; with one metric and one approach, '--export' too. The plan is of the whole run: what a bank has
    stored already is not computed again. Nothing of the bank is changed. Exit status 1 says that a step does
    not fit the memory.

    With --evaluate, what 'bank evaluate' will generate with the same metrics and approaches, if the bank keeps no
    answers yet.
    """
    import compute
    from compute.cluster.machine import parse_memory

    if numbers["evaluate"]:
        asked = {
            "workers": workers,
            "memory": None if memory is None else parse_memory(memory),
            "measure": measure,
        }
        plan_evaluation(bank_path, metrics, approaches, numbers, asked, as_json)
        return
    numbers = {name: numbers[name] for name in ("vocabulary", "tokens", "distinct")}
    if (adapters is None) != (parameters is None):
        raise click.UsageError("--adapters and --parameters go together")
    if measure and rates_file is not None:
        raise click.UsageError("give --measure or --rates, not both")
    if save_rates is not None and not measure:
        raise click.UsageError("--save-rates goes with --measure")
    with contextlib.ExitStack() as stack:
        bank: AdapterBank | BankShape
        if adapters is not None and parameters is not None:
            bank = compute.BankShape.of_numbers(adapters, parameters, **numbers)
        else:
            bank = stack.enter_context(opened(bank_path))
        planned = compute.forecast(
            bank,
            Parameters({"merge": merge}).combinations(metrics, approaches),
            workers=workers,
            memory=None if memory is None else parse_memory(memory),
            weight_errors=weight_error,
            store=store,
            rates=rates_file,
            measure=measure,
            cluster=compute.ClusterOptions(),
            progress=shown_progress(),
        )
    if save_rates is not None and planned.rates is not None:
        from compute.forecasting.rates import write_rates

        write_rates(save_rates, planned.rates)
    _show(planned, as_json)
    if planned.problems:
        raise click.exceptions.Exit(1)


def _show(planned: Forecast, as_json: bool) -> None:
    from bankdb.shown import size_text
    from compute.forecasting.forecast import HEADINGS, time_text

    if as_json:
        print_json(planned.to_dict())
        return
    shape, total = planned.shape, planned.total_seconds
    tell(
        f"{shape.adapters:,} adapters of {shape.parameters:,} parameters; {shape.mean_distinct:,} distinct ids of "
        f"{shape.vocabulary:,} a dataset; {planned.workers} workers, {size_text(planned.task_memory)} a task"
    )
    shown = len(HEADINGS) - (total is None)
    print_table(HEADINGS[:shown], [row[:shown] for row in planned.rows()])
    for name, problem in planned.problems.items():
        tell(f"{name}: {problem}")
    if total is None:
        tell("for the expected time: --measure, or --rates FILE")
        return
    missing = sum(value is None for value in planned.seconds)
    without = f", without {missing} steps whose time is not known" if missing else ""
    tell(f"expected in all: {time_text(total)}{without}; the start of the processes not counted")


COMMANDS = (plan,)
