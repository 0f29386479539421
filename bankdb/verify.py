"""Verification: every stored row against its checksum, the database against itself, and what lies about."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bankdb.arrays.adapter_store import row_sha256
from bankdb.arrays.durable import move, partial_files
from bankdb.arrays.remote import Location, RemotePath
from bankdb.errors import ArrayStoreUnavailableError, BankError, BankFormatError, DatabaseUnavailableError
from bankdb.ingest import clear_leftovers_locked
from bankdb.peft.config import scaling
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.shown import html_summary
from bankdb.storage.stored_bank import StoredBank

# Lines that a report shows of itself.
_LISTED = 10
_DERIVED = ("distributions", "distances", "gram", "predictions", "neural")


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

    def __repr__(self) -> str:
        """Return the counts, and the first of what is damaged."""
        return "\n".join([self._title(), *(f"  {line}" for line in self.damage[:_LISTED])])

    def _repr_html_(self) -> str:
        found = [("damage", line) for line in self.damage]
        found += [("repaired", line) for line in self.repaired] + [
            ("leftover", line) for line in self.leftovers
        ]
        return html_summary(
            self._title(), {}, ("", "what"), found[:_LISTED], len(found) - len(found[:_LISTED])
        )

    def _title(self) -> str:
        state = "clean" if self.clean else f"NOT clean, {len(self.damage)} damaged"
        counts = f"{len(self.repaired)} repaired, {len(self.leftovers)} leftovers"
        return f"VerifyReport: {self.checked} adapters checked, {state}; {counts}"


def verify(bank: StoredBank, *, repair: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Check a whole bank: O(N p) bytes read.

    Parameters
    ----------
    bank
        An open bank.
    repair
        Restore damaged rows from their recorded sources where those are still there unchanged; clear
        leftovers of killed processes; move foreign files into `orphans/`. Nothing that the catalogue
        calls ready is ever deleted. While an ingest is running nothing is repaired; one that begins
        meanwhile waits.
    """
    progress = progress or SilentProgress()
    report = VerifyReport()
    if not repair:
        _check(bank, False, report, progress)
        return report
    with bank.nobody_ingesting() as alone:
        if not alone:
            report.leftovers.append(
                "an ingest is running, so nothing is repaired: run it again when the ingest has finished"
            )
        _check(bank, alone, report, progress)
    return report


def _check(bank: StoredBank, repair: bool, report: VerifyReport, progress: Progress) -> None:
    for problem in bank.database_problems():
        report.damage.append(f"{bank.database_shown}: {problem}; restore it from a copy")
    # First, so that what is foreign is out of the way of rows that are restored.
    _check_orphans(bank, repair, report)
    records = bank.adapters()
    progress.begin("verify", len(records))
    for record in records:
        _check_adapter(bank, record, repair, report)
        progress.advance()
    progress.end()
    _check_leftovers(bank, repair, report)
    if not repair:
        _check_derived(bank, False, report)
        return
    with bank.nobody_computing() as alone:
        _check_derived(bank, alone, report)


def _check_adapter(bank: StoredBank, record: AdapterRecord, repair: bool, report: VerifyReport) -> None:
    in_database, in_array = _database_problem(bank, record), _array_problem(bank, record)
    if (in_database or in_array) and not _still_there(bank, record):
        return  # removed or replaced since the list was read
    report.checked += 1
    if in_database:
        report.damage.append(f"{record.name}: {in_database}")
    if not in_array:
        return
    if not repair:
        report.damage.append(f"{record.name}: {in_array}")
        return
    failure = _restore(bank, record)
    if failure is None:
        report.repaired.append(f"{record.name}: row {record.row} restored from {record.source}")
    else:
        report.damage.append(
            f"{record.name}: {in_array}, but {failure}: remove it with `bank remove {record.name}`, "
            "then ingest it again"
        )


def _database_problem(bank: StoredBank, record: AdapterRecord) -> str | None:
    try:
        _check_counts(bank, record)
        bank.catalog.blob(record.header_sha256)
        _check_scaling(record, bank.catalog.blob(record.config_sha256))
    except DatabaseUnavailableError:
        raise
    except BankError as error:
        return str(error)
    return None


