"""`bank finetune`: a few training steps on a dataset's own examples, from the predicted adapter on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.columns import column_options, rows_of
from cli.combining.options import merge_options, space_options
from cli.commands.assess import (
    assess_written,
    check_written,
    compare_option,
    max_examples_option,
    test_option,
)
from cli.commands.sharing.adapters import push_options, push_written, repository_of
from cli.display import print_json, print_table, shown_progress, tell
from cli.formats import format_options, gguf_of, tell_gguf, what_loads
from cli.option_rules import CheckedCommand
from cli.options import (
    Parameters,
    approach_option,
    approach_parameters,
    bank_option,
    cluster_of,
    cluster_options,
    device_option,
    dtype_option,
    examples_option,
    json_option,
    metric_option,
    metric_parameters,
    on_command_line,
    opened,
    overwrite_option,
    threads_option,
)
from compute.finetuning.options import LEARNING_RATE

if TYPE_CHECKING:
    from compute.finetuning.finetuned import Finetuned
    from compute.finetuning.options import FinetuneOptions


def _seed_of_both(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of approaches, with a `--seed` that is of training too."""
    function = approach_parameters(function)
    options: list[click.Option] = function.__click_params__  # type: ignore[attr-defined]
    (seed,) = (option for option in options if option.name == "seed")
    seed.help = "Draws the examples, their order and the start from zero; also of neural."
    return function


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank finetune my-data.jsonl --out my-adapter\n"
    "  bank finetune my-data.jsonl --out my-adapter --budget 10m --examples all\n"
    "  bank finetune my-data.jsonl --out my-adapter --metric tf-idf --steps 16\n"
    "  bank finetune my-data.jsonl --out better --start my-adapter --steps 16",
)
@bank_option
@click.argument("newdata", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the new adapter.")
@click.option(
    "--start",
    default="predicted",
    show_default=True,
    metavar="predicted|zero|NAME|FOLDER",
    help="What training begins with: the adapter that `bank predict` makes, with all of its options; one that changes "
    "nothing; an adapter of the bank; or the folder of one that fits its base model.",
)
@click.option("--steps", type=click.IntRange(1, 1_000_000), default=8, show_default=True, help="Of training.")
@click.option(
    "--budget",
    metavar="TIME",
    help="In place of --steps: as many as fit into this time of training, such as 10m.",
)
@examples_option(
    "Drawn from NEWDATA, at the most; a fifth of them is held out, to see which step is the best. Of selected too."
)
@click.option(
    "--batch-size", type=click.IntRange(1, 65_536), default=8, show_default=True, help="Examples of a step."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 1e3, min_open=True),
    default=LEARNING_RATE,
    show_default=True,
    help="Of AdamW; lower in the first three steps, but from zero.",
)
@click.option("--model", help="Folder or hub name of the base model; the bank's base model if not given.")
@click.option(
    "--train-dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="What the base model is read in; 'auto' is bfloat16 where that is clearly faster here, or where float32 does "
    "not fit.",
)
@device_option("To train on.")
@threads_option("Cores to train on; all if not given.")
@metric_option(many=True)
@approach_option(which="One is taken.")
@metric_parameters
@_seed_of_both
@space_options
@merge_options
@click.option("--name", help="Name of the new dataset; its file's or folder's if not given.")
@click.option(
    "--include-same", is_flag=True, help="Use an entry of the bank even if it holds the very same data."
)
@test_option
@compare_option
@max_examples_option
@column_options
@dtype_option
@format_options
@push_options
@overwrite_option
@json_option
@cluster_options
def finetune(bank_path: Path, newdata: Path, **other: Any) -> None:
    """Train an adapter for NEWDATA for a few steps on its own examples, from the predicted one on.

    NEWDATA is a file (JSONL, JSON, CSV, Parquet) or a folder with a training split. Before it trains, it tells what
    memory is needed; after the first step, how long it will take. Of the start and the steps that are looked back on
    (powers of two, and the last), the one with the lowest loss on the examples held out is written. A command that was
    killed goes on when it is run again. Needs the extra torch.
    """
    import compute
    from bankdb.peft.folder import check_free, clear_unfinished
    from bankdb.sources.pairs import check_name
    from compute.prediction.predict import dataset_name

    options, out, progress = _options(other), other["out"], shown_progress()
    parameters = Parameters(other)
    metrics, approaches = other["metrics"], other["approaches"]
    if "all" in (*metrics, *approaches) or len(metrics) > 1 or len(approaches) > 1:
        raise click.UsageError("NEWDATA takes one --metric and one --approach")
    (way,) = parameters.combinations(metrics, approaches)
    name = other["name"] or dataset_name(newdata)
    check_name(name)
    check_free(out, other["overwrite"])
    to = repository_of(other)
    # Tested in float32, whatever it was trained on in; how prompts are batched is of no matter.
    test = {**other, "batch_size": None, "model_dtype": "float32"}
    with opened(bank_path) as bank:
        cluster, gguf = cluster_of(other), gguf_of(bank, other, other["model"])
        check_written(bank, test)
        made = compute.finetune(
            bank,
            newdata,
            options,
            replace(way, space=other["space"], rank=other["rank"]),
            name=name,
            **rows_of(other),
            include_same=other["include_same"],
            checkpoints=_checkpoints(out),
            cluster=cluster if cluster.remote else replace(cluster, processes=False),
            memory=cluster.memory,
            progress=progress,
        )
        clear_unfinished(out.absolute().parent, {out.absolute().name})
        folder = made.save(out, dtype=other["dtype"], overwrite=other["overwrite"], gguf=gguf)
        if not other["as_json"]:
            _tell(made, folder, other["file_format"])
            tell_gguf(gguf)
        assessed = assess_written(bank, folder, newdata, test, progress)
    pushed = push_written(to, folder, other)
    if other["as_json"]:
        print_json(_record(made, folder, other["dtype"]) | assessed | pushed)


