"""The report's section on learning curves: Rouge-L by training steps, from each start."""

from __future__ import annotations

from collections.abc import Sequence

from compute.curves.records import LearningCurves
from compute.curves.summary import CurvePoint, advantages, points
from compute.evaluation.tables import shown_interval
from compute.reporting.page.comparisons import Figures
from compute.reporting.page.plots import Curve, curve_plot
from compute.reporting.page.tables import HtmlTable, Plot

_MEASURE = "Rouge-L, mean over tasks"


def learning(curves: LearningCurves | None) -> tuple[list[Plot], Figures]:
    """Return the plot with its table, and the figure by its place; nothing where there are no curves."""
    if curves is None:
        return [], {}
    found = points(curves)
    starts = list(dict.fromkeys(one.start for one in found))
    series = [_series(start, [one for one in found if one.start == start]) for start in starts]
    settings = curves.settings
    caption = (
        f"{_MEASURE}, by training steps of {settings['batch_size']} of {settings['examples'] or 'all'} labelled "
        f"examples of each of {len(curves.targets)} tasks. Bands: 95% intervals, where there are enough tasks or "
        "groups. " + " ".join(_worth(curves))
    )
    plot = Plot("step-plot", f"Plot. {caption} The table below has the numbers.", caption, _table(found))
    shown = curve_plot(series, _MEASURE, name=plot.id, counted="training steps", scale="linear")
    return [plot], {plot.id: shown}


def _series(start: str, found: Sequence[CurvePoint]) -> Curve:
    bands = [one.band for one in found]
    return Curve(
        start,
        tuple(one.steps for one in found),
        tuple(one.rouge for one in found),
        tuple(band.low if band.has_bounds else band.estimate for band in bands),
        tuple(band.high if band.has_bounds else band.estimate for band in bands),
    )


def _worth(curves: LearningCurves) -> list[str]:
    return [
        f"{one.start}, mean over the numbers of steps between the first and the last: {shown_interval(one.mean)} to "
        "a start from zero."
        for one in advantages(curves)
    ]


def _table(found: Sequence[CurvePoint]) -> HtmlTable:
    rows = tuple(
        (
            one.start,
            str(one.steps),
            f"{one.rouge:.3f}",
            shown_interval(one.gap, percent=True) or "–",
            shown_interval(one.to_zero) or "–",
            f"{one.kept:.3f}",
        )
        for one in found
    )
    headings = ("start", "steps", "Rouge-L", "gap closed", "to zero", "kept by held-out loss")
    return HtmlTable("Rouge-L after training steps", headings, rows, tuple(range(1, len(headings))))
