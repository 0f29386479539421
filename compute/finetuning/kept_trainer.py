"""The trainers of a process that trains again and again: a base model each, loaded once, and lent to one thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from compute.combination.delta_shapes import DeltaForm
from compute.finetuning.trainer import Trainer
from compute.generation.generate import chosen_device, load_model
from compute.generation.kept_model import ModelToKeep, checked_folder

_turn = threading.Lock()
_kept: _Kept | None = None


@dataclass(frozen=True, slots=True)
class TrainerToKeep:
    """A trainer as any process can make it that finds the base model's files.

    Attributes
    ----------
    model
        Files and device; of nothing else of it.
    dtype
        Of the base model while it is trained on.
    form, task_type, learning_rate
        See `Trainer`.
    """

    model: ModelToKeep
    dtype: str
    form: DeltaForm
    task_type: str | None
    learning_rate: float


@dataclass(slots=True)
class _Kept:
    asked: TrainerToKeep
    free: queue.SimpleQueue[Trainer] = field(default_factory=queue.SimpleQueue)


@contextlib.contextmanager
def lent_trainer(asked: TrainerToKeep) -> Iterator[Trainer]:
    """Lend a trainer of this process to one thread; a thread more has one of its own, with a base model of its own.

    Raises
    ------
    ModelNotFoundError
        This process finds no such files, or others.
    ParameterError, BankError, AdapterError
        See `load_model` and `Trainer`.
    """
    kept = _kept_for(asked)
    try:
        trainer = kept.free.get_nowait()
    except queue.Empty:
        trainer = _loaded(asked)
    try:
        yield trainer
    finally:
        kept.free.put(trainer)


def _kept_for(asked: TrainerToKeep) -> _Kept:
    global _kept
    with _turn:
        if _kept is None or _kept.asked != asked:
            _kept = _Kept(asked)  # those of another are gone before one is loaded: there may be room for one
        return _kept


def _loaded(asked: TrainerToKeep) -> Trainer:
    import torch

    model = load_model(checked_folder(asked.model), getattr(torch, asked.dtype))
    model = model.to(chosen_device(asked.model.device))
    return Trainer(model, asked.form, asked.task_type, asked.learning_rate)
