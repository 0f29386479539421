"""The report as one HTML file that needs no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.resources import Resources
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bankdb.errors import printable
from compute.approaches.by_distance import effective_sources
from compute.evaluation.bank_sizes import SizeCurve
from compute.reporting.ordering import runs_of_equal
from compute.reporting.page import tables, words
from compute.reporting.page.comparisons import Figures, comparisons
from compute.reporting.page.images import EncodedMatrix, encode_coefficients, encode_distances
from compute.reporting.page.payload import json_in_html, left_out_of, payload
from compute.reporting.page.plots import Curve, MatrixFigures, bar_plot, curve_plot
from compute.reporting.page.steps import learning
from compute.reporting.page.tables import HtmlTable, Plot
from compute.reporting.records import Matrix, Report

CONTENTS = (
    ("bank", "What the bank holds"),
    ("finding", "Which approach"),
    ("tables", "How the approaches compare"),
    ("matrices", "Coefficients and distances"),
    ("targets", "Each target"),
    ("sizes", "How large a bank is needed"),
    ("steps", "What training steps are worth"),
    ("times", "Run times"),
    ("made", "How this was made"),
)
_ASSETS = files("compute.reporting.page")


@dataclass(frozen=True, slots=True)
class Picture:
    """A small matrix picture: where it goes and what is said about it."""

    key: str
    id: str
    title: str
    words: str
    note: str
    alt: str


def render(report: Report, *, title: str | None = None, command: str = "") -> str:
    """Return the report as HTML; equal reports give equal text.

    Parameters
    ----------
    title
        Of the page; made from the base model's name if not given.
    command
        The command line that asked for the report, shown at its end.
    """
    parts, figures = comparisons(report)
    pictures, encoded, matrix_figures, framed = _pictures(report)
    size_plots, size_figures = _sizes(report.sizes)
    step_plots, step_figures = learning(report.curves)
    shown = [matrix for matrix in report.coefficients if not _is_uniform(matrix)] or list(report.coefficients)
    chosen = next((matrix for matrix in shown if matrix.key == report.recommended.key), shown[0])
    figures = {
        **figures,
        **matrix_figures,
        **size_figures,
        **step_figures,
        "bars": bar_plot(min(12, len(report.names) - 1)),
    }
    document, roots = embedded(figures)
    title = title or f"Report of the adapter bank for {report.bank.base_model}"
    finding, sentences = words.headline(report)
    page: str = _template().render(
        title=title,
        lead=_lead(report),
        contents=[entry for entry in CONTENTS if entry[0] != "steps" or step_plots],
        facts=tables.facts(report),
        initialisations=report.initialisations,
        groups=tables.groups(report),
        adapters=tables.adapters_table(report),
        headline=finding,
        findings=sentences,
        comparisons=parts,
        count=len(report.names),
        ordered_by=words.metric_words(report.ordered_by),
        framed=framed,
        pictures=pictures,
        chosen=chosen.key,
        names=sorted(enumerate(report.names), key=lambda item: item[1]),
        ways=[(i, words.matrix_words(matrix)) for i, matrix in enumerate(report.coefficients)],
        chosen_way=next(i for i, matrix in enumerate(report.coefficients) if matrix is chosen),
        has_scores=bool(report.evaluations),
        left_out=[words.LEFT_OUT[name] for name in left_out_of(report)],
        size_plots=size_plots,
        step_plots=step_plots,
        stages=tables.stages_table(report),
        made=tables.made_tables(report),
        command=command,
        css=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
        bokeh=Markup(bokeh_script()),
        data=Markup(json_in_html(payload(report, encoded, list(report.coefficients)))),
        figures=Markup(json_in_html({"document": document, "roots": roots})),
    )
    return page


def _is_uniform(matrix: Matrix) -> bool:
    return matrix.system is not None and matrix.system.is_uniform


def _lead(report: Report) -> str:
    but = f", but {len(report.predicted)} that were predicted" if report.predicted else ""
    lead = (
        f"{len(report.adapters)} LoRA adapters, each trained on its own dataset{but}. For every one of them: how well "
        "can it be predicted from the others, without training?"
    )
    if report.in_bank == len(report.adapters):
        return lead
    return (
        f"{lead} The bank has {report.in_bank:,} adapters, more than a page can show: these were drawn at random, "
        "each is predicted from the others of them alone, and the rest is left out."
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value, keep="\n\t") if type(value) is str else value,
    )
    return environment.from_string(_asset("page.html.j2"))


def bokeh_script() -> str:
    """Return BokehJS without the modules that the figures do not use."""
    script = "\n".join(Resources(mode="inline", components=["bokeh"], minified=True).js_raw)
    assert "</script" not in script.lower(), "BokehJS would end its own script element"
    return script


# -- matrices ------------------------------------------------------------------------------------------


def _pictures(
    report: Report,
) -> tuple[list[tuple[str, list[Picture]]], dict[str, tuple[str, EncodedMatrix]], Figures, bool]:
    """Small pictures by approach, their codes by key, the figures by place, and whether groups are framed."""
    order = report.order
    groups = [report.adapters[i].group or f"\0{report.names[i]}" for i in order]
    blocks = runs_of_equal(groups)
    maker = MatrixFigures(len(order), blocks)
    figures: Figures = {"focus": maker.large()}
    rows: dict[str, list[Picture]] = {}
    encoded: dict[str, tuple[str, EncodedMatrix]] = {}
    alone = _without_metric(report)
    for matrix in (*report.coefficients, *report.distances):
        if _is_uniform(matrix):
            continue  # one colour
        ordered = matrix.values[np.ix_(order, order)]
        codes = encode_distances(ordered) if matrix.system is None else encode_coefficients(ordered)
        single = matrix.system is not None and matrix.system.approach in alone
        picture = _picture(matrix, codes, len(encoded), single)
        rows.setdefault("other coefficients" if single else _row_title(matrix), []).append(picture)
        encoded[picture.key] = (picture.words, codes)
        figures[picture.id] = maker.small(picture.key, codes.codes)
    return list(rows.items()), encoded, figures, bool(blocks)


def _without_metric(report: Report) -> set[str]:
    """Approaches with a single picture, which share a row."""
    counts = Counter(matrix.system.approach for matrix in report.coefficients if matrix.system)
    return {approach for approach, count in counts.items() if count == 1}


def _row_title(matrix: Matrix) -> str:
    return "distances" if matrix.system is None else f"{matrix.system.approach} coefficients"


def _picture(matrix: Matrix, codes: EncodedMatrix, position: int, single: bool) -> Picture:
    system = matrix.system
    distance = system is None
    title = words.metric_words(matrix.metric or "")
    if system is not None:
        title = system.label if single or not matrix.metric else title
        title += f", {system.detail}" if system.detail else ""
    text = words.matrix_words(matrix)
    spread = f"{codes.low:.3g} to {codes.high:.3g}"
    note = "" if distance else f"{effective_sources(matrix.values).mean():.1f} sources"
    what = "distances between datasets" if distance else "coefficients"
    alt = f"Picture of {what}: {text}, {spread}, {len(matrix.values)} targets by {len(matrix.values)} sources"
    return Picture(matrix.key, f"picture-{position}", title, text, note, alt)


# -- bank sizes ----------------------------------------------------------------------------------------


_MEASURE = "Relative distance to the trained adapter"
_BAND = "least to largest draw"


def _sizes(curves: Sequence[SizeCurve]) -> tuple[list[Plot], Figures]:
    """The curves in one plot, at the sizes at which every draw has a prediction."""
    series = [curve for curve in map(_series, curves) if curve.sizes]
    if not series:
        return [], {}
    caption = f"{_MEASURE} by the number of adapters in the bank; lower is better. Bands: {_BAND}."
    alt = f"Plot. {caption} The table below has the numbers."
    draws = max(len(curve.relative) for curve in curves)
    plot = Plot("size-plot", alt, caption, _size_table(series, draws))
    return [plot], {plot.id: curve_plot(series, _MEASURE, name=plot.id)}


def _series(curve: SizeCurve) -> Curve:
    known = np.flatnonzero(np.isfinite(curve.relative).all(axis=0))
    drawn = curve.relative[:, known]
    return Curve(
        words.system_words(curve.system),
        tuple(curve.sizes[column] for column in known),
        tuple(drawn.mean(axis=0).tolist()),
        tuple(drawn.min(axis=0).tolist()),
        tuple(drawn.max(axis=0).tolist()),
    )


def _size_table(series: Sequence[Curve], draws: int) -> HtmlTable:
    sizes = sorted({size for curve in series for size in curve.sizes})
    rows = []
    for curve in series:
        points = zip(curve.means, curve.lows, curve.highs, strict=True)
        cells = {
            size: f"{words.number(mean)} [{words.number(low)}, {words.number(high)}]"
            for size, (mean, low, high) in zip(curve.sizes, points, strict=True)
        }
        rows.append((curve.label, *(cells.get(size, "–") for size in sizes)))
    caption = f"{_MEASURE}, mean over up to {draws} draws and [{_BAND}], by adapters in the bank"
    return HtmlTable(caption, ("approach", *map(str, sizes)), tuple(rows), tuple(range(1, len(sizes) + 1)))


# -- Bokeh ---------------------------------------------------------------------------------------------


def embedded(figures: Figures) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the figures as one Bokeh document in JSON, and the place of each root.

    Bokeh numbers its models through the life of the process; here they are numbered from 1, so that equal
    figures give equal text.
    """
    document = Document()
    for figure in figures.values():
        document.add_root(figure)
    made: dict[str, Any] = dict(document.to_json(deferred=False))
    numbers: dict[str, str] = {}
    made = _renumbered(made, numbers)
    made["title"] = "report"
    return made, {numbers[figure.id]: place for place, figure in figures.items()}


def _renumbered(value: Any, numbers: dict[str, str]) -> Any:
    if isinstance(value, dict):
        renumbered = {key: _renumbered(item, numbers) for key, item in value.items()}
        if isinstance(value.get("id"), str):
            renumbered["id"] = numbers.setdefault(value["id"], f"m{len(numbers) + 1}")
        return renumbered
    if isinstance(value, list | tuple):
        return [_renumbered(item, numbers) for item in value]
    return value
