"""What is to be answered by what, and who answers it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bankdb.datasets.held_out import HeldOut
from bankdb.progress import Progress
from bankdb.records import GenerationKey
from compute.evaluation.systems import EvaluatedAdapter
from compute.generation.generate import Answers
from compute.generation.prompts import Prompts


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One adapter, or None for the base model, with the test examples of one target."""

    key: GenerationKey
    target: str
    split: HeldOut
    adapter: EvaluatedAdapter | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a test split cannot be answered."""

    reason: str


class Answering(Protocol):
    """A base model that answers jobs, wherever it is."""

    def check(self, prompts: Prompts, name: str) -> None:
        """Raise DatasetError for prompts that the model has no room for, where that is known by now."""

    def answered(
        self, jobs: Sequence[Job], prompts: Mapping[str, Prompts], progress: Progress
    ) -> Iterator[tuple[Job, Answers | Refused]]:
        """Yield the answers to each job as they come.

        Parameters
        ----------
        prompts
            Of each job's test split, by its hash.
        """
