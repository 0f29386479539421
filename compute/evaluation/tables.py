"""The tables of an evaluation: means over tasks (the paper's table 1), and each way against the base (table 3)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from compute.approaches.groups import LEAVE_OUT, units_of
from compute.evaluation.bootstrap import Interval, gap_share, mean_difference, task_weights
from compute.evaluation.scores import Outcome, Target
from compute.evaluation.systems import BASE, OWN, System
from compute.types import FloatArray

MEASURES = ("rouge", "exact", "exact_unstripped")
_INTERVALS = (
    "rouge_to_base",
    "exact_to_base",
    "rouge_to_uniform",
    "exact_to_uniform",
    "rouge_to_paper",
    "gap_share",
)


class Evaluated(Protocol):
    """What tables are made of: see `compute.evaluation.records.Evaluation`, which shows itself by them."""

    @property
    def identity(self) -> str:
        """Hash of all that determines the figures."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """With the seed and the resamples of the bootstrap."""

    @property
    def systems(self) -> Sequence[System]:
        """What answered."""

    @property
    def targets(self) -> Sequence[Target]:
        """What was answered."""

    @property
    def outcomes(self) -> Sequence[Outcome]:
        """How well; by target, then by system."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over tasks, and the sample standard deviation; None of a single task."""

    mean: float
    deviation: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One system over all tasks.

    Attributes
    ----------
    rouge, exact, exact_unstripped
        Of the mean score of each task.
    rouge_to_base, exact_to_base, rouge_to_uniform, exact_to_uniform
        Paired differences, with 95% intervals; to `uniform` with the same left out. None for the base, for
        uniform itself, and where there is no uniform. Where groups are left out, whole groups are drawn.
        Of the own adapters over those that were trained, if any was.
    rouge_to_paper
        The same to the paper's best combination, Jensen-Shannon with `normalized`.
    gap_share
        Share of the gap in Rouge-L between the base and the own adapters that is closed, over the targets whose
        own adapter was trained; None where there is no gap.
    better, equal, worse
        Tasks whose Rouge-L is above, at and below the base's.
    """

    system: System
    tasks: int
    rouge: Spread
    exact: Spread
    exact_unstripped: Spread
    rouge_to_base: Interval | None
    exact_to_base: Interval | None
    rouge_to_uniform: Interval | None
    exact_to_uniform: Interval | None
    rouge_to_paper: Interval | None
    gap_share: Interval | None
    better: int
    equal: int
    worse: int


def summaries(evaluation: Evaluated) -> list[Summary]:
    """Return each system over all tasks, in the order of the evaluation's systems.

    Raises
    ------
    ParameterError
        The evaluation lacks an outcome.
    """
    scores = _scores(evaluation)
    weights = _drawn_weights(evaluation)
    trained = np.flatnonzero([not target.predicted for target in evaluation.targets])
    return [
        _summary(
            system,
            scores,
            weights[system.leave_out or "adapter"],
            trained,
            _peer(evaluation.systems, system.leave_out, lambda one: one.is_uniform),
            _peer(evaluation.systems, system.leave_out, lambda one: one.is_papers_best),
        )
        for system in evaluation.systems
    ]


def _drawn_weights(evaluation: Evaluated) -> dict[str, FloatArray]:
    """Return the shares of targets in resamples, by what is left out; see `task_weights`."""
    groups = [target.group for target in evaluation.targets]
    settings = evaluation.settings
    return {
        leave_out: task_weights(
            len(groups),
            units=units_of(groups, leave_out),
            resamples=int(settings["resamples"]),
            seed=int(settings["seed"]),
        )
        for leave_out in LEAVE_OUT
    }


def _peer(systems: Sequence[System], leave_out: str | None, wanted: Callable[[System], bool]) -> str | None:
    """Name of the system that is wanted and leaves out the same."""
    return next((one.name for one in systems if one.leave_out == leave_out and wanted(one)), None)


_Scores = dict[str, dict[str, FloatArray]]


def _scores(evaluation: Evaluated) -> _Scores:
    """Mean of each task, shape (tasks,), by system and measure."""
    outcomes = {(outcome.system, outcome.target): outcome for outcome in evaluation.outcomes}
    lacking = [
        f"{system.name} on {target.name}"
        for system in evaluation.systems
        for target in evaluation.targets
        if (system.name, target.name) not in outcomes
    ]
    if lacking:
        raise ParameterError(
            f"evaluation {evaluation.identity}: expected an outcome of {lacking[0]}, found none; evaluate again"
        )
    return {
        system.name: {
            measure: np.asarray(
                [getattr(outcomes[system.name, target.name], measure) for target in evaluation.targets]
            )
            for measure in MEASURES
        }
        for system in evaluation.systems
    }


def _of_targets(weights: FloatArray, kept: NDArray[np.intp]) -> FloatArray:
    """Return the shares of some of the targets, of the resamples that have any of them."""
    if len(kept) == weights.shape[1]:
        return weights
    some: FloatArray = weights[:, kept]
    total = some.sum(axis=1, keepdims=True)
    drawn = total[:, 0] > 0
    shares: FloatArray = some[drawn] / total[drawn]
    return shares


def _gap_share(
    system: str, scores: _Scores, weights: FloatArray, trained: NDArray[np.intp]
) -> Interval | None:
    if system == BASE.system.name or not len(trained):
        return None
    of_trained = (scores[name]["rouge"][trained] for name in (system, BASE.system.name, OWN.system.name))
    return gap_share(_of_targets(weights, trained), *of_trained)


def _summary(
    system: System,
    scores: _Scores,
    weights: FloatArray,
    trained: NDArray[np.intp],
    uniform: str | None,
    paper: str | None,
) -> Summary:
    gap = _gap_share(system.name, scores, weights, trained)
    if system == OWN.system and len(trained):
        weights = _of_targets(weights, trained)
        scores = {
            name: {key: values[trained] for key, values in of_system.items()}
            for name, of_system in scores.items()
        }
    mine, base = scores[system.name], scores[BASE.system.name]

    def difference(measure: str, other: str | None) -> Interval | None:
        if other is None or other == system.name:
            return None
        return mean_difference(weights, mine[measure], scores[other][measure])

    gain = mine["rouge"] - base["rouge"]
    return Summary(
        system=system,
        tasks=len(gain),
        rouge=_spread(mine["rouge"]),
        exact=_spread(mine["exact"]),
        exact_unstripped=_spread(mine["exact_unstripped"]),
        rouge_to_base=difference("rouge", BASE.system.name),
        exact_to_base=difference("exact", BASE.system.name),
        rouge_to_uniform=difference("rouge", uniform),
        exact_to_uniform=difference("exact", uniform),
        rouge_to_paper=difference("rouge", paper),
        gap_share=gap,
        better=int(np.sum(gain > 0)),
        equal=int(np.sum(gain == 0)),
        worse=int(np.sum(gain < 0)),
    )


def _spread(values: FloatArray) -> Spread:
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(float(values.mean()), deviation)


Table = tuple[list[str], list[list[object]]]
"""Headings and rows."""


def table1(compared: Sequence[Summary]) -> Table:
    """Every system: mean and standard deviation over tasks, as the paper's table 1."""
    headings = ["system", "Rouge-L", "sd", "exact", "sd", "exact, unstripped", "sd"]
    rows: list[list[object]] = []
    for one in compared:
        row: list[object] = [one.system.name]
        for spread in (one.rouge, one.exact, one.exact_unstripped):
            row += [spread.mean, spread.deviation]
        rows.append(row)
    return headings, rows


