"""`bank show` without a name: where a bank is, what takes space in it, and what is stored of runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from bankdb.arrays.durable import sizes_below
from bankdb.bank import AdapterBank
from cli.main import cli
from cli.shown_bank import COLUMNS, folded
from cli.tables import table_lines
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import ingest_folder

# What other programs have read since 0.1.0, and what came after.
KEPT = """identity format_version base_model base_model_aliases base_model_revision tokenizer_name tokenizer_fingerprint
vocabulary text_rule next_row parameters alpha use_rslora scaling dtype task_type created adapters initialisation"""
NEW = "bank database arrays rank modules disk runs"


def run(path: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, [arguments[0], "--bank", str(path), *arguments[1:]])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def path(bank_template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bank_template, tmp_path / "bank"))


def test_where_it_is_and_what_it_holds(path: Path) -> None:
    values = json.loads(run(path, "show", "--json").stdout)
    assert values.keys() == {*KEPT.split(), *NEW.split()}
    assert (values["bank"], values["arrays"]) == (str(path), str(path))
    assert Path(values["database"]).samefile(path / "bank.db")
    config = next(Path(record["source"]) for record in json.loads(run(path, "list", "--json").stdout))
    stated = json.loads((config / "adapter_config.json").read_text())
    assert values["rank"] == stated["r"]
    assert set(values["modules"]) == set(stated["target_modules"])
    assert values["runs"] == []
    output = run(path, "show").stdout
    assert values["tokenizer_fingerprint"][:12] in output
    assert values["tokenizer_fingerprint"] not in output
    assert "no runs are stored yet" in output


def test_a_bank_without_adapters(empty_bank: AdapterBank) -> None:
    values = json.loads(run(empty_bank.path, "show", "--json").stdout)
    assert (values["rank"], values["modules"], values["adapters"]) == (None, None, 0)
    assert BASE_MODEL in run(empty_bank.path, "show").stdout


def test_the_disk_is_all_accounted_for(path: Path) -> None:
    run(path, "predict", "--all", "--store", "--workers", "1")
    (path / "evaluations").mkdir()
    (path / "evaluations" / "x.json").write_text("0123456789")
    (path / "notes").mkdir()
    (path / "notes" / "x").write_text("012")
    disk = json.loads(run(path, "show", "--json").stdout)["disk"]
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith("bank.db")]
    assert disk["evaluations"] == 10
    # SQLite has a log beside it while it is open.
    assert disk["database"] >= (path / "bank.db").stat().st_size
    assert sum(disk.values()) - disk["database"] == sum(file.stat().st_size for file in files)
    assert disk["other"] >= 3
    for kind in ("adapters", "distances", "predictions", "tokenizer"):
        folder = path / (kind if kind == "tokenizer" else f"{kind}.zarr")
        assert disk[kind] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert list(disk.values()) == sorted(disk.values(), reverse=True)


def test_stored_runs(path: Path) -> None:
    run(
        path,
        "predict",
        "--all",
        "--approach",
        "uniform",
        "--approach",
        "nearest",
        "--metric",
        "wd",
        "--workers",
        "1",
    )
    run(path, "predict", "--all", "--approach", "attentional", "--temperature", "2.5", "--workers", "1")
    runs = json.loads(run(path, "show", "--json").stdout)["runs"]
    made = [
        (one["made_by"].get("approach"), one["made_by"]["metric"])
        for one in runs
        if one["kind"] == "predictions"
    ]
    assert sorted(made) == [
        ("attentional", "jensen-shannon"),
        ("nearest", "wasserstein"),
        ("uniform", "none"),
    ]
    with AdapterBank.open(path) as bank:
        assert [one["run"] for one in runs] == [one.id for one in bank.runs.all()]
    output = run(path, "show").stdout
    lines = output.splitlines()
    (head,) = (line for line in lines if "made by" in line)
    column = slice(head.index("made by"), head.index("state"))
    # Folded there.
    made_by = " ".join(line[column].strip() for line in lines[lines.index(head) :])
    assert "attentional jensen-shannon, temperature 2.5" in made_by
    assert f"{len(runs)} stored runs: " in output
    assert "3 of predictions" in output
    with AdapterBank.open(path) as bank:
        for number in range(30):
            bank.runs.begin("predictions", {"approach": f"made-{number}", "options": {"long": "x " * 60}})
    output = run(path, "show").stdout
    assert "made-29" in output
    assert "made-9" not in output.split()
    assert "the newest 20 are shown; --json has all" in output
    assert len(json.loads(run(path, "show", "--json").stdout)["runs"]) == len(runs) + 30
    assert max(map(len, output.splitlines())) <= 80


def test_a_long_path_is_folded_into_eighty_columns(bank_template: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bank_template, tmp_path / ("a" * 100) / "bank"))
    lines = run(path, "show").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert json.loads(run(path, "show", "--json").stdout)["bank"] == str(path)


@given(
    st.lists(st.tuples(st.text("ab", max_size=9), st.text("ab ", max_size=300), st.text("ab", max_size=9)))
)
def test_a_folded_table_has_every_word_and_fits(rows: list[tuple[str, str, str]]) -> None:
    headings = ("run", "made by", "since")
    lines = folded(headings, rows, 1)
    assert max((len(line) for line in table_lines(headings, lines)), default=0) <= COLUMNS
    assert "".join("".join(line[1].split()) for line in lines) == "".join(
        "".join(row[1].split()) for row in rows
    )
    if rows:
        assert [line[0] for line in lines if line[0]] == [row[0] for row in rows if row[0]]


def test_under_a_url(tmp_path: Path, s3: str, tokenizer_folder: Path, pairs_folder: Path) -> None:
    made = AdapterBank.create(
        tmp_path / "remote", base_model=BASE_MODEL, tokenizer=tokenizer_folder, arrays=f"{s3}/a"
    )
    with made as bank:
        ingest_folder(bank, pairs_folder)
        values = json.loads(run(bank.path, "show", "--json").stdout)
        assert (values["bank"], values["arrays"]) == (str(bank.path), f"{s3}/a")
        assert values["disk"]["adapters"] == sum(sizes_below(bank.store.path).values())
        assert values["disk"].keys() >= {"adapters", "database", "tokenizer", "initialisation"}
