"""Adapters on a user's own test examples: what `bank evaluate --adapter` does, and other commands at their end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.columns import rows_of
from cli.display import print_json, print_table, tell, write_csv
from cli.options import device_option, on_command_line, opened, threads_option, together

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from bankdb.progress import Progress
    from compute.assessment.assess import AssessmentOptions
    from compute.assessment.records import Assessment

_SAMPLES, _LONGEST = 5, 160

compare_option = click.option(
    "--compare",
    multiple=True,
    type=click.Choice(["uniform", "nearest"]),
    help="Also predict this from the bank, to compare with: the mean of all its adapters, or the one whose dataset is "
    "nearest by Jensen-Shannon; may be given several times.",
)
max_examples_option = click.option(
    "--max-examples",
    default="30",
    show_default=True,
    metavar="N|all",
    help="Use the first N test examples of each target, or of --test; or all.",
)
generating_options = together(
    device_option("To generate on."),
    click.option(
        "--batch-size",
        type=click.IntRange(1, 65_536),
        help="Prompts of a batch; chosen by their lengths if not given.",
    ),
    threads_option("Cores to generate on; all if not given."),
)
test_option = click.option(
    "--test",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Then answer the test examples in this file or folder by the base model and the new adapter, and tell "
    "whether it helps; needs the extra torch.",
)
test_options = together(
    test_option,
    compare_option,
    max_examples_option,
    click.option("--model", help="Folder or hub name of the base model; the bank's if not given."),
    click.option(
        "--model-dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="Of the base model that answers.",
    ),
    generating_options,
)
"""What a command that writes an adapter takes to test it: `check_written` before, and `assess_written` at its end."""


def examples_asked(text: str) -> int | None:
    """Return what `--max-examples` says; None is all."""
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise click.UsageError(f"--max-examples: expected a number of at least 1, or all, found {text!r}")
    return None if text == "all" else int(text)


def assessment_options(other: Mapping[str, Any], dtype: str) -> AssessmentOptions:
    """Return how to assess, from what a command was given; what else is among it is left alone."""
    from compute.assessment.assess import AssessmentOptions
    from compute.cluster.machine import parse_memory
    from compute.evaluation.bootstrap import RESAMPLES
    from compute.generation.machine import Machine

    memory = other.get("memory")
    return AssessmentOptions(
        model=other["model"],
        max_examples=examples_asked(other["max_examples"]),
        **rows_of(other),
        machine=Machine(other["device"], dtype, other["batch_size"], other["threads"]),
        memory=None if memory is None else parse_memory(memory),
        resamples=other.get("resamples", RESAMPLES),
        # Of a command that writes an adapter it is of something else.
        seed=other["seed"] if "resamples" in other else 0,
    )


# -- at the end of a command that writes an adapter ---------------------------------------------------


def check_written(bank: AdapterBank, other: Mapping[str, Any]) -> None:
    """Raise what would end `assess_written`, as far as that is known before there is an adapter."""
    if other["test"] is None:
        return
    from compute.assessment.assess import check_test
    from compute.generation.base_model import model_folder

    options = assessment_options(other, other["model_dtype"])
    check_test(other["test"], options, lambda: bank.tokenizer.chat_template)
    model_folder(other["model"] or bank.record.base_model)


def assess_written(
    bank: AdapterBank, folder: Path, data: Path, other: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """Assess an adapter that was just written, if a test was asked for; its card and its provenance get the figures.

    Returns
    -------
    What the command's JSON has more; empty without a test. Without `--json` it is printed.
    """
    if other["test"] is None:
        return {}
    import compute
    from compute.assessment.measured import add_measured
    from compute.assessment.records import ADAPTER

    compare = other["compare"]
    found = compute.assess(
        folder,
        other["test"],
        assessment_options(other, other["model_dtype"]),
        bank=bank,
        compare=compare,
        data=data if compare else None,
        progress=progress,
    )
    (name,) = (one.name for one in found.systems if one.kind == ADAPTER)
    add_measured(folder, found, name)
    if not other["as_json"]:
        print_assessment(found)
        tell(f"{folder}/README.md and provenance.json have these figures")
    return {"assessment": found.as_record()}


# -- `bank evaluate --adapter` ------------------------------------------------------------------------


def assess_adapters(bank_path: Path, other: Mapping[str, Any], progress: Progress) -> None:
    """Assess the adapters that were given, and print or write what was found."""
    import contextlib

    import compute

    if other["test"] is None:
        raise click.UsageError("--adapter needs --test FILE, the test examples to answer")
    options = assessment_options(other, other["dtype"])
    with contextlib.ExitStack() as stack:
        bank = None
        if _wants_bank(bank_path, other):
            bank = stack.enter_context(opened(bank_path))
        found = compute.assess(
            list(other["adapters"]),
            other["test"],
            options,
            bank=bank,
            compare=other["compare"],
            data=other["data"],
            progress=progress,
        )
    _tell(found, other)


def _wants_bank(path: Path, other: Mapping[str, Any]) -> bool:
    """Whether to open the bank: one that was asked for has to be there, another is used if it is."""
    context = click.get_current_context()
    asked = on_command_line(context, "bank_path") or bool(other["compare"])
    return asked or any((path / name).exists() for name in ("bank.db", "bank.json"))


def _tell(found: Assessment, other: Mapping[str, Any]) -> None:
    csv, out = other["csv"], other["out"]
    if csv is not None:
        write_csv(csv, found.to_csv())
        if str(csv) != "-":
            tell(f"wrote {csv}", err=True)
    if out is not None:
        found.save(out, overwrite=True)
        tell(f"wrote {out}/", err=True)
    if other["as_json"]:
        print_json(found.as_record())
    elif csv is None or str(csv) != "-":
        print_assessment(found)


def print_assessment(found: Assessment) -> None:
    """Print the table, a few answers, and what it means."""
    from bankdb.errors import one_line
    from compute.evaluation.bootstrap import LEAST_UNITS

    headings, rows = found.rows()
    title = f"{len(found)} test examples of {found.test}, base model {found.settings['model']}"
    print_table(headings, rows, title=title)
    if len(found) >= LEAST_UNITS:
        tell("in brackets: 95% intervals, paired bootstrap over the examples")
    else:
        tell(f"without intervals where there are fewer than {LEAST_UNITS} examples: they would be too short")
    width = max(len(name) for name in ("expected", *(one.name for one in found.systems))) + 1
    for index in range(min(_SAMPLES, len(found))):
        tell("")
        tell(f"example {index + 1}: {_end_of(found.inputs[index])}")
        expected = " | ".join(found.references[index])
        tell(f"  {'expected:':<{width}} {one_line(expected, _LONGEST)}")
        for one in found.systems:
            tell(f"  {one.name + ':':<{width}} {one_line(one.answers[index], _LONGEST)}")
    tell("")
    for sentence in found.sentences():
        tell(sentence)


def _end_of(text: str) -> str:
    """Return a text on one line, of a long one its end: there the question mostly is."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else "…" + line[1 - _LONGEST :]
