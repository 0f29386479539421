"""Training of networks on a bank that is interrupted or killed: the same coefficients, and nothing left."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError
from bankdb.verify import verify
from compute.approaches.options import PredictionOptions
from compute.prediction.coefficients import coefficients
from compute.prediction.networks import unfinished
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.stored_files import copy_bank

NEURAL = PredictionOptions(metric="js", approach="neural", width=16, epochs=8)
TRAINED_IN_ALL = 6
"""Five folds, and one network for new datasets."""


def interrupting(after: int) -> RecordedProgress:
    """Interrupts, as a signal does, when so many epochs were told."""
    left = after

    def told(stage: str) -> None:
        nonlocal left
        left -= stage.startswith("train neural")
        if left == 0:
            raise KeyboardInterrupt

    return RecordedProgress(told)


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "_SHARE", 1e9)


@pytest.fixture
def expected(bank: AdapterBank, tmp_path: Path) -> np.ndarray:
    """Of a copy that nobody interrupts."""
    with AdapterBank.open(copy_bank(bank.path, tmp_path / "undisturbed")) as other:
        return coefficients(other, NEURAL).values


def parts(bank: AdapterBank) -> list[str]:
    return sorted(path.name for path in (bank.path / "neural.zarr").glob("part-*"))


@pytest.mark.usefixtures("every_epoch")
def test_interrupted_again_and_again(bank: AdapterBank, expected: np.ndarray) -> None:
    notes: list[str] = []
    stops = 0
    while True:
        progress = interrupting(after=5)
        try:
            found = coefficients(bank, NEURAL, progress=progress).values
        except KeyboardInterrupt:
            notes += progress.notes
            stops += 1
            continue
        break
    assert stops > TRAINED_IN_ALL
    assert np.array_equal(found, expected)
    assert any("training of a network goes on after its epoch" in note for note in notes)
    assert any("of a training before are there" in note for note in notes)
    assert parts(bank) == []
    assert not verify(bank).damage


@pytest.mark.usefixtures("every_epoch")
def test_what_is_done_again_is_one_epoch(bank: AdapterBank, expected: np.ndarray) -> None:
    first = interrupting(after=20)
    with pytest.raises(KeyboardInterrupt):
        coefficients(bank, NEURAL, progress=first)
    second = RecordedProgress()
    assert np.array_equal(coefficients(bank, NEURAL, progress=second).values, expected)
    # Two folds of eight epochs and four of the third were told; the fourth was not kept any more.
    assert any("after its epoch 4" in note for note in second.notes)
    assert sum("coefficients of" in note for note in second.notes) == 2


def test_a_training_of_moments_keeps_nothing(bank: AdapterBank) -> None:
    with pytest.raises(KeyboardInterrupt):
        coefficients(bank, NEURAL, progress=interrupting(after=40))
    assert parts(bank) == []


@pytest.mark.usefixtures("every_epoch")
def test_what_other_options_left_is_deleted(bank: AdapterBank) -> None:
    with pytest.raises(KeyboardInterrupt):
        coefficients(bank, NEURAL, progress=interrupting(after=30))
    left = parts(bank)
    assert left
    other = PredictionOptions(metric="js", approach="neural", width=16, epochs=9)
    with pytest.raises(KeyboardInterrupt):
        coefficients(bank, other, progress=interrupting(after=30))
    assert parts(bank)
    assert not set(parts(bank)) & set(left)


@pytest.mark.usefixtures("every_epoch")
def test_a_damaged_state_is_named_and_repaired(bank: AdapterBank, expected: np.ndarray) -> None:
    with pytest.raises(KeyboardInterrupt):
        coefficients(bank, NEURAL, progress=interrupting(after=5))
    for file in bank.path.glob("neural.zarr/part-*/*/c/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(BankFormatError, match=r"neural.zarr/part-"):
        coefficients(bank, NEURAL)
    assert verify(bank, repair=True).repaired
    assert np.array_equal(coefficients(bank, NEURAL).values, expected)


# -- kill -9 -------------------------------------------------------------------------------------------

DRIVER = """
import sys
from compute.prediction.networks import unfinished
unfinished.LEAST_SECONDS, unfinished._SHARE = 0.0, 1e9
from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.prediction.coefficients import coefficients

class Told(SilentProgress):
    def begin(self, stage, total):
        print(stage, flush=True)

    def note(self, text):
        print(text, flush=True)

    def advance(self, steps=1):
        print("epoch", flush=True)

with AdapterBank.open(sys.argv[1]) as bank:
    options = PredictionOptions(metric="js", approach="neural", width=16, epochs=8)
    coefficients(bank, options, progress=Told())
"""


EPOCH = "epoch\n"


@pytest.fixture
def begun() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.faults
def test_killed_at_random_moments(
    bank: AdapterBank, expected: np.ndarray, begun: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    bank.close()
    rng, output, kills = random.Random(5), "", 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(bank.path)], stdout=subprocess.PIPE, text=True
        )
        begun.append(process)
        assert process.stdout is not None
        lines = list(itertools.takewhile(EPOCH.__ne__, process.stdout))
        lines += itertools.islice(process.stdout, rng.randrange(12))
        time.sleep(rng.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        output += "".join([*lines, *process.stdout])
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, output
        kills += 1
    assert kills >= 4
    assert "training of a network goes on after its epoch" in output
    assert "of a training before are there" in output
    copy = tmp_path / "as-it-was-left"
    shutil.copytree(bank.path, copy)
    with AdapterBank.open(copy) as left:
        assert not verify(left).damage
    with AdapterBank.open(bank.path) as again:
        assert np.array_equal(coefficients(again, NEURAL).values, expected)
        assert parts(again) == []
