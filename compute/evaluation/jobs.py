"""What is not kept yet is generated, each piece once, and kept as it is done: a killed run goes on there."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.datasets.held_out import HeldOut
from bankdb.errors import DatasetError
from bankdb.progress import Progress
from bankdb.records import GenerationKey, GenerationRecord
from compute.cluster.machine import core_count
from compute.evaluation.adapters import adapter_tensors
from compute.evaluation.systems import EvaluatedAdapter
from compute.generation.generate import Answers, Generator, load_generator, threads_of_torch
from compute.generation.prompts import Prompts, encode_prompts

_REPLICA_BYTES = 2**30
"""Most bytes that the adapted weights of all threads may take together."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One adapter, or None for the base model, with the test examples of one target."""

    key: GenerationKey
    target: str
    split: HeldOut
    adapter: EvaluatedAdapter | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how answers are generated; nothing of it but `dtype` determines them.

    Attributes
    ----------
    device
        `auto`, `cpu` or `cuda`.
    dtype
        Of the base model, and what merged weights are rounded to.
    batch_size
        Prompts of a batch; None chooses it by their lengths.
    threads
        Cores to use on a CPU; None is all.
    """

    device: str = "auto"
    dtype: str = "float32"
    batch_size: int | None = None
    threads: int | None = None


def generate_missing(
    bank: AdapterBank, jobs: Sequence[Job], folder: Path, machine: Machine, progress: Progress
) -> dict[str, str]:
    """Generate what the bank does not keep yet, and keep it; the model is loaded only if there is anything.

    Returns
    -------
    Targets that could not be answered, with the reason.
    """
    missing = {job.key: job for job in jobs if bank.generations.find(job.key) is None}
    if not missing:
        return {}
    progress.begin("load the base model", 1)
    generator = load_generator(
        folder,
        bank.layout,
        bank.tokenizer,
        device=machine.device,
        dtype=machine.dtype,
        batch_size=machine.batch_size,
    )
    progress.end()
    prompts, refused = _prompts(bank, generator, list(missing.values()))
    ready = [job for job in missing.values() if job.key.test_sha256 in prompts]
    if ready:
        _Run(bank, prompts, progress).run(ready, generator, machine)
    return {job.target: refused[job.key.test_sha256] for job in jobs if job.key.test_sha256 in refused}


def _prompts(
    bank: AdapterBank, generator: Generator, jobs: Sequence[Job]
) -> tuple[dict[str, Prompts], dict[str, str]]:
    """Tokenize each test split, by its hash; the second are those that cannot be answered, with the reason."""
    prompts: dict[str, Prompts] = {}
    refused: dict[str, str] = {}
    for job in {job.key.test_sha256: job for job in jobs}.values():
        try:
            encoded = encode_prompts(bank.tokenizer, job.split, job.target)
            generator.check_length(encoded, job.target)
            prompts[job.key.test_sha256] = encoded
        except DatasetError as error:
            refused[job.key.test_sha256] = str(error)
    return prompts, refused


class _Run:
    """Jobs on threads, each with a model of its own that shares every weight but the adapted ones."""

    def __init__(self, bank: AdapterBank, prompts: dict[str, Prompts], progress: Progress) -> None:
        self._bank = bank
        self._prompts = prompts
        self._progress = progress
        self._free: queue.SimpleQueue[Generator] = queue.SimpleQueue()

    def run(self, jobs: Sequence[Job], generator: Generator, machine: Machine) -> None:
        """Run them all; the caller's thread alone writes the database."""
        threads = machine.threads or core_count()
        on_cpu = generator.adapted.model.device.type == "cpu"
        fits = threads * generator.adapted.adapted_bytes <= _REPLICA_BYTES
        workers = min(threads, len(jobs)) if on_cpu and fits else 1
        generators = [generator, *(generator.replica() for _ in range(workers - 1))]
        for one in generators:
            self._free.put(one)
        self._progress.begin("generate, examples", sum(len(job.split) for job in jobs))
        # A thread for each model and one core for each thread: small operations do not gain by sharing.
        with threads_of_torch(max(1, threads // workers)), ThreadPoolExecutor(workers) as pool:
            try:
                self._collect(jobs, pool, workers)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self._progress.end()

    def _collect(self, jobs: Sequence[Job], pool: ThreadPoolExecutor, workers: int) -> None:
        running: dict[Future[Answers], Job] = {}
        for job in jobs:
            running[pool.submit(self._answer, job)] = job
            if len(running) > workers:
                self._keep(running)
        while running:
            self._keep(running)

    def _keep(self, running: dict[Future[Answers], Job]) -> None:
        """Wait for the next that is done, and store it."""
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        # What was answered is kept before the error of another is raised.
        for future in sorted(done, key=lambda one: one.exception() is not None):
            job, answers = running.pop(future), future.result()
            self._bank.generations.keep(
                GenerationRecord(job.key, answers.texts, self._of(job).new_tokens, answers.seconds)
            )
            self._progress.advance(len(job.split))

    def _answer(self, job: Job) -> Answers:
        generator = self._free.get()
        try:
            prompts = self._of(job)
            if job.adapter is None:
                return generator.answer(prompts)
            tensors, scaling = adapter_tensors(self._bank, job.adapter)
            return generator.answer(prompts, tensors, scaling)
        finally:
            self._free.put(generator)

    def _of(self, job: Job) -> Prompts:
        return self._prompts[job.key.test_sha256]
