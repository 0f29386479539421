"""A bank on a disk that lacks what local ones have: it works, or one line says what the disk lacks and what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.servers.postgres_server import PostgresServer

SOURCE = Path(__file__).parents[2] / "support" / "faults" / "network_disk.c"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler of Linux here, which makes the library that plays the network disk")
    built = tmp_path_factory.mktemp("network") / "network_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", built, SOURCE, "-ldl"], check=True)
    return built


class Disk:
    """Runs commands for which a folder is on a disk that lacks something."""

    def __init__(self, library: Path, folder: Path, lacks: str) -> None:
        self.folder = folder
        self._environment = os.environ | {
            "LD_PRELOAD": str(library),
            "DISK": str(folder),
            "DISK_LACKS": lacks,
        }

    def run(self, *arguments: str | Path, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=100,  # SQLite alone would wait for longer
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def error(self, *arguments: str | Path) -> str:
        (line,) = [line for line in self.run(*arguments, status=1).splitlines() if "error" in line]
        return line.removeprefix("bank: error: ")


@pytest.fixture
def disk(library: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Disk:
    folder = tmp_path / "network"
    folder.mkdir()
    return Disk(library, folder, request.param)


def init(tokenizer: Path, bank: Path, *more: str | Path) -> list[str | Path]:
    return ["init", "--bank", bank, "--base-model", BASE_MODEL, "--tokenizer", tokenizer, *more]


@pytest.mark.faults
@pytest.mark.parametrize("disk", ["folders"], indirect=True)
def test_a_disk_that_does_not_flush_folders(disk: Disk, tokenizer_folder: Path, pairs_folder: Path) -> None:
    bank = disk.folder / "bank"
    disk.run(*init(tokenizer_folder, bank))
    disk.run("ingest", "--bank", bank, pairs_folder)
    disk.run("predict", "--bank", bank, "--all", "--workers", "1", "--export", disk.folder / "out")
    disk.run("verify", "--bank", bank)
    assert len(list((disk.folder / "out").glob("*/adapter_model.safetensors"))) == 6


@pytest.mark.faults
@pytest.mark.parametrize(
    ("disk", "call"),
    [("flock", "flock: No locks"), ("flocks", "flock: Function not"), ("ranges", "fcntl: No locks")],
    indirect=["disk"],
)
def test_a_disk_without_locks_is_named_and_the_advice_helps(
    disk: Disk, call: str, tokenizer_folder: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    message = disk.error(*init(tokenizer_folder, disk.folder / "bank"))
    assert message.startswith(str(disk.folder / "bank"))
    assert call in message
    assert "bank init --arrays FOLDER" in message
    # As advised: the folder on a local disk, the arrays on the other.
    local = tmp_path / "local"
    disk.run(*init(tokenizer_folder, local, "--arrays", disk.folder / "arrays"))
    disk.run("ingest", "--bank", local, pairs_folder)
    disk.run("verify", "--bank", local)


@pytest.mark.parametrize("disk", ["flock", "ranges"], indirect=True)
def test_a_bank_that_was_moved_there(disk: Disk, bank_template: Path, pairs_folder: Path) -> None:
    bank = disk.folder / "bank"
    shutil.copytree(bank_template, bank)
    assert "keeps no" in disk.error("ingest", "--bank", bank, pairs_folder)


@pytest.mark.postgres
@pytest.mark.parametrize("disk", ["flock", "ranges"], indirect=True)
def test_a_catalogue_in_postgresql_needs_no_locks_there(
    disk: Disk, databases: PostgresServer, tokenizer_folder: Path, pairs_folder: Path
) -> None:
    bank = disk.folder / "bank"
    disk.run(*init(tokenizer_folder, bank, "--database", databases.borrow()))
    disk.run("ingest", "--bank", bank, pairs_folder)
    disk.run("distances", "--bank", bank, "--metric", "js", "--workers", "1")
