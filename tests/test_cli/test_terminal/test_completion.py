"""Completion, asked for as shells do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bankdb.bank import AdapterBank

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Path:
    """A folder with a bank of six pairs, `bank`, and the program in `bin`."""
    folder = tmp_path_factory.mktemp("completion")
    shutil.copytree(bank_template, folder / "bank")
    with AdapterBank.open(folder / "bank") as bank:
        bank.catalog.set_group("task001", "odd ones", None)
    (folder / "bin").mkdir()
    program = folder / "bin" / "bank"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bankdb "$@"\n')
    program.chmod(0o755)
    return folder


def environment(place: Path, **more: str) -> dict[str, str]:
    there = {name: value for name, value in os.environ.items() if name != "BANK_PATH"}
    return there | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **more}


def completed(place: Path, *words: str, **more: str) -> list[str]:
    """What click answers to the last word, by its own protocol with bash."""
    asked = {
        "_BANK_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("bank", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        ["bank"],
        executable=place / "bin" / "bank",
        env=environment(place, **asked, **more),
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


SIX = [f"task{index:03d}" for index in range(6)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sh"], ["show"]),
        (["cl"], ["clean"]),
        (["show", "ta"], SIX),
        (["show", "task003"], ["task003"]),
        (["show", "x"], []),
        (["show", "--bank", "none", "ta"], []),
        (["remove", "task001", "task004", "task00"], ["task000", "task002", "task003", "task005"]),
        (["export", "task00"], SIX),
        (["evaluate", "--targets", "task004"], ["task004"]),
        (["group", "task00"], SIX),
        (["group", "task002", "od"], ["odd ones"]),
        (["group", "task002", "even", "task005"], ["task005"]),
        (["clean", "--only", "g"], ["gram"]),
        (["predict", "--approach", "ri"], ["ridge", "ridge-signed"]),
        (["predict", "--metric", "k"], ["kullback-leibler", "kl"]),
        (["predict", "--scheduler-"], ["--scheduler-file"]),
    ],
)  # fmt: skip
def test_words_are_completed(place: Path, words: list[str], expected: list[str]) -> None:
    assert completed(place, *words) == expected


def test_the_bank_is_the_one_that_is_named(place: Path, tmp_path: Path) -> None:
    elsewhere = str(Path(shutil.copytree(place / "bank", tmp_path / "other")))
    with AdapterBank.open(elsewhere) as bank:
        bank.remove("task000")
    assert completed(place, "show", "ta", BANK_PATH=elsewhere) == SIX[1:]
    assert completed(place, "show", "--bank", elsewhere, "ta") == SIX[1:]
    assert completed(place, "show", "ta") == SIX


def test_in_bash_as_the_documentation_says(place: Path) -> None:
    """The line of docs/commands.md, then what bash calls when Tab is pressed."""
    (line,) = (
        line
        for line in (ROOT / "docs" / "commands.md").read_text().splitlines()
        if line.startswith('eval "$(_BANK_COMPLETE=bash_source')
    )
    script = f"""
{line.partition("#")[0]}
COMP_WORDS=(bank show task00); COMP_CWORD=2
_bank_completion bank task00 show
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", script], env=environment(place), cwd=place, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == SIX
