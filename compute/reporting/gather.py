"""The workflow behind a report: everything that it shows, gathered from a bank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.errors import ParameterError
from bankdb.initialisation.shared import summary_of
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, RunRecord, library_versions
from bankdb.snapshot import of_one_snapshot
from compute.approaches.groups import units_of
from compute.approaches.options import PredictionOptions
from compute.cluster.options import Cluster, ClusterLike
from compute.curves.records import stored_curves
from compute.evaluation.bank_sizes import SizeCurve, bank_size_curve
from compute.evaluation.scores import of_predicted
from compute.evaluation.systems import System, system_of
from compute.evaluation.tables import Summary
from compute.evaluation.weight_space import WaySummary, table_of
from compute.prediction.coefficients import Coefficients, compute_coefficients
from compute.prediction.matrices import compute_distances, compute_gram
from compute.prediction.session import computing
from compute.reporting.ordering import clustered_order
from compute.reporting.records import ADAPTER, GROUP, Matrix, Report, ReportedEvaluation, StageTime
from compute.reporting.sample import coefficients_among, distances_among, drawn, gram_among
from compute.types import FloatArray

SIZE_DRAWS = 10
FITTED_CURVES_UP_TO = 100
"""Curves over bank sizes of what is fitted, and of the oracle, take minutes on larger banks."""


@of_one_snapshot
def gather(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    evaluations: Sequence[ReportedEvaluation] = (),
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> Report:
    """Gather what a report of a bank shows; distances and coefficients that are missing are computed.

    Of a bank of more than `compute.reporting.sample.MOST_SHOWN` adapters, all is of some that are drawn at random.

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
    matrices, made, gram = _matrices(bank, ways, cluster, shown)
    plain = [item for item in made if item.options.leave_out == ADAPTER]
    adapters = made[0].adapters
    predicted = bank.predicted_among(adapters)
    for line in of_predicted(predicted):
        shown.note(line)
    weight_space = table_of(made, gram, bank.layout.size, predicted).summaries()
    chosen = recommended(weight_space, evaluations)
    default = PredictionOptions().metric
    ordering = next((item for item in matrices if item.metric == default), matrices[0])
    return Report(
        bank=bank.record,
        adapters=adapters,
        rank=bank.layout.rank,
        order=clustered_order(ordering.values),
        ordered_by=ordering.metric or "",
        distances=tuple(matrices),
        coefficients=tuple(
            Matrix(item.values, system.metric, system)
            for item, system in ((item, system_of(item.options)) for item in plain)
        ),
        weight_space=tuple(weight_space),
        evaluations=tuple(evaluations),
        sizes=tuple(_size_curves(plain, matrices, gram, chosen)),
        stages=tuple(stage_times(bank.runs.all())),
        recommended=chosen,
        versions=tuple(sorted(library_versions().items())),
        in_bank=len(ready_adapters(bank)),
        curves=next(reversed(stored_curves(bank)), None),
        predicted=tuple(predicted),
        initialisations=summary_of(bank, ready_adapters(bank)),
    )


def _with(ways: Sequence[PredictionOptions], leave_out: str) -> list[PredictionOptions]:
    return [replace(options, leave_out=leave_out) for options in ways]


def _matrices(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: ClusterLike, progress: Progress
) -> tuple[list[Matrix], list[Coefficients], FloatArray]:
    """The distances of each metric, the coefficients of each way, and the Gram matrix, of all or of those drawn."""
    every = ready_adapters(bank)
    some = drawn(every)
    both = [*_with(ways, ADAPTER), *_grouped(some, ways)]
    if len(some) < len(every):
        progress.note(
            f"the report is of {len(some)} of {len(every):,} adapters, drawn at random, each predicted from the others"
        )
        return _among(bank, every, some, both, progress)
    with computing(bank, cluster, progress) as used:
        matrices = _distances(bank, _with(ways, ADAPTER), used, progress)
        return matrices, *_coefficients(bank, both, used, progress)


def _among(
    bank: AdapterBank,
    every: Sequence[AdapterRecord],
    some: tuple[AdapterRecord, ...],
    ways: Sequence[PredictionOptions],
    progress: Progress,
) -> tuple[list[Matrix], list[Coefficients], FloatArray]:
    """The distances of each metric, the coefficients of each way, and the Gram matrix, of some adapters alone."""
    reading = _by_metric(ways)
    distances = distances_among(bank, every, some, reading, progress)
    gram = gram_among(bank, some, progress)
    made = coefficients_among(some, ways, distances, gram, progress)
    return [Matrix(distances[way.metric], way.metric) for way in reading], made, gram


