"""Answers by threads of this process, each with a model of its own that shares every weight but the adapted ones."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.progress import Progress
from compute.cluster.machine import core_count
from compute.combination.tensors import BankParts, tensors_of
from compute.evaluation.adapters import parts_of
from compute.evaluation.answering.job import Job, Refused
from compute.generation.generate import Answers, Generator, load_generator, threads_of_torch
from compute.generation.machine import Machine
from compute.generation.prompts import Prompts

_REPLICA_BYTES = 2**30
"""Most bytes that the adapted weights of all threads may take together."""


class AnswersHere:
    """The base model, loaded into this process."""

    def __init__(self, bank: AdapterBank, folder: Path, machine: Machine, progress: Progress) -> None:
        self._store, self._parts, self._machine = bank.store, BankParts(bank), machine
        progress.begin("load the base model", 1)
        self._generator = load_generator(
            folder,
            bank.layout,
            bank.tokenizer,
            device=machine.device,
            dtype=machine.dtype,
            batch_size=machine.batch_size,
        )
        progress.end()
        self._free: queue.SimpleQueue[Generator] = queue.SimpleQueue()

    def check(self, prompts: Prompts, name: str) -> None:
        """Raise DatasetError for prompts that the model has no room for."""
        self._generator.check_prompts(prompts, name)

    def answered(
        self, jobs: Sequence[Job], prompts: Mapping[str, Prompts], progress: Progress
    ) -> Iterator[tuple[Job, Answers | Refused]]:
        """Yield the answers to each job as they come."""
        adapted = self._generator.adapted
        threads = self._machine.threads or core_count()
        on_cpu = adapted.model.device.type == "cpu"
        fits = threads * adapted.adapted_bytes <= _REPLICA_BYTES
        workers = min(threads, len(jobs)) if on_cpu and fits else 1
        self._free = queue.SimpleQueue()
        for one in [self._generator, *(self._generator.replica() for _ in range(workers - 1))]:
            self._free.put(one)
        progress.begin("generate, examples", sum(len(job.split) for job in jobs))
        # A thread for each model and one core for each thread: small operations do not gain by sharing.
        with threads_of_torch(max(1, threads // workers)), ThreadPoolExecutor(workers) as pool:
            try:
                yield from self._collected(jobs, prompts, pool, workers, progress)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        progress.end()

    def _collected(
        self,
        jobs: Sequence[Job],
        prompts: Mapping[str, Prompts],
        pool: ThreadPoolExecutor,
        workers: int,
        progress: Progress,
    ) -> Iterator[tuple[Job, Answers]]:
        running: dict[Future[Answers], Job] = {}
        waiting = iter(jobs)
        while True:
            for job in waiting:
                running[pool.submit(self._answer, job, prompts[job.key.test_sha256])] = job
                if len(running) > workers:
                    break
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            # What was answered is kept before the error of another is raised.
            for future in sorted(done, key=lambda one: one.exception() is not None):
                job, answers = running.pop(future), future.result()
                yield job, answers
                progress.advance(len(job.split))

    def _answer(self, job: Job, prompts: Prompts) -> Answers:
        generator = self._free.get()
        try:
            if job.adapter is None:
                return generator.answer(prompts)
            tensors, scaling = tensors_of(parts_of(self._parts, job.adapter), self._store)
            return generator.answer(prompts, tensors, scaling)
        finally:
            self._free.put(generator)
