"""What a run over a whole bank will do, step by step, before anything of it runs.

The plans are those of the run itself ; here they are counted. A forecast is of a run from
nothing: what a bank has stored already, the run does not compute again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np

from bankdb.arrays.zarr_arrays import column_chunk
from bankdb.errors import ParameterError, PlanError
from compute.approaches.neural.network import BATCH
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.piecewise import is_quicker
from compute.approaches.options import PredictionOptions
from compute.combination.merged.borders import plan_merged
from compute.combination.plan import SHARD_ROWS
from compute.forecasting.shape import BankShape
from compute.gram.plan import plan_gram
from compute.merge_methods.method import MergeMethod
from compute.metrics.base import Metric
from compute.metrics.registry import get_metric
from compute.pairwise.plan import PlannedTile, plan_distances, tile_bytes

# Bytes of a stored token id with its count.
_COUNT_BYTES = 8
# Arrays of N x N float64 that coefficients are made with: distances, z-scores, softmin, and masks.
_COEFFICIENT_ARRAYS = 6
# Files of an exported adapter: weights, configuration, model card, provenance.
_EXPORT_FILES = 4


@dataclass(frozen=True, slots=True)
class StepForecast:
    """One step of a run: what all of its tasks do together.

    Attributes
    ----------
    kind
        `distances`, `gram`, `coefficients`, `combine` or `export`; folders that are combined into are of `combine`.
    name
        As the progress of a run calls it.
    detail
        The metric of distances, the approach of coefficients.
    tasks
        0 where the client works alone.
    costs
        Of distances: the cost of a tile against others, and how many have it, of all steps that run at the same time.
    read, written
        Bytes, before compression.
    files
        Files that are written and flushed.
    flops
        Of the leading terms. Of distances: operations of the inner loop, a logarithm counted as one.
    memory
        Bytes that a task uses, or the client, beyond what a process takes that has loaded the libraries.
    datasets, pair_hundredths, side
        Of distances: datasets that all tiles read, hundredths of pairs that their time goes with, and datasets on
        the side of a tile.
    epochs, width, points
        Of the neural approach: epochs of all trainings, at most; the network's width; and where it is evaluated by
        dense products, 0 where passes over its weights serve all points.
    pairs
        Of coefficients: entries of their matrix.
    chunks
        Of export: stored chunks that are read one by one.
    timed
        Whether rates tell its time; what is fitted on the bank takes as long as it takes.
    problem
        Why the step cannot run as planned; None if it can.
    """

    kind: str
    name: str
    detail: str = ""
    tasks: int = 0
    costs: tuple[tuple[int, int], ...] = ()
    read: int = 0
    written: int = 0
    files: int = 0
    flops: int = 0
    memory: int = 0
    datasets: int = 0
    pair_hundredths: int = 0
    side: int = 0
    epochs: int = 0
    width: int = 0
    points: int = 0
    pairs: int = 0
    chunks: int = 0
    timed: bool = True
    problem: str | None = None


def forecast_steps(
    shape: BankShape,
    ways: Sequence[PredictionOptions],
    *,
    slots: int,
    budget: int,
    weight_errors: bool = False,
    export: bool = True,
    store: bool = False,
) -> tuple[StepForecast, ...]:
    """Return the steps of `predict --all`, in their order.

    Parameters
    ----------
    ways
        Metrics and approaches; coefficients and predictions are made of each.
    slots, budget
        Tasks that run at once, and the bytes that one of them may use.
    weight_errors
        Whether predictions are compared with the adapters, through the Gram matrix.
    export
        Whether the predictions of the first way become folders.
    store
        Whether all predictions are stored, beside their coefficients; folders are then written from them.

    Raises
    ------
    ParameterError
        There are fewer than two adapters, or no ways.
    """
    if shape.adapters < 2 or not ways:
        raise ParameterError(
            f"leave-one-out needs at least 2 adapters and 1 approach, found {shape.adapters} and {len(ways)}"
        )
    reading = dict.fromkeys(
        metric
        for way in ways
        for metric in ([way.metric] if way.how.reads_distances else []) + list(way.how.metrics)
    )
    steps = list(_distances(shape, tuple(reading), slots, budget))
    if weight_errors or any(way.how.reads_gram for way in ways):
        steps.append(_planned("gram", "gram", lambda: _gram(shape, budget)))
    steps += [_coefficients(shape, way) for way in ways]
    if store:
        steps.append(_planned("combine", "combine", lambda: _combine(shape, ways, budget)))
    if export:
        steps.append(
            _export(shape)
            if store
            else _planned("combine", "export", lambda: _one_pass(shape, ways[0], budget))
        )
    return tuple(steps)


def _planned(kind: str, name: str, plan: Callable[[], StepForecast]) -> StepForecast:
    """Return a step, with the reason where it cannot be planned."""
    try:
        return plan()
    except PlanError as error:
        return StepForecast(kind, name, problem=str(error))


def _distances(shape: BankShape, names: Sequence[str], slots: int, budget: int) -> Sequence[StepForecast]:
    metrics = [_metric(name, shape.vocabulary) for name in names]
    missing: Collection[tuple[int, int]] = list(combinations_with_replacement(shape.blocks, 2))
    try:
        tiles = plan_distances(
            [(metric, missing) for metric in metrics],
            shape.rows,
            vocabulary=shape.vocabulary,
            nnz=shape.largest,
            slots=slots,
            budget=budget,
        )
    except PlanError as error:
        return [StepForecast("distances", f"distances {name}", name, problem=str(error)) for name in names]
    costs = tuple(Counter(piece.cost for piece in tiles).items())
    return [
        _distance_step(shape, name, [piece for piece in tiles if piece.metric is metric], costs)
        for name, metric in zip(names, metrics, strict=True)
    ]


def _metric(name: str, vocabulary: int) -> Metric:
    # Memory and tiles depend on the metric, not on the frequencies of its ids.
    return get_metric(name, frequencies=np.ones(vocabulary) if name == "tf-idf" else None)


def _distance_step(
    shape: BankShape, name: str, tiles: Sequence[PlannedTile], costs: tuple[tuple[int, int], ...]
) -> StepForecast:
    side = max(piece.side for piece in tiles)
    datasets, entries = (sum(getattr(piece, name) for piece in tiles) for name in ("datasets", "entries"))
    # The mirror of a chunk on the diagonal is itself.
    chunks = sum(1 if i == j else 2 for piece in tiles for i, j in piece.tile.chunks())
    return StepForecast(
        "distances",
        f"distances {name}",
        name,
        tasks=len(tiles),
        costs=costs,
        read=_COUNT_BYTES * datasets * shape.distinct // shape.rows,
        written=8 * entries,
        files=chunks,
        flops=_operations(name, shape, datasets, entries // 2),
        memory=tile_bytes(tiles[0].metric, side, shape.vocabulary, shape.largest),
        side=side,
        datasets=datasets,
        pair_hundredths=sum(piece.pair_hundredths for piece in tiles),
    )


def _operations(metric: str, shape: BankShape, datasets: int, pairs: int) -> int:
    """Return the leading term of a metric's operations: see the docstrings of their blocks."""
    vocabulary, distinct = shape.vocabulary, shape.mean_distinct
    width = 2 * vocabulary
    each = {
        "wasserstein": 3 * vocabulary,
        "kullback-leibler": 4 * vocabulary,
        "jensen-shannon": 4 * distinct,
        "mmd": 2 * width,
        "tf-idf": 2 * distinct,
    }[metric]
    transforms = 5 * width * max(1, math.ceil(math.log2(width))) * datasets if metric == "mmd" else 0
    return each * pairs + transforms


