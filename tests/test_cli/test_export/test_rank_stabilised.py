"""What is written says its scaling as lora_alpha / r: not everything that loads it reads use_rslora."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bankdb.bank import AdapterBank
from bankdb.peft.config import plain_alpha
from cli.main import cli
from tests.support.banks.small_bank import create_bank, ingest_folder, write_dataset, write_pairs
from tests.support.banks.tiny_bank import BASE, copy_pairs, make_bank
from tests.support.gguf_cases import read_values


def run(*arguments: str | Path) -> None:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("rslora")
    pairs = write_pairs(folder / "pairs", 3)
    for index in range(3):
        path = pairs / "adapters" / f"task{index:03d}" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True, "lora_alpha": 6}))
    with create_bank(folder / "bank", tokenizer_folder) as made:
        ingest_folder(made, pairs)
        assert (made.record.scaling, made.record.use_rslora) == (3.0, True)
    return folder / "bank"


@pytest.mark.parametrize("more", [(), ("--space", "delta"), ("--space", "delta", "--rank", "3")])
def test_a_prediction_of_a_rank_stabilised_bank(bank: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    data = write_dataset(tmp_path / "mine", 5)
    run("predict", "--bank", bank, data, "--out", tmp_path / "out", *more)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert config["use_rslora"] is False
    assert config["lora_alpha"] / config["r"] == record["scaling"]
    assert (record["use_rslora"], record["alpha"]) == (False, config["lora_alpha"])
    if not more:
        assert (config["lora_alpha"], config["r"]) == (12, 4)


def test_the_folders_of_a_whole_run(bank: Path, tmp_path: Path) -> None:
    """Written in one pass, and one of them made again by `bank export --prediction`."""
    run("predict", "--bank", bank, "--all", "--export", tmp_path / "all", "--workers", "1")
    with AdapterBank.open(bank) as opened:
        (number,) = (made.id for made in opened.runs.all() if made.kind == "predictions")
    run("export", "--bank", bank, "task001", "--prediction", str(number), "--out", tmp_path / "one")
    folders = [*(tmp_path / "all" / f"task{index:03d}" for index in range(3)), tmp_path / "one"]
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["use_rslora"], config["lora_alpha"], config["r"]) == (False, 12, 4)


@pytest.mark.torch
def test_a_finetuned_one(tmp_path: Path) -> None:
    manifest = copy_pairs(tmp_path / "pairs")
    for path in (tmp_path / "pairs" / "adapters").glob("*/adapter_config.json"):
        stated = json.loads(path.read_text())
        path.write_text(json.dumps(stated | {"use_rslora": True}))
    with make_bank(tmp_path / "bank", manifest) as made:
        scaling = made.record.scaling
        assert scaling == pytest.approx(stated["lora_alpha"] / math.sqrt(stated["r"]))
    data = next((tmp_path / "pairs" / "datasets").glob("*/train.jsonl"))
    where = ("--bank", tmp_path / "bank", data, "--model", BASE, "--include-same")
    run("finetune", *where, "--out", tmp_path / "tuned", "--steps", "1", "--examples", "5")
    config = json.loads((tmp_path / "tuned" / "adapter_config.json").read_text())
    assert config["use_rslora"] is False
    assert config["lora_alpha"] / config["r"] == scaling


def test_a_stored_adapter_says_it_as_it_did(bank: Path, tmp_path: Path) -> None:
    run("export", "--bank", bank, "task001", "--out", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["lora_alpha"]) == (True, 6)


def test_its_gguf_has_the_scaling_too(bank: Path, tmp_path: Path) -> None:
    with AdapterBank.open(bank) as opened:
        modules = {spec.name for spec in opened.layout.tensors}
    assert modules
    base = {"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 2}
    (bank / "base_config.json").write_text(json.dumps(base))
    run("export", "--bank", bank, "task001", "--out", tmp_path / "out", "--format", "gguf")
    values = read_values(tmp_path / "out" / "adapter.gguf")
    assert values["adapter.lora.alpha"] / 4 == pytest.approx(6 / math.sqrt(4))


@given(st.integers(1, 512), st.floats(1 / 64, 1024))
def test_alpha_over_rank_is_the_scaling(rank: int, alpha: float) -> None:
    for scaling in (alpha / rank, alpha / math.sqrt(rank)):
        assert plain_alpha(scaling, rank) / rank == pytest.approx(scaling, rel=3e-16)


@given(st.integers(1, 512), st.integers(1, 4096))
def test_a_whole_alpha_stays_whole(rank: int, alpha: int) -> None:
    assert plain_alpha(alpha / rank, rank) == alpha
