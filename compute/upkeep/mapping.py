"""Pieces of work that `bankdb` hands out, as tasks of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bankdb.errors import PlanError
from bankdb.progress import Progress
from compute.budget import mebibytes
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks


@dataclass(frozen=True, slots=True)
class ClusterMapper:
    """Runs pieces on the workers: see `bankdb.progress.Mapper`.

    Attributes
    ----------
    memory
        Bytes that the largest piece uses.
    """

    cluster: Cluster
    progress: Progress
    memory: int

    def __post_init__(self) -> None:
        if self.memory > self.cluster.task_budget:
            raise PlanError(
                f"a task needs {mebibytes(self.memory)}, its share of the memory is "
                f"{mebibytes(self.cluster.task_budget)}; raise --memory, or use fewer workers"
            )

    def __call__(
        self, stage: str, function: Callable[..., Any], pieces: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, Any]]:
        """Yield the name and the result of each piece as they come."""
        return run_tasks(self.cluster, stage, function, pieces, self.progress, memory=self.memory)
