"""Make the tiny example bank: datasets, a small Llama-type base model, and one LoRA adapter for each dataset.

python examples/make_tiny_bank.py --out examples/tiny_bank --seed 0
python examples/make_tiny_bank.py --out other --base examples/tiny_bank/base --seeds different

Needs the ``torch`` extra; runs on a CPU in minutes (see docs/example-bank.md for the measured time). The base
model is trained on all tasks mixed, but mostly with answers in a plain or a chatty style; each adapter then
learns its dataset's own way of answering, and more of its task's skill.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_bank_tasks import (
    CHATTY,
    TASKS,
    TEST_EXAMPLES,
    Example,
    Task,
    split,
    stream,
    style,
    write_datasets,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

BASE_NAME = "tiny-bank/base"
LICENCE = "Apache-2.0"
MAX_NEW_TOKENS = 24
POSITIONS = 256


@dataclass(frozen=True, slots=True)
class Settings:
    seed: int = 0
    vocabulary: int = 768
    hidden: int = 96
    intermediate: int = 192
    layers: int = 4
    heads: int = 4
    base_steps: int = 1400
    base_batch: int = 40
    base_rate: float = 4e-3
    plain_share: float = 0.42
    chatty_share: float = 0.3
    rank: int = 8
    alpha: int = 16
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    adapter_epochs: int = 5
    adapter_batch: int = 20
    adapter_rate: float = 5e-3


class Progress:
    """One line with the share that is done and the time left."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.start = what, total, time.monotonic()

    def show(self, done: int, note: str = "") -> None:
        left = (time.monotonic() - self.start) / done * (self.total - done)
        end = "\n" if done == self.total or not sys.stdout.isatty() else "\r"
        print(f"{self.what}: {done}/{self.total}, {left:.0f} s left {note}".ljust(79), end=end, flush=True)


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one token for each digit; a beginning-of-sequence token is added by default."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_max_length=POSITIONS,
    )


def corpus(splits: dict[str, tuple[list[Example], list[Example]]]) -> Iterator[str]:
    """What the tokenizer is trained on: the training splits, each answer in both ways of writing it."""
    for task in TASKS:
        for example in splits[task.name][0]:
            yield f"{example.prompt}{style(task, example.answer)}\n{CHATTY.format(example.answer)}"


