"""`bank finetune` next to a bare loop of PyTorch and PEFT that does the same steps: seconds and peak memory.

    python benchmarks/training/finetune.py --bank my-bank --data my-data.jsonl --model ./smollm2-135m-instruct

Each is a process of its own, in turn, a few times; imports and the loading of the model are left out of the seconds of
both. Those of `bank finetune` have everything else: the prediction, the choice of a dtype, losses on the examples held
out, checkpoints on the disk, and the folder that is written. The bare loop is what anybody would write: the same
examples in the same batches, all logits, labels of -100 for the prompts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class Loading:
    """Progress that counts how long the model took to load."""

    def __init__(self) -> None:
        self.seconds, self._began, self._stage = 0.0, 0.0, ""

    def begin(self, stage: str, total: int) -> None:
        self._stage, self._began = stage, time.perf_counter()

    def advance(self, steps: int = 1) -> None: ...

    def end(self) -> None:
        if self._stage == "load the base model":
            self.seconds += time.perf_counter() - self._began
        self._stage = ""

    def received(self, count: int, expected: int) -> None: ...
    def note(self, text: str) -> None: ...


def ours(options: argparse.Namespace, dtype: str) -> tuple[float, str]:
    """Seconds without loading, and the dtype that was chosen."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    import bankdb
    import compute

    progress = Loading()
    with tempfile.TemporaryDirectory() as folder, bankdb.open(options.bank) as bank:
        started = time.perf_counter()
        asked = compute.FinetuneOptions(
            steps=options.steps, model=options.model, threads=options.threads, train_dtype=dtype
        )
        out = Path(folder) / "out"
        made = compute.finetune(
            bank, options.data, asked, checkpoints=Path(folder) / "kept", progress=progress
        )
        made.save(out)
        taken = time.perf_counter() - started - progress.seconds
    return taken, made.course.reading.dtype


def bare(options: argparse.Namespace, dtype: str) -> tuple[float, str]:
    """The same examples, batches and optimizer, in as few lines as it takes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    import bankdb
    from bankdb.datasets.read import read_dataset, training_files
    from compute.finetuning.examples import training_examples
    from compute.finetuning.options import LEARNING_RATE
    from compute.finetuning.schedule import plan_batches

    torch.set_num_threads(options.threads)
    with bankdb.open(options.bank) as bank:
        dataset = read_dataset(training_files(Path(options.data)))
        end = bank.tokenizer.end_of_sequence
        examples = training_examples(dataset, bank.tokenizer, end or 0, 32, 0, "x").training
        rank, alpha, modules = bank.layout.rank, bank.record.alpha, list(bank.layout.target_modules)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    started = time.perf_counter()
    for places in plan_batches(len(examples), 8, options.steps, 0):
        batch = [examples[place] for place in places]
        width = max(len(example.ids) for example in batch)
        pad = [width - len(example.ids) for example in batch]
        ids = torch.tensor([[*one.ids, *[0] * more] for one, more in zip(batch, pad, strict=True)])
        mask = torch.tensor([[1] * len(one.ids) + [0] * more for one, more in zip(batch, pad, strict=True)])
        labels = torch.tensor(
            [
                [-100] * (len(one.ids) - one.answer) + [*one.ids[-one.answer :], *[-100] * more]
                for one, more in zip(batch, pad, strict=True)
            ]
        )
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return time.perf_counter() - started, dtype


def measured(
    queue: Any, run: Callable[[argparse.Namespace, str], tuple[float, str]], options: Any, dtype: str
) -> None:
    seconds, used = run(options, dtype)
    queue.put((seconds, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def in_a_process(run: Any, options: argparse.Namespace, dtype: str) -> tuple[float, str, float]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measured, args=(queue, run, options, dtype))
    process.start()
    found: tuple[float, str, float] = queue.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    ratios = []
    print(
        "| dtype | bank finetune | bare loop | ratio | peak memory | of the bare loop |\n|---|---|---|---|---|---|"
    )
    for _ in range(options.repeat):
        seconds, dtype, memory = in_a_process(ours, options, options.dtype)
        alone, _, alone_memory = in_a_process(bare, options, dtype)
        ratios.append(seconds / alone)
        print(
            f"| {dtype} | {seconds:.1f} s | {alone:.1f} s | {seconds / alone:.2f} | {memory:.2f} GiB | "
            f"{alone_memory:.2f} GiB |",
            flush=True,
        )
    print(
        f"\nmedian ratio {statistics.median(ratios):.2f} of {options.steps} steps on {options.threads} threads"
    )


if __name__ == "__main__":
    main()
