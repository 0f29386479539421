"""`bank evaluate`: does a predicted adapter help? Measured by generation on the test splits."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.columns import column_options
from cli.combining.options import merge_options, space_options
from cli.commands.assess import (
    assess_adapters,
    compare_option,
    examples_asked,
    generating_options,
    max_examples_option,
)
from cli.commands.evaluating.curves import curve_options, one_way, print_curves
from cli.commands.evaluating.weights import (
    WeightsOutput,
    print_sizes,
    print_weights,
    size_curves,
    sizes_option,
    sizes_record,
    write_sizes,
)
from cli.completion import complete_adapters
from cli.display import print_json, print_table, shown_progress, tell, write_csv
from cli.option_rules import CheckedCommand
from cli.options import (
    Parameters,
    approach_option,
    approach_parameters,
    bank_option,
    cluster_of,
    cluster_options,
    json_option,
    metric_option,
    metric_parameters,
    on_command_line,
    opened,
)
from compute.approaches.registry import approaches as known_approaches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bankdb.bank import AdapterBank
    from bankdb.progress import Progress
    from compute.approaches.options import PredictionOptions
    from compute.evaluation.bank_sizes import SizeCurve
    from compute.evaluation.evaluate import EvaluationOptions
    from compute.evaluation.records import Evaluation
    from compute.evaluation.tables import Summary


def _of_the_paper() -> list[str]:
    return [approach.name for approach in known_approaches() if approach.of_the_paper]


def _leave_out_of_both(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of approaches, with `--leave-out both` in place of its one of two."""
    function = approach_parameters(function)
    options: list[click.Option] = function.__click_params__  # type: ignore[attr-defined]
    (old,) = (option for option in options if option.name == "leave_out")
    old.type = click.Choice(["adapter", "group", "both"])
    old.help = "Predict each adapter from all others, from those of other groups, or once each way."
    return function


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank evaluate --model ./smollm2-135m-instruct\n"
    "  bank evaluate --metric js --approach normalized --leave-out both\n"
    "  bank evaluate --targets task1391 --targets task190 --out results\n"
    "  bank evaluate --weights-only --approach ridge --bank-sizes 4,8,16,32\n"
    "  bank evaluate --adapter my-adapter --test my-test.jsonl --compare uniform",
)
@bank_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="In place of the bank's tasks: assess this adapter, whoever made it, on --test; may be given several times.",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --adapter: the test examples, a file or a folder with test.jsonl.",
)
@compare_option
@column_options
@click.option(
    "--targets",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_adapters,
    help="Evaluate this one; may be given several times; all if not.",
)
@metric_option(many=True, default="all")
@approach_option(
    _of_the_paper,
    "'all' is every one that does not know the answer and reads no labels. The base model, own adapters, uniform and "
    "nearest (by Jensen-Shannon) are always there.",
    "the paper's",
)
@metric_parameters
@_leave_out_of_both
@space_options
@merge_options
@max_examples_option
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder with NAME/test.jsonl, if test splits are not beside the training splits that were ingested. With "
    "--adapter and --compare: the training examples that belong to --test, which are compared with the bank's datasets "
    "in place of the test's inputs.",
)
@click.option(
    "--model",
    help="Folder or hub name of the base model; if not given the bank's, or with --adapter the one that it states.",
)
@generating_options
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the base model, and of the weights after an adapter is merged; on a CPU, float32 is the fastest.",
)
@click.option(
    "--resamples",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="Of the bootstrap over targets, or over the examples of --test.",
)
@click.option("--csv", type=click.Path(path_type=Path), help="Write the tables as CSV; - is the screen.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for systems.csv, targets.csv and evaluation.json; with --adapter systems.csv, examples.csv and "
    "assessment.json.",
)
@curve_options
@click.option(
    "--weights-only",
    is_flag=True,
    help="Generate nothing and need no torch: how near predictions are to the trained weights.",
)
@click.option(
    "--bank-sizes",
    callback=sizes_option,
    metavar="N,N,...",
    help="Also the distance in weights of predictions from nested random subsets of so many adapters, printed, and "
    "with --out drawn; of all approaches that train no network.",
)
@click.option(
    "--draws",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    help="Random subsets of each size.",
)
@json_option
@cluster_options
def evaluate(
    bank_path: Path,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    **other: Any,
) -> None:
    """Measure on the test splits whether predicted adapters help: Rouge-L and exact match.

    With --adapter FOLDER and --test FILE: whether these adapters help on your own test examples, against the base
    model. A bank is needed for --compare alone; where there is one of the same base model, it keeps the answers.

    Without, answers are generated greedily by the base model, by each target's own adapter, and by the adapter that
    each metric and approach predicts for it from the others. They are kept in the bank: a command that was
    killed goes on where it was, and the same command again generates nothing. Needs the extra torch.

    A target without a test split is named at the end, and the exit status is 1.
    """
    if other["adapters"]:
        assess_adapters(bank_path, other, shown_progress())
        return
    if other["test"] is not None:
        raise click.UsageError("--test needs --adapter FOLDER, the adapter to assess")
    if other["finetune"]:
        metrics, approaches = one_way(metrics, approaches)
    # What is left out is told for each way, once the ways are known.
    combinations = _combinations(Parameters({**other, "leave_out": "adapter"}), metrics, approaches)
    left_out = ["adapter", "group"] if other["leave_out"] == "both" else [other["leave_out"]]
    weights = WeightsOutput(
        other["bank_sizes"], other["draws"], other["seed"], other["csv"], other["out"], other["as_json"]
    )
    progress = shown_progress()
    with opened(bank_path) as bank:
        _ = bank.layout
        left_out = _sensible(bank, left_out, progress)
        if other["finetune"]:
            print_curves(bank, combinations, left_out, _options(other), other, cluster_of(other), progress)
            return
        if "all" in approaches or not on_command_line(click.get_current_context(), "approaches"):
            from compute.prediction.ways import those_that_fit

            combinations = those_that_fit(bank, combinations, progress)
        if other["weights_only"]:
            print_weights(bank, combinations, left_out, weights, cluster_of(other), progress)
            return
        evaluation = _evaluated(bank, combinations, left_out, other, progress)
        curves = size_curves(bank, combinations, left_out, weights, progress)
    _tell(evaluation, curves, other["csv"], other["out"], other["as_json"])
    if evaluation.failures:
        for failure in evaluation.failures:
            tell(f"not evaluated: {failure.reason}", err=True)
        raise click.exceptions.Exit(1)


