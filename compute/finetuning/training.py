"""The steps of one run: trained from where it stands, looked back on, and kept so that it can go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bankdb.progress import Progress
from compute.finetuning.checkpoints import Checkpoint, Checkpoints
from compute.finetuning.examples import TrainingExamples
from compute.finetuning.options import MOST_STEPS, FinetuneOptions
from compute.finetuning.resources import Reading, most_memory_used
from compute.finetuning.schedule import is_checked, plan_batches
from compute.finetuning.trainer import Trainer, Vector
from compute.generation.labelled import LabelledExample


@dataclass(slots=True)
class Course:
    """How a run went so far.

    Attributes
    ----------
    reading
        How the base model was read.
    steps
        To be done; None until a budget is told in steps.
    losses
        Of each step, on its batch, before it; nats a token of the answers.
    held_out
        Loss on the examples held out, by the number of steps done.
    kept
        Steps after which that was lowest.
    seconds
        Of all steps, and of all losses on the examples held out.
    """

    reading: Reading
    steps: int | None
    losses: list[float]
    held_out: dict[int, float]
    kept: int = 0
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Return it as a checkpoint keeps it."""
        return asdict(self) | {"held_out": list(self.held_out.items())}

    @classmethod
    def of_facts(cls, facts: Any) -> Course:
        """Return it from what a checkpoint kept."""
        return cls(
            Reading(**facts["reading"]),
            facts["steps"],
            list(facts["losses"]),
            {int(step): float(loss) for step, loss in facts["held_out"]},
            facts["kept"],
            facts["seconds"],
        )


def train(
    trainer: Trainer,
    start: Vector,
    examples: TrainingExamples,
    options: FinetuneOptions,
    course: Course,
    kept: Checkpoints,
    checkpoint: Checkpoint | None,
    device: str,
    progress: Progress,
) -> Vector:
    """Train to the end from the start, or from a checkpoint; return the adapter of the lowest held-out loss.

    `course` tells how it went, and is filled in.

    Raises
    ------
    ComputeError
        A loss is not finite.
    OSError
        A checkpoint cannot be written.
    """
    run = _Run(trainer, start, examples, options, course, kept, device, progress)
    if checkpoint is not None:
        run.resume(checkpoint)
    run.run()
    return run.best


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        trainer: Trainer,
        start: Vector,
        examples: TrainingExamples,
        options: FinetuneOptions,
        course: Course,
        kept: Checkpoints,
        device: str,
        progress: Progress,
    ) -> None:
        self._trainer, self._examples, self._options = trainer, examples, options
        self._course, self._kept, self._progress = course, kept, progress
        self._device = device
        self.best = start
        self._checking = 0.0
        self._plan: list[list[int]] = []
        trainer.begin(start)

    def resume(self, checkpoint: Checkpoint) -> None:
        self._trainer.restore(checkpoint.state)
        self.best = checkpoint.best

    def run(self) -> None:
        course, trainer = self._course, self._trainer
        if not course.held_out:
            self._check()
        first, begun = trainer.steps, False
        while course.steps is None or trainer.steps < course.steps:
            taken = self._step()
            if course.steps is None:
                course.steps = self._steps_within(taken)
            if trainer.steps == first + 1:
                self._tell(taken)
                self._progress.begin("train", course.steps)
                self._progress.advance(first)
                begun = True
            self._progress.advance()
            last = trainer.steps == course.steps
            if is_checked(trainer.steps, course.steps):
                self._check()
            if last or self._kept.is_due():
                self._kept.write(Checkpoint(trainer.state(), self.best, course.facts()))
        if begun:
            self._progress.end()

    def _step(self) -> float:
        """Do the next step; return its seconds."""
        batch = self._batch(self._trainer.steps)
        started = time.perf_counter()
        loss = self._trainer.step(batch, self._course.reading.at_once)
        taken = time.perf_counter() - started
        self._course.losses.append(loss)
        self._course.seconds += taken
        return taken

    def _batch(self, step: int) -> list[LabelledExample]:
        examples, options = self._examples.training, self._options
        if step >= len(self._plan):
            # A longer plan begins with every shorter one.
            self._plan = plan_batches(len(examples), options.batch_size, 2 * step + 64, options.seed)
        return [examples[place] for place in self._plan[step]]

    def _check(self) -> None:
        """Compute the loss on the examples held out, and keep the adapter if it is the lowest so far."""
        course, step = self._course, self._trainer.steps
        started = time.perf_counter()
        loss = self._trainer.loss(self._examples.held_out)
        self._checking = time.perf_counter() - started
        course.seconds += self._checking
        course.held_out[step] = loss
        # The fewest steps of equal losses.
        if loss < course.held_out[course.kept]:
            course.kept, self.best = step, self._trainer.vector()

    def _steps_within(self, taken: float) -> int:
        """Return how many steps fit the budget, by what the first took."""
        budget = self._options.budget
        assert budget is not None, "without a budget there is a number of steps"
        each = taken / _padded(self._batch(0))
        spent, steps = self._course.seconds, 1
        while steps < MOST_STEPS:
            batch = self._batch(steps)
            spent += each * _padded(batch)
            spent += self._checking if is_checked(steps + 1, 0) else 0.0
            if spent + self._checking > budget:
                break
            steps += 1
        return steps

    def _tell(self, taken: float) -> None:
        """Tell what a step takes, and how long the others will."""
        course, done = self._course, self._trainer.steps
        assert course.steps is not None, "a budget is told in steps by now"
        each = taken / _padded(self._batch(done - 1))
        left = sum(each * _padded(self._batch(step)) for step in range(done, course.steps))
        checks = sum(is_checked(step, course.steps) for step in range(done, course.steps + 1))
        memory = most_memory_used(self._device) / 2**30
        self._progress.note(
            f"a step takes about {shown_seconds(taken)} and memory is {memory:.1f} GiB; about "
            f"{shown_seconds(left + checks * self._checking)} left for {course.steps - done} steps"
        )


def _padded(batch: Sequence[LabelledExample]) -> int:
    """Tokens of a batch with its padding: what its step costs."""
    return len(batch) * max(len(example.ids) for example in batch)


def shown_seconds(seconds: float) -> str:
    """Return a time as people read it."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
