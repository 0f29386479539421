"""Runs of training by the workers of a cluster: a task is one target from one start.

A task is sent token ids and what its start is combined from, and returns losses and token ids: the bank's rows and the
base model are found by path or URL, the database and the tokenizer are the client's alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.remote import located
from bankdb.bank import AdapterBank
from bankdb.progress import Progress
from compute.cluster.options import Cluster
from compute.cluster.tasks import MadeWhenSent, run_tasks
from compute.combination.tensors import AdapterParts, BankParts, tensors_of
from compute.curves.training import Found, RunPlan, TrainingJob, train_and_answer
from compute.evaluation.adapters import parts_of
from compute.evaluation.answering.workers import (
    answering_bytes,
    check_share,
    naming_worker,
    task_gpus,
    task_threads,
    workers_told,
)
from compute.finetuning.kept_trainer import TrainerToKeep, lent_trainer
from compute.finetuning.resources import needed_bytes
from compute.finetuning.start import bank_form
from compute.generation.generate import threads_of_torch
from compute.generation.kept_model import ModelToKeep, lent_generator
from compute.generation.machine import Machine
from compute.generation.model_size import model_size


class TrainingByWorkers:
    """The base model in the workers of a cluster, to answer, and once more to be trained on.

    Parameters
    ----------
    fingerprint
        Of the base model's files: see `model_fingerprint`.
    machine
        Where both are, and how the base model answers.
    dtype
        Of the base model while it is trained on.
    """

    def __init__(
        self,
        bank: AdapterBank,
        folder: Path,
        fingerprint: str,
        machine: Machine,
        dtype: str,
        learning_rate: float,
        cluster: Cluster,
    ) -> None:
        self._bank, self._folder, self._machine, self._cluster = bank, folder, machine, cluster
        model = ModelToKeep.of(folder, fingerprint, bank.layout, bank.tokenizer, machine)
        self._trainer = TrainerToKeep(model, dtype, bank_form(bank), bank.record.task_type, learning_rate)

    def found(self, jobs: Sequence[TrainingJob], progress: Progress) -> Iterator[tuple[TrainingJob, Found]]:
        """Yield what each job finds as it comes.

        Raises
        ------
        PlanError
            A worker's share of the memory does not hold the model twice, and a batch of examples.
        ComputeError
            A worker finds no such base model, or a task failed.
        """
        cluster, machine = self._cluster, self._machine
        left = cluster.task_budget - self._needed([job.plan for job in jobs])
        gpus, threads = task_gpus(machine, cluster), task_threads(machine, cluster)
        progress.note(f"trained and answered by {workers_told(gpus, cluster.slots, threads)}")
        parts, store = BankParts(self._bank), str(self._bank.store.path.absolute())
        named = {f"{job.plan.target} from {job.start}": job for job in jobs}

        def arguments(name: str) -> tuple[object, ...]:
            job = named[name]
            start = None if job.adapter is None else parts_of(parts, job.adapter)
            return self._trainer, store, start, job.plan, threads, left

        tasks = MadeWhenSent(named, arguments)
        for name, found in run_tasks(cluster, "train and answer", run_there, tasks, progress, gpus=gpus):
            yield from ((named[name], one) for one in found)

    def _needed(self, plans: Sequence[RunPlan]) -> int:
        """Return the bytes, roughly, that a process needs for both. Raises PlanError if its share is less."""
        trainer, size = self._trainer, model_size(self._folder)
        model, labelled = trainer.model, [example for plan in plans for example in plan.labelled]
        most = max(plan.batch_size for plan in plans)
        needed = needed_bytes(size, model.layout.size, labelled, most, trainer.dtype)
        prompts = [plan.prompts for plan in plans]
        needed += answering_bytes(size, model.layout, model.dtype, model.batch_size, prompts)
        check_share(
            "train and answer",
            needed,
            self._cluster.task_budget,
            "the base model to answer and to train on, with a batch of examples",
            "a smaller --train-batch-size, or --train-dtype bfloat16",
        )
        return needed


def run_there(
    trainer: TrainerToKeep,
    store: str,
    parts: AdapterParts | None,
    plan: RunPlan,
    threads: int,
    memory: int,
) -> list[Found]:
    """Return all that a run finds; runs in a worker.

    Raises
    ------
    ComputeError
        This worker does not find the client's base model, or a loss or a gradient is not finite.
    AdapterError, BankFormatError
        The adapter does not fit the model, or a row of the bank is damaged.
    """
    with (
        naming_worker(),
        lent_generator(trainer.model) as answering,
        lent_trainer(trainer) as training,
        threads_of_torch(threads),
    ):
        start = None
        if parts is not None:
            tensors, _ = tensors_of(parts, AdapterStore(located(store)), memory, threads)
            start = trainer.model.layout.flatten(tensors)
        return list(train_and_answer(plan, start, training, answering))
