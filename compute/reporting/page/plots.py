"""The report's figures, with Bokeh: matrices, whiskers, bars and curves. Nothing here knows of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from bokeh.events import Tap
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColumnDataSource,
    CustomJS,
    CustomJSHover,
    CustomJSTicker,
    CustomJSTickFormatter,
    DataRange1d,
    FactorRange,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    PanTool,
    Range1d,
    ResetTool,
    WheelZoomTool,
)
from bokeh.models.annotations import Legend, LegendItem, Span, Whisker
from bokeh.palettes import viridis
from bokeh.plotting import figure
from numpy.typing import NDArray

from compute.reporting.page.images import COLOURS, largest_code

BLANK = "#00000000"
PALETTE = viridis(COLOURS - 1)
SERIES = ("#3a6fd8", "#d9730d", "#2f9e6e", "#b04ac0", "#b8860b", "#0f9bb3", "#c2415b", "#6b7280")
MARKERS = ("circle", "diamond", "square", "triangle")
_MOST_LABELS = 36
_FRAMES_UP_TO = 120
_LONGEST_LABEL = 26


@dataclass(frozen=True, slots=True)
class Whiskers:
    """A row of a plot with intervals."""

    label: str
    series: str
    value: float
    low: float
    high: float


def short(name: str, longest: int = _LONGEST_LABEL) -> str:
    """Cut a name to what an axis has room for."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


class MatrixFigures:
    """Pictures of N x N matrices that share one zoom, and so show the same block.

    Parameters
    ----------
    number
        N.
    blocks
        Start and stop of the stretches that are framed on the diagonal.
    """

    def __init__(self, number: int, blocks: Sequence[tuple[int, int]]) -> None:
        self._number = number
        self._blocks = list(blocks)
        nearest = min(number, 3)
        self._x = Range1d(start=0, end=number, bounds=(0, number), min_interval=nearest, name="matrix_x")
        self._y = Range1d(start=number, end=0, bounds=(0, number), min_interval=nearest, name="matrix_y")

    def large(self) -> Any:
        """Return the figure whose matrix the page chooses; its axes name the adapters."""
        plot = self._figure("focus", width=900, height=860)
        plot.add_tools(PanTool(), WheelZoomTool(), ResetTool())
        plot.toolbar_location = "above"
        plot.toolbar.logo = None
        self._image(plot, "focus", ColumnDataSource({"image": []}, name="focus"))
        ticker = CustomJSTicker(args={"most": _MOST_LABELS}, major_code=_TICKS)
        labels = CustomJSTickFormatter(code="return window.bankReport.label(tick)")
        for axis in (plot.xaxis[0], plot.yaxis[0]):
            axis.ticker, axis.formatter = ticker, labels
            axis.major_tick_line_color = axis.minor_tick_line_color = None
            axis.major_label_text_font_size = "11px"
            axis.axis_label_text_font_style = "normal"
        plot.xaxis.major_label_orientation = np.pi / 2
        plot.xaxis.axis_label, plot.yaxis.axis_label = "source", "target"
        return plot

    def small(self, key: str, codes: NDArray[Any]) -> Any:
        """Return a small figure of one matrix, already in the order of the names."""
        plot = self._figure(key, width=200, height=200)
        plot.toolbar_location = None
        plot.axis.visible = False
        source = ColumnDataSource({"image": [codes]}, name=f"matrix:{key}")
        self._image(plot, key, source)
        plot.js_on_event(Tap, CustomJS(args={"key": key}, code="window.bankReport.choose(key)"))
        return plot

    def _figure(self, key: str, *, width: int, height: int) -> Any:
        drag = BoxZoomTool()
        plot = figure(
            width=width,
            height=height,
            x_range=self._x,
            y_range=self._y,
            tools=[drag],
            active_drag=drag,
            sizing_mode="scale_width",
            name=f"plot:{key}",
            min_border=2,
            tags=["matrix"],
        )
        plot.grid.visible = False
        plot.add_tools(_matrix_hover(key))
        return plot

    def _image(self, plot: Any, key: str, source: ColumnDataSource) -> None:
        number = self._number
        high = largest_code(number) + 1
        colours = LinearColorMapper(palette=[BLANK, *PALETTE], low=0, high=high, name=f"colours:{key}")
        plot.image("image", x=0, y=0, dw=number, dh=number, source=source, color_mapper=colours)
        many = number > _FRAMES_UP_TO
        if self._blocks and (key == "focus" or not many):  # they would hide the diagonal of a small picture
            starts, stops = zip(*self._blocks, strict=True)
            frames = plot.quad(
                left=starts,
                right=stops,
                top=starts,
                bottom=stops,
                fill_color=None,
                line_width=0.75 if many else 1.25,
            )
            frames.name = f"frames:{key}"
            plot.hover.renderers = [item for item in plot.renderers if item is not frames]


def _matrix_hover(key: str) -> HoverTool:
    named = CustomJSHover(code="return window.bankReport.name(value)")
    number = CustomJSHover(args={"key": key}, code="return window.bankReport.cell(key, value)")
    return HoverTool(
        tooltips=[("target", "$y{custom}"), ("source", "$x{custom}"), ("value", "@image{custom}")],
        formatters={"$y": named, "$x": named, "@image": number},
        point_policy="follow_mouse",
    )