def _sensible(bank: AdapterBank, left_out: list[str], progress: Progress) -> list[str]:
    """Return what to leave out: of both, not groups where there are none, which would be the same figures again."""
    if len(left_out) > 1 and not any(record.group for record in bank.adapters()):
        progress.note(
            "no dataset has a group: groups are not left out; set them with `bank group --pattern REGEX`, "
            "or give --group-pattern to `bank ingest`"
        )
        return ["adapter"]
    return left_out


def _combinations(
    parameters: Parameters, metrics: tuple[str, ...], approaches: tuple[str, ...]
) -> list[PredictionOptions]:
    if "all" in approaches:
        every = (known for known in known_approaches() if not (known.knows_answer or known.reads_labels))
        approaches = (*(known.name for known in every), *approaches)
    return parameters.combinations(metrics, tuple(name for name in approaches if name != "all"))


def _evaluated(
    bank: AdapterBank,
    combinations: list[PredictionOptions],
    left_out: list[str],
    other: dict[str, Any],
    progress: Progress,
) -> Evaluation:
    import compute

    ways = [replace(way, leave_out=one) for one in left_out for way in combinations]
    # Delta space comes beside factors; the same ways again are left out by their names.
    ways += [replace(way, space=other["space"], rank=other["rank"]) for way in ways]
    return compute.evaluate(bank, ways, _options(other), cluster=cluster_of(other), progress=progress)


