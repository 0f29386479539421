"""`bank ingest --hub` and `--hub-collection`: which pairs are meant, what was found, and whether to begin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.display import print_json, tell
from cli.options import together

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from bankdb.public.found import FoundPairs
    from bankdb.public.sources import Searched, WideSource
    from bankdb.records import AdapterRecord

_MOST_REASONS = 20

hub_options: Callable[[Callable[..., Any]], Callable[..., Any]] = together(
    click.option(
        "--hub",
        is_flag=True,
        help="The arguments are on the Hugging Face hub: OWNER for all adapters that fit the bank; "
        "ADAPTER[@REV]=DATASET[@REV]; or ADAPTER[@REV] where its model card names the dataset, or whose folders are "
        "adapters.",
    ),
    click.option(
        "--hub-collection",
        "collections",
        multiple=True,
        metavar="ID",
        help="A collection on the hub, OWNER/TITLE-HASH as in its address.",
    ),
    click.option(
        "--include",
        multiple=True,
        metavar="GLOB",
        help="Of what is listed, those alone whose name, or whose dataset's name, is like this, such as '*-r16-*'.",
    ),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Of what is listed, not these."),
    click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="Of what is listed, the first N by name."
    ),
    click.option("--dry-run", is_flag=True, help="Show what is found on the hub, and download nothing."),
    click.option("--yes", is_flag=True, help="Begin without asking, as scripts have to."),
)


def sources_of(
    bank: AdapterBank, sources: Sequence[str], settings: Mapping[str, Any], as_json: bool
) -> Sequence[WideSource] | None:
    """Return the sources of an ingest, with what was found on the hub in place of what stands for many pairs.

    None where that was to be shown alone. Asks whether to begin, unless `--yes` does, or nothing is listed.

    Raises
    ------
    ParameterError
        No source is given, or nobody can be asked.
    """
    from bankdb.errors import ParameterError
    from bankdb.public.selection import Selection
    from bankdb.public.sources import search_hub

    hub, collections = settings["hub"], settings["collections"]
    if not sources and not collections:
        raise ParameterError("no source is given; expected FOLDER, MANIFEST, --hub ID or --hub-collection ID")
    if not hub and not collections:
        return sources
    on_hub, local = (sources, ()) if hub else ((), sources)
    _check_can_ask(on_hub, settings, as_json)
    selection = Selection(settings["include"], settings["exclude"], settings["limit"])
    searched = search_hub(bank, on_hub, collections, selection, lambda line: tell(line, err=True))
    if settings["dry_run"]:
        _show(bank, searched, as_json)
        return None
    if searched.found and not settings["yes"]:
        _ask(bank, searched.found)
    return [*local, searched]


def _check_can_ask(sources: Sequence[str], settings: Mapping[str, Any], as_json: bool) -> None:
    """Raise ParameterError, before the hub is asked, if what is listed would have to be agreed to by nobody."""
    from bankdb.errors import ParameterError
    from bankdb.public.sources import names_owner

    lists = settings["collections"] or any(map(names_owner, sources))
    if settings["dry_run"] or settings["yes"] or not lists:
        return
    if as_json:
        raise ParameterError("--json: asks nothing; give --yes to begin, or --dry-run to see what is found")
    _check_terminal()


def _check_terminal() -> None:
    from bankdb.errors import ParameterError

    if not sys.stdin.isatty():
        raise ParameterError(
            "standard input is no terminal, so nobody can be asked whether to begin; give --yes to begin, or "
            "--dry-run to see what is found"
        )


def _ask(bank: AdapterBank, found: Sequence[FoundPairs]) -> None:
    """Show what was found, and ask whether to begin, if there is something new."""
    for one in found:
        _tell(bank, one, err=True)
    new = sum(len(one.pairs) - one.present for one in found)
    if new:
        _check_terminal()
        click.confirm(f"Ingest {new:,} pair{'s' * (new > 1)}?", abort=True, err=True)


def _show(bank: AdapterBank, searched: Searched, as_json: bool) -> None:
    if as_json:
        print_json([_values(bank, one) for one in searched.found])
        return
    for one in searched.found:
        _tell(bank, one, err=False)
    for argument in searched.single:
        tell(f"{argument}: one adapter, to be ingested as it is named")
    for item in searched.refused:
        tell(f"cannot be taken: {item.name}: {item.reason}")


def _tell(bank: AdapterBank, found: FoundPairs, *, err: bool) -> None:
    """Print what was found: a line a count, and the first that cannot be taken."""
    from bankdb.public.found import download_text
    from bankdb.shown import shown

    tell(f"{found.where}:", err=err)
    for label, value in found.facts().items():
        tell(f"  {label}: {shown(value)}", err=err)
    tell(f"  to download: {download_text(*found.size(_present(bank).get))}", err=err)
    for note in found.notes:
        tell(f"  note: {note}", err=err)
    for item in found.refused[:_MOST_REASONS]:
        tell(f"  cannot be taken: {item.name}: {' '.join(item.reason.split())}", err=err)
    if len(found.refused) > _MOST_REASONS:
        tell(
            f"  and {len(found.refused) - _MOST_REASONS:,} more that cannot be taken; --json has all", err=err
        )


def _values(bank: AdapterBank, found: FoundPairs) -> dict[str, Any]:
    """Return what was found, for --json."""
    size, unknown = found.size(_present(bank).get)
    return {
        "where": found.where,
        "adapters": found.adapters,
        "pairs": [{**asdict(pair.reference), "how": pair.how, "bytes": pair.size} for pair in found.pairs],
        "refused": [asdict(one) for one in found.refused],
        "other_base_models": dict(found.other_base_models),
        "base_model_not_stated": found.unstated,
        "not_wanted": found.not_wanted,
        "present": found.present,
        "bytes": size,
        "pairs_of_unknown_size": unknown,
        "notes": list(found.notes),
    }


def _present(bank: AdapterBank) -> dict[str, AdapterRecord]:
    return {record.name: record for record in bank.adapters()}
