"""Whole commands on data as people have it: what is said, what is stored, and what is compared."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from bankdb.datasets.forms.rules import Rule
from cli.main import cli
from compute.labels.examples import readings_of, training_split
from tests.support.banks.malformed_adapters import write_good_adapter

TEMPLATE = (
    "{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}{% if add_generation_prompt %}w1 {% endif %}"
)
TURNS = [{"from": "human", "value": "w5 w6"}, {"from": "gpt", "value": "w7"}]
ALPACA = {"instruction": "w3 w4", "input": "w5", "output": "w6"}
# Names of pairs, and the rows of their datasets.
PAIRS: dict[str, list[Any]] = {
    "plain": [{"input": "w3 w4\nw5", "output": "w6"}],
    "alpaca": [ALPACA],
    "chat": [{"conversations": TURNS}],
    "asked": [{"question": "w8 w9", "answer": True, "source": "of a book"}],
    "holes": [{"input": "w8", "output": None}, {"input": "w1", "output": "w2"}],
}


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def write_pair(folder: Path, name: str, rows: list[Any]) -> None:
    data = folder / "datasets" / name
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_good_adapter(folder / "adapters" / name, seed=len(name))


@pytest.fixture
def place(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A folder with pairs, and an empty bank whose tokenizer has a chat template."""
    shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(TEMPLATE)
    for name, rows in PAIRS.items():
        write_pair(tmp_path / "pairs", name, rows)
    base = json.loads((tmp_path / "pairs/adapters/plain/adapter_config.json").read_text())[
        "base_model_name_or_path"
    ]
    run("init", "--bank", tmp_path / "bank", "--base-model", base, "--tokenizer", tmp_path / "tokenizer")
    return tmp_path


def test_ingest_says_what_it_recognised_and_stores_it(place: Path) -> None:
    bank = place / "bank"
    first = run("ingest", "--bank", bank, place / "pairs", status=1)
    assert "refused holes: " in first.stderr
    assert "line 1: 'output' is null" in first.stderr
    second = run("ingest", "--bank", bank, place / "pairs", "--skip-bad-rows")
    assert "note: holes: 1 of 2 rows are skipped, the first: " in second.stderr
    assert "1 added, 4 there already" in second.stdout
    for line in (
        "note: alpaca: read as Alpaca: 'instruction', a new line and 'input', then 'output'",
        "note: chat: read as chat: the turns in 'conversations' before the last answer, then that, by the ",
        "note: asked: read as 'question' then 'answer'",
        "text in 'source' is not used, only 'question' and 'answer' are read",
        "1 values are numbers or booleans, read as their text, such as true",
    ):
        assert line in first.stderr, first.stderr
    for name, shown in (
        ("plain", "'input' then 'output'"),
        ("alpaca", "Alpaca: "),
        ("chat", "chat: the turns in"),
    ):
        found = json.loads(run("show", "--bank", bank, name, "--json").stdout)
        assert found["read_as"].startswith(shown)
    with AdapterBank.open(bank) as opened:
        records = {record.name: record for record in opened.adapters()}
        rules = opened.origins.text_rules([record.row for record in records.values()])
        assert rules[records["plain"].row] == "input + output[0]" == opened.record.text_rule
        assert Rule.of_text(rules[records["holes"].row]).skips
        # The same texts are the same content, whichever columns they were in; and all are read again as they were.
        assert records["plain"].content_sha256 == records["alpaca"].content_sha256
        readings = readings_of(opened, list(records.values()))
        for name, record in records.items():
            assert training_split(record, reading=readings[name]).sha256 == record.content_sha256
        assert training_split(records["chat"], reading=readings["chat"]).inputs == ("w1 w5 w6 w2 w1 ",)
        opened.catalog.token_counts(list(rules))
    assert "5 adapters checked: clean" in run("verify", "--bank", bank).stdout


def test_other_forms_are_not_compared_in_silence(place: Path) -> None:
    bank = place / "bank"
    shutil.rmtree(place / "pairs/datasets/holes")
    shutil.rmtree(place / "pairs/adapters/holes")
    run("ingest", "--bank", bank, place / "pairs")
    compared = run("distances", "--bank", bank, "--workers", "1").stderr
    assert "of the bank's datasets 2 as input and output, 1 as " in compared
    new = place / "new.jsonl.gz"
    new.write_bytes(gzip.compress((json.dumps(ALPACA | {"output": "w9"}) + "\n").encode()))
    made = run("predict", "--bank", bank, new, "--out", place / "made")
    assert (
        "is read as instruction, input and output, and of 4 datasets of the bank 2 as input and output"
        in made.stderr
    )
    provenance = json.loads((place / "made/provenance.json").read_text())
    assert Rule.of_text(provenance["dataset"]["text_rule"]) == Rule(
        "alpaca", ("instruction", "input", "output")
    )
    for name in ("alpaca", "chat"):
        run("remove", "--bank", bank, name)
    new.write_bytes(gzip.compress(b'{"input": "w3", "output": "w9"}\n'))
    assert "forms apart" not in run("predict", "--bank", bank, new, "--out", place / "other").stderr
    assert "forms apart" not in run("distances", "--bank", bank, "--workers", "1").stderr


def test_every_form_is_predicted_for_like_the_plain_one(place: Path) -> None:
    """The same texts in other columns, files and folders: the same adapter, bit for bit."""
    bank = place / "bank"
    run("ingest", "--bank", bank, place / "pairs", "--skip-bad-rows")
    rows = [{"input": "w3 w4\nw5", "output": "w9"}, {"input": "w1", "output": "w2"}]
    (place / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    renamed = [{"prompt": row["input"], "completion": row["output"]} for row in rows]
    (place / "pandas.json").write_text(json.dumps({"prompt": {"0": "w3 w4\nw5", "1": "w1"},
                                                   "completion": {"0": "w9", "1": "w2"}}))  # fmt: skip
    saved = place / "saved"
    saved.mkdir()
    with pa.OSFile(str(saved / "data.arrow"), "wb") as sink:
        table = pa.Table.from_pylist(renamed)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (saved / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data.arrow"}], "_split": None})
    )
    (saved / "dataset_info.json").write_text("{}")
    one = [{"body": row["input"] + row["output"]} for row in rows]
    (place / "body.json").write_text(json.dumps(one))
    weights = set()
    for name, more in (
        ("plain.jsonl", []),
        ("pandas.json", []),
        ("saved", []),
        ("body.json", ["--text-column", "body"]),
    ):
        run("predict", "--bank", bank, place / name, "--out", place / "out", "--overwrite", *more)
        weights.add((place / "out/adapter_model.safetensors").read_bytes())
    assert len(weights) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["--text-column", "x", "--input-column", "y"],
            2,
            "--input-column: would do nothing here; goes with two columns",
        ),
        (
            ["--input-column", "x", "--output-column", "x"],
            1,
            "input and output are both read from column 'x'",
        ),
    ],
)
def test_columns_that_contradict_each_other(
    place: Path, arguments: list[str], status: int, message: str
) -> None:
    new, out = place / "new.jsonl", place / "out"
    new.write_text('{"x": "a"}\n')
    run("ingest", "--bank", place / "bank", place / "pairs", "--skip-bad-rows")
    found = run("predict", "--bank", place / "bank", new, "--out", out, *arguments, status=status)
    assert message in found.stderr
    assert not out.exists()
