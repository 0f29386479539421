"""Old and new names of one architecture's modules: transformers' own table, and a model of its, are the oracles."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from bankdb.errors import AdapterError
from bankdb.peft.conversion.renamed_modules import matched, present_name
from bankdb.peft.header import stored_as
from bankdb.peft.weights import load_adapter, source_file
from tests.support.banks.malformed_adapters import BASE_MODEL, CONFIG, WEIGHTS, write_good_adapter
from tests.test_bankdb.test_peft.test_advice import renamed

LAYER = "layers.3.self_attn.q_proj"
VISION = "encoder.layers.0.self_attn.q_proj"
OLD = {
    "llava": [
        f"language_model.model.{LAYER}",
        "language_model.lm_head",
        f"vision_tower.vision_model.{VISION}",
    ],
    "llava_next": [
        f"language_model.model.{LAYER}",
        "language_model.lm_head",
        "multi_modal_projector.linear_1",
    ],
    "video_llava": [f"language_model.model.{LAYER}", f"image_tower.{VISION}", f"video_tower.{VISION}"],
    "mllama": [f"language_model.model.{LAYER}", f"vision_model.{VISION}", "language_model.lm_head"],
    "qwen2_audio": [f"language_model.model.{LAYER}", f"audio_tower.{LAYER}", "multi_modal_projector.linear"],
    "Qwen2VLForConditionalGeneration": [f"model.{LAYER}", "visual.blocks.0.attn.qkv", "lm_head"],
}


@pytest.mark.torch
@pytest.mark.parametrize("kind", OLD)
def test_names_become_what_transformers_makes_of_them(kind: str) -> None:
    """Its table of each model says how names in files become those of the model's modules."""
    import re

    mapping = pytest.importorskip("transformers.conversion_mapping", reason="since transformers 5")
    table = mapping._build_checkpoint_conversion_mapping()
    inner = {"llava": "LlavaModel", "video_llava": "VideoLlavaModel", "qwen2_audio": "Qwen2AudioModel"}
    for name in OLD[kind]:
        expected = name
        for step in table[kind]:
            (pattern,), (target,) = step._original_source_patterns, step._original_target_patterns
            expected = re.sub(pattern, target, expected, count=1)
        # What the model's inner class does besides: its language model was one with a head.
        assert kind not in inner or inner[kind] in table
        expected = re.sub(r"^model\.language_model\.model\.", "model.language_model.", expected)
        assert present_name(name) == expected


def test_a_name_of_now_stays() -> None:
    for name in (
        f"model.language_model.{LAYER}",
        "lm_head",
        f"model.visual.{LAYER}",
        "model.embed_tokens",
        f"transformer.h.0.{LAYER}",
        f"base.model.{LAYER}",
    ):
        assert present_name(name) == name


def test_all_modules_have_to_be_the_same() -> None:
    old = [f"language_model.model.layers.{n}.self_attn.q_proj" for n in range(3)]
    new = [name.replace("language_model.model", "model.language_model") for name in old]
    assert matched(old, new) == dict(zip(old, new, strict=True))
    assert matched(new, old) == dict(zip(new, old, strict=True))
    assert matched(old, [*new, "lm_head"]) is None
    assert matched(old[:2], new) is None
    # Two modules of one file that would be one.
    assert matched([*old, new[0]], new) is None


@pytest.mark.parametrize("place", ["model.language_model.layers.", "language_model.model.layers."])
@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], r".*\.layers\.\d+\.self_attn\.(q|v)_proj", "whole"], ids=str
)
def test_an_adapter_under_other_names_is_taken(tmp_path: Path, place: str, targets: list[str] | str) -> None:
    one = write_good_adapter(tmp_path / "one")
    renamed(one, tmp_path / "other", "model.model.layers.", f"model.{place}")
    if targets == "whole":
        targets = [f"{place}{n}.self_attn.{m}_proj" for n in range(2) for m in "qv"]
    config = json.loads((one / CONFIG).read_text()) | {"target_modules": targets}
    (tmp_path / "other" / CONFIG).write_text(json.dumps(config))
    expected = load_adapter(one)
    taken = load_adapter(tmp_path / "other", expected=expected.layout)
    assert taken.vector.tobytes() == expected.vector.tobytes()
    assert ["modules renamed" in note for note in taken.notes] == [True]
    assert stored_as(taken.header) == taken.notes[0]
    assert all(taken.config.targets(f"model.layers.{n}.self_attn.q_proj") for n in range(2))
    # What is stored is an adapter of the bank's names.
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / CONFIG).write_text(taken.config.text)
    (tmp_path / "again" / WEIGHTS).write_bytes(source_file(taken.vector, taken.layout, taken.header))
    assert (
        load_adapter(tmp_path / "again", expected=expected.layout).vector.tobytes() == taken.vector.tobytes()
    )


def test_other_shapes_under_other_names_are_refused(tmp_path: Path) -> None:
    one = write_good_adapter(tmp_path / "one")
    renamed(one, tmp_path / "other", "model.model.layers.1.", "model.model.language_model.layers.2.")
    with pytest.raises(AdapterError, match="not of the bank's layout"):
        load_adapter(tmp_path / "other", expected=load_adapter(one).layout)


@pytest.mark.torch
def test_a_model_that_sees_before_and_after(tmp_path: Path) -> None:
    """What PEFT saves of transformers' class today, and the same adapter under the names of before 4.52."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2VLConfig(
        text_config={**sizes, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
                     "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
    )  # fmt: skip
    base = Qwen2VLForConditionalGeneration(config)
    targets = r".*layers\.\d+\.self_attn\.(q|v)_proj|.*visual.*(qkv|fc1)"
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    model.peft_config["default"].base_model_name_or_path = BASE_MODEL
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn_like(parameter) / 4
    model.save_pretrained(tmp_path / "new", save_embedding_layers=False)
    new = load_adapter(tmp_path / "new")
    assert any("model.language_model.layers" in spec.name for spec in new.layout.tensors)
    assert any("model.visual." in spec.name for spec in new.layout.tensors)
    renamed(tmp_path / "new", tmp_path / "middle", "model.model.language_model.", "model.model.")
    renamed(tmp_path / "middle", tmp_path / "old", "model.model.visual.", "model.visual.")
    taken = load_adapter(tmp_path / "old", expected=new.layout)
    assert taken.vector.tobytes() == new.vector.tobytes()
    # And the other way round, into a bank of adapters from before.
    old = load_adapter(tmp_path / "old")
    assert load_adapter(tmp_path / "new", expected=old.layout).vector.tobytes() == old.vector.tobytes()
