"""An evaluation in the bank that somebody edited is refused by name, or is one: nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError
from cli.main import cli
from compute.evaluation.records import Evaluation, stored_evaluations

WHOLE: dict[str, Any] = json.loads(Path(__file__).with_name("stored_evaluation.json").read_text())
OTHERS = st.sampled_from(
    [None, True, -1, 0, 3, 10**30, 0.5, -2.5, "", "x", [], [1], ["a", "b"], {}, {"a": 1}]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


PLACES = list(places(WHOLE))


def edited(path: tuple[Any, ...], value: Any = None, *, delete: bool = False) -> str:
    content = copy.deepcopy(WHOLE)
    place = content
    for key in path[:-1]:
        place = place[key]
    if delete:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(content)


def read(text: str) -> Evaluation | None:
    """An evaluation that can be summed up and written again; None if it is refused."""
    try:
        found = Evaluation.from_json(text, "some/where.json")
    except BankFormatError as error:
        message = str(error)
        assert message.startswith("some/where.json: ")
        assert "evaluate again" in message
        assert len(message.splitlines()) == 1
        assert len(message) < 400
        return None
    assert len(found.summaries()) == len(found.systems)
    assert Evaluation.from_json(found.to_json()) == found
    return found


@pytest.mark.faults
@given(path=st.sampled_from(PLACES), value=OTHERS)
@settings(max_examples=400)
def test_any_value_in_any_place(path: tuple[Any, ...], value: Any) -> None:
    read(edited(path, value))


@pytest.mark.faults
@given(path=st.sampled_from(PLACES))
@settings(max_examples=200)
def test_anything_taken_out(path: tuple[Any, ...]) -> None:
    read(edited(path, delete=True))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("outcomes", 0, "rouge"), 0.123),
        (("outcomes", 0, "rouge_by_example"), [0.5]),
        (("outcomes", 0, "rouge_by_example"), [7.0, 7.0]),
        (("outcomes", 0, "n"), 3),
        (("outcomes", 0, "system"), "nobody"),
        (("outcomes", 0, "target"), "nobody"),
        (("outcomes", 1), WHOLE["outcomes"][0]),
        (("outcomes",), []),
        (("targets",), []),
        (("targets", 0, "group"), 7),
        (("systems", 0, "name"), None),
        (("systems", 0, "parameters"), []),
        (("settings",), []),
        (("settings", "resamples"), 0),
        (("settings", "resamples"), 10**12),
        (("settings", "resamples"), "50"),
        (("settings", "seed"), -1),
        (("created",), 20261129),
        (("outcomes", 2, "sources"), [["a", "b"]]),
        (("outcomes", 2, "samples"), [{"input": 1, "references": ["x"], "answer": "y"}]),
        (("failures",), [{"target": "x", "reason": None}]),
    ],
)
def test_what_is_not_what_it_says_is_refused(path: tuple[Any, ...], value: Any) -> None:
    assert read(json.dumps(WHOLE)) is not None
    assert read(edited(path, value)) is None


@pytest.mark.parametrize(
    "content", [edited(("systems", 0, "name"), 3).encode(), b"\xff\xfe{}", b"", b"[" * 9999]
)
def test_a_report_names_the_file(bank: AdapterBank, tmp_path: Path, content: bytes) -> None:
    file = bank.path / "evaluations" / "abc.json"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(BankFormatError, match=r"abc\.json: expected an evaluation"):
        stored_evaluations(bank)
    words = ["report", "--bank", str(bank.path), "--approach", "normalized", "--metric", "js"]
    done = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if "abc.json" in line]
    assert "delete the file" in line
    assert "internal" not in done.output
