"""`bank plan --evaluate`: its counts are those of a loop over the test splits, and bound a real evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bankdb.bank import AdapterBank
from bankdb.errors import BankError
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.evaluation.evaluate import EvaluationOptions, evaluate
from compute.evaluation.systems import with_baselines
from compute.forecasting.answers import forecast_evaluation
from compute.generation.machine import Machine
from compute.generation.model_size import model_size
from compute.generation.prompts import MARGIN
from tests.support.banks.tiny_bank import BASE, NAMES, TINY, copy_pairs, make_bank

EXAMPLES = 4
OPTIONS = EvaluationOptions(
    model=str(BASE), max_examples=EXAMPLES, resamples=20, machine=Machine(device="cpu", threads=1)
)
WAYS = with_baselines([PredictionOptions(metric="js", approach="normalized")])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterBank]:
    root = tmp_path_factory.mktemp("planned")
    with make_bank(root / "bank", copy_pairs(root / "pairs")) as bank:
        yield bank


def rows(name: str) -> list[dict[str, Any]]:
    lines = (TINY / "bank" / "datasets" / name / "test.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:EXAMPLES]]


def test_tokens_are_those_of_the_test_splits(tiny: AdapterBank) -> None:
    encode = tiny.tokenizer.encode
    read = expected = most = 0
    for name in NAMES:
        prompts = encode([row["input"] for row in rows(name)])
        added = tiny.tokenizer.added_tokens()
        answers = [max(len(ids) - added for ids in encode(row["output"])) for row in rows(name)]
        alike = [len(set(column)) == 1 for column in zip(*prompts, strict=False)]
        shared = min(
            [*(place for place, same in enumerate(alike) if not same), *(len(p) - 1 for p in prompts)]
        )
        read += sum(map(len, prompts)) - shared * (len(prompts) - 1)
        expected += sum(answers)
        most += len(prompts) * (max(answers) + MARGIN)
    found = forecast_evaluation(tiny, WAYS, OPTIONS, workers=2, memory=4 << 30)
    assert (found.systems, found.targets, found.examples) == (5, len(NAMES), EXAMPLES * len(NAMES))
    assert (found.answers, found.read) == (5 * found.examples, 5 * read)
    assert (found.expected, found.most) == (5 * expected, 5 * most)
    assert (found.share, found.workers, found.fits, found.seconds) == (2 << 30, 2, True, None)
    assert found.memory > 4 * model_size(BASE).parameters


def test_the_size_of_a_model_is_that_of_the_loaded_one() -> None:
    """Its parameters, and the numbers that a token leaves in the cache."""
    config = json.loads((BASE / "config.json").read_text())
    heads = config["num_hidden_layers"] * config["num_key_value_heads"]
    size = model_size(BASE)
    assert size.cache == 2 * heads * config["head_dim"]
    assert size.answer_bytes(10, 2, "bfloat16") < size.answer_bytes(10, 2, "float32")


@pytest.mark.torch
def test_a_real_evaluation_stays_below_and_the_time_has_an_order(tiny: AdapterBank) -> None:
    planned = forecast_evaluation(tiny, WAYS, OPTIONS, workers=1, measure=True)
    assert planned.rates is not None
    assert planned.seconds is not None
    assert planned.rates.read > 0
    assert 0 < planned.seconds[0] <= planned.seconds[1]
    evaluation = evaluate(tiny, WAYS, OPTIONS, baselines=False)
    assert len(evaluation.systems) == planned.systems
    assert tiny.generations.count() <= planned.systems * planned.targets
    texts = [outcome.samples[0].answer for outcome in evaluation.outcomes]
    assert sum(map(len, tiny.tokenizer.encode(texts))) <= planned.most


def test_a_target_without_a_test_split_is_named(tiny: AdapterBank, tmp_path: Path) -> None:
    for name in NAMES[:2]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text('{"input": "a", "output": "b"}\n')
    options = EvaluationOptions(model=str(BASE), data=tmp_path)
    found = forecast_evaluation(tiny, WAYS, options)
    assert found.targets == 2
    assert sorted(found.failures) == sorted(NAMES[2:])
    shutil.rmtree(tmp_path / NAMES[0])
    shutil.rmtree(tmp_path / NAMES[1])
    with pytest.raises(BankError, match=f"no target could be evaluated, of {len(NAMES)}"):
        forecast_evaluation(tiny, WAYS, options)


def test_the_command(tiny: AdapterBank) -> None:
    words = ["plan", "--bank", str(tiny.path), "--evaluate", "--model", str(BASE), "--max-examples", "4"]
    done = CliRunner().invoke(cli, [*words, "--metric", "js", "--approach", "normalized", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["answers"] == 5 * EXAMPLES * len(NAMES)
    shown = CliRunner().invoke(cli, [*words, "--workers", "2"])
    assert shown.exit_code == 0, shown.output
    assert "tokens generated at the most" in shown.stdout
    assert "--measure" in shown.stdout
    small = CliRunner().invoke(cli, [*words, "--memory", "64MiB"])
    assert small.exit_code == 1
    assert "raise --memory, or use fewer --workers" in small.stderr
