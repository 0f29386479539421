"""Real llama.cpp answers as PEFT does: `make test-llamacpp`.

LLAMA_CPP is the folder of a llama.cpp, whose converter makes base models; LLAMA_CPP_PYTHON a Python that has
llama-cpp-python.
The tests of a real bank need MODEL, the folder of SmolLM2-135M-Instruct, and PAIRS, pairs of adapters for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bankdb.gguf.base_model import read_config
from bankdb.peft.config import render_config
from bankdb.peft.folder import write_adapter_folder
from bankdb.peft.weights import write_safetensors
from cli.main import cli
from tests.support.gguf_cases import hash_of, layout_for, read_tensors, read_values, write_gguf

pytestmark = [pytest.mark.llamacpp, pytest.mark.torch]
SUPPORT = Path(__file__).parents[2] / "support" / "llama_cpp"
NEW, FEW = 24, 5
Answers = dict[str, np.ndarray]


def named(name: str) -> str:
    if name not in os.environ:
        pytest.fail(f"{name} is not set: run make test-llamacpp MODEL=FOLDER PAIRS=FOLDER")
    return os.environ[name]


def run_python(python: str, *arguments: str | Path) -> None:
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def bank(*arguments: str | Path) -> None:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)


def by_llama_cpp(base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]], place: Path) -> Answers:
    (place / "prompts.json").write_text(json.dumps(prompts))
    arguments = (base, adapter or "-", place / "prompts.json", str(NEW), place / "answers.npz")
    run_python(named("LLAMA_CPP_PYTHON"), SUPPORT / "answers.py", *arguments)
    with np.load(place / "answers.npz") as found:
        return dict(found)


def by_peft(folder: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> Answers:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    found: Answers = {}
    with torch.no_grad():
        for number, ids in enumerate(prompts):
            tokens = list(ids)
            found[f"logits_{number}"] = model.eval()(torch.tensor([tokens])).logits[0].numpy()
            for _ in range(NEW):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            found[f"tokens_{number}"] = np.array(tokens[len(ids) :])
    return found


def check_same(theirs: Answers, ours: Answers, least: float) -> None:
    """Logits within 0.05, the same likeliest token everywhere that has one by more, and the same greedy tokens."""
    for name, expected in ours.items():
        if name.startswith("tokens"):
            assert theirs[name].tolist() == expected.tolist()
            continue
        assert np.abs(theirs[name] - expected).max() < least
        best = np.sort(expected, axis=1)[:, -2:]
        clear = best[:, 1] - best[:, 0] > 1e-3
        assert np.array_equal(theirs[name].argmax(axis=1)[clear], expected.argmax(axis=1)[clear])


# -- one architecture of each kind, tiny ----------------------------------------------------------------

KINDS = {
    "LlamaForCausalLM": ("LlamaConfig", {}),
    "Qwen2ForCausalLM": ("Qwen2Config", {}),
    "Gemma2ForCausalLM": ("Gemma2Config", {"head_dim": 16}),
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
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, **more,
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
    check_same(by_llama_cpp(base, adapter, prompts, tmp_path), ours, 0.05)
    # The adapter changes what is answered: the test sees whether it was applied.
    without = by_peft(tmp_path / "model", None, prompts)
    assert np.abs(without["logits_0"] - ours["logits_0"]).max() > 0.5
    check_same(by_llama_cpp(base, None, prompts, tmp_path), without, 0.05)


# -- five predicted adapters of a real bank ---------------------------------------------------------------


@pytest.fixture(scope="module")
def base_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base.gguf"
    script = Path(named("LLAMA_CPP")) / "convert_hf_to_gguf.py"
    run_python(sys.executable, script, named("MODEL"), "--outtype", "f32", "--outfile", out)
    return out


def predicted(place: Path, names: Sequence[str], *more: str, use_rslora: bool = False) -> list[Path]:
    """Folders of both formats of a bank of some pairs, by leave-one-out."""
    pairs = Path(named("PAIRS"))
    for name in names:
        (place / "pairs" / "adapters" / name).mkdir(parents=True)
        (place / "pairs" / "datasets").mkdir(exist_ok=True)
        (place / "pairs" / "datasets" / name).symlink_to(pairs / "datasets" / name)
        source = pairs / "adapters" / name
        config = json.loads((source / "adapter_config.json").read_text()) | {"use_rslora": use_rslora}
        (place / "pairs" / "adapters" / name / "adapter_config.json").write_text(json.dumps(config))
        weights = "adapter_model.safetensors"
        (place / "pairs" / "adapters" / name / weights).symlink_to(source / weights)
    where = ("--bank", place / "bank")
    stated = json.loads((pairs / "adapters" / names[0] / "adapter_config.json").read_text())
    bank("init", *where, "--base-model", stated["base_model_name_or_path"], "--tokenizer", named("MODEL"))
    bank("ingest", *where, place / "pairs")
    bank("predict", *where, "--all", "--export", place / "out", "--format", "both", "--workers", "1", *more)
    return [place / "out" / name for name in names]


def prompts_of(names: Sequence[str]) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(named("MODEL"))
    found = []
    for name in names:
        (line, *_) = (Path(named("PAIRS")) / "datasets" / name / "test.jsonl").read_text().splitlines()
        found.append(tokenizer(json.loads(line)["input"])["input_ids"][-200:])
    return found


def all_names() -> list[str]:
    return sorted(path.name for path in (Path(named("PAIRS")) / "adapters").iterdir())


@pytest.mark.parametrize(
    ("more", "use_rslora"),
    [((), False), ((), True), (("--space", "delta"), False)],
    ids=["factors", "rank-stabilised", "delta"],
)
def test_predicted_adapters_of_a_real_bank(
    base_gguf: Path, tmp_path: Path, more: tuple[str, ...], use_rslora: bool
) -> None:
    names = all_names()[:: max(1, len(all_names()) // 8)][:8]
    folders = predicted(tmp_path, names, *more, use_rslora=use_rslora)
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
        check_same(answers, by_peft(Path(named("MODEL")), folder, prompts), 0.05)
