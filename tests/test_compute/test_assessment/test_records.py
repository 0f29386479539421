"""What an assessment says, from scores alone: figures against NumPy, sentences, files. Needs no torch."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.errors import ConflictError, ParameterError
from compute.assessment.records import Assessed, Assessment


def system(name: str, kind: str, rouge: list[float], answers: list[str] | None = None) -> Assessed:
    texts = tuple(answers or [f"{name} {index}" for index in range(len(rouge))])
    return Assessed(name, kind, "x", "0" * 64, texts, tuple(rouge), tuple(int(one == 1) for one in rouge))


def assessment(*systems: Assessed) -> Assessment:
    number = len(systems[0].answers)
    return Assessment(
        "test.jsonl",
        "f" * 64,
        tuple(f"input {index}" for index in range(number)),
        (("yes", "no"),) * number,
        systems,
        {"model": "tiny/base", "dtype": "float32", "resamples": 2000, "seed": 3},
    )


BASE = system("base model", "base", [0.0, 0.1] * 10)
GOOD = system("good", "adapter", [0.5, 1.0] * 10)
EQUAL = system("equal", "adapter", [0.1, 0.0] * 10)
UNIFORM = system("uniform", "compared", [0.5, 0.9] * 10)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=10, max_size=40))
@settings(max_examples=20)
def test_differences_are_paired(scores: list[tuple[float, float]]) -> None:
    """Against a bootstrap that draws the examples themselves: as near as two draws of 2000 are."""
    base, good = (np.asarray(column) for column in zip(*scores, strict=True))
    found = assessment(
        system("base model", "base", base.tolist()), system("a", "adapter", good.tolist())
    ).difference("a")
    drawn = np.random.default_rng(0).integers(0, len(base), (2000, len(base)))
    means = (good - base)[drawn].mean(axis=1)
    assert found.estimate == pytest.approx((good - base).mean(), abs=1e-12)
    near = 5 * (good - base).std() / len(base) ** 0.5 / 2000**0.5 * 6 + 1e-9
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=near)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=near)


def test_sentences_say_what_it_means() -> None:
    worse = system("worse", "adapter", [0.0] * 20)
    same = system("same", "adapter", [0.0, 0.1] * 10, list(BASE.answers))
    found = assessment(BASE, GOOD, EQUAL, worse, same, UNIFORM).sentences()
    assert found[0].startswith("good: better than the base model: yes, +0.70 [")
    assert "better than the mean of all adapters: yes, +0.05 [" in found[0]
    assert "better than equal" not in found[0]  # one given after it
    assert "equal: better than the base model: not clearly, +0.00 [" in found[1]
    assert "better than good: no, worse, -0.70 [" in found[1]
    assert "better than the base model: no, worse, -0.05 [" in found[2]
    assert "same: better than the base model: no, it gives the same answers" in found[3]


def test_few_examples_have_no_interval_and_no_verdict() -> None:
    short = assessment(system("base model", "base", [0.0] * 9), system("a", "adapter", [1.0, 0.9, 0.8] * 3))
    assert short.sentences() == ["a: better than the base model: too few examples to tell (9 of 10), +0.90"]
    assert short.rows()[1][1][3] == "+0.90"
    assert short.measured("a")["compared_with"][0]["rouge_l_difference"]["low"] is None


def test_tables_and_files_hold_the_same(tmp_path: Path) -> None:
    found = assessment(BASE, GOOD, UNIFORM)
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["system"] for row in rows] == ["base model", "good", "uniform"]
    assert float(rows[1]["rouge"]) == pytest.approx(0.75)
    interval = found.difference("good")
    assert float(rows[1]["rouge_to_base_low"]) == interval.low
    assert (rows[0]["rouge_to_base"], found.rows()[1][0][3]) == ("", None)
    assert found.rows()[1][1][5] == "20/0/0"
    folder = found.save(tmp_path / "out")
    examples = list(csv.DictReader((folder / "examples.csv").open()))
    assert len(examples) == 3 * 20
    assert json.loads(examples[0]["references"]) == ["yes", "no"]
    record = json.loads((folder / "assessment.json").read_text())
    assert record["systems"][1]["rouge_to_base"]["estimate"] == interval.estimate
    assert record["sentences"] == found.sentences()
    with pytest.raises(ConflictError, match="already there"):
        found.save(folder)
    array = found.to_xarray()
    assert float(array.rouge.sel(system="good").mean()) == pytest.approx(0.75)


def test_it_shows_itself() -> None:
    found = assessment(BASE, GOOD)
    assert "good: Rouge-L 0.750, exact 0.500" in repr(found)
    assert "better than the base model: yes" in repr(found)
    assert "<table>" in found._repr_html_()
    with pytest.raises(ParameterError, match="expected one of base model, good, found 'other'"):
        found.system("other")
    with pytest.raises(ParameterError, match="measure"):
        found.difference("good", measure="bleu")
