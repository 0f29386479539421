"""`bank predict --space delta`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.peft.weights import load_adapter
from cli.main import cli
from tests.support.banks.malformed_adapters import HIDDEN
from tests.support.banks.small_bank import write_dataset

LOCAL = ["--workers", "1"]


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    return result


def error_line(result: Result) -> str:
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("bank: error: ")]
    return line


@pytest.fixture(scope="module")
def shared_bank(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Path:
    path = tmp_path_factory.mktemp("cli") / "bank"
    shutil.copytree(bank_template, path)
    return path


def test_a_new_dataset(shared_bank: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "mine", 77)
    where = ("predict", "--bank", shared_bank, data, "--space", "delta")
    result = json.loads(run(*where, "--out", tmp_path / "out", "--json").stdout)
    assert result["rank"] == 4
    assert len(result["retained_energy"]) == 4
    assert all(0 < value < 1 for value in result["retained_energy"].values())
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert record["retained_energy"] == result["retained_energy"]
    assert record["parameters"] == {"space": "delta"}
    full = run(*where, "--rank", "full", "--out", tmp_path / "full").stdout
    assert "products cut to rank 16: retained energy of a module 1.0000 on average, 1.0000 at least" in full
    assert load_adapter(tmp_path / "full").config.rank == 16


def test_factors_say_nothing_of_energy(shared_bank: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "mine", 77)
    result = json.loads(
        run("predict", "--bank", shared_bank, data, "--out", tmp_path / "out", "--json").stdout
    )
    assert "retained_energy" not in result
    assert "retained_energy" not in json.loads((tmp_path / "out" / "provenance.json").read_text())


def test_all_of_the_bank(shared_bank: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    where = ("predict", "--bank", shared_bank, "--all", "--space", "delta", "--rank", "8", "--export", out)
    result = json.loads(run(*where, "--json", *LOCAL).stdout)
    names = [f"task{index:03d}" for index in range(6)]
    assert sorted(item.name for item in out.iterdir()) == sorted(result["adapters"]) == names
    for name, found in result["adapters"].items():
        record = json.loads((out / name / "provenance.json").read_text())
        assert record["leave_one_out"] is True
        assert (found["rank"], record["rank"], record["alpha"]) == (8, 8, 16)
        assert found["retained_energy"] == record["retained_energy"]
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    shown = run(*where, *LOCAL).stdout
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before
    assert "products cut to rank 8: retained energy of a module" in shown
    assert "wrote 6 folders" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--all", "--space", "delta"],
            "space: with --all, delta is written as folders alone, no --export found",
        ),
        (["--all", "--rank", "8", "--export", "x"], "rank: goes with space delta, factors found"),
        (
            ["--all", "--space", "delta", "--rank", str(HIDDEN + 1), "--export", "x"],
            f"rank: expected at most {HIDDEN}, the largest rank of any module, found {HIDDEN + 1}",
        ),
    ],
)
def test_what_does_not_go_together(shared_bank: Path, arguments: list[str], message: str) -> None:
    assert message in error_line(run("predict", "--bank", shared_bank, *arguments, *LOCAL, status=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rank", "0"], "expected a whole number of at least 1, or full, found '0'"),
        (["--rank", "all"], "expected a whole number of at least 1, or full, found 'all'"),
        (["--space", "delta", "--export", "x", "--weight-error"], "--weight-error is of combined factors"),
        (["--space", "products"], "'products' is not one of 'factors', 'delta'"),
    ],
)
def test_wrong_use(shared_bank: Path, arguments: list[str], message: str) -> None:
    result = run("predict", "--bank", shared_bank, "--all", *arguments, status=2)
    assert message in result.stderr


def test_too_little_memory(shared_bank: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"input": "a", "output": "b"}\n')  # which itself needs little
    where = ("predict", "--bank", shared_bank, data, "--out", tmp_path / "out", "--approach", "uniform")
    result = run(*where, "--space", "delta", "--memory", "10KiB", status=1)
    assert "delta space: model.layers.0.self_attn.q_proj of 6 sources needs" in error_line(result)
    assert not (tmp_path / "out").exists()
