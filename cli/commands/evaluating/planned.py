"""`bank plan --evaluate`: what an evaluation will generate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands.assess import examples_asked
from cli.display import print_json, print_table, shown_progress, tell
from cli.options import Parameters, on_command_line, opened

if TYPE_CHECKING:
    from compute.forecasting.answers import EvaluationForecast


def plan_evaluation(
    bank_path: Path,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    given: Mapping[str, Any],
    asked: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Print the plan; the exit status is 1 if a worker's share of the memory is too small, or a target is lacking.

    Parameters
    ----------
    given
        The options of `--evaluate`.
    asked
        Workers, memory, and whether to measure.
    """
    from compute.evaluation.evaluate import EvaluationOptions
    from compute.evaluation.systems import evaluated_ways, with_baselines
    from compute.forecasting.answers import forecast_evaluation

    context = click.get_current_context()
    own = any(on_command_line(context, name) for name in ("metrics", "approaches"))
    ways = evaluated_ways(Parameters().combinations(metrics, approaches) if own else None, None)
    options = EvaluationOptions(
        model=given["model"], data=given["data"], max_examples=examples_asked(given["max_examples"])
    )
    with opened(bank_path) as bank:
        planned = forecast_evaluation(bank, with_baselines(ways), options, progress=shown_progress(), **asked)
    if as_json:
        print_json(planned.to_dict())
    else:
        _print(planned)
    for reason in planned.failures.values():
        tell(f"not evaluated: {reason}", err=True)
    if not planned.fits:
        tell(
            "generate: a worker needs more than its share of the memory; raise --memory, or use fewer --workers",
            err=True,
        )
    if planned.failures or not planned.fits:
        raise click.exceptions.Exit(1)


def _print(planned: EvaluationForecast) -> None:
    from bankdb.shown import size_text
    from compute.forecasting.forecast import time_text

    rows = [
        (
            "systems, targets, test examples",
            f"{planned.systems:,}, {planned.targets:,}, {planned.examples:,}",
        ),
        ("answers at the most", f"{planned.answers:,}"),
        ("tokens read", f"{planned.read:,}"),
        ("tokens generated, as long as references", f"{planned.expected:,}"),
        ("tokens generated at the most", f"{planned.most:,}"),
        ("memory of a worker", f"{size_text(planned.memory)} of {size_text(planned.share)}"),
        ("workers", f"{planned.workers:,}"),
    ]
    if planned.seconds is not None:
        expected, most = map(time_text, planned.seconds)
        rows += [("time, as long as references", expected), ("time at the most", most)]
    print_table(("what is generated", ""), rows)
    if planned.seconds is None:
        tell("for the expected time: --measure, which loads the base model")
