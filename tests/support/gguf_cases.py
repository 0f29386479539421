"""Tiny models of many architectures for tests of GGUF: config.json, modules, and an adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.gguf.architectures import ARCHITECTURES
from bankdb.gguf.base_model import BaseModel, of_config
from bankdb.gguf.export import GgufExport
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.names import factor_name

HIDDEN, HEADS, SHARED, SIZE, WIDE, LAYERS, RANK = 48, 6, 2, 8, 40, 2, 3
Shapes = dict[str, tuple[int, int]]
Tensors = dict[str, NDArray[Any]]

_ATTENTION: Shapes = {
    "self_attn.q_proj": (HEADS * SIZE, HIDDEN),
    "self_attn.k_proj": (SHARED * SIZE, HIDDEN),
    "self_attn.v_proj": (SHARED * SIZE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * SIZE),
}
_GATED: Shapes = {
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
_FUSED: Shapes = {"mlp.gate_up_proj": (2 * WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE)}
_TWO: Shapes = {"mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE)}
_SHARED_EXPERT: Shapes = {name.replace("mlp.", "mlp.shared_expert."): shape for name, shape in _GATED.items()}
_ONE: Shapes = {
    "self_attn.qkv_proj": ((HEADS + 2 * SHARED) * SIZE, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * SIZE),
}

# Modules of a layer where they are not q, k, v, o and gate, up, down.
_LAYERS: Mapping[str, Shapes] = {
    "ApertusForCausalLM": _ATTENTION | _TWO,
    "ArceeForCausalLM": _ATTENTION | _TWO,
    "ExaoneForCausalLM": {
        **{
            name.replace("self_attn.", "attn.attention."): shape
            for name, shape in _ATTENTION.items()
            if "o_proj" not in name
        },
        "attn.attention.out_proj": (HIDDEN, HEADS * SIZE),
        "mlp.c_fc_0": (WIDE, HIDDEN),
        "mlp.c_fc_1": (WIDE, HIDDEN),
        "mlp.c_proj": (HIDDEN, WIDE),
    },
    "Glm4ForCausalLM": _ATTENTION | _FUSED,
    "GlmForCausalLM": _ATTENTION | _FUSED,
    "GptOssForCausalLM": _ATTENTION,
    "GraniteMoeForCausalLM": _ATTENTION,
    "GraniteMoeSharedForCausalLM": _ATTENTION,
    "InternLM2ForCausalLM": {
        "attention.wqkv": ((HEADS + 2 * SHARED) * SIZE, HIDDEN),
        "attention.wo": (HIDDEN, HEADS * SIZE),
        "feed_forward.w1": (WIDE, HIDDEN),
        "feed_forward.w3": (WIDE, HIDDEN),
        "feed_forward.w2": (HIDDEN, WIDE),
    },
    "MixtralForCausalLM": _ATTENTION,
    "NemotronForCausalLM": _ATTENTION | _TWO,
    "OlmoeForCausalLM": _ATTENTION,
    "Phi3ForCausalLM": _ONE | _FUSED,
    "PhiForCausalLM": {
        **{name.replace("o_proj", "dense"): shape for name, shape in _ATTENTION.items()},
        "mlp.fc1": (WIDE, HIDDEN),
        "mlp.fc2": (HIDDEN, WIDE),
    },
    "PhiMoEForCausalLM": _ATTENTION,
    "Qwen2MoeForCausalLM": _ATTENTION | _SHARED_EXPERT,
    "Qwen3MoeForCausalLM": _ATTENTION,
    "Starcoder2ForCausalLM": {**_ATTENTION, "mlp.c_fc": (WIDE, HIDDEN), "mlp.c_proj": (HIDDEN, WIDE)},
}
_PATHS = {
    "ExaoneForCausalLM": "transformer.h",
    "Gemma3ForConditionalGeneration": "model.language_model.layers",
    "Qwen2VLForConditionalGeneration": "model.language_model.layers",
    "Qwen2_5_VLForConditionalGeneration": "model.language_model.layers",
    "Qwen3VLForConditionalGeneration": "model.language_model.layers",
}


def config_of(name: str, **changes: object) -> dict[str, Any]:
    """The config.json of a tiny model of an architecture."""
    config = {
        "architectures": [name],
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "head_dim": SIZE,
        "hidden_size": HIDDEN,
        "tie_word_embeddings": False,
    }
    return {key: value for key, value in (config | changes).items() if value is not None}


def base_of(name: str, **changes: object) -> BaseModel:
    return of_config(json.dumps(config_of(name, **changes)), "config.json")


def modules_of(name: str) -> Shapes:
    """Rows and columns of every module of a tiny model that takes an adapter."""
    path = _PATHS.get(name, "model.layers")
    inside = _LAYERS.get(name, _ATTENTION | _GATED)
    return {f"{path}.{layer}.{module}": shape for layer in range(LAYERS) for module, shape in inside.items()}


def layout_for(modules: Mapping[str, tuple[int, int]], rank: int = RANK) -> AdapterLayout:
    shapes = {}
    for module, (rows, columns) in modules.items():
        shapes[factor_name(module, "A")], shapes[factor_name(module, "B")] = (rank, columns), (rows, rank)
    return AdapterLayout.from_shapes(shapes, rank, sorted({name.rsplit(".", 1)[-1] for name in modules}))


def numbers_for(layout: AdapterLayout) -> NDArray[np.float32]:
    """Numbers that differ and are the same anywhere; exact in float16."""
    index = np.arange(layout.size, dtype=np.int64)
    return ((index * 7919 + index // 251) % 2039 - 1019).astype(np.float32) / 1024


def write_gguf(
    path: Path, base: BaseModel, layout: AdapterLayout, vector: NDArray[Any], scaling: float = 2.0
) -> Path:
    tensors = layout.unflatten(vector)
    names = {"name": "task", "base_model": "tiny/base"}
    GgufExport(base).writer(lambda _: tensors, layout, scaling, names)(path)
    return path


def read_tensors(path: Path) -> Tensors:
    """The tensors of a GGUF as llama.cpp's own package reads them."""
    import gguf

    return {
        one.name: np.array(one.data).reshape([int(n) for n in reversed(one.shape)])
        for one in gguf.GGUFReader(path).tensors
    }