def table3(compared: Sequence[Summary]) -> Table:
    """Every way of predicting against base and uniform with 95% intervals, as the paper's table 3."""
    headings = [
        "system",
        "Rouge-L to base",
        "exact to base",
        "Rouge-L to uniform",
        "exact to uniform",
        "Rouge-L to JS normalized",
        "gap closed",
        "better/equal/worse",
    ]
    rows: list[list[object]] = []
    for one in compared:
        if one.system == BASE.system:
            continue
        row: list[object] = [one.system.name]
        row += [shown_interval(getattr(one, key)) for key in _INTERVALS[:-1]]
        rows.append(
            [*row, shown_interval(one.gap_share, percent=True), f"{one.better}/{one.equal}/{one.worse}"]
        )
    return headings, rows


def shown_interval(interval: Interval | None, *, percent: bool = False) -> str | None:
    """Return an estimate with its bounds, or alone where there are too few targets for any; None stays None."""
    if interval is None:
        return None
    form = "{:.0%}" if percent else "{:+.3f}"
    if interval.has_bounds:
        form += f" [{form}, {form}]"
    return form.format(interval.estimate, interval.low, interval.high)


def best_predictions(compared: Sequence[Summary]) -> dict[str, Summary]:
    """Return, for each thing that was left out, the prediction of the highest Rouge-L; without the oracle."""
    best: dict[str, Summary] = {}
    for one in compared:
        left_out = one.system.leave_out
        if left_out is None or not one.system.is_candidate:
            continue
        if left_out not in best or one.rouge.mean > best[left_out].rouge.mean:
            best[left_out] = one
    return best


def summary_record(one: Summary) -> dict[str, object]:
    """Return a summary for JSON."""
    intervals = {key: getattr(one, key) for key in _INTERVALS}
    shown = {key: None if found is None else found.as_record() for key, found in intervals.items()}
    return asdict(one) | shown


def summary_csv(compared: Sequence[Summary]) -> str:
    """Return both tables as one CSV, a row a system, all digits kept."""
    headings = ["system", "approach", "metric", "leave_out", "space", "tasks"]
    headings += [name for measure in MEASURES for name in (f"{measure}_mean", f"{measure}_sd")]
    headings += [name for key in _INTERVALS for name in (key, f"{key}_low", f"{key}_high")]
    rows: list[list[object]] = []
    for one in compared:
        system = one.system
        row: list[object] = [
            system.name,
            system.approach,
            system.metric,
            system.leave_out,
            system.space,
            one.tasks,
        ]
        for measure in MEASURES:
            spread: Spread = getattr(one, measure)
            row += [spread.mean, spread.deviation]
        for key in _INTERVALS:
            interval: Interval | None = getattr(one, key)
            row += [None] * 3 if interval is None else [interval.estimate, *interval.bounds]
        rows.append([*row, one.better, one.equal, one.worse])
    return _csv([*headings, "better", "equal", "worse"], rows)


def target_csv(evaluation: Evaluated) -> str:
    """Return the scores of every system on every target as CSV, all digits kept."""
    groups = {target.name: target.group for target in evaluation.targets}
    headings = ["target", "group", "system", "n", *MEASURES]
    rows = [
        [one.target, groups[one.target], one.system, one.n, one.rouge, one.exact, one.exact_unstripped]
        for one in evaluation.outcomes
    ]
    return _csv(headings, rows)


def _csv(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    # None is an empty field.
    writer.writerows(rows)
    return text.getvalue()
