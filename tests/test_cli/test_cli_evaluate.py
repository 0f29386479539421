"""`bank evaluate`: exit status, messages, output, and a run that is killed."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import click.testing
import numpy as np
import pytest

from bankdb.bank import AdapterBank
from cli.main import cli
from compute.evaluation.records import Evaluation
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank
from tests.support.faults.fault_driver import FaultServer

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
    words = ["evaluate", "--bank", str(bank), "--workers", "1"]
    words += [] if "--weights-only" in arguments else ["--model", str(BASE)]
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
    assert "rank correlation of weight error with Rouge-L, adapter left out: " in done.stdout
    assert "rank correlation of weight error with Rouge-L, group left out: " in done.stdout
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
def test_arrays_on_an_object_store_give_the_same(tiny: Path, tmp_path: Path, s3: str) -> None:
    make_bank(tmp_path / "remote", copy_pairs(tmp_path / "pairs"), f"{s3}/a").close()
    words = (*WAYS, "--targets", NAMES[0], "--targets", NAMES[2], "--json")
    here, there = (run(bank, *words) for bank in (tiny, tmp_path / "remote"))
    assert there.exit_code == here.exit_code == 0, there.output
    assert json.loads(there.stdout)["systems"] == json.loads(here.stdout)["systems"]
    assert not list((tmp_path / "remote").glob("*.zarr"))


def test_weights_alone_need_no_torch(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the adapters themselves: errors of the stored predictions."""
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "results"
    words = ("--weights-only", "--metric", "js", "--approach", "normalized", "--leave-out", "both")
    done = run(tiny, *words, "--bank-sizes", "2,4,5", "--draws", "3", "--out", out)
    assert done.exit_code == 0, done.output
    assert "Distance in weights of 5 predictions" in done.stdout
    assert "mean and deviation over 3 draws" in done.stdout
    rows = list(csv.DictReader((out / "weights.csv").open()))
    assert {(row["approach"], row["leave_out"]) for row in rows} == {
        (approach, leave_out)
        for approach in ("uniform", "nearest", "normalized", "oracle")
        for leave_out in ("adapter", "group")
    }
    with AdapterBank.open(tiny) as bank:
        theta = bank.store.read_panel([record.row for record in bank.adapters()], 0, bank.layout.size)
        others = (theta.sum(axis=0) - theta) / 4
        assert bank.generations.count() == 0
    relative = np.linalg.norm(others - theta, axis=1) / np.linalg.norm(theta, axis=1)
    (uniform,) = [row for row in rows if (row["approach"], row["leave_out"]) == ("uniform", "adapter")]
    assert float(uniform["relative_error"]) == pytest.approx(relative.mean(), rel=1e-4)
    assert float(uniform["mse"]) == pytest.approx(np.mean((others - theta) ** 2), rel=1e-4)
    sizes = list(csv.DictReader((out / "sizes.csv").open()))
    (whole,) = [row for row in sizes if tuple(row.values())[1:4] == ("uniform", "adapter", "5")]
    assert float(whole["relative_error"]) == pytest.approx(relative.mean(), rel=1e-4)
    assert "https://" not in re.sub(
        r"<script.*?</script>", "", (out / "sizes.html").read_text(), flags=re.DOTALL
    )
    record = json.loads(run(tiny, *words, "--bank-sizes", "2,4", "--draws", "3", "--json").stdout)
    assert len(record["weight_space"]["summaries"]) == len(rows)
    assert {item["adapters"] for item in record["bank_sizes"]} == {2, 4}


@pytest.mark.parametrize(
    ("sizes", "message", "status"),
    [
        ("4,x", "expected numbers of adapters such as 4,8,16, found '4,x'", 2),
        ("4,2", "expected ascending numbers from 1 to 5", 2),
        ("2,9", "expected ascending numbers from 1 to 5, the size of the bank, found 2, 9", 2),
    ],
)
def test_sizes_that_cannot_be(tiny: Path, sizes: str, message: str, status: int) -> None:
    done = run(tiny, "--weights-only", "--approach", "uniform", "--bank-sizes", sizes)
    assert done.exit_code == status
    assert message in done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert f"generate: 0/{left}\n" in done.stderr
