"""How the approaches compare: in weight space, and by generated answers where there is an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compute.reporting.gather import best_scores, nearest_row
from compute.reporting.page.plots import Whiskers, whisker_plot
from compute.reporting.page.tables import HtmlTable, Part, Plot
from compute.reporting.page.words import (
    LEFT_OUT,
    PAPER_SHARE,
    interval,
    metric_words,
    number,
    percent,
    share,
    way_words,
)
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

Figures = dict[str, Any]
Measure = Callable[[Scores], tuple[float, float] | None]


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
    plain = sorted(_of(report.weight_space, ADAPTER), key=lambda row: row.relative)
    grouped = {row.way: row for row in _of(report.weight_space, GROUP)}
    each = ("relative distance", "to uniform [95%]", "to the paper’s best [95%]")
    headings = ("approach", *each, *(each if grouped else ()), "cosine", "sources")
    over = (("", 1), (LEFT_OUT[ADAPTER], 3), (LEFT_OUT[GROUP], 3), (LEFT_OUT[ADAPTER], 2)) if grouped else ()
    rows = []
    for row in plain:
        cells = [way_words(row.way), *_distances(row)]
        if grouped:
            cells += _distances(grouped[row.way])
        rows.append((*cells, number(row.cosine), number(row.effective, 1)))
    best = nearest_row(report.weight_space, ADAPTER)
    table = HtmlTable(
        f"Means over {len(report.adapters)} targets, nearest first; oracle knows the answer and is a bound",
        headings,
        tuple(rows),
        numeric=tuple(range(1, len(headings))),
        strong=tuple(i for i, row in enumerate(plain) if row is best),
        over=over,
    )
    whiskers = [
        _whiskers(row.way, row.leave_out, row.against_uniform)
        for row in [*plain, *(grouped[row.way] for row in plain if grouped)]
        if row.against_uniform is not None
    ]
    texts = (
        "The relative distance of a prediction to the adapter that training gave: 0 is the same weights, 1 is "
        "no adapter at all. Nearness in weights costs nothing to measure, and is not quality. Differences are "
        "to the uniform mean of the same sources and to the paper’s best way, Jensen-Shannon normalized, "
        "with 95% intervals over "
        + ("targets, or over groups where groups are left out" if grouped else "targets")
        + "; below 0 is nearer.",
    )
    if not whiskers:
        return Part("Distance to the trained weights", texts, (table,), ()), {}
    caption = "Difference in relative distance to the uniform mean, with 95% intervals; left is nearer."
    plot = Plot("weight-plot", f"Plot. {caption} The table above has the numbers.", caption)
    figure = whisker_plot(whiskers, "difference in relative distance", name=plot.id)
    return Part("Distance to the trained weights", texts, (table,), (plot,)), {plot.id: figure}


def _distances(row: WeightSpaceRow) -> list[str]:
    return [number(row.relative), interval(row.against_uniform), interval(row.against_paper)]


def _of(rows: Sequence[WeightSpaceRow], leave_out: str) -> list[WeightSpaceRow]:
    return [row for row in rows if row.leave_out == leave_out]


def _whiskers(way: Way, leave_out: str, estimate: Estimate) -> Whiskers:
    return Whiskers(way_words(way), LEFT_OUT[leave_out], estimate.value, estimate.low, estimate.high)


# -- by answers ----------------------------------------------------------------------------------------


def _by_answers(evaluation: ReportedEvaluation, position: int) -> tuple[Part, Figures]:
    measures: tuple[tuple[str, Measure], ...] = (
        ("Rouge-L", lambda scores: scores.rouge),
        ("Exact match", lambda scores: scores.exact),
        ("Exact match without stripping, as the paper’s code has it", lambda scores: scores.unstripped),
    )
    tables = [_differences(evaluation)]
    tables += [
        table for title, measure in measures if (table := _by_metric(evaluation, title, measure)) is not None
    ]
    texts = (
        f"Greedy answers to {evaluation.examples:,} test examples of {evaluation.targets} targets. Rouge-L "
        "measures how much of the reference the answer shares, exact match how often it is the reference; "
        "both are from 0 to 1.",
        f"The gap is that between the base model and each target’s own trained adapter. The paper’s best, "
        f"Jensen-Shannon normalized, closes {percent(PAPER_SHARE)} of it on 502 tasks and Mistral-7B.",
    )
    whiskers = [
        _whiskers(scores.way, scores.leave_out, scores.rouge_against_base)
        for scores in sorted(evaluation.scores, key=lambda scores: -scores.rouge[0])
        if scores.rouge_against_base is not None and scores.way.approach != "base"
    ]
    heading = f"Generated answers (evaluation {evaluation.identity})"
    if not whiskers:
        return Part(heading, texts, tuple(tables), ()), {}
    caption = "Difference in mean Rouge-L to the base model, with 95% intervals; right is better."
    plot = Plot(f"answers-plot-{position}", f"Plot. {caption} The table above has the numbers.", caption)
    figure = whisker_plot(whiskers, "difference in Rouge-L", name=plot.id)
    return Part(heading, texts, tuple(tables), (plot,)), {plot.id: figure}


def _differences(evaluation: ReportedEvaluation) -> HtmlTable:
    """Every system: means, differences to base and uniform, share of the gap; side by side by what is left out."""
    both = [name for name in LEFT_OUT if any(scores.leave_out == name for scores in evaluation.scores)]
    measured = [scores for scores in evaluation.scores if scores.leave_out in both]
    ways = list(dict.fromkeys(s.way for s in sorted(measured, key=lambda scores: -scores.rouge[0])))
    by_way = {(scores.way, scores.leave_out): scores for scores in measured}
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
    for way in ways:
        cells = [way_words(way)]
        for leave_out in both:
            scores = by_way.get((way, leave_out))
            cells += ["–"] * len(each) if scores is None else _cells(scores)
        rows.append(tuple(cells))
    best = best_scores([evaluation], both[0]) if both else None
    return HtmlTable(
        f"All systems, best first; the paper’s best closes {percent(PAPER_SHARE)} of its gap",
        headings,
        tuple(rows),
        numeric=tuple(range(1, len(headings))),
        over=(("", 1), *((LEFT_OUT[name], len(each)) for name in both)) if len(both) > 1 else (),
        strong=tuple(i for i, way in enumerate(ways) if best is not None and way == best.way),
    )


def _cells(scores: Scores) -> list[str]:
    return [
        number(scores.rouge[0]),
        interval(scores.rouge_against_base),
        interval(scores.rouge_against_uniform),
        interval(scores.rouge_against_paper),
        share(scores.gap_closed),
        number(scores.exact[0]),
    ]


def _by_metric(evaluation: ReportedEvaluation, title: str, measure: Measure) -> HtmlTable | None:
    """Approaches down, metrics across, mean and standard deviation, as in the paper's tables 1 and 3."""
    chosen = [scores for scores in evaluation.scores if measure(scores) is not None]
    metrics = list(dict.fromkeys(scores.way.metric for scores in chosen if scores.way.metric))
    if not metrics:
        return None
    both = [name for name in LEFT_OUT if any(s.leave_out == name and s.way.metric for s in chosen)]
    found = {(s.leave_out, s.way.approach, s.way.detail, s.way.metric): measure(s) for s in chosen}
    rows = []
    for approach, detail in dict.fromkeys((scores.way.approach, scores.way.detail) for scores in chosen):
        cells = [
            found.get((left_out, approach, detail, None)) or found.get((left_out, approach, detail, metric))
            for left_out in both
            for metric in metrics
        ]
        rows.append((way_words(Way(approach, None, detail)), *(_mean_and_deviation(cell) for cell in cells)))
    return HtmlTable(
        f"{title}, mean ± standard deviation over targets",
        ("approach", *[metric_words(metric) for metric in metrics] * len(both)),
        tuple(rows),
        numeric=tuple(range(1, len(metrics) * len(both) + 1)),
        over=(("", 1), *((LEFT_OUT[name], len(metrics)) for name in both)),
    )


def _mean_and_deviation(pair: tuple[float, float] | None) -> str:
    return "–" if pair is None else f"{number(pair[0])} ± {number(pair[1])}"
