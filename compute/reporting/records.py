"""What a report shows, as frozen records: no database, no files, nothing to draw with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bankdb.records import AdapterRecord, BankRecord

FloatArray = NDArray[np.float64]

ADAPTER, GROUP = "adapter", "group"
"""What is left out of the sources: the target alone, or all of its group."""
NO_PREDICTION = ("base", "own", "oracle")
"""Systems that cannot be had for a new dataset without training, or predict nothing."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way from distances to coefficients.

    Attributes
    ----------
    approach
        As `--approach` names it; `base` and `own` for the two systems that combine nothing.
    metric
        As `--metric` names it; None where no distance is read.
    detail
        Options that are not the default, as text; empty where all are.
    """

    approach: str
    metric: str | None = None
    detail: str = ""

    @property
    def is_papers_best(self) -> bool:
        """Whether it is the combination that the paper finds best."""
        return (self.metric, self.approach, self.detail) == ("jensen-shannon", "normalized", "")

    @property
    def key(self) -> str:
        """Identity within a report."""
        return "/".join(part for part in (self.metric, self.approach, self.detail) if part)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Distances, or leave-one-out coefficients, between all N adapters.

    Attributes
    ----------
    way
        Approach and metric; for distances, the approach is `distance`.
    values
        float64, shape (N, N): targets down, sources across, in the order of the report's adapters.
    """

    way: Way
    values: FloatArray


@dataclass(frozen=True, slots=True)
class WeightSpaceRow:
    """How far the predictions of one way are from the trained adapters, on average over the targets.

    Attributes
    ----------
    leave_out
        `adapter` or `group`.
    relative, mse, cosine
        Means of `norm(predicted - own) / norm(own)`, of the mean squared difference of a parameter, and of the
        cosine of predicted and own adapter.
    effective
        Mean effective number of sources.
    against_uniform, against_paper
        Mean difference of `relative` to the uniform mean of the same sources, and to the paper's best way,
        Jensen-Shannon normalized; below 0 is nearer. None for these two themselves.
    """

    way: Way
    leave_out: str
    relative: float
    mse: float
    cosine: float
    effective: float
    against_uniform: Estimate | None
    against_paper: Estimate | None


@dataclass(frozen=True, slots=True)
class Scores:
    """Quality of the generated answers of one system over all targets, each a mean over its examples; 0 to 1.

    Attributes
    ----------
    rouge, exact, unstripped
        Mean and standard deviation over the targets of Rouge-L, of exact match of stripped text, and
        of exact match as the paper's code has it; None where it was not measured.
    rouge_against_base, rouge_against_uniform, rouge_against_paper, exact_against_base, exact_against_uniform
        Paired differences of the means; `paper` is its best way, Jensen-Shannon normalized.
    gap_closed
        Share of the Rouge-L gap between the base model and the own adapters that is closed.
    """

    way: Way
    leave_out: str
    rouge: tuple[float, float]
    exact: tuple[float, float]
    unstripped: tuple[float, float] | None = None
    rouge_against_base: Estimate | None = None
    rouge_against_uniform: Estimate | None = None
    rouge_against_paper: Estimate | None = None
    exact_against_base: Estimate | None = None
    exact_against_uniform: Estimate | None = None
    gap_closed: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One test example and what each system answered, by `Way.key` and what was left out."""

    target: str
    prompt: str
    references: tuple[str, ...]
    answers: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class TargetScore:
    """Mean scores of one system on one target."""

    target: str
    way: Way
    leave_out: str
    rouge: float
    exact: float


@dataclass(frozen=True, slots=True)
class ReportedEvaluation:
    """An evaluation by generation, as far as a report shows it.

    Attributes
    ----------
    identity
        As the bank names it.
    settings
        Pairs of name and text: model, device, examples a target, new-token limit and the like.
    """

    identity: str
    created: str
    targets: int
    examples: int
    scores: tuple[Scores, ...]
    by_target: tuple[TargetScore, ...]
    samples: tuple[Sample, ...]
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SizePoint:
    """Quality with a bank of one size, over several random subsets.

    Attributes
    ----------
    mean, low, high
        Over the draws; `low` and `high` are the extremes, or the interval that the record states.
    """

    way: Way
    size: int
    draws: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SizeCurve:
    """How quality grows with the bank.

    Attributes
    ----------
    measure
        What is measured, for an axis.
    lower_is_better
        Whether a small value is good.
    spread
        What `low` and `high` of the points are.
    """

    measure: str
    lower_is_better: bool
    spread: str
    points: tuple[SizePoint, ...]


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
    recommended
        The way that target pages show first.
    """

    bank: BankRecord
    adapters: tuple[AdapterRecord, ...]
    rank: int
    order: NDArray[np.int64]
    ordered_by: str
    distances: tuple[Matrix, ...]
    coefficients: tuple[Matrix, ...]
    weight_space: tuple[WeightSpaceRow, ...]
    evaluations: tuple[ReportedEvaluation, ...]
    sizes: tuple[SizeCurve, ...]
    stages: tuple[StageTime, ...]
    recommended: Way
    versions: tuple[tuple[str, str], ...]

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
