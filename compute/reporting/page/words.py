"""The report in words: names of metrics and approaches, numbers, and sentences about what was found."""

from __future__ import annotations

import math

from compute.approaches.registry import is_bound
from compute.evaluation.bootstrap import LEAST_UNITS, Interval
from compute.evaluation.systems import BASE, OWN, PAPER_SHARE, System
from compute.evaluation.tables import Spread, Summary
from compute.evaluation.weight_space import WaySummary
from compute.reporting.gather import best_scores, nearest_row
from compute.reporting.records import ADAPTER, GROUP, Matrix, Report, ReportedEvaluation

HARDLY = 0.005
"""A difference in relative distance that is nothing to speak of."""

_METRICS = {
    "wasserstein": "Wasserstein",
    "kullback-leibler": "Kullback-Leibler",
    "jensen-shannon": "Jensen-Shannon",
    "mmd": "MMD",
    "tf-idf": "tf-idf",
}
LEFT_OUT = {ADAPTER: "target left out", GROUP: "group left out"}


def metric_words(name: str) -> str:
    """Return a metric as a reader writes it."""
    return _METRICS.get(name, name)


def system_words(system: System) -> str:
    """Return a system in words, such as `Jensen-Shannon, normalized`; what is left out is said elsewhere."""
    parts = [metric_words(system.metric) if system.metric else "", system.label, system.detail]
    return ", ".join(part for part in parts if part)


def matrix_words(matrix: Matrix) -> str:
    """Return in words what a matrix holds."""
    if matrix.system is None:
        return f"{metric_words(matrix.metric or '')}, distance"
    return system_words(matrix.system)


def left_out(system: System) -> str:
    """Return what a system leaves out; one that is not predicted stands with those that leave out the target."""
    return system.leave_out or ADAPTER


def number(value: float, digits: int = 3) -> str:
    """Return a number with a fixed count of decimals; a dash where there is none."""
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def spread(values: Spread | None) -> str:
    """Return a mean with its standard deviation; a single value has none."""
    if values is None:
        return "–"
    return number(values.mean) + ("" if values.deviation is None else f" ± {number(values.deviation)}")


def interval(difference: Interval | None, digits: int = 3) -> str:
    """Return a difference with its 95% interval."""
    if difference is None:
        return "–"
    if abs(difference.estimate) < 0.5 * 10**-digits:
        digits += 1
    if not difference.has_bounds:
        return signed(difference.estimate, digits)
    low, high = signed(difference.low, digits), signed(difference.high, digits)
    return f"{signed(difference.estimate, digits)} [{low}, {high}]"


def percent(value: float) -> str:
    """Return a share as a whole percentage."""
    return f"{100 * value:.0f}%".replace("-", "−") if math.isfinite(value) else "–"


def share(closed: Interval | None) -> str:
    """Return a share with its 95% interval, in per cent."""
    if closed is None:
        return "–"
    if not closed.has_bounds:
        return percent(closed.estimate)
    return f"{percent(closed.estimate)} [{percent(closed.low)}, {percent(closed.high)}]"


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


def _evaluated(report: Report, best: Summary) -> tuple[str, list[str]]:
    reported = next(item for item in report.evaluations if best in item.summaries)
    base, own = (_summary_of(reported, one.system) for one in (BASE, OWN))
    sentences = [
        f"Of the predictions whose answers were scored, {system_words(best.system)} has the highest mean Rouge-L: "
        f"{number(best.rouge.mean)}"
        + (f", against {number(base.rouge.mean)} of the base model" if base else "")
        + (f" and {number(own.rouge.mean)} of each target’s own trained adapter" if own else "")
        + f" ({best.tasks} targets, {reported.examples:,} test examples)."
    ]
    if best.rouge_to_base is not None:
        sentences.append(f"Difference to the base model: {interval(best.rouge_to_base)}.")
    if best.rouge_to_uniform is not None:
        sentences.append(
            f"Difference to the uniform mean of all other adapters: {interval(best.rouge_to_uniform)}"
            f"{_verdict(best.rouge_to_uniform)}."
        )
    if best.rouge_to_paper is not None:
        sentences.append(
            "Difference to Jensen-Shannon, normalized, the paper’s best: "
            f"{interval(best.rouge_to_paper)}{_verdict(best.rouge_to_paper, mean=False)}."
        )
    if best.gap_share is not None:
        sentences.append(
            f"It closes {share(best.gap_share)} of the gap between the base model and the own adapters; the paper "
            f"reports {percent(PAPER_SHARE)} for its best, on other models and tasks."
        )
    return f"Best by generated answers: {system_words(best.system)}", sentences + _by_group(report)


def _summary_of(reported: ReportedEvaluation, system: System) -> Summary | None:
    return next((item for item in reported.summaries if item.system == system), None)


def _verdict(difference: Interval, better: str = "above", *, mean: bool = True) -> str:
    if not difference.has_bounds:
        return f", of too few targets to tell it from chance: below {LEAST_UNITS} there is no interval"
    if difference.low <= 0.0 <= difference.high:
        return ", which may be chance: the interval holds zero"
    ahead = difference.estimate > 0 if better == "above" else difference.estimate < 0
    return ", beyond chance" if ahead else (", so the plain mean is better" if mean else ", which is better")


def _by_group(report: Report) -> list[str]:
    if best_scores(report.evaluations, ADAPTER) is None:
        return []
    best = best_scores(report.evaluations, GROUP)
    if best is None:
        return []
    return [
        f"With the whole group of a target left out, the best is {system_words(best.system)} at "
        f"{number(best.rouge.mean)}"
        + (f"; it closes {share(best.gap_share)} of the gap." if best.gap_share else ".")
    ]


def _weighed(report: Report, best: WaySummary) -> tuple[str, list[str]]:
    uniform = next((row for row in report.weight_space if row.system.is_uniform), None)
    oracle = next((row for row in report.weight_space if is_bound(row.system.approach)), None)
    sentences = [
        "No evaluation of generated answers is in this report, so this goes by weights alone: nearness to the "
        "trained weights is not quality. Run bank evaluate to measure quality.",
        f"Over all {len(report.adapters)} targets, each predicted from the other adapters, the relative "
        f"distance of {system_words(best.system)} to the trained adapter is {number(best.relative_error)} on average"
        + (f"; uniform, the mean of all others, has {number(uniform.relative_error)}" if uniform else "")
        + (
            f", and {number(oracle.relative_error)} is the least that any combination can have"
            if oracle
            else ""
        )
        + ". 0 is the trained adapter, 1 is no adapter at all.",
    ]
    if best.to_uniform is not None:
        sentences.append(
            f"Difference to uniform: {interval(best.to_uniform)}{_verdict(best.to_uniform, 'below')}."
        )
    grouped = nearest_row(report.weight_space, GROUP)
    if grouped is not None:
        sentences.append(_grouped_weights(report, grouped))
    return f"Nearest in weights: {system_words(best.system)}", sentences


def _grouped_weights(report: Report, best: WaySummary) -> str:
    uniform = next(
        (row for row in report.weight_space if row.system.is_uniform and row.system.leave_out == GROUP), None
    )
    text = "With the whole group of a target left out, "
    if uniform is not None and best.system.is_uniform:
        return f"{text}nothing asked for is nearer than the plain mean of the other groups."
    text += f"the nearest is {system_words(best.system)} at {number(best.relative_error)}"
    if uniform is None:
        return f"{text}."
    hardly = uniform.relative_error - best.relative_error < HARDLY
    compared = "hardly nearer than uniform with" if hardly else "and uniform has"
    return f"{text}, {compared} {number(uniform.relative_error)}."
