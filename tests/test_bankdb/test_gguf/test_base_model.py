"""What is known of a base model, where each module goes, and what cannot be written exactly: refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bankdb.errors import BankError, GgufError, ParameterError
from bankdb.gguf.architectures import ARCHITECTURES
from bankdb.gguf.base_model import BASE_CONFIG, of_config, read_base_gguf, read_config
from bankdb.gguf.known import known_base_model
from bankdb.gguf.placement import placed_modules
from tests.support.gguf_cases import (
    HEADS,
    HIDDEN,
    LAYERS,
    SHARED,
    SIZE,
    base_of,
    config_of,
    layout_for,
    modules_of,
    write_base_gguf,
)

LLAMA = "LlamaForCausalLM"
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"


def refused(modules: dict[str, tuple[int, int]], name: str = LLAMA, **changes: object) -> str:
    with pytest.raises(GgufError) as raised:
        placed_modules(layout_for(modules), base_of(name, **changes))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_one_name_of_llama_cpps_is_kept_in_one_order() -> None:
    """A base model's GGUF names the architecture of llama.cpp alone."""
    orders: dict[str, set[bool]] = {}
    for one in ARCHITECTURES.values():
        orders.setdefault(one.name, set()).add(one.neighbours)
    assert {name for name, found in orders.items() if len(found) > 1} == set()


def test_the_architectures_that_the_issue_names() -> None:
    turned = ["Llama", "Mistral", "Granite", "SmolLM3", "Olmo", "InternLM2", "MiniCPM"]
    assert all(ARCHITECTURES[f"{name}ForCausalLM"].neighbours for name in turned)
    straight = ["Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi", "Phi3", "Olmo2"]
    assert not any(ARCHITECTURES[f"{name}ForCausalLM"].neighbours for name in straight)


@pytest.mark.parametrize(
    "name",
    ["BloomForCausalLM", "FalconForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "NewModelForCausalLM"],
)
def test_an_architecture_that_is_not_done_exactly_is_refused_by_name(name: str) -> None:
    with pytest.raises(GgufError, match=f"architecture '{name}' is none .*`bank export --merge`"):
        base_of(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "architectures was expected to name the base model's class, None found"),
        ({"architectures": []}, "architectures was expected"),
        (
            {"num_attention_heads": "six"},
            "num_attention_heads was expected to be a positive whole number, 'six'",
        ),
        ({"num_attention_heads": True}, "num_attention_heads was expected"),
        ({"num_key_value_heads": -1}, "num_key_value_heads was expected"),
        ({"num_hidden_layers": None}, "the number of layers was expected, 1 to 4096, None found"),
        ({"num_hidden_layers": 1 << 20}, "the number of layers was expected"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GgufError) as raised:
        of_config(json.dumps(config_of(LLAMA, **changes)), "config.json")
    assert message in str(raised.value)


def test_heads_come_from_the_part_of_a_model_that_writes() -> None:
    inner = {
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
    }
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner, "hidden_size": 9}
    found = of_config(json.dumps(outer), "config.json")
    assert (found.heads, found.key_value_heads, found.head_size, found.blocks) == (
        HEADS,
        SHARED,
        SIZE,
        LAYERS,
    )


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (b"[]", b"{", b"\xff\xfe", b'{"a": NaN}', b'{"a":' + b"[" * 100_000, b" " * (2 << 20)):
        path.write_bytes(content)
        with pytest.raises(GgufError, match=r"config\.json: expected the base model's config\.json"):
            read_config(path)


def test_rows_that_are_no_heads_are_refused() -> None:
    for modules, changes in (
        ({Q: (HEADS * SIZE + 2, HIDDEN)}, {}),
        ({K: (HEADS * SIZE, HIDDEN)}, {}),
        ({Q: (HEADS * SIZE, HIDDEN)}, {"num_attention_heads": 2 * HEADS}),
        ({Q: (HEADS * 7, HIDDEN)}, {"head_dim": 7}),
    ):
        assert "rows were expected by config.json" in refused(modules, **changes)
    unknown = refused({Q: (HEADS * SIZE, HIDDEN)}, num_attention_heads=None)
    assert "num_attention_heads and head_dim, or hidden_size, were expected" in unknown
    # Of k alone the rows say it: the default differs from class to class.
    placed = placed_modules(
        layout_for({K: (SHARED * SIZE, HIDDEN)}), base_of(LLAMA, num_key_value_heads=None)
    )
    assert placed[0].rows is not None
    # Nobody has to know the heads of what stays in its order.
    placed_modules(
        layout_for({Q: (HEADS * SIZE, HIDDEN)}), base_of("Qwen2ForCausalLM", num_attention_heads=None)
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("model.layers.0.self_attn.rotary", LLAMA),
        ("model.layers.2.self_attn.v_proj", LLAMA),
        ("model.layers.0.mlp.experts.0.gate_proj", "Qwen3MoeForCausalLM"),
        ("model.layers.0.mlp.gate", "Qwen3MoeForCausalLM"),
        ("model.layers.0.block_sparse_moe.experts.1.w1", "MixtralForCausalLM"),
        ("model.layers.0.shared_mlp.input_linear", "GraniteMoeSharedForCausalLM"),
        ("model.vision_tower.encoder.layers.0.self_attn.q_proj", "Gemma3ForConditionalGeneration"),
        ("model.embed_tokens", LLAMA),
        ("score", LLAMA),
    ],
)
def test_a_module_without_a_tensor_that_takes_an_adapter_is_refused(module: str, name: str) -> None:
    found = refused({module: (SHARED * SIZE, HIDDEN)}, name)
    assert found.startswith(f"{module}: a module of ")
    assert "`bank export --merge`" in found


