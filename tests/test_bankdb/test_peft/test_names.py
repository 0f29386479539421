"""Names of tensors: those that wrappers leave in files, with PEFT itself as the oracle of what it looks for."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bankdb.errors import AdapterError
from bankdb.peft.folder import write_adapter_folder
from bankdb.peft.names import tensor_names
from bankdb.peft.weights import left_out_of_names, load_adapter, source_file
from tests.support.banks.malformed_adapters import (
    BASE_MODEL,
    CONFIG,
    FIRST,
    WEIGHTS,
    read_weights,
    write_good_adapter,
    write_weights,
)
from tests.test_bankdb.test_peft.test_peft_oracle import export, load_with_peft, logits, lora

Rename = Callable[[str], str]


def rename(folder: Path, new: Rename) -> Path:
    """Rename every tensor of an adapter; the data stays."""
    header, data = read_weights(folder)
    write_weights(folder, {k if k == "__metadata__" else new(k): v for k, v in header.items()}, data)
    return folder


def after(old: str, segment: str) -> Rename:
    return lambda name: name.replace(old, f"{old}{segment}.", 1)


def before(segment: str) -> Rename:
    return lambda name: f"{segment}.{name}"


def named(adapter: str) -> Rename:
    return lambda name: re.sub(r"\.lora_([AB])\.", rf".lora_\1.{adapter}.", name)


def all_of_them(name: str) -> str:
    name = after("base_model.model.", "_orig_mod._fsdp_wrapped_module")(named("tuned")(name))
    return f"module.{name}".replace("layers.0.", "layers.0._checkpoint_wrapped_module.")


WRAPPED: dict[str, Rename] = {
    "compiled": after("base_model.model.", "_orig_mod"),
    "compiled as a whole": before("_orig_mod"),
    "compiled, the tuner": after("base_model.", "_orig_mod"),
    "compiled, each layer": lambda name: re.sub(r"layers\.(\d+)\.", r"layers.\1._orig_mod.", name),
    "fsdp, nested": lambda name: re.sub(
        r"(base_model\.model\.|layers\.\d+\.)", r"\1_fsdp_wrapped_module.", name
    ),
    "fsdp with checkpoints": lambda name: re.sub(
        r"layers\.(\d+)\.", r"layers.\1._fsdp_wrapped_module._checkpoint_wrapped_module.", name
    ),
    "data parallel": before("module"),
    "data parallel in two": before("module.module"),
    "compiled, then data parallel": before("module._orig_mod"),
    "data parallel, then compiled": before("_orig_mod.module"),
    "fabric": before("_forward_module"),
    "wrapped twice": before("base_model.model"),
    "wrapped three times": before("base_model.model.base_model.model"),
    "wrapped twice and compiled": lambda name: f"base_model.model._orig_mod.{name}",
    "named default": named("default"),
    "named otherwise": named("my-task_2"),
    "named like a module": named("q_proj"),
    "all of them": all_of_them,
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_wrappers_segments_are_left_out_and_peft_loads_all_of_it(
    tmp_path: Path, base_model: Any, kind: str
) -> None:
    model = lora(base_model, tmp_path / "source")
    clean = load_adapter(tmp_path / "source")
    adapter = load_adapter(rename(tmp_path / "source", WRAPPED[kind]))
    assert adapter.layout == clean.layout
    assert (adapter.vector == clean.vector).all()
    (note,) = adapter.notes
    assert note.startswith("left out of tensor names")
    # As a prediction.
    export(tmp_path / "copy", adapter.vector, adapter.layout, (adapter.config.alpha, False))
    loaded = load_with_peft(base_model, tmp_path / "copy")
    assert all(bool(p.abs().sum() > 0) for name, p in loaded.named_parameters() if "lora_B" in name)
    assert (logits(loaded) == logits(model)).all()
    # As the stored adapter.
    weights = source_file(adapter.vector, adapter.layout, adapter.header)
    write_adapter_folder(tmp_path / "stored", files={CONFIG: adapter.config.text.encode(), WEIGHTS: weights})
    assert (logits(load_with_peft(base_model, tmp_path / "stored")) == logits(model)).all()
    again = load_adapter(tmp_path / "stored")
    assert not again.notes
    assert (again.vector == clean.vector).all()
    assert left_out_of_names(adapter.header)
    assert not left_out_of_names(again.header)


@pytest.mark.torch
@pytest.mark.parametrize("how", ["compiled before", "wrapped twice"])
def test_what_peft_saves_of_a_wrapped_model_does_what_that_model_did(
    tmp_path: Path, base_model: Any, how: str
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    inner = copy.deepcopy(base_model)
    if how == "compiled before":
        model = get_peft_model(torch.compile(inner), config)
    else:
        model = get_peft_model(get_peft_model(inner, config), copy.deepcopy(config))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn_like(parameter) / 4
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    adapter = load_adapter(tmp_path / "saved")
    assert adapter.notes
    export(tmp_path / "copy", adapter.vector, adapter.layout, (8.0, False))
    uncompiled = getattr(model.base_model.model, "_orig_mod", model.base_model.model).eval()
    np.testing.assert_allclose(
        logits(load_with_peft(base_model, tmp_path / "copy")), logits(uncompiled), rtol=1e-5, atol=1e-6
    )
    assert np.abs(logits(uncompiled) - logits(base_model)).max() > 1e-2


def mangled(adapter: str) -> Rename:
    """As PEFT before 0.17 saved an adapter of this name: it was removed wherever it stood."""
    return lambda name: named(adapter)(name).replace(f".{adapter}", "")


REFUSED: dict[str, tuple[Rename, str]] = {
    "module inside": (after("base_model.model.", "module"), "'module' seems to be a wrapper's"),
    "module deep inside": (after("layers.0.", "module"), "'module' seems to be a wrapper's"),
    "an unknown wrapper": (after("base_model.model.", "_wrapped_by_me"), "'_wrapped_by_me' seems to be"),
    "a value head": (before("pretrained_model"), "does not begin with base_model.model."),
    "lightning": (before("model"), "does not begin with base_model.model."),
    "a class of its own": (after("base_model.model.", "base_model"), "a wrapper's or the model's own"),
    "a class without a head": (
        lambda name: name.replace("base_model.model.model", "base_model.model.base_model"),
        "'base_model' seems to be a wrapper's",
    ),
    "on another adapter": (
        lambda name: name.replace(".lora_", ".base_layer.lora_"),
        "another adapter's layer",
    ),
    "an adapter's adapter": (
        lambda name: name.replace(".lora_", ".lora_A.default.lora_"),
        "adapts another adapter's layer",
    ),
    "two names": (
        lambda name: named("one" if "layers.0" in name else "two")(name),
        "tensors of one adapter were expected",
    ),
    "a name in some": (
        lambda name: named("one")(name) if "layers.0" in name else name,
        "tensors of one adapter were expected",
    ),
    "no module": (lambda name: name.replace(".model.layers.0.self_attn.q_proj", "", 1), "names no module"),
    "mangled by v": (mangled("v"), "another name than 'default'"),
    "mangled by self": (mangled("self"), "'0_attn' is no layer's number"),
    "mangled by model": (mangled("model"), "removed an adapter's own name wherever it stood"),
    "mangled by lora": (mangled("lora"), "removed an adapter's own name wherever it stood"),
    "mangled by weight": (mangled("weight"), "PEFT"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_names_that_peft_would_not_find_are_refused(tmp_path: Path, kind: str) -> None:
    new, message = REFUSED[kind]
    folder = rename(write_good_adapter(tmp_path / "adapter"), new)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(folder)
    text = str(caught.value)
    assert WEIGHTS in text
    assert text.isprintable()
    assert len(text) < 600


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    with pytest.raises(AdapterError, match="differ only in wrappers' segments"):
        tensor_names([FIRST, f"_orig_mod.{FIRST}"], path)


def test_clean_names_are_kept(tmp_path: Path) -> None:
    folder = write_good_adapter(tmp_path / "adapter")
    header, _ = read_weights(folder)
    names = [name for name in header if name != "__metadata__"]
    found = tensor_names(names, folder / WEIGHTS)
    assert [found.clean(name) for name in names] == names
    assert found.left_out == ()


def test_a_model_whose_modules_are_called_like_wrappers_but_are_not(tmp_path: Path) -> None:
    """Only whole segments count."""
    name = "base_model.model.my_module.base_model_2.x_orig_mod.q_proj.lora_A.weight"
    assert tensor_names([name], tmp_path).clean(name) == name


@pytest.mark.torch
@pytest.mark.parametrize("adapter", ["self", "v", "model", "lora"])
def test_saving_it_from_a_later_peft_helps_as_the_message_says(
    tmp_path: Path, base_model: Any, adapter: str
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(copy.deepcopy(base_model), config, adapter_name=adapter)
    model.peft_config[adapter].base_model_name_or_path = BASE_MODEL
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    folder = tmp_path / adapter
    assert json.loads((folder / CONFIG).read_text())["r"] == 4
    assert not load_adapter(folder).notes
