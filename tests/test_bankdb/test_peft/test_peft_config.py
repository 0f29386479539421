"""What is refused of a configuration is in `malformed_adapters.py`, and tested in `test_peft_format.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.errors import AdapterError
from bankdb.peft.config import read_config, render_config, scaling
from bankdb.peft.layout import AdapterLayout
from bankdb.strict_json import parse_object
from tests.support.banks.malformed_adapters import BASE_MODEL, CONFIG, good_config, tensor_names

LAYOUT = AdapterLayout.from_shapes(dict.fromkeys(tensor_names(), (4, 4)), 4, ["v_proj", "q_proj"])


def write(folder: Path, **changes: Any) -> Path:
    (folder / CONFIG).write_text(json.dumps(good_config(**changes)))
    return folder / CONFIG


def test_a_good_config_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, revision="0a1b", lora_alpha=12.5, target_modules=["v_proj", "q_proj", "v_proj"])
    config = read_config(path)
    assert config.base_model == BASE_MODEL
    assert config.revision == "0a1b"
    assert (config.rank, config.alpha, config.use_rslora, config.scaling) == (4, 12.5, False, 3.125)
    assert config.target_modules == ("q_proj", "v_proj")
    assert (config.restricted, config.fan_in_fan_out, config.task_type) == (False, False, "CAUSAL_LM")
    assert config.text.encode() == path.read_bytes()


def test_the_text_is_kept_to_the_byte(tmp_path: Path) -> None:
    raw = json.dumps(good_config(), indent=3).replace("\n", "\r\n").encode() + b"\n\n"
    (tmp_path / CONFIG).write_bytes(raw)
    assert read_config(tmp_path / CONFIG).text.encode() == raw


def test_the_fewest_options_that_peft_needs_are_enough(tmp_path: Path) -> None:
    options = ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")
    (tmp_path / CONFIG).write_text(json.dumps({key: good_config()[key] for key in options}))
    config = read_config(tmp_path / CONFIG)
    assert (config.task_type, config.revision, config.use_rslora) == (None, None, False)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_scaling(rank: int) -> None:
    assert scaling(16.0, rank, False) == 16 / rank
    assert scaling(16.0, rank, True) == pytest.approx(16 * rank**-0.5, rel=1e-15)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_dropout": 0.3, "inference_mode": True, "auto_mapping": {"unsloth_fixed": True}},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "Gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": False},
        {"init_lora_weights": None},
        {"corda_config": {"corda_method": "kpm"}, "lora_ga_config": {"direction": "ArBr"}},
        {"ensure_weight_tying": True, "megatron_core": "mine.core", "runtime_config": {"a": 1}},
        {"rank_pattern": None, "alpha_pattern": {}, "modules_to_save": [], "layer_replication": None},
        {"option_of_the_future": None, "another": False, "third": [], "fourth": {}, "fifth": ""},
        {"base_model_name_or_path": "/models/a model"},
        {"revision": ""},
    ],
    ids=str,
)
def test_options_that_do_not_change_what_the_weights_mean_pass(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert read_config(write(tmp_path, **changes)).scaling == 2.0


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_to_transform": [0]},
        {"exclude_modules": "x"},
        {"layers_to_transform": 0, "layers_pattern": "h"},
    ],
    ids=str,
)
def test_a_selection_beyond_target_modules_is_noticed(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert read_config(write(tmp_path, **changes)).restricted


def test_a_config_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(good_config(x="a" * 17_000_000)))
    with pytest.raises(AdapterError, match="at most 16777216 bytes"):
        read_config(tmp_path / CONFIG)


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        read_config(write(tmp_path, mystery="x" * 10_000))
    assert len(str(caught.value)) < 400


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    text = render_config(BASE_MODEL, LAYOUT, (16.0, True), "CAUSAL_LM", revision="0a1b")
    (tmp_path / CONFIG).write_text(text)
    config = read_config(tmp_path / CONFIG)
    assert (config.base_model, config.revision, config.task_type) == (BASE_MODEL, "0a1b", "CAUSAL_LM")
    assert (config.rank, config.alpha, config.use_rslora) == (4, 16.0, True)
    assert config.target_modules == LAYOUT.target_modules
    assert render_config(BASE_MODEL, LAYOUT, (16.0, True), "CAUSAL_LM", revision="0a1b") == text


def test_what_is_written_is_what_vllm_takes() -> None:
    """The checks of vLLM's `PEFTHelper`: its fields, its types, and what it refuses."""
    options = json.loads(render_config(BASE_MODEL, LAYOUT, (16.0, False), "CAUSAL_LM"))
    assert type(options["r"]) is type(options["lora_alpha"]) is int
    assert options["target_modules"] == ["q_proj", "v_proj"]
    assert (options["bias"], options["modules_to_save"], options["use_dora"]) == ("none", None, False)
    assert options["lora_alpha"] / options["r"] == 4.0


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_json_objects_are_read_as_the_standard_parser_reads_them(value: Any) -> None:
    text = json.dumps({"a": value})
    assert parse_object(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": 1, "b": 1}}', "'b' is given twice"),
        ('{"a": -Infinity}', "-Infinity is no JSON value"),
        ("null", "null found"),
        ("1.5", "a number found"),
        ("true", "a boolean found"),
        ('"a"', "a string found"),
        ('{"a": 1', "line 1, column 8"),
        ('{"\\udfff": 1}', "no Unicode text"),
        ('{"a": ' + "1" * 5000 + "}", "digits"),
    ],
)
def test_json_that_two_readers_could_understand_differently_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_object(text)


# PEFT itself.


@pytest.mark.torch
def test_whatever_the_installed_peft_writes_by_default_is_accepted(tmp_path: Path) -> None:
    from peft import LoraConfig

    LoraConfig(base_model_name_or_path=BASE_MODEL, target_modules=["q_proj"], r=6).save_pretrained(tmp_path)
    config = read_config(tmp_path / CONFIG)
    assert (config.rank, config.alpha, config.scaling) == (6, 8.0, 8 / 6)


@pytest.mark.torch
@pytest.mark.parametrize(
    "target_modules",
    [
        ["q_proj"],
        ["self_attn.q_proj"],
        ["model.layers.1.self_attn.q_proj"],
        ["proj"],
        ["q_proj", "h.1"],
        r".*\.q_proj",
        "q_proj",
        r".*layers\.[01]\..*_proj",
        r"model\.layers\.1\.self_attn\.q_proj",
    ],
    ids=str,
)
def test_modules_are_selected_by_pefts_rules(tmp_path: Path, target_modules: Any) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = read_config(write(tmp_path, target_modules=target_modules))
    oracle = LoraConfig(target_modules=target_modules)
    for module in ("q_proj", "model.layers.1.self_attn.q_proj", "model.layers.11.self_attn.k_proj", "h.1"):
        assert config.targets(module) == bool(check_target_module_exists(oracle, module)), module


@pytest.mark.torch
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("alpha", [8, 12.5])
def test_peft_reads_a_written_config_as_it_is_meant(tmp_path: Path, alpha: float, use_rslora: bool) -> None:
    from peft import PeftConfig

    (tmp_path / CONFIG).write_text(render_config(BASE_MODEL, LAYOUT, (alpha, use_rslora), None, revision="r"))
    config = PeftConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, alpha, use_rslora)
    assert config.target_modules == set(LAYOUT.target_modules)
    assert (config.base_model_name_or_path, config.revision, config.task_type) == (BASE_MODEL, "r", None)
    assert read_config(tmp_path / CONFIG).scaling == alpha / (math.sqrt(4) if use_rslora else 4)
