"""What an evaluation compares: the base model, each target's own adapter, and adapters that are predicted.

A system is a class and a line: what is registered is part of every evaluation.
"""

from __future__ import annotations

import abc
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from bankdb.records import AdapterRecord
from compute.approaches.groups import LEAVE_OUT
from compute.approaches.options import PredictionOptions, each_way
from compute.approaches.registry import approaches, is_baseline, is_bound, names
from compute.merge_methods.method import SUM, MergeMethod
from compute.prediction.ways import EVERY, combinations
from compute.types import FloatArray

if TYPE_CHECKING:
    from compute.prediction.coefficients import Coefficients

PAPER_SHARE = 0.59
"""Share of the Rouge-L gap that the paper's best, Jensen-Shannon with normalized, closes on its 502 tasks."""
LISTED_SOURCES = 8
_CHANGES_NORMALIZED = {"temperature", "top_k", "compatible", "merge"}


@dataclass(frozen=True, slots=True)
class System:
    """What answers: the base model, each target's own adapter, or adapters predicted in one way.

    Attributes
    ----------
    name
        Unique in an evaluation.
    approach
        `base`, `own`, or as `--approach` names it.
    metric
        As `--metric` names it; None where no distance is read.
    leave_out
        `adapter` or `group`; None for what is not predicted from other adapters.
    space
        `factors` or `delta`; None for `base`.
    parameters
        Further options that are not the default.
    """

    name: str
    approach: str
    metric: str | None = None
    leave_out: str | None = None
    space: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def detail(self) -> str:
        """Options that are not the default, as text; empty where all are. What is left out is no part of it."""
        chosen = sorted((key, value) for key, value in self.parameters.items() if key != "rank")
        details = [f"{key.replace('_', '-')} {value}" for key, value in chosen]
        if self.space not in (None, "factors"):
            rank = self.parameters.get("rank")
            details.append(f"{self.space} space" + ("" if rank is None else f" of rank {rank}"))
        return ", ".join(details)

    @property
    def key(self) -> str:
        """Identity, whatever is left out."""
        return "/".join(part for part in (self.metric, self.approach, self.detail) if part)

    @property
    def label(self) -> str:
        """The approach as a reader writes it."""
        registered = REGISTERED.get(self.approach)
        return self.approach if registered is None else registered.label

    @property
    def is_candidate(self) -> bool:
        """Whether a new dataset could have it without training: it predicts, and does not know the answer."""
        return self.leave_out is not None and not is_bound(self.approach)

    @property
    def is_uniform(self) -> bool:
        """Whether it is the mean of all sources, of factors."""
        return is_baseline(self.approach) and self.space == "factors" and "merge" not in self.parameters

    @property
    def is_papers_best(self) -> bool:
        """Whether it is the combination that the paper finds best, with nothing changed that changes it."""
        way = (self.metric, self.approach, self.space)
        unchanged = _CHANGES_NORMALIZED.isdisjoint(self.parameters)
        return way == ("jensen-shannon", "normalized", "factors") and unchanged


