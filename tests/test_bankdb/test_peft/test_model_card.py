from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.datasets.forms.rules import Rule
from bankdb.peft.model_card import OnHub, model_card
from tests.support.banks.malformed_adapters import BASE_MODEL, RANK


def provenance(**changes: Any) -> dict[str, Any]:
    record = {
        "name": "task_001",
        "base_model": BASE_MODEL,
        "metric": "jensen-shannon",
        "approach": "normalized",
        "rank": RANK,
        "sources": [
            {"name": f"source-{i:02}", "coefficient": 1 / 16, "licence": "Apache-2.0", "source": "hub:a/b"}
            for i in range(16)
        ],
    }
    return record | changes


def front_matter(card: str) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    data: dict[str, Any] = ModelCard(card).data.to_dict()
    return data


def test_the_card_says_what_the_hub_and_the_reader_need() -> None:
    card = model_card(provenance())
    found = front_matter(card)
    assert found["base_model"] == BASE_MODEL
    assert found["library_name"] == "peft"
    assert found["license"] == "apache-2.0"
    assert "Effective number of sources: 16.00" in card
    assert "jensen-shannon" in card
    assert card.count("| source-") == 10
    assert "and 6 more" in card
    assert "--max-lora-rank" not in card  # 16 is vLLM's default
    assert "--max-lora-rank 32" in model_card(provenance(rank=20))


def test_a_licence_is_stated_only_if_all_sources_have_it() -> None:
    for licences, stated in (
        (["mit", "mit"], "mit"),
        (["MIT", "mit"], "mit"),
        (["mit", "apache-2.0"], None),
        (["mit", None], None),
        ([None, None], None),
        (["All rights reserved", "All rights reserved"], None),
    ):
        sources = [
            {"name": str(i), "coefficient": 0.5, "licence": licence} for i, licence in enumerate(licences)
        ]
        # One that took no part has no say.
        sources.append({"name": "idle", "coefficient": 0.0, "licence": "gpl-3.0"})
        assert front_matter(model_card(provenance(sources=sources))).get("license") == stated


MEASURED = {
    "test": {"name": "mine", "sha256": "0" * 64, "examples": 30},
    "dtype": "float32",
    "rouge_l": 0.25,
    "exact_match": 0.125,
    "compared_with": [],
}


def test_on_the_hub_it_has_the_derived_licence_its_datasets_and_its_figures() -> None:
    on_hub = OnHub("ada/mine", "cc-by-4.0", "cc-by-4.0: the strictest", ("tasks/one", "tasks/two"))
    card = model_card(provenance(measured=MEASURED), on_hub)
    found = front_matter(card)
    assert found["license"] == "cc-by-4.0"
    assert found["datasets"] == ["tasks/one", "tasks/two"]
    assert (found["library_name"], found["pipeline_tag"]) == ("peft", "text-generation")
    (index,) = found["model-index"]  # as `to_dict` gives it for the hub
    metrics = {one["type"]: one["value"] for result in index["results"] for one in result["metrics"]}
    assert metrics == {"rouge": 0.25, "exact_match": 0.125}
    assert "cc-by-4.0: the strictest." in card
    assert "hf download ada/mine --local-dir FOLDER" in card
    assert "model-index" not in model_card(provenance(), on_hub)


