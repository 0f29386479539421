"""Weight-space errors of leave-one-out predictions by many approaches and metrics, without generation.

With the Gram matrix G and e = a row of coefficients minus its own unit vector, the squared distance of the
prediction to the adapter that training gave is `e G e^T`; nothing of an adapter's size is formed. `oracle` is
the bound. Nearness in weights is not quality: the table says how well adapters are predicted, not how well
they do.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import write_whole
from bankdb.bank import AdapterBank
from bankdb.errors import ConflictError, ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.shown import html_summary, text_summary
from compute.approaches.groups import LEAVE_OUT, units_of
from compute.approaches.options import NO_DISTANCES, PredictionOptions
from compute.approaches.weight_errors import WeightSpaceErrors, weight_space_errors
from compute.cluster.options import ClusterLike
from compute.evaluation.bank_sizes import SizeCurve, bank_size_curve
from compute.prediction.coefficients import Coefficients, compute_coefficients
from compute.prediction.matrices import compute_gram, compute_matrices
from compute.prediction.session import computing

FloatArray = NDArray[np.float64]
REFERENCE = ("jensen-shannon", "normalized")
"""The paper's best combination, which the others are compared with."""
DRAWS = 10_000
# Ways that a table shows of itself.
_LISTED = 20
HEADINGS = (
    "metric",
    "approach",
    "leave_out",
    "mse",
    "cosine",
    "relative_error",
    "effective_sources",
    "difference",
    "low",
    "high",
)


@dataclass(frozen=True, slots=True, eq=False)
class WayErrors:
    """Errors of all targets by one approach and metric.

    Attributes
    ----------
    options
        How the predictions are made.
    metric
        The metric's key, or `none`.
    errors
        Of each target.
    effective
        Effective number of sources of each target, shape (N,).
    """

    options: PredictionOptions
    metric: str
    errors: WeightSpaceErrors
    effective: FloatArray


