"""An older schema is upgraded: said, with a copy, not beside writers; killed, it is the one or the other."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import signal
import sqlite3
import stat
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine.default import DefaultDialect

from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database, _backend
from bankdb.catalog.migrations.apply import HEAD
from bankdb.errors import BankNotFoundError, ConflictError, FileSystemError
from bankdb.storage.location import BankLocation
from bankdb.verify import verify
from cli.main import cli
from tests.support.faults.fault_driver import FaultServer
from tests.support.servers.backends import BEFORE, downgraded, move_database, take_back

EVERY_BACKEND = True
PACKED = Path(__file__).parents[2] / "data" / "bank-0.1.tar.xz"
# Statements of the upgrade at which it is killed by default; FAULT_KILLS=1000 is every one.
KILLS = int(os.environ.get("FAULT_KILLS", "10"))
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank that version 0.1.0 left behind."""
    path = tmp_path_factory.mktemp("released")
    with tarfile.open(PACKED) as packed:
        members = [one for one in packed.getmembers() if one.name.split("/")[0] == "bank"]
        packed.extractall(path, members=members, filter="data")
    return path / "bank"


@pytest.fixture
def old(
    tmp_path: Path, released: Path, postgres_template_or_none: Path | None, request: pytest.FixtureRequest
) -> Path:
    """A bank of the schema before: in a file, as it was released; on a server, taken back."""
    path = tmp_path / "bank"
    if postgres_template_or_none is None:
        return Path(shutil.copytree(released, path))
    shutil.copytree(postgres_template_or_none, path)
    move_database(path, request.getfixturevalue("databases"))
    take_back(path)
    return path


@pytest.fixture
def postgres_template_or_none(backend: str, request: pytest.FixtureRequest) -> Path | None:
    return None if backend == "sqlite" else request.getfixturevalue("postgres_template")


def tables(path: Path) -> tuple[str, dict[str, list[str]], dict[str, list[tuple[Any, ...]]]]:
    """Revision, columns, and what version 0.1.0 knew of every record, past any code of the bank's."""
    engine = create_engine(BankLocation.of(path).database_url)
    with engine.connect() as connection:
        revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
        found = inspect(connection)
        columns = {name: [one["name"] for one in found.get_columns(name)] for name in found.get_table_names()}
        new = {"checksum", "owner", "owner_before", "checksums"}
        records = {}
        for name in columns.keys() - {"alembic_version"}:
            known = ", ".join(f'"{one}"' for one in columns[name] if one not in new)
            rows = connection.execute(text(f"SELECT {known} FROM {name}"))
            records[name] = sorted((tuple(row) for row in rows), key=repr)
    engine.dispose()
    return str(revision), columns, records


def copies(path: Path) -> list[Path]:
    return sorted(path.glob("bank.schema-*.db"))


