"""The Gram matrix G = Theta Theta^T, one streamed pass over Theta in column slices on Dask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import delete_tree, folders_in, fsync_tree, fsync_written
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import (
    column_chunk,
    create_array,
    ensure_group,
    grow_array,
    open_array,
    read_region,
    stored_chunks,
)
from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from bankdb.scaled_rows import Sources
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.gram.plan import GramPlan, plan_gram
from compute.gram.slices import _STRIP, gram_slice

_AGAIN = "and run the same command again"


def gram_matrix(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    sources: Sources,
    cluster: Cluster,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return G over the given adapters at the bank's scaling; only what is not stored yet is computed.

    The stored matrix is indexed by rows of the bank: adapters that are added later extend it. K new ones
    among N cost 2 K N p flops (N^2 p where all are new: half of a symmetric product) and 4 N p bytes read.
    The caller holds the bank's compute lock.

    Returns
    -------
    float64, shape (N, N), symmetric.

    Raises
    ------
    PlanError
        The part that is new does not fit a task's memory in double precision.
    ComputeError
        A slice failed.
    """
    path = bank.array_path("gram") / "gram"
    rows = [record.row for record in adapters]
    for _ in range(2):
        known = _known_rows(path)
        new = [i for i, record in enumerate(adapters) if known.get(str(record.row)) != record.row_sha256]
        if new:
            part = _compute_part(bank, adapters, new, sources, cluster, progress)
            _extend(path, adapters, new, part, known)
        # Also those of a run that was killed after it had put its sums in their place.
        _delete_parts(bank)
        values: NDArray[np.float64] = read_region(open_array(path), np.s_[:, :], f"delete {path}, {_AGAIN}")
        values = values[np.ix_(rows, rows)]
        if np.isfinite(values).all():
            return values
        # Somebody deleted chunks: the whole is computed again.
        delete_tree(path)
    raise ComputeError(f"{path}: the Gram matrix lacks entries after it was computed; {_AGAIN}")


def _known_rows(path: Location) -> dict[str, str]:
    """Return the rows that the stored matrix holds, with the hash of what each was computed from."""
    if not (path / "zarr.json").is_file():
        return {}
    rows = open_array(path).attrs.get("rows")
    return {str(row): str(value) for row, value in rows.items()} if isinstance(rows, dict) else {}


def _compute_part(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    new: Sequence[int],
    sources: Sources,
    cluster: Cluster,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return the products of the new adapters with all, shape (K, N)."""
    run, path, plan = _open_run(bank, adapters, new, cluster.task_budget)
    done, stored = bank.runs.done_pieces(run.id), stored_chunks(path)
    where = (str(bank.store.path.absolute()), str(path.absolute()))
    chunk = bank.store.chunk
    tasks = {
        f"{index}": (
            *where,
            sources.within(columns.start, columns.stop, chunk),
            tuple(new),
            index,
            columns.start,
            columns.stop,
            plan.ahead,
        )
        for index, columns in enumerate(plan.slices)
        if f"{index}" not in done or (index, 0, 0) not in stored
    }
    if tasks:
        for name, _ in run_tasks(cluster, "gram", gram_slice, tasks, progress, memory=plan.memory):
            bank.runs.mark_done(run.id, {name: run.inputs_sha256})
        bank.runs.finish(run.id)
    # Summed in the order of the slices: the same result however the tasks were scheduled.
    parts = open_array(path)
    total = np.zeros((len(new), len(adapters)))
    for index in range(len(plan.slices)):
        total += read_region(parts, index, f"delete {path}, {_AGAIN}")
    if not np.isfinite(total).all():
        raise ComputeError(f"{path}: a slice of the Gram matrix lacks entries; delete it, {_AGAIN}")
    return total


def _delete_parts(bank: AdapterBank) -> None:
    """Delete the sums over slices, whose total is in the matrix, and what is known of them."""
    _delete_part_folders(bank)
    for run in bank.runs.all("gram"):
        bank.runs.delete(run.id)


def _delete_part_folders(bank: AdapterBank) -> None:
    for folder in folders_in(bank.array_path("gram")):
        if folder.name.startswith("part-"):
            delete_tree(folder)


def _extend(
    path: Location,
    adapters: Sequence[AdapterRecord],
    new: Sequence[int],
    part: NDArray[np.float64],
    known: dict[str, str],
) -> None:
    """Put the new rows and columns into the stored matrix; its attribute comes last and makes them count."""
    size = max(record.row for record in adapters) + 1
    if known:
        grow_array(path, (size, size))
        array = open_array(path, mode="r+")
    else:
        side = min(size, 1024)
        array = create_array(
            path, shape=(size, size), chunks=(side, side), shards=None, dtype="float64", attributes={}
        )
    rows = np.asarray([record.row for record in adapters])
    values = np.array(read_region(array, np.s_[:, :], f"delete {path}, {_AGAIN}"))
    among = part[:, new]
    part[:, new] = (among + among.T) / 2  # a general product may round its two halves in two ways
    values[np.ix_(rows[new], rows)] = part
    values[np.ix_(rows, rows[new])] = part.T
    array[:, :] = values
    fsync_tree(path)
    hashes = known | {str(adapters[index].row): adapters[index].row_sha256 for index in new}
    array.attrs.update({"rows": hashes})
    fsync_written(path, [path / "zarr.json"])


def _open_run(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], new: Sequence[int], budget: int
) -> tuple[RunRecord, Location, GramPlan]:
    """Find the run of these rows, or begin it; its array holds the sum over each slice of columns."""
    parameters, n = bank.layout.size, len(adapters)
    # Its slices do not depend on the workers, so that a run goes on whatever it is run on.
    plan = plan_gram(n, len(new), parameters, chunk=column_chunk(parameters), budget=budget)
    text = " ".join(f"{record.row}:{record.row_sha256}:{record.scaling}" for record in adapters)
    first = " ".join(str(adapters[index].row) for index in new)
    digest = hashlib.sha256(f"{bank.record.scaling} {text} new {first}".encode()).hexdigest()
    ensure_group(bank.array_path("gram"))
    name = f"part-{digest[:16]}"
    run = bank.runs.begin("gram", {"rows": digest, "strip": _STRIP, "array": f"gram.zarr/{name}"})
    path = bank.array_path("gram") / name
    if not _usable(path, run.inputs_sha256, len(plan.slices)):
        bank.runs.reopen(run.id)
        _delete_part_folders(bank)
        create_array(
            path,
            shape=(len(plan.slices), len(new), n),
            chunks=(1, len(new), n),
            shards=None,
            dtype="float64",
            attributes={"run": run.inputs_sha256},
        )
    return run, path, plan


def _usable(path: Location, run: str, slices: int) -> bool:
    if not (path / "zarr.json").is_file():
        return False
    array = open_array(path)
    return bool(array.attrs.get("run") == run and array.shape[0] == slices)
