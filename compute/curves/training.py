"""A training run, and the answers after some of its steps: a base model that trains and one that answers, no bank."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bankdb.errors import DatasetError
from bankdb.progress import Progress
from bankdb.records import GenerationKey
from compute.curves.runs import TrainingRun
from compute.evaluation.answering.job import Refused
from compute.evaluation.systems import EvaluatedAdapter
from compute.finetuning.examples import TrainingExamples
from compute.finetuning.schedule import is_checked, plan_batches
from compute.finetuning.trainer import Trainer, Vector, untrained
from compute.generation.generate import Generator
from compute.generation.labelled import LabelledExample, check_labelled
from compute.generation.prompts import Prompts


@dataclass(frozen=True, slots=True, eq=False)
class RunPlan:
    """All that a run takes beside the models and the adapter that it starts from.

    Attributes
    ----------
    key
        See `TrainingSettings.run_sha256`.
    examples, prompts
        The target's: what is trained on, and what is answered.
    steps
        Numbers of steps, ascending, after which there is an adapter; 0 is the start.
    answered
        Those of them after which it answers.
    batch_size, seed
        Of training; the seed also draws a start that changes nothing.
    scaling
        Of the product of the bank's factors.
    """

    key: str
    target: str
    examples: TrainingExamples
    prompts: Prompts
    steps: tuple[int, ...]
    answered: tuple[int, ...]
    batch_size: int
    seed: int
    scaling: float

    @property
    def labelled(self) -> tuple[LabelledExample, ...]:
        """All examples, those held out last."""
        return (*self.examples.training, *self.examples.held_out)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingJob:
    """A run to do.

    Attributes
    ----------
    start
        What it starts from, as it is shown.
    adapter
        That itself; None is one that changes nothing.
    answers
        What the answers after each of `plan.answered` are kept under.
    """

    plan: RunPlan
    start: str
    adapter: EvaluatedAdapter | None
    answers: Mapping[int, GenerationKey]


@dataclass(frozen=True, slots=True)
class StepAnswers:
    """Token ids of the answer to each prompt after a number of steps, and the seconds they took."""

    step: int
    ids: list[list[int]]
    seconds: float


Found = StepAnswers | TrainingRun | Refused
"""What a run yields: answers after some steps, and the run at last; or why there are none."""


class Training(Protocol):
    """Base models that do runs, wherever they are."""

    def found(self, jobs: Sequence[TrainingJob], progress: Progress) -> Iterator[tuple[TrainingJob, Found]]:
        """Yield what each job finds as it comes."""


def train_and_answer(
    plan: RunPlan, start: Vector | None, trainer: Trainer, generator: Generator
) -> Iterator[Found]:
    """Train to the last of the steps, let the adapter after some of them answer, and yield the run at last.

    Parameters
    ----------
    start
        float32, shape (p,), in the trainer's layout and the plan's scaling; None changes nothing.

    Raises
    ------
    ComputeError
        A loss or a gradient is not finite.
    """
    try:
        check_labelled(generator.adapted.model, plan.labelled, plan.target)
    except DatasetError as error:
        yield Refused(str(error))
        return
    run, vectors = _trained(plan, untrained(trainer.layout, plan.seed) if start is None else start, trainer)
    for step in plan.answered:
        begin = time.perf_counter()
        # Bit by bit the base model's, not nearly: its answers are kept as those of any evaluation.
        tensors = None if step == 0 and start is None else trainer.layout.unflatten(vectors[step])
        generator.adapted.exchange(tensors, plan.scaling)
        yield StepAnswers(step, generator.answer_ids(plan.prompts), time.perf_counter() - begin)
    yield run


def _trained(plan: RunPlan, start: Vector, trainer: Trainer) -> tuple[TrainingRun, dict[int, Vector]]:
    examples, last = plan.examples, max(plan.steps)
    trainer.begin(start)
    vectors, losses = {0: start}, []
    held_out = {"0": trainer.loss(examples.held_out)}
    seconds = 0.0
    for batch in plan_batches(len(examples.training), plan.batch_size, last, plan.seed):
        begin = time.perf_counter()
        losses.append(trainer.step([examples.training[place] for place in batch]))
        seconds += time.perf_counter() - begin
        if trainer.steps in plan.steps:
            vectors[trainer.steps] = trainer.vector()
        if trainer.steps in plan.steps or is_checked(trainer.steps, last):
            held_out[str(trainer.steps)] = trainer.loss(examples.held_out)
    return TrainingRun(plan.key, tuple(losses), held_out, seconds), vectors
