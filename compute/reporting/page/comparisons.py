"""How the approaches compare: in weight space, and by generated answers where there is an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from compute.evaluation.bootstrap import Interval
from compute.evaluation.scores import of_predicted
from compute.evaluation.systems import PAPER_SHARE, System
from compute.evaluation.tables import Spread, Summary
from compute.evaluation.weight_space import WaySummary
from compute.reporting.gather import best_scores, nearest_row
from compute.reporting.page.plots import Whiskers, whisker_plot
from compute.reporting.page.tables import HtmlTable, Part, Plot
from compute.reporting.page.words import (
    LEFT_OUT,
    interval,
    left_out,
    metric_words,
    number,
    percent,
    share,
    spread,
    system_words,
)
from compute.reporting.records import ADAPTER, GROUP, Report, ReportedEvaluation

Figures = dict[str, Any]
Measure = Callable[[Summary], Spread]


def comparisons(report: Report) -> tuple[list[Part], Figures]:
    """Return the parts of the section, and their figures by the id of the place each goes to."""
    parts: list[Part] = []
    figures: Figures = {}
    for position, evaluation in enumerate(report.evaluations):
        part, made = _by_answers(evaluation, position)
        parts.append(part)
        figures |= made
    part, made = _by_weights(report)
    return [*parts, part], figures | made


# -- by weights ----------------------------------------------------------------------------------------


def _by_weights(report: Report) -> tuple[Part, Figures]:
    plain = sorted(_of(report.weight_space, ADAPTER), key=lambda row: row.relative_error)
    grouped = {row.system.key: row for row in _of(report.weight_space, GROUP)}
    each = ("relative distance", "to uniform [95%]", "to the paper’s best [95%]")
    headings = ("approach", *each, *(each if grouped else ()), "cosine", "sources")
    over = (("", 1), (LEFT_OUT[ADAPTER], 3), (LEFT_OUT[GROUP], 3), (LEFT_OUT[ADAPTER], 2)) if grouped else ()
    rows = []
    for row in plain:
        cells = [system_words(row.system), *_distances(row)]
        if grouped:
            cells += _distances(grouped[row.system.key])
        rows.append((*cells, number(row.cosine), number(row.effective_sources, 1)))
    best = nearest_row(report.weight_space, ADAPTER)
    table = HtmlTable(
        f"Means over {_trained(report)} targets, nearest first; oracle knows the answer and is a bound",
        headings,
        tuple(rows),
        numeric=tuple(range(1, len(headings))),
        strong=tuple(i for i, row in enumerate(plain) if row is best),
        over=over,
    )
    whiskers = [
        _whiskers(row.system, row.to_uniform)
        for row in [*plain, *(grouped[row.system.key] for row in plain if grouped)]
        if row.to_uniform is not None and row.to_uniform.has_bounds
    ]
    texts: tuple[str, ...] = (
        "The relative distance of a prediction to the adapter that training gave: 0 is the same weights, 1 is "
        "no adapter at all. Nearness in weights costs nothing to measure, and is not quality. Differences are "
        "to the uniform mean of the same sources and to the paper’s best way, Jensen-Shannon normalized, "
        "with 95% intervals over "
        + ("targets, or over groups where groups are left out" if grouped else "targets")
        + "; below 0 is nearer.",
    )
    texts += tuple(_sentence(line) for line in of_predicted(report.predicted))
    if not whiskers:
        return Part("Distance to the trained weights", texts, (table,), ()), {}
    caption = "Difference in relative distance to the uniform mean, with 95% intervals; left is nearer."
    plot = Plot("weight-plot", f"Plot. {caption} The table above has the numbers.", caption)
    figure = whisker_plot(whiskers, "difference in relative distance", name=plot.id)
    return Part("Distance to the trained weights", texts, (table,), (plot,)), {plot.id: figure}


def _distances(row: WaySummary) -> list[str]:
    return [number(row.relative_error), interval(row.to_uniform), interval(row.to_paper)]


def _of(rows: Sequence[WaySummary], leave_out: str) -> list[WaySummary]:
    return [row for row in rows if row.system.leave_out == leave_out]


def _trained(report: Report) -> int:
    """Return how many targets have an adapter that was trained; where none has, all are compared."""
    return len(report.adapters) - len(report.predicted) or len(report.adapters)


def _sentence(line: str) -> str:
    return f"{line[:1].upper()}{line[1:]}."


def _whiskers(system: System, difference: Interval) -> Whiskers:
    return Whiskers(
        system_words(system),
        LEFT_OUT[left_out(system)],
        difference.estimate,
        difference.low,
        difference.high,
    )


# -- by answers ----------------------------------------------------------------------------------------


def _by_answers(reported: ReportedEvaluation, position: int) -> tuple[Part, Figures]:
    measures: tuple[tuple[str, Measure], ...] = (
        ("Rouge-L", lambda one: one.rouge),
        ("Exact match", lambda one: one.exact),
        ("Exact match without stripping, as the paper’s code has it", lambda one: one.exact_unstripped),
    )
    tables = [_differences(reported)]
    tables += [
        table for title, measure in measures if (table := _by_metric(reported, title, measure)) is not None
    ]
    texts: tuple[str, ...] = (
        f"Greedy answers to {reported.examples:,} test examples of {len(reported.evaluation.targets)} targets. Rouge-L "
        "measures how much of the reference the answer shares, exact match how often it is the reference; "
        "both are from 0 to 1.",
        f"The gap is that between the base model and each target’s own trained adapter. The paper’s best, "
        f"Jensen-Shannon normalized, closes {percent(PAPER_SHARE)} of it on 502 tasks and Mistral-7B.",
    )
    names = [target.name for target in reported.evaluation.targets if target.predicted]
    texts += tuple(_sentence(line) for line in of_predicted(names))
    whiskers = [
        _whiskers(one.system, one.rouge_to_base)
        for one in sorted(reported.summaries, key=lambda one: -one.rouge.mean)
        if one.rouge_to_base is not None and one.rouge_to_base.has_bounds
    ]
    heading = f"Generated answers (evaluation {reported.evaluation.identity})"
    if not whiskers:
        return Part(heading, texts, tuple(tables), ()), {}
    caption = "Difference in mean Rouge-L to the base model, with 95% intervals; right is better."
    plot = Plot(f"answers-plot-{position}", f"Plot. {caption} The table above has the numbers.", caption)
    figure = whisker_plot(whiskers, "difference in Rouge-L", name=plot.id)
    return Part(heading, texts, tuple(tables), (plot,)), {plot.id: figure}


def _differences(reported: ReportedEvaluation) -> HtmlTable:
    """Every system: means, differences to base and uniform, share of the gap; side by side by what is left out."""
    both = [name for name in LEFT_OUT if any(left_out(one.system) == name for one in reported.summaries)]
    best_first = sorted(reported.summaries, key=lambda one: -one.rouge.mean)
    systems = {one.system.key: one.system for one in best_first}
    by_place = {(one.system.key, left_out(one.system)): one for one in reported.summaries}
    each = (
        "Rouge‑L",
        "to base [95%]",
        "to uniform [95%]",
        "to the paper’s best [95%]",
        "gap closed [95%]",
        "exact match",
    )
    headings = ("system", *(each * len(both)))
    rows = []
    for key, system in systems.items():
        cells = [system_words(system)]
        for name in both:
            one = by_place.get((key, name))
            cells += ["–"] * len(each) if one is None else _cells(one)
        rows.append(tuple(cells))
    best = best_scores([reported], both[0]) if both else None
    return HtmlTable(
        f"All systems, best first; the paper’s best closes {percent(PAPER_SHARE)} of its gap",
        headings,
        tuple(rows),
        numeric=tuple(range(1, len(headings))),
        over=(("", 1), *((LEFT_OUT[name], len(each)) for name in both)) if len(both) > 1 else (),
        strong=tuple(i for i, key in enumerate(systems) if best is not None and key == best.system.key),
    )


def _cells(one: Summary) -> list[str]:
    return [
        number(one.rouge.mean),
        interval(one.rouge_to_base),
        interval(one.rouge_to_uniform),
        interval(one.rouge_to_paper),
        share(one.gap_share),
        number(one.exact.mean),
    ]


def _by_metric(reported: ReportedEvaluation, title: str, measure: Measure) -> HtmlTable | None:
    """Approaches down, metrics across, mean and standard deviation, as in the paper's tables 1 and 3."""
    systems = [one.system for one in reported.summaries]
    metrics = list(dict.fromkeys(system.metric for system in systems if system.metric))
    if not metrics:
        return None
    both = [name for name in LEFT_OUT if any(s.leave_out == name and s.metric for s in systems)]
    spreads = {(left_out(one.system), one.system.key): measure(one) for one in reported.summaries}
    # A row for what differs in the metric alone.
    rows = []
    for system in {
        plain.key: plain for plain in (replace(system, metric=None) for system in systems)
    }.values():
        cells = [
            spreads.get((name, system.key)) or spreads.get((name, replace(system, metric=metric).key))
            for name in both
            for metric in metrics
        ]
        rows.append((system_words(system), *(spread(cell) for cell in cells)))
    return HtmlTable(
        f"{title}, mean ± standard deviation over targets",
        ("approach", *[metric_words(metric) for metric in metrics] * len(both)),
        tuple(rows),
        numeric=tuple(range(1, len(metrics) * len(both) + 1)),
        over=(("", 1), *((LEFT_OUT[name], len(metrics)) for name in both)),
    )
