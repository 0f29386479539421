"""Predictions as arrays: a group for each run, and the panels that are missing of several runs at once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import delete_tree, fsync_path, fsync_tree
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import column_chunk, create_array, ensure_group, open_array, stored_chunks
from bankdb.bank import AdapterBank
from bankdb.errors import PlanError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from bankdb.scaled_rows import Sources
from compute.approaches.options import PredictionOptions
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.combination.panel import combine_panel
from compute.combination.plan import COEFFICIENT_ROWS, SHARD_ROWS, PanelPart, following, plan_combination

Opened = tuple[RunRecord, Location]


def open_predictions(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    values: NDArray[np.float64],
    metric: str,
    options: PredictionOptions,
) -> tuple[RunRecord, Location]:
    """Find the run of these coefficients over these rows, or begin it; write C once, to be read by path.

    Returns
    -------
    The run, and the zarr group with `adapters` (N, p) and `coefficients` (N, N), both float32.
    """
    weights = values.astype(np.float32)
    rows = " ".join(f"{record.row}:{record.row_sha256}:{record.scaling}" for record in adapters)
    digest = hashlib.sha256(rows.encode())
    left_out = "" if options.leave_out == "adapter" else f" leave-out {options.leave_out}"
    digest.update(f"{bank.record.scaling} {metric} {options}{left_out}".encode())
    digest.update(weights.tobytes())
    name = digest.hexdigest()[:16]
    parameters = {
        "metric": metric,
        "approach": options.approach,
        **options.parameters(),
        "inputs": digest.hexdigest(),
        "array": f"predictions.zarr/{name}/adapters",
    }
    run = bank.runs.begin("predictions", parameters)
    root = bank.array_path("predictions")
    path = root / name
    if not _complete(path, run):
        bank.runs.reopen(run.id)
        ensure_group(root)
        _create_predictions(path, run, bank.layout.size, weights)
    return run, path


def _complete(path: Location, run: RunRecord) -> bool:
    if not (path / "zarr.json").is_file():
        return False
    arrays = [path / "coefficients", path / "adapters"]
    return all(
        (item / "zarr.json").is_file() and open_array(item).attrs.get("run") == run.inputs_sha256
        for item in arrays
    )


def _create_predictions(
    path: Location, run: RunRecord, parameters: int, weights: NDArray[np.float32]
) -> None:
    delete_tree(path)
    ensure_group(path)
    targets, sources = weights.shape
    mark = {"run": run.inputs_sha256}
    chunk = column_chunk(parameters)
    stored = create_array(
        path / "coefficients",
        shape=weights.shape,
        chunks=(min(targets, COEFFICIENT_ROWS), sources),
        shards=None,
        dtype="float32",
        attributes=mark,
    )
    stored[:, :] = weights
    fsync_tree(path / "coefficients")
    create_array(
        path / "adapters",
        shape=(targets, parameters),
        chunks=(1, chunk),
        shards=(SHARD_ROWS, chunk),
        dtype="float32",
        attributes=mark,
    )
    fsync_path(path)


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
    place = bank.array_path("predictions")
    if isinstance(place, Path):
        _check_space(place, needed)
    for name, _ in run_tasks(cluster, "combine", combine_panel, tasks, progress, memory=plan.memory):
        for part in parts[name]:
            run, _ = open_runs[part.group]
            bank.runs.mark_done(run.id, {part.name: run.inputs_sha256})


def _check_space(path: Path, needed: int) -> None:
    """Refuse before anything is computed what the disk cannot hold: it would fill up hours later."""
    free = shutil.disk_usage(path).free
    if needed > free:
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
