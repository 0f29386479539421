"""Backups: whole, brought back whole or one half, on every database; killed; damaged; and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.backup import backup as backing
from bankdb.backup import restore as restoring
from bankdb.backup.backup import backup
from bankdb.backup.restore import restore, restore_catalogue, restore_rows
from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.errors import BankError, BankFormatError, BankNotFoundError, ConflictError, ParameterError
from bankdb.records import GenerationKey, GenerationRecord
from bankdb.verify import verify
from cli.main import cli
from tests.support.banks.bank_content import content
from tests.support.banks.small_bank import ingest_folder, write_pairs
from tests.support.servers.postgres_server import PostgresServer

EVERY_BACKEND = True
ANSWERS = GenerationRecord(GenerationKey("a" * 64, "b" * 64, "c" * 64), ("yes", "no"), 2, 0.5)


@pytest.fixture
def new_database(backend: str, request: pytest.FixtureRequest) -> Callable[[], str | None]:
    """An empty database of the same kind; None is a file."""

    def new() -> str | None:
        if backend == "sqlite":
            return None
        server: PostgresServer = request.getfixturevalue("databases")
        return server.borrow()

    return new


@pytest.fixture
def kept(bank: AdapterBank, tmp_path: Path) -> Path:
    """A backup of the bank with six pairs, and answers."""
    bank.generations.keep(ANSWERS)
    backup(bank, tmp_path / "kept")
    return tmp_path / "kept"


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_bank_comes_back_whole(
    bank: AdapterBank, kept: Path, tmp_path: Path, new_database: Callable[[], str | None], pairs_folder: Path
) -> None:
    database = new_database()
    words = ["restore", kept, "--bank", tmp_path / "new"]
    done = run(*words, *([] if database is None else ["--database", database]))
    assert done.exit_code == 0, done.output
    assert "6 rows written" in done.stdout
    with AdapterBank.open(tmp_path / "new") as again:
        assert verify(again).damage == verify(again).leftovers == []
        assert content(again) == content(bank)
        assert (again.record, again.adapters()) == (bank.record, bank.adapters())
        assert again.generations.find(ANSWERS.key) == bank.generations.find(ANSWERS.key)
        assert again.tokenizer.fingerprint == bank.tokenizer.fingerprint
        # It goes on as a bank of its own: numbers of rows and records too.
        more = write_pairs(tmp_path / "more", 1, start=50)
        assert len(ingest_folder(again, more).added) == 1
        assert len(ingest_folder(again, pairs_folder).skipped) == 6
    with AdapterBank.open(tmp_path / "new") as again:
        assert verify(again).clean


def test_rows_that_are_there_are_not_copied_again(bank: AdapterBank, kept: Path, tmp_path: Path) -> None:
    ingest_folder(bank, write_pairs(tmp_path / "more", 1, start=50))
    bank.remove("task001")
    done = run("backup", kept, "--bank", bank.path, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"adapters": 6, "copied": 1, "there": 5}
    assert sorted(AdapterStore(kept / "adapters.zarr").rows_on_disk()) == [0, 2, 3, 4, 5, 6]
    assert len(list(kept.glob("*catalogue*"))) == 1


@pytest.mark.sqlite
def test_under_a_url(bank: AdapterBank, kept: Path, tmp_path: Path, s3: str) -> None:
    restore(kept, tmp_path / "new", arrays=s3)
    with AdapterBank.open(tmp_path / "new") as again:
        assert verify(again).clean
        assert content(again) == content(bank)
        backup(again, tmp_path / "from-url")
    restore(tmp_path / "from-url", tmp_path / "home")
    with AdapterBank.open(tmp_path / "home") as home:
        assert content(home) == content(bank)


# -- one half without the other -------------------------------------------------------------------------


@pytest.mark.sqlite
def test_the_catalogue_was_lost(bank: AdapterBank, kept: Path, tmp_path: Path) -> None:
    """What was stored after the backup is an orphan, what was removed after it is missing, by name."""
    ingest_folder(bank, write_pairs(tmp_path / "more", 1, start=50))
    bank.remove("task001")
    path, before = bank.path, content(bank)
    bank.close()
    (path / "bank.db").write_bytes(b"nothing that SQLite reads")
    done = run("restore", kept, "--bank", path, "--only", "catalogue")
    assert done.exit_code == 0, done.output
    (aside,) = path.glob("bank.replaced-*.db")
    assert aside.read_bytes() == b"nothing that SQLite reads"
    assert str(aside) in done.stdout
    with AdapterBank.open(path) as again:
        report = verify(again)
        orphan, missing = sorted(report.damage, key=lambda line: "missing" in line)
        assert "adapters.zarr/c/6: orphan" in orphan
        assert "task001" in missing
        assert any("another copy of this bank" in line for line in report.leftovers)
        found = {record.name for record in again.adapters()}
        assert found == {f"task00{number}" for number in range(6)}
        with pytest.raises(ConflictError, match="another copy"):
            again.remove("task000")
        assert before.keys() - found == {"task050"}


@pytest.mark.sqlite
def test_rows_were_lost(bank: AdapterBank, kept: Path, tmp_path: Path) -> None:
    """Those that the backup has come back; one that is newer is named."""
    before = content(bank)
    ingest_folder(bank, write_pairs(tmp_path / "more", 1, start=50))
    path = bank.path
    bank.close()
    shutil.rmtree(path / "adapters.zarr")
    done = run("restore", kept, "--bank", path, "--only", "arrays")
    assert done.exit_code == 1, done.output
    assert "missing: task050" in done.stderr
    assert "6 rows written" in done.stdout
    with AdapterBank.open(path) as again:
        again.remove("task050")
        assert content(again) == before
    done = run("restore", kept, "--bank", path, "--only", "arrays")
    assert "0 rows written, 6 there already" in done.stdout


def test_rows_alone_have_no_names(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(BankNotFoundError, match="ingest the adapters again"):
        restore_rows(kept, tmp_path / "bare")


def test_a_catalogue_alone(
    bank: AdapterBank, tmp_path: Path, new_database: Callable[[], str | None], backend: str
) -> None:
    assert run("backup", tmp_path / "records", "--bank", bank.path, "--catalogue-only").exit_code == 0
    assert not (tmp_path / "records" / "adapters.zarr").exists()
    with pytest.raises(BankNotFoundError, match="catalogue alone"):
        restore(tmp_path / "records", tmp_path / "new")
    if backend != "sqlite":
        with pytest.raises(ConflictError, match="empty database"):
            restore_catalogue(tmp_path / "records", bank.path)
    found, before = content(bank), bank.adapters()
    bank.close()
    restore_catalogue(tmp_path / "records", bank.path, database=new_database())
    with AdapterBank.open(bank.path) as again:
        assert verify(again).clean
        assert (content(again), again.adapters()) == (found, before)


# -- refused --------------------------------------------------------------------------------------------


def test_what_is_refused(bank: AdapterBank, kept: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="own folder"):
        backup(bank, bank.path / "kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    with pytest.raises(ConflictError, match="no backup"):
        backup(bank, tmp_path / "full")
    with pytest.raises(ConflictError, match="empty folder"):
        restore(kept, tmp_path / "full")
    with pytest.raises(BankNotFoundError, match="no backup"):
        restore(tmp_path / "absent", tmp_path / "new")
    with bank.ingesting(), pytest.raises(ConflictError, match="being stored"):
        backup(bank, kept)
    assert [item.name for item in (tmp_path / "full").iterdir()] == ["letter"]
    assert not (tmp_path / "new").exists()


@pytest.mark.sqlite
def test_a_damaged_bank_does_not_replace_a_backup(bank: AdapterBank, kept: Path) -> None:
    manifest = (kept / "backup.json").read_bytes()
    shutil.rmtree(kept / "adapters.zarr" / "c" / "3")
    file = Path(str(bank.store.file(3)))
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BankError):
        backup(bank, kept)
    with closing(sqlite3.connect(bank.path / "bank.db")) as connection, connection:
        connection.execute("UPDATE adapter SET rank = rank + 1 WHERE row = 2")
    with pytest.raises(BankFormatError):
        backup(bank, kept)
    assert (kept / "backup.json").read_bytes() == manifest


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "part", ["adapters.zarr/c/2/0", "catalogue", "folder/tokenizer/tokenizer.json", "backup.json"]
)
def test_a_damaged_backup_makes_no_bank(kept: Path, tmp_path: Path, part: str) -> None:
    file = next(kept.glob("catalogue-*")) if part == "catalogue" else kept / part
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if part == "backup.json":
        data = bytearray(
            file.read_bytes().replace(b'"folder', b'"../folder').replace(b'"tokenizer/', b'"../t/')
        )
    file.write_bytes(data)
    with pytest.raises(BankFormatError):
        restore(kept, tmp_path / "new")
    with pytest.raises(BankError):
        AdapterBank.open(tmp_path / "new")


# -- killed ---------------------------------------------------------------------------------------------


def killed(work: Callable[[], object]) -> bool:
    """Do some work in a process that is killed, or that ends; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


