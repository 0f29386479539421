"""A bank that may only be read is listed, shown, verified and predicted from, and nothing in it changes."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError
from cli.main import cli
from tests.support.banks.small_bank import write_dataset
from tests.support.banks.stored_files import digests
from tests.support.faults.reader import run_as_reader

# A user without rights, and a read-only file system, are had by root alone.
pytestmark = pytest.mark.netns

LOOK = [["list", "--json"], ["show"], ["show", "task001"], ["verify"]]
# The last reads distances and the Gram matrix.
WAYS = [["--approach", "normalized"], ["--metric", "kl", "--approach", "ridge"]]


def run(*arguments: str | Path, status: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
    return result.stdout, result.stderr


@pytest.fixture(params=["nothing stored", "matrices stored"])
def stored(bank_template: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A bank with or without the matrices that one of the ways reads."""
    path = tmp_path / "bank"
    shutil.copytree(bank_template, path)
    if request.param == "matrices stored":
        data = write_dataset(tmp_path / "other", 77)
        run("predict", "--bank", path, data, *WAYS[1], "--out", tmp_path / "unused")
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "new", 99)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users reach; pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="shared-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def copy_for_all(source: Path, target: Path) -> Path:
    """A copy that everybody may read, and its owner alone write."""
    shutil.copytree(source, target)
    for item in (target, *target.rglob("*")):
        item.chmod(0o755 if item.is_dir() else 0o644)
    return target


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def predictions(bank: Path, new: Path, out: Path) -> list[list[str]]:
    return [
        ["predict", "--bank", str(bank), str(new), *way, "--out", str(out / str(number))]
        for number, way in enumerate(WAYS)
    ]


def test_another_user_reads_and_predicts(stored: Path, new: Path, tmp_path: Path, shared: Path) -> None:
    free = tmp_path / "free"
    shutil.copytree(stored, free)
    stored, new = copy_for_all(stored, shared / "bank"), copy_for_all(new, shared / "new")
    before = digests(stored)
    theirs = shared / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    warm = [[first, "--bank", str(free), *rest] for first, *rest in LOOK]
    warm += predictions(free, new, tmp_path / "own")
    asked = [[first, "--bank", str(stored), *rest] for first, *rest in LOOK] + predictions(
        stored, new, theirs
    )
    asked += [["remove", "--bank", str(stored), "task001"], ["verify", "--bank", str(stored), "--repair"]]
    asked += [["clean", "--bank", str(stored), "--yes"]]
    found = run_as_reader(warm, asked, theirs)
    assert [status for status, _, _ in found] == [0] * 6 + [1, 1, 1], found
    assert len(json.loads(found[0][1])) == 6
    for number in range(len(WAYS)):
        assert weights(theirs / str(number)) == weights(tmp_path / "own" / str(number))
    assert "may only be read; what is computed goes to a folder" in found[5][2]
    assert all("read-only" in message for _, _, message in found[6:])
    assert digests(stored) == before
    assert sorted(item.name for item in theirs.iterdir() if not item.name.startswith("dask")) == ["0", "1"]


@pytest.fixture
def mounted(stored: Path, tmp_path: Path) -> Iterator[Path]:
    """The bank on a read-only file system."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "--bind", stored, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_read_only_file_system(mounted: Path, stored: Path, new: Path, tmp_path: Path) -> None:
    before = digests(stored)
    for first, *rest in LOOK:
        run(first, "--bank", mounted, *rest)
    for command in predictions(mounted, new, tmp_path / "out"):
        run(*command)
    run("export", "--bank", mounted, "task001", "--out", tmp_path / "exported")
    csv, free = tmp_path / "coefficients.csv", tmp_path / "free.csv"
    _, notes = run("coefficients", "--bank", mounted, "--csv", csv, "--workers", "1")
    assert notes.count("may only be read") == 1
    _, message = run("ingest", "--bank", mounted, new, status=1)
    assert message.count("bank: error: ") == 1
    assert digests(stored) == before
    run("coefficients", "--bank", stored, "--csv", free, "--workers", "1")
    assert csv.read_bytes() == free.read_bytes()
    for command in predictions(stored, new, tmp_path / "same"):
        run(*command)
    for number in range(len(WAYS)):
        assert weights(tmp_path / "out" / str(number)) == weights(tmp_path / "same" / str(number))


def test_what_is_in_the_log_alone_is_read_too(bank_template: Path, tmp_path: Path) -> None:
    """The owner was killed, or is at work: what was committed last is in SQLite's log."""
    path, copy = tmp_path / "bank", tmp_path / "copy"
    shutil.copytree(bank_template, path)
    with AdapterBank.open(path) as owner:
        owner.catalog.set_group("task001", "a group", None)
        shutil.copytree(path, copy)
    assert (copy / "bank.db-wal").stat().st_size
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "--bind", copy, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    try:
        output, _ = run("show", "--bank", folder, "task001", "--json")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    assert json.loads(output)["group"] == "a group"


def test_a_bank_that_its_owner_changes_meanwhile(mounted: Path, stored: Path) -> None:
    with AdapterBank.open(mounted) as reader:
        assert len(reader) == 6
        with AdapterBank.open(stored) as owner:
            owner.catalog.set_group("task001", "another", None)
        with pytest.raises(BankFormatError, match="changed by its owner while it was read"):
            reader.adapters()


def test_a_migration_that_is_needed_is_said(mounted: Path, stored: Path) -> None:
    with contextlib.closing(sqlite3.connect(stored / "bank.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        connection.commit()
    with pytest.raises(
        BankFormatError, match=r"schema revision 0001, this version needs .* run `bank list` once"
    ):
        AdapterBank.open(mounted)
