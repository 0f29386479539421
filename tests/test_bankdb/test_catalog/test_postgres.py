"""A bank whose catalogue is in PostgreSQL: the way to it, locks between machines, a server that goes away."""

from __future__ import annotations

import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sqlalchemy.engine import make_url

from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.catalog.postgresql import AdvisoryLocks
from bankdb.errors import BankNotFoundError, ConflictError, DatabaseUnavailableError
from bankdb.progress import SilentProgress
from bankdb.records import NewAdapter
from bankdb.verify import verify
from cli.main import cli
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions
from tests.support.banks.bank_content import assert_nothing_else, content
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import create_bank, ingest_folder, write_pairs
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.faults.fault_driver import FaultServer
from tests.support.faults.fork_server import ROOT
from tests.support.servers.backends import execute
from tests.support.servers.postgres_server import PASSWORD, PostgresServer, running_server

needs_server = pytest.mark.postgres


@pytest.fixture
def backend() -> str:
    return "postgresql"


@pytest.fixture
def stored(bank: AdapterBank) -> AdapterBank:
    """The bank of six pairs."""
    assert bank.location.database is not None
    return bank


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(item) for item in arguments])


def init(path: Path, tokenizer: Path, database: str) -> Result:
    return run(
        *("init", "--bank", path, "--base-model", BASE_MODEL, "--tokenizer", tokenizer),
        "--database",
        database,
    )


# -- the way to the database ------------------------------------------------------------------------


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseUnavailableError, match=r"pip install 'psycopg\[binary\]>=3\.2'"):
        Database("postgresql+psycopg://ada@db.example/adapters")


