"""Runs of training in this process, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bankdb.bank import AdapterBank
from bankdb.progress import Progress
from compute.cluster.machine import core_count
from compute.curves.training import Found, TrainingJob, train_and_answer
from compute.evaluation.adapters import adapter_tensors
from compute.finetuning.start import bank_form
from compute.finetuning.trainer import Trainer, Vector
from compute.generation.generate import chosen_device, load_generator, load_model, threads_of_torch
from compute.generation.machine import Machine


class TrainingHere:
    """The base model, loaded into this process to answer, and once more to be trained on.

    Parameters
    ----------
    machine
        Where both are, and how the base model answers.
    dtype
        Of the base model while it is trained on.
    """

    def __init__(
        self,
        bank: AdapterBank,
        folder: Path,
        machine: Machine,
        dtype: str,
        learning_rate: float,
    ) -> None:
        self._bank, self._folder, self._machine = bank, folder, machine
        self._dtype, self._rate = dtype, learning_rate

    def found(self, jobs: Sequence[TrainingJob], progress: Progress) -> Iterator[tuple[TrainingJob, Found]]:
        """Yield what each job finds as it comes."""
        import torch

        bank, machine = self._bank, self._machine
        progress.begin("load the base model, to answer and to train", 1)
        generator = load_generator(
            self._folder,
            bank.layout,
            bank.tokenizer,
            device=machine.device,
            dtype=machine.dtype,
            batch_size=machine.batch_size,
        )
        model = load_model(self._folder, getattr(torch, self._dtype)).to(chosen_device(machine.device))
        trainer = Trainer(model, bank_form(bank), bank.record.task_type, self._rate)
        progress.end()
        progress.begin("train and answer, runs", len(jobs))
        with threads_of_torch(machine.threads or core_count()):
            for job in jobs:
                for one in train_and_answer(job.plan, self._start(job), trainer, generator):
                    yield job, one
                progress.advance()
        progress.end()

    def _start(self, job: TrainingJob) -> Vector | None:
        if job.adapter is None:
            return None
        return self._bank.layout.flatten(adapter_tensors(self._bank, job.adapter)[0])
