"""Banks of a few adapters: what works there, and what is left out and said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from cli.main import cli

FITTED = {"tuned": 3, "ridge": 3, "ridge-signed": 3, "neural": 5}


def run(bank: Path, command: str, *arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [command, "--bank", str(bank), *map(str, arguments)])


@pytest.fixture(params=[2, 3, 4, 5])
def small(request: pytest.FixtureRequest, bank_template: Path, tmp_path: Path) -> tuple[Path, int]:
    shutil.copytree(bank_template, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        for record in bank.adapters()[request.param :]:
            bank.remove(record.name)
    return tmp_path / "bank", request.param


def told(result: Result) -> set[str]:
    lines = [line for line in result.stderr.splitlines() if "for want of adapters or groups" in line]
    assert len(lines) <= 1
    return {name for name in FITTED if any(f"{name} (at least {FITTED[name]})" in line for line in lines)}


@pytest.mark.slow
def test_a_report(small: tuple[Path, int], tmp_path: Path) -> None:
    bank, number = small
    done = run(bank, "report", "--out", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert told(done) == {name for name in ("tuned", "ridge") if number < FITTED[name]}
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize("asked", [(), ("--approach", "all")])
def test_an_evaluation(small: tuple[Path, int], asked: tuple[str, ...]) -> None:
    bank, number = small
    words = ("--weights-only", "--workers", "1", "--width", "8")
    done = run(bank, "evaluate", *words, *asked)
    assert done.exit_code == 0, done.output
    considered = FITTED if asked else ("neural",)
    assert told(done) == {name for name in considered if number < FITTED[name]}


@pytest.mark.parametrize("approach", list(FITTED))
def test_what_was_asked_for_by_name_works_or_says_what_would(small: tuple[Path, int], approach: str) -> None:
    bank, number = small
    done = run(bank, "coefficients", "--approach", approach, "--workers", "1")
    if number >= FITTED[approach]:
        assert done.exit_code == 0, done.output
        return
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bank: error: ")]
    assert "--approach" in line
    # The advice: another approach.
    assert run(bank, "coefficients", "--approach", "normalized").exit_code == 0
