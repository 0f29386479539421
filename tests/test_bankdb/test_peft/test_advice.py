"""What the messages about refused adapters say to do is done, and helps. PEFT and numpy are the oracles."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from bankdb.errors import AdapterError
from bankdb.peft.weights import load_adapter
from bankdb.sources.adapter_files import adapter_below, local_adapter
from cli.main import cli
from tests.support.banks.malformed_adapters import (
    BASE_MODEL,
    CONFIG,
    WEIGHTS,
    good_config,
    write_good_adapter,
)
from tests.support.banks.small_bank import write_dataset
from tests.test_bankdb.test_peft.test_peft_oracle import load_with_peft, logits, lora


def refusal(folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        load_adapter(local_adapter(str(folder)).path)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def bank_path(tmp_path: Path, tokenizer_folder: Path) -> Path:
    path = tmp_path / "bank"
    assert (
        run("init", "--bank", path, "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder).exit_code
        == 0
    )
    return path


def pair(folder: Path, name: str) -> Path:
    """A dataset for an adapter that is written, or put, at the place that is returned."""
    write_dataset(folder / "datasets" / name, 1, examples=3)
    (folder / "adapters").mkdir(exist_ok=True)
    return folder / "adapters" / name


# Copies of the base model's weights.


@pytest.mark.torch
@pytest.mark.parametrize("more", [1, 8, 64])
def test_resized_embeddings(tmp_path: Path, base_model: Any, more: int) -> None:
    from peft import PeftModel

    larger = copy.deepcopy(base_model)
    larger.resize_token_embeddings(64 + more)
    lora(larger, tmp_path / "clean").save_pretrained(tmp_path / "saved", save_embedding_layers=True)
    message = refusal(tmp_path / "saved")
    assert "its vocabulary was resized" in message
    assert "modules_to_save" not in message
    resized = copy.deepcopy(base_model)
    resized.resize_token_embeddings(64 + more)
    loaded = PeftModel.from_pretrained(resized, tmp_path / "saved")
    loaded.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    assert (load_adapter(tmp_path / "again").vector == load_adapter(tmp_path / "clean").vector).all()


# Other formats.


@pytest.mark.torch
@pytest.mark.parametrize(("rank", "scale"), [(4, 20.0), (2, 0.5), (8, 10.0)])
@pytest.mark.parametrize("called", ["adapters.safetensors", WEIGHTS])
def test_mlx_is_converted_as_the_message_says(
    tmp_path: Path, base_model: Any, rank: int, scale: float, called: str
) -> None:
    rng = np.random.default_rng(rank)
    modules = [f"model.layers.{n}.self_attn.q_proj" for n in range(2)]
    factors = {m: (rng.normal(size=(32, rank)), rng.normal(size=(rank, 32))) for m in modules}
    mlx, peft = tmp_path / "mlx", tmp_path / "peft"
    for folder in (mlx, peft):
        folder.mkdir()
    save_file(
        {
            f"{m}.lora_{c}": f.astype(np.float32)
            for m, ab in factors.items()
            for c, f in zip("ab", ab, strict=True)
        },
        mlx / called,
    )
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0}
    (mlx / CONFIG).write_text(
        json.dumps({"fine_tune_type": "lora", "lora_parameters": parameters, "num_layers": 2})
    )
    message = refusal(mlx)
    assert "MLX's" in message
    assert "lora_a.T as base_model.model.MODULE.lora_A.weight and lora_b.T as .lora_B.weight" in message
    assert "r = rank and lora_alpha = scale * rank" in message
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ascontiguousarray(a.T, dtype=np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ascontiguousarray(b.T, dtype=np.float32)
    save_file(tensors, peft / WEIGHTS)
    config = {"peft_type": "LORA", "base_model_name_or_path": BASE_MODEL, "target_modules": ["q_proj"]}
    (peft / CONFIG).write_text(json.dumps(config | {"r": rank, "lora_alpha": scale * rank}))
    assert load_adapter(peft).config.scaling == scale
    # MLX's own formula: y = x W^T + scale (x a) b.
    import torch

    expected = copy.deepcopy(base_model)
    for module, (a, b) in factors.items():
        weight = expected.get_submodule(module).weight
        weight.data += torch.from_numpy(scale * (a @ b).T).to(weight.dtype)
    found = logits(load_with_peft(base_model, peft))
    np.testing.assert_allclose(found, logits(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", ["adapter", "lora/final", "checkpoint"])
def test_a_configuration_that_is_an_lfs_pointer(tmp_path: Path, place: str) -> None:
    folder = write_good_adapter(tmp_path / place)
    whole = (folder / CONFIG).read_bytes()
    (folder / CONFIG).write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {len(whole)}\n"
    )
    assert "a Git LFS pointer to it found; run 'git lfs pull'" in refusal(folder)
    (folder / CONFIG).write_bytes(whole)  # which is what that does
    load_adapter(folder)


@pytest.mark.parametrize("value", [None, "", "absent"])
def test_a_configuration_without_a_base_model(tmp_path: Path, bank_path: Path, value: str | None) -> None:
    folder = write_good_adapter(pair(tmp_path, "one"))
    config = {key: good_config()[key] for key in ("r", "lora_alpha", "target_modules", "peft_type")}
    if value != "absent":
        config["base_model_name_or_path"] = value
    (folder / CONFIG).write_text(json.dumps(config))
    output = run("ingest", "--bank", bank_path, tmp_path).output
    assert "as `bank show` names it, or pass --assume-base-model" in output
    shown = json.loads(run("show", "--bank", bank_path, "--json").output)["base_model"]
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": shown}))
    assert "1 added" in run("ingest", "--bank", bank_path, tmp_path).output


# Other places.


@pytest.mark.parametrize(
    ("folders", "last"),
    [
        (("default", "other"), "other"),
        (("checkpoint-900", "final"), "final"),
        (("checkpoint-9", "run 2/checkpoint-10"), "checkpoint-9"),
        (("my adapter", "my adapter, the second"), "my adapter, the second"),
    ],
    ids=str,
)
def test_adapters_in_folders_below_of_which_none_is_certainly_meant(
    tmp_path: Path, bank_path: Path, folders: tuple[str, ...], last: str
) -> None:
    place = pair(tmp_path, "one")
    for index, name in enumerate(folders):
        write_good_adapter(place / name, seed=index)
    (place / CONFIG).write_text("{}")  # of an adapter whose weights are lost
    output = " ".join(run("ingest", "--bank", bank_path, tmp_path).output.split())
    (named,) = re.findall(r"in a manifest \(\.csv\), as (.+?), or move its files up", output)
    assert named == str(place / last)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f'name,adapter,dataset\none,"{named}",datasets/one\n')
    assert "1 added" in run("ingest", "--bank", bank_path, manifest).output
    # Or, as it says, its files are moved up.
    for file in (place / last).iterdir():
        shutil.copy(file, place)
    assert "1 there already" in run("ingest", "--bank", bank_path, tmp_path).output


def test_adapters_in_folders_of_a_repository() -> None:
    files = [f"{folder}/{file}" for folder in ("run", "best") for file in (CONFIG, WEIGHTS)]
    with pytest.raises(
        AdapterError, match="download the repository, and name one of them in a manifest"
    ) as caught:
        adapter_below(files, "adapter a/b")
    assert "as run, or" in str(caught.value)


# Other names.


@pytest.mark.parametrize("name", ["/data/models/tiny llama", "./base", "unsloth/tiny-llama-bnb-4bit"])
def test_a_base_model_under_another_name(tmp_path: Path, bank_path: Path, name: str) -> None:
    import shlex

    write_good_adapter(pair(tmp_path, "one"), base_model_name_or_path=name)
    output = " ".join(run("ingest", "--bank", bank_path, tmp_path).output.split())
    (command,) = re.findall(r"let it in by `bank (.+?)`", output)
    assert name in run(*shlex.split(command), "--bank", bank_path).output
    assert "1 added" in run("ingest", "--bank", bank_path, tmp_path).output
    assert "clean" in run("verify", "--bank", bank_path).output


@pytest.mark.parametrize(
    ("old", "new"),
    [("model.layers", "layers"), ("model.layers", "transformer.h"), ("model.model", "model.model.model")],
)
def test_one_architecture_under_other_names(tmp_path: Path, old: str, new: str) -> None:
    renamed(write_good_adapter(tmp_path / "one"), tmp_path / "other", old, new)
    helps_when_renamed(tmp_path / "other", tmp_path / "one", tmp_path / "again")


def test_other_layers_are_not_taken_for_other_names(tmp_path: Path) -> None:
    one = write_good_adapter(tmp_path / "one")
    renamed(one, tmp_path / "other", "layers.1.", "layers.2.")
    with pytest.raises(AdapterError, match="train it like the others"):
        load_adapter(tmp_path / "other", expected=load_adapter(one).layout)


def renamed(source: Path, folder: Path, old: str, new: str) -> None:
    shutil.copytree(source, folder)
    tensors = {name.replace(old, new): tensor for name, tensor in load_file(source / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def helps_when_renamed(folder: Path, like: Path, out: Path) -> None:
    expected = load_adapter(like)
    with pytest.raises(AdapterError, match="another version of transformers") as caught:
        load_adapter(folder, expected=expected.layout)
    assert "train it like the others" not in str(caught.value)
    (here, there) = re.findall(r"its layers are '(.+?)', the bank's '(.+?)'", str(caught.value))[0]
    renamed(folder, out, here, there)
    assert (load_adapter(out, expected=expected.layout).vector == expected.vector).all()
