"""JSON in the shapes that people write: read, or refused by naming the shape. pandas is the oracle of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankdb.datasets.held_out import read_held_out
from bankdb.datasets.read import Dataset, read_dataset
from bankdb.errors import DatasetError

ROWS = [{"input": "a", "output": "b"}, {"input": "c d", "output": "e"}]
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)


def pairs(found: Dataset) -> list[tuple[str, str]]:
    return list(zip(found.inputs, found.outputs, strict=True))


def read(path: Path, found: Any, **how: Any) -> Dataset:
    path.write_text(found if isinstance(found, str) else json.dumps(found, **how))
    return read_dataset([path])


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table"])
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(text, text), min_size=1, max_size=5))
def test_what_pandas_writes_is_read(
    tmp_path: Path, orient: Any, name: str, rows: list[tuple[str, str]]
) -> None:
    frame = pandas.DataFrame(rows, columns=["input", "output"])
    found = read(tmp_path / name, frame.to_json(orient=orient))
    assert pairs(found) == rows


def test_which_shape_it_was_is_said(tmp_path: Path) -> None:
    frame = pandas.DataFrame(ROWS)
    for orient in ("columns", "index", "split"):
        (note,) = read(tmp_path / "t.json", frame.to_json(orient=orient)).notes
        assert f"orient='{orient}'" in note
    (note,) = read(tmp_path / "t.json", frame.to_dict("list")).notes
    assert note.endswith("is an object of columns, each a list")
    assert read(tmp_path / "t.json", ROWS).notes == ()


SHAPES: list[Any] = [
    ROWS,
    {"data": ROWS, "version": 1},
    {"train": ROWS},
    {"train": ROWS, "test": ROWS[:1]},
    {"train": {"input": ["a", "c d"], "output": ["b", "e"]}},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_lists_and_splits_whatever_the_name_says(
    tmp_path: Path, name: str, shape: Any, indent: int | None
) -> None:
    assert pairs(read(tmp_path / name, shape, indent=indent)) == [("a", "b"), ("c d", "e")]


def test_the_split_that_is_asked_for_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"train": ROWS, "test": [{"input": "x", "output": ["y", "z"]}]}))
    assert pairs(read_dataset([path])) == [("a", "b"), ("c d", "e")]
    assert read_held_out([path]).references == (("y", "z"),)
    path.write_text(json.dumps({"train": ROWS}))
    with pytest.raises(DatasetError, match="an object with the splits 'train'; expected 'test' among them"):
        read_held_out([path])
    path.write_text(json.dumps({"validation": ROWS, "test": ROWS}))
    with pytest.raises(DatasetError, match="splits 'validation', 'test'; expected 'train'"):
        read_dataset([path])


def test_one_example_is_no_table(tmp_path: Path) -> None:
    assert pairs(read(tmp_path / "t.json", {"input": "a", "output": ["b", "c"]})) == [("a", "b")]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    one = read(tmp_path / "t.json", {"messages": turns})
    assert one.texts() == ["user: a\nassistant: b"]
    assert read(tmp_path / "u.jsonl", {"messages": turns}).sha256 == one.sha256
    assert len(read(tmp_path / "t.json", {"messages": [turns, turns]})) == 2


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([["a", "b"]], "example 1: a list; expected an object with 'input' and 'output'"),
        (["a"], "example 1: a string; expected an object"),
        (3, "a number; expected a list of objects"),
        ({"input": ["a"], "output": ["b", "c"]}, "columns of other lengths: 'input' has 1, 'output' has 2"),
        ({"input": {"0": "a"}, "output": {"1": "b"}}, "an object of columns that have not the same rows"),
        ({"columns": ["input", "output"], "data": [["a"]]}, "example 1: expected a list of 2 values"),
        ({"columns": ["input", "input"], "data": []}, "orient='split', whose columns are not named, or twice"),
        ({"Definition": ["d"], "Instances": [{"a": 1}]},
         r"'Definition', 'Instances' \(a list of 1, the first a string, a list of 1, the first an object\)"),
        ({"rows": [{"row": {}}]}, r"with 'rows' \(a list of 1, the first an object\); expected a list"),
        ({}, "an object with .*expected a list of objects"),
    ],
)  # fmt: skip
def test_other_shapes_are_named(tmp_path: Path, found: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read(tmp_path / "t.json", found)
    assert "\n" not in str(caught.value)
