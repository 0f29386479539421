"""PEFT as the oracle: what is stored of a converted adapter does what the adapter did that PEFT saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bankdb.peft.weights import SourceAdapter, load_adapter, source_file
from bankdb.records import Taking
from tests.support.banks.malformed_adapters import CONFIG, WEIGHTS
from tests.test_bankdb.test_peft.test_peft_oracle import load_with_peft, logits, lora

pytestmark = pytest.mark.torch
ADAPT = Taking(adapt_rank=True)


def stored(folder: Path, adapter: SourceAdapter) -> Path:
    folder.mkdir()
    (folder / CONFIG).write_text(adapter.config.text)
    (folder / WEIGHTS).write_bytes(source_file(adapter.vector, adapter.layout, adapter.header))
    return folder


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_padded_adapter_answers_as_before(tmp_path: Path, base_model: Any, use_rslora: bool) -> None:
    lora(base_model, tmp_path / "bank", r=8)
    model = lora(base_model, tmp_path / "small", r=3, lora_alpha=7, use_rslora=use_rslora)
    expected = load_adapter(tmp_path / "bank").layout
    taken = load_adapter(tmp_path / "small", expected=expected, taking=ADAPT)
    loaded = load_with_peft(base_model, stored(tmp_path / "stored", taken))
    np.testing.assert_allclose(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)


def test_a_cut_adapter_answers_as_the_nearest_of_its_rank(tmp_path: Path, base_model: Any) -> None:
    import torch

    lora(base_model, tmp_path / "bank", r=4)
    model = lora(base_model, tmp_path / "large", r=9, lora_alpha=18)
    expected = load_adapter(tmp_path / "bank").layout
    taken = load_adapter(tmp_path / "large", expected=expected, taking=ADAPT)
    nearest = copy.deepcopy(base_model)
    for name, layer in model.get_base_model().named_modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            u, s, v = torch.linalg.svd(2.0 * b.double() @ a.double())
            nearest.get_submodule(name).weight.data += (u[:, :4] * s[:4] @ v[:4]).float()
    loaded = load_with_peft(base_model, stored(tmp_path / "stored", taken))
    np.testing.assert_allclose(logits(loaded), logits(nearest), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"]], ids=str)
def test_a_head_among_the_targets_is_taken_without_the_copy(
    tmp_path: Path, base_model: Any, targets: list[str]
) -> None:
    model = lora(base_model, tmp_path / "clean", target_modules=targets)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=True)
    clean, taken = load_adapter(tmp_path / "clean"), load_adapter(tmp_path / "saved")
    assert taken.layout == clean.layout
    assert taken.vector.tobytes() == clean.vector.tobytes()
    assert taken.notes == ("left out: the base model's own lm_head, which PEFT saves along with a target",)
    loaded = load_with_peft(base_model, stored(tmp_path / "stored", taken))
    np.testing.assert_allclose(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha_pattern": {"q_proj": 8, "v_proj": 8}},
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {r".*\.0\..*": 8.0}, "rank_pattern": {"nothing": 4}},
        {"alpha_pattern": {"q_proj": 8}, "use_rslora": True},
    ],
    ids=str,
)
def test_patterns_that_restate_change_nothing_in_peft(
    tmp_path: Path, base_model: Any, options: dict[str, Any]
) -> None:
    plain = {key: value for key, value in options.items() if not key.endswith("_pattern")}
    with_patterns = lora(base_model, tmp_path / "patterns", **options)
    without = lora(base_model, tmp_path / "plain", **plain)
    np.testing.assert_array_equal(logits(with_patterns), logits(without))
    taken, expected = load_adapter(tmp_path / "patterns"), load_adapter(tmp_path / "plain")
    assert (taken.vector.tobytes(), taken.config.scaling) == (
        expected.vector.tobytes(),
        expected.config.scaling,
    )
    assert any("give every module what it has without" in note for note in taken.notes)
    assert (
        source_file(taken.vector, taken.layout, taken.header)
        == (tmp_path / "patterns" / WEIGHTS).read_bytes()
    )