# Ticks in the middle of cells, with steps so wide that labels do not touch.
_TICKS = """
const { start, end } = cb_data.range
const low = Math.floor(Math.min(start, end)), high = Math.ceil(Math.max(start, end))
const step = Math.max(1, Math.ceil((high - low) / most))
const ticks = []
for (let i = Math.ceil(low / step) * step; i < high; i += step) ticks.push(i + 0.5)
return ticks
"""


def whisker_plot(rows: Sequence[Whiskers], axis_label: str, *, name: str) -> Any:
    """Means with intervals, a line each, several series side by side, and a dashed line at zero."""
    labels = list(dict.fromkeys(row.label for row in rows))
    series = list(dict.fromkeys(row.series for row in rows))
    low, high = min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows))
    room = 0.04 * ((high - low) or 1.0)
    plot = figure(
        x_range=Range1d(start=low - room, end=high + room),
        y_range=FactorRange(factors=labels[::-1]),
        width=760,
        height=90 + 26 * len(labels),
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        name=f"plot:{name}",
        min_border_right=24,
    )
    legend = []
    for number, one in enumerate(series):
        shift = 0.0 if len(series) == 1 else 0.34 * (0.5 - number / (len(series) - 1))
        points = _whisker_series(plot, [row for row in rows if row.series == one], shift, number)
        legend.append(LegendItem(label=one, renderers=[points]))
    plot.add_layout(Span(location=0.0, dimension="height", line_width=1.2, line_dash=[4, 3]))
    _finish(plot, axis_label, legend if len(series) > 1 else [])
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=4)
    plot.ygrid.visible = False
    return plot


def _whisker_series(plot: Any, rows: Sequence[Whiskers], shift: float, number: int) -> Any:
    """Add points with intervals, moved from the middle of their lines by `shift`; return the points."""
    source = ColumnDataSource(
        {
            "where": [(row.label, shift) for row in rows],
            "label": [row.label for row in rows],
            "value": [row.value for row in rows],
            "low": [row.low for row in rows],
            "high": [row.high for row in rows],
        }
    )
    colour = SERIES[number % len(SERIES)]
    whisker = Whisker(
        base="where",
        lower="low",
        upper="high",
        dimension="width",
        source=source,
        line_color=colour,
        line_width=1.5,
        upper_head=None,
        lower_head=None,
    )
    plot.add_layout(whisker)
    marker = MARKERS[number % len(MARKERS)]
    points = plot.scatter("value", "where", source=source, size=8, marker=marker, color=colour)
    tooltips = [("", "@label"), ("mean", "@value{0.0000}"), ("95%", "@low{0.0000} to @high{0.0000}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))
    return points


def _finish(plot: Any, axis_label: str, legend: Sequence[LegendItem] = ()) -> None:
    plot.xaxis.axis_label = axis_label
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.major_label_text_font_size = "12px"
    plot.yaxis.major_tick_line_color = None
    plot.axis.minor_tick_line_color = None
    if legend:
        box = Legend(
            items=list(legend),
            orientation="horizontal",
            border_line_color=None,
            background_fill_color=None,
        )
        plot.add_layout(box, "above")


def bar_plot(count: int) -> Any:
    """Bars for the sources of a target; the page fills in names and coefficients."""
    source = ColumnDataSource({"source": [], "weight": [], "group": [], "name": []}, name="bars")
    plot = figure(
        x_range=DataRange1d(start=0),
        y_range=FactorRange(name="bar_names"),
        width=640,
        height=70 + 24 * count,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        name="plot:bars",
        min_border_right=24,
    )
    bars = plot.hbar(y="source", right="weight", left=0, height=0.72, source=source, color=SERIES[0])
    tooltips = [("source", "@name"), ("group", "@group"), ("coefficient", "@weight{0.0000}")]
    plot.add_tools(HoverTool(renderers=[bars], tooltips=tooltips))
    _finish(plot, "coefficient")
    plot.xaxis.ticker = BasicTicker(desired_num_ticks=4)
    plot.ygrid.visible = False
    return plot


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot over bank sizes, or numbers of steps, with the band around it."""

    label: str
    sizes: tuple[int, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


def curve_plot(
    curves: Sequence[Curve],
    axis_label: str,
    *,
    name: str,
    counted: str = "adapters in the bank",
    scale: Literal["log", "linear"] = "log",
) -> Any:
    """Curves with bands over bank sizes, or whatever else is counted."""
    plot = figure(
        x_axis_type=scale,
        width=760,
        height=380,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        name=f"plot:{name}",
        min_border_right=24,
    )
    legend = []
    for number, curve in enumerate(curves):
        colour = SERIES[number % len(SERIES)]
        source = ColumnDataSource(
            {"size": curve.sizes, "mean": curve.means, "low": curve.lows, "high": curve.highs}
        )
        plot.varea("size", "low", "high", source=source, fill_color=colour, fill_alpha=0.15)
        marks: list[Any] = [plot.line("size", "mean", source=source, color=colour, line_width=2)]
        points = plot.scatter("size", "mean", source=source, color=colour, size=7)
        marks.append(points)
        legend.append(LegendItem(label=curve.label, renderers=marks))
        tooltips = [
            ("", curve.label),
            (counted, "@size"),
            ("mean", "@mean{0.0000}"),
            ("spread", "@low{0.0000} to @high{0.0000}"),
        ]
        plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))
    _finish(plot, counted, legend)
    plot.yaxis.axis_label = axis_label
    plot.xaxis.ticker = FixedTicker(ticks=sorted({size for curve in curves for size in curve.sizes}))
    plot.xgrid.visible = False
    return plot
