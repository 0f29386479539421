"""A bank from its backup: whole in a new place, or the one half that was lost, beside the other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.durable import fsync_path, is_empty, read_file, write_file
from bankdb.arrays.remote import Location, located
from bankdb.backup.backup import stored_row
from bankdb.backup.copied_records import copy_records, sqlite_url
from bankdb.backup.manifest import FILES, ROWS, KeptRow, Manifest, file_sha256, read_manifest
from bankdb.catalog.database import Database, identity_in
from bankdb.catalog.locks import FileLocks
from bankdb.catalog.url import parse_database
from bankdb.errors import BankFormatError, BankNotFoundError, ConflictError, listed
from bankdb.progress import Progress, SilentProgress
from bankdb.records import now
from bankdb.storage.location import BankLocation
from bankdb.storage.new_bank import claim_place, making, parse_arrays
from bankdb.storage.stored_bank import StoredBank

# By row: the sha256 of its values, and what each of its chunks ends with.
Checksums = dict[int, tuple[str, bytes]]
# In the bank's folder, of a restore that has not ended: which one it is.
BEGUN = ".restore.json"


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What was brought back.

    Attributes
    ----------
    adapters
        Adapters of the catalogue.
    written, there
        Rows that were written, and rows that were there as they should be.
    missing
        Adapters whose rows neither the bank nor the backup has, or has otherwise.
    aside
        Where the catalogue went that was there before.
    """

    adapters: int
    written: int = 0
    there: int = 0
    missing: tuple[str, ...] = ()
    aside: Path | None = None


