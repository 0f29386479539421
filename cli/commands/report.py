"""`bank report`: what a bank holds and what was found on it, as one HTML file."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from cli.display import shown_progress, tell
from cli.option_rules import CheckedCommand
from cli.options import (
    WHERE,
    Parameters,
    approach_option,
    bank_option,
    cluster_of,
    cluster_options,
    metric_option,
    on_command_line,
    opened,
)
from compute.approaches.registry import approaches as known_approaches


def _untrained() -> list[str]:
    return [one.name for one in known_approaches() if one.of_matrices_alone and not one.signed]


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank report --out report.html\n"
    "  bank report --out report.html --metric js --approach neural",
)
@bank_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The HTML file to write; it needs no network to be read.",
)
@metric_option(many=True, default="all")
@approach_option(_untrained, "Training a network takes minutes.", "every one for which no network is trained")
@click.option(
    "--evaluation",
    "evaluations",
    multiple=True,
    metavar="ID|FILE",
    help="An evaluation in the bank by its identity, or a file that holds one; may be given several times. "
    "The newest in the bank if not given.",
)
@click.option("--title", help="Title of the page; made from the base model's name if not given.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is already there.")
@cluster_options
def report(
    bank_path: Path,
    out: Path,
    metrics: tuple[str, ...],
    approaches: tuple[str, ...],
    evaluations: tuple[str, ...],
    title: str | None,
    overwrite: bool,
    **where: Any,
) -> None:
    """Write what the bank holds and how the approaches compare on it as one HTML file with pictures.

    Distances and coefficients that are not stored yet are computed, in threads of this process if neither a scheduler
    nor --workers is given.
    """
    import compute
    from bankdb.errors import ConflictError
    from compute.reporting.report import those_shown

    if (out.is_file() or out.is_dir()) and not overwrite:
        raise ConflictError(f"{out}: already there; choose another --out, or give --overwrite")
    context = click.get_current_context()
    progress = shown_progress()
    asked = cluster_of(where)
    with opened(bank_path) as bank:
        ways = Parameters().combinations(metrics, approaches)
        if not on_command_line(context, "approaches"):
            ways = those_shown(bank, ways, progress)
        made = compute.report(
            bank,
            out,
            ways,
            evaluations=evaluations,
            title=title,
            overwrite=overwrite,
            command=_command(context),
            cluster=replace(asked, processes=asked.workers is not None),
            progress=progress,
        )
    megabytes = out.stat().st_size / 1e6
    tell(f"wrote {out} ({megabytes:.1f} MB): {len(made.data.adapters)} adapters; open it in any browser")


def _command(context: click.Context) -> str:
    """Return the command as one would type it, but where it was computed; the paths alone as names."""
    words = ["bank", "report"]
    for option in context.command.params:
        name = option.name or ""
        if not on_command_line(context, name) or name in WHERE:
            continue
        value = context.params[name]
        for item in value if isinstance(value, tuple) else (value,):
            words.append(option.opts[-1])
            if item is not True:
                words.append(item.name if isinstance(item, Path) else str(item))
    return shlex.join(words)


COMMANDS = (report,)
