"""Verification: every stored row against its checksum, the database against itself, and what lies about."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bankdb.adapter_store import row_sha256
from bankdb.arrays import fsync_path, partial_files
from bankdb.bank import AdapterBank
from bankdb.errors import BankError, BankFormatError
from bankdb.ingest import clear_leftovers
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord


@dataclass(slots=True)
class VerifyReport:
    """What was found. `damage` means that something stored is lost or foreign; `leftovers` are harmless."""

    checked: int = 0
    damage: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing that the catalogue calls ready is damaged and nothing foreign lies about."""
        return not self.damage


def verify(bank: AdapterBank, *, repair: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Check a whole bank: O(N p) bytes read.

    Parameters
    ----------
    bank
        An open bank.
    repair
        Restore damaged rows from their recorded sources where those are still there unchanged; clear
        leftovers of killed processes; move foreign files into `orphans/`. Nothing that the catalogue
        calls ready is ever deleted.
    """
    progress = progress or SilentProgress()
    report = VerifyReport()
    for problem in bank.database_problems():
        report.damage.append(f"{bank.path / 'bank.db'}: {problem}; restore it from a copy")
    records = bank.adapters()
    progress.begin("verify", len(records))
    for record in records:
        _check_adapter(bank, record, repair, report)
        progress.advance()
    progress.end()
    _check_orphans(bank, {record.row for record in records}, repair, report)
    _check_leftovers(bank, {record.row for record in records}, repair, report)
    _check_derived(bank, repair, report)
    return report


def _check_adapter(bank: AdapterBank, record: AdapterRecord, repair: bool, report: VerifyReport) -> None:
    report.checked += 1
    try:
        _check_counts(bank, record)
        bank.catalog.blob(record.header_sha256)
        bank.catalog.blob(record.config_sha256)
    except BankError as error:
        report.damage.append(f"{record.name}: {error}")
    try:
        if row_sha256(bank.store.read(record.row)) == record.row_sha256:
            return
        problem = f"{record.name}: row {record.row} does not match its checksum"
    except BankError as error:
        problem = f"{record.name}: {error}"
    if not repair:
        report.damage.append(f"{problem}; --repair restores it if its source is still there")
        return
    failure = _restore(bank, record)
    if failure is None:
        report.repaired.append(f"{record.name}: row {record.row} restored from {record.source}")
    else:
        report.damage.append(
            f"{problem}; {failure}: remove it with `bank remove {record.name}`, then ingest it again"
        )


def _check_counts(bank: AdapterBank, record: AdapterRecord) -> None:
    ((ids, counts),) = bank.catalog.token_counts([record.row])
    whole = len(ids) == len(counts) > 0 and bool(np.all(ids[1:] > ids[:-1])) and bool(np.all(counts > 0))
    if (
        not whole
        or int(ids[-1]) >= bank.record.vocabulary
        or int(counts.sum(dtype=np.uint64)) != record.tokens
    ):
        raise BankFormatError(
            f"its token counts are damaged (expected {record.tokens} tokens under {bank.record.vocabulary} ids); "
            "remove and ingest it again"
        )


def _restore(bank: AdapterBank, record: AdapterRecord) -> str | None:
    """Write a row again from its source; return why that could not be done, or None."""
    from bankdb.peft_format import load_adapter

    folder = Path(record.source)
    if not (folder.is_absolute() and folder.is_dir()):
        return f"its source {record.source} is not on this machine"
    try:
        adapter = load_adapter(folder, expected=bank.layout)
    except BankError as error:
        return f"its source cannot be read ({error})"
    if adapter.sha256 != record.source_sha256 or row_sha256(adapter.vector) != record.row_sha256:
        return f"its source {record.source} has changed since"
    bank.store.delete(record.row)
    bank.store.write(record.row, adapter.vector)
    return None


def _check_orphans(bank: AdapterBank, ready: set[int], repair: bool, report: VerifyReport) -> None:
    """Find files that nothing in the database accounts for: never made by this bank."""
    limit = bank.record.next_row
    foreign = list(bank.store.foreign_files())
    foreign += [bank.store.file(row).parent for row in bank.store.rows_on_disk() if row >= limit]
    for row in sorted(ready):
        folder = bank.store.file(row).parent
        if folder.is_dir():
            partial = set(partial_files(folder))
            foreign += [item for item in folder.iterdir() if item.name != "0" and item not in partial]
    for item in foreign:
        if not repair:
            report.damage.append(
                f"{item}: orphan, not the bank's; --repair moves it to {bank.path / 'orphans'}"
            )
            continue
        target = bank.path / "orphans" / item.relative_to(bank.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            report.damage.append(f"{item}: orphan, and {target} is taken; move one of them away")
            continue
        shutil.move(item, target)
        fsync_path(item.parent)
        report.repaired.append(f"{item}: moved to {target}")


def _check_leftovers(bank: AdapterBank, ready: set[int], repair: bool, report: VerifyReport) -> None:
    """Find what killed or running processes left: the next ingest clears it, or this with `repair`."""
    if repair:
        report.repaired += [f"cleared {what}" for what in clear_leftovers(bank)]
    reserved = {item.row: item.name for item in bank.catalog.reserved()}
    for row, name in reserved.items():
        report.leftovers.append(
            f"row {row} is reserved for {name}: its ingest runs still, or was interrupted"
        )
    limit = bank.record.next_row
    for row in bank.store.rows_on_disk():
        if row not in ready and row not in reserved and row < limit:
            report.leftovers.append(f"row {row} belongs to no adapter any more")
    for kind in ("adapters", "distributions", "distances", "gram", "predictions"):
        for file in partial_files(bank.array_path(kind)):
            report.leftovers.append(f"{file}: left by an interrupted write")


def _check_derived(bank: AdapterBank, repair: bool, report: VerifyReport) -> None:
    """Find runs whose array was deleted: not damage, they are computed again when needed."""
    for run in bank.runs.all():
        path = bank.run_array(run)
        if path is None or path.exists() or not bank.runs.done_pieces(run.id):
            continue
        if repair:
            bank.runs.reopen(run.id)
            report.repaired.append(f"run {run.id} ({run.kind}): its array is gone, it will be computed again")
        else:
            report.leftovers.append(
                f"run {run.id} ({run.kind}): its array is gone, it will be computed again"
            )