def restore(
    source: str | Path,
    path: str | Path,
    *,
    database: str | None = None,
    arrays: str | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Make a bank of a backup, in a place that is free; killed, the same command goes on.

    Parameters
    ----------
    source
        The backup's folder.
    path
        The bank's folder, empty or not there yet.
    database, arrays
        As `AdapterBank.create` has them.

    Raises
    ------
    BankNotFoundError, BankFormatError
        There is no finished backup, it has no rows, or something of it is damaged.
    ConflictError
        Something is in the way.
    """
    folder, target, progress = Path(source), Path(path), progress or SilentProgress()
    manifest = _whole_manifest(folder)
    location = _location(target, manifest, database, arrays)
    _begin(location, manifest)
    with making(location):
        _restore_files(folder, target, manifest)
        location.record()
        place: Location = target if location.arrays is None else located(location.arrays)
        if location.arrays is not None:
            claim_place(place, manifest.identity)
        report, known = _restore_rows(folder, place / ROWS, manifest, manifest.rows, progress)
        if report.missing:
            raise BankFormatError(
                f"{folder}: the backup's rows of {listed(report.missing)} are damaged or missing, so the bank is not "
                "finished; take them from another backup, or restore the catalogue alone and `bank verify --repair`"
            )
        if not _has_catalogue(location):  # killed after it was there, others may have used it since
            _restore_catalogue(folder, location, manifest)
    with contextlib.closing(
        StoredBank(location, Database(location.database_url, told=progress.note))
    ) as bank:
        bank.ownership.set_checksums(known)
    (target / BEGUN).unlink(missing_ok=True)
    fsync_path(target)
    return report


def restore_catalogue(
    source: str | Path, path: str | Path, *, database: str | None = None, arrays: str | None = None
) -> RestoreReport:
    """Put the catalogue of a backup where a bank's rows are; one that is there is kept beside it.

    Rows that were stored after the backup are unknown to it then, and rows that it knows and that are gone are damage:
    `verify` names both.

    Raises
    ------
    ConflictError
        The rows are another bank's, somebody writes, or the server's database is not empty.
    """
    folder, target = Path(source), Path(path)
    manifest = read_manifest(folder)
    before = BankLocation.of(target)
    location = BankLocation(
        target,
        before.database if database is None else parse_database(database),
        before.arrays if arrays is None else parse_arrays(arrays),
    )
    if location.database is not None or location.arrays is not None:
        location = replace(location, identity=manifest.identity)
    place: Location = target if location.arrays is None else located(location.arrays)
    with contextlib.suppress(BankNotFoundError):
        found = AdapterStore(place / ROWS).identity()
        if found != manifest.identity:
            raise ConflictError(
                f"{place / ROWS}: holds rows of bank {found}, the backup is of {manifest.identity}"
            )
    target.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        aside = None
        if location.database is None:
            aside = _moved_aside(target / "bank.db")
        elif identity_in(location.database) is not None:
            raise ConflictError(
                "the server's database holds a bank: a catalogue is restored into an empty database (--database URL)"
            )
        _restore_files(folder, target, manifest)
        location.record()
        _restore_catalogue(folder, location, manifest)
    return RestoreReport(len(manifest.rows), aside=aside)


def restore_rows(source: str | Path, path: str | Path, progress: Progress | None = None) -> RestoreReport:
    """Bring back the rows that a bank's catalogue knows and that are gone or damaged, as far as the backup has them.

    Raises
    ------
    BankNotFoundError
        There is no catalogue: rows alone have no names.
    ConflictError
        The backup is of another bank, an ingest is running, or another catalogue wrote the rows last.
    """
    folder, target, progress = Path(source), Path(path), progress or SilentProgress()
    manifest = _whole_manifest(folder)
    location = BankLocation.of(target)
    if location.database is None and not (target / "bank.db").is_file():
        raise BankNotFoundError(
            f"{target}: no catalogue here, and rows without one have no names: restore the catalogue too, or make a "
            "bank and ingest the adapters again"
        )
    with contextlib.closing(
        StoredBank(location, Database(location.database_url, told=progress.note))
    ) as bank:
        record = bank.record
        if record.identity != manifest.identity:
            raise ConflictError(f"{folder}: a backup of bank {manifest.identity}, not of {record.identity}")
        with bank.nobody_ingesting() as alone:
            if not alone:
                raise ConflictError(
                    f"{target}: adapters are being stored now; run it again when that has ended"
                )
            wanted = [KeptRow(one.row, one.name, str(one.row_sha256)) for one in bank.adapters()]
            bank.ownership.check_now()
            size = replace(
                manifest,
                next_row=record.next_row,
                parameters=record.parameters,
                owner=bank.ownership.mark_now(),
            )
            report, known = _restore_rows(folder, bank.store.path, size, tuple(wanted), progress)
            bank.ownership.set_checksums(known)
            return report


def _whole_manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if not manifest.arrays:
        raise BankNotFoundError(
            f"{folder}: the backup is of the catalogue alone: restore it with --only catalogue where the rows are, or "
            "ingest the adapters again"
        )
    return manifest


def _location(target: Path, manifest: Manifest, database: str | None, arrays: str | None) -> BankLocation:
    if database is None and arrays is None:
        return BankLocation(target)
    return BankLocation(
        target,
        None if database is None else parse_database(database),
        None if arrays is None else parse_arrays(arrays),
        manifest.identity,
    )


def _begin(location: BankLocation, manifest: Manifest) -> None:
    """Mark the folder, unless this restore has begun there; all that a bank is made of has to be free."""
    target = location.folder
    mark = json.dumps(
        {
            "catalogue": manifest.catalogue_sha256,
            "database": str(location.database),  # without its password
            "arrays": location.arrays,
        }
    ).encode()
    found = read_file(target / BEGUN) if target.is_dir() else None
    if found == mark:
        return
    if found is not None or (target.exists() and (not target.is_dir() or not is_empty(target))):
        what = "another restore that was not finished" if found is not None else "something else"
        raise ConflictError(
            f"{target}: expected an empty folder, it holds {what}; choose another one with --bank"
        )
    if location.arrays is not None and not is_empty(located(location.arrays)):
        raise ConflictError(f"{location.arrays}: expected an empty place for the rows; choose another one")
    if location.database is not None and identity_in(location.database) is not None:
        raise ConflictError("the server's database already holds a bank; make an empty one")
    target.mkdir(parents=True, exist_ok=True)
    write_file(target / BEGUN, mark)


def _restore_files(folder: Path, target: Path, manifest: Manifest) -> None:
    for name, sha256 in manifest.files.items():
        data = read_file(folder / FILES / name)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            raise BankFormatError(
                f"{folder / FILES / name}: not as it was backed up; take it from another backup"
            )
        if not (target / name).exists():
            write_file(target / name, data)


def _restore_rows(
    folder: Path, place: Location, manifest: Manifest, wanted: tuple[KeptRow, ...], progress: Progress
) -> tuple[RestoreReport, Checksums]:
    """Write what is wanted and not there; nothing that is there as it should be is touched.

    Returns
    -------
    Also what each row is known by, as it is stored here: another version may have stored the same values otherwise.
    """
    if manifest.parameters is None:
        return RestoreReport(0), {}
    source, store = AdapterStore(folder / ROWS), AdapterStore(place)
    try:
        store.identity()
    except BankNotFoundError:
        store.create(manifest.parameters, manifest.identity, manifest.owner)
    store.grow(manifest.next_row)
    written, there, missing = 0, 0, list[str]()
    known: Checksums = {}
    progress.begin("restore adapters", len(wanted))
    for row in wanted:
        if (stored := stored_row(store, row.row, row.sha256)) is not None:
            there += 1
        elif stored_row(source, row.row, row.sha256) is not None:
            store.delete(row.row)
            stored = store.write_row(row.row, source.read(row.row))
            written += 1
        else:
            missing.append(row.name)
        if stored is not None:
            known[row.row] = (stored.sha256, stored.checksums.tobytes())
        progress.advance()
    progress.end()
    return RestoreReport(len(wanted), written, there, tuple(missing)), known


def _restore_catalogue(folder: Path, location: BankLocation, manifest: Manifest) -> None:
    """Put the records where the bank's database is, all at once."""
    kept = folder / manifest.catalogue
    if not kept.is_file() or file_sha256(kept) != manifest.catalogue_sha256:
        raise BankFormatError(f"{kept}: not as it was backed up; take it from another backup")
    if location.database is None:
        copy = location.folder / ".restored.db.partial"
        shutil.copyfile(kept, copy)
        fsync_path(copy)
        copy.replace(location.folder / "bank.db")
        fsync_path(location.folder)
        return
    # A backup of an earlier version is brought to this one's schema on the way.
    with tempfile.TemporaryDirectory(prefix="lora-bank-") as name:
        copy = Path(shutil.copyfile(kept, Path(name) / "bank.db"))
        with (
            contextlib.closing(Database(sqlite_url(copy), told=lambda _: None)) as source,
            contextlib.closing(Database(location.database, create=True)) as target,
        ):
            copy_records(source, target)


def _has_catalogue(location: BankLocation) -> bool:
    if location.database is None:
        return (location.folder / "bank.db").exists()
    return identity_in(location.database) is not None


def _moved_aside(file: Path) -> Path | None:
    """Give a catalogue that is there another name, its log too, so that nothing of it is lost."""
    if not file.exists():
        return None
    aside = file.with_name(f"bank.replaced-{now().replace(':', '-')}.db")
    for end in ("-wal", "-shm", ""):
        if (part := file.with_name(file.name + end)).exists():
            part.replace(aside.with_name(aside.name + end))
    fsync_path(file.parent)
    return aside


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep others on the folder from writing. Raises ConflictError if one does."""
    locks = FileLocks(target)
    with locks.try_exclusive("ingest") as first, locks.try_exclusive("compute") as second:
        if not (first and second):
            raise ConflictError(
                f"{target}: another process writes in this bank; run it again when that has ended"
            )
        yield