def test_it_is_said_once(old: Path, backend: str) -> None:
    words = ["list", "--bank", str(old), "--json"]
    first, second = (CliRunner().invoke(cli, words) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert first.stdout == second.stdout
    (line,) = first.stderr.splitlines()
    assert f"schema {BEFORE} becomes {HEAD}" in line
    assert second.stderr == ""
    if backend == "sqlite":
        assert str(copies(old)[0]) in line


def test_whoever_uses_the_library_is_warned(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), AdapterBank.open(old):
        pass
    assert [BEFORE in record.message for record in caplog.records] == [True]


def test_no_record_changes(old: Path) -> None:
    revision, _, before = tables(old)
    assert revision == BEFORE
    with AdapterBank.open(old, told=lambda _: None) as bank:
        assert bank.database_problems() == []
    revision, _, after = tables(old)
    assert (revision, after) == (HEAD, before)


@pytest.mark.sqlite
def test_the_copy_is_the_bank_before(old: Path) -> None:
    with closing(sqlite3.connect(old / "bank.db")) as connection:
        before = list(connection.iterdump())
    (old / "bank.db").chmod(0o640)
    AdapterBank.open(old, told=lambda _: None).close()
    (copy,) = copies(old)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o640
    with closing(sqlite3.connect(copy)) as connection:
        assert list(connection.iterdump()) == before
    assert sorted(item.name for item in old.glob("*bank.*")) == ["bank.db", copy.name]


@pytest.mark.parametrize("lock", ["ingest", "compute"])
def test_it_waits_for_nobody_who_writes(old: Path, lock: str) -> None:
    """An older version that stores adapters or computes has the locks that this one asks for."""
    probe = _locks(old)
    holding = probe.shared("ingest") if lock == "ingest" else probe.exclusive("compute", lambda: None)
    with holding, pytest.raises(ConflictError, match=f"{BEFORE} has to become {HEAD}.*run the same command"):
        AdapterBank.open(old)
    assert tables(old)[0] == BEFORE
    assert copies(old) == []
    AdapterBank.open(old, told=lambda _: None).close()
    assert tables(old)[0] == HEAD


def _locks(path: Path) -> Any:
    return _backend(BankLocation.of(path).database_url, False).locks(path)


def test_an_upgrade_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bankdb.catalog.migrations import apply

    def upgraded(connection: Any) -> None:
        apply.upgrade(connection)
        raise KeyboardInterrupt

    before = tables(old)
    with monkeypatch.context() as patch:
        patch.setattr("bankdb.catalog.database.upgrade", upgraded)
        with pytest.raises(KeyboardInterrupt):
            AdapterBank.open(old)
    assert tables(old) == before
    assert copies(old) == []
    AdapterBank.open(old, told=lambda _: None).close()


@pytest.mark.sqlite
def test_no_room_for_the_copy(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables(old)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("bankdb.catalog.sqlite.fsync_path", full)
        with pytest.raises(FileSystemError, match=r"nothing was changed.*room"):
            AdapterBank.open(old)
    assert tables(old) == before
    assert list(old.glob("*schema*")) == list(old.glob(".*schema*")) == []


def test_completion_upgrades_nothing(old: Path) -> None:
    """It would say so in the line that somebody types."""
    completing = {
        "_BANK_COMPLETE": "bash_complete",
        "COMP_WORDS": f"bank show --bank {old} f",
        "COMP_CWORD": "4",
    }
    done = CliRunner().invoke(cli, [], prog_name="bank", env=completing)
    assert done.output.strip() == ""
    assert tables(old)[0] == BEFORE
    assert copies(old) == []


@pytest.mark.sqlite
def test_a_bank_that_was_never_finished(tmp_path: Path) -> None:
    """An older version's `init` was killed: nothing is there to be copied, and `init` goes on."""
    database = Database(f"sqlite:///{tmp_path / 'bank.db'}", create=True)
    downgraded(database)
    database.close()
    with pytest.raises(BankNotFoundError, match="bank init"):
        AdapterBank.open(tmp_path)
    assert copies(tmp_path) == []


# -- killed ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def points(path: Path) -> list[str]:
    """Upgrade a bank; return every place between two statements of that, as the server names it."""
    counts = {"do_execute": 0, "do_executemany": 0}

    def counting(name: str) -> Any:
        function = getattr(DefaultDialect, name)

        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in counts:
            patch.setattr(DefaultDialect, name, counting(name))
        Database(BankLocation.of(path).database_url, told=lambda _: None).close()
    single = [f"execute begin {number + 1}" for number in range(counts["do_execute"])]
    many = [f"execute_many end {number + 1}" for number in range(counts["do_executemany"])]
    return [*single, *many, "upgrade end 1", "commit begin 1", "commit end 1"]


@pytest.mark.faults
def test_killed_at_every_statement(old: Path, server: FaultServer, tmp_path: Path, backend: str) -> None:
    before, places = tables(old), points(old)
    after = tables(old)
    assert (before[0], after[0]) == (BEFORE, HEAD)
    assert len(places) > 2 * len(after[1])  # a statement or more for each table
    take_back(old)
    places += ["keep_copy begin 1", "keep_copy end 1"] if backend == "sqlite" else []
    chosen = random.Random(0).sample(places, min(KILLS, len(places)))
    seen = set()
    for place in [*chosen, "commit begin 1", "commit end 1"]:
        status = server.wait(server.start("list", "--bank", old, log=tmp_path / "log", kill=place))
        assert status == KILLED, (place, (tmp_path / "log").read_text())
        found = tables(old)
        assert found in (before, after), place
        seen.add(found[0])
        if found == after:
            take_back(old)
    assert seen == {BEFORE, HEAD}
    assert server.wait(server.start("list", "--bank", old, log=tmp_path / "log")) == 0
    assert tables(old) == after
    with AdapterBank.open(old) as bank:
        assert verify(bank).clean
    assert list(old.glob(".*partial")) == []
