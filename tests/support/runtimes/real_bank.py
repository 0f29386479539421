"""Predicted adapters of a real bank, prompts of its tasks, and what PEFT answers: the oracle of runtimes.

MODEL is the folder of the bank's base model, PAIRS one of pairs of adapters for it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cli.main import cli

FEW = 5
NEW = 24
"""Tokens added to each prompt."""
Answers = dict[str, np.ndarray]


def named(name: str) -> str:
    """Return what the variable names; without it a test of runtimes fails, since somebody asked for it."""
    if name not in os.environ:
        pytest.fail(f"{name} is not set: run make test-llamacpp or test-vllm with MODEL=FOLDER PAIRS=FOLDER")
    return os.environ[name]


def run_python(python: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        [python, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, done.stderr[-3000:]


def bank(*arguments: str | Path) -> None:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.stderr, result.exception)


def by_peft(folder: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> Answers:
    """Answer in float32.

    For prompt I `logits_I`, shape (tokens, vocabulary), `tokens_I`, those added greedily, and `chosen_I`, their
    log-probabilities.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # The likeliest token and no other rule; none ends an answer.
    model.generation_config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    answers: Answers = {}
    with torch.no_grad():
        for number, ids in enumerate(prompts):
            tokens = torch.tensor([list(ids)])
            answers[f"logits_{number}"] = model(tokens).logits[0].numpy()
            whole = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                output_logits=True,
                return_dict_in_generate=True,
            )
            added, logits = whole.sequences[0, len(ids) :], torch.cat(whole.logits)
            assert len(added) == NEW
            answers[f"tokens_{number}"] = added.numpy()
            answers[f"chosen_{number}"] = logits.log_softmax(1)[torch.arange(NEW), added].numpy()
    return answers


def some_names() -> list[str]:
    """Eight tasks from all over the real bank."""
    names = sorted(path.name for path in (Path(named("PAIRS")) / "adapters").iterdir())
    return names[:: max(1, len(names) // 8)][:8]


def make_bank(place: Path, names: Sequence[str], *, use_rslora: bool = False) -> Path:
    """Make a bank of some of the pairs, which lie in `pairs` beside it."""
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
    return place / "bank"


def predicted(place: Path, names: Sequence[str], *more: str, use_rslora: bool = False) -> list[Path]:
    """Folders of a bank of some pairs, by leave-one-out."""
    where = ("--bank", make_bank(place, names, use_rslora=use_rslora))
    bank("predict", *where, "--all", "--export", place / "out", "--workers", "1", *more)
    return [place / "out" / name for name in names]


def prompts_of(names: Sequence[str]) -> list[list[int]]:
    """The first test example of each task, as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(named("MODEL"))
    prompts = []
    for name in names:
        (line, *_) = (Path(named("PAIRS")) / "datasets" / name / "test.jsonl").read_text().splitlines()
        prompts.append(tokenizer(json.loads(line)["input"])["input_ids"][-200:])
    return prompts