def encode(tokenizer: PreTrainedTokenizerFast, prompt: str, output: str) -> tuple[list[int], list[int]]:
    """Token ids and labels; only the output and the end-of-sequence token count in the loss."""
    ids = tokenizer(prompt)["input_ids"]
    answer = [*tokenizer(output, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return ids + answer, [-100] * len(ids) + answer


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    width = max(len(ids) for ids, _ in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (width - len(values))

    return {
        "input_ids": torch.tensor([padded(ids, pad) for ids, _ in rows]),
        "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in rows]),
        "labels": torch.tensor([padded(labels, -100) for _, labels in rows]),
    }


def mixture(
    tokenizer: PreTrainedTokenizerFast, held_out: set[str], settings: Settings
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of all tasks in random styles; no prompt of a test split ever appears."""
    rng = random.Random(f"{settings.seed}:mixture")
    streams = [(task, stream(task, rng)) for task in TASKS]
    while True:
        rows: list[tuple[list[int], list[int]]] = []
        while len(rows) < settings.base_batch:
            task, examples = rng.choice(streams)
            example = next(examples)
            if example.prompt not in held_out:
                rows.append(
                    encode(tokenizer, example.prompt, mixed_style(task, example.answer, rng, settings))
                )
        yield collate(rows, tokenizer.pad_token_id)


def mixed_style(task: Task, answer: str, rng: random.Random, settings: Settings) -> str:
    u = rng.random()
    if u < settings.plain_share:
        return answer
    if u < settings.plain_share + settings.chatty_share:
        return CHATTY.format(answer)
    return style(task, answer)


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up over the first twentieth, then cosine decay to a tenth."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def optimise(
    model: Any, batches: Iterator[dict[str, torch.Tensor]], steps: int, rate: float
) -> Iterator[float]:
    """Plain AdamW loop; yields the loss of each step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_at(step, steps))
    model.train()
    for _ in range(steps):
        loss = model(**next(batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        yield loss.item()
    model.eval()


def train_base(
    tokenizer: PreTrainedTokenizerFast, held_out: set[str], settings: Settings
) -> LlamaForCausalLM:
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden,
            intermediate_size=settings.intermediate,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    progress = Progress("base model, steps", settings.base_steps)
    batches = mixture(tokenizer, held_out, settings)
    losses = optimise(model, batches, settings.base_steps, settings.base_rate)
    for step, loss in enumerate(losses, start=1):
        if step % 50 == 0 or step == settings.base_steps:
            progress.show(step, f"loss {loss:.3f}")
    return model


def epochs(
    rows: list[tuple[list[int], list[int]]], pad: int, rng: random.Random, size: int
) -> Iterator[dict[str, torch.Tensor]]:
    while True:
        order = rng.sample(rows, len(rows))
        for start in range(0, len(order), size):
            yield collate(order[start : start + size], pad)


def train_adapter(
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    train: list[Example],
    settings: Settings,
    seed: int | None = None,
) -> PeftModel:
    # One seed for all tasks: every adapter starts from the same A, so their averages stay meaningful.
    torch.manual_seed(settings.seed if seed is None else seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.target_modules),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    rows = [encode(tokenizer, example.prompt, style(task, example.answer)) for example in train]
    batches = epochs(rows, tokenizer.pad_token_id, random.Random(settings.seed), settings.adapter_batch)
    steps = settings.adapter_epochs * math.ceil(len(rows) / settings.adapter_batch)
    for _ in optimise(model, batches, steps, settings.adapter_rate):
        pass
    return model


@torch.no_grad()
def exact_match(model: Any, tokenizer: PreTrainedTokenizerFast, task: Task, test: list[Example]) -> float:
    """Share of test examples whose greedy answer equals the reference, white space at the ends aside."""
    model.eval()
    batch = tokenizer([example.prompt for example in test], padding=True, return_tensors="pt")
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
    answers = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [a.strip() == style(task, e.answer) for a, e in zip(answers, test, strict=True)]
    return sum(right) / len(right)


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_adapter(model: Any, folder: Path) -> None:
    halved = {name: value.half() for name, value in model.named_parameters() if "lora_" in name}
    model.save_pretrained(folder, state_dict=halved)
    (folder / "README.md").unlink(missing_ok=True)
    modules = sorted(model.peft_config["default"].target_modules)
    edit_json(folder / "adapter_config.json", base_model_name_or_path=BASE_NAME, target_modules=modules)


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> LlamaForCausalLM:
    """Save in float16; returns the saved weights in float32, for adapters to be trained and scored on."""
    halved = {name: value.half() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=halved)
    tokenizer.save_pretrained(folder)
    edit_json(folder / "config.json", dtype="float16")
    # The name that every release of transformers knows.
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def write_manifest(bank: Path) -> None:
    with (bank / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", "adapter", "dataset", "group", "licence"])
        for task in TASKS:
            if task.in_bank:
                rows.writerow(
                    [task.name, f"adapters/{task.name}", f"datasets/{task.name}", task.family, LICENCE]
                )


def adapter_folder(out: Path, task: Task) -> Path:
    return out / "bank" / "adapters" / task.name if task.in_bank else out / "new" / task.name / "adapter"


def adapters_and_scores(
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    splits: dict[str, tuple[list[Example], list[Example]]],
    out: Path,
    settings: Settings,
) -> dict[str, dict[str, float]]:
    """Train, save and score one adapter for each task; the scores are those of the saved weights."""
    progress = Progress("adapters", len(TASKS))
    scores = {}
    for done, task in enumerate(TASKS, start=1):
        train, test = splits[task.name]
        before = exact_match(base, tokenizer, task, test)
        model = train_adapter(base, tokenizer, task, train, settings)
        save_adapter(model, adapter_folder(out, task))
        base = model.unload()
        own = PeftModel.from_pretrained(base, adapter_folder(out, task))
        scores[task.name] = {"base": before, "own": exact_match(own, tokenizer, task, test)}
        base = own.unload()
        progress.show(done, f"{task.name}: exact match {before:.2f} -> {scores[task.name]['own']:.2f}")
    return scores


def report(
    scores: dict[str, dict[str, float]], times: dict[str, float], settings: Settings
) -> dict[str, object]:
    in_bank = [scores[task.name] for task in TASKS if task.in_bank]
    mean = {key: round(sum(row[key] for row in in_bank) / len(in_bank), 4) for key in ("base", "own")}
    packages = ("torch", "peft", "transformers", "tokenizers", "safetensors")
    return {
        "measure": "exact match of greedy answers on the test split, float32 on CPU",
        "test_examples": TEST_EXAMPLES,
        "mean_over_bank": mean,
        "scores": scores,
        "seconds": {key: round(value, 1) for key, value in times.items()},
        "settings": asdict(settings),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def make(out: Path, settings: Settings) -> None:
    for part in ("base", "bank", "new"):
        shutil.rmtree(out / part, ignore_errors=True)
    write_datasets(out, settings.seed)
    write_manifest(out / "bank")
    splits = {task.name: split(task, settings.seed) for task in TASKS}
    tokenizer = train_tokenizer(corpus(splits), settings.vocabulary)
    started = time.monotonic()
    held_out = {example.prompt for _, test in splits.values() for example in test}
    base = train_base(tokenizer, held_out, settings)
    base = save_base(base, tokenizer, out / "base")
    base_done = time.monotonic()
    scores = adapters_and_scores(base, tokenizer, splits, out, settings)
    times = {"base_model": base_done - started, "adapters_and_scores": time.monotonic() - base_done}
    text = json.dumps(report(scores, times, settings), indent=2) + "\n"
    (out / "scores.json").write_text(text, encoding="utf-8")
    print(f"{out}: {sum(p.stat().st_size for p in out.rglob('*') if p.is_file()) / 1e6:.2f} MB")


def make_adapters(out: Path, base_folder: Path, settings: Settings, *, different: bool) -> None:
    """Datasets and adapters of the bank alone, on a base model that is there; A of one seed, or each of its own."""
    shutil.rmtree(out / "bank", ignore_errors=True)
    write_datasets(out, settings.seed)
    write_manifest(out / "bank")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base_folder, padding_side="left")
    base = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    tasks = [task for task in TASKS if task.in_bank]
    progress = Progress("adapters", len(tasks))
    for done, task in enumerate(tasks, start=1):
        train, _ = split(task, settings.seed)
        seed = settings.seed + (done if different else 0)
        model = train_adapter(base, tokenizer, task, train, settings, seed)
        save_adapter(model, adapter_folder(out, task))
        base = model.unload()
        progress.show(done, task.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "tiny_bank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--base", type=Path, help="train the adapters alone, on the base model in this folder"
    )
    parser.add_argument(
        "--seeds",
        choices=("same", "different"),
        default="same",
        help="with --base: A of one seed, or of many",
    )
    arguments = parser.parse_args()
    # One thread: the sums have one order, and so small a model gains little from more.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    settings = Settings(seed=arguments.seed)
    if arguments.base is not None:
        make_adapters(arguments.out, arguments.base, settings, different=arguments.seeds == "different")
    elif arguments.seeds == "different":
        parser.error("--seeds different goes with --base FOLDER: whole banks are made with one seed")
    else:
        make(arguments.out, settings)


if __name__ == "__main__":
    main()
