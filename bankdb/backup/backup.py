"""A backup of a bank in a folder: the catalogue, the list of rows with their hashes, and the rows.

What is derived is left out: it is computed again. A row that the backup has already is not copied again, as its number
stands for the same values for ever. The list is written last, and what it does not name goes after that: killed, a
backup is the one of before, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bankdb.arrays.adapter_store import AdapterStore, StoredRow
from bankdb.arrays.durable import files_below, fsync_path, is_empty, write_file
from bankdb.backup.copied_records import copy_to_file
from bankdb.backup.manifest import (
    FILES,
    MANIFEST,
    ROWS,
    UNFINISHED,
    KeptRow,
    Manifest,
    file_sha256,
    read_manifest,
    unfinished_of,
)
from bankdb.catalog.database import Database
from bankdb.errors import BankFormatError, BankNotFoundError, ConflictError, ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, now
from bankdb.storage.stored_bank import StoredBank

# Of the bank's folder, beside catalogue and arrays: what no command can make again.
KEPT = ("tokenizer", "base_config.json", "evaluations")


@dataclass(frozen=True, slots=True)
class BackupReport:
    """How many adapters a backup has: rows that were copied, and rows that were there already."""

    adapters: int
    copied: int
    there: int


def backup(
    bank: StoredBank,
    target: str | Path,
    *,
    catalogue_only: bool = False,
    progress: Progress | None = None,
) -> BackupReport:
    """Keep a bank in a folder, or bring the backup that is there up to date.

    Parameters
    ----------
    target
        A folder that is empty, is not there yet, or holds a backup of the same bank.
    catalogue_only
        Leave out the rows: what is kept then tells which they are, and restores no adapter by itself.

    Raises
    ------
    ParameterError
        `target` is in the bank's own folder.
    ConflictError
        Something else is in `target`, or an ingest is running.
    BankFormatError
        A record or a row of the bank is damaged; the backup of before stays.
    """
    folder, progress = Path(target), progress or SilentProgress()
    if folder.resolve().is_relative_to(bank.path.resolve()):
        raise ParameterError(
            f"{folder}: a backup in the bank's own folder would go with it; choose another folder"
        )
    with bank.nobody_ingesting() as alone:
        if not alone:
            raise ConflictError(
                f"{bank.path}: adapters are being stored now; run it again when that has ended"
            )
        before = _begun(bank, folder)
        problems = bank.database_problems()
        if problems:
            raise BankFormatError(
                f"{bank.database_shown}: not backed up, {problems[0]}; `bank verify` names everything that is damaged"
            )
        return _kept(bank, folder, before, catalogue_only, progress)


def _begun(bank: StoredBank, folder: Path) -> Manifest | None:
    """Return the list of the backup that is there, of the same bank; mark the folder where there is none."""
    identity = bank.record.identity
    if folder.exists() and not folder.is_dir():
        raise ConflictError(f"{folder}: a file is in the way; choose another folder")
    if (folder / MANIFEST).exists():
        before = read_manifest(folder)
        if before.identity != identity:
            raise ConflictError(
                f"{folder}: holds a backup of bank {before.identity}, not of this one; choose another"
            )
        return before
    if unfinished_of(folder).get("identity") != identity:
        if folder.is_dir() and not is_empty(folder):
            raise ConflictError(f"{folder}: not empty, and no backup; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / UNFINISHED, json.dumps({"identity": identity}).encode())
    return None


def _kept(
    bank: StoredBank, folder: Path, before: Manifest | None, catalogue_only: bool, progress: Progress
) -> BackupReport:
    record, adapters = bank.record, bank.adapters()
    copied = 0
    if not catalogue_only and record.parameters is not None:
        copied = _copy_rows(bank, folder, before, adapters, progress)
    name, sha256 = _copy_catalogue(bank, folder)
    manifest = Manifest(
        identity=record.identity,
        created=now(),
        catalogue=name,
        catalogue_sha256=sha256,
        next_row=record.next_row,
        parameters=record.parameters,
        owner=None if record.parameters is None else bank.store.owner(),
        arrays=not catalogue_only,
        rows=tuple(KeptRow(one.row, one.name, one.row_sha256) for one in adapters),
        files=_copy_files(bank.path, folder / FILES),
    )
    manifest.write(folder)
    _clear(folder, manifest)
    return BackupReport(len(adapters), copied, 0 if catalogue_only else len(adapters) - copied)


def _copy_rows(
    bank: StoredBank,
    folder: Path,
    before: Manifest | None,
    adapters: Sequence[AdapterRecord],
    progress: Progress,
) -> int:
    """Write the rows that are not there; return how many they were."""
    record, store = bank.record, AdapterStore(folder / ROWS)
    assert record.parameters is not None
    if not (folder / ROWS / "zarr.json").exists():
        store.create(record.parameters, record.identity)
    store.grow(record.next_row)
    listed = {one.row: one.sha256 for one in before.rows} if before is not None and before.arrays else {}
    copied = 0
    progress.begin("back up adapters", len(adapters))
    for adapter in adapters:
        there = (folder / ROWS / "c" / str(adapter.row) / "0").is_file()
        if not (there and listed.get(adapter.row) == adapter.row_sha256) and not stored_row(
            store, adapter.row, adapter.row_sha256
        ):
            store.delete(adapter.row)
            store.write_row(adapter.row, bank.checked_row(adapter)[0])
            copied += 1
        progress.advance()
    progress.end()
    return copied


def stored_row(store: AdapterStore, row: int, sha256: str) -> StoredRow | None:
    """Return what a row is known by, if it is stored, whole, with these values."""
    try:
        _, stored = store.read_stored(row)
    except (BankFormatError, BankNotFoundError):
        return None
    return stored if stored.sha256 == sha256 else None


def _copy_catalogue(bank: StoredBank, folder: Path) -> tuple[str, str]:
    """Copy the catalogue; return its name and hash. Nobody stores adapters meanwhile, so that the rows are its own."""
    unfinished = folder / f".catalogue.{uuid.uuid4().hex}.partial"
    try:
        with contextlib.closing(Database(bank.location.database_url)) as database:
            copy_to_file(database, unfinished)
        sha256 = file_sha256(unfinished)
        name = f"catalogue-{sha256[:16]}.db"
        unfinished.replace(folder / name)
        fsync_path(folder)
    finally:
        unfinished.unlink(missing_ok=True)
    return name, sha256


def _copy_files(source: Path, target: Path) -> dict[str, str]:
    """Copy the bank's other files; return their hashes by their names."""
    names = [name for name in KEPT if (source / name).is_file()]
    names += [
        f"{name}/{below}" for name in KEPT if (source / name).is_dir() for below in files_below(source / name)
    ]
    found = {}
    for name in sorted(names):
        data = (source / name).read_bytes()
        write_file(target / name, data)
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def _clear(folder: Path, manifest: Manifest) -> None:
    """Delete what the list does not name, of what a backup writes."""
    for other in folder.glob("*catalogue*"):
        if other.name != manifest.catalogue:
            other.unlink()
    (folder / UNFINISHED).unlink(missing_ok=True)
    if not manifest.arrays or manifest.parameters is None:
        return
    store, rows = AdapterStore(folder / ROWS), {one.row for one in manifest.rows}
    for row in store.rows_on_disk():
        if row not in rows:
            store.delete(row)
