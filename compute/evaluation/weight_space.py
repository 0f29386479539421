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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import write_whole
from bankdb.bank import AdapterBank
from bankdb.errors import ConflictError, ParameterError, printable
from bankdb.progress import Progress, SilentProgress
from bankdb.shown import html_summary, text_summary
from bankdb.snapshot import of_one_snapshot
from compute.approaches.by_distance import coefficients as row_coefficients
from compute.approaches.groups import LEAVE_OUT, same_unit, units_of
from compute.approaches.options import PredictionOptions
from compute.approaches.weight_errors import WeightSpaceErrors, weight_space_errors
from compute.cluster.options import ClusterLike
from compute.evaluation.bank_sizes import SizeCurve, bank_size_curve
from compute.evaluation.bootstrap import RESAMPLES, Interval, mean_difference, task_weights
from compute.evaluation.scores import of_predicted
from compute.evaluation.systems import System, check_sums, system_of
from compute.prediction.coefficients import Coefficients, compute_coefficients
from compute.prediction.matrices import compute_gram, compute_matrices
from compute.prediction.session import computing
from compute.types import FloatArray

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

    @property
    def system(self) -> System:
        """What predicts."""
        return system_of(self.options)


@dataclass(frozen=True, slots=True)
class WaySummary:
    """How far the predictions of one system are from the trained adapters, on average over the targets.

    Attributes
    ----------
    mse, cosine, relative_error, effective_sources
        Means over the targets.
    to_uniform, to_paper
        Mean difference of the relative errors to those of the uniform mean of the same sources, and of the
        paper's best, Jensen-Shannon with `normalized`; with 95% intervals, below 0 is nearer. None for these two
        themselves, and where the paper's best is not in the table.
    """

    system: System
    mse: float
    cosine: float
    relative_error: float
    effective_sources: float
    to_uniform: Interval | None
    to_paper: Interval | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WeightSpaceTable:
    """Weight-space errors of a bank.

    Attributes
    ----------
    names, groups
        Of the N targets, by row.
    rows
        One for each way and each `leave_out`, in that order.
    uniform
        Relative errors of the mean of all sources, by what is left out; shape (N,).
    predicted
        Targets whose own adapter was itself predicted; of them all errors are NaN, and the means are over the others.
    """

    names: tuple[str, ...]
    groups: tuple[str | None, ...]
    rows: tuple[WayErrors, ...]
    uniform: Mapping[str, FloatArray]
    predicted: tuple[str, ...] = ()

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the summaries as CSV; return the file. Raises ConflictError if one is there and is to stay."""
        target = Path(path)
        if target.exists() and not overwrite:
            raise ConflictError(f"{target}: already there; choose another path, or give overwrite=True")
        write_whole(target, printable(as_csv(self), keep="\n\t"))
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

    def summaries(self, *, draws: int = RESAMPLES, seed: int = 0) -> list[WaySummary]:
        """Summarise each row; intervals are those of `mean_difference`, over units of what is left out."""
        paper = {row.system.leave_out: row.errors.relative for row in self.rows if row.system.is_papers_best}
        # An adapter of zeros has no relative error, whoever predicts it.
        known = {key: np.flatnonzero(~np.isnan(errors)) for key, errors in self.uniform.items()}
        weights = {key: self._weights(key, kept, draws, seed) for key, kept in known.items() if len(kept)}

        def difference(row: WayErrors, other: FloatArray | None) -> Interval | None:
            leave_out = row.options.leave_out
            if other is None or leave_out not in weights:
                return None
            kept = known[leave_out]
            return mean_difference(weights[leave_out], row.errors.relative[kept], other[kept])

        return [
            WaySummary(
                system=row.system,
                mse=float(np.nanmean(row.errors.mse)),
                cosine=float(np.nanmean(row.errors.cosine)),
                relative_error=float(np.nanmean(row.errors.relative)),
                effective_sources=float(np.mean(row.effective)),
                to_uniform=difference(
                    row, None if row.system.is_uniform else self.uniform[row.options.leave_out]
                ),
                to_paper=difference(
                    row, None if row.system.is_papers_best else paper.get(row.options.leave_out)
                ),
            )
            for row in self.rows
        ]

    def _weights(self, leave_out: str, kept: NDArray[np.intp], draws: int, seed: int) -> FloatArray:
        units = np.unique(units_of(self.groups, leave_out)[kept], return_inverse=True)[1]
        return task_weights(len(kept), units=units.astype(np.intp), resamples=draws, seed=seed)


@of_one_snapshot
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
    check_sums(wanted)
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        gram = compute_gram(bank, used, shown)
        made = compute_coefficients(bank, wanted, used, shown)
    predicted = bank.predicted_among(made[0].adapters)
    for line in of_predicted(predicted):
        shown.note(line)
    return table_of(made, gram, bank.layout.size, predicted)


def table_of(
    made: Sequence[Coefficients], gram: FloatArray, parameters: int, predicted: Sequence[str] = ()
) -> WeightSpaceTable:
    """Return the weight-space errors of leave-one-out coefficients, at least one, of adapters of p parameters.

    Parameters
    ----------
    made
        All of the same N adapters.
    gram
        Shape (N, N): inner products of the adapters.
    predicted
        Names of adapters that were not trained: their errors are not told, unless there are no others.
    """
    adapters = made[0].adapters
    unknown = np.array([record.name in predicted for record in adapters])
    unknown &= not unknown.all()
    groups = tuple(record.group for record in adapters)
    targets = np.arange(len(gram))
    uniform = {}
    for leave_out in dict.fromkeys(one.options.leave_out for one in made):
        excluded = same_unit(units_of(groups, leave_out))
        mean = row_coefficients(np.zeros(gram.shape), excluded, "uniform")
        uniform[leave_out] = _without(weight_space_errors(mean, gram, targets, parameters), unknown).relative
    return WeightSpaceTable(
        tuple(record.name for record in adapters),
        groups,
        tuple(
            WayErrors(
                one.options,
                one.metric,
                _without(weight_space_errors(one.values, gram, targets, parameters), unknown),
                one.effective,
            )
            for one in made
        ),
        uniform,
        tuple(predicted),
    )


def _without(errors: WeightSpaceErrors, unknown: NDArray[np.bool_]) -> WeightSpaceErrors:
    """Return the errors with NaN for the targets whose adapter was not trained."""
    kept = (np.where(unknown, np.nan, values) for values in (errors.mse, errors.cosine, errors.relative))
    return WeightSpaceErrors(*kept)


@of_one_snapshot
def bank_size_curves(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    sizes: Sequence[int],
    *,
    draws: int = 10,
    seed: int = 0,
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> list[SizeCurve]:
    """Return the weight error of each way by the size of the bank; see `bank_size_curve`.

    Raises
    ------
    ParameterError
        For sizes, draws or a seed out of range, and an approach that trains a network.
    """
    check_sums(ways)
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        matrices = compute_matrices(bank, [*ways, PredictionOptions(approach="oracle")], used, shown)
    gram = matrices[-1].gram
    assert gram is not None, "the oracle reads it"
    shown.begin("bank sizes", len(ways))
    curves = []
    for way, needs in zip(ways, matrices, strict=False):
        curves.append(bank_size_curve(way, needs.distances, gram, needs.units, sizes, draws=draws, seed=seed))
        shown.advance()
    shown.end()
    return curves


# -- as text, CSV and JSON -----------------------------------------------------------------------------


def summary_rows(table: WeightSpaceTable, **bootstrap: int) -> list[tuple[Any, ...]]:
    """Values of each summary in the order of `HEADINGS`, the smallest relative error first.

    The difference is that to the paper's best with the same left out; nothing for itself, and None where it is not
    in the table.
    """
    summaries = table.summaries(**bootstrap)
    order = {leave_out: index for index, leave_out in enumerate(LEAVE_OUT)}
    summaries.sort(key=lambda summary: (order[summary.system.leave_out or ""], summary.relative_error))
    return [_row(summary) for summary in summaries]


def _row(summary: WaySummary) -> tuple[Any, ...]:
    system, difference = summary.system, summary.to_paper
    if system.is_papers_best:
        difference = Interval(0.0, 0.0, 0.0)
    return (
        system.metric or "none",
        system.approach,
        system.leave_out,
        summary.mse,
        summary.cosine,
        summary.relative_error,
        summary.effective_sources,
        *((None, None, None) if difference is None else (difference.estimate, *difference.bounds)),
    )


def as_csv(table: WeightSpaceTable, **bootstrap: int) -> str:
    """All summaries as CSV, all digits kept."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADINGS)
    writer.writerows(
        ["" if value is None else value for value in row] for row in summary_rows(table, **bootstrap)
    )
    return text.getvalue()


def as_record(table: WeightSpaceTable, **bootstrap: int) -> dict[str, Any]:
    """All summaries, and the errors of each target, for JSON; None where there is no number."""
    return {
        "names": list(table.names),
        "groups": list(table.groups),
        "reference": {"metric": "jensen-shannon", "approach": "normalized"},
        "summaries": [dict(zip(HEADINGS, row, strict=True)) for row in summary_rows(table, **bootstrap)],
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
            curve.system.metric or "none",
            curve.system.approach,
            curve.system.leave_out,
            size,
            len(curve.relative),
            int(curve.targets[:, column].min()),
            curve.mean[column],
            curve.spread[column],
        )
        for curve in curves
        for column, size in enumerate(curve.sizes)
    ]
