"""Predictions as arrays, for those who ask for them: N x p numbers a run, those of several runs in one pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bankdb.arrays.durable import free_space
from bankdb.arrays.metadata import ArrayLayout
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import column_chunk, stored_chunks
from bankdb.bank import AdapterBank
from bankdb.derived import OLD_PREDICTIONS, WHOLE, digest_of, find_array, make_array, set_attributes
from bankdb.errors import ParameterError, PlanError
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord, RunRecord
from bankdb.scaled_rows import Sources
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.combination.merged.borders import merge_of, plan_merged
from compute.combination.panel import combine_panel
from compute.combination.plan import SHARD_ROWS, PanelPart, following
from compute.combination.runs import ADAPTERS, Opened
from compute.merge_methods.method import SUM, MergeMethod

Merging = tuple[Sequence[AdapterRecord], MergeMethod]
DTYPES = ("float32", "float16", "bfloat16")


def check_dtype(dtype: str) -> None:
    """Raise ParameterError unless predictions can be stored in this dtype."""
    if dtype not in DTYPES:
        raise ParameterError(f"store: expected one of {', '.join(DTYPES)}, found {dtype!r}; use one of them")


def open_stored(bank: AdapterBank, opened: Opened, targets: int, dtype: str, progress: Progress) -> None:
    """Make the array of a run's predictions, unless it is there in this dtype, whole or in part.

    Values are rounded to the dtype and kept as float32, as the adapters themselves are: compressed, they take half.
    """
    run, path = opened
    layout, place, made_from = _layout(targets, bank.layout.size), path / ADAPTERS, _made_from(run, dtype)
    if find_array(bank, place, layout, made_from, progress, old=OLD_PREDICTIONS) is None:
        bank.runs.reopen(run.id)
        make_array(bank, place, layout, made_from)


def stored_dtype(bank: AdapterBank, opened: Opened, targets: int) -> str | None:
    """Return the dtype of a run's stored predictions; None unless all of them are there.

    Raises
    ------
    BankFormatError
        The array's metadata are damaged.
    """
    run, path = opened
    if not (path / ADAPTERS / "zarr.json").is_file():
        return None
    layout, place = _layout(targets, bank.layout.size), path / ADAPTERS
    for dtype in DTYPES:
        found = find_array(bank, place, layout, _made_from(run, dtype), SilentProgress(), old=OLD_PREDICTIONS)
        if found is not None:
            return dtype if found.get(WHOLE) or (run.state == "done" and _is_older(bank, opened)) else None
    return None


def _is_older(bank: AdapterBank, opened: Opened) -> bool:
    """Whether a run is of a version that stored all predictions of each: it is done when they are there."""
    run, path = opened
    return str(bank.run_array(run)) == str(path / ADAPTERS)


def _made_from(run: RunRecord, dtype: str) -> str:
    return run.inputs_sha256 if dtype == "float32" else digest_of(run=run.inputs_sha256, dtype=dtype)


def _layout(targets: int, parameters: int) -> ArrayLayout:
    chunk = column_chunk(parameters)
    return ArrayLayout((targets, parameters), (1, chunk), "float32", (SHARD_ROWS, chunk))


def combine_missing(
    bank: AdapterBank,
    runs: Sequence[Opened],
    sources: Sources,
    cluster: Cluster,
    progress: Progress,
    dtype: str = "float32",
    merging: Merging | None = None,
) -> None:
    """Compute what the runs lack of their stored predictions, in one pass over the adapters for all of them.

    Reading the adapters is the cost that the runs share. A panel's parts are marked as done when its task
    is; the caller holds the compute lock.

    Parameters
    ----------
    merging
        The adapters and the merge method of all runs; None for the weighted sum.
    """
    _combine_missing(bank, runs, sources, cluster, progress, dtype, merging)
    for opened in runs:
        if not _is_older(bank, opened):
            set_attributes(bank, opened[1] / ADAPTERS, **{WHOLE: True})


def _combine_missing(
    bank: AdapterBank,
    runs: Sequence[Opened],
    sources: Sources,
    cluster: Cluster,
    progress: Progress,
    dtype: str,
    merging: Merging | None,
) -> None:
    chunk = column_chunk(bank.layout.size)
    targets = len(sources.rows)
    size, budget = bank.layout.size, cluster.task_budget
    method = SUM if merging is None else merging[1]
    single, _ = plan_merged(targets, size, 1, method, chunk=chunk, budget=budget)
    wanted = [part for panel in single.panels for part in single.parts(panel)]
    done = {run.id: _Done(path, bank.runs.done_pieces(run.id), chunk) for run, path in runs}
    open_runs = [item for item in runs if not all(done[item[0].id].has(part) for part in wanted)]
    if not open_runs:
        return
    plan, beside = plan_merged(targets, size, len(open_runs), method, chunk=chunk, budget=budget)
    panels = plan.panels
    parts = {panel.name: plan.parts(panel) for panel in panels}
    missing = {
        panel.name: [part for part in parts[panel.name] if not done[open_runs[part.group][0].id].has(part)]
        for panel in panels
    }
    columns = [range(panel.start, panel.stop) for panel in panels]
    store = str(bank.store.path.absolute())
    groups = tuple(str(path.absolute()) for _, path in open_runs)
    merge = None if merging is None else merge_of(bank, merging[0], sources, method, cluster, progress)
    tasks = {
        panel.name: (
            store,
            groups,
            sources.within(panel.start, panel.stop, chunk),
            panel,
            chunk,
            following(columns, index, cluster.slots),
            dtype,
            None if merge is None else merge.within(panel.start, panel.stop),
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
    for name, _ in run_tasks(cluster, "combine", combine_panel, tasks, progress, memory=plan.memory + beside):
        for part in parts[name]:
            run, _ = open_runs[part.group]
            bank.runs.mark_done(run.id, {part.name: run.inputs_sha256})


def _check_space(path: Location, needed: int) -> None:
    """Refuse before anything is computed what the disk cannot hold: it would fill up hours later."""
    free = free_space(path)
    if free is not None and needed > free:
        raise PlanError(
            f"{path}: expected {needed / 2**30:.1f} GiB free for the predictions, found {free / 2**30:.1f} GiB; "
            "delete older predictions, store fewer combinations at once, or none: each adapter can be made from its "
            "coefficients (`bank export --prediction`)"
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
        self._shards = stored_chunks(path / ADAPTERS) if pieces else set()

    def has(self, part: PanelPart) -> bool:
        if part.name not in self._pieces:
            return False
        column = int(part.name.split("-")[0]) // self._chunk
        shards = range(part.start // SHARD_ROWS, -(-part.stop // SHARD_ROWS))
        return all((shard, column) in self._shards for shard in shards)
