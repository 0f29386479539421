"""The report in words: names of metrics and approaches, numbers, and sentences about what was found."""

from __future__ import annotations

import math

from compute.reporting.gather import best_scores, nearest_row
from compute.reporting.records import (
    ADAPTER,
    GROUP,
    Estimate,
    Report,
    ReportedEvaluation,
    Scores,
    Way,
    WeightSpaceRow,
)

PAPER_SHARE = 0.59
"""Share of the Rouge-L gap that the paper's best, Jensen-Shannon normalized, closes (section 4)."""

HARDLY = 0.005
"""A difference in relative distance that is nothing to speak of."""

_METRICS = {
    "wasserstein": "Wasserstein",
    "kullback-leibler": "Kullback-Leibler",
    "jensen-shannon": "Jensen-Shannon",
    "mmd": "MMD",
    "tf-idf": "tf-idf",
}
_APPROACHES = {"base": "base model", "own": "own adapter"}
LEFT_OUT = {ADAPTER: "target left out", GROUP: "group left out"}


def metric_words(name: str) -> str:
    """Return a metric as a reader writes it."""
    return _METRICS.get(name, name)


def way_words(way: Way) -> str:
    """Return a way in words, such as `Jensen-Shannon, normalized`."""
    approach = _APPROACHES.get(way.approach, way.approach)
    parts = [metric_words(way.metric) if way.metric else "", approach, way.detail]
    return ", ".join(part for part in parts if part)


def number(value: float, digits: int = 3) -> str:
    """Return a number with a fixed count of decimals; a dash where there is none."""
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    """Return a difference with its 95% interval."""
    if estimate is None:
        return "–"
    if abs(estimate.value) < 0.5 * 10**-digits:
        digits += 1
    return (
        f"{signed(estimate.value, digits)} [{signed(estimate.low, digits)}, {signed(estimate.high, digits)}]"
    )


def percent(value: float) -> str:
    """Return a share as a whole percentage."""
    return f"{100 * value:.0f}%".replace("-", "−") if math.isfinite(value) else "–"


def share(estimate: Estimate | None) -> str:
    """Return a share with its 95% interval, in per cent."""
    if estimate is None:
        return "–"
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def duration(seconds: int) -> str:
    """Return whole seconds in words; the catalogue's clock has no finer ones."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def headline(report: Report) -> tuple[str, list[str]]:
    """Return the title of the finding, and sentences that say what it rests on."""
    evaluated = best_scores(report.evaluations, ADAPTER) or best_scores(report.evaluations, GROUP)
    if evaluated is not None:
        return _evaluated(report, evaluated)
    nearest = nearest_row(report.weight_space, ADAPTER)
    if nearest is None:
        return "Nothing was compared", ["No approach that predicts adapters was asked for."]
    return _weighed(report, nearest)


def _evaluated(report: Report, best: Scores) -> tuple[str, list[str]]:
    evaluation = next(item for item in report.evaluations if best in item.scores)
    base, own = (_scores_of(evaluation, name) for name in ("base", "own"))
    sentences = [
        f"Of the predictions whose answers were scored, {way_words(best.way)} has the highest mean Rouge-L: "
        f"{number(best.rouge[0])}"
        + (f", against {number(base.rouge[0])} of the base model" if base else "")
        + (f" and {number(own.rouge[0])} of each target’s own trained adapter" if own else "")
        + f" ({evaluation.targets} targets, {evaluation.examples:,} test examples)."
    ]
    if best.rouge_against_base is not None:
        sentences.append(f"Difference to the base model: {interval(best.rouge_against_base)}.")
    if best.rouge_against_uniform is not None:
        sentences.append(
            f"Difference to the uniform mean of all other adapters: {interval(best.rouge_against_uniform)}"
            f"{_verdict(best.rouge_against_uniform)}."
        )
    if best.rouge_against_paper is not None:
        sentences.append(
            "Difference to Jensen-Shannon, normalized, the paper’s best: "
            f"{interval(best.rouge_against_paper)}{_verdict(best.rouge_against_paper, mean=False)}."
        )
    if best.gap_closed is not None:
        sentences.append(
            f"It closes {share(best.gap_closed)} of the gap between the base model and the own adapters; the paper "
            f"reports {percent(PAPER_SHARE)} for its best, on other models and tasks."
        )
    return f"Best by generated answers: {way_words(best.way)}", sentences + _by_group(report)


def _scores_of(evaluation: ReportedEvaluation, approach: str) -> Scores | None:
    return next((item for item in evaluation.scores if item.way.approach == approach), None)


def _verdict(difference: Estimate, better: str = "above", *, mean: bool = True) -> str:
    if difference.low <= 0.0 <= difference.high:
        return ", which may be chance: the interval holds zero"
    ahead = difference.value > 0 if better == "above" else difference.value < 0
    return ", beyond chance" if ahead else (", so the plain mean is better" if mean else ", which is better")


def _by_group(report: Report) -> list[str]:
    if best_scores(report.evaluations, ADAPTER) is None:
        return []
    best = best_scores(report.evaluations, GROUP)
    if best is None:
        return []
    return [
        f"With the whole group of a target left out, the best is {way_words(best.way)} at "
        f"{number(best.rouge[0])}"
        + (f"; it closes {share(best.gap_closed)} of the gap." if best.gap_closed else ".")
    ]


def _weighed(report: Report, best: WeightSpaceRow) -> tuple[str, list[str]]:
    uniform = next((row for row in report.weight_space if row.way.approach == "uniform"), None)
    oracle = next((row for row in report.weight_space if row.way.approach == "oracle"), None)
    sentences = [
        "No evaluation of generated answers is in this report, so this goes by weights alone: nearness to the "
        "trained weights is not quality. Run bank evaluate to measure quality.",
        f"Over all {len(report.adapters)} targets, each predicted from the other adapters, the relative "
        f"distance of {way_words(best.way)} to the trained adapter is {number(best.relative)} on average"
        + (f"; uniform, the mean of all others, has {number(uniform.relative)}" if uniform else "")
        + (f", and {number(oracle.relative)} is the least that any combination can have" if oracle else "")
        + ". 0 is the trained adapter, 1 is no adapter at all.",
    ]
    if best.against_uniform is not None:
        sentences.append(
            f"Difference to uniform: {interval(best.against_uniform)}{_verdict(best.against_uniform, 'below')}."
        )
    grouped = nearest_row(report.weight_space, GROUP)
    if grouped is not None:
        sentences.append(_grouped_weights(report, grouped))
    return f"Nearest in weights: {way_words(best.way)}", sentences


def _grouped_weights(report: Report, best: WeightSpaceRow) -> str:
    uniform = next(
        (row for row in report.weight_space if row.way.approach == "uniform" and row.leave_out == GROUP), None
    )
    text = "With the whole group of a target left out, "
    if uniform is not None and best.way.approach == "uniform":
        return f"{text}nothing asked for is nearer than the plain mean of the other groups."
    text += f"the nearest is {way_words(best.way)} at {number(best.relative)}"
    if uniform is None:
        return f"{text}."
    hardly = uniform.relative - best.relative < HARDLY
    return f"{text}, {'hardly nearer than uniform with' if hardly else 'and uniform has'} {number(uniform.relative)}."
