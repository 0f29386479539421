"""`bank clean`: frees the space of what a bank can make again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bankdb.space.kinds import FREEABLE, UNNAMED
from cli.display import print_json, print_table, shown_progress, tell
from cli.option_rules import CheckedCommand
from cli.options import bank_option, json_option, opened

if TYPE_CHECKING:
    from bankdb.space.freed import Freed


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank clean --dry-run\n"
    "  bank clean --yes\n"
    "  bank clean --only distances --only gram\n\n"
    "\b\nKinds:\n" + "\n".join(f"  {kind.name:<14}  {kind.about}" for kind in FREEABLE),
)
@bank_option
@click.option(
    "--only",
    "kinds",
    type=click.Choice([kind.name for kind in FREEABLE]),
    multiple=True,
    metavar="KIND",
    default=UNNAMED,
    help="Free this kind alone; may be given several times. If not given, "
    f"{', '.join(UNNAMED[:-1])} and {UNNAMED[-1]}.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be freed, and free nothing.")
@click.option("--yes", is_flag=True, help="Free it without asking.")
@json_option
def clean(bank_path: Path, kinds: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> None:
    """Free the space of what can be made again.

    The next command that needs it computes it. Adapters, datasets, the tokenizer, the catalogue and evaluations stay.
    Stored runs stay too, with the losses, the answers and the comparison of initialisations, unless they are named.
    """
    from bankdb.errors import ParameterError
    from bankdb.space.freed import free, freeable

    if as_json and not (dry_run or yes):
        raise ParameterError("--json: asks nothing; give --yes, or --dry-run to see what would be freed")
    with opened(bank_path) as bank:
        if dry_run or not yes:
            found = freeable(bank, kinds)
            if not as_json:
                _tell(found, "can be freed" if dry_run else "to be freed")
            if dry_run or not any(amount.files for amount in found.amounts.values()):
                return _end(found, as_json, freed=False)
            click.confirm("Free it?", abort=True, err=True)
        done = free(bank, kinds, shown_progress())
    if not as_json:
        _tell(done, "freed", kept=yes)
    return _end(done, as_json, freed=True)


def _tell(found: Freed, what: str, *, kept: bool = True) -> None:
    """Print how much of each kind, and of what there is none, in one line."""
    from bankdb.shown import size_text

    about = {kind.name: kind.about for kind in FREEABLE}
    there = {name: amount for name, amount in found.amounts.items() if amount.files}
    if there:
        print_table(
            ("kind", "what it is", "files", "size"),
            [(name, about[name], amount.files, size_text(amount.size)) for name, amount in there.items()],
        )
    if kept:
        for line in found.kept:
            tell(f"kept: {line}", err=True)
    tell(f"{size_text(found.size)} {what}" if there else f"nothing {what}")
    if "answers" in there:
        tell("answers are records: the database's file keeps its size, and has room for others")


def _end(found: Freed, as_json: bool, *, freed: bool) -> None:
    if as_json:
        print_json(
            {
                "freed": freed,
                "bytes": found.size,
                "kinds": {name: asdict(amount) for name, amount in found.amounts.items()},
                "kept": found.kept,
            }
        )


COMMANDS = (clean,)
