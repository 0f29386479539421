"""`--format gguf` and `both` of `bank predict` and `bank export`: what is written, printed and refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from bankdb.errors import ConflictError
from bankdb.gguf.order import neighbours
from bankdb.peft.weights import load_adapter
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.prediction.coefficients import coefficients
from compute.prediction.export import export_delta
from compute.prediction.predict_all import predict_all
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import write_dataset
from tests.support.banks.tiny_bank import BASE, copy_pairs, make_bank
from tests.support.gguf_cases import read_tensors, read_values

LOCAL = ["--workers", "1"]
BOTH = {
    "adapter.gguf",
    "adapter_config.json",
    "adapter_model.safetensors",
    "Modelfile",
    "README.md",
    "provenance.json",
}
ALONE = {"adapter.gguf", "Modelfile", "README.md", "provenance.json"}
HEADS = 4


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    return result


def error_line(result: Result) -> str:
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("bank: error: ")]
    return line


@pytest.fixture(scope="module")
def tiny_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example bank's first pairs; its base model is a small Llama whose config.json lies beside its tokenizer."""
    folder = tmp_path_factory.mktemp("gguf")
    make_bank(folder / "bank", copy_pairs(folder / "pairs")).close()
    return folder / "bank"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "mine", 5)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_same_weights(gguf: Path, peft: Path) -> None:
    """The GGUF has the very numbers of PEFT's folder, q and k in llama.cpp's order, and its scaling."""
    adapter, tensors = load_adapter(peft), read_tensors(gguf)
    theirs = adapter.layout.unflatten(adapter.vector)
    values, rank = read_values(gguf), adapter.config.rank
    assert values["adapter.lora.alpha"] / rank == pytest.approx(adapter.config.scaling, rel=1e-6)
    assert (values["general.type"], values["adapter.type"]) == ("adapter", "lora")
    assert values["general.architecture"] == "llama"
    found = 0
    for name, tensor in theirs.items():
        _, _, _, _, layer, _, module, factor, _ = name.split(".")
        expected = tensor
        if factor == "lora_B" and module in ("q_proj", "k_proj"):
            expected = tensor[neighbours(HEADS, len(tensor))]
        kind = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
                "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}[module]  # fmt: skip
        assert np.array_equal(tensors[f"blk.{layer}.{kind}.weight.{factor.lower()}"], expected)
        found += 1
    assert found == len(tensors)


def test_init_keeps_the_configuration(tiny_bank: Path, tmp_path: Path) -> None:
    assert (tiny_bank / "base_config.json").read_bytes() == (BASE / "config.json").read_bytes()
    result = run("init", "--bank", tmp_path / "new", "--base-model", "x", "--tokenizer", BASE)
    assert "kept the base model's config.json as base_config.json, for --format gguf" in result.stdout
    # A base model that is named by its folder.
    shutil.copytree(BASE, tmp_path / "alone", ignore=shutil.ignore_patterns("config.json"))
    arguments = ("--base-model", BASE, "--tokenizer", tmp_path / "alone")
    run("init", "--bank", tmp_path / "named", *arguments)
    assert (tmp_path / "named" / "base_config.json").is_file()
    result = run("init", "--bank", tmp_path / "none", "--base-model", "x", "--tokenizer", tmp_path / "alone")
    assert "base_config" not in result.stdout
    assert not (tmp_path / "none" / "base_config.json").exists()


@pytest.mark.parametrize("space", ["factors", "delta"])
def test_a_prediction_for_both(tiny_bank: Path, data: Path, tmp_path: Path, space: str) -> None:
    where = ("predict", "--bank", tiny_bank, data, "--space", space)
    result = run(*where, "--out", tmp_path / "both", "--format", "both")
    assert f"wrote {tmp_path / 'both'}/, which PEFT and vLLM, llama.cpp and Ollama load" in result.stdout
    assert "GGUF of architecture llama, by " in result.stdout
    assert "rows of q and k in llama.cpp's order" in result.stdout
    assert names_in(tmp_path / "both") == BOTH
    check_same_weights(tmp_path / "both" / "adapter.gguf", tmp_path / "both")
    run(*where, "--out", tmp_path / "alone", "--format", "gguf")
    assert names_in(tmp_path / "alone") == ALONE
    assert (tmp_path / "alone" / "adapter.gguf").read_bytes() == (
        tmp_path / "both" / "adapter.gguf"
    ).read_bytes()
    run(*where, "--out", tmp_path / "peft")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "peft" / weights).read_bytes() == (tmp_path / "both" / weights).read_bytes()
    assert names_in(tmp_path / "peft") == BOTH - {"adapter.gguf", "Modelfile"}


