"""`bank group`, and what is said where groups are to be left out and there are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from cli.main import cli
from tests.support.banks.small_bank import create_bank


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture
def path(bank_template: Path, tmp_path: Path) -> Path:
    shutil.copytree(bank_template, tmp_path / "bank")
    return tmp_path / "bank"


def groups(path: Path) -> dict[str, str | None]:
    with AdapterBank.open(path) as bank:
        return {record.name: record.group for record in bank.adapters()}


def test_groups_as_if_ingested_so(
    path: Path, tokenizer_folder: Path, pairs_folder: Path, tmp_path: Path
) -> None:
    """The same as from `bank ingest --group-pattern`, and so are all figures that leave out groups."""
    pattern = r"task00([0-3])"
    said = run("group", "--bank", path, "--pattern", pattern).stdout
    assert "4 changed; 4 of 6 datasets have one of 4 groups" in said
    create_bank(tmp_path / "other", tokenizer_folder).close()
    run("ingest", "--bank", tmp_path / "other", pairs_folder, "--group-pattern", pattern)
    assert groups(path) == groups(tmp_path / "other")
    found = [
        json.loads(
            run("coefficients", "--bank", bank, "--leave-out", "group", "--json", "--workers", "1").stdout
        )
        for bank in (path, tmp_path / "other")
    ]
    assert found[0] == found[1]


def test_figures_follow_the_groups(path: Path) -> None:
    """Nothing that was computed with other groups is taken for these."""

    def zeros() -> list[tuple[str, str]]:
        shown = run("coefficients", "--bank", path, "--leave-out", "group", "--approach", "uniform", "--json",
                    "--workers", "1")  # fmt: skip
        found = json.loads(shown.stdout)
        names, values = found["names"], found["matrices"][0]["values"]
        return [(a, b) for a, row in zip(names, values, strict=True) for b, value in zip(names, row, strict=True)
                if value == 0 and a < b]  # fmt: skip

    run("group", "--bank", path, "task000", "a", "task001", "a")
    assert zeros() == [("task000", "task001")]
    run("group", "--bank", path, "task001", "", "task002", "a")
    assert zeros() == [("task000", "task002")]
    assert groups(path)["task001"] is None


def test_what_changed_is_said(path: Path) -> None:
    run("group", "--bank", path, "task000", "a", "task001", "b")
    found = json.loads(run("group", "--bank", path, "task000", "a", "task001", "c", "--json").stdout)
    assert found["changed"] == {"task001": "c"}
    assert found["groups"] == groups(path)
    assert "0 changed; 2 of 6 datasets" in run("group", "--bank", path, "--pattern", "(nowhere)").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "expected --pattern"),
        (["task000"], 2, "names each with a group"),
        (["task000", "a", "--pattern", "(x)"], 2, "give one of them"),
        (["task000", "a", "nobody", "b"], 1, "nobody: no such adapter"),
        (["--pattern", "("], 2, "no regular expression"),
        (["--pattern", "task"], 2, "no parentheses"),
    ],
)
def test_wrong_use_changes_nothing(path: Path, arguments: list[str], status: int, message: str) -> None:
    assert message in run("group", "--bank", path, *arguments, status=status).stderr
    assert set(groups(path).values()) == {None}


@pytest.mark.parametrize(
    "command",
    [
        ["coefficients", "--leave-out", "group", "--workers", "1"],
        ["predict", "--all", "--approach", "uniform", "--leave-out", "group", "--workers", "1"],
        ["evaluate", "--weights-only", "--approach", "uniform", "--leave-out", "group", "--workers", "1"],
    ],
)
def test_groups_that_are_not_there_are_not_left_out(path: Path, command: list[str]) -> None:
    """The plain figures under another name would be wrong; the advice in the message helps."""
    message = run(command[0], "--bank", path, *command[1:], status=2).stderr
    assert "no dataset has a group" in message
    assert "--group-pattern" in message
    run("group", "--bank", path, "--pattern", r"(\d)$")
    run("group", "--bank", path, "task000", "1")
    run(command[0], "--bank", path, *command[1:])


def test_both_ways_where_there_are_no_groups(path: Path) -> None:
    arguments = ["--weights-only", "--approach", "uniform", "--leave-out", "both", "--json", "--workers", "1"]
    done = run("evaluate", "--bank", path, *arguments)
    assert "bank group --pattern" in done.stderr
    said = json.dumps(json.loads(done.stdout)["weight_space"])
    assert '"leave_out": "adapter"' in said
    assert '"leave_out": "group"' not in said
