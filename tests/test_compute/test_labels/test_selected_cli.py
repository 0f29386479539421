"""`selected` through its commands: exit status, messages, what is stored, and runs that are killed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import click.testing
import pytest

from bankdb.bank import AdapterBank
from bankdb.derived import LISTED
from cli.main import cli
from compute.approaches.kinds.selected import Selected
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank
from tests.support.faults.fault_driver import FaultServer

WAY = ("--approach", "selected", "--model", BASE, "--examples", "4", "--threads", "1")
ALL = ("--all", *WAY, "--workers", "1")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root


@pytest.fixture
def tiny(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template / "bank", tmp_path / "bank"))


def run(command: str, *arguments: str | Path) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, [command, *map(str, arguments)])


def kept(bank: Path) -> dict[str, int]:
    """How many losses each set of examples has in the bank."""
    return {
        file.parent.name: len(json.loads(file.read_text())["attributes"][LISTED])
        for file in (bank / "losses.zarr").glob("*/zarr.json")
    }


@pytest.mark.torch
def test_one_dataset(tiny: Path, template: Path, tmp_path: Path) -> None:
    data, out = template / "pairs" / "datasets" / NAMES[0], tmp_path / "out"
    done = run("predict", data, "--bank", tiny, *WAY, "--out", out)
    assert done.exit_code == 0, done.output
    record = json.loads((out / "provenance.json").read_text())
    assert (record["approach"], record["parameters"]) == ("selected", {"examples": 4})
    chosen = record["fitted"]
    assert min(chosen["losses"], key=chosen["losses"].__getitem__) == chosen["chosen"]
    assert len(chosen["losses"]) == 1 + 2 * len(Selected.metrics) + 2
    assert f"chosen on 4 labelled examples: {chosen['chosen']}, " in done.stdout
    assert (out / "adapter_model.safetensors").is_file()
    again = run("predict", data, "--bank", tiny, *WAY, "--out", tmp_path / "again", "--json")
    assert json.loads(again.stdout)["fitted"] == chosen
    with AdapterBank.open(tiny) as bank:
        assert bank.verify().clean


@pytest.fixture(scope="module")
def unbroken(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bank of a run that nobody disturbed, and what it exported."""
    root = tmp_path_factory.mktemp("unbroken")
    shutil.copytree(template / "bank", root / "bank")
    done = run("predict", "--bank", root / "bank", *ALL, "--export", root / "export")
    assert done.exit_code == 0, done.output
    return root


@pytest.mark.torch
@pytest.mark.faults
@pytest.mark.parametrize("kill", ["keep_loss begin 3", "keep_loss end 17"])
def test_a_killed_run_goes_on_where_it_was(tiny: Path, unbroken: Path, tmp_path: Path, kill: str) -> None:
    words = (*ALL, "--export", tmp_path / "export")
    server = FaultServer()
    try:
        pid = server.start("predict", "--bank", tiny, *words, log=tmp_path / "log", kill=kill)
        assert server.wait(pid) == -9, (tmp_path / "log").read_text()
    finally:
        server.close()
    _, when, number = kill.split()
    assert sum(kept(tiny).values()) == int(number) - (when == "begin")
    done = run("predict", "--bank", tiny, *words)
    assert done.exit_code == 0, done.output
    assert kept(tiny) == kept(unbroken / "bank")
    for name in NAMES:
        one, other = (folder / "export" / name for folder in (tmp_path, unbroken))
        for file in ("adapter_model.safetensors", "provenance.json"):
            assert (one / file).read_bytes() == (other / file).read_bytes()


def test_without_torch_it_says_what_to_install(
    tiny: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    data = template / "pairs" / "datasets" / NAMES[0]
    done = run("predict", data, "--bank", tiny, *WAY, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "expected the extra torch: pip install 'lora-bank[torch]'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["0", "x", "-3"])
def test_examples_are_a_number(tiny: Path, number: str) -> None:
    done = run("predict", "x.jsonl", "--bank", tiny, "--approach", "selected", "--examples", number)
    assert done.exit_code == 2
    assert "--examples" in done.stderr


def test_no_base_model(tiny: Path, template: Path, tmp_path: Path) -> None:
    data = template / "pairs" / "datasets" / NAMES[0]
    words = ("--approach", "selected", "--model", tmp_path, "--out", tmp_path / "out")
    done = run("predict", data, "--bank", tiny, *words)
    assert done.exit_code == 1
    assert "expected a base model with config.json, found none; pass --model PATH" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_plan_counts_its_metrics_and_all_leaves_it_out(tiny: Path) -> None:
    done = run("plan", "--bank", tiny, "--approach", "selected", "--json")
    assert done.exit_code == 0, done.output
    steps = {step["name"] for step in json.loads(done.stdout)["steps"]}
    assert {f"distances {name}" for name in Selected.metrics} | {"coefficients selected"} <= steps
    done = run("plan", "--bank", tiny, "--approach", "all", "--json")
    assert "coefficients selected" not in {step["name"] for step in json.loads(done.stdout)["steps"]}


def test_no_all_and_no_default_asks_the_base_model(tiny: Path) -> None:
    words = (
        "--weights-only",
        "--metric",
        "js",
        "--width",
        "8",
        "--workers",
        "1",
        "--json",
        "--approach",
        "all",
    )
    done = run("evaluate", "--bank", tiny, *words)
    assert done.exit_code == 0, done.output
    found = {row["approach"] for row in json.loads(done.stdout)["weight_space"]["summaries"]}
    assert "ridge" in found
    assert "selected" not in found
    assert not (tiny / "losses.zarr").exists()
