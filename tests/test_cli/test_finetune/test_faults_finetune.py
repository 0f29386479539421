"""`kill -9` of `bank finetune`: the same command goes on, and writes what an unbroken one writes, byte for byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.banks.stored_files import digests
from tests.support.banks.tiny_bank import BASE, TINY, copy_pairs, make_bank
from tests.support.faults.finetune_driver import TrainingServer

pytestmark = [pytest.mark.faults, pytest.mark.torch]

DATA = TINY / "new" / "lists_ends"
KILLS = int(os.environ.get("FAULT_KILLS", "3"))


@pytest.fixture(scope="module")
def server() -> Iterator[TrainingServer]:
    with TrainingServer() as started:
        yield started


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root / "bank"


class Command:
    """`bank finetune` into a folder of its own."""

    def __init__(self, server: TrainingServer, bank: Path, folder: Path) -> None:
        self._server, self._bank = server, bank
        self.folder, self.out, self.log = folder, folder / "out", folder / "log"
        self.hidden = folder / ".out.checkpoint"

    def start(self, *more: str, kill: str | None = None) -> int:
        # One thread, and the dtype fixed: what is measured may be decided otherwise the next time.
        options = ["--model", BASE, "--threads", "1", "--train-dtype", "float32", *more]
        words = ["finetune", "--bank", self._bank, DATA, "--out", self.out, *options]
        return self._server.start(*words, log=self.log, kill=kill)

    def run(self, *more: str, kill: str | None = None) -> int:
        self.log.unlink(missing_ok=True)
        return self._server.wait(self.start(*more, kill=kill))

    def told(self) -> str:
        return self.log.read_text()


@pytest.fixture
def command(server: TrainingServer, bank: Path, tmp_path: Path) -> Command:
    return Command(server, bank, tmp_path)


@pytest.fixture(scope="module")
def unbroken(
    server: TrainingServer, bank: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], float]:
    command = Command(server, bank, tmp_path_factory.mktemp("unbroken"))
    started = time.monotonic()
    assert command.run() == 0, command.told()
    assert sorted(item.name for item in command.folder.iterdir()) == ["log", "out"]
    return digests(command.out), time.monotonic() - started


@pytest.mark.parametrize(
    ("kill", "goes_on"),
    [
        ("training_step begin 1", False),
        ("training_step end 2", True),
        ("keep_checkpoint begin 1", False),
        ("keep_checkpoint end 1", True),
        ("keep_checkpoint begin 2", True),
        # A file beside the checkpoint is left, half written as far as anybody knows.
        ("rename begin 2", True),
    ],
)
def test_a_killed_command_goes_on(
    command: Command, unbroken: tuple[dict[str, str], float], kill: str, goes_on: bool
) -> None:
    assert command.run(kill=kill) == -signal.SIGKILL
    assert not command.out.exists()
    assert command.run() == 0, command.told()
    assert ("goes on from step" in command.told()) == goes_on
    assert digests(command.out) == unbroken[0]
    assert sorted(item.name for item in command.folder.iterdir()) == ["log", "out"]


def test_killed_when_all_is_written(command: Command, unbroken: tuple[dict[str, str], float]) -> None:
    assert command.run(kill="discard_checkpoints begin 1") == -signal.SIGKILL
    assert digests(command.out) == unbroken[0]
    assert command.run() == 1
    assert "already there" in command.told()
    assert digests(command.out) == unbroken[0]
    assert command.run("--overwrite") == 0, command.told()
    assert digests(command.out) == unbroken[0]
    assert not command.hidden.exists()


def test_random_moments(
    command: Command, server: TrainingServer, unbroken: tuple[dict[str, str], float]
) -> None:
    """One after another, so that most go on from where the one before came to; whatever is written is whole."""
    expected, seconds = unbroken
    rng = random.Random(KILLS)
    for _ in range(KILLS):
        command.log.unlink(missing_ok=True)
        pid = command.start()
        time.sleep(rng.uniform(0.1, 1.1) * seconds)
        os.kill(pid, signal.SIGKILL)
        server.wait(pid)
        if command.out.exists():
            assert digests(command.out) == expected
            shutil.rmtree(command.out)
    assert command.run() == 0, command.told()
    assert digests(command.out) == expected
    assert sorted(item.name for item in command.folder.iterdir()) == ["log", "out"]