STEPS = [
    (AdapterStore, "write_row", 3),
    (backing, "copy_to_file", 1),
    (backing, "write_file", 2),
    (backing, "_clear", 1),
    (restoring, "write_file", 1),
    (restoring, "fsync_path", 1),
    (restoring, "_restore_rows", 1),
]


@pytest.mark.faults
@pytest.mark.sqlite
@pytest.mark.parametrize(("owner", "name", "number"), STEPS)
def test_killed_it_goes_on(
    bank: AdapterBank, tmp_path: Path, owner: object, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command again makes what an unbroken one makes."""
    whole = content(bank)
    bank.close()
    function, calls = getattr(owner, name), 0

    def armed(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        found = function(*arguments, **options)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    def keep() -> None:
        with AdapterBank.open(bank.path) as opened:
            backup(opened, tmp_path / "kept")

    monkeypatch.setattr(owner, name, armed)
    during = [killed(keep)]
    monkeypatch.setattr(owner, name, function)
    keep()
    monkeypatch.setattr(owner, name, armed)
    during.append(killed(lambda: restore(tmp_path / "kept", tmp_path / "new")))
    monkeypatch.setattr(owner, name, function)
    assert any(during)
    if during[1]:
        restore(tmp_path / "kept", tmp_path / "new")
    with AdapterBank.open(tmp_path / "new") as again:
        assert verify(again).clean
        assert content(again) == whole


def test_no_record_is_left_out(bank: AdapterBank, kept: Path) -> None:
    """Every table, every column: what the file has is what the database has."""
    from sqlalchemy import select

    from bankdb.backup.copied_records import sqlite_url
    from bankdb.catalog.schema import Base

    (file,) = kept.glob("catalogue-*.db")
    with (
        closing(Database(sqlite_url(file))) as copy,
        closing(Database(bank.location.database_url)) as own,
        copy.read() as there,
        own.read() as here,
    ):
        for table in Base.metadata.sorted_tables:
            found = [sorted(map(repr, one.connection().execute(select(table)))) for one in (there, here)]
            assert found[0] == found[1], table.name
