"""What is not kept yet is generated, each piece once, and kept as it is done: a killed run goes on there."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
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
from compute.generation.machine import Machine as Machine
from compute.generation.prompts import Prompts, encode_prompts
from compute.generation.settings import AnswerSettings, earlier_settings

# How many splits, beside the base model's, are answered again to see whether kept answers are the model's.
_CHECKED = 4

_REPLICA_BYTES = 2**30
"""Most bytes that the adapted weights of all threads may take together."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One adapter, or None for the base model, with the test examples of one target."""

    key: GenerationKey
    target: str
    split: HeldOut
    adapter: EvaluatedAdapter | None


def generate_missing(
    bank: AdapterBank,
    jobs: Sequence[Job],
    folder: Path,
    settings: AnswerSettings,
    machine: Machine,
    progress: Progress,
) -> dict[str, str]:
    """Generate what the bank does not keep yet, and keep it; the model is loaded only if there is anything.

    What version 0.1.0 kept is used where it is of this model: see `_Earlier`.

    Returns
    -------
    Targets that could not be answered, with the reason.
    """
    missing = _missing(bank, jobs)
    if not missing:
        return {}
    earlier = _Earlier(bank, missing, *earlier_settings(folder, settings), settings.sha256)
    if earlier.is_certain():
        progress.note(earlier.adopt("the model and its settings are the same, byte for byte"))
        missing = _missing(bank, jobs)
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
    prompts, refused = _prompts(bank, generator, missing)
    run = _Run(bank, prompts, progress)
    if any(job.key.test_sha256 in prompts for job in earlier.jobs):
        progress.note(earlier.check(run, generator))
        missing = _missing(bank, missing)
    ready = [job for job in missing if job.key.test_sha256 in prompts]
    if ready:
        run.run(ready, generator, machine)
    return {job.target: refused[job.key.test_sha256] for job in jobs if job.key.test_sha256 in refused}


def _missing(bank: AdapterBank, jobs: Sequence[Job]) -> list[Job]:
    """Return a job for each key of which no answers are kept."""
    return list({job.key: job for job in jobs if bank.generations.find(job.key) is None}.values())


class _Earlier:
    """Answers that version 0.1.0 kept: it knew the model by samples, and not which tokens end an answer.

    They are used where those samples were all of the model's bytes and nothing else ends an answer than its
    configuration and tokenizer say; else where some of them, answered again, come out the same.

    Attributes
    ----------
    jobs
        Those that it answered.
    """

    def __init__(
        self, bank: AdapterBank, missing: Sequence[Job], earlier: str, certain: bool, settings: str
    ) -> None:
        self._bank = bank
        self._sha256, self._certain, self._settings = earlier, certain, settings
        self.jobs = [job for job in missing if bank.generations.find(self._key(job)) is not None]

    def is_certain(self) -> bool:
        """Whether there are any, and they are of this model."""
        return bool(self.jobs) and self._certain

    def adopt(self, reason: str) -> str:
        """Keep them under the settings of now; return a line that says why."""
        number = self._bank.generations.adopt(self._sha256, self._settings)
        self.jobs = []
        return f"{number} answered splits that version 0.1.0 kept are used: {reason}"

    def check(self, run: _Run, generator: Generator) -> str:
        """Answer some of them again, and adopt all if nothing differs; return a line that says what was found."""
        ready = [job for job in self.jobs if run.knows(job)]
        base = [job for job in ready if job.adapter is None][:1]
        adapted = [job for job in ready if job.adapter is not None]
        checked = [*base, *adapted[:: max(1, len(adapted) // _CHECKED)][:_CHECKED]]
        for number, job in enumerate(checked, 1):
            kept = self._bank.generations.find(self._key(job))
            if kept is not None and kept.texts != run.answer(job, generator).texts:
                return (
                    f"the answers that version 0.1.0 kept are not used, all are generated anew: of {number} "
                    "answered splits of them one comes out otherwise"
                )
        return self.adopt(f"of {len(checked)} that were answered again, every answer is the same")

    def _key(self, job: Job) -> GenerationKey:
        return replace(job.key, settings_sha256=self._sha256)


def _prompts(
    bank: AdapterBank, generator: Generator, jobs: Sequence[Job]
) -> tuple[dict[str, Prompts], dict[str, str]]:
    """Tokenize each test split, by its hash; the second are those that cannot be answered, with the reason."""
    prompts: dict[str, Prompts] = {}
    refused: dict[str, str] = {}
    for job in {job.key.test_sha256: job for job in jobs}.values():
        try:
            encoded = encode_prompts(bank.tokenizer, job.split, job.target)
            generator.check_prompts(encoded, job.target)
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

    def knows(self, job: Job) -> bool:
        """Whether its prompts can be answered."""
        return job.key.test_sha256 in self._prompts

    def answer(self, job: Job, generator: Generator) -> Answers:
        """Answer one, with a model that no other thread uses."""
        if job.adapter is None:
            return generator.answer(self._of(job))
        tensors, scaling = adapter_tensors(self._bank, job.adapter)
        return generator.answer(self._of(job), tensors, scaling)

    def _answer(self, job: Job) -> Answers:
        generator = self._free.get()
        try:
            return self.answer(job, generator)
        finally:
            self._free.put(generator)

    def _of(self, job: Job) -> Prompts:
        return self._prompts[job.key.test_sha256]
