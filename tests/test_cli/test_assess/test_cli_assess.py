"""`bank evaluate --adapter` and `bank predict --test`: exit status, messages, what is written."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import click.testing
import pytest

from bankdb.bank import AdapterBank
from cli.main import cli
from tests.support.banks.tiny_bank import BASE, TINY, copy_pairs, make_bank

NEW = TINY / "new" / "lists_ends"
FEW = ("--max-examples", "12", "--device", "cpu", "--model", BASE)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root / "bank"


@pytest.fixture
def bank(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "bank")


def run(*arguments: str | Path) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.mark.torch
def test_without_any_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bank").mkdir()  # no bank, but of its name
    words = ("evaluate", "--adapter", NEW / "adapter", "--test", NEW / "test.jsonl", *FEW)
    done = run(*words, "--out", "results", "--csv", "table.csv")
    assert done.exit_code == 0, done.output
    assert "12 test examples of test.jsonl, base model base" in done.stdout
    assert "in brackets: 95% intervals, paired bootstrap over the examples" in done.stdout
    assert done.stdout.count("\nexample ") == 5
    assert done.stdout.count("  expected:") == 5
    last = done.stdout.splitlines()[-1]
    assert last.startswith("adapter: better than the base model: yes, +0.")
    found = json.loads(run(*words, "--json").stdout)
    assert found["sentences"] == [last]
    assert json.loads((tmp_path / "results" / "assessment.json").read_text()) == found
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["system"] for row in rows] == ["base model", "adapter"]
    assert float(rows[1]["rouge"]) == found["systems"][1]["rouge"]
    assert not list((tmp_path / "bank").iterdir())
    asked = run(*words, "--bank", tmp_path / "bank")
    assert (asked.exit_code, "bank: error" in asked.stderr) == (1, True)


@pytest.mark.torch
def test_from_a_dataset_to_a_tested_adapter(bank: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    words = ("predict", "--bank", bank, NEW / "train.jsonl", "--out", out, "--test", NEW / "test.jsonl", *FEW)
    done = run(*words, "--compare", "uniform", "--compare", "nearest")
    assert done.exit_code == 0, done.output
    assert done.stdout.index("wrote ") < done.stdout.index("12 test examples of test.jsonl")
    assert "made: better than the base model: " in done.stdout
    assert "better than the mean of all adapters: " in done.stdout
    assert "better than the nearest: " in done.stdout
    measured = json.loads((out / "provenance.json").read_text())["measured"]
    names = [one["name"] for one in measured["compared_with"]]
    assert names == ["base model", "uniform", "nearest"]
    assert "## Measured" in (out / "README.md").read_text()
    # The same again for machines; what was answered is kept.
    again = run(*words, "--json", "--overwrite")
    record = json.loads(again.stdout)
    assert record["assessment"]["systems"][1]["rouge"] == measured["rouge_l"]
    assert "generate, examples" not in again.stderr
    # And by itself.
    words = ("evaluate", "--bank", bank, "--adapter", out, "--test", NEW, *FEW, "--json")
    assert json.loads(run(*words).stdout)["systems"] == record["assessment"]["systems"]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("test", "message"),
    [("nothing.jsonl", "not found; expected a file of test examples"), ("train.csv", "unknown format")],
)
def test_a_test_that_cannot_be_read_ends_it_before_anything_is_written(
    bank: Path, tmp_path: Path, test: str, message: str
) -> None:
    (tmp_path / "train.csv").with_suffix(".txt").write_text("x")
    file = tmp_path / test if test.startswith("nothing") else tmp_path / "train.txt"
    done = run(
        "predict", "--bank", bank, NEW / "train.jsonl", "--out", tmp_path / "made", "--test", file, *FEW
    )
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "made").exists()
    done = run("predict", "--bank", bank, NEW / "train.jsonl", "--out", tmp_path / "made",
               "--test", NEW / "test.jsonl", "--model", tmp_path)  # fmt: skip
    assert (done.exit_code, "expected a base model" in done.stderr) == (1, True)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--adapter", "x"), "--adapter needs --test FILE"),
        (("--test", "x"), "--test: would do nothing here; goes with --adapter FOLDER"),
        (("--adapter", "x", "--test", "y", "--targets", "z"), "--targets: would do nothing here"),
        (("--adapter", "x", "--test", "y", "--compare", "oracle"), "'oracle' is not one of"),
        (("--adapter", "x", "--test", "y", "--max-examples", "0"), "expected a number of at least 1, or all"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], message: str) -> None:
    done = run("evaluate", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.torch
def test_a_bank_of_another_base_model_is_not_used(tmp_path: Path) -> None:
    AdapterBank.create(tmp_path / "bank", base_model="another/model", tokenizer=BASE).close()
    words = ("evaluate", "--adapter", NEW / "adapter", "--test", NEW / "test.jsonl", *FEW)
    done = run(*words, "--bank", tmp_path / "bank")
    assert done.exit_code == 0, done.output
    assert "is not used: adapter states base model" in done.stderr
    done = run(*words, "--bank", tmp_path / "bank", "--compare", "uniform")
    assert done.exit_code == 2
    assert "name it with `bank alias add`" in done.stderr
