"""Ctrl-C in a terminal: one line, exit status 130, no process left, and the same command goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bankdb.backup.backup import backup
from bankdb.bank import AdapterBank
from bankdb.sharing.push import push
from cli.main import _PLACES
from tests.support.banks.tiny_bank import BASE, TINY, copy_pairs, make_bank
from tests.support.faults.terminal_driver import Terminal, TerminalServer

LINE = "bank: interrupted; what was done is kept, run the same command again to go on"
# Moments of each command by default; INTERRUPTS=3 is what a release is tried with.
MOMENTS = int(os.environ.get("INTERRUPTS", "1"))
NEW = "{new} --out {out}"
STEPS = "--steps 2 --examples 6 --batch-size 2 --threads 1"
TRAINING = ("finetune", "evaluate", "generate")
COMMANDS = {
    "init": "--bank {out} --base-model tiny-bank/base --tokenizer {base}",
    "alias": "add /models/tiny",
    "ingest": "{manifest}",
    "list": "",
    "show": "forms_plural",
    "verify": "",
    "group": "--pattern ^([^_]+)_",
    "remove": "reviews_mood",
    "export": "forms_plural --out {out}",
    "distances": "--metric js --workers 1",
    "coefficients": "--approach normalized --metric js --workers 1",
    "predict": NEW,
    "finetune": f"{NEW} --model {{base}} {STEPS}",
    "evaluate": "--model {base} --approach uniform --targets forms_plural --max-examples 2 --threads 1",
    "generate": "--model {base} --prompt hello --max-tokens 8 --threads 1",
    "report": "--metric js --approach normalized --out {out}",
    "plan": "--adapters 10 --parameters 1000",
    "clean": "--yes",
    "backup": "{out}",
    "restore": "{root}/kept",
    "push": "{out} --include-unlicensed",
    "pull": "{root}/pushed",
}


@pytest.fixture(scope="module")
def server() -> Iterator[TerminalServer]:
    with TerminalServer() as running:
        yield running


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs, and a bank of them."""
    root = tmp_path_factory.mktemp("interrupted")
    make_bank(root / "bank", copy_pairs(root)).close()
    return root


def words_of(command: str, root: Path) -> list[str]:
    text = COMMANDS[command]
    new = next((TINY / "new").rglob("*.jsonl"))
    filled = [
        word.format(root=root, out=root / "out", base=BASE, manifest=root / "manifest.csv", new=new)
        for word in text.split()
    ]
    bank = [] if command in {"init", "plan", "generate"} else ["--bank", str(root / "bank")]
    return [command, *filled, *bank]


def copied(command: str, template: Path, root: Path) -> Path:
    shutil.copytree(template, root)
    if command == "restore":
        with AdapterBank.open(root / "bank") as bank:
            backup(bank, root / "kept")
    if command == "pull":
        with AdapterBank.open(root / "bank") as bank:
            push(bank, str(root / "pushed"), include_unlicensed=True)
    if command in {"ingest", "restore", "pull"}:
        shutil.rmtree(root / "bank")
    if command == "ingest":
        AdapterBank.create(root / "bank", base_model="tiny-bank/base", tokenizer=BASE).close()
    return root


def check_interrupted(found: tuple[int, str, list[int]]) -> bool:
    """Whether a command that was to be interrupted was; if so, as it should be."""
    status, seen, left = found
    assert left == [], seen
    assert "Traceback" not in seen, seen
    assert "Error" not in seen, seen
    assert status in (0, 130), seen
    if status == 130:
        # Where an answer was being given there is nothing to go on with.
        line = LINE if LINE in seen else "stopped"
        assert seen.count(line) == 1, seen
        # The kernel signals before it echoes the key: on another core the line may be first.
        assert seen.replace("^C", "").rstrip().endswith(line), seen
    return status == 130


def test_every_command_is_tried() -> None:
    assert COMMANDS.keys() == _PLACES.keys()


@pytest.mark.faults
@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=pytest.mark.torch) if name in TRAINING else name for name in COMMANDS],
)
def test_a_command_is_interrupted(
    server: TerminalServer, template: Path, tmp_path: Path, command: str
) -> None:
    root = copied(command, template, tmp_path / "root")
    words = words_of(command, root)
    rng = random.Random(command)
    assert check_interrupted(Terminal(server, words, "open 3", tmp_path).interrupt())
    ended = False
    for _ in range(MOMENTS - 1):
        if not ended:
            place = f"open {rng.randint(4, 150)}"
            ended = not check_interrupted(Terminal(server, words, place, tmp_path).interrupt())
    if not ended:
        status, seen, left = Terminal(server, words, "open 1000000000", tmp_path).interrupt()
        assert (status, left) == (0, []), seen


@pytest.mark.faults
@pytest.mark.parametrize(
    "place", ["compute.cluster.tasks _Flight.next 2", "compute.cluster.local local_client 1"]
)
def test_workers_end_with_their_client(
    server: TerminalServer, template: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied("predict", template, tmp_path / "root")
    words = ["predict", "--all", "--metric", "js", "--store", "--workers", "2", "--bank", str(root / "bank")]
    assert check_interrupted(Terminal(server, words, place, tmp_path).interrupt())


def test_what_has_ended_is_interrupted_without_a_word() -> None:
    program = (
        "import atexit, time\n"
        "atexit.register(lambda: (print('exits', flush=True), time.sleep(60)))\n"
        "from cli.main import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "exits\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert process.stderr.read() == ""
