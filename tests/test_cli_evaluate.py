"""`bank evaluate`: exit status, messages, output, and a run that is killed."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import click.testing
import pytest
from fault_driver import FaultServer
from tiny_bank import BASE, NAMES, copy_pairs, make_bank

from bankdb.bank import AdapterBank
from cli.main import cli
from compute.evaluation_records import Evaluation

WAYS = ("--metric", "js", "--approach", "normalized", "--max-examples", "3", "--resamples", "50")


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
    words = ["evaluate", "--bank", str(bank), "--model", str(BASE), "--workers", "1"]
    return click.testing.CliRunner().invoke(cli, [*words, *map(str, arguments)])


@pytest.mark.torch
def test_tables_files_and_json(tiny: Path, tmp_path: Path) -> None:
    done = run(tiny, *WAYS, "--leave-out", "both", "--out", tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert "Mean and standard deviation over 5 tasks, 15 test examples" in done.stdout
    assert "jensen-shannon normalized (group left out)" in done.stdout
    assert "best by leaving out the adapter: " in done.stdout
    assert "best by leaving out the group: " in done.stdout
    assert "closes 59% on its 502 tasks" in done.stdout
    record = Evaluation.from_json((tmp_path / "results" / "evaluation.json").read_text())
    assert len(record.systems) == 8
    rows = list(csv.DictReader((tmp_path / "results" / "systems.csv").open()))
    assert [row["system"] for row in rows] == [system.name for system in record.systems]
    assert len(list(csv.DictReader((tmp_path / "results" / "targets.csv").open()))) == len(record.outcomes)
    # The same again, for machines: nothing is generated.
    again = run(tiny, *WAYS, "--leave-out", "both", "--json")
    found = json.loads(again.stdout)
    assert found["identity"] == record.identity
    assert [one["system"]["name"] for one in found["systems"]] == [system.name for system in record.systems]
    assert "generate" not in again.stderr
    table = run(tiny, *WAYS, "--leave-out", "both", "--csv", "-")
    assert list(csv.DictReader(io.StringIO(table.stdout))) == rows


@pytest.mark.torch
def test_a_target_without_a_test_split_is_named_at_the_end(
    tiny: Path, template: Path, tmp_path: Path
) -> None:
    name = NAMES[0]
    (tmp_path / "data").mkdir()
    shutil.copytree(template / "pairs" / "datasets" / name, tmp_path / "data" / name)
    done = run(
        tiny,
        *WAYS,
        "--targets",
        name,
        "--targets",
        NAMES[1],
        "--data",
        tmp_path / "data",
        "--csv",
        tmp_path / "t.csv",
    )
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"not evaluated: {NAMES[1]}: expected its test split in")
    assert "pass --data FOLDER" in last
    assert len(list(csv.DictReader((tmp_path / "t.csv").open()))) == 5
    none = run(tiny, *WAYS, "--data", tmp_path)
    assert none.exit_code == 1
    assert "bank: error: no target could be evaluated" in none.stderr


@pytest.mark.torch
def test_delta_space_comes_beside_factors(tiny: Path) -> None:
    done = run(tiny, *WAYS, "--targets", NAMES[0], "--space", "delta", "--json")
    assert done.exit_code == 0, done.output
    names = [one["system"]["name"] for one in json.loads(done.stdout)["systems"]]
    assert names[2:] == [
        name + suffix
        for suffix in ("", " (delta space)")
        for name in ("uniform", "jensen-shannon nearest", "jensen-shannon normalized")
    ]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--targets", "nobody"), "targets: expected names of adapters in the bank, found nobody"),
        (("--max-examples", "0"), "--max-examples: expected a number of at least 1, or all"),
        (("--max-examples", "many"), "--max-examples: expected a number of at least 1, or all"),
        (("--rank", "3"), "rank: goes with space delta"),
        (("--metric", "cosine"), "'cosine' is not one of"),
        (("--leave-out", "all"), "'all' is not one of"),
    ],
)
def test_wrong_use(tiny: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(tiny, *WAYS, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_without_the_extra(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a)
    )
    done = run(tiny, *WAYS)
    assert done.exit_code == 2
    assert "expected the extra torch: pip install 'lora-bank[torch]'" in done.stderr


def test_an_empty_bank_and_none(tmp_path: Path) -> None:
    AdapterBank.create(tmp_path / "bank", base_model="tiny-bank/base", tokenizer=BASE).close()
    done = run(tmp_path / "bank", *WAYS)
    assert (done.exit_code, "the bank has no adapters yet" in done.stderr) == (1, True)
    done = run(tmp_path / "nothing", *WAYS)
    assert (done.exit_code, "no bank here" in done.stderr) == (1, True)


@pytest.mark.torch
@pytest.mark.faults
def test_a_killed_run_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--bank", tiny, "--model", BASE, *WAYS, "--workers", "1", "--threads", "2"]
    server = FaultServer()
    try:
        pid = server.start(*words, log=tmp_path / "log", kill="keep_answers end 4")
        assert server.wait(pid) == -9, (tmp_path / "log").read_text()
    finally:
        server.close()
    with AdapterBank.open(tiny) as bank:
        assert bank.generations.count() == 4
        assert not (bank.path / "evaluations").exists()
    done = run(tiny, *WAYS, "--json")
    assert done.exit_code == 0, done.output
    with AdapterBank.open(tiny) as bank:
        left = bank.generations.count() - 4
    assert f"generate, examples: 0/{3 * left}" in done.stderr