def test_a_server_that_is_not_there_is_named(tmp_path: Path, tokenizer_folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        port = unused.getsockname()[1]
        done = init(tmp_path / "bank", tokenizer_folder, f"postgresql://ada:geheim@127.0.0.1:{port}/adapters")
    assert done.exit_code == 1
    assert f"postgresql://ada@127.0.0.1:{port}/adapters: the database cannot be reached" in done.output
    assert "geheim" not in done.output
    assert done.output.count("\n") == 1
    assert not (tmp_path / "bank").exists()


def test_a_url_of_something_else_is_wrong_use(tmp_path: Path, tokenizer_folder: Path) -> None:
    done = init(tmp_path / "bank", tokenizer_folder, "mysql://ada:geheim@db/adapters")
    assert done.exit_code == 2
    assert "expected postgresql+psycopg://USER@HOST/DATABASE" in done.output
    assert "geheim" not in done.output
    assert not (tmp_path / "bank").exists()


@needs_server
def test_the_password_may_come_from_the_environment(
    tmp_path: Path, tokenizer_folder: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = postgres.new_database(owner="guarded"), tmp_path / "bank"
    monkeypatch.setenv("PGPASSWORD", "another")
    done = init(path, tokenizer_folder, url)
    assert done.exit_code == 1
    assert "password authentication failed" in done.output
    assert "PGPASSWORD or ~/.pgpass" in done.output
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert init(path, tokenizer_folder, url).exit_code == 0
    assert run("list", "--bank", path).exit_code == 0
    with AdapterBank.open(path) as bank, bank.ingesting():
        pass
    assert PASSWORD not in (path / "bank.json").read_text()


@needs_server
def test_a_password_in_the_url_is_kept_and_never_shown(
    tmp_path: Path, tokenizer_folder: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGPASSWORD", raising=False)
    url = make_url(postgres.new_database(owner="guarded")).set(password=PASSWORD)
    path = tmp_path / "bank"
    outputs = [init(path, tokenizer_folder, url.render_as_string(hide_password=False))]
    assert outputs[0].exit_code == 0, outputs[0].output
    assert stat.S_IMODE((path / "bank.json").stat().st_mode) == 0o600
    outputs += [run(*command, "--bank", path) for command in (("list",), ("list", "--json"), ("verify",))]
    assert [done.exit_code for done in outputs] == [0, 0, 0, 0]
    outputs.append(init(tmp_path / "other", tokenizer_folder, url.render_as_string(hide_password=False)))
    assert outputs[-1].exit_code == 1
    for done in outputs:
        assert PASSWORD not in done.output
        assert "eim" not in done.output  # nor quoted


@needs_server
def test_a_missing_database_is_named(
    tmp_path: Path, tokenizer_folder: Path, postgres: PostgresServer
) -> None:
    done = init(tmp_path / "bank", tokenizer_folder, postgres.url("nowhere"))
    assert done.exit_code == 1
    assert '"nowhere" does not exist' in done.output


@needs_server
def test_a_database_that_holds_a_bank_is_refused(
    stored: AdapterBank, tmp_path: Path, tokenizer_folder: Path
) -> None:
    url = stored.location.database_url.render_as_string(hide_password=False)
    with pytest.raises(
        ConflictError, match=r"test_\d+: the database already holds a bank; use that bank's folder"
    ):
        create_bank(tmp_path / "other", tokenizer_folder, url)
    assert not (tmp_path / "other").exists()
    shutil.rmtree(stored.store.path)
    with pytest.raises(ConflictError, match="a bank is already here"):
        create_bank(stored.path, tokenizer_folder, url)


@needs_server
def test_a_database_of_something_else_is_left_alone(
    tmp_path: Path, tokenizer_folder: Path, databases: PostgresServer
) -> None:
    url = databases.borrow()
    name = make_url(url).database
    assert name is not None
    with databases.connect(name, "bank") as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
        other.execute("CREATE TABLE alembic_version (version_num TEXT)")
        other.execute("INSERT INTO alembic_version VALUES ('fa7e')")
    with pytest.raises(
        ConflictError, match="expected an empty database, found the tables alembic_version, recipes"
    ):
        create_bank(tmp_path / "bank", tokenizer_folder, url)
    with pytest.raises(BankNotFoundError, match="holds no bank"):
        Database(url)
    with databases.connect(name, "bank") as other:
        found = other.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert sorted(found) == [("alembic_version",), ("recipes",)]


@needs_server
def test_a_database_that_cannot_hold_any_text_is_refused(
    tmp_path: Path, tokenizer_folder: Path, postgres: PostgresServer
) -> None:
    url = postgres.new_database(options="ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(ConflictError, match="expected a database with encoding UTF8, found LATIN1"):
        create_bank(tmp_path / "bank", tokenizer_folder, url)


@needs_server
def test_a_database_that_is_empty_again(stored: AdapterBank) -> None:
    database = stored.location.database_url.database
    assert database is not None
    execute(stored, "DROP SCHEMA public CASCADE; CREATE SCHEMA public", seal=False)
    with pytest.raises(BankNotFoundError, match="holds no bank"):
        AdapterBank.open(stored.path)


# -- locks ------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(stored: AdapterBank, tmp_path: Path) -> Iterator[AdapterBank]:
    """The same bank through a folder of its own, as on another machine."""
    shutil.copytree(stored.path, tmp_path / "elsewhere")
    with AdapterBank.open(tmp_path / "elsewhere") as opened:
        yield opened


@needs_server
def test_locks_hold_between_folders(stored: AdapterBank, elsewhere: AdapterBank) -> None:
    with stored.ingesting():
        with elsewhere.nobody_ingesting() as alone:
            assert not alone
        with elsewhere.ingesting(), elsewhere.nobody_computing() as alone:
            assert alone
    with elsewhere.nobody_ingesting() as alone:
        assert alone
        with stored.nobody_ingesting() as another:
            assert not another
    with stored.computing(SilentProgress()):
        with elsewhere.nobody_computing() as alone:
            assert not alone
        with elsewhere.nobody_ingesting() as alone:
            assert alone
    assert not list(stored.path.glob(".compute.lock"))


HOLD = """
import sys
from bankdb.bank import AdapterBank
from bankdb.catalog.postgresql import AdvisoryLocks
from bankdb.progress import SilentProgress
with AdapterBank.open(sys.argv[1]) as bank, bank.computing(SilentProgress()), bank.ingesting():
    print("holding", flush=True)
    sys.stdin.read()
"""


@needs_server
def test_the_locks_of_a_killed_client_are_free(stored: AdapterBank, elsewhere: AdapterBank) -> None:
    command = [sys.executable, "-c", HOLD, str(elsewhere.path)]
    notes: list[str] = []

    class Noted(SilentProgress):
        def note(self, text: str) -> None:
            notes.append(text)
            process.send_signal(signal.SIGKILL)  # only now, that somebody waits

    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holding\n"
        with stored.nobody_ingesting() as alone:
            assert not alone
        with stored.computing(Noted()):
            assert process.wait() == -signal.SIGKILL
    assert len(notes) == 1
    assert "waiting" in notes[0]
    end = time.monotonic() + 30
    while not is_alone(stored):
        assert time.monotonic() < end


def is_alone(bank: AdapterBank) -> bool:
    with bank.nobody_ingesting() as alone:
        return alone


@needs_server
def test_a_writer_whose_lock_is_lost_stops(stored: AdapterBank, elsewhere: AdapterBank) -> None:
    """Else it would write beside another client that the server has given the lock meanwhile."""
    with stored.ingesting():
        elsewhere.catalog.remove("task000")
        stored.catalog.remove("task001")
        cut_connections(stored)
        assert len(stored) == 4  # what is read needs no lock
        for _ in range(2):  # the lock does not come back with the next connection
            with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
                stored.catalog.remove("task002")
    assert [record.name for record in stored.adapters()] == ["task002", "task003", "task004", "task005"]
    with stored.ingesting():
        stored.catalog.remove("task002")
    assert len(elsewhere) == 3


@needs_server
def test_a_server_that_goes_as_a_writer_begins(
    stored: AdapterBank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The one error is raised, and none is logged for the transaction that cannot be rolled back any more."""
    check = AdvisoryLocks.check

    def cut_and_check(locks: AdvisoryLocks) -> None:
        cut_connections(stored)
        check(locks)

    with stored.ingesting():
        monkeypatch.setattr(AdvisoryLocks, "check", cut_and_check)
        with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
            stored.catalog.remove("task000")
        monkeypatch.undo()
    assert caplog.records == []
    assert len(stored) == 6


def cut_connections(bank: AdapterBank) -> None:
    execute(
        bank,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid != pg_backend_pid()",
        seal=False,
    )


# -- a server that goes away ------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that other tests do not see die."""
    with running_server() as server:
        yield server


@needs_server
@pytest.mark.faults
def test_a_server_that_dies_during_an_ingest(
    own_server: PostgresServer, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends with an error that names it; the same command goes on when it is back."""
    pairs = write_pairs(tmp_path / "pairs", 30)
    with create_bank(tmp_path / "unbroken", tokenizer_folder) as unbroken:
        ingest_folder(unbroken, pairs)
        expected = content(unbroken)
    path, log = tmp_path / "bank", tmp_path / "log"
    bank = create_bank(path, tokenizer_folder, own_server.new_database())
    commands = FaultServer()
    first = commands.start("ingest", "--bank", path, pairs, log=log)
    end = time.monotonic() + 60
    while len(bank) < 5:
        assert time.monotonic() < end, log.read_text()
    own_server.crash()
    assert commands.wait(first) == 1, log.read_text()
    assert f"127.0.0.1:{own_server.port}/test_1: the database cannot be reached" in log.read_text()
    assert log.read_text().count("cannot be reached") == 1, log.read_text()  # no pair is refused for it
    assert "Traceback" not in log.read_text()
    with pytest.raises(DatabaseUnavailableError):
        verify(bank)  # not a word of damage
    own_server.start()
    found = content(bank)  # the same object, after the server is back
    assert 5 <= len(found) < 30
    assert found == {name: expected[name] for name in found}
    assert verify(bank).clean
    assert commands.wait(commands.start("ingest", "--bank", path, pairs, log=log)) == 0, log.read_text()
    assert content(bank) == expected
    assert_nothing_else(bank)
    commands.close()

    # The same within one process, at the worst moment: a row is written and about to be made ready.
    make_ready, calls = bank.catalog.make_ready, 0

    def crash_before(new: NewAdapter, *, replace: bool = False) -> tuple[bool, list[int]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            own_server.crash()
        return make_ready(new, replace=replace)

    for name in ("task003", "task007", "task020"):
        bank.remove(name)
    monkeypatch.setattr(bank.catalog, "make_ready", crash_before)
    with pytest.raises(DatabaseUnavailableError):  # and not a report that refuses the pairs
        ingest_folder(bank, pairs)
    own_server.start()
    assert len(bank) == 28
    assert ingest_folder(bank, pairs).added == ["task007", "task020"]
    assert content(bank) == expected
    assert_nothing_else(bank)
    bank.close()


# -- computing --------------------------------------------------------------------------------------


@needs_server
def test_workers_do_not_open_the_database(
    stored: AdapterBank, bank_template: Path, databases: PostgresServer, tmp_path: Path
) -> None:
    """And what they compute is what it is with SQLite."""
    database = stored.location.database_url.database
    assert database is not None
    databases.log.write_bytes(b"")
    command = ["-m", "cli.main", "predict", "--all", "--store", "--workers", "2", "--bank", str(stored.path)]
    with subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        output = process.communicate()[0]
    assert process.returncode == 0, output
    assert databases.clients(database) == {f"lora-bank {process.pid}"}
    shutil.copytree(bank_template, tmp_path / "sqlite")
    with (
        AdapterBank.open(tmp_path / "sqlite") as other,
        open_cluster(ClusterOptions(workers=1, processes=False), SilentProgress()) as cluster,
    ):
        expected = predict_all_stored(other, cluster=cluster)
    (found,) = (stored.path / "predictions.zarr").glob("*/adapters")
    np.testing.assert_array_equal(open_array(found)[:, :], open_array(expected.path / "adapters")[:, :])
