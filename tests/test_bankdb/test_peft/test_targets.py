"""Which modules a configuration adapts: PEFT is the oracle; patterns of strangers are bounded in time and memory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bankdb.errors import AdapterError
from bankdb.peft.targets import PatternError, Selection
from bankdb.peft.weights import load_adapter
from tests.support.banks.malformed_adapters import CONFIG, write_good_adapter

MODULES = [
    *(f"model.layers.{n}.self_attn.{m}_proj" for n in (0, 1, 10) for m in "qkv"),
    "model.layers.0.mlp.experts.1.up_proj",
    "lm_head",
    "q_proj",
    "h.1.c_attn",
    "model.vision.blocks.1.q_proj",
]
HOSTILE = {
    "backtracking": r"(.*)*x(.+)+\.(.*)*y",
    "nested": r"((a|.)+)+\.\1y",
    "parentheses": "(" * 5000 + ")" * 5000,
    "a repetition": "a{99999999999999999999}",
    "no expression": "(?P<1>",
    "a long one": "a?" * 40_000,
    "lookbehind": "(?<=a*)b",
}


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["q_proj", "lm_head"], "exclude_modules": r".*layers\.1\..*"},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {
            "target_modules": ["q_proj", "c_attn"],
            "layers_to_transform": [0, 1],
            "layers_pattern": ["h", "layers"],
        },
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "(?:layers|blocks)"},
        {"target_modules": ["lm_head", "q_proj"], "layers_to_transform": [10]},
        {"target_modules": r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|up_proj))"},
    ],
    ids=str,
)
def test_modules_are_selected_as_peft_selects_them(options: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    oracle = LoraConfig(**options)
    expected = {
        module
        for module in MODULES
        if (found := check_target_module_exists(oracle, module)) and type(found).__name__ != "_ExcludedModule"
    }

    def names(key: str) -> tuple[str, ...] | str:
        value = options.get(key, ())
        return value if isinstance(value, str) else tuple(value)

    layers, pattern = options.get("layers_to_transform"), names("layers_pattern")
    selection = Selection(
        names("target_modules"),
        names("exclude_modules"),
        (layers,) if isinstance(layers, int) else layers and tuple(layers),
        (pattern,) if isinstance(pattern, str) else pattern,
    )
    assert selection.selected(MODULES) == expected
    assert 0 < len(expected) < len(MODULES)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("option", ["target_modules", "exclude_modules", "layers_pattern"])
def test_a_hostile_pattern_is_refused_in_bounded_time(tmp_path: Path, kind: str, option: str) -> None:
    folder = write_good_adapter(tmp_path / "adapter")
    config = json.loads((folder / CONFIG).read_text()) | {
        option: HOSTILE[kind],
        "layers_to_transform": [0, 1],
    }
    (folder / CONFIG).write_text(json.dumps(config))
    start = time.monotonic()
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    assert time.monotonic() - start < 10
    text = str(caught.value)
    assert "regular expression" in text or "unexpected tensors" in text
    assert str(folder) in text
    assert len(text) < 500
    if "list the modules' names instead" in text and option == "target_modules":
        # As the message says.
        (folder / CONFIG).write_text(json.dumps(config | {option: ["q_proj", "v_proj"]}))
        load_adapter(folder)


def test_memory_is_bounded_too() -> None:
    with pytest.raises(PatternError, match="regular expression"):
        Selection("(?:" + "|".join(f"[{chr(n)}-\U0010ffff]" * 50 for n in range(300, 1500)) + ")").selected(
            ["a"]
        )


def test_many_names_take_linear_time() -> None:
    modules = [f"model.layers.{n}.mlp.experts.{n}.up_proj" for n in range(50_000)]
    selection = Selection(tuple(modules))
    start = time.monotonic()
    assert selection.selected(modules) == set(modules)
    assert selection.idle(modules[1:]) == modules[:1]
    assert time.monotonic() - start < 5
