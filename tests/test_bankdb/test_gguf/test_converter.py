"""llama.cpp's own converter as the oracle: the same tensors, bit for bit, for every architecture.

`converter_hashes.json` has the hash of what convert_lora_to_gguf.py makes of the adapters of
`tests.support.gguf_cases`, and which release of llama-cpp-python brought it. Where LLAMA_CPP names the folder of a
llama.cpp, its converter is asked again, with the package gguf that lies beside it, and with REWRITE=1 the hashes are
written anew: `LLAMA_CPP=... PYTHONPATH=$LLAMA_CPP/gguf-py pytest tests/test_bankdb/test_gguf/test_converter.py`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bankdb.gguf.architectures import ARCHITECTURES
from bankdb.peft.layout import A_SUFFIX, B_SUFFIX, PREFIX
from tests.support.gguf_cases import (
    Tensors,
    base_of,
    config_of,
    hash_of,
    layout_for,
    modules_of,
    numbers_for,
    read_tensors,
    write_gguf,
)

HASHES = Path(__file__).with_name("converter_hashes.json")
CONVERTER = os.environ.get("LLAMA_CPP")


def converted(name: str) -> Tensors:
    """What the converter's own classes make of the adapter of a tiny model."""
    import torch

    for folder in (CONVERTER, f"{CONVERTER}/gguf-py"):
        if folder not in sys.path:
            sys.path.insert(0, str(folder))
    import gguf
    from conversion import get_model_class  # type: ignore[import-not-found]
    from convert_lora_to_gguf import LoraTorchTensor, get_base_tensor_name  # type: ignore[import-not-found]

    kind = get_model_class(name)
    # Ministral3 wraps the class that converts.
    kind = getattr(kind, "Ministral3Model", kind)
    model = object.__new__(kind)
    config: dict[str, Any] = config_of(name)
    vars(model).update(
        hparams=config, hf_arch=name, block_count=config["num_hidden_layers"], rope_parameters={}
    )
    vars(model).update(
        fuse_qkv=False, fuse_gate_up_exps=False, lazy=False, origin_hf_arch=name, is_rerank=False
    )
    model.tensor_map = gguf.get_tensor_name_map(kind.model_arch, model.block_count)
    layout = layout_for(modules_of(name))
    tensors = {
        key: torch.from_numpy(one.copy()) for key, one in layout.unflatten(numbers_for(layout)).items()
    }
    found: Tensors = {}
    for key in tensors:
        if not key.endswith(A_SUFFIX):
            continue
        pair = LoraTorchTensor(tensors[key], tensors[key.removesuffix(A_SUFFIX) + B_SUFFIX])
        base, _ = kind.filter_tensors((get_base_tensor_name(key), lambda: None))
        block = next((int(part) for part in base.split(".") if part.isdecimal()), None)
        for tensor, data in model.modify_tensors(pair, base, block):
            a, b = data.get_lora_A_B()
            found |= {f"{tensor}.lora_a": a.numpy(), f"{tensor}.lora_b": b.contiguous().numpy()}
    assert gguf.MODEL_ARCH_NAMES[kind.model_arch] == ARCHITECTURES[name].name
    return found


def written(name: str, path: Path) -> Tensors:
    layout = layout_for(modules_of(name))
    return read_tensors(write_gguf(path, base_of(name), layout, numbers_for(layout)))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_same_tensors_as_the_converter_makes(name: str, tmp_path: Path) -> None:
    assert (
        hash_of(written(name, tmp_path / "adapter.gguf")) == json.loads(HASHES.read_text())["tensors"][name]
    )


def test_no_architecture_is_known_to_the_hashes_alone() -> None:
    assert json.loads(HASHES.read_text())["tensors"].keys() == ARCHITECTURES.keys()


@pytest.mark.torch
@pytest.mark.skipif(
    CONVERTER is None, reason="LLAMA_CPP names no folder of llama.cpp, whose converter would be asked"
)
def test_the_converter_again(tmp_path: Path) -> None:
    hashes, failed = {}, []
    for name in sorted(ARCHITECTURES):
        theirs, ours = converted(name), written(name, tmp_path / f"{name}.gguf")
        hashes[name] = hash_of(theirs)
        same = theirs.keys() == ours.keys() and all(np.array_equal(ours[key], theirs[key]) for key in theirs)
        if not same:
            failed.append(f"{name}: {sorted(theirs.keys() ^ ours.keys())[:4]}")
    if os.environ.get("REWRITE"):
        release = os.environ.get("LLAMA_CPP_RELEASE", "not said")
        HASHES.write_text(json.dumps({"release": release, "tensors": hashes}, indent=1) + "\n")
    assert failed == []
    assert hashes == json.loads(HASHES.read_text())["tensors"]
    assert PREFIX == "base_model.model."