@dataclass(frozen=True, slots=True)
class WaySummary:
    """Means over the targets, and the relative error less that of the reference, with its interval.

    Attributes
    ----------
    metric, approach, leave_out
        How the predictions are made; the metric by name, or `none`.
    mse, cosine, relative_error, effective_sources
        Means over the targets.
    difference, low, high
        Mean difference of the relative errors to those of the reference with the same targets and the same
        `leave_out`, and its 95% interval; None where the reference is not in the table.
    """

    metric: str
    approach: str
    leave_out: str
    mse: float
    cosine: float
    relative_error: float
    effective_sources: float
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WeightSpaceTable:
    """Weight-space errors of a bank.

    Attributes
    ----------
    names, groups
        Of the N targets, by row.
    rows
        One for each way and each `leave_out`, in that order.
    """

    names: tuple[str, ...]
    groups: tuple[str | None, ...]
    rows: tuple[WayErrors, ...]

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the summaries as CSV; return the file. Raises ConflictError if one is there and is to stay."""
        target = Path(path)
        if target.exists() and not overwrite:
            raise ConflictError(f"{target}: already there; choose another path, or give overwrite=True")
        write_whole(target, as_csv(self))
        return target

    def __repr__(self) -> str:
        """Return the mean relative error of each way, the first ones of many."""
        errors = {f"{m}, {a}, {left} left out": error for m, a, left, error in self._errors()[:_LISTED]}
        return text_summary(self._title(), errors)

    def _repr_html_(self) -> str:
        rows = self._errors()
        headings = ("metric", "approach", "left out", "relative error")
        return html_summary(self._title(), {}, headings, rows[:_LISTED], len(rows) - _LISTED)

    def _title(self) -> str:
        return f"WeightSpaceTable of {len(self.names):,} targets, {len(self.rows):,} ways"

    def _errors(self) -> list[tuple[str, str, str, float]]:
        return [
            (
                "none" if row.metric == "none" else row.options.metric,
                row.options.approach,
                row.options.leave_out,
                float(np.nanmean(row.errors.relative)),
            )
            for row in self.rows
        ]

    def summaries(self, *, draws: int = DRAWS, seed: int = 0) -> list[WaySummary]:
        """Summarise each row; see `WaySummary` and `difference_interval`."""
        return [self._summary(row, draws, seed) for row in self.rows]

    def _summary(self, row: WayErrors, draws: int, seed: int) -> WaySummary:
        leave_out = row.options.leave_out
        relative = row.errors.relative
        compared: tuple[float | None, float | None, float | None] = (None, None, None)
        reference = self._reference(leave_out)
        if reference is not None:
            units = units_of(self.groups, leave_out)
            compared = difference_interval(
                relative - reference.errors.relative, units, draws=draws, seed=seed
            )
        return WaySummary(
            "none" if row.metric == "none" else row.options.metric,
            row.options.approach,
            leave_out,
            float(np.mean(row.errors.mse)),
            float(np.nanmean(row.errors.cosine)),
            float(np.nanmean(relative)),
            float(np.mean(row.effective)),
            *compared,
        )

    def _reference(self, leave_out: str) -> WayErrors | None:
        for row in self.rows:
            options = row.options
            plain = options.temperature == 1 and options.top_k is None and options.compatible == "correct"
            if plain and (options.metric, options.approach, options.leave_out) == (*REFERENCE, leave_out):
                return row
        return None


def weight_space_table(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    leave_out: Sequence[str] = LEAVE_OUT,
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> WeightSpaceTable:
    """Compute the weight-space errors of a bank's leave-one-out predictions.

    Parameters
    ----------
    ways
        Approaches and metrics; their own `leave_out` is not read.
    leave_out
        `adapter`, `group`, or both: each way is evaluated with each.

    Raises
    ------
    BankNotFoundError, ParameterError
        The bank is empty, or too small; nothing is left of it without some group; or there is no way.
    ComputeError, BankFormatError
        A piece failed, or a stored row is damaged.
    """
    wanted = [replace(options, leave_out=one) for one in leave_out for options in ways]
    if not wanted:
        raise ParameterError("weight space: expected at least one approach, found none; name some")
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        gram = compute_gram(bank, used, shown)
        found = compute_coefficients(bank, wanted, used, shown)
    adapters = found[0].adapters
    size = bank.layout.size
    return WeightSpaceTable(
        tuple(record.name for record in adapters),
        tuple(record.group for record in adapters),
        tuple(_errors(way, gram, size) for way in found),
    )


def _errors(found: Coefficients, gram: FloatArray, parameters: int) -> WayErrors:
    targets = np.arange(len(gram))
    errors = weight_space_errors(found.values, gram, targets, parameters)
    return WayErrors(found.options, found.metric, errors, found.effective)


def difference_interval(
    differences: FloatArray, units: NDArray[np.intp], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of paired differences and its 95% percentile bootstrap interval (Efron and Tibshirani, 1993).

    Units are drawn with replacement, and all differences of a unit with it: with groups left out, targets of
    one group are predicted from the same sources and are not independent. Few groups make rough intervals.

    Parameters
    ----------
    differences
        Shape (N,); NaN (an adapter of zeros) is left out.
    units
        Shape (N,): number from 0 on.
    """
    known = ~np.isnan(differences)
    sums = np.bincount(units[known], weights=differences[known], minlength=int(units.max()) + 1)
    counts = np.bincount(units[known], minlength=len(sums))
    sums, counts = sums[counts > 0], counts[counts > 0]
    if not len(sums):
        return math.nan, math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(sums.sum() / counts.sum()), float(low), float(high)


