"""Answers of the base model and of each adapter to the same test examples; kept in a bank where there is one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bankdb.bank import AdapterBank
from bankdb.datasets.held_out import HeldOut
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import AdapterError
from bankdb.peft.layout import AdapterLayout
from bankdb.progress import Progress
from bankdb.records import GenerationKey, GenerationRecord
from compute.cluster.machine import core_count
from compute.evaluation.adapters import BASE_SHA256
from compute.generation.adapted_model import AdaptedModel
from compute.generation.adapters import GivenAdapter
from compute.generation.generate import Answers, Generator, answer_ends, answering_model, threads_of_torch
from compute.generation.machine import Machine
from compute.generation.prompts import Prompts, encode_prompts
from compute.generation.settings import answer_settings

_COPIES_BYTES = 2**30
"""Most bytes that copies of adapted weights may take together, where adapters answer side by side."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What is answered, and by what.

    Attributes
    ----------
    adapters
        By the names of those that answer; None is the base model.
    split, name
        The test examples, and what messages call them.
    """

    adapters: Mapping[str, GivenAdapter | None]
    split: HeldOut
    name: str

    def hash_of(self, name: str) -> str:
        """What an adapter's answers are kept under."""
        adapter = self.adapters[name]
        return BASE_SHA256 if adapter is None else adapter.sha256


@dataclass(frozen=True, slots=True, eq=False)
class KeptAnswers:
    """Answers that are found again in a bank, or nowhere.

    Attributes
    ----------
    bank
        None keeps nothing.
    settings
        Hash of what determines answers beside adapter and examples.
    """

    bank: AdapterBank | None
    settings: str = ""

    @classmethod
    def of(cls, bank: AdapterBank | None, folder: Path, dtype: str, progress: Progress) -> KeptAnswers:
        """Return those of a bank, under the same settings as its evaluations; nothing of one that may only be read."""
        if bank is None or bank.read_only:
            return cls(None)
        fingerprint, files = bank.record.tokenizer_fingerprint, bank.path / "tokenizer"
        return cls(bank, answer_settings(folder, fingerprint, files, dtype, progress).sha256)

    def find(self, asked: Asked, name: str) -> tuple[str, ...] | None:
        """Return the answers of one adapter; None where there are none."""
        found = None if self.bank is None else self.bank.generations.find(self._key(asked, name))
        return None if found is None else found.texts

    def keep(self, asked: Asked, name: str, answers: Answers, new_tokens: int) -> None:
        """Keep what was just answered."""
        if self.bank is not None:
            key = self._key(asked, name)
            self.bank.generations.keep(GenerationRecord(key, answers.texts, new_tokens, answers.seconds))

    def _key(self, asked: Asked, name: str) -> GenerationKey:
        return GenerationKey(asked.hash_of(name), asked.split.sha256, self.settings)


def all_answers(
    asked: Asked,
    folder: Path,
    tokenizer: BankTokenizer,
    machine: Machine,
    kept: KeptAnswers,
    progress: Progress,
) -> dict[str, tuple[str, ...]]:
    """Return the answers of all, by name; the model is loaded only if there is anything to generate.

    Raises
    ------
    AdapterError
        An adapter does not fit the base model; nothing was generated then.
    DatasetError
        The base model cannot answer the examples.
    """
    found = {name: kept.find(asked, name) for name in asked.adapters}
    missing = [name for name, texts in found.items() if texts is None]
    texts = {name: answers for name, answers in found.items() if answers is not None}
    if not missing:
        return texts
    progress.begin("load the base model", 1)
    model = answering_model(folder, device=machine.device, dtype=machine.dtype)
    progress.end()
    run = _Run(model, tokenizer, answer_ends(folder, tokenizer), machine)
    prompts = encode_prompts(tokenizer, asked.split, asked.name)
    run.generator(None).check_prompts(prompts, asked.name)
    adapted = max(run.check_fits(name, asked.adapters[name]) for name in missing)
    progress.begin("generate, examples", len(missing) * len(asked.split))
    for name, answers in run.each(asked, missing, prompts, adapted, progress):
        kept.keep(asked, name, answers, prompts.new_tokens)
        texts[name] = answers.texts
    progress.end()
    return texts


class _Run:
    """One base model in memory, and adapters that answer side by side, each in a copy of the weights it changes."""

    def __init__(self, model: Any, tokenizer: BankTokenizer, ends: frozenset[int], machine: Machine) -> None:
        self._model, self._tokenizer, self._ends, self._machine = model, tokenizer, ends, machine
        self._lock = threading.Lock()

    def generator(self, layout: AdapterLayout | None, *, copied: bool = False) -> Generator:
        """Return what answers with adapters of one layout."""
        adapted = AdaptedModel(self._model, layout)
        adapted = adapted.replica() if copied else adapted
        return Generator(adapted, self._tokenizer, self._ends, self._machine.batch_size)

    def check_fits(self, name: str, adapter: GivenAdapter | None) -> int:
        """Return the bytes of the weights that an adapter changes. Raises AdapterError if it does not fit."""
        try:
            return AdaptedModel(self._model, None if adapter is None else adapter.layout).adapted_bytes
        except AdapterError as error:
            raise AdapterError(f"{name}: {error}") from error

    def each(
        self, asked: Asked, names: Sequence[str], prompts: Prompts, adapted: int, progress: Progress
    ) -> Any:
        """Yield the answers of each as they come; the caller's thread alone is between two of them."""
        threads = self._machine.threads or core_count()
        # Beside its copy, each holds the base model's own weights, which it puts back.
        fits = 2 * adapted * min(threads, len(names)) <= _COPIES_BYTES
        workers = min(threads, len(names)) if self._model.device.type == "cpu" and fits else 1

        def answer(name: str) -> tuple[str, Answers]:
            adapter = asked.adapters[name]
            with self._lock:
                generator = self.generator(None if adapter is None else adapter.layout, copied=workers > 1)
            try:
                tensors = None if adapter is None else adapter.tensors()
                scaling = 1.0 if adapter is None else adapter.scaling
                return name, generator.answer(prompts, tensors, scaling, done=progress.advance)
            finally:
                generator.adapted.restore()

        with threads_of_torch(max(1, threads // workers)), ThreadPoolExecutor(workers) as pool:
            running: list[Future[tuple[str, Answers]]] = [pool.submit(answer, name) for name in names]
            try:
                # What was answered is kept before the error of another is raised.
                failed = None
                for future in as_completed(running):
                    failed = failed or future.exception()
                    if future.exception() is None:
                        yield future.result()
                if failed is not None:
                    raise failed
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
