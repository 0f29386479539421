"""`bank export --merge`: a whole model whose weights are the base model's plus the adapter's product."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.errors import AdapterError, PlanError
from bankdb.peft.layout import modules_of
from bankdb.peft.weights import load_adapter
from cli.main import cli
from compute.merging import merge as merging
from compute.prediction.predict_all import predict_all
from tests.support.banks.small_bank import write_dataset
from tests.support.banks.tiny_bank import BASE, copy_pairs, make_bank

pytestmark = pytest.mark.torch


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    return result


def weights_of(folder: Path) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load_file

    return {
        name: one for path in sorted(folder.glob("*.safetensors")) for name, one in load_file(path).items()
    }


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    make_bank(folder / "bank", copy_pairs(folder / "pairs")).close()
    return folder / "bank"


@pytest.fixture(scope="module")
def number(bank: Path) -> str:
    """Of a run of predictions."""
    with AdapterBank.open(bank) as opened:
        return str(predict_all(opened).run.id)


@pytest.mark.parametrize("is_predicted", [False, True], ids=["stored", "predicted"])
def test_the_weights_are_the_sum(bank: Path, number: str, tmp_path: Path, is_predicted: bool) -> None:
    where = ("export", "--bank", bank, "forms_plural", *(("--prediction", number) if is_predicted else ()))
    run(*where, "--out", tmp_path / "peft")
    result = run(*where, "--out", tmp_path / "merged", "--merge", "--model", BASE)
    assert f"wrote {tmp_path / 'merged'}/, a whole model in float16 which transformers loads" in result.stdout
    base, merged, adapter = weights_of(BASE), weights_of(tmp_path / "merged"), load_adapter(tmp_path / "peft")
    tensors, changed = adapter.layout.unflatten(adapter.vector.astype(np.float64)), set()
    for module in modules_of(adapter.layout):
        name = f"{module.name}.weight"
        exact = base[name].astype(np.float64)
        exact += adapter.config.scaling * tensors[module.b.name] @ tensors[module.a.name]
        step = np.spacing(np.abs(exact).astype(np.float16)).astype(np.float64)
        assert merged[name].dtype == np.float16
        assert np.all(np.abs(merged[name].astype(np.float64) - exact) <= 0.5 * step + 1e-7)
        assert not np.array_equal(merged[name], base[name])
        changed.add(name)
    assert merged.keys() == base.keys()
    assert all(np.array_equal(merged[name], base[name]) for name in merged.keys() - changed)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).is_file()
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "python convert_hf_to_gguf.py FOLDER --outfile merged.gguf" in card
    assert "rounded to float16" in card


def test_transformers_answers_as_peft_does(bank: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    where = ("export", "--bank", bank, "reviews_mood")
    run(*where, "--out", tmp_path / "peft")
    run(*where, "--out", tmp_path / "merged", "--merge", "--model", BASE)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    ids = torch.arange(3, 43).reshape(2, 20)
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "peft").eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
    assert (adapted - before).abs().max() > 0.5
    assert (merged - adapted).abs().max() < 0.05


def test_what_is_there_stays(bank: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    where = ("export", "--bank", bank, "forms_plural", "--out", out, "--merge", "--model", BASE)
    assert "a new folder was expected for the whole model" in run(*where, status=1).stderr
    assert os.listdir(out) == ["mine.txt"]
    assert os.listdir(tmp_path) == ["merged"]


def test_nothing_is_left_of_one_that_fails(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("export", "--bank", bank, "--out", tmp_path / "merged", "--merge")
    assert (
        "none_such: no such adapter in the bank" in run(*where, "none_such", "--model", BASE, status=1).stderr
    )
    monkeypatch.setattr(merging, "usable_memory", lambda *_: 1000)
    with pytest.raises(PlanError, match="needed to merge in float32"):
        merging.check_merge(BASE, tmp_path / "merged")
    assert os.listdir(tmp_path) == []


def test_an_output_layer_that_is_the_embeddings_is_refused(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(AdapterError, match=r"it shares the embeddings' \(tie_word_embeddings\)"):
        merging.merge(
            lambda out: shutil.copytree(tmp_path / "adapter", out), BASE, tmp_path / "merged", name="head"
        )
    assert os.listdir(tmp_path) == ["adapter"]


def test_another_model_is_refused(bank: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(BASE)
    config.hidden_size, config.head_dim = 48, 12
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "narrow")
    where = ("export", "--bank", bank, "forms_plural", "--out", tmp_path / "merged", "--merge")
    line = run(*where, "--model", tmp_path / "narrow", status=1).stderr
    assert "the adapter's own base model was expected, PEFT says: " in line
    assert not (tmp_path / "merged").exists()


def test_a_folder_predicted_for_a_new_dataset(bank: Path, tmp_path: Path) -> None:
    """Without the bank, as PEFT itself merges it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = write_dataset(tmp_path / "mine", 5)
    run("predict", "--bank", bank, data, "--out", tmp_path / "mine-adapter")
    where = ("export", "--adapter", tmp_path / "mine-adapter", "--merge", "--model", BASE)
    result = run(*where, "--out", tmp_path / "merged")
    assert f"wrote {tmp_path / 'merged'}/, a whole model in float16 which transformers loads" in result.stdout
    assert "# mine-adapter, merged" in (tmp_path / "merged" / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    expected = PeftModel.from_pretrained(model, tmp_path / "mine-adapter").merge_and_unload().state_dict()
    merged, base = weights_of(tmp_path / "merged"), weights_of(BASE)
    assert merged.keys() == base.keys()
    for name, weights in merged.items():
        assert np.array_equal(weights, expected[name].to(torch.float16).numpy())
    assert any(not np.array_equal(merged[name], base[name]) for name in merged)


@pytest.mark.parametrize("arguments", [("forms_plural", "--adapter", BASE), ()], ids=["both", "neither"])
def test_a_name_or_a_folder(tmp_path: Path, arguments: tuple[str | Path, ...]) -> None:
    line = run("export", *arguments, "--merge", "--out", tmp_path / "merged", status=2).stderr
    assert "give NAME, of an adapter of the bank, or --adapter FOLDER with --merge" in line


def test_a_folder_of_something_else_is_refused(bank: Path, tmp_path: Path) -> None:
    """A pickle is not run, and what PEFT would silently do otherwise is named."""
    run("export", "--bank", bank, "forms_plural", "--out", tmp_path / "peft")
    where = (
        "export",
        "--adapter",
        tmp_path / "peft",
        "--merge",
        "--model",
        BASE,
        "--out",
        tmp_path / "merged",
    )
    config = tmp_path / "peft" / "adapter_config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps(stated | {"use_dora": True}))
    assert "use_dora" in run(*where, status=1).stderr
    config.write_text(json.dumps(stated))
    (tmp_path / "peft" / "adapter_model.safetensors").rename(tmp_path / "peft" / "adapter_model.bin")
    assert "adapter_model.bin" in run(*where, status=1).stderr
    assert sorted(os.listdir(tmp_path)) == ["peft"]


@pytest.mark.parametrize("change", [-1, 1], ids=["shallower", "deeper"])
def test_a_model_of_other_depth_is_refused(bank: Path, tmp_path: Path, change: int) -> None:
    """PEFT says nothing of layers that only one of the two has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(BASE)
    config.num_hidden_layers += change
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[0]] * config.num_hidden_layers
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    where = ("export", "--bank", bank, "forms_plural", "--out", tmp_path / "merged", "--merge")
    line = run(*where, "--model", tmp_path / "other", status=1).stderr
    assert "the adapter's own base model was expected; only one of the two has model.layers." in line
    assert not (tmp_path / "merged").exists()
