"""Commands: backup, restore."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from cli.display import print_json, shown_progress, tell
from cli.option_rules import CheckedCommand
from cli.options import bank_option, json_option, opened


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n  bank backup /backups/bank\n  bank backup /backups/catalogue --catalogue-only",
)
@bank_option
@click.argument("target", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option(
    "--catalogue-only", is_flag=True, help="Leave out the adapters' numbers; keep records and list of rows."
)
@json_option
def backup(bank_path: Path, target: Path, catalogue_only: bool, as_json: bool) -> None:
    """Keep a copy of a bank in a folder, or bring the one that is there up to date.

    Of the adapters, those that are not there yet are copied. What is computed again is left out.
    """
    from bankdb.backup.backup import backup as keep

    with opened(bank_path) as bank:
        report = keep(bank, target, catalogue_only=catalogue_only, progress=shown_progress())
    if as_json:
        print_json(asdict(report))
        return
    rows = (
        "the catalogue alone" if catalogue_only else f"{report.copied} copied, {report.there} there already"
    )
    tell(
        f"backed up {report.adapters} adapters to {target}: {rows}; what is derived is left out, it is computed again"
    )


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n  bank restore /backups/bank --bank ./new\n"
    "  bank restore /backups/bank --only catalogue     the database was lost\n"
    "  bank restore /backups/bank --only arrays        rows were lost or damaged",
)
@bank_option
@click.argument("source", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option(
    "--only", type=click.Choice(["catalogue", "arrays"]), help="Bring back one half, beside the other."
)
@click.option(
    "--database", metavar="URL", help="Put the catalogue into this empty PostgreSQL database; as of `init`."
)
@click.option("--arrays", metavar="URL", help="Where the arrays are to be, or are; as of `init`.")
@json_option
def restore(
    bank_path: Path, source: Path, only: str | None, database: str | None, arrays: str | None, as_json: bool
) -> None:
    """Make a bank of a backup, or bring back the half of it that was lost.

    `bank verify` says what a catalogue and arrays of different days have that the other lacks.
    """
    from bankdb.backup import restore as restoring

    if only == "catalogue":
        report = restoring.restore_catalogue(source, bank_path, database=database, arrays=arrays)
    elif only == "arrays":
        report = restoring.restore_rows(source, bank_path, shown_progress())
    else:
        report = restoring.restore(
            source, bank_path, database=database, arrays=arrays, progress=shown_progress()
        )
    if as_json:
        print_json({**asdict(report), "aside": None if report.aside is None else str(report.aside)})
    else:
        rows = "" if only == "catalogue" else f": {report.written} rows written, {report.there} there already"
        tell(f"restored {only or 'a bank'} of {report.adapters} adapters in {bank_path}{rows}")
        if report.aside is not None:
            tell(f"the catalogue that was there is kept as {report.aside}")
        if only == "catalogue":
            tell(
                "run `bank verify`: it names rows that this catalogue lacks, and adapters whose rows are gone"
            )
        for name in report.missing:
            tell(
                f"missing: {name}: neither the bank nor the backup has its row; `bank verify --repair`",
                err=True,
            )
    if report.missing:
        sys.exit(1)


COMMANDS = (backup, restore)