def _gram(shape: BankShape, budget: int) -> StepForecast:
    n, p = shape.adapters, shape.parameters
    plan = plan_gram(n, n, p, chunk=column_chunk(p), budget=budget)
    tasks = len(plan.slices)
    return StepForecast(
        "gram",
        "gram",
        tasks=tasks,
        read=plan.read,
        written=plan.written,
        files=tasks,
        flops=plan.flops,
        memory=plan.memory,
    )


def _coefficients(shape: BankShape, way: PredictionOptions) -> StepForecast:
    n, how = shape.adapters, way.how
    name = f"coefficients {way.approach}" + (f" {way.metric}" if how.reads_distances else "")
    step = StepForecast(
        "coefficients",
        name,
        way.approach,
        read=8 * n * n * (how.reads_distances + len(how.metrics) + how.reads_gram),
        written=4 * n * n,
        files=1,
        flops=20 * n * n,
        pairs=n * n,
        memory=_COEFFICIENT_ARRAYS * 8 * n * n,
        timed=how.quick or how.trained,
    )
    network = how.network(way)
    return step if network is None else _neural(step, n, network)


def _neural(step: StepForecast, n: int, options: NeuralOptions) -> StepForecast:
    """Return the step with what training costs: see `compute.approaches.neural.training`."""
    trainings = options.trainings + (options.protocol != "published")
    points, weights = options.knots or n * n, options.width**2
    quicker = is_quicker(options.width, points, options.epochs)
    # Dense: forward, and backward twice that. The loss is one product of N x N matrices.
    epoch = (40 if quicker else 6 * points) * weights + 2 * n**3
    memory = (16 if quicker else 20) * weights + 40 * options.width * min(points, BATCH) + 150 * n * n
    epochs = trainings * options.epochs
    return replace(
        step,
        flops=epochs * epoch,
        memory=memory,
        epochs=epochs,
        width=options.width,
        points=0 if quicker else points,
    )