@given(st.text(min_size=1, max_size=30), st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_no_name_breaks_the_card(name: str, origin: str) -> None:
    sources = [{"name": name, "coefficient": 1.0, "licence": "mit", "source": origin}]
    card = model_card(provenance(name=name, sources=sources, parameters={"top_k": name}))
    assert front_matter(card)["base_model"] == BASE_MODEL
    row = card.split("|---|---|---|---|\n")[1].splitlines()[0]
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 5
    assert card.count("```") == 8


def test_the_card_says_how_to_load_it_everywhere() -> None:
    card = model_card(provenance())
    assert f'AutoModelForCausalLM.from_pretrained("{BASE_MODEL}")' in card
    assert 'model.load_adapter("FOLDER")' in card
    assert f"vllm serve {BASE_MODEL} --enable-lora" in card
    assert f"hf download {BASE_MODEL} --local-dir base" in card
    assert "convert_lora_to_gguf.py FOLDER --base base" in card
    # Without a chat template, which llama-cli would put around the prompt.
    assert 'llama-completion -m base.gguf --lora adapter.gguf -no-cnv -p "PROMPT"' in card
    local = model_card(provenance(base_model="/models/my base"))
    assert "hf download" not in local
    assert "convert_hf_to_gguf.py '/models/my base'" in local


@pytest.mark.parametrize(("rule", "words", "option"), [
    (None, "A prompt is the input of an example as it stands", ""),
    (Rule("alpaca", ("instruction", "input", "output")), "A prompt is the input of an example as it stands", ""),
    (Rule("chat", ("messages",), "0" * 64), "as the base model's chat template writes them", " --chat"),
    (Rule("chat pair", ("prompt", "completion"), "0" * 64), "as the base model's chat template writes", " --chat"),
    (Rule("chat", ("messages",)), "`role: text` for each turn", ""),
])  # fmt: skip
def test_the_card_says_what_a_prompt_is(rule: Rule | None, words: str, option: str) -> None:
    """As the dataset was read that it was predicted for, or trained on."""
    dataset = {"examples": 3} | ({} if rule is None else {"text_rule": rule.as_text})
    card = model_card(provenance(dataset=dataset))
    assert words in card
    assert f"`bank generate --adapter FOLDER --prompt PROMPT{option}`" in card


@pytest.mark.parametrize("start", ["predicted", "zero"])
def test_the_card_of_a_dataset_that_is_far_says_so(start: str) -> None:
    found = {
        "novel": True,
        "maximal": False,
        "farther_than": 56,
        "compared_with": 56,
        "groups_left_out": True,
    }
    found |= {"nearest_source": "source-01"}
    words = (
        "farther from the nearest, `source-01`, than 100% of 56 datasets of the bank are from theirs, groups"
    )
    assert words in model_card(provenance(novelty=found))
    assert "shares no token" in model_card(provenance(novelty=found | {"maximal": True}))
    assert "far from all" not in model_card(provenance(novelty=found | {"novel": False}))
    trained = {
        "start": {"kind": start},
        "step_kept": 1,
        "steps": 2,
        "held_out_losses": {"0": 2.0, "1": 1.0},
        "examples": {"training": [1, 2], "held_out": [3]},
        "optimizer": {"name": "AdamW"},
        "batch_size": 2,
        "seed": 0,
        "base_model": {"dtype": "float32"},
        "versions": {},
    }
    assert (words in model_card(provenance(novelty=found, finetuned=trained))) == (start == "predicted")


def test_the_card_says_how_to_load_a_gguf() -> None:
    facts = {"architecture": "llama", "alpha": 8.0, "dtype": "float32", "base": "config.json", "alone": False}
    both = model_card(provenance(gguf=facts))
    assert "llama-completion -m base.gguf --lora FOLDER/adapter.gguf -no-cnv" in both
    assert "ollama create predicted -f FOLDER/Modelfile" in both
    assert "as `base.gguf` in FOLDER" in both
    assert "convert_lora_to_gguf.py" not in both
    assert "PeftModel" in both
    alone = model_card(provenance(gguf=facts | {"alone": True, "base": "small`.gguf"}))
    assert "as `small'.gguf` in FOLDER" in alone
    assert front_matter(alone)["library_name"] == "gguf"
    for absent in ("PeftModel", "vllm serve", "bank generate"):
        assert absent not in alone


def test_measured_figures_take_the_place_of_the_warning() -> None:
    gain = {"estimate": 0.31, "low": 0.22, "high": 0.4, "units": 30}
    measured = {
        "test": {"name": "my|test.jsonl", "sha256": "ab" * 32, "examples": 30},
        "dtype": "float32",
        "rouge_l": 0.61,
        "exact_match": 0.5,
        "compared_with": [
            {"name": "base model", "rouge_l": 0.3, "exact_match": 0.1, "rouge_l_difference": gain},
            {"name": "uniform", "rouge_l": 0.6, "exact_match": 0.5,
             "rouge_l_difference": {"estimate": 0.01, "low": None, "high": None, "units": 9}},
        ],
    }  # fmt: skip
    card = model_card(provenance(measured=measured))
    assert "It has not been evaluated" in model_card(provenance())
    assert "It has not been evaluated" not in card
    assert "| this adapter | 0.610 | 0.500 | |" in card
    assert "| base model | 0.300 | 0.100 | +0.310 [+0.220, +0.400] |" in card
    assert "| uniform | 0.600 | 0.500 | +0.010 |" in card
    assert "On 30 test examples of `my|test.jsonl` (sha256 `abababababababab`)" in card
