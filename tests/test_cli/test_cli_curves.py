"""`bank evaluate --finetune`: exit status, messages, output, and a run that is killed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import click.testing
import pytest

from cli.main import cli
from compute.curves.records import LearningCurves
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank

WORDS = ("--finetune", "0,1,3", "--examples", "6", "--max-examples", "3", "--resamples", "50")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root


@pytest.fixture
def tiny(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template / "bank", tmp_path / "bank")
    return tmp_path / "bank"


def run(bank: Path, *arguments: str | Path) -> click.testing.Result:
    words = ["evaluate", "--bank", str(bank), "--threads", "1", "--model", str(BASE)]
    return click.testing.CliRunner().invoke(cli, [*words, *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.torch
def test_curves_from_a_prediction_uniform_and_zero(tiny: Path, tmp_path: Path) -> None:
    some = ("--targets", NAMES[0], "--targets", NAMES[4])
    done = run(tiny, *WORDS, *some, "--leave-out", "both", "--out", tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert "a fifth held out" in done.stdout
    curves = LearningCurves.from_json((tmp_path / "results" / "curves.json").read_text())
    starts = [one.name for one in curves.starts]
    assert starts == [
        "jensen-shannon normalized",
        "jensen-shannon normalized (group left out)",
        "uniform",
        "uniform (group left out)",
        "zero",
    ]
    rows = list(csv.DictReader((tmp_path / "results" / "curve.csv").open()))
    assert [(row["start"], row["steps"]) for row in rows] == [
        (name, step) for name in starts for step in ("0", "1", "3")
    ]
    # Untrained, a start answers as it does in an evaluation without training, and zero as the base model.
    plain = run(tiny, "--metric", "js", "--approach", "normalized", *WORDS[4:], *some, "--json")
    evaluated = {one["system"]["name"]: one["rouge"]["mean"] for one in json.loads(plain.stdout)["systems"]}
    untrained = {row["start"]: float(row["rouge"]) for row in rows if row["steps"] == "0"}
    assert untrained["jensen-shannon normalized"] == pytest.approx(evaluated["jensen-shannon normalized"])
    assert untrained["uniform"] == pytest.approx(evaluated["uniform"])
    assert untrained["zero"] == pytest.approx(evaluated["base"])
    # The same again trains and generates nothing.
    again = run(tiny, *WORDS, *some, "--leave-out", "both", "--json")
    assert json.loads(again.stdout)["curves"]["identity"] == curves.identity
    assert "train and answer" not in again.stderr
    # More steps begin with those that were done: the same losses.
    more = json.loads(run(tiny, "--finetune", "0,1,3,5", *WORDS[2:], *some, "--json").stdout)["curves"]
    zero = next(one for one in more["starts"] if one["name"] == "zero")
    assert zero["held_out"][:3] == [list(losses) for losses in curves.starts[-1].held_out]


@pytest.mark.slow
@pytest.mark.torch
def test_what_determines_a_run_is_in_its_key(tiny: Path) -> None:
    words = ("--targets", NAMES[0], "--json")
    first = json.loads(run(tiny, *WORDS, *words).stdout)["curves"]
    for changed in (
        ("--learning-rate", "0.01"),
        ("--examples", "7"),
        ("--seed", "1"),
        ("--train-batch-size", "2"),
    ):
        other = run(tiny, *WORDS, *changed, *words)
        assert "train and answer" in other.stderr, other.output
        found = json.loads(other.stdout)["curves"]
        assert found["starts"][-1]["held_out"] != first["starts"][-1]["held_out"]


@pytest.mark.torch
def test_a_damaged_run_is_an_error(tiny: Path) -> None:
    words = (*WORDS, "--targets", NAMES[0])
    assert run(tiny, *words).exit_code == 0
    kept = sorted(path for path in (tiny / "curves").glob("*.json") if not path.name.startswith("curve-"))
    text = kept[0].read_text()
    kept[0].write_text(text.replace('"seconds": ', '"seconds": 1'))
    done = run(tiny, *words)
    assert done.exit_code == 1
    assert str(kept[0]) in done.stderr
    assert "delete the file" in done.stderr
    kept[0].unlink()
    assert run(tiny, *words).exit_code == 0


@pytest.mark.torch
def test_training_data_that_changed_since_is_not_trained_on(template: Path, tmp_path: Path) -> None:
    pairs = copy_pairs(tmp_path / "pairs")
    make_bank(tmp_path / "bank", pairs).close()
    data = next((tmp_path / "pairs").rglob(f"{NAMES[0]}/train.jsonl"))
    data.write_text("\n".join(data.read_text().splitlines()[:-1]) + "\n")
    done = run(tmp_path / "bank", *WORDS)
    assert done.exit_code == 1
    assert f"not trained on: {NAMES[0]}: expected in " in done.stderr
    assert f"{len(NAMES) - 1} tasks" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--finetune", "2,1"), "expected ascending numbers"),
        (("--finetune", "two"), "expected numbers of steps such as 0,2,4,8"),
        (("--examples", "8"), "--examples: would do nothing here"),
        (("--finetune", "0,1", "--bank-sizes", "2,3"), "--bank-sizes: would do nothing here"),
        (("--finetune", "0,1", "--space", "delta"), "--space: would do nothing here"),
    ],
)
def test_wrong_use(tiny: Path, words: tuple[str, ...], message: str) -> None:
    done = run(tiny, *words)
    assert done.exit_code == 2
    assert message in done.stderr
