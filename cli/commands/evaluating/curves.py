"""What `bank evaluate --finetune` measures: Rouge-L by the number of training steps, from each start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import print_json, print_table, tell, write_csv, write_text
from cli.options import examples_option, on_command_line, together
from compute.finetuning.options import LEARNING_RATE

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from bankdb.progress import Progress
    from compute.approaches.options import PredictionOptions
    from compute.cluster.options import ClusterOptions
    from compute.curves.records import LearningCurves
    from compute.curves.summary import Advantage, CurvePoint
    from compute.evaluation.evaluate import EvaluationOptions


def _steps(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Read `0,2,4,8` as ascending numbers; anything else is wrong use."""
    if value is None:
        return ()
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"expected numbers of steps such as 0,2,4,8, found {value!r}")
    return tuple(int(part) for part in parts)


curve_options: Callable[[Callable[..., Any]], Callable[..., Any]] = together(
    click.option(
        "--finetune",
        callback=_steps,
        metavar="K,K,...",
        help="Instead, train on a few of each target's own examples, and answer after so many steps: from the first "
        "--metric and --approach (jensen-shannon, normalized), from uniform, and from zero.",
    ),
    examples_option(
        "With --finetune, which holds out a fifth of them, and of selected: training examples of each target."
    ),
    click.option(
        "--train-batch-size",
        type=click.IntRange(1, 65_536),
        default=8,
        show_default=True,
        help="With --finetune: examples of a step.",
    ),
    click.option(
        "--learning-rate",
        type=click.FloatRange(0, 1, min_open=True),
        default=LEARNING_RATE,
        show_default=True,
        help="With --finetune: of AdamW; lower in the first three steps, but from zero.",
    ),
    click.option(
        "--train-dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="With --finetune: of the base model while it is trained on; the adapter is float32.",
    ),
)
CURVE_PARAMETERS = ("train_batch_size", "learning_rate", "train_dtype")
"""What goes with `--finetune` alone."""


def one_way(metrics: tuple[str, ...], approaches: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return metrics and approaches as they were asked for; what was not is the default of a single prediction."""
    context = click.get_current_context()
    return (
        metrics if on_command_line(context, "metrics") else ("jensen-shannon",),
        approaches if on_command_line(context, "approaches") else ("normalized",),
    )


def print_curves(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    leave_outs: Sequence[str],
    evaluation: EvaluationOptions,
    other: dict[str, Any],
    cluster: ClusterOptions,
    progress: Progress,
) -> None:
    """Measure the curves, print or write them; targets that could not be trained on give exit status 1."""
    from dataclasses import replace

    import compute
    from compute.curves.curve import CurveOptions

    options = CurveOptions(
        steps=other["finetune"],
        examples=other["examples"],
        batch_size=other["train_batch_size"],
        learning_rate=other["learning_rate"],
        seed=other["seed"],
        dtype=other["train_dtype"],
        evaluation=evaluation,
    )
    starts = [replace(way, leave_out=one) for one in leave_outs for way in ways]
    curves = compute.learning_curves(bank, starts, options, cluster=cluster, progress=progress)
    _tell(curves, other["csv"], other["out"], other["as_json"])
    if curves.failures:
        for reason in curves.failures.values():
            tell(f"not trained on: {reason}", err=True)
        raise click.exceptions.Exit(1)


def _tell(curves: LearningCurves, csv: Path | None, out: Path | None, as_json: bool) -> None:
    from compute.curves.summary import advantages, points, points_csv, targets_csv

    found, worth = points(curves), advantages(curves)
    if csv is not None:
        write_csv(csv, points_csv(found))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / "curve.csv", points_csv(found))
        write_csv(out / "targets.csv", targets_csv(curves))
        write_text(out / "curves.json", curves.to_json() + "\n")
        tell(f"wrote {out}/", err=True)
    if as_json:
        print_json(
            {"curves": asdict(curves), "points": list(map(asdict, found)), "worth": list(map(asdict, worth))}
        )
    elif csv is None or str(csv) != "-":
        _print(curves, found, worth)


def _print(curves: LearningCurves, found: Sequence[CurvePoint], worth: Sequence[Advantage]) -> None:
    from compute.evaluation.bootstrap import LEAST_UNITS
    from compute.evaluation.tables import shown_interval

    rows = [
        (
            one.start,
            one.steps,
            one.rouge,
            shown_interval(one.gap, percent=True),
            shown_interval(one.to_zero),
            one.kept,
        )
        for one in found
    ]
    settings = curves.settings
    print_table(
        ("start", "steps", "Rouge-L", "gap closed", "to zero", "kept"),
        rows,
        title=f"{len(curves.targets)} tasks, steps of {settings['batch_size']} of {settings['examples'] or 'all'} "
        "examples, a fifth held out",
    )
    if any(one.gap is not None and not one.gap.has_bounds for one in found):
        tell(
            f"without intervals where there are fewer than {LEAST_UNITS} tasks or groups: they would be too short"
        )
    tell("kept: Rouge-L where each task keeps the number of steps with the lowest held-out loss")
    for one in worth:
        tell(
            f"{one.start}, mean over the steps between: {shown_interval(one.mean)} Rouge-L to a start from zero"
        )
        for step, steps in one.reached.items():
            reached = "never" if steps is None else f"after {steps:.1f} steps"
            tell(f"{one.start}, {step} steps: reached from zero {reached}")
    tell(f"kept in the bank as learning curves {curves.identity}")
