"""Real llama.cpp answers as PEFT does: `make test-llamacpp`.

LLAMA_CPP is the folder of a llama.cpp, whose converter makes base models; LLAMA_CPP_PYTHON a Python that has
llama-cpp-python.
The tests of a real bank need MODEL, the folder of SmolLM2-135M-Instruct, and PAIRS, pairs of adapters for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bankdb.gguf.base_model import read_config
from bankdb.peft.config import render_config
from bankdb.peft.folder import write_adapter_folder
from bankdb.peft.weights import write_safetensors
from tests.support.gguf_cases import hash_of, layout_for, read_tensors, read_values, write_gguf
from tests.support.runtimes.real_bank import (
    FEW,
    NEW,
    Answers,
    bank,
    by_peft,
    make_bank,
    named,
    predicted,
    prompts_of,
    run_python,
    some_names,
)

pytestmark = [pytest.mark.llamacpp, pytest.mark.torch]
SUPPORT = Path(__file__).parents[2] / "support" / "runtimes"


def by_llama_cpp(base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]], place: Path) -> Answers:
    (place / "prompts.json").write_text(json.dumps(prompts))
    arguments = (base, adapter or "-", place / "prompts.json", str(NEW), place / "answers.npz")
    run_python(named("LLAMA_CPP_PYTHON"), SUPPORT / "llama_cpp_answers.py", *arguments)
    with np.load(place / "answers.npz") as found:
        return dict(found)


def check_same(theirs: Answers, ours: Answers) -> None:
    """Logits within 0.05, and at every position the same likeliest token; the same greedy tokens."""
    farthest = 0.0
    for name in theirs:
        expected = ours[name]
        if name.startswith("tokens"):
            assert theirs[name].tolist() == expected.tolist()
            continue
        farthest = max(farthest, float(np.abs(theirs[name] - expected).max()))
        assert np.array_equal(theirs[name].argmax(axis=1), expected.argmax(axis=1))
    print(f"logits: at most {farthest:.2g} from PEFT's")
    assert farthest < 0.05


# -- one architecture of each kind, tiny ----------------------------------------------------------------

KINDS = {
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "Qwen2ForCausalLM": ("Qwen2Config", {}),
    # As every Gemma 2 is: llama.cpp has no output layer of its own for it, and scales by the heads' length.
    "Gemma2ForCausalLM": (
        "Gemma2Config",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
    ),
    "Phi3ForCausalLM": ("Phi3Config", {"pad_token_id": 0, "original_max_position_embeddings": 128}),
}


@pytest.mark.parametrize("name", KINDS)
def test_one_architecture_of_each_kind(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    kind, more = KINDS[name]
    torch.manual_seed(5)
    config = getattr(transformers, kind)(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, **{"tie_word_embeddings": False, **more},
    )  # fmt: skip
    model = getattr(transformers, name)(config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) / 8
    model.save_pretrained(tmp_path / "model")
    linear = {
        path: tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in path
    }
    layout = layout_for(linear, rank=4)
    vector = np.random.default_rng(1).normal(size=layout.size).astype(np.float32) / 4
    text = render_config("tiny", layout, (8.0, False), "CAUSAL_LM")
    write_adapter_folder(
        tmp_path / "peft",
        files={
            "adapter_config.json": text.encode(),
            "adapter_model.safetensors": lambda path: write_safetensors(path, vector, layout, "float32"),
        },
    )
    known = read_config(tmp_path / "model" / "config.json")
    adapter = write_gguf(tmp_path / "adapter.gguf", known, layout, vector, 2.0)
    base = tmp_path / "base.gguf"
    run_python(sys.executable, SUPPORT / "no_vocabulary.py", named("LLAMA_CPP"), tmp_path / "model", base)
    prompts = np.random.default_rng(2).integers(3, 300, size=(FEW, 30)).tolist()
    ours = by_peft(tmp_path / "model", tmp_path / "peft", prompts)
    check_same(by_llama_cpp(base, adapter, prompts, tmp_path), ours)
    # The adapter changes what is answered: the test sees whether it was applied.
    without = by_peft(tmp_path / "model", None, prompts)
    assert np.abs(without["logits_0"] - ours["logits_0"]).max() > 0.5
    check_same(by_llama_cpp(base, None, prompts, tmp_path), without)


# -- five predicted adapters of a real bank ---------------------------------------------------------------


@pytest.fixture(scope="module")
def base_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base.gguf"
    script = Path(named("LLAMA_CPP")) / "convert_hf_to_gguf.py"
    run_python(sys.executable, script, named("MODEL"), "--outtype", "f32", "--outfile", out)
    return out


@pytest.mark.parametrize(
    ("more", "use_rslora"),
    [((), False), ((), True), (("--space", "delta"), False)],
    ids=["factors", "rank-stabilised", "delta"],
)
def test_predicted_adapters_of_a_real_bank(
    base_gguf: Path, tmp_path: Path, more: tuple[str, ...], use_rslora: bool
) -> None:
    names = some_names()
    folders = predicted(tmp_path, names, "--format", "both", *more, use_rslora=use_rslora)
    prompts = prompts_of(names[:FEW])
    tried = folders[:FEW] if not more and not use_rslora else folders[:1]
    for folder in tried:
        script = Path(named("LLAMA_CPP")) / "convert_lora_to_gguf.py"
        converted = tmp_path / f"{folder.name}.gguf"
        run_python(sys.executable, script, folder, "--base", named("MODEL"), "--outfile", converted)
        ours, theirs = read_tensors(folder / "adapter.gguf"), read_tensors(converted)
        assert hash_of(ours) == hash_of(theirs)
        key = "adapter.lora.alpha"
        assert read_values(folder / "adapter.gguf")[key] == read_values(converted)[key]
        answers = by_llama_cpp(base_gguf, folder / "adapter.gguf", prompts, tmp_path)
        check_same(answers, by_peft(Path(named("MODEL")), folder, prompts))


# -- what training and merging write ----------------------------------------------------------------------


def test_a_finetuned_and_a_merged_one(base_gguf: Path, tmp_path: Path) -> None:
    """`bank finetune --format both`, then the base model with that very adapter merged into it."""
    first, *others = some_names()
    prompts = prompts_of([first, *others][:FEW])
    where = ("--bank", make_bank(tmp_path, others), "--model", named("MODEL"))
    data, tuned = Path(named("PAIRS")) / "datasets" / first / "train.jsonl", tmp_path / "tuned"
    bank("finetune", *where, data, "--out", tuned, "--steps", "2", "--examples", "8", "--format", "both")
    answers = by_llama_cpp(base_gguf, tuned / "adapter.gguf", prompts, tmp_path)
    check_same(answers, by_peft(Path(named("MODEL")), tuned, prompts))
    merged, gguf = tmp_path / "merged", tmp_path / "merged.gguf"
    bank("export", "--adapter", tuned, "--merge", "--model", named("MODEL"), "--out", merged)
    script = Path(named("LLAMA_CPP")) / "convert_hf_to_gguf.py"
    run_python(sys.executable, script, merged, "--outtype", "f32", "--outfile", gguf)
    check_same(by_llama_cpp(gguf, None, prompts, tmp_path), by_peft(merged, None, prompts))
