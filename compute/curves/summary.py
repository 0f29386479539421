"""What learning curves say: gap closed, against the start from zero, and how many steps a start is worth."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compute.approaches.groups import units_of
from compute.curves.records import CurveStart, LearningCurves
from compute.evaluation.bootstrap import Interval, gap_share, mean_difference, task_weights
from compute.finetuning.options import ZERO
from compute.types import FloatArray


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One start after a number of steps, over all targets.

    Attributes
    ----------
    rouge, exact
        Means, 0 to 1.
    band
        Of the mean Rouge-L, by the same bootstrap.
    gap
        Share of the Rouge-L gap between base model and own adapters that is closed; None where there is no gap.
    to_zero
        Paired difference of Rouge-L to the start from zero after as many steps; None for that itself.
    kept
        Mean Rouge-L where each target keeps the number of steps, of those up to here, with the lowest held-out loss.
    """

    start: str
    leave_out: str | None
    steps: int
    rouge: float
    exact: float
    band: Interval
    gap: Interval | None
    to_zero: Interval | None
    kept: float


@dataclass(frozen=True, slots=True)
class Advantage:
    """What a start is worth, beside a start from zero.

    Attributes
    ----------
    mean
        Paired difference of Rouge-L, mean over all numbers of steps but 0 and the last.
    reached
        By number of steps from this start: how many from zero reach the same mean Rouge-L, read off the line between
        two points; None where they never do.
    """

    start: str
    leave_out: str | None
    mean: Interval
    reached: dict[int, float | None]


def _weights(curves: LearningCurves, leave_out: str | None) -> FloatArray:
    return task_weights(
        len(curves.targets),
        units=units_of(curves.groups, leave_out or "adapter"),
        resamples=int(curves.settings["resamples"]),
        seed=int(curves.settings["seed"]),
    )


def _zero(curves: LearningCurves) -> CurveStart | None:
    return next((one for one in curves.starts if one.name == ZERO), None)


def points(curves: LearningCurves) -> list[CurvePoint]:
    """Return each start after each number of steps; whole groups are drawn where they were left out."""
    zero = _zero(curves)
    base, own = np.asarray(curves.base.rouge), np.asarray(curves.own.rouge)
    nothing = np.zeros(len(base))
    found = []
    for one in curves.starts:
        weights = _weights(curves, one.leave_out)
        for place, steps in enumerate(curves.steps):
            rouge = np.asarray(one.scores[place].rouge)
            other = None if zero is None or one is zero else np.asarray(zero.scores[place].rouge)
            kept = [one.scores[at].rouge[target] for target, at in enumerate(one.kept(place))]
            found.append(
                CurvePoint(
                    one.name,
                    one.leave_out,
                    steps,
                    float(rouge.mean()),
                    float(np.mean(one.scores[place].exact)),
                    mean_difference(weights, rouge, nothing),
                    gap_share(weights, rouge, base, own),
                    None if other is None else mean_difference(weights, rouge, other),
                    float(np.mean(kept)),
                )
            )
    return found


def advantages(curves: LearningCurves) -> list[Advantage]:
    """Return what each start but zero is worth; empty where there was none from zero, or no steps between."""
    zero = _zero(curves)
    between = [place for place, step in enumerate(curves.steps) if 0 < step < curves.steps[-1]]
    if zero is None or not between:
        return []
    from_zero = _by_step(zero)
    found = []
    for one in curves.starts:
        if one is zero:
            continue
        mine = _by_step(one)
        mean = mean_difference(
            _weights(curves, one.leave_out), mine[between].mean(axis=0), from_zero[between].mean(axis=0)
        )
        reached = {
            step: steps_to_reach(curves.steps, from_zero.mean(axis=1), float(mine[place].mean()))
            for place, step in enumerate(curves.steps)
        }
        found.append(Advantage(one.name, one.leave_out, mean, reached))
    return found


def _by_step(one: CurveStart) -> FloatArray:
    """Rouge-L, shape (numbers of steps, targets)."""
    return np.asarray([scores.rouge for scores in one.scores])


def steps_to_reach(steps: Sequence[int], means: FloatArray, score: float) -> float | None:
    """Return after how many steps a curve first reaches a score, on the lines between its points; None if never."""
    if means[0] >= score:
        return float(steps[0])
    for place in range(1, len(steps)):
        low, high = float(means[place - 1]), float(means[place])
        if high >= score:
            return steps[place - 1] + (steps[place] - steps[place - 1]) * (score - low) / (high - low)
    return None


HEADINGS = (
    "start",
    "leave_out",
    "steps",
    "rouge",
    "exact",
    "gap_closed",
    "gap_low",
    "gap_high",
    "to_zero",
    "to_zero_low",
    "to_zero_high",
    "rouge_kept",
)


def points_csv(found: Sequence[CurvePoint]) -> str:
    """Return the points as CSV; bounds are empty below the number of targets, or groups, that makes an interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADINGS)
    for one in found:
        gap, to_zero = _cells(one.gap), _cells(one.to_zero)
        writer.writerow((one.start, one.leave_out, one.steps, one.rouge, one.exact, *gap, *to_zero, one.kept))
    return out.getvalue()


def targets_csv(curves: LearningCurves) -> str:
    """Return Rouge-L and held-out loss of each target after each number of steps."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("target", "group", "start", "leave_out", "steps", "rouge", "exact", "held_out_loss"))
    for target, (name, group) in enumerate(zip(curves.targets, curves.groups, strict=True)):
        for label, scores in (("base", curves.base), ("own", curves.own)):
            writer.writerow(
                (name, group, label, None, None, scores.rouge[target], scores.exact[target], None)
            )
        for one in curves.starts:
            for place, steps in enumerate(curves.steps):
                scores, loss = one.scores[place], one.held_out[place][target]
                writer.writerow(
                    (
                        name,
                        group,
                        one.name,
                        one.leave_out,
                        steps,
                        scores.rouge[target],
                        scores.exact[target],
                        loss,
                    )
                )
    return out.getvalue()


def _cells(found: Interval | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if found is None else (found.estimate, *found.bounds)
