"""The Gram matrix G = Theta Theta^T, one streamed pass over Theta in column slices on Dask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.adapter_store import AdapterStore
from bankdb.arrays import (
    chunk_file,
    column_chunk,
    create_array,
    ensure_group,
    fsync_written,
    open_array,
    read_region,
)
from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from compute.cluster import Cluster, run_tasks
from compute.combine import Sources, read_scaled
from compute.tiles import plan_slices

# Columns multiplied at once in single precision before they are added in double: bounds both the
# rounding of a product and what has to stay in cache.
_STRIP = 8192
_PIECES = 64


def gram_matrix(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    sources: Sources,
    cluster: Cluster,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return G over the given adapters at the bank's scaling, from store where it was computed before.

    Costs N^2 p flops and 4 N p bytes read. The caller holds the bank's compute lock.

    Returns
    -------
    float64, shape (N, N), symmetric.

    Raises
    ------
    PlanError
        N x N in double precision does not fit a task's memory.
    ComputeError
        A slice failed.
    """
    run, path, slices = _open_run(bank, adapters, cluster.task_budget)
    done = bank.runs.done_pieces(run.id)
    tasks = {
        f"{index}": (
            str(bank.store.path.absolute()),
            str(path.absolute()),
            sources,
            index,
            columns.start,
            columns.stop,
        )
        for index, columns in enumerate(slices)
        if f"{index}" not in done or not chunk_file(path, index, 0, 0).is_file()
    }
    if tasks:
        for name, _ in run_tasks(cluster, "gram", gram_slice, tasks, progress):
            bank.runs.mark_done(run.id, {name: run.inputs_sha256})
        bank.runs.finish(run.id)
    # Summed in the order of the slices: the same result however the tasks were scheduled.
    partial = open_array(path)
    total = np.zeros((len(adapters), len(adapters)))
    for index in range(len(slices)):
        total += read_region(partial, index, f"delete {path} and run the same command again")
    if not np.isfinite(total).all():
        raise ComputeError(f"{path}: the Gram matrix lacks entries; delete it and run the same command again")
    return total


def _open_run(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], budget: int
) -> tuple[RunRecord, Path, tuple[range, ...]]:
    """Find the run over these rows, or begin it; its array holds the sum over each slice of columns."""
    parameters, n = bank.layout.size, len(adapters)
    # The slices do not depend on the workers, so that a run goes on whatever it is run on.
    slices = plan_slices(parameters, n, chunk=column_chunk(parameters), budget=budget, pieces=_PIECES)
    text = " ".join(f"{record.row}:{record.row_sha256}:{record.scaling}" for record in adapters)
    digest = hashlib.sha256(f"{bank.record.scaling} {text}".encode()).hexdigest()
    ensure_group(bank.array_path("gram"))
    run = bank.runs.begin("gram", {"rows": digest, "strip": _STRIP, "array": f"gram.zarr/{digest[:16]}"})
    path = bank.array_path("gram") / digest[:16]
    if not _usable(path, run.inputs_sha256, len(slices)):
        bank.runs.reopen(run.id)
        create_array(
            path,
            shape=(len(slices), n, n),
            chunks=(1, n, n),
            shards=None,
            dtype="float64",
            attributes={"run": run.inputs_sha256},
        )
    return run, path, slices


def _usable(path: Path, run: str, slices: int) -> bool:
    if not (path / "zarr.json").is_file():
        return False
    array = open_array(path)
    return bool(array.attrs.get("run") == run and array.shape[0] == slices)


def gram_slice(
    adapters_path: str, gram_path: str, sources: Sources, index: int, start: int, stop: int
) -> int:
    """Compute the sum over columns `start` to `stop` and store it; runs in a worker; returns bytes read.

    Raises
    ------
    BankFormatError
        A row is damaged.
    ComputeError
        A product of two rows overflows float32.
    """
    store = AdapterStore(Path(adapters_path))
    chunk = column_chunk(int(store.array.shape[1]))
    which = list(range(len(sources.rows)))
    total = np.zeros((len(which), len(which)))
    for first in range(start, stop, chunk):
        panel = read_scaled(store, sources, which, first, min(first + chunk, stop))
        total += partial_gram(panel)
    if not np.isfinite(total).all():
        i, j = (int(sources.rows[k]) for k in np.argwhere(~np.isfinite(total))[0])
        raise ComputeError(
            f"gram: the product of rows {i} and {j} is not a finite number in float32; run `bank verify`, and check "
            "their weights and scalings"
        )
    array = open_array(gram_path, mode="r+")
    array[index] = total
    fsync_written(Path(gram_path), [chunk_file(Path(gram_path), index, 0, 0)])
    return 4 * len(which) * (stop - start)


def partial_gram(panel: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `panel @ panel.T` in double precision: single within strips of columns, double across them."""
    total = np.zeros((len(panel), len(panel)))
    for first in range(0, panel.shape[1], _STRIP):
        strip = panel[:, first : first + _STRIP]
        with np.errstate(over="ignore"):  # the caller looks at the sum
            total += strip @ strip.T
    return total
