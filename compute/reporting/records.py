"""What a report shows, as frozen records: no database, no files, nothing to draw with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bankdb.records import AdapterRecord, BankRecord
from compute.curves.records import LearningCurves
from compute.evaluation.bank_sizes import SizeCurve
from compute.evaluation.records import Evaluation
from compute.evaluation.systems import System
from compute.evaluation.tables import Summary
from compute.evaluation.weight_space import WaySummary
from compute.types import FloatArray

ADAPTER, GROUP = "adapter", "group"
"""What is left out of the sources: the target alone, or all of its group."""


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Distances, or leave-one-out coefficients, between all N adapters.

    Attributes
    ----------
    values
        float64, shape (N, N): targets down, sources across, in the order of the report's adapters.
    metric
        As `--metric` names it; None for coefficients that read no distances.
    system
        What predicts with the coefficients; None for distances.
    """

    values: FloatArray
    metric: str | None
    system: System | None = None

    @property
    def key(self) -> str:
        """Identity within a report."""
        return f"{self.metric}/distance" if self.system is None else self.system.key


@dataclass(frozen=True, slots=True)
class ReportedEvaluation:
    """An evaluation by generation, and each of its systems over all targets."""

    evaluation: Evaluation
    summaries: tuple[Summary, ...]

    @property
    def examples(self) -> int:
        """How many test examples were answered, of all targets."""
        return sum(target.examples for target in self.evaluation.targets)


@dataclass(frozen=True, slots=True)
class StageTime:
    """Time that the catalogue has of one kind of run.

    Attributes
    ----------
    stage
        Kind, and metric or approach where the run has one.
    runs
        How many.
    seconds
        From the first run's begin to the last one's end, in whole seconds.
    started
        When the first began, UTC.
    """

    stage: str
    runs: int
    seconds: int
    started: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Report:
    """All that a report shows.

    Attributes
    ----------
    adapters
        By row: the order of both axes of every matrix.
    order
        Shape (N,): the adapters as hierarchical clustering of the distances puts them.
    ordered_by
        The metric whose distances were clustered.
    coefficients
        Leave-one-out coefficients with the target alone left out.
    sizes
        Errors by the number of adapters in the bank, a curve a system.
    recommended
        What target pages show first.
    in_bank
        How many adapters the bank has; those of `adapters` may be some of them.
    curves
        The newest learning curves of the bank; None where there are none.
    predicted
        Names of adapters that were predicted, not trained.
    initialisations
        Which of the bank's adapters share the initialisation of their A factors, in words.
    """

    bank: BankRecord
    adapters: tuple[AdapterRecord, ...]
    rank: int
    order: NDArray[np.int64]
    ordered_by: str
    distances: tuple[Matrix, ...]
    coefficients: tuple[Matrix, ...]
    weight_space: tuple[WaySummary, ...]
    evaluations: tuple[ReportedEvaluation, ...]
    sizes: tuple[SizeCurve, ...]
    stages: tuple[StageTime, ...]
    recommended: System
    versions: tuple[tuple[str, str], ...]
    in_bank: int
    curves: LearningCurves | None = None
    predicted: tuple[str, ...] = ()
    initialisations: str = ""

    def __repr__(self) -> str:
        """Return what it is of."""
        ways = f"{len(self.coefficients)} ways, {len(self.evaluations)} evaluations"
        return f"Report of {len(self.adapters):,} adapters for {self.bank.base_model}: {ways}"

    @property
    def names(self) -> list[str]:
        """Names of the adapters, in the order of the matrices."""
        return [record.name for record in self.adapters]

    @property
    def groups(self) -> list[str]:
        """Group of each adapter; one without a group is its own."""
        return [record.group or record.name for record in self.adapters]
