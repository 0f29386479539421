"""One training run of a learning curve: trained once, its answers and losses kept in the bank."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bankdb.arrays.durable import write_whole
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, one_line
from bankdb.records import GenerationKey, GenerationRecord
from bankdb.strict_json import parse_object
from compute.evaluation.adapters import BASE_SHA256
from compute.finetuning.examples import TrainingExamples
from compute.finetuning.schedule import is_checked, plan_batches
from compute.finetuning.trainer import Trainer, Vector
from compute.generation.generate import Generator
from compute.generation.prompts import Prompts

FOLDER = "curves"
# Raised when a change of the code changes what is trained.
_VERSION = 2


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What determines training beside the start and the examples: see `FinetuneOptions`.

    Attributes
    ----------
    model, tokenizer
        Hashes of the base model and of the tokenizer.
    dtype
        Of the base model while it is trained on.
    """

    model: str
    tokenizer: str
    dtype: str
    learning_rate: float
    batch_size: int
    seed: int

    def run_sha256(self, start: str, examples: str) -> str:
        """Hash of all that determines a run, however long."""
        return _sha256(["curve", _VERSION, asdict(self), start, examples])


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What a run found out, beside its answers.

    Attributes
    ----------
    key
        See `TrainingSettings.run_sha256`.
    losses
        Of each step, on its batch, before it; nats a token of the answers.
    held_out
        Loss on the examples held out, by the number of steps done.
    seconds
        Of all steps, held-out losses apart.
    """

    key: str
    losses: tuple[float, ...]
    held_out: dict[str, float]
    seconds: float

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses)

    def best(self, steps: int) -> int:
        """Return the number of steps, up to `steps`, at which the held-out loss was lowest; the fewest of equal."""
        return min((loss, int(step)) for step, loss in self.held_out.items() if int(step) <= steps)[1]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A target's examples, test prompts and starting adapter.

    Attributes
    ----------
    start_sha256
        Hash of what the start was made of; that of the base model for a start from zero.
    vector
        float32, shape (p,): the start in the bank's layout and scaling.
    """

    target: str
    start_sha256: str
    vector: Vector
    examples: TrainingExamples
    prompts: Prompts
    test_sha256: str
    settings_sha256: str


def answer_key(run: str, start: str, step: int, test: str, settings: str) -> GenerationKey:
    """What the answers after a number of steps are kept under; those of the start as any evaluation keeps them."""
    return GenerationKey(start if step == 0 else _sha256([run, step]), test, settings)


def train_and_answer(
    bank: AdapterBank,
    task: Task,
    steps: Sequence[int],
    settings: TrainingSettings,
    trainer: Trainer,
    generator: Generator,
) -> None:
    """Train to the last of `steps`, and let the adapter after each of them answer; keep answers, then the run."""
    key = settings.run_sha256(task.start_sha256, task.examples.sha256)
    run, vectors = _train(key, task, steps, settings, trainer)
    scaling = bank.record.scaling
    assert scaling is not None, "a bank with adapters has a scaling"
    for step in steps:
        place = answer_key(key, task.start_sha256, step, task.test_sha256, task.settings_sha256)
        if bank.generations.find(place) is not None:
            continue
        nothing = step == 0 and task.start_sha256 == BASE_SHA256
        tensors = None if nothing else trainer.layout.unflatten(vectors[step])
        answers = generator.answer(task.prompts, tensors, scaling)
        bank.generations.keep(
            GenerationRecord(place, answers.texts, task.prompts.new_tokens, answers.seconds)
        )
    store_run(bank, run)


def _train(
    key: str, task: Task, steps: Sequence[int], settings: TrainingSettings, trainer: Trainer
) -> tuple[TrainingRun, dict[int, Vector]]:
    examples, last = task.examples, max(steps)
    trainer.begin(task.vector)
    vectors, losses = {0: task.vector}, []
    held_out = {"0": trainer.loss(examples.held_out)}
    seconds = 0.0
    for batch in plan_batches(len(examples.training), settings.batch_size, last, settings.seed):
        started = time.perf_counter()
        losses.append(trainer.step([examples.training[place] for place in batch]))
        seconds += time.perf_counter() - started
        if trainer.steps in steps:
            vectors[trainer.steps] = trainer.vector()
        if trainer.steps in steps or is_checked(trainer.steps, last):
            held_out[str(trainer.steps)] = trainer.loss(examples.held_out)
    return TrainingRun(key, tuple(losses), held_out, seconds), vectors


def run_path(bank: AdapterBank, key: str) -> Path:
    """Return the file that a run is kept in."""
    return bank.path / FOLDER / f"{key[:32]}.json"


def store_run(bank: AdapterBank, run: TrainingRun) -> None:
    """Keep a run in the bank's folder, with a hash of what it says."""
    path = run_path(bank, run.key)
    path.parent.mkdir(exist_ok=True)
    content = asdict(run)
    write_whole(path, json.dumps({**content, "sha256": _sha256(content)}, allow_nan=False))


def stored_run(bank: AdapterBank, key: str) -> TrainingRun | None:
    """Return a run that is kept, or None. Raises BankFormatError if it is damaged."""
    path = run_path(bank, key)
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = parse_object(path.read_text(encoding="utf-8"))
        stated = content.pop("sha256")
        if stated != _sha256(content) or content["key"] != key:
            raise ValueError("its checksum is another")
        return TrainingRun(**content | {"losses": tuple(content["losses"])})
    except (ValueError, KeyError, TypeError) as error:
        raise BankFormatError(
            f"{path}: expected a training run, found something else ({one_line(error)}); delete the file, and run the "
            "command again"
        ) from error


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
