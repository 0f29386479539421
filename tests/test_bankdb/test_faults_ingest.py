"""Processes that are killed, and several at once: nothing is lost, nothing doubled, all can go on.

`FAULT_KILLS` sets the number of random kills. Commands are forked from a server that has the imports done
(`fault_driver`), so that the moments fall into the work and not into the start of Python; a few are cold.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bankdb.bank import AdapterBank
from bankdb.errors import BankNotFoundError
from bankdb.verify import verify
from tests.support.banks.bank_content import assert_nothing_else, content
from tests.support.banks.malformed_adapters import BASE_MODEL, write_good_adapter
from tests.support.banks.small_bank import create_bank, ingest_folder, write_dataset, write_pairs
from tests.support.faults.fault_driver import FaultServer
from tests.support.faults.fork_server import ROOT
from tests.support.servers.backends import move_database
from tests.support.servers.postgres_server import PostgresServer

pytestmark = pytest.mark.faults

EVERY_BACKEND = True
KILLS = int(os.environ.get("FAULT_KILLS", "15"))
SEED = int(os.environ.get("FAULT_SEED", "0"))
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    server = FaultServer()
    yield server
    server.close()


@dataclass(frozen=True)
class Pairs:
    """A folder of pairs, and what an unbroken ingest of it stores."""

    folder: Path
    expected: dict[str, tuple[Any, ...]]


@pytest.fixture(scope="module")
def empty_template(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    path = tmp_path_factory.mktemp("empty") / "bank"
    create_bank(path, tokenizer_folder).close()
    return path


def unbroken(folder: Path, template: Path, path: Path) -> Pairs:
    shutil.copytree(template, path)
    with AdapterBank.open(path) as bank:
        assert ingest_folder(bank, folder).refused == []
        return Pairs(folder, content(bank))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, empty_template: Path) -> Pairs:
    root = tmp_path_factory.mktemp("many")
    return unbroken(
        write_pairs(root / "pairs", 30, dtypes=("F32", "F16", "BF16")), empty_template, root / "bank"
    )


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, empty_template: Path) -> Pairs:
    root = tmp_path_factory.mktemp("few")
    return unbroken(write_pairs(root / "pairs", 3, dtypes=("F32", "BF16")), empty_template, root / "bank")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, empty_template: Path) -> Pairs:
    """Of more than 1 MiB each: two rows are written at a time."""
    root = tmp_path_factory.mktemp("large")
    for number in range(5):
        write_dataset(root / "pairs/datasets" / f"task{number}", number)
        write_good_adapter(root / "pairs/adapters" / f"task{number}", seed=number, r=4096)
    return unbroken(root / "pairs", empty_template, root / "bank")


@pytest.fixture(scope="module")
def empty_postgres(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, postgres: PostgresServer
) -> Path:
    path = tmp_path_factory.mktemp("empty") / "bank"
    create_bank(path, tokenizer_folder, postgres.new_database()).close()
    return path


@pytest.fixture
def fresh(tmp_path: Path, empty_template: Path, backend: str, request: pytest.FixtureRequest) -> Path:
    """An empty bank."""
    if backend == "sqlite":
        return Path(shutil.copytree(empty_template, tmp_path / "bank"))
    shutil.copytree(request.getfixturevalue("empty_postgres"), tmp_path / "bank")
    move_database(tmp_path / "bank", request.getfixturevalue("databases"))
    return tmp_path / "bank"


def assert_whole(path: Path, expected: dict[str, tuple[Any, ...]]) -> int:
    """The bank opens, is clean, and each of its adapters is what an unbroken run stores; their number."""
    with AdapterBank.open(path) as bank:
        report = verify(bank)
        assert report.clean, report.damage
        found = content(bank)
        assert report.checked == len(found)
    assert found == {name: expected[name] for name in found}
    return len(found)


def finish(path: Path, pairs: Pairs) -> None:
    """The same command again: all is there, nothing else, and it says so."""
    with AdapterBank.open(path) as bank:
        report = ingest_folder(bank, pairs.folder)
        assert report.refused == []
        assert len(report.added) + len(report.skipped) + len(report.replaced) == len(pairs.expected)
        assert content(bank) == pairs.expected
        assert_nothing_else(bank)


# -- at random moments ------------------------------------------------------------------------------


def timed(server: FaultServer, path: Path, folder: Path) -> float:
    begin = time.perf_counter()
    assert server.wait(server.start("ingest", "--bank", path, folder, log=path.with_name("log"))) == 0
    return time.perf_counter() - begin


def test_ingest_killed_at_random_moments(
    server: FaultServer, many: Pairs, empty_template: Path, tmp_path: Path
) -> None:
    """Spread over the start of the command and over its work, however far an earlier kill let it come."""
    rng = random.Random(SEED)
    total = len(many.expected)
    path = Path(shutil.copytree(empty_template, tmp_path / "measured"))
    whole, idle = timed(server, path, many.folder), timed(server, path, many.folder)
    killed, within, stored = 0, 0, total
    while killed < KILLS:
        if stored == total:
            path = Path(shutil.copytree(empty_template, tmp_path / f"bank{killed}-{rng.random()}"))
            stored = 0
        more = rng.randint(0, min(total - stored, 8))
        pause = rng.uniform(0, idle if more == 0 else 2 * (whole - idle) / total)
        pid = server.start("ingest", "--bank", path, many.folder, log=tmp_path / "log")
        wait_for(path, stored + more)
        time.sleep(pause)
        os.kill(pid, signal.SIGKILL)
        status = server.wait(pid)
        assert status in (0, KILLED), (tmp_path / "log").read_text()
        before, stored = stored, assert_whole(path, many.expected)
        assert stored >= before + more
        killed += status == KILLED
        within += status == KILLED and more > 0
    assert within >= KILLS // 2
    finish(path, many)


def wait_for(path: Path, number: int, seconds: float = 60) -> None:
    """Wait until the bank has so many adapters."""
    end = time.monotonic() + seconds
    with AdapterBank.open(path) as bank:
        while len(bank) < number:
            assert time.monotonic() < end, f"only {len(bank)} of {number} adapters after {seconds} s"
            time.sleep(0.002)


def test_ingest_killed_from_a_cold_start(many: Pairs, fresh: Path) -> None:
    """`python -m cli.main` itself, killed in the midst of its work and run again."""
    command = [sys.executable, "-m", "cli.main", "ingest", "--bank", str(fresh), str(many.folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(fresh, 7)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == KILLED, output
    assert 7 <= assert_whole(fresh, many.expected) < len(many.expected)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert assert_whole(fresh, many.expected) == len(many.expected)
    finish(fresh, many)


# -- at chosen points -------------------------------------------------------------------------------

INGEST_POINTS = [
    "reserve begin 1",
    "create_array end 1",
    "grow end 1",
    "commit end 1",
    "reserve end 1",
    "write begin 1",
    "rename begin 4",
    "rename end 4",
    "fsync_row end 1",
    "write end 1",
    "make_ready begin 1",
    "commit begin 2",
    "commit end 2",
    "make_ready end 1",
    "fsync begin 12",
    "make_ready end 2",
    "make_ready end 3",
]


@pytest.mark.parametrize("point", INGEST_POINTS)
def test_ingest_killed_at_a_point(server: FaultServer, few: Pairs, fresh: Path, point: str) -> None:
    log = fresh.with_name("log")
    status = server.wait(server.start("ingest", "--bank", fresh, few.folder, log=log, kill=point))
    assert status == KILLED, log.read_text() if log.exists() else status
    assert_whole(fresh, few.expected)
    finish(fresh, few)


BESIDE_POINTS = [
    "write begin 1",
    "write begin 2",
    "write end 1",
    "write end 2",
    "make_ready begin 1",
    "make_ready end 1",
    "reserve end 2",
    "reserve end 3",
    "commit begin 3",
    "commit end 3",
    "write end 4",
]


@pytest.mark.parametrize("point", BESIDE_POINTS)
def test_ingest_killed_where_two_rows_are_written(
    server: FaultServer, large: Pairs, fresh: Path, point: str
) -> None:
    log = fresh.with_name("log")
    status = server.wait(server.start("ingest", "--bank", fresh, large.folder, log=log, kill=point))
    assert status == KILLED, log.read_text() if log.exists() else status
    assert_whole(fresh, large.expected)
    finish(fresh, large)


REPLACE_POINTS = [
    "write end 1",
    "commit begin 2",
    "commit end 2",
    "delete begin 1",
    "delete end 1",
    "make_ready end 2",
]


@pytest.mark.parametrize("point", REPLACE_POINTS)
def test_replacing_killed_at_a_point(
    server: FaultServer, few: Pairs, fresh: Path, tmp_path: Path, point: str, replaced: Pairs
) -> None:
    with AdapterBank.open(fresh) as bank:
        ingest_folder(bank, few.folder)
    arguments = ("ingest", "--bank", fresh, replaced.folder, "--replace")
    assert server.wait(server.start(*arguments, log=tmp_path / "log", kill=point)) == KILLED
    with AdapterBank.open(fresh) as bank:
        assert verify(bank).clean
        found = content(bank)
    # Of each pair the old or the new, whole.
    assert found.keys() == few.expected.keys()
    for name, values in found.items():
        assert values in ((few.expected[name], replaced.expected[name])), name
    assert server.wait(server.start(*arguments, log=tmp_path / "log")) == 0
    with AdapterBank.open(fresh) as bank:
        assert {name: values[1:] for name, values in content(bank).items()} == {
            name: values[1:] for name, values in replaced.expected.items()
        }
        assert_nothing_else(bank)


@pytest.fixture(scope="module")
def replaced(few: Pairs, tmp_path_factory: pytest.TempPathFactory, empty_template: Path) -> Pairs:
    """The same names with other weights."""
    root = tmp_path_factory.mktemp("replaced")
    shutil.copytree(few.folder, root / "pairs")
    for seed, folder in enumerate(sorted((root / "pairs" / "adapters").iterdir())):
        shutil.rmtree(folder)
        write_good_adapter(folder, seed=100 + seed)
    return unbroken(root / "pairs", empty_template, root / "bank")


@pytest.mark.parametrize("point", ["remove begin 1", "commit begin 1", "remove end 1", "delete end 1"])
def test_removal_killed_at_a_point(
    server: FaultServer, few: Pairs, fresh: Path, tmp_path: Path, point: str
) -> None:
    with AdapterBank.open(fresh) as bank:
        ingest_folder(bank, few.folder)
    status = server.wait(server.start("remove", "--bank", fresh, "task001", log=tmp_path / "log", kill=point))
    assert status == KILLED
    there = assert_whole(fresh, few.expected)
    assert there == (3 if "begin" in point else 2)
    finish(fresh, few)


INIT_POINTS = [
    "save end 1",
    "fsync_bank begin 1",
    "fsync_bank end 3",
    "upgrade end 1",
    "commit end 1",
    "create_bank begin 1",
    "commit begin 2",
]


@pytest.mark.parametrize("point", INIT_POINTS)
def test_init_killed_at_a_point(
    server: FaultServer,
    few: Pairs,
    tokenizer_folder: Path,
    tmp_path: Path,
    backend: str,
    database_url: str,
    point: str,
) -> None:
    path = tmp_path / "bank"
    arguments = ["init", "--bank", path, "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder]
    if backend == "postgresql":
        arguments += ["--database", database_url]
    assert server.wait(server.start(*arguments, log=tmp_path / "log", kill=point)) == KILLED
    with pytest.raises(BankNotFoundError, match="bank init"):
        AdapterBank.open(path)
    assert server.wait(server.start(*arguments, log=tmp_path / "log")) == 0
    finish(path, few)


# -- several at once --------------------------------------------------------------------------------


def outputs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("log*")))


@pytest.mark.parametrize("repetition", range(3))
def test_two_ingests_of_one_folder_at_once(
    server: FaultServer, many: Pairs, fresh: Path, tmp_path: Path, repetition: int
) -> None:
    started = [
        server.start("ingest", "--bank", fresh, many.folder, log=tmp_path / f"log{number}")
        for number in (0, 1)
    ]
    assert [server.wait(pid) for pid in started] == [0, 0], outputs(tmp_path)
    assert assert_whole(fresh, many.expected) == len(many.expected)
    finish(fresh, many)


@pytest.mark.parametrize("repetition", range(2))
def test_ingests_of_overlapping_folders_at_once(
    server: FaultServer, many: Pairs, fresh: Path, tmp_path: Path, repetition: int
) -> None:
    """Three clients: the first two thirds, the last two thirds, and all, given by manifests."""
    names = sorted(many.expected)
    started = []
    for number, part in enumerate((names[:20], names[10:][::-1], names)):
        lines = [f"{name},{many.folder}/adapters/{name},{many.folder}/datasets/{name}" for name in part]
        manifest = tmp_path / f"manifest{number}.csv"
        manifest.write_text("\n".join(["name,adapter,dataset", *lines]) + "\n")
        started.append(server.start("ingest", "--bank", fresh, manifest, log=tmp_path / f"log{number}"))
    assert [server.wait(pid) for pid in started] == [0, 0, 0], outputs(tmp_path)
    assert assert_whole(fresh, many.expected) == len(many.expected)
    finish(fresh, many)


def test_one_of_two_ingests_is_killed(server: FaultServer, many: Pairs, fresh: Path, tmp_path: Path) -> None:
    """The other goes on as if nothing had happened, and does not touch what the first left."""
    first = server.start("ingest", "--bank", fresh, many.folder, log=tmp_path / "log0", stop="write end 5")
    server.stopped(first)  # with four adapters ready, and one written
    second = server.start("ingest", "--bank", fresh, many.folder, log=tmp_path / "log1", stop="write end 5")
    server.stopped(second)
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGCONT)
    assert (server.wait(first), server.wait(second)) == (KILLED, 0), outputs(tmp_path)
    assert assert_whole(fresh, many.expected) == len(many.expected)
    finish(fresh, many)


def assert_clean(bank: AdapterBank) -> None:
    for repair in (False, True):
        report = verify(bank, repair=repair)
        assert report.clean, report.damage


def test_verify_and_repair_beside_two_ingests(
    server: FaultServer, many: Pairs, fresh: Path, tmp_path: Path
) -> None:
    """Whenever it looks, the bank is clean; and repairing takes nothing from those that are writing."""
    stopped = server.start("ingest", "--bank", fresh, many.folder, log=tmp_path / "log0", stop="write end 5")
    server.stopped(stopped)
    with AdapterBank.open(fresh) as bank:
        assert_clean(bank)
        other = server.start("ingest", "--bank", fresh, many.folder, log=tmp_path / "log1")
        os.kill(stopped, signal.SIGCONT)
        while len(bank) < len(many.expected):
            assert_clean(bank)
    assert [server.wait(pid) for pid in (stopped, other)] == [0, 0], outputs(tmp_path)
    assert assert_whole(fresh, many.expected) == len(many.expected)
    finish(fresh, many)


def test_two_inits_at_once(server: FaultServer, few: Pairs, tokenizer_folder: Path, tmp_path: Path) -> None:
    """One makes the bank, the other is told so."""
    other = Path(shutil.copytree(tokenizer_folder, tmp_path / "other"))
    file = other / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b'"w10"', b'"x10"'))
    for repetition in range(3):
        path = tmp_path / f"bank{repetition}"
        started = [
            server.start(
                "init",
                "--bank",
                path,
                "--base-model",
                BASE_MODEL,
                "--tokenizer",
                tokenizer,
                log=tmp_path / f"log{number}",
            )
            for number, tokenizer in enumerate((tokenizer_folder, other))
        ]
        assert sorted(server.wait(pid) for pid in started) == [0, 1], outputs(tmp_path)
        with AdapterBank.open(path) as bank:
            assert bank.tokenizer.vocabulary == 202
            assert bank.record.tokenizer_name in (str(tokenizer_folder), str(other))
            assert ingest_folder(bank, few.folder).refused == []
