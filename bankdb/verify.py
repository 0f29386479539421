"""Verification: every stored row against its checksum, the database against itself, and what lies about."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bankdb.arrays.adapter_store import AdapterStore, StoredRow, row_sha256
from bankdb.arrays.durable import move, partial_files, relative_name
from bankdb.arrays.remote import located
from bankdb.derived import delete_damaged, derived_problems
from bankdb.errors import ArrayStoreUnavailableError, BankError, BankFormatError, DatabaseUnavailableError
from bankdb.ingest import clear_leftovers_locked
from bankdb.peft.checks import stored_differences
from bankdb.progress import Mapper, Progress, SilentProgress
from bankdb.records import AS_BEFORE, AdapterRecord
from bankdb.shown import html_summary
from bankdb.space.unfinished import clear_unfinished, unfinished
from bankdb.storage.stored_bank import StoredBank

# Lines that a report shows of itself.
_LISTED = 10
# Of one piece of work, where others read them: one is in memory at a time.
_ROWS_READ = 8


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


def verify(
    bank: StoredBank,
    *,
    repair: bool = False,
    progress: Progress | None = None,
    mapper: Mapper | None = None,
) -> VerifyReport:
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
    mapper
        Where rows are read and their checksums computed; None in this process. All else is done here.
    """
    progress = progress or SilentProgress()
    report = VerifyReport()
    if not repair:
        _check(bank, False, report, progress, mapper)
        return report
    with bank.nobody_ingesting() as alone:
        if not alone:
            report.leftovers.append(
                "an ingest is running, so nothing is repaired: run it again when the ingest has finished"
            )
        _check(bank, alone, report, progress, mapper)
    return report


def _check(
    bank: StoredBank, repair: bool, report: VerifyReport, progress: Progress, mapper: Mapper | None
) -> None:
    _check_database(bank, repair, report)
    _check_owner(bank, repair, report)
    _check_record(bank, report)
    # First, so that what is foreign is out of the way of rows that are restored.
    _check_orphans(bank, repair, report)
    records = bank.catalog.whole_adapters()
    read = functools.partial(read_row, bank.store) if mapper is None else _rows_read(bank, records, mapper)
    progress.begin("verify", len(records))
    for record in records:
        _check_adapter(bank, record, read, repair, report)
        progress.advance()
    progress.end()
    if len(records) == len(bank):
        _check_leftovers(bank, repair, report)
    if not repair:
        _check_derived(bank, False, report, progress)
        return
    with bank.nobody_computing() as alone:
        _check_derived(bank, alone, report, progress)


def _check_database(bank: StoredBank, repair: bool, report: VerifyReport) -> None:
    if repair:
        report.repaired += [
            f"deleted {what}; it is computed again when it is asked for" for what in bank.runs.drop_damaged()
        ]
    report.damage += [f"{bank.database_shown}: {problem}" for problem in bank.database_problems()]


def _check_owner(bank: StoredBank, repair: bool, report: VerifyReport) -> None:
    """Find whether another copy of the bank wrote rows; with `repair`, nobody ingesting, they are this one's again."""
    if bank.ownership.is_ours():
        return
    if repair:
        bank.ownership.renew(take=True)
        report.repaired.append(f"{bank.store.path}: written by this bank alone from now on")
    else:
        report.leftovers.append(
            f"{bank.store.path}: another copy of this bank has written rows since, so this one may only read them; "
            "if the other is no longer used, --repair makes them this one's"
        )


def read_row(store: AdapterStore, row: int) -> StoredRow:
    """Read one row; return what it is known by. Raises BankFormatError for one that is damaged."""
    return store.read_stored(row)[1]


def read_rows(store: str, rows: Sequence[int]) -> list[StoredRow | BankError]:
    """Read some rows of an array, by its path or URL, one after another; of one that is damaged, return the error.

    Raises
    ------
    ArrayStoreUnavailableError
        The array cannot be read at all, which says nothing about its rows.
    """
    opened = AdapterStore(located(store))
    found: list[StoredRow | BankError] = []
    for row in rows:
        try:
            found.append(read_row(opened, row))
        except ArrayStoreUnavailableError:
            raise
        except BankError as error:
            found.append(error)
    return found


def _rows_read(
    bank: StoredBank, records: Sequence[AdapterRecord], mapper: Mapper
) -> Callable[[int], StoredRow]:
    """Have all rows read, some at a time; return what looks one up, or raises the error of one that is damaged."""
    store, rows = str(bank.store.path.absolute()), [record.row for record in records]
    pieces = [rows[start : start + _ROWS_READ] for start in range(0, len(rows), _ROWS_READ)]
    named = {f"rows {piece[0]} to {piece[-1]}": (store, piece) for piece in pieces}
    found: dict[int, StoredRow | BankError] = {}
    for name, answers in mapper("read rows", read_rows, named):
        found.update(zip(named[name][1], answers, strict=True))

    def look_up(row: int) -> StoredRow:
        answer = found[row]
        if isinstance(answer, BankError):
            raise answer
        return answer

    return look_up