def system_of(way: PredictionOptions) -> System:
    """Return the system that a way of predicting is, with its name."""
    parameters = {
        key: value for key, value in way.parameters().items() if key not in ("leave_out", "space", "rank")
    }
    if way.rank is not None:
        parameters["rank"] = way.rank
    metric = way.metric if way.how.reads_distances else None
    name = way.approach if metric is None else f"{metric} {way.approach}"
    system = System(name, way.approach, metric, way.leave_out, way.space, parameters)
    left_out = "" if way.leave_out == "adapter" else f"{way.leave_out} left out"
    details = ", ".join(filter(None, (system.detail, left_out)))
    return replace(system, name=f"{name} ({details})") if details else system


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedAdapter:
    """An adapter as the weighted sum of rows of the bank.

    Attributes
    ----------
    sources
        Those with a weight other than zero, by row.
    weights
        float32, shape (number of sources,).
    effective
        1 / sum of squared coefficients.
    space, rank, method
        See `PredictionOptions`.
    weight_error
        `norm(predicted - own) / norm(own)`, of factors; None where it was not computed.
    """

    sources: tuple[AdapterRecord, ...]
    weights: NDArray[np.float32]
    effective: float
    space: str = "factors"
    rank: int | str | None = None
    weight_error: float | None = None
    method: MergeMethod = SUM

    def sha256(self, scaling: float) -> str:
        """Return a hash of all that determines its weights, at the bank's scaling: equal ones are equal."""
        rows = sorted(
            (source.row_sha256, source.scaling, float(weight).hex())
            for source, weight in zip(self.sources, self.weights, strict=True)
        )
        merged = [] if self.method.is_linear else [dict(self.method.parameters())]
        text = json.dumps([rows, scaling, self.space, self.rank, *merged], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def largest(self) -> tuple[tuple[str, float], ...]:
        """Return names and weights of the largest sources, largest first."""
        order = np.argsort(-np.abs(self.weights), kind="stable")[:LISTED_SOURCES]
        return tuple((self.sources[index].name, float(self.weights[index])) for index in order)


class EvaluatedSystem(abc.ABC):
    """One of the systems that an evaluation compares: its record, what it reads, how its adapters are made.

    Attributes
    ----------
    system
        Its record; name and approach are one where it has no options.
    label
        As a reader writes it.
    reads
        How the coefficients are made that it needs; None where it needs none.
    """

    system: System
    label: str
    reads: PredictionOptions | None = None

    @abc.abstractmethod
    def adapters(
        self, records: Sequence[AdapterRecord], made: Coefficients | None, errors: FloatArray | None
    ) -> list[EvaluatedAdapter | None]:
        """Return what answers for each adapter of the bank; None is the base model alone.

        Parameters
        ----------
        records
            The N adapters, by row.
        made, errors
            The coefficients that it reads, and the relative weight error of each row, shape (N,).
        """


class BaseModel(EvaluatedSystem):
    """The base model without any adapter."""

    system = System("base", "base")
    label = "base model"

    def adapters(
        self, records: Sequence[AdapterRecord], made: Coefficients | None, errors: FloatArray | None
    ) -> list[EvaluatedAdapter | None]:
        """Return no adapter for each."""
        return [None] * len(records)


class OwnAdapter(EvaluatedSystem):
    """The adapter that was trained on the target: what a prediction is to come near to."""

    system = System("own", "own", space="factors")
    label = "own adapter"

    def adapters(
        self, records: Sequence[AdapterRecord], made: Coefficients | None, errors: FloatArray | None
    ) -> list[EvaluatedAdapter | None]:
        """Return each adapter itself."""
        return [EvaluatedAdapter((record,), np.ones(1, dtype=np.float32), 1.0) for record in records]


class Combination(EvaluatedSystem):
    """Each adapter predicted from others."""

    def __init__(self, options: PredictionOptions) -> None:
        self.system = system_of(options)
        self.label = options.approach
        self.reads = options

    def adapters(
        self, records: Sequence[AdapterRecord], made: Coefficients | None, errors: FloatArray | None
    ) -> list[EvaluatedAdapter | None]:
        """Return the combination of each row of coefficients."""
        assert made is not None, "the caller computes what is read"
        assert errors is not None
        return [self._of_row(made, row, float(error)) for row, error in enumerate(errors)]

    def _of_row(self, made: Coefficients, row: int, error: float) -> EvaluatedAdapter:
        weights = made.values[row].astype(np.float32)
        used = np.flatnonzero(weights)
        way = made.options
        return EvaluatedAdapter(
            tuple(made.adapters[source] for source in used),
            weights[used],
            float(made.effective[row]),
            way.space,
            way.rank,
            error if way.space == "factors" and way.merge_method.is_linear and math.isfinite(error) else None,
            way.merge_method,
        )


REGISTERED: dict[str, EvaluatedSystem] = {}
"""By approach: what every evaluation has, in this order, before the combinations asked for."""
BASELINES = (PredictionOptions(approach="uniform"), PredictionOptions(approach="nearest"))
"""What combinations are compared with: the mean of all sources, and the nearest by Jensen-Shannon."""


def register(system: EvaluatedSystem) -> None:
    """Make a system part of every evaluation.

    Raises
    ------
    ParameterError
        Another of its name is registered, or an approach to predict by has it.
    """
    approach = system.system.approach
    if approach in REGISTERED or approach in names():
        raise ParameterError(
            f"system {approach!r}: expected a new name, found one that is taken; choose another"
        )
    REGISTERED[approach] = system


BASE, OWN = BaseModel(), OwnAdapter()
register(BASE)
register(OWN)


def compared_systems(ways: Sequence[PredictionOptions]) -> list[EvaluatedSystem]:
    """Return the registered systems, then each way of predicting; ways of the same name are one."""
    systems = {one.system.name: one for one in REGISTERED.values()}
    for way in ways:
        one = Combination(way)
        systems.setdefault(one.system.name, one)
    return list(systems.values())


def default_ways(
    combinations: Sequence[PredictionOptions], leave_outs: Sequence[str], **options: Any
) -> list[PredictionOptions]:
    """Return the baselines, and the combinations asked for.

    Parameters
    ----------
    leave_outs
        Each way once with every one of them.
    options
        Set in every way: `space`, `rank`.
    """
    ways = [*BASELINES, *combinations]
    return [replace(way, leave_out=leave_out, **options) for leave_out in leave_outs for way in ways]


def evaluated_ways(
    ways: PredictionOptions | Sequence[PredictionOptions] | None, leave_out: str | None
) -> list[PredictionOptions]:
    """Return the ways asked for, or for None the paper's, each with what is to be left out in place of its own."""
    chosen = combinations(EVERY, of_the_paper()) if ways is None else each_way(ways)
    if leave_out is None:
        return chosen
    return [replace(way, leave_out=one) for one in left_out(leave_out) for way in chosen]


def of_the_paper() -> list[str]:
    """Return the names of the paper's approaches."""
    return [approach.name for approach in approaches() if approach.of_the_paper]


def left_out(leave_out: str) -> tuple[str, ...]:
    """Return `adapter`, `group`, or for `both` these two."""
    return LEAVE_OUT if leave_out == "both" else (leave_out,)


def with_baselines(ways: Sequence[PredictionOptions]) -> list[PredictionOptions]:
    """Return the ways, those that leave the same out, in the same space, after their baselines: see `default_ways`."""
    alike: dict[tuple[str, str, int | str | None], list[PredictionOptions]] = {}
    for way in ways or [BASELINES[0]]:
        alike.setdefault((way.leave_out, way.space, way.rank), []).append(way)
    return [
        way
        for (leave_out, space, rank), some in alike.items()
        for way in dict.fromkeys(default_ways(some, [leave_out], space=space, rank=rank))
    ]


def compared_ways(ways: Sequence[PredictionOptions]) -> list[PredictionOptions]:
    """Return the ways between the baselines and the bound, for a comparison of weights."""
    return list(dict.fromkeys([*BASELINES, *ways, PredictionOptions(approach="oracle")]))


def check_sums(ways: Sequence[PredictionOptions]) -> None:
    """Raise ParameterError for a merge method, whose errors the Gram matrix does not tell."""
    merged = next((way.merge for way in ways if not way.merge_method.is_linear), None)
    if merged is not None:
        raise ParameterError(f"weight space: expected weighted sums, merge {merged} found; leave it out")
