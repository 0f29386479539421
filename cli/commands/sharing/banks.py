"""`bank push` and `bank pull`: a whole bank, or some of it, to the hub, a folder or a tar, and back."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.completion import complete_adapters
from cli.display import print_json, shown_progress, tell
from cli.option_rules import CheckedCommand
from cli.options import bank_option, json_option, opened

if TYPE_CHECKING:
    from bankdb.sharing.pull import PullReport
    from bankdb.sharing.push import PushReport


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank push ada/my-bank               a private dataset repository on the hub\n"
    "  bank push ./shared                  a folder\n"
    "  bank push my-bank.tar 'task1*'      some adapters as one file",
)
@bank_option
@click.argument("target", metavar="OWNER/NAME|FOLDER|FILE.tar")
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_adapters)
@click.option(
    "--include-unlicensed",
    is_flag=True,
    help="Adapters that state no licence too, which are left out else: you say that you may share them.",
)
@click.option(
    "--public/--private",
    help="Who may see a repository that is made; one that is there stays as it is.  [default: private]",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Take the place of what is there, if that has other adapters or other content.",
)
@json_option
def push(
    bank_path: Path,
    target: str,
    names: tuple[str, ...],
    include_unlicensed: bool,
    public: bool,
    replace: bool,
    as_json: bool,
) -> None:
    """Give the bank away: adapters, counts of tokens, tokenizer, and a card that says what it is.

    No text of the datasets goes along, and nothing of this machine's paths. Adapters whose licence forbids it are left
    out and named. Pushed again, only what has changed is sent.
    """
    from bankdb.sharing.push import push as push_bank

    with opened(bank_path) as bank:
        report = push_bank(
            bank,
            target,
            names,
            include_unlicensed=include_unlicensed,
            public=public,
            replace=replace,
            progress=shown_progress(),
        )
    if as_json:
        print_json(asdict(report))
        return
    _tell_pushed(report)


def _tell_pushed(report: PushReport) -> None:
    from bankdb.errors import listed

    for reason, gone in report.left_out.items():
        tell(f"left out {len(gone)} {reason}: {listed(gone)}", err=True)
    if report.made:
        tell(report.made, err=True)
    tell(f"pushed {len(report.adapters)} adapters to {report.target}; `bank pull {report.target}` takes them")


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank pull ada/my-bank --bank ./my-bank\n"
    "  bank pull ada/my-bank@v1 'task1*'    some adapters, of a tag\n"
    "  bank pull my-bank.tar",
)
@bank_option
@click.argument("source", metavar="OWNER/NAME[@REV]|FOLDER|FILE.tar")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option(
    "--replace", is_flag=True, help="Store an adapter anew where the bank has other content under its name."
)
@click.option(
    "--database",
    metavar="URL",
    help="Keep a new bank's catalogue in this empty PostgreSQL database; as of `init`.",
)
@click.option("--arrays", metavar="URL", help="Where a new bank's arrays are to be; as of `init`.")
@json_option
def pull(
    bank_path: Path,
    source: str,
    names: tuple[str, ...],
    replace: bool,
    database: str | None,
    arrays: str | None,
    as_json: bool,
) -> None:
    """Take a bank that was pushed, or some of its adapters, into a new bank or one of the same kind.

    Every file is held against its checksum, and every value looked at, before an adapter is ready. One that is not
    what it should be is named at the end, and the exit status is 1. What is there already is not fetched again.
    """
    from bankdb.sharing.pull import pull as pull_bank

    report = pull_bank(
        source, bank_path, names, replace=replace, database=database, arrays=arrays, progress=shown_progress()
    )
    with opened(bank_path) as bank:
        total = len(bank)
    if as_json:
        print_json(asdict(report) | {"adapters": total})
    else:
        _tell_pulled(report, bank_path, total)
    if report.refused:
        sys.exit(1)


def _tell_pulled(report: PullReport, bank_path: Path, total: int) -> None:
    if report.made:
        tell(f"made {bank_path}, from {report.source}")
    if report.initialisations:
        tell(f"initialisation: {report.initialisations}", err=True)
    for item in report.refused:
        tell(f"refused {item.name}: {item.reason}", err=True)
    parts = [f"{len(report.added)} added", f"{len(report.skipped)} there already"]
    parts += [f"{len(report.replaced)} replaced"] if report.replaced else []
    parts += [f"{len(report.refused)} refused"] if report.refused else []
    tell(f"{', '.join(parts)}; the bank has {total} adapters")


COMMANDS = (push, pull)