def _options(other: dict[str, Any]) -> FinetuneOptions:
    from compute.finetuning.options import FinetuneOptions, parse_seconds

    if other["budget"] is not None and on_command_line(click.get_current_context(), "steps"):
        raise click.UsageError("--budget is in place of --steps: give one of them")
    return FinetuneOptions(
        start=other["start"],
        steps=other["steps"],
        budget=None if other["budget"] is None else parse_seconds(other["budget"]),
        examples=other["examples"],
        batch_size=other["batch_size"],
        learning_rate=other["learning_rate"],
        seed=other["seed"],
        train_dtype=other["train_dtype"],
        model=other["model"],
        device=other["device"],
        threads=other["threads"],
    )


def _checkpoints(out: Path) -> Path:
    """Beside the folder that is written, hidden."""
    whole = Path(os.path.abspath(out))
    return whole.with_name(f".{whole.name}.checkpoint")


def _record(made: Finetuned, folder: Path, dtype: str) -> dict[str, Any]:
    course = made.course
    return {
        "name": made.name,
        "folder": str(folder),
        "start": made.start.origin,
        "steps": course.steps,
        "step_kept": course.kept,
        "losses": list(made.losses),
        "held_out_losses": {str(step): loss for step, loss in made.held_out_losses.items()},
        "examples": made.provenance(dtype)["finetuned"]["examples"],
        "learning_rate": made.options.learning_rate,
        "train_dtype": course.reading.dtype,
        "seconds": course.seconds,
    }


def _tell(made: Finetuned, folder: Path, file_format: str) -> None:
    rows = [
        (step, made.losses[step - 1] if step else None, loss)
        for step, loss in sorted(made.held_out_losses.items())
    ]
    print_table(("step", "loss on its batch", "held-out loss"), rows)
    tell(made.sentence())
    tell(f"wrote {folder}/, {what_loads(file_format)}")


COMMANDS = (finetune,)