def _array_problem(bank: StoredBank, record: AdapterRecord) -> str | None:
    try:
        if row_sha256(bank.store.read(record.row)) == record.row_sha256:
            return None
    except ArrayStoreUnavailableError:
        raise  # says nothing about the row
    except BankError as error:
        return str(error)
    return f"row {record.row} does not match its checksum; `bank verify --repair` restores it from its source"


def _still_there(bank: StoredBank, record: AdapterRecord) -> bool:
    now = bank.catalog.find(record.name)
    return now is not None and now.row == record.row


def _check_counts(bank: StoredBank, record: AdapterRecord) -> None:
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


def _check_scaling(record: AdapterRecord, config: bytes) -> None:
    options = json.loads(config)
    rank, alpha, rslora = options["r"], options["lora_alpha"], options.get("use_rslora", False)
    expected = (rank, alpha, rslora, scaling(alpha, rank, rslora))
    found = (record.rank, record.alpha, record.use_rslora, record.scaling)
    if found != expected:
        raise BankFormatError(
            f"rank, alpha, use_rslora and scaling {expected} expected from its configuration, {found} found in "
            "the database; remove and ingest it again"
        )


def _restore(bank: StoredBank, record: AdapterRecord) -> str | None:
    """Write a row again from its source; return why that could not be done, or None."""
    from bankdb.peft.weights import load_adapter

    folder = Path(record.source)
    if not (folder.is_absolute() and folder.is_dir()):
        return f"its source {record.source} is not on this machine"
    layout = bank.layout
    try:
        adapter = load_adapter(folder, expected=layout)
    except BankError as error:
        return f"its source cannot be read ({error})"
    if adapter.sha256 != record.source_sha256 or row_sha256(adapter.vector) != record.row_sha256:
        return f"its source {record.source} has changed since"
    bank.restore(record.row, adapter.vector)
    return None


def _check_orphans(bank: StoredBank, repair: bool, report: VerifyReport) -> None:
    """Find files that nothing in the database accounts for: never made by this bank."""
    rows = bank.store.rows_on_disk()
    limit = bank.record.next_row  # looked up after the rows: each was reserved before it was written
    beyond = [bank.store.file(row).parent for row in rows if row >= limit]
    within = [item for item in bank.store.foreign_files() if item.parent not in beyond]
    for item in (*beyond, *within):
        if not repair:
            report.damage.append(
                f"{item}: orphan, not the bank's; --repair moves it to {bank.arrays / 'orphans'}"
            )
            continue
        target = bank.arrays / "orphans" / _within(item, bank.arrays)
        if target.exists():
            report.damage.append(f"{item}: orphan, and {target} is taken; move one of them away")
            continue
        move(item, target)
        report.repaired.append(f"{item}: moved to {target}")


def _within(item: Location, place: Location) -> str:
    if isinstance(item, RemotePath) and isinstance(place, RemotePath):
        return item.relative_to(place)
    return str(Path(str(item)).relative_to(str(place)))


def _check_leftovers(bank: StoredBank, repair: bool, report: VerifyReport) -> None:
    """Find what killed or running processes left: the next ingest clears it, or this with `repair`."""
    if repair:
        report.repaired += [f"cleared {what}" for what in clear_leftovers_locked(bank)]
    # In this order: a row goes from reserved to ready, and is on the disk only after it was reserved.
    rows = bank.store.rows_on_disk()
    reserved = {item.row: item.name for item in bank.catalog.reserved()}
    known = reserved.keys() | {record.row for record in bank.adapters()}
    limit = bank.record.next_row
    report.leftovers += [
        f"row {row} is reserved for {name}: its ingest runs still, or was interrupted"
        for row, name in reserved.items()
    ]
    report.leftovers += [
        f"row {row} belongs to no adapter any more" for row in rows if row not in known and row < limit
    ]
    report.leftovers += [f"{file}: left by an interrupted write" for file in partial_files(bank.store.path)]


def _check_derived(bank: StoredBank, repair: bool, report: VerifyReport) -> None:
    """Find what interrupted computations left, and runs whose array was deleted: they are made again."""
    for file in (file for kind in _DERIVED for file in partial_files(bank.array_path(kind))):
        if repair:
            file.unlink(missing_ok=True)
            report.repaired.append(f"cleared unfinished file {file.name}")
        else:
            report.leftovers.append(f"{file}: left by an interrupted write")
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