def test_what_is_said_of_it(tiny_bank: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "alone"
    run("predict", "--bank", tiny_bank, data, "--out", out, "--format", "gguf")
    record = json.loads((out / "provenance.json").read_text())
    assert record["gguf"] == {
        "architecture": "llama",
        "alpha": record["scaling"] * record["rank"],
        "dtype": "float32",
        "heads": 4,
        "key_value_heads": 4,
        "base": "config.json",
        "alone": True,
    }
    card, modelfile = (out / "README.md").read_text(), (out / "Modelfile").read_text()
    assert "llama-completion -m base.gguf --lora FOLDER/adapter.gguf -no-cnv" in card
    assert "ollama create" in card
    assert "library_name: gguf" in card
    for absent in ("convert_lora_to_gguf.py", "PeftModel", "vllm serve", "bank generate"):
        assert absent not in card
    assert "FROM ./base.gguf\nADAPTER ./adapter.gguf\n" in modelfile
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile
    run("predict", "--bank", tiny_bank, data, "--out", out, "--format", "gguf", "--overwrite")
    run("predict", "--bank", tiny_bank, data, "--out", out, "--overwrite")
    assert names_in(out) == BOTH - {"adapter.gguf", "Modelfile"}


def test_dtype_rounds_the_numbers_of_both(tiny_bank: Path, data: Path, tmp_path: Path) -> None:
    for dtype in ("bfloat16", "float32"):
        out = tmp_path / dtype
        run("predict", "--bank", tiny_bank, data, "--out", out, "--format", "both", "--dtype", dtype)
        check_same_weights(out / "adapter.gguf", out)


@pytest.mark.slow
def test_all_predictions(tiny_bank: Path, tmp_path: Path) -> None:
    bank, out = tmp_path / "bank", tmp_path / "out"
    shutil.copytree(tiny_bank, bank)
    result = run("predict", "--all", "--bank", bank, "--export", out, "--format", "both", "--json", *LOCAL)
    folders = sorted(path for path in out.iterdir())
    assert len(folders) == 5
    for folder in folders:
        assert names_in(folder) == BOTH
        check_same_weights(folder / "adapter.gguf", folder)
    number = json.loads(result.stdout)["predictions"][0]["run"]
    where = ("export", "--bank", bank, "forms_plural", "--prediction", str(number))
    result = run(*where, "--out", tmp_path / "one", "--format", "both")
    assert "which PEFT and vLLM, llama.cpp and Ollama load" in result.stdout
    check_same_weights(tmp_path / "one" / "adapter.gguf", tmp_path / "one")


def saver(bank: AdapterBank, kind: str, out: Path) -> Callable[..., object]:
    """What writes all predictions, in one of the ways in which that is done; by threads."""
    if kind == "delta":
        return partial(export_delta, bank, coefficients(bank, PredictionOptions(space="delta")), out)
    return partial(predict_all(bank, store="float32" if kind == "stored" else None).save, out)


@pytest.mark.parametrize("kind", ["one pass", "stored", "delta"])
def test_what_is_there_of_the_same_run_stays(tiny_bank: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(tiny_bank, tmp_path / "bank")
    out = tmp_path / "out"
    with AdapterBank.open(tmp_path / "bank") as bank:
        both, alone, save = bank.gguf(), bank.gguf(alone=True), saver(bank, kind, out)
        save(gguf=both)
        folders = sorted(path for path in out.iterdir())
        assert len(folders) == 5
        for folder in folders:
            assert names_in(folder) == BOTH
            check_same_weights(folder / "adapter.gguf", folder)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.gguf")}
        save(gguf=both)
        save()  # PEFT's files alone are a part of it
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*.gguf")} == before
        with pytest.raises(ConflictError, match="holds an adapter from another prediction"):
            save(gguf=alone)
        save(gguf=alone, overwrite=True)
        assert all(names_in(folder) == ALONE for folder in folders)
        save(overwrite=True)
        with pytest.raises(ConflictError, match="holds an adapter from another prediction"):
            save(gguf=both)


def test_a_stored_adapter_stays_bit_for_bit(tiny_bank: Path, tmp_path: Path) -> None:
    source = tiny_bank.parent / "pairs" / "adapters" / "forms_plural"
    where = ("export", "--bank", tiny_bank, "forms_plural")
    run(*where, "--out", tmp_path / "both", "--format", "both")
    assert names_in(tmp_path / "both") == {
        "adapter.gguf",
        "adapter_config.json",
        "adapter_model.safetensors",
        "Modelfile",
    }
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "both" / name).read_bytes() == (source / name).read_bytes()
    check_same_weights(tmp_path / "both" / "adapter.gguf", source)
    run(*where, "--out", tmp_path / "alone", "--format", "gguf")
    assert names_in(tmp_path / "alone") == {"adapter.gguf", "Modelfile"}
    run(*where, "--out", tmp_path / "alone", "--format", "gguf", "--overwrite")


# -- what is refused, before any work ------------------------------------------------------------------


def test_a_bank_that_does_not_know_its_base_model(bank_template: Path, data: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    shutil.copytree(bank_template, bank)
    where = ("predict", "--bank", bank, data, "--out", tmp_path / "out", "--format", "gguf")
    line = error_line(run(*where, status=1))
    assert "base_config.json: the base model's config.json was expected, which `bank init` keeps" in line
    assert "--base-gguf FILE" in line
    (bank / "base_config.json").write_text(json.dumps({"architectures": ["BloomForCausalLM"]}))
    line = error_line(run(*where, status=1))
    assert "architecture 'BloomForCausalLM' is none whose adapters are written as GGUF exactly" in line
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 2,
        "hidden_size": 20,
    }
    (bank / "base_config.json").write_text(json.dumps(config | {"num_attention_heads": 3, "head_dim": 6}))
    assert "3 heads of 6 rows were expected by" in error_line(run(*where, status=1))
    assert not (tmp_path / "out").exists()
    assert BASE_MODEL


def test_without_the_extra(
    tiny_bank: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    where = ("predict", "--bank", tiny_bank, data, "--out", tmp_path / "out")
    assert "pip install 'lora-bank[gguf]'" in error_line(run(*where, "--format", "gguf", status=2))
    run(*where)


def test_test_examples_are_answered_from_pefts_files(tiny_bank: Path, data: Path, tmp_path: Path) -> None:
    for command in ("predict", "finetune"):
        arguments = (data, "--out", tmp_path / "out", "--format", "gguf", "--test", data)
        line = error_line(run(command, "--bank", tiny_bank, *arguments, status=2))
        assert "--test" in line
        assert "--format both" in line
