"""Datasets and adapters as trainers and publishers lay them out, small and by hand: the rows of docs/field.md."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from tests.support.banks.malformed_adapters import (
    BASE_MODEL,
    CONFIG,
    WEIGHTS,
    read_weights,
    write_good_adapter,
    write_weights,
)

Write = Callable[[Path], object]
PROMPT, ANSWER = "w1 w2 w3", "w4 w5"
TURNS = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWER}]
SHARED = [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": ANSWER}]


def rows(*found: dict[str, Any], name: str = "train.jsonl") -> Write:
    """What writes JSON lines."""
    return lambda folder: (folder / name).write_text("".join(json.dumps(row) + "\n" for row in found))


def text(name: str, content: str) -> Write:
    """What writes a file as it stands."""
    return lambda folder: (folder / name).write_text(content)


def _both(*writes: Write) -> Write:
    return lambda folder: [write(folder) for write in writes]


def _with_images(content: list[dict[str, Any]]) -> Write:
    return rows({"messages": [{"role": "user", "content": content}, TURNS[1]]})


_CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
_INSTANCES = [{"input": PROMPT, "output": [ANSWER]}]
_GOOD = {"input": PROMPT, "output": ANSWER}

DATASETS: dict[str, Write] = {
    "alpaca": rows({"instruction": PROMPT, "input": "", "output": ANSWER}),
    "llama-factory": rows(
        {"instruction": PROMPT, "input": "", "output": ANSWER, "system": "w9", "history": [["w7", "w8"]]}
    ),
    "dolly": rows({"instruction": PROMPT, "context": "", "response": ANSWER, "category": "w6"}),
    "sharegpt": rows({"conversations": SHARED}),
    "openai-messages": rows({"messages": [{"role": "system", "content": "w9"}, *TURNS]}),
    "openai-tools": rows({"messages": [TURNS[0], _CALL]}),
    "openai-images": _with_images([{"type": "image_url", "image_url": {"url": "a.png"}}]),
    "openai-parts": _with_images([{"type": "text", "text": PROMPT}]),
    "ultrachat": rows({"prompt": PROMPT, "prompt_id": "w6", "messages": TURNS}),
    "trl-turns": rows({"prompt": TURNS[:1], "completion": TURNS[1:]}),
    "trl-plain": rows({"prompt": PROMPT, "completion": ANSWER}),
    "trl-unpaired": rows(
        {"prompt": PROMPT, "completion": ANSWER, "label": True},
        {"prompt": PROMPT, "completion": "w6", "label": False},
    ),
    "trl-preference": rows({"prompt": PROMPT, "chosen": ANSWER, "rejected": "w6"}),
    "trl-stepwise": rows({"prompt": PROMPT, "completions": [ANSWER, "w6"], "labels": [True, False]}),
    "gsm8k": rows({"question": PROMPT, "answer": ANSWER}),
    "squad": rows({"question": PROMPT, "context": "w6", "answers": {"text": [ANSWER], "answer_start": [0]}}),
    "flan": rows({"inputs": PROMPT, "targets": ANSWER}),
    "guanaco": rows({"text": f"{PROMPT} {ANSWER}"}),
    "axolotl-segments": rows(
        {"segments": [{"label": False, "text": PROMPT}, {"label": True, "text": ANSWER}]}
    ),
    "natural-instructions": text("train.json", json.dumps({"Definition": ["w6"], "Instances": _INSTANCES})),
    "rows-of-the-server": text("train.json", json.dumps({"rows": [{"row_idx": 0, "row": _GOOD}]})),
    "columns-of-pandas": text("train.json", json.dumps({"input": {"0": PROMPT}, "output": {"0": ANSWER}})),
    "one-null": rows(_GOOD, {"input": PROMPT, "output": None}),
    "numbers-as-labels": rows({"input": PROMPT, "output": 1}),
    "lists-in-csv": text("train.csv", f"input,output\n{PROMPT},\"['{ANSWER}']\"\n"),
    "gzip": lambda folder: (folder / "train.jsonl.gz").write_bytes(gzip.compress(json.dumps(_GOOD).encode())),
    "two-splits": _both(rows(_GOOD, name="train_sft.jsonl"), rows(_GOOD, name="train_gen.jsonl")),
}


def adapter(**changes: Any) -> Write:
    """What writes a good adapter whose options are changed; those that are None are left out."""

    def write(folder: Path) -> None:
        write_good_adapter(folder)
        configure(folder, **changes)

    return write


def configure(folder: Path, **changes: Any) -> None:
    """Change options of an adapter's configuration."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None or key not in changes}
    (folder / CONFIG).write_text(json.dumps(kept))


