"""The base model of a process that answers again and again: loaded once, and kept until another is asked for."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import BankError
from bankdb.peft.layout import AdapterLayout
from compute.generation.adapted_model import AdaptedModel
from compute.generation.base_model import model_fingerprint
from compute.generation.generate import Generator, answer_ends, answering_model
from compute.generation.machine import Machine

_turn = threading.Lock()
_kept: _Kept | None = None


class ModelNotFoundError(BankError):
    """A process does not find the base model that it is to load."""


@dataclass(frozen=True, slots=True)
class ModelToKeep:
    """A base model as any process can load it that finds its files.

    Attributes
    ----------
    folder
        Absolute.
    fingerprint
        See `model_fingerprint`: files that differ are refused.
    layout
        Of the adapters.
    ends
        Token ids that end an answer.
    device, dtype, batch_size
        See `Machine`.
    """

    folder: str
    fingerprint: str
    layout: AdapterLayout
    ends: frozenset[int]
    device: str = "auto"
    dtype: str = "float32"
    batch_size: int | None = None

    @classmethod
    def of(
        cls, folder: Path, fingerprint: str, layout: AdapterLayout, tokenizer: BankTokenizer, machine: Machine
    ) -> ModelToKeep:
        """Return the base model in a folder, whose answers end as the tokenizer and its own settings say."""
        where = machine.device, machine.dtype, machine.batch_size
        return cls(str(folder.absolute()), fingerprint, layout, answer_ends(folder, tokenizer), *where)


@dataclass(slots=True)
class _Kept:
    asked: ModelToKeep
    first: Generator
    free: queue.SimpleQueue[Generator] = field(default_factory=queue.SimpleQueue)


@contextlib.contextmanager
def lent_generator(asked: ModelToKeep) -> Iterator[Generator]:
    """Lend the model of this process to one thread; its answers are token ids alone.

    On a CPU, a thread more has a model of its own that shares every weight but the adapted ones; a GPU's is lent to one
    after another.

    Raises
    ------
    ModelNotFoundError
        This process finds no such files, or others.
    ParameterError, BankError, AdapterError
        See `load_generator`.
    """
    kept = _loaded(asked)
    generator = _free(kept)
    try:
        yield generator
    finally:
        kept.free.put(generator)


def _loaded(asked: ModelToKeep) -> _Kept:
    global _kept
    with _turn:
        if _kept is None or _kept.asked != asked:
            _kept = None  # before another is loaded: there may be room for one
            model = answering_model(checked_folder(asked), device=asked.device, dtype=asked.dtype)
            generator = Generator(AdaptedModel(model, asked.layout), None, asked.ends, asked.batch_size)
            _kept = _Kept(asked, generator)
            _kept.free.put(generator)
        return _kept


def checked_folder(asked: ModelToKeep) -> Path:
    """Return the base model's folder, if this process finds the files there that were asked for.

    Raises
    ------
    ModelNotFoundError
        This process finds no such files, or others.
    """
    folder = Path(asked.folder)
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"expected the base model in {folder}, found no such folder; keep it in one that all hosts mount at the "
            "same path, and pass that as --model"
        )
    if model_fingerprint(folder) != asked.fingerprint:
        raise ModelNotFoundError(
            f"expected the client's base model in {folder}, found other files; copy the client's there"
        )
    return folder


def _free(kept: _Kept) -> Generator:
    if kept.first.adapted.model.device.type != "cpu":
        return kept.free.get()
    with _turn:
        try:
            return kept.free.get_nowait()
        except queue.Empty:
            return kept.first.replica()