def bank_size_curves(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    sizes: Sequence[int],
    *,
    draws: int,
    seed: int = 0,
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> list[SizeCurve]:
    """Return the weight error of each way by the size of the bank; see `bank_size_curve`.

    Raises
    ------
    ParameterError
        For sizes, draws or a seed out of range, and the approach `neural`.
    """
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        matrices = compute_matrices(bank, [*ways, PredictionOptions(approach="oracle")], used, shown)
    gram = matrices[-1].gram
    assert gram is not None, "the oracle reads it"
    shown.begin("bank sizes", len(ways))
    curves = []
    for way, found in zip(ways, matrices, strict=False):
        curves.append(bank_size_curve(way, found.distances, gram, found.units, sizes, draws=draws, seed=seed))
        shown.advance()
    shown.end()
    return curves


# -- as text, CSV and JSON -----------------------------------------------------------------------------


def as_rows(table: WeightSpaceTable, **bootstrap: int) -> list[tuple[Any, ...]]:
    """Values of each summary in the order of `HEADINGS`, the smallest relative error first."""
    summaries = table.summaries(**bootstrap)
    order = {leave_out: index for index, leave_out in enumerate(LEAVE_OUT)}
    summaries.sort(key=lambda summary: (order[summary.leave_out], summary.relative_error))
    return [tuple(getattr(summary, heading) for heading in HEADINGS) for summary in summaries]


def as_markdown(table: WeightSpaceTable, **bootstrap: int) -> str:
    """Relative errors, plain and grouped side by side, with differences to the reference, as Markdown."""
    summaries = table.summaries(**bootstrap)
    kinds = [kind for kind in LEAVE_OUT if any(summary.leave_out == kind for summary in summaries)]
    by_way: dict[tuple[str, str], dict[str, WaySummary]] = {}
    for summary in summaries:
        by_way.setdefault((summary.approach, summary.metric), {})[summary.leave_out] = summary
    order = sorted(by_way.items(), key=lambda item: item[1][kinds[-1]].relative_error)
    headings = [
        "approach",
        "metric",
        *(part for kind in kinds for part in (f"{kind} left out", "difference")),
    ]
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for (approach, metric), found in order:
        cells = [part for kind in kinds for part in _cells(found[kind])]
        lines.append(f"| {' | '.join([approach, metric, *cells])} |")
    return "\n".join(lines) + "\n"


def _cells(summary: WaySummary) -> tuple[str, str]:
    error = f"{summary.relative_error:.4f}"
    if summary.difference is None:
        return error, ""
    return error, f"{summary.difference:+.4f} [{summary.low:+.4f}, {summary.high:+.4f}]"


def as_csv(table: WeightSpaceTable, **bootstrap: int) -> str:
    """All summaries as CSV, all digits kept."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADINGS)
    writer.writerows(["" if value is None else value for value in row] for row in as_rows(table, **bootstrap))
    return text.getvalue()


def as_record(table: WeightSpaceTable, **bootstrap: int) -> dict[str, Any]:
    """All summaries, and the errors of each target, for JSON; None where there is no number."""
    return {
        "names": list(table.names),
        "groups": list(table.groups),
        "reference": dict(zip(("metric", "approach"), REFERENCE, strict=True)),
        "summaries": [dict(zip(HEADINGS, row, strict=True)) for row in as_rows(table, **bootstrap)],
        "targets": [
            {
                "metric": row.metric,
                "approach": row.options.approach,
                "leave_out": row.options.leave_out,
                "relative_error": _numbers(row.errors.relative),
                "cosine": _numbers(row.errors.cosine),
                "mse": _numbers(row.errors.mse),
            }
            for row in table.rows
        ],
    }


def _numbers(values: FloatArray) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def size_rows(curves: Sequence[SizeCurve]) -> list[tuple[Any, ...]]:
    """Return way, what is left out, size, draws, targets with a prediction (least), mean error and its spread."""
    return [
        (
            curve.options.metric if curve.options.approach not in NO_DISTANCES else "none",
            curve.options.approach,
            curve.options.leave_out,
            size,
            len(curve.relative),
            int(curve.targets[:, column].min()),
            curve.mean[column],
            curve.spread[column],
        )
        for curve in curves
        for column, size in enumerate(curve.sizes)
    ]