def _renamed(old: str, new: str) -> Write:
    def write(folder: Path) -> None:
        write_good_adapter(folder)
        header, data = read_weights(folder)
        write_weights(folder, {key.replace(old, new, 1): value for key, value in header.items()}, data)

    return write


def _ranked(rank: int, **options: Any) -> Write:
    return lambda folder: write_good_adapter(folder, r=rank, **options)


def _below(*names: str) -> Write:
    return lambda folder: [write_good_adapter(folder / name, seed=place) for place, name in enumerate(names)]


def _with_tensor(name: str, shape: tuple[int, ...], **changes: Any) -> Write:
    def write(folder: Path) -> None:
        import numpy as np

        write_good_adapter(folder)
        more = {name: np.ones(shape, dtype=np.float32)}
        save_file(load_file(folder / WEIGHTS) | more, folder / WEIGHTS, metadata={"format": "pt"})
        configure(folder, **changes)

    return write


def _mlx(folder: Path) -> None:
    write_good_adapter(folder)
    (folder / WEIGHTS).rename(folder / "adapters.safetensors")
    (folder / CONFIG).write_text(json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 4}}))


def _pickle(folder: Path) -> None:
    write_good_adapter(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def _pointer(folder: Path) -> None:
    write_good_adapter(folder)
    (folder / CONFIG).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 700\n"
    )


_PREFIX = "base_model.model."
_EMBEDDING = f"{_PREFIX}model.embed_tokens.weight"

ADAPTERS: dict[str, Write] = {
    "llada-targets": adapter(target_modules=["q_proj", "v_proj", "ff_proj"]),
    "patterns-that-restate": adapter(rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 8}),
    "patterns-that-differ": adapter(alpha_pattern={"v_proj": 16}),
    "unsloth-case": adapter(base_model_name_or_path=BASE_MODEL.upper()),
    "llama-factory-path": adapter(base_model_name_or_path="/data/models/tiny-llama"),
    "torchtune": adapter(base_model_name_or_path=None, task_type=None),
    "revision-main": adapter(revision="main"),
    "trainer-checkpoints": _below("checkpoint-90", "checkpoint-1000"),
    "two-named-adapters": _below("sft", "dpo"),
    "torch-compile": _renamed(_PREFIX, f"{_PREFIX}_orig_mod."),
    "peft-twice": _renamed(_PREFIX, _PREFIX * 2),
    "rank-of-two": _ranked(2),
    "other-modules": _ranked(4, target_modules=["q_proj", "k_proj"]),
    "rslora": adapter(use_rslora=True),
    "dora": adapter(use_dora=True),
    "pissa": adapter(init_lora_weights="pissa"),
    "biases": adapter(bias="lora_only"),
    "modules-to-save": _with_tensor(_EMBEDDING, (32, 16), modules_to_save=["embed_tokens"]),
    "resized-vocabulary": _with_tensor(_EMBEDDING, (33, 16)),
    "other-method": adapter(peft_type="IA3"),
    "other-task-type": adapter(task_type="SEQ_2_SEQ_LM"),
    "bfloat16": lambda folder: write_good_adapter(folder, dtype="BF16"),
    "mlx": _mlx,
    "pickle": _pickle,
    "lfs-pointer": _pointer,
}