def _combine(shape: BankShape, ways: Sequence[PredictionOptions], budget: int) -> StepForecast:
    """Return the step that stores all predictions: those of one merge method in one pass."""
    n, p = shape.adapters, shape.parameters
    made = StepForecast("combine", "combine", timed=all(way.merge_method.is_linear for way in ways))
    for method in dict.fromkeys(way.merge_method for way in ways):
        some = [way for way in ways if way.merge_method == method]
        plan, beside = plan_merged(n, p, len(some), method, chunk=column_chunk(p), budget=budget)
        chunks = len({panel.start for panel in plan.panels})
        made = replace(
            made,
            tasks=made.tasks + len(plan.panels),
            read=made.read + plan.read + _read_before(shape, method),
            written=made.written + plan.written,
            files=made.files + len(some) * chunks * -(-n // SHARD_ROWS),
            flops=made.flops + sum(_flops(shape, way) for way in some),
            memory=max(made.memory, plan.memory + beside),
        )
    return made


def _one_pass(shape: BankShape, way: PredictionOptions, budget: int) -> StepForecast:
    """Return the step that combines one way's predictions into the files of their folders."""
    n, p, method = shape.adapters, shape.parameters, way.merge_method
    plan, beside = plan_merged(n, p, 1, method, chunk=column_chunk(p), budget=budget)
    return StepForecast(
        "combine",
        "export",
        tasks=len(plan.panels),
        read=plan.read + _read_before(shape, method),
        written=shape.exported * n * p,
        files=_EXPORT_FILES * n,
        flops=_flops(shape, way),
        memory=plan.memory + beside,
        timed=method.is_linear,
    )


def _flops(shape: BankShape, way: PredictionOptions) -> int:
    """Operations of all products. One source is copied; of others every one may have a coefficient, and mostly has."""
    n, p = shape.adapters, shape.parameters
    # An election is a product in double precision, which counts as two; each of two sides has a sum and a divisor.
    products = 6 if way.merge_method.elects else 1
    return 0 if way.how.single_source else 2 * products * n * (n - 1) * p


def _read_before(shape: BankShape, method: MergeMethod) -> int:
    """Bytes that are read to find what of each tensor is trimmed."""
    return 4 * shape.adapters * shape.parameters if method.trims else 0


def _export(shape: BankShape) -> StepForecast:
    n, p = shape.adapters, shape.parameters
    return StepForecast(
        "export",
        "export",
        read=4 * n * p,
        written=shape.exported * n * p,
        chunks=n * -(-p // column_chunk(p)),
        files=_EXPORT_FILES * n,
        memory=8 * p,
    )
