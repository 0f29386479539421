"""Commands about what a bank holds: init, ingest, list, show, verify, group, remove."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cli.columns import column_options, rows_of
from cli.commands.ingesting.hub import hub_options, sources_of
from cli.completion import complete_adapters, complete_groups
from cli.display import print_json, print_table, shown_progress, tell
from cli.option_rules import CheckedCommand
from cli.options import (
    bank_option,
    cluster_of,
    cluster_options,
    json_option,
    opened,
)
from cli.shown_bank import bank_values, print_bank
from cli.stored import listed_values, shown_values, tell_ingested


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n  bank init --like lots-of-loras\n"
    "  bank init --base-model mistralai/Mistral-7B-Instruct-v0.2 \\\n"
    "      --tokenizer ./mistral-7b\n"
    "  bank init --base-model ... --tokenizer ... --arrays s3://bucket/my-bank",
)
@bank_option
@click.option("--base-model", help="Name of the base model, as the adapters' configurations have it.")
@click.option("--tokenizer", help="Folder or hub name of the base model's tokenizer.")
@click.option(
    "--like",
    metavar="NAME",
    help="A known public bank, such as lots-of-loras: base model, tokenizer and aliases as there, unless given.",
)
@click.option(
    "--alias", "aliases", multiple=True, help="Another name under which adapters may state the base model."
)
@click.option(
    "--database",
    metavar="URL",
    help="Keep the catalogue in an empty PostgreSQL database, postgresql+psycopg://USER@HOST/DATABASE, instead "
    "of in a file; the password is best given as PGPASSWORD or in ~/.pgpass. See docs/storage.md.",
)
@click.option(
    "--arrays",
    metavar="URL",
    help="Keep the arrays there: s3://BUCKET/PREFIX, or another folder. It has to be empty. See docs/storage.md.",
)
@json_option
def init(
    bank_path: Path,
    base_model: str | None,
    tokenizer: str | None,
    like: str | None,
    aliases: tuple[str, ...],
    database: str | None,
    arrays: str | None,
    as_json: bool,
) -> None:
    """Make an empty bank for one base model."""
    import bankdb
    from bankdb.gguf.base_model import BASE_CONFIG

    if arrays is not None and arrays.startswith("memory:"):
        raise bankdb.ParameterError(
            f"{arrays}: only lasts as long as the process that writes it; choose another place"
        )
    with bankdb.create(
        bank_path,
        base_model=base_model,
        tokenizer=tokenizer,
        aliases=aliases,
        like=like,
        database=database,
        arrays=arrays,
    ) as bank:
        record = bank.record
        notes = bank.tokenizer.notes
    for note in notes:
        tell(note, err=True)
    if as_json:
        print_json(asdict(record))
        return
    tell(f"made {bank_path}: base model {record.base_model}, tokenizer of {record.vocabulary:,} ids")
    if (bank_path / BASE_CONFIG).is_file():
        tell(f"kept the base model's config.json as {BASE_CONFIG}, for --format gguf")
    if like is not None:
        from bankdb.public.known import known_bank

        tell(f"its adapters: bank ingest --hub {known_bank(like).owner}")


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank ingest ./pairs          datasets/NAME/ and adapters/NAME/\n"
    "  bank ingest manifest.csv     columns name, adapter, dataset, group, licence\n"
    "  bank ingest --hub OWNER      all of its adapters that fit\n"
    "  bank ingest --hub OWNER/ADAPTER@REV=OWNER/DATASET@REV",
)
@bank_option
@click.argument("sources", nargs=-1, metavar="[FOLDER|MANIFEST|ID]...")
@hub_options
@column_options
@click.option(
    "--group-pattern", metavar="REGEX", help="Its first group, found in a name, is the dataset's group."
)
@click.option(
    "--downloads",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Pairs that come from the hub at a time, while others are tokenized and stored.",
)
@click.option(
    "--no-cache",
    "keep_downloads",
    flag_value=False,
    default=True,
    help="Delete what was downloaded of a pair once it is stored; what was in the hub's cache before stays.",
)
@click.option(
    "--replace", is_flag=True, help="Store a pair anew where the bank has other content under its name."
)
@click.option(
    "--assume-base-model",
    is_flag=True,
    help="Take adapters whose configuration names no base model for ones of the bank's.",
)
@click.option(
    "--adapt-rank",
    is_flag=True,
    help="Take adapters of another rank: padded with zeros, which changes nothing, or cut, which says what is lost.",
)
@json_option
@cluster_options
def ingest(
    bank_path: Path,
    sources: tuple[str, ...],
    group_pattern: str | None,
    memory: str | None,
    downloads: int,
    keep_downloads: bool,
    replace: bool,
    assume_base_model: bool,
    adapt_rank: bool,
    as_json: bool,
    **other: Any,
) -> None:
    """Store pairs of an adapter and the dataset it was trained on.

    A pair that is there already is skipped. One that cannot be stored is named at the end and leaves
    nothing behind; the others are stored, and the exit status is 1.

    With --scheduler, --scheduler-file or --workers, workers tokenize; they have to find the datasets and the bank.
    """
    import compute
    from bankdb.records import Taking
    from compute.cluster.machine import parse_memory

    with opened(bank_path) as bank:
        chosen = sources_of(bank, sources, other, as_json)
        if chosen is None:
            return
        report = compute.ingest(
            bank,
            list(chosen),
            cluster=cluster_of({**other, "memory": memory}),
            group_pattern=group_pattern,
            **rows_of(other),
            replace=replace,
            taking=Taking(assume_base_model, adapt_rank),
            memory=None if memory is None else parse_memory(memory),
            downloads=downloads,
            keep_downloads=keep_downloads,
            progress=shown_progress(),
        )
        total, task_types = len(bank), bank.origins.task_types()
        written_as = bank.origins.task_type()
    if task_types.keys() - {written_as} and not as_json:
        stated = ", ".join(f"{task or 'none'} by {count}" for task, count in task_types.most_common())
        tell(f"note: task_type is stated as {stated}; predictions are written as {written_as}")
    tell_ingested(report, total, as_json)
    if report.refused:
        sys.exit(1)


@click.command(
    "list",
    cls=CheckedCommand,
    epilog="\b\nExamples:\n  bank list --json\n  bank list --limit 100 --offset 1900     a page of a large bank",
)
@bank_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many; all if not given.")
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Leave out so many before.")
@json_option
def list_adapters(bank_path: Path, limit: int | None, offset: int, as_json: bool) -> None:
    """List the adapters in the bank, in the order in which they were stored."""
    with opened(bank_path) as bank:
        every = bank.adapters()
    records = every[offset:] if limit is None else every[offset : offset + limit]
    if as_json:
        print_json([listed_values(record) for record in records])
        return
    if not every:
        tell("the bank has no adapters yet; add some with `bank ingest`")
        return
    headings = ("name", "group", "examples", "tokens", "rank", "dtype", "licence")
    print_table(
        headings,
        [(r.name, r.group, r.examples, r.tokens, r.rank, r.dtype, r.licence) for r in records],
        same=True,
    )
    if len(records) < len(every):
        tell(f"{len(records):,} of {len(every):,} adapters, from number {offset + 1:,} on")


@click.command(cls=CheckedCommand, epilog="\b\nExamples:\n  bank show\n  bank show task1391")
@bank_option
@click.argument("name", required=False, shell_complete=complete_adapters)
@json_option
def show(bank_path: Path, name: str | None, as_json: bool) -> None:
    """Show everything about one adapter, or about the bank itself.

    Of the bank: where its parts are, what its adapters are, what takes how much space, and what is stored of runs.
    """
    with opened(bank_path) as bank:
        values = bank_values(bank) if name is None else shown_values(bank, name)
    if as_json:
        print_json(values)
        return
    if name is None:
        print_bank(values)
        return
    print_table(
        ("", ""), [(key.replace("_", " "), str(value)) for key, value in values.items() if value is not None]
    )


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n  bank verify --repair\n  bank verify --scheduler tcp://10.0.0.1:8786",
)
@bank_option
@click.option(
    "--repair",
    is_flag=True,
    help="Restore damaged rows from their sources, clear leftovers, move foreign files to orphans/.",
)
@json_option
@cluster_options
def verify(bank_path: Path, repair: bool, as_json: bool, **where: Any) -> None:
    """Read every stored row again, compare checksums, and find what lies about.

    With --scheduler, --scheduler-file or --workers, workers read the rows; they have to find the bank's arrays.

    Exit status 1 if anything that the bank calls ready is damaged, or files are there that are not its own.
    """
    with opened(bank_path) as bank:
        import compute

        report = compute.verify(bank, repair=repair, cluster=cluster_of(where), progress=shown_progress())
    if as_json:
        print_json(asdict(report) | {"clean": report.clean})
    else:
        for line in report.repaired:
            tell(f"repaired: {line}")
        for line in report.leftovers:
            tell(f"leftover: {line}")
        for line in report.damage:
            tell(f"damage: {' '.join(line.split())}", err=True)
        tell(f"{report.checked} adapters checked: {'clean' if report.clean else 'NOT clean'}")
    if not report.clean:
        sys.exit(1)


@click.command(cls=CheckedCommand, epilog="\b\nExample:\n  bank remove task1391")
@bank_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_adapters)
def remove(bank_path: Path, names: tuple[str, ...]) -> None:
    """Remove adapters and their datasets from the bank."""
    with opened(bank_path) as bank:
        for name in names:
            bank.catalog.adapter(name)
        for name in names:
            bank.remove(name)
            tell(f"removed {name}")


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank group --pattern '^([^_]+)_'     forms_plural is of group forms\n"
    "  bank group task1391 entailment task190 entailment\n"
    "  bank group task1391 ''              of no group",
)
@bank_option
@click.argument("names", nargs=-1, metavar="NAME GROUP...", shell_complete=complete_groups)
@click.option("--pattern", metavar="REGEX", help="Its first group, found in a name, is the dataset's group.")
@json_option
def group(bank_path: Path, names: tuple[str, ...], pattern: str | None, as_json: bool) -> None:
    """Set groups of datasets that are in the bank: those of one source, which are left out together.

    Names in which the pattern is not found keep their group. What was computed with other groups is kept, and is
    not used for these.
    """
    from bankdb.errors import ParameterError
    from bankdb.sources.pairs import groups_in_names

    if (pattern is None) == (not names) or len(names) % 2:
        raise ParameterError("expected --pattern REGEX, or names each with a group; give one of them")
    with opened(bank_path) as bank:
        before = {record.name: record for record in bank.adapters()}
        asked = dict(zip(names[::2], names[1::2], strict=True))
        if pattern is not None:
            asked = groups_in_names(before, pattern)
        for name in asked:
            bank.catalog.adapter(name)
        changed = {name: new or None for name, new in asked.items() if (new or None) != before[name].group}
        for name, new in changed.items():
            bank.catalog.set_group(name, new, before[name].licence)
        after = {record.name: record.group for record in bank.adapters()}
    if as_json:
        print_json({"changed": changed, "groups": after})
        return
    if changed:
        print_table(
            ("name", "group before", "group now"),
            [(name, before[name].group, new) for name, new in changed.items()],
        )
    grouped = [one for one in after.values() if one is not None]
    tell(
        f"{len(changed)} changed; {len(grouped)} of {len(after)} datasets have one of {len(set(grouped))} groups"
        + ("" if grouped or pattern is None else "; the pattern is found in no name")
    )


@click.command(
    cls=CheckedCommand,
    epilog="\b\nExamples:\n"
    "  bank alias add /models/mistral-7b\n"
    "  bank alias list\n"
    "  bank alias remove /models/mistral-7b",
)
@bank_option
@click.argument("action", type=click.Choice(["add", "list", "remove"]))
@click.argument("names", nargs=-1, metavar="NAME...")
@json_option
def alias(bank_path: Path, action: str, names: tuple[str, ...], as_json: bool) -> None:
    """Let adapters in that state the base model under another name, such as a path; list or remove such names.

    A name stays as long as an adapter of the bank states it.
    """
    from bankdb.errors import ParameterError
    from bankdb.storage.aliases import add_aliases, remove_aliases

    if bool(names) == (action == "list"):
        found = f"{len(names)} found" if names else "none found"
        raise ParameterError(
            f"alias {action}: {'no names were' if action == 'list' else 'a name was'} expected, {found}"
        )
    with opened(bank_path) as bank:
        base_model, aliases = bank.record.base_model, bank.record.base_model_aliases
        if action != "list":
            aliases = (add_aliases if action == "add" else remove_aliases)(bank, names)
    if as_json:
        print_json({"base_model": base_model, "aliases": list(aliases)})
        return
    tell(f"adapters may state the base model as {', '.join((base_model, *aliases))}")


COMMANDS = (init, alias, ingest, list_adapters, show, verify, group, remove)