def _check_adapter(
    bank: StoredBank,
    record: AdapterRecord,
    read: Callable[[int], StoredRow],
    repair: bool,
    report: VerifyReport,
) -> None:
    in_database, in_array = _database_problem(bank, record), _array_problem(record, read)
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
    if _kept_anew(bank, record):
        report.repaired.append(f"{record.name}: row {record.row} is whole, its checksums were made anew")
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
        _check_own_files(bank, record)
    except DatabaseUnavailableError:
        raise
    except BankError as error:
        return str(error)
    return None


def _array_problem(record: AdapterRecord, read: Callable[[int], StoredRow]) -> str | None:
    try:
        stored = read(record.row)
        if stored.sha256 == record.row_sha256:
            return _checksums_problem(record, stored)
    except ArrayStoreUnavailableError:
        raise  # says nothing about the row
    except BankError as error:
        return str(error)
    return f"row {record.row} does not match its checksum; `bank verify --repair` restores it from its source"


def _checksums_problem(record: AdapterRecord, stored: StoredRow) -> str | None:
    """Return what is wrong with a row whose values are right, stored so that it ends its chunks otherwise."""
    if record.checksums in {None, stored.checksums.tobytes()}:
        return None
    return f"row {record.row} was stored anew by another program; `bank verify --repair` makes its checksums anew"


def _kept_anew(bank: StoredBank, record: AdapterRecord) -> bool:
    """Keep the checksums of a row as it is stored, if its values are the right ones; return whether they are."""
    try:
        _, stored = bank.checked_row(record)
    except ArrayStoreUnavailableError:
        raise
    except BankError:
        return False
    bank.ownership.set_checksums({record.row: (stored.sha256, stored.checksums.tobytes())})
    return True


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


def _check_own_files(bank: StoredBank, record: AdapterRecord) -> None:
    """Compare what the database says of an adapter, and of all, with its own header and configuration."""
    header, config = bank.catalog.blob(record.header_sha256), bank.catalog.blob(record.config_sha256)
    found = stored_differences(bank.record, record, header, config)
    if found:
        raise BankFormatError(f"{'; '.join(found)}; remove and ingest it again")


def _check_record(bank: StoredBank, report: VerifyReport) -> None:
    """Compare the bank's own record with its adapters' headers, and with its tokenizer."""
    if not bank.record.layout:
        return
    try:
        _ = bank.layout
        found, expected = bank.record.vocabulary, bank.tokenizer.vocabulary
        if found != expected:
            raise BankFormatError(
                f"a vocabulary of {expected} ids expected from its tokenizer, {found} found in the database; "
                "restore it from a copy"
            )
    except DatabaseUnavailableError:
        raise
    except BankError as error:
        report.damage.append(f"{bank.database_shown}: {error}")


def _restore(bank: StoredBank, record: AdapterRecord) -> str | None:
    """Write a row again from its source; return why that could not be done, or None."""
    from bankdb.peft.weights import load_adapter

    folder = Path(record.source)
    if not (folder.is_absolute() and folder.is_dir()):
        return f"its source {record.source} is not on this machine"
    about, layout = bank.record, bank.layout
    names = (about.base_model, *about.base_model_aliases)
    try:
        adapter = load_adapter(folder, expected=layout, base_models=names, taking=AS_BEFORE)
    except BankError as error:
        return f"its source cannot be read ({error})"
    # The last bits of one that was cut are those of the machine that cut it.
    same = adapter.is_cut or row_sha256(adapter.vector) == record.row_sha256
    if adapter.sha256 != record.source_sha256 or not same:
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
        target = bank.arrays / "orphans" / relative_name(item, bank.arrays)
        if target.exists():
            report.damage.append(f"{item}: orphan, and {target} is taken; move one of them away")
            continue
        move(item, target)
        report.repaired.append(f"{item}: moved to {target}")


def _check_leftovers(bank: StoredBank, repair: bool, report: VerifyReport) -> None:
    """Find what killed or running processes left: the next ingest clears it, or this with `repair`."""
    if repair:
        report.repaired += [f"cleared {what}" for what in clear_leftovers_locked(bank, everywhere=True)]
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


def _check_derived(bank: StoredBank, repair: bool, report: VerifyReport, progress: Progress) -> None:
    """Find what interrupted computations left, blocks that are damaged, and runs whose array was deleted."""
    if repair:
        report.repaired += [f"cleared unfinished file {name}" for name in clear_unfinished(bank)]
    else:
        report.leftovers += [f"{file}: left by an interrupted write" for file in unfinished(bank)]
    for problem in list(derived_problems(bank, progress)):
        if repair and problem.damage and delete_damaged(bank, problem):
            report.repaired.append(f"deleted {problem.delete}, to be computed again ({problem.text})")
        else:
            (report.damage if problem.damage else report.leftovers).append(problem.text)
    for run in bank.runs.all():
        path = bank.run_array(run)
        if path is None or path.exists() or not (run.state == "done" or bank.runs.done_pieces(run.id)):
            continue
        if repair:
            bank.runs.reopen(run.id)
            report.repaired.append(f"run {run.id} ({run.kind}): its array is gone, it will be computed again")
        else:
            report.leftovers.append(
                f"run {run.id} ({run.kind}): its array is gone, it will be computed again"
            )
