"""The workflow behind a report: everything that it shows, gathered from a bank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import RunRecord, library_versions
from compute.approaches.by_distance import APPROACHES
from compute.approaches.by_distance import coefficients as row_coefficients
from compute.approaches.groups import same_unit, units_of
from compute.approaches.options import NO_DISTANCES, PredictionOptions
from compute.approaches.weight_errors import weight_space_errors
from compute.cluster.options import Cluster, ClusterLike
from compute.evaluation.bank_sizes import bank_size_curve
from compute.evaluation.weight_space import difference_interval
from compute.prediction.coefficients import Coefficients, compute_coefficients
from compute.prediction.matrices import compute_distances, compute_gram
from compute.prediction.session import computing
from compute.reporting.ordering import clustered_order
from compute.reporting.records import (
    ADAPTER,
    GROUP,
    NO_PREDICTION,
    Estimate,
    Matrix,
    Report,
    ReportedEvaluation,
    Scores,
    SizeCurve,
    SizePoint,
    StageTime,
    Way,
    WeightSpaceRow,
)

FloatArray = NDArray[np.float64]
SIZE_DRAWS = 10
FITTED_CURVES_UP_TO = 100
"""Curves over bank sizes of what is fitted, and of the oracle, take minutes on larger banks."""


def gather(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    evaluations: Sequence[ReportedEvaluation] = (),
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> Report:
    """Gather what a report of a bank shows; distances and coefficients that are missing are computed.

    Parameters
    ----------
    ways
        Metrics and approaches. The distances of the default metric order the matrices, or of the first one.

    Raises
    ------
    ParameterError
        No way is given, or the bank has fewer than two adapters.
    BankNotFoundError, PlanError, ComputeError, BankFormatError
        As `compute.prediction.predict_all` has them.
    """
    if not ways:
        raise ParameterError("report: expected at least one metric and approach, found none; give --approach")
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        matrices = _distances(bank, _with(ways, ADAPTER), used, shown)
        found, gram = _coefficients(bank, [*_with(ways, ADAPTER), *_grouped(bank, ways)], used, shown)
    plain = [item for item in found if item.options.leave_out == ADAPTER]
    adapters = found[0].adapters
    weight_space = _weight_space(bank, found, gram)
    chosen = recommended(weight_space, evaluations)
    default = PredictionOptions().metric
    ordering = next((item for item in matrices if item.way.metric == default), matrices[0])
    return Report(
        bank=bank.record,
        adapters=adapters,
        rank=bank.layout.rank,
        order=clustered_order(ordering.values),
        ordered_by=ordering.way.metric or "",
        distances=tuple(matrices),
        coefficients=tuple(Matrix(way_of(item.options), item.values) for item in plain),
        weight_space=tuple(weight_space),
        evaluations=tuple(evaluations),
        sizes=tuple(_size_curve(plain, matrices, gram, chosen)),
        stages=tuple(stage_times(bank.runs.all())),
        recommended=chosen,
        versions=tuple(sorted(library_versions().items())),
    )


def _with(ways: Sequence[PredictionOptions], leave_out: str) -> list[PredictionOptions]:
    return [replace(options, leave_out=leave_out) for options in ways]


def _grouped(bank: AdapterBank, ways: Sequence[PredictionOptions]) -> list[PredictionOptions]:
    """The ways with groups left out, if that makes a difference and leaves something."""
    units = units_of([record.group for record in bank.adapters()], GROUP)
    return _with(ways, GROUP) if 1 < len(set(units.tolist())) < len(units) else []


def _coefficients(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> tuple[list[Coefficients], FloatArray]:
    """The coefficients of each way, told one by one: some take minutes on a large bank; and the Gram matrix."""
    gram = compute_gram(bank, cluster, progress)
    trained = [options for options in ways if options.approach == "neural"]
    if trained:  # tells of its own progress
        compute_coefficients(bank, trained, cluster, progress)
    found = []
    progress.begin("coefficients", len(ways))
    for options in ways:
        found += compute_coefficients(bank, [options], cluster, SilentProgress())
        progress.advance()
    progress.end()
    return found, gram


def way_of(options: PredictionOptions) -> Way:
    """Return the way that options describe; what is left out is no part of it."""
    metric = None if options.approach in NO_DISTANCES else options.metric
    chosen = {key: value for key, value in options.parameters().items() if key != "leave_out"}
    detail = ", ".join(f"{key.replace('_', '-')} {value}" for key, value in chosen.items())
    return Way(options.approach, metric, detail)


def best_scores(evaluations: Sequence[ReportedEvaluation], leave_out: str) -> Scores | None:
    """Return the prediction with the highest mean Rouge-L; None where none was evaluated so."""
    scores = [item for evaluation in evaluations for item in evaluation.scores]
    chosen = [
        item for item in scores if item.leave_out == leave_out and item.way.approach not in NO_PREDICTION
    ]
    return max(chosen, key=lambda item: item.rouge[0], default=None)


def nearest_row(rows: Sequence[WeightSpaceRow], leave_out: str) -> WeightSpaceRow | None:
    """Return the way whose predictions are nearest to the trained adapters; None where none is there."""
    chosen = [item for item in rows if item.leave_out == leave_out and item.way.approach not in NO_PREDICTION]
    return min(chosen, key=lambda item: item.relative, default=None)


def recommended(weight_space: Sequence[WeightSpaceRow], evaluations: Sequence[ReportedEvaluation]) -> Way:
    """Return the best way by Rouge-L where there is an evaluation, else the nearest in weight space.

    With the target alone left out, as a new dataset finds the bank; by group only where that is all there is.
    """
    for leave_out in (ADAPTER, GROUP):
        scores = best_scores(evaluations, leave_out)
        if scores is not None:
            return scores.way
    row = nearest_row(weight_space, ADAPTER)
    return weight_space[0].way if row is None else row.way


def _distances(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> list[Matrix]:
    """The distances of each metric that the ways read, in their order; of the default if they read none."""
    reading = [options for options in ways if options.approach not in NO_DISTANCES] or [PredictionOptions()]
    by_metric = {options.metric: options for options in reversed(reading)}
    ways_read = [by_metric[metric] for metric in dict.fromkeys(options.metric for options in reading)]
    return [
        Matrix(Way("distance", options.metric), found.values)
        for options, found in zip(
            ways_read, compute_distances(bank, ways_read, cluster, progress), strict=True
        )
    ]


# -- weight space --------------------------------------------------------------------------------------


def _weight_space(bank: AdapterBank, found: Sequence[Coefficients], gram: FloatArray) -> list[WeightSpaceRow]:
    """Errors of every way, compared with those that leave the same out of their sources."""
    rows: list[WeightSpaceRow] = []
    for leave_out in (ADAPTER, GROUP):
        chosen = [item for item in found if item.options.leave_out == leave_out]
        if chosen:
            units = units_of([record.group for record in chosen[0].adapters], leave_out)
            rows += _errors(chosen, units, gram, bank.layout.size, leave_out)
    return rows


def _errors(
    found: Sequence[Coefficients],
    units: NDArray[np.intp],
    gram: FloatArray,
    parameters: int,
    leave_out: str,
) -> list[WeightSpaceRow]:
    targets = np.arange(len(gram))
    mean = row_coefficients(np.zeros(gram.shape), same_unit(units), "uniform")
    uniform = weight_space_errors(mean, gram, targets, parameters).relative
    errors = [weight_space_errors(item.values, gram, targets, parameters) for item in found]
    ways = [way_of(item.options) for item in found]
    paper = next(
        (error.relative for way, error in zip(ways, errors, strict=True) if way.is_papers_best), None
    )
    return [
        WeightSpaceRow(
            way=way,
            leave_out=leave_out,
            relative=float(np.nanmean(error.relative)),
            mse=float(error.mse.mean()),
            cosine=float(np.nanmean(error.cosine)),
            effective=float(item.effective.mean()),
            against_uniform=None if way.approach == "uniform" else _compared(error.relative, uniform, units),
            against_paper=None if way.is_papers_best else _compared(error.relative, paper, units),
        )
        for way, item, error in zip(ways, found, errors, strict=True)
    ]


def _compared(errors: FloatArray, others: FloatArray | None, units: NDArray[np.intp]) -> Estimate | None:
    """Mean paired difference with its interval; None where there is nothing to compare or draw."""
    if others is None or units.max() < 1:
        return None
    value, low, high = difference_interval(errors - others, units)
    return Estimate(value, low, high) if np.isfinite(value) else None


# -- bank sizes ----------------------------------------------------------------------------------------


def _size_curve(
    found: Sequence[Coefficients], distances: Sequence[Matrix], gram: FloatArray, chosen: Way
) -> list[SizeCurve]:
    """Weight-space errors from random subsets, for a few ways; none for a bank too small to halve twice."""
    number = len(gram)
    sizes = bank_sizes(number)
    if len(sizes) < 3:
        return []
    by_metric = {matrix.way.metric: matrix.values for matrix in distances}
    points: list[SizePoint] = []
    for item in found:
        way = way_of(item.options)
        shown = way == chosen or way.is_papers_best or way.approach in ("uniform", "oracle")
        quick = number <= FITTED_CURVES_UP_TO or way.approach in APPROACHES
        if not shown or not quick or way.approach == "neural":
            continue
        curve = bank_size_curve(
            item.options, by_metric.get(way.metric), gram, np.arange(number), sizes, draws=SIZE_DRAWS
        )
        for column, size in enumerate(curve.sizes):
            drawn = curve.relative[:, column]
            if np.isfinite(drawn).all():
                ends = float(drawn.min()), float(drawn.max())
                points.append(SizePoint(way, size, len(drawn), float(drawn.mean()), *ends))
    return [
        SizeCurve("Relative distance to the trained adapter", True, "least to largest draw", tuple(points))
    ]


def bank_sizes(number: int) -> list[int]:
    """Powers of two from 4 on below the size of a bank, and that size."""
    return [*(2**power for power in range(2, number.bit_length()) if 2**power < number), number]


# -- run times -----------------------------------------------------------------------------------------


def stage_times(runs: Sequence[RunRecord]) -> list[StageTime]:
    """Time of each kind of run that is done, by the catalogue's clock; predictions made together are one."""
    stages: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.state == "done" and run.finished is not None:
            parameters = json.loads(run.parameters)
            metric = parameters.get("metric") if run.kind in ("distances", "neural") else None
            stages.setdefault(" ".join(filter(None, (run.kind, metric))), []).append(run)
    return [
        StageTime(stage, len(found), _span(found), min(run.created for run in found))
        for stage, found in stages.items()
    ]


def _span(runs: Sequence[RunRecord]) -> int:
    """Seconds during which at least one of the runs was under way."""
    spans = sorted((_time(run.created), _time(run.finished or run.created)) for run in runs)
    total, until = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return round(total)


def _time(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
