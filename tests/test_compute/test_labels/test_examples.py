"""Which labelled examples are drawn of a dataset, and from where."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.bank import AdapterBank
from bankdb.datasets.read import Dataset
from bankdb.errors import DatasetError
from compute.labels.examples import drawn_examples, training_examples
from tests.support.banks.small_bank import create_bank, ingest_folder, write_pairs


def dataset(pairs: list[tuple[str, str]]) -> Dataset:
    return Dataset(tuple(one for one, _ in pairs), tuple(other for _, other in pairs), "0" * 64)


@given(
    pairs=st.lists(st.tuples(st.text("ab", max_size=3), st.text("xy", max_size=2)), min_size=1, max_size=20),
    number=st.integers(1, 25),
    seed=st.integers(0, 9),
)
def test_examples_are_drawn_without_replacement_in_any_order(
    pairs: list[tuple[str, str]], number: int, seed: int
) -> None:
    found = drawn_examples(dataset(pairs), "name", number, seed)
    assert len(found) == min(number, len(pairs))
    left = list(pairs)
    for pair in zip(found.inputs, found.outputs, strict=True):
        left.remove(pair)
    assert len(drawn_examples(dataset(pairs), "name", None, seed)) == len(pairs)
    shuffled = list(pairs)
    random.Random(1).shuffle(shuffled)
    assert drawn_examples(dataset(shuffled), "name", number, seed) == found


def test_another_seed_draws_others_and_the_hash_is_of_what_was_drawn() -> None:
    pairs = [(f"q{index}", "a") for index in range(100)]
    drawn = {seed: drawn_examples(dataset(pairs), "name", 8, seed) for seed in range(5)}
    assert len({one.sha256 for one in drawn.values()}) == 5
    changed = drawn_examples(dataset([(text, "b") for text, _ in pairs]), "name", 8, 0)
    assert changed.inputs == drawn[0].inputs
    assert changed.sha256 != drawn[0].sha256


@pytest.fixture
def own(tmp_path: Path, tokenizer_folder: Path) -> tuple[AdapterBank, Path]:
    """A bank with three pairs that lie in a folder of the test's own, with test splits."""
    pairs = write_pairs(tmp_path / "pairs", 3)
    for folder in (pairs / "datasets").iterdir():
        (folder / "test.jsonl").write_text(json.dumps({"input": "never this", "output": ["x"]}) + "\n")
    bank = create_bank(tmp_path / "own", tokenizer_folder)
    ingest_folder(bank, pairs)
    return bank, pairs


def test_the_training_split_is_read_and_never_the_test_split(own: tuple[AdapterBank, Path]) -> None:
    bank, pairs = own
    for record, found in zip(bank.adapters(), training_examples(bank.adapters(), 100, 0), strict=True):
        lines = (pairs / "datasets" / record.name / "train.jsonl").read_text().splitlines()
        assert sorted(found.inputs) == sorted(json.loads(line)["input"] for line in lines)
        assert found.name == record.name


def test_every_target_that_cannot_be_read_is_named(own: tuple[AdapterBank, Path]) -> None:
    bank, pairs = own
    first, second, third = bank.adapters()
    (pairs / "datasets" / first.name / "train.jsonl").unlink()
    with (pairs / "datasets" / second.name / "train.jsonl").open("a") as file:
        file.write(json.dumps({"input": "more", "output": ["x"]}) + "\n")
    hub = dataclasses.replace(third, dataset_source="hub:owner/dataset")
    with pytest.raises(DatasetError) as caught:
        training_examples([first, second, hub], 8, 0)
    text = str(caught.value)
    assert "the training examples of 3 of 3 targets cannot be read" in text
    assert all(record.name in text for record in (first, second, third))
    assert "--targets" in text
    with pytest.raises(DatasetError, match="holds other examples than those that were ingested"):
        training_examples([second], 8, 0)
    with pytest.raises(DatasetError, match="hub:owner/dataset, which is not downloaded again"):
        training_examples([hub], 8, 0)
    # The others can still be read.
    assert len(training_examples([third], 8, 0)) == 1


def test_a_folder_may_hold_training_splits_that_moved(own: tuple[AdapterBank, Path], tmp_path: Path) -> None:
    bank, pairs = own
    (first, *_) = bank.adapters()
    before = training_examples([first], 8, 0)
    data = tmp_path / "data"
    shutil.move(pairs / "datasets" / first.name, data / first.name)
    assert training_examples([first], 8, 0, data) == before
    # With a test split alone, which `bank evaluate --data` is for, it is where it was.
    shutil.copytree(data / first.name, pairs / "datasets" / first.name)
    (data / first.name / "train.jsonl").unlink()
    assert training_examples([first], 8, 0, data) == before
