"""What `bank evaluate` tells without generating: errors in weight space, and by the size of the bank."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import print_json, print_table, tell, write_csv, write_text

if TYPE_CHECKING:
    from bankdb.bank import AdapterBank
    from bankdb.progress import Progress
    from compute.approaches.options import PredictionOptions
    from compute.cluster.options import ClusterOptions
    from compute.evaluation.bank_sizes import SizeCurve
    from compute.evaluation.weight_space import WeightSpaceTable

_SIZE_HEADINGS = ("metric", "approach", "leave_out", "adapters", "draws", "targets", "relative_error", "sd")


def sizes_option(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Read `4,8,16` as ascending numbers; anything else is wrong use."""
    if value is None:
        return ()
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"expected numbers of adapters such as 4,8,16, found {value!r}")
    return tuple(int(part) for part in parts)


@dataclass(frozen=True, slots=True)
class WeightsOutput:
    """What was asked for: where results go, and the sizes of banks whose curves are drawn."""

    sizes: tuple[int, ...]
    draws: int
    seed: int
    csv: Path | None
    out: Path | None
    as_json: bool


def print_weights(
    bank: AdapterBank,
    combinations: Sequence[PredictionOptions],
    leave_outs: Sequence[str],
    asked: WeightsOutput,
    cluster: ClusterOptions,
    progress: Progress,
) -> None:
    """Compute the errors and print or write them."""
    import compute

    ways = [replace(way, leave_out=one) for one in leave_outs for way in combinations]
    table = compute.evaluate(bank, ways, weights_only=True, cluster=cluster, progress=progress)
    curves = size_curves(bank, combinations, leave_outs, asked, progress)
    _tell(table, curves, asked)


def size_curves(
    bank: AdapterBank,
    combinations: Sequence[PredictionOptions],
    leave_outs: Sequence[str],
    asked: WeightsOutput,
    progress: Progress,
) -> list[SizeCurve]:
    """Compute the curves over bank sizes of all that train no network; none where no sizes were asked for."""
    import compute
    from compute.evaluation.systems import compared_ways

    if not asked.sizes:
        return []
    ways = [way for way in compared_ways(combinations) if way.how.of_matrices_alone]
    wanted = [replace(way, leave_out=leave_out) for leave_out in leave_outs for way in ways]
    return compute.bank_size_curves(
        bank, wanted, asked.sizes, draws=asked.draws, seed=asked.seed, progress=progress
    )


def _tell(table: WeightSpaceTable, curves: Sequence[SizeCurve], asked: WeightsOutput) -> None:
    from compute.evaluation.weight_space import as_csv, as_record

    to_screen = asked.csv is not None and str(asked.csv) == "-"
    if asked.csv is not None:
        write_csv(asked.csv, as_csv(table))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        write_csv(asked.out / "weights.csv", as_csv(table))
        write_sizes(curves, asked.out)
        tell(f"wrote {asked.out}/", err=True)
    if asked.as_json:
        print_json({"weight_space": as_record(table), "bank_sizes": sizes_record(curves)})
    elif not to_screen:
        _print_table(table)
        print_sizes(curves)


def _difference(estimate: float | None, low: float | None, high: float | None) -> str | None:
    """Return a difference with its interval, where there are enough targets for one."""
    if estimate is None:
        return None
    return f"{estimate:+.4f}" + ("" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]")


def _print_table(table: WeightSpaceTable) -> None:
    from compute.evaluation.weight_space import summary_rows

    headings = [
        "metric",
        "approach",
        "left out",
        "MSE",
        "cosine",
        "relative error",
        "sources",
        "to JS normalized",
    ]
    rows = [
        [
            *row[:3],
            f"{row[3]:.3e}",
            f"{row[4]:.4f}",
            f"{row[5]:.4f}",
            f"{row[6]:.1f}",
            _difference(*row[7:10]),
        ]
        for row in summary_rows(table)
    ]
    title = (
        f"Distance in weights of {len(table.names)} predictions to the trained adapters, nothing generated"
    )
    print_table(headings, rows, title=title, same=True)


def print_sizes(curves: Sequence[SizeCurve]) -> None:
    """Print the mean relative error of each way, sizes across."""
    if not curves:
        return
    rows = [
        [
            *_named(curve),
            *(f"{mean:.4f} ± {spread:.4f}" for mean, spread in zip(curve.mean, curve.spread, strict=True)),
        ]
        for curve in curves
    ]
    headings = ["approach", "left out", *map(str, curves[0].sizes)]
    title = f"Relative error by adapters in the bank, mean and deviation over {len(curves[0].relative)} draws"
    print_table(headings, rows, title=title, same=True)


def sizes_record(curves: Sequence[SizeCurve]) -> list[dict[str, Any]]:
    """Return the curves for JSON; None where there is no number."""
    from compute.evaluation.weight_space import size_rows

    rows = [dict(zip(_SIZE_HEADINGS, row, strict=True)) for row in size_rows(curves)]
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def write_sizes(curves: Sequence[SizeCurve], out: Path) -> None:
    """Write the curves as sizes.csv, and drawn, as a page that needs no network, as sizes.html."""
    if not curves:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, _SIZE_HEADINGS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sizes_record(curves))
    write_csv(out / "sizes.csv", text.getvalue())
    write_text(out / "sizes.html", _drawn(curves))


def _drawn(curves: Sequence[SizeCurve]) -> str:
    from bokeh.embed import file_html
    from bokeh.layouts import column
    from bokeh.resources import INLINE

    from compute.reporting.page.plots import Curve, curve_plot

    plots = []
    for leave_out in dict.fromkeys(curve.system.leave_out for curve in curves):
        lines = []
        for curve in curves:
            known = [index for index, mean in enumerate(curve.mean) if mean == mean]
            if curve.system.leave_out != leave_out or not known:
                continue
            means = [float(curve.mean[index]) for index in known]
            spreads = [0.0 if curve.spread[i] != curve.spread[i] else float(curve.spread[i]) for i in known]
            lines.append(
                Curve(
                    _named(curve)[0],
                    tuple(curve.sizes[index] for index in known),
                    tuple(means),
                    tuple(mean - spread for mean, spread in zip(means, spreads, strict=True)),
                    tuple(mean + spread for mean, spread in zip(means, spreads, strict=True)),
                )
            )
        label = f"relative error, {leave_out} left out"
        plots.append(curve_plot(lines, label, name=f"sizes-{leave_out}"))
    title = "How large a bank is needed"
    return str(file_html(column(*plots, sizing_mode="stretch_width"), INLINE, title))


def _named(curve: SizeCurve) -> tuple[str, str | None]:
    system = curve.system
    return " ".join(filter(None, (system.metric, system.approach, system.detail))), system.leave_out
