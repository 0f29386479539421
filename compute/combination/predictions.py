"""Predictions as arrays: a group for each run, and the panels that are missing of several runs at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import read_chunks, write_chunks
from bankdb.arrays.durable import free_space
from bankdb.arrays.metadata import ArrayLayout
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import column_chunk, ensure_group, stored_chunks
from bankdb.bank import AdapterBank
from bankdb.derived import OLD_PREDICTIONS, delete_derived, digest_of, find_array, make_array, rows_of
from bankdb.errors import PlanError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from bankdb.scaled_rows import Sources
from compute.approaches.options import PredictionOptions
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.combination.panel import check_coefficients, combine_panel
from compute.combination.plan import COEFFICIENT_ROWS, SHARD_ROWS, PanelPart, following, plan_combination

Opened = tuple[RunRecord, Location]


def open_predictions(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    values: NDArray[np.float64],
    metric: str,
    options: PredictionOptions,
    progress: Progress,
    labels: str | None = None,
) -> tuple[RunRecord, Location]:
    """Find the run of these coefficients over these rows, or begin it; write C once, to be read by path.

    Parameters
    ----------
    labels
        Hash of the examples and the base model that the coefficients were chosen by, if they were.

    Returns
    -------
    The run, and the zarr group with `adapters` (N, p) and `coefficients` (N, N), both float32.
    """
    weights = values.astype(np.float32)
    layouts = _layouts(weights, bank.layout.size)
    old = _old_run(bank, adapters, weights, metric, options)
    if old is not None:
        path = _group_of(bank, old)
        if _complete(bank, path, layouts, old, progress):
            return old, path
    coefficients = hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()
    inputs = digest_of(
        kind="predictions",
        options=options_key(options),
        metric=metric,
        coefficients=coefficients,
        **({} if labels is None else {"labels": labels, "examples": options.examples}),
        **rows_of(bank, adapters),
    )
    parameters = {
        "metric": metric,
        "approach": options.approach,
        **options.parameters(),
        **({} if labels is None else {"labels": labels}),
        "inputs": inputs,
        "array": f"predictions.zarr/{inputs[:16]}/adapters",
    }
    run = bank.runs.begin("predictions", parameters, key={"inputs": inputs})
    path = _group_of(bank, run)
    if not _complete(bank, path, layouts, run, progress):
        bank.runs.reopen(run.id)
        _create_predictions(bank, path, run, layouts, weights)
    return run, path


def options_key(options: PredictionOptions) -> dict[str, Any]:
    """Return the options as the key of stored predictions states them; its second form.

    Written out by hand: what a field is called in the code has no part in what is found again. A new option is
    added here, under a name that stays.
    """
    return {
        "version": 2,
        "metric": options.metric,
        "approach": options.approach,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "compatible": options.compatible,
        "kernel": options.kernel,
        "sigma": options.sigma,
        "protocol": options.protocol,
        "seed": options.seed,
        "knots": options.knots,
        "width": options.width,
        "epochs": options.epochs,
        "leave_out": options.leave_out,
        "space": options.space,
        "rank": options.rank,
    }


def _old_run(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    weights: NDArray[np.float32],
    metric: str,
    options: PredictionOptions,
) -> RunRecord | None:
    """Return the run of the same predictions by version 0.1.0, whose key had another form."""
    rows = " ".join(f"{record.row}:{record.row_sha256}:{record.scaling}" for record in adapters)
    named = (
        f"metric={options.metric!r}, approach={options.approach!r}, temperature={options.temperature!r}, "
        f"top_k={options.top_k!r}, compatible={options.compatible!r}, kernel={options.kernel!r}, "
        f"sigma={options.sigma!r}, protocol={options.protocol!r}, seed={options.seed!r}, knots={options.knots!r}, "
        f"width={options.width!r}, epochs={options.epochs!r}"
    )
    left_out = "" if options.leave_out == "adapter" else f" leave-out {options.leave_out}"
    digest = hashlib.sha256(rows.encode())
    digest.update(f"{bank.record.scaling} {metric} PredictionOptions({named}){left_out}".encode())
    digest.update(weights.tobytes())
    inputs = digest.hexdigest()
    runs = bank.runs.all("predictions")
    return next((run for run in runs if json.loads(run.parameters).get("inputs") == inputs), None)


def _group_of(bank: AdapterBank, run: RunRecord) -> Location:
    array = bank.run_array(run)
    assert array is not None, "runs of predictions name their array"
    return array.parent


def _layouts(weights: NDArray[np.float32], parameters: int) -> dict[str, ArrayLayout]:
    targets, sources = weights.shape
    chunk = column_chunk(parameters)
    block = (min(targets, COEFFICIENT_ROWS), sources)
    return {
        "coefficients": ArrayLayout(weights.shape, block, "float32"),
        "adapters": ArrayLayout((targets, parameters), (1, chunk), "float32", (SHARD_ROWS, chunk)),
    }


def _complete(
    bank: AdapterBank, path: Location, layouts: dict[str, ArrayLayout], run: RunRecord, progress: Progress
) -> bool:
    """Whether both arrays are there, as made for this run."""
    made_from = run.inputs_sha256
    complete = (path / "zarr.json").is_file() and all(
        find_array(bank, path / name, layout, made_from, progress, old=OLD_PREDICTIONS) is not None
        for name, layout in layouts.items()
    )
    if complete:
        check_coefficients(path, read_chunks(path / "coefficients", delete=path, missing=True))
    return complete


def _create_predictions(
    bank: AdapterBank,
    path: Location,
    run: RunRecord,
    layouts: dict[str, ArrayLayout],
    weights: NDArray[np.float32],
) -> None:
    ensure_group(bank.array_path("predictions"))
    delete_derived(bank, path)
    for name, layout in layouts.items():
        make_array(bank, path / name, layout, run.inputs_sha256)
    write_chunks(path / "coefficients", (0, 0), weights)


def combine_missing(
    bank: AdapterBank, runs: Sequence[Opened], sources: Sources, cluster: Cluster, progress: Progress
) -> None:
    """Compute what the runs lack of their predictions, in one pass over the adapters for all of them.

    Reading the adapters is the cost that the runs share. A panel's parts are marked as done when its task
    is; the caller holds the compute lock.
    """
    chunk = column_chunk(bank.layout.size)
    targets = len(sources.rows)
    size, budget = bank.layout.size, cluster.task_budget
    single = plan_combination(targets, size, 1, chunk=chunk, budget=budget)
    wanted = [part for panel in single.panels for part in single.parts(panel)]
    done = {run.id: _Done(path, bank.runs.done_pieces(run.id), chunk) for run, path in runs}
    open_runs = [item for item in runs if not all(done[item[0].id].has(part) for part in wanted)]
    if not open_runs:
        return
    plan = plan_combination(targets, size, len(open_runs), chunk=chunk, budget=budget)
    panels = plan.panels
    parts = {panel.name: plan.parts(panel) for panel in panels}
    missing = {
        panel.name: [part for part in parts[panel.name] if not done[open_runs[part.group][0].id].has(part)]
        for panel in panels
    }
    columns = [range(panel.start, panel.stop) for panel in panels]
    store = str(bank.store.path.absolute())
    groups = tuple(str(path.absolute()) for _, path in open_runs)
    tasks = {
        panel.name: (
            store,
            groups,
            sources.within(panel.start, panel.stop, chunk),
            panel,
            chunk,
            following(columns, index, cluster.slots),
        )
        for index, panel in enumerate(panels)
        if missing[panel.name]
    }
    needed = sum(
        4 * (part.stop - part.start) * (panel.stop - panel.start)
        for panel in panels
        for part in missing[panel.name]
    )
    _check_space(bank.array_path("predictions"), needed)
    for name, _ in run_tasks(cluster, "combine", combine_panel, tasks, progress, memory=plan.memory):
        for part in parts[name]:
            run, _ = open_runs[part.group]
            bank.runs.mark_done(run.id, {part.name: run.inputs_sha256})


def _check_space(path: Location, needed: int) -> None:
    """Refuse before anything is computed what the disk cannot hold: it would fill up hours later."""
    free = free_space(path)
    if free is not None and needed > free:
        raise PlanError(
            f"{path}: expected {needed / 2**30:.1f} GiB free for the predictions, found {free / 2**30:.1f} GiB; "
            "delete older predictions, or predict fewer combinations at once"
        )


class _Done:
    """Which parts of a run are among its pieces that are done, with their shards still there.

    Parameters
    ----------
    pieces
        Names of those that are done.
    chunk
        Columns of a chunk.
    """

    def __init__(self, path: Location, pieces: Collection[str], chunk: int) -> None:
        self._pieces = pieces
        self._chunk = chunk
        # Listed once, and only if there is any use: a question a shard would take long where a store is far away.
        self._shards = stored_chunks(path / "adapters") if pieces else set()

    def has(self, part: PanelPart) -> bool:
        if part.name not in self._pieces:
            return False
        column = int(part.name.split("-")[0]) // self._chunk
        shards = range(part.start // SHARD_ROWS, -(-part.stop // SHARD_ROWS))
        return all((shard, column) in self._shards for shard in shards)