def _grouped(adapters: Sequence[AdapterRecord], ways: Sequence[PredictionOptions]) -> list[PredictionOptions]:
    """The ways with groups left out, if that makes a difference and leaves something."""
    units = units_of([record.group for record in adapters], GROUP)
    return _with(ways, GROUP) if 1 < len(set(units.tolist())) < len(units) else []


def _coefficients(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> tuple[list[Coefficients], FloatArray]:
    """The coefficients of each way, told one by one: some take minutes on a large bank; and the Gram matrix."""
    gram = compute_gram(bank, cluster, progress)
    trained = [options for options in ways if options.how.trained]
    if trained:  # tells of its own progress
        compute_coefficients(bank, trained, cluster, progress)
    made = []
    progress.begin("coefficients", len(ways))
    for options in ways:
        made += compute_coefficients(bank, [options], cluster, SilentProgress())
        progress.advance()
    progress.end()
    return made, gram


def best_scores(evaluations: Sequence[ReportedEvaluation], leave_out: str) -> Summary | None:
    """Return the prediction with the highest mean Rouge-L; None where none was evaluated so."""
    summaries = [item for evaluation in evaluations for item in evaluation.summaries]
    chosen = [item for item in summaries if item.system.is_candidate and item.system.leave_out == leave_out]
    return max(chosen, key=lambda item: item.rouge.mean, default=None)


def nearest_row(rows: Sequence[WaySummary], leave_out: str) -> WaySummary | None:
    """Return the way whose predictions are nearest to the trained adapters; None where none is there."""
    chosen = [item for item in rows if item.system.is_candidate and item.system.leave_out == leave_out]
    return min(chosen, key=lambda item: item.relative_error, default=None)


def recommended(weight_space: Sequence[WaySummary], evaluations: Sequence[ReportedEvaluation]) -> System:
    """Return the best by Rouge-L where there is an evaluation, else the nearest in weight space.

    With the target alone left out, as a new dataset finds the bank; by group only where that is all there is.
    """
    for leave_out in (ADAPTER, GROUP):
        scores = best_scores(evaluations, leave_out)
        if scores is not None:
            return scores.system
    row = nearest_row(weight_space, ADAPTER)
    return weight_space[0].system if row is None else row.system


def _distances(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> list[Matrix]:
    """The distances of each metric that the ways read, in their order; of the default if they read none."""
    ways_read = _by_metric(ways)
    matrices = compute_distances(bank, ways_read, cluster, progress)
    return [Matrix(found.values, options.metric) for options, found in zip(ways_read, matrices, strict=True)]


def _by_metric(ways: Sequence[PredictionOptions]) -> list[PredictionOptions]:
    """The first way of each metric that is read, in their order; the default if none is."""
    reading = [options for options in ways if options.how.reads_distances] or [PredictionOptions()]
    by_metric = {options.metric: options for options in reversed(reading)}
    return [by_metric[metric] for metric in dict.fromkeys(options.metric for options in reading)]


# -- bank sizes ----------------------------------------------------------------------------------------


def _size_curves(
    made: Sequence[Coefficients], distances: Sequence[Matrix], gram: FloatArray, chosen: System
) -> list[SizeCurve]:
    """Weight-space errors from random subsets, for a few ways; none for a bank too small to halve twice."""
    number = len(gram)
    sizes = bank_sizes(number)
    if len(sizes) < 3:
        return []
    by_metric = {matrix.metric: matrix.values for matrix in distances}
    curves = []
    for item in made:
        system, how = system_of(item.options), item.options.how
        shown = system.key == chosen.key or system.is_papers_best or how.baseline or how.knows_answer
        quick = number <= FITTED_CURVES_UP_TO or how.quick
        if shown and quick and how.of_matrices_alone:
            values = None if system.metric is None else by_metric.get(system.metric)
            curves.append(
                bank_size_curve(item.options, values, gram, np.arange(number), sizes, draws=SIZE_DRAWS)
            )
    return curves


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
        StageTime(stage, len(of_stage), _span(of_stage), min(run.created for run in of_stage))
        for stage, of_stage in stages.items()
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
