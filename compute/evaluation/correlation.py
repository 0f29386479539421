"""Does nearness in weights tell quality? Rank correlation of weight errors with Rouge-L: reported, not assumed."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from compute.approaches.groups import units_of
from compute.evaluation.bootstrap import Interval, mean_difference, task_weights
from compute.evaluation.records import Evaluation
from compute.evaluation.scores import Target
from compute.types import FloatArray

FEWEST = 3
"""Ranks of fewer systems say nothing."""


@dataclass(frozen=True, slots=True)
class WeightCorrelation:
    """Spearman's rank correlation of relative weight errors with Rouge-L; -1 where the nearest answers best.

    Attributes
    ----------
    leave_out
        `adapter` or `group`.
    systems, targets
        How many systems have weight errors, and over how many targets `within` is the mean.
    across
        Of the systems' means over targets.
    within
        Of the systems on one target: the mean over targets, with its 95% interval (targets are drawn as for
        differences of scores). Targets on which all systems score alike have no ranks and are left out. None if
        there is no other.
    """

    leave_out: str
    systems: int
    targets: int
    across: float | None
    within: Interval | None


def correlation_record(found: WeightCorrelation) -> dict[str, object]:
    """Return a correlation for JSON."""
    return asdict(found) | {"within": None if found.within is None else found.within.as_record()}


def weight_correlations(evaluation: Evaluation) -> list[WeightCorrelation]:
    """Return the correlations of an evaluation, for what was left out; none with fewer than three systems."""
    correlations = []
    for leave_out in ("adapter", "group"):
        names = [system.name for system in evaluation.systems if system.leave_out == leave_out]
        errors, scores = _tables(evaluation, names)
        if len(errors) >= FEWEST and _trained(evaluation):
            correlations.append(_correlation(evaluation, leave_out, errors, scores))
    return correlations


def _tables(evaluation: Evaluation, names: list[str]) -> tuple[FloatArray, FloatArray]:
    """Weight errors and Rouge-L, shape (systems, trained targets), of the systems whose errors are all known."""
    kept = {(item.system, item.target): item for item in evaluation.outcomes}
    targets = [target.name for target in _trained(evaluation)]
    errors, scores = [], []
    for name in names:
        rows = [kept[name, target] for target in targets]
        known = [row.weight_error for row in rows if row.weight_error is not None]
        if len(known) == len(rows):
            errors.append(known)
            scores.append([row.rouge for row in rows])
    return np.asarray(errors), np.asarray(scores)


def _trained(evaluation: Evaluation) -> list[Target]:
    """Return the targets whose own adapter was trained: of the others there is no distance to trained weights."""
    return [target for target in evaluation.targets if not target.predicted]


def _correlation(
    evaluation: Evaluation, leave_out: str, errors: FloatArray, scores: FloatArray
) -> WeightCorrelation:
    by_target = np.array([spearman(e, s) for e, s in zip(errors.T, scores.T, strict=True)])
    ranked = np.flatnonzero(~np.isnan(by_target))
    within = None
    if len(ranked):
        targets = _trained(evaluation)
        groups = [targets[index].group for index in ranked]
        settings = evaluation.settings
        weights = task_weights(
            len(ranked),
            units=units_of(groups, leave_out),
            resamples=int(settings["resamples"]),
            seed=int(settings["seed"]),
        )
        within = mean_difference(weights, by_target[ranked], np.zeros(len(ranked)))
    across = spearman(errors.mean(axis=1), scores.mean(axis=1))
    return WeightCorrelation(
        leave_out, len(errors), len(ranked), None if np.isnan(across) else across, within
    )


def spearman(x: FloatArray, y: FloatArray) -> float:
    """Spearman's rank correlation of two lists; NaN where one of them is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(x, y).statistic)