def read_values(path: Path) -> dict[str, Any]:
    import gguf

    return {
        key: field.contents()
        for key, field in gguf.GGUFReader(path).fields.items()
        if not key.startswith("GGUF.")
    }


def hash_of(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Hash of names, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name], dtype="<f4")
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def write_base_gguf(path: Path, name: str, *, without: tuple[str, ...] = (), **changes: Any) -> Path:
    """The GGUF of a tiny base model whose matrices are nothing but zeros: names, shapes and what it says of itself."""
    import gguf

    from bankdb.gguf.placement import placed_modules

    architecture = ARCHITECTURES[name].name
    values = {
        "block_count": LAYERS,
        "embedding_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": SHARED,
        "attention.key_length": SIZE,
    } | changes
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(f"{architecture}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_token_list([f"token{index}" for index in range(300)])
    writer.add_token_scores([0.0] * 300)
    writer.add_array("tokenizer.ggml.wide", list(range(5000)))
    writer.add_string("tokenizer.chat_template", "{{ messages }}" * 9000)
    shapes = {
        one.tensor: (one.d_out, one.module.d_in)
        for one in placed_modules(layout_for(modules_of(name)), base_of(name))
    }
    for tensor, shape in {
        **shapes,
        "token_embd.weight": (300, HIDDEN),
        "output.weight": (300, HIDDEN),
    }.items():
        if tensor not in without:
            writer.add_tensor(tensor, np.zeros(shape, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