def _options(other: dict[str, Any]) -> EvaluationOptions:
    from compute.evaluation.evaluate import EvaluationOptions
    from compute.generation.machine import Machine

    return EvaluationOptions(
        targets=other["targets"],
        data=other["data"],
        max_examples=examples_asked(other["max_examples"]),
        model=other["model"],
        machine=Machine(other["device"], other["dtype"], other["batch_size"], other["threads"]),
        resamples=other["resamples"],
        seed=other["seed"],
    )


def _tell(
    evaluation: Evaluation, curves: list[SizeCurve], csv: Path | None, out: Path | None, as_json: bool
) -> None:
    from compute.evaluation.correlation import correlation_record, weight_correlations
    from compute.evaluation.tables import summary_csv, summary_record

    found = evaluation.summaries()
    if csv is not None and str(csv) == "-":
        write_csv(csv, summary_csv(found))
    elif csv is not None:
        write_csv(csv, summary_csv(found))
        tell(f"wrote {csv}", err=True)
    if out is not None:
        evaluation.save(out, overwrite=True)
        write_sizes(curves, out)
        tell(f"wrote {out}/", err=True)
    if as_json:
        print_json(
            {
                "identity": evaluation.identity,
                "settings": dict(evaluation.settings),
                "bank": dict(evaluation.bank),
                "seconds": evaluation.seconds,
                "targets": [asdict(target) for target in evaluation.targets],
                "systems": [summary_record(one) for one in found],
                "weight_correlations": [correlation_record(one) for one in weight_correlations(evaluation)],
                "bank_sizes": sizes_record(curves),
                "failures": [asdict(failure) for failure in evaluation.failures],
            }
        )
    elif csv is None or str(csv) != "-":
        _print(evaluation, found)
        print_sizes(curves)


def _print(evaluation: Evaluation, found: list[Summary]) -> None:
    from compute.evaluation.bootstrap import LEAST_UNITS
    from compute.evaluation.systems import PAPER_SHARE
    from compute.evaluation.tables import best_predictions, shown_interval, table1, table3

    examples = sum(target.examples for target in evaluation.targets)
    headings, rows = table1(found)
    tasks = f"{len(evaluation.targets)} tasks, {examples} test examples"
    print_table(headings, rows, title=f"Mean and standard deviation over {tasks}")
    headings, rows = table3(found)
    print_table(headings, rows, title="Differences of the means, with 95% intervals (bootstrap over tasks)")
    if any(one.rouge_to_base is not None and not one.rouge_to_base.has_bounds for one in found):
        tell(
            f"without intervals where there are fewer than {LEAST_UNITS} tasks or groups: they would be too short"
        )
    for left_out, best in best_predictions(found).items():
        share = best.gap_share
        closed = (
            "there is no gap to close"
            if share is None
            else (
                f"closes {shown_interval(share, percent=True)} of the Rouge-L gap between base model and own adapters"
            )
        )
        tell(f"best by leaving out the {left_out}: {best.system.name}, {closed}")
    tell(f"the paper's best, jensen-shannon normalized, closes {PAPER_SHARE:.0%} on its 502 tasks")
    for line in _correlations(evaluation):
        tell(line)
    tell(f"kept in the bank as evaluation {evaluation.identity}")


def _correlations(evaluation: Evaluation) -> Iterator[str]:
    """Say whether nearness in weights went with Rouge-L; -1 where the nearest answers best."""
    from compute.evaluation.correlation import weight_correlations

    for found in weight_correlations(evaluation):
        across = "none" if found.across is None else f"{found.across:+.2f}"
        within = found.within
        within_one = "none" if within is None else f"{within.estimate:+.2f}"
        if within is not None and within.has_bounds:
            within_one += f" [{within.low:+.2f}, {within.high:+.2f}]"
        yield (
            f"rank correlation of weight error with Rouge-L, {found.leave_out} left out: {across} over the means of "
            f"{found.systems} systems, {within_one} over systems on one task, mean of {found.targets} tasks"
        )


COMMANDS = (evaluate,)
