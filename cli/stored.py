"""What is said of a bank's adapters: of those that an ingest stored or refused, and of those that are shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cli.display import print_json, tell

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from bankdb.ingest import IngestReport
    from bankdb.records import AdapterRecord

_MOST_NOTES = 9


def tell_ingested(report: IngestReport, total: int, as_json: bool) -> None:
    """Print what an ingest did, and the notes about what it stored."""
    from bankdb.errors import listed

    if as_json:
        print_json(asdict(report) | {"adapters": total})
        return
    notes = [f"note: {f'{listed(names)}: ' if names else ''}{note}" for note, names in report.notes.items()]
    for line in notes[:_MOST_NOTES]:
        tell(line, err=True)
    if len(notes) > _MOST_NOTES:
        tell(f"note: and {len(notes) - _MOST_NOTES} more such notes; --json has all", err=True)
    if report.initialisations:
        tell(f"initialisation: {report.initialisations}", err=True)
    for item in report.refused:
        tell(f"refused {item.name}: {' '.join(item.reason.split())}", err=True)
    parts = [f"{len(report.added)} added", f"{len(report.skipped)} there already"]
    if report.replaced:
        parts.append(f"{len(report.replaced)} replaced")
    if report.refused:
        parts.append(f"{len(report.refused)} refused")
    tell(f"{', '.join(parts)}; the bank has {total} adapters")


def listed_values(record: AdapterRecord) -> dict[str, Any]:
    """Return what is shown of an adapter: not the checksums of its chunks, which are bytes and of use to nobody."""
    return {name: value for name, value in asdict(record).items() if name != "checksums"}


def shown_values(bank: AdapterBank, name: str) -> dict[str, Any]:
    """Return everything about one adapter."""
    from bankdb.initialisation.shared import told_of
    from bankdb.peft.header import stored_as

    record = bank.catalog.adapter(name)
    values = listed_values(record) | {"read_as": _read_as(bank, record)}
    values["initialisation"] = told_of(bank, record.row)
    converted = stored_as(bank.catalog.blob(record.header_sha256))
    return values if converted is None else values | {"stored_as": converted}


def _read_as(bank: AdapterBank, record: AdapterRecord) -> str:
    """Return by which rule the rows of its dataset became input and output."""
    from bankdb.datasets.forms.rules import TEXT_RULE, Rule

    return str(Rule.of_text(bank.origins.text_rules([record.row]).get(record.row, TEXT_RULE)))