def test_one_projection_in_an_architecture_of_three_is_refused() -> None:
    found = refused({"model.layers.0.self_attn.qkv_proj": (80, HIDDEN)})
    # Newer releases of the package have a name for it, which no converter gives.
    assert "one for all found" in found or "this is none that is known to be one" in found
    wrong = refused({"model.layers.0.attention.wqkv": (82, HIDDEN)}, "InternLM2ForCausalLM")
    assert "6 + 2 x 2 heads of 8 rows in one of 2 layers were expected" in wrong


def test_an_output_layer_needs_a_tensor_of_its_own() -> None:
    head = {"lm_head": (300, HIDDEN)}
    assert placed_modules(layout_for(head), base_of(LLAMA))[0].tensor == "output.weight"
    assert "in config.json it is not (tie_word_embeddings)" in refused(head, tie_word_embeddings=True)
    assert "in config.json it is not said to be" in refused(head, tie_word_embeddings=None)


def test_an_adapter_of_a_model_without_its_head_is_placed() -> None:
    placed = placed_modules(
        layout_for({"layers.1.self_attn.v_proj": (SHARED * SIZE, HIDDEN)}), base_of(LLAMA)
    )
    assert [one.tensor for one in placed] == ["blk.1.attn_v.weight"]


# -- the base model's GGUF -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LLAMA, "Qwen2ForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM"])
def test_a_gguf_says_what_a_configuration_does(tmp_path: Path, name: str) -> None:
    found, layout = (
        read_base_gguf(write_base_gguf(tmp_path / "base.gguf", name)),
        layout_for(modules_of(name)),
    )
    assert found.gguf == "base.gguf"
    ours = [
        (one.tensor, None if one.rows is None else one.rows.tolist()) for one in placed_modules(layout, found)
    ]
    theirs = placed_modules(layout, base_of(name))
    assert ours == [(one.tensor, None if one.rows is None else one.rows.tolist()) for one in theirs]


def test_names_and_shapes_are_held_against_a_gguf(tmp_path: Path) -> None:
    layout = layout_for(modules_of(LLAMA))
    lacking = read_base_gguf(write_base_gguf(tmp_path / "a.gguf", LLAMA, without=("blk.1.ffn_up.weight",)))
    with pytest.raises(
        GgufError, match=r"tensors blk\.1\.ffn_up\.weight were expected, not found; give the GGUF of"
    ):
        placed_modules(layout, lacking)
    other = read_base_gguf(write_base_gguf(tmp_path / "b.gguf", LLAMA))
    wider = {name: (rows, 2 * columns) for name, (rows, columns) in modules_of(LLAMA).items()}
    with pytest.raises(
        GgufError, match=r"blk\.0\.ffn_down\.weight of shape \(48, 80\) was expected, \(48, 40\) found"
    ):
        placed_modules(layout_for(wider), other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention.head_count": [6, 4]},
            "head_count was expected to be one positive whole number for all layers",
        ),
        ({"block_count": None}, "the number of layers was expected"),
        ({"block_count": 0}, "block_count was expected to be one positive whole number"),
    ],
)
def test_a_gguf_of_another_kind_of_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GgufError) as raised:
        read_base_gguf(write_base_gguf(tmp_path / "base.gguf", LLAMA, **changes))
    assert message in str(raised.value)


def test_the_same_number_for_every_layer_is_one(tmp_path: Path) -> None:
    path = write_base_gguf(tmp_path / "base.gguf", LLAMA, **{"attention.head_count_kv": [SHARED, SHARED]})
    assert read_base_gguf(path).key_value_heads == SHARED


def test_an_adapters_gguf_is_no_base_model(tmp_path: Path) -> None:
    from tests.support.gguf_cases import numbers_for, write_gguf

    layout = layout_for(modules_of(LLAMA))
    path = write_gguf(tmp_path / "adapter.gguf", base_of(LLAMA), layout, numbers_for(layout))
    with pytest.raises(GgufError, match=r"a base model's GGUF was expected, one of type 'adapter' and"):
        read_base_gguf(path)


# -- what a bank knows ---------------------------------------------------------------------------------


def test_where_the_base_model_is_known_from(tmp_path: Path) -> None:
    bank, model = tmp_path / "bank", tmp_path / "model"
    bank.mkdir()
    model.mkdir()
    with pytest.raises(
        GgufError, match=r"base_config\.json: the base model's config\.json was expected, which"
    ):
        known_base_model((bank, model), None)
    (model / "config.json").write_text(json.dumps(config_of("Qwen2ForCausalLM")))
    assert known_base_model((bank, model), None).architecture.name == "qwen2"
    (bank / BASE_CONFIG).write_text(json.dumps(config_of(LLAMA)))
    assert known_base_model((bank, model), None).architecture.name == "llama"
    base = write_base_gguf(tmp_path / "base.gguf", LLAMA)
    assert known_base_model((bank, model), base).gguf == "base.gguf"
    other = write_base_gguf(tmp_path / "other.gguf", "Qwen2ForCausalLM")
    with pytest.raises(
        GgufError, match=r"not the base model of .*: architecture llama expected, qwen2 found"
    ):
        known_base_model((bank, model), other)
    # What the configuration lacks the GGUF has; what it says must be so.
    (bank / BASE_CONFIG).write_text("{}")
    assert known_base_model((bank, model), other).architecture.name == "qwen2"
    (bank / BASE_CONFIG).write_text(json.dumps(config_of("BloomForCausalLM")))
    with pytest.raises(GgufError, match="architecture 'BloomForCausalLM' is none"):
        known_base_model((bank, model), base)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ParameterError, match=r"expected the extra gguf: pip install 'lora-bank\[gguf\]'"):
        placed_modules(layout_for(modules_of(LLAMA)), base_of(LLAMA))
    assert issubclass(GgufError, BankError)
