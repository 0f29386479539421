"""A disk that is full, and a folder that is read-only: an error, and a bank that is whole and can go on.

On file systems of their own, which root alone can mount.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from bankdb.progress import Progress, SilentProgress
from bankdb.verify import verify
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions
from tests.support.banks.bank_content import assert_nothing_else, content
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import create_bank, write_pairs
from tests.support.banks.stored_files import digests
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import create_synthetic, layout_of
from tests.support.servers.public_bank import OWNER, hub_here, publish_bank

pytestmark = pytest.mark.netns

WAYS = [PredictionOptions(metric="js", approach=name) for name in ("normalized", "oracle")]
KINDS = ("distances", "gram", "predictions")


def mount(*arguments: str | Path) -> None:
    try:
        subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"file systems cannot be mounted here ({error.stderr.strip()}); run as root")


class Disk:
    """A small file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, leave: int) -> None:
        """Take all space but `leave` bytes."""
        free = shutil.disk_usage(self.folder).free
        with (self.folder / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - leave))

    def empty(self) -> None:
        (self.folder / "filler").unlink()

    def set_read_only(self, read_only: bool) -> None:
        mount("-o", f"remount,{'ro' if read_only else 'rw'}", self.folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "none", folder)
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def bank_command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def whole(path: Path) -> int:
    with AdapterBank.open(path) as bank:
        report = verify(bank)
        assert report.clean, report.damage
        return report.checked


@pytest.mark.parametrize("leave", [0, 200_000])
def test_ingest_onto_a_full_disk(disk: Disk, tmp_path: Path, tokenizer_folder: Path, leave: int) -> None:
    pairs = write_pairs(tmp_path / "pairs", 24, dtypes=("F32", "BF16"))
    create_bank(disk.folder / "bank", tokenizer_folder).close()
    bank = disk.folder / "bank"
    disk.fill(leave)
    done = bank_command("ingest", "--bank", bank, pairs)
    assert done.exit_code == 1
    assert "internal error" not in done.output
    assert "space" in done.output or "disk is full" in done.output, done.output
    disk.empty()
    assert whole(bank) < 24
    assert bank_command("ingest", "--bank", bank, pairs).exit_code == 0
    with AdapterBank.open(bank) as opened, create_bank(tmp_path / "other", tokenizer_folder) as other:
        assert bank_command("ingest", "--bank", other.path, pairs).exit_code == 0
        assert content(opened) == content(other)
        assert_nothing_else(opened)


def test_downloads_onto_a_full_disk(
    disk: Disk, tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache is on it, the bank is not: one line, what was stored stays, and the same command goes on."""
    from huggingface_hub import constants

    create_bank(tmp_path / "bank", tokenizer_folder).close()
    arguments = ("ingest", "--bank", tmp_path / "bank", "--hub", OWNER, "--yes", "--downloads", "1")
    with hub_here(tmp_path, monkeypatch) as hub:
        publish_bank(hub, tmp_path / "files", 12)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(disk.folder / "hub"))
        disk.fill(80_000)
        done = bank_command(*arguments)
        assert done.exit_code == 1, done.output
        (line,) = [line for line in done.output.splitlines() if line.startswith("bank: error")]
        stored = re.search(r"No space left on device .*; (\d+) pairs were stored before, and stay", line)
        assert stored is not None, line
        assert whole(tmp_path / "bank") == int(stored[1]) < 12
        disk.empty()
        assert bank_command(*arguments).exit_code == 0
        assert whole(tmp_path / "bank") == 12


@pytest.mark.parametrize("leave", [0, 400_000, 700_000])
@pytest.mark.parametrize("kind", ["folder", "shared.tar"])
def test_a_pull_onto_a_full_disk(
    disk: Disk, tmp_path: Path, tokenizer_folder: Path, kind: str, leave: int
) -> None:
    pairs, place = write_pairs(tmp_path / "pairs", 24), tmp_path / kind
    with create_bank(tmp_path / "source", tokenizer_folder) as source:
        assert bank_command("ingest", "--bank", source.path, pairs).exit_code == 0
        assert bank_command("push", "--bank", source.path, place, "--include-unlicensed").exit_code == 0
        bank = disk.folder / "bank"
        disk.fill(leave)
        done = bank_command("pull", place, "--bank", bank)
        assert done.exit_code == 1
        (line,) = (line for line in done.stderr.splitlines() if "error" in line)
        assert "internal error" not in line
        assert "space" in line or "disk is full" in line, line
        disk.empty()
        assert bank_command("pull", place, "--bank", bank).exit_code == 0
        with AdapterBank.open(bank) as opened:
            assert [one[1:] for one in content(opened).values()] == [
                one[1:] for one in content(source).values()
            ]
            assert_nothing_else(opened)
        assert {item.name for item in disk.folder.iterdir()} == {"bank"}


def run(bank: AdapterBank, progress: Progress) -> dict[str, dict[str, str]]:
    with open_cluster(
        ClusterOptions(workers=2, processes=False, memory=1 << 30), SilentProgress()
    ) as cluster:
        predict_all_stored(bank, WAYS, cluster=cluster, progress=progress)
    return {kind: digests(bank.path / f"{kind}.zarr") for kind in KINDS}


@pytest.fixture
def stored(disk: Disk, tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A bank on the disk; its own copy is beside it."""
    made = create_synthetic(tmp_path / "bank", tokenizer_folder, layout_of(hidden=2**11, layers=18))
    made.add_many(range(12))
    made.bank.close()
    return Path(shutil.copytree(tmp_path / "bank", disk.folder / "bank"))


@pytest.mark.parametrize("stage", ["distances jensen-shannon", "gram", "combine"])
def test_a_disk_that_fills_up_in_the_middle(disk: Disk, stored: Path, tmp_path: Path, stage: str) -> None:
    filled: list[str] = []

    class Filling(RecordedProgress):
        def begin(self, name: str, total: int) -> None:
            if name == stage and not filled:
                disk.fill(0)
                filled.append(name)

    with AdapterBank.open(stored) as bank:
        with pytest.raises(Exception, match=r"(?i)no space left|disk is full"):
            run(bank, Filling())
        assert filled == [stage]
        disk.empty()
        assert whole(stored) == 12
        found = run(bank, SilentProgress())
    with AdapterBank.open(tmp_path / "bank") as own:
        assert found == run(own, SilentProgress())


def test_a_read_only_folder(disk: Disk, stored: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 1)
    before = digests(stored)
    disk.set_read_only(True)
    for command in (("ingest", "--bank", stored, pairs), ("remove", "--bank", stored, "s000")):
        done = bank_command(*command)
        assert done.exit_code == 1, done.output
        assert re.search("(?i)read-?only", done.output), done.output
        assert "internal error" not in done.output
    for command in (
        ("distances", "--bank", stored, "--workers", "1"),
        ("predict", "--bank", stored, "--all", "--workers", "1"),
    ):
        done = bank_command(*command)
        assert done.exit_code == 0, done.output
        assert "is not kept" in done.output
    disk.set_read_only(False)
    assert digests(stored) == before
    assert whole(stored) == 12
    with AdapterBank.open(stored) as bank, AdapterBank.open(tmp_path / "bank") as own:
        assert run(bank, SilentProgress()) == run(own, SilentProgress())
