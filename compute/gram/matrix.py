"""The Gram matrix G = Theta Theta^T, one streamed pass over Theta in column slices on Dask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import read_chunks, write_chunks
from bankdb.arrays.metadata import ArrayLayout
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import column_chunk, stored_chunks
from bankdb.bank import AdapterBank
from bankdb.derived import (
    delete_derived,
    delete_others,
    digest_of,
    find_array,
    make_array,
    row_of,
    rows_of,
    set_attributes,
    space_of,
)
from bankdb.errors import ComputeError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from bankdb.scaled_rows import Sources
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.gram.plan import GramPlan, plan_gram
from compute.gram.slices import _STRIP, gram_slice

_AGAIN = "and run the same command again"
# Rows of a chunk of the stored matrix: 512 KiB.
_SIDE = 256


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
        known = _known_rows(bank, path, rows[-1] + 1, progress)
        new = [i for i, record in enumerate(adapters) if known.get(str(record.row)) != row_of(record)]
        if new:
            part = _compute_part(bank, adapters, new, sources, cluster, progress)
            _extend(bank, path, adapters, new, part, known)
        # Also those of a run that was killed after it had put its sums in their place.
        _delete_parts(bank)
        values: NDArray[np.float64] = read_chunks(path, delete=path, missing=True)[np.ix_(rows, rows)]
        if np.isfinite(values).all():
            return values
        # Somebody deleted chunks: the whole is computed again.
        delete_derived(bank, path)
    raise ComputeError(f"{path}: the Gram matrix lacks entries after it was computed; {_AGAIN}")


def _known_rows(bank: AdapterBank, path: Location, size: int, progress: Progress) -> dict[str, str]:
    """Return the rows that the stored matrix holds, each with what it was computed from; it is made if need be."""
    layout = ArrayLayout((size, size), (_SIDE, _SIDE), "float64")
    made_from = digest_of(kind="gram", strip=_STRIP, **space_of(bank))
    found = find_array(bank, path, layout, made_from, progress, grows=True)
    if found is None:
        make_array(bank, path, layout, made_from, {"rows": {}})
        return {}
    return dict(found["rows"])


def _compute_part(
    bank: AdapterBank,
    adapters: Sequence[AdapterRecord],
    new: Sequence[int],
    sources: Sources,
    cluster: Cluster,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return the products of the new adapters with all, shape (K, N)."""
    run, path, plan = _open_run(bank, adapters, new, cluster.task_budget, progress)
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
        # As disks and cores of some years ago do it.
        read, products = 4 * len(adapters) * bank.layout.size, 2 * len(new) * len(adapters) * bank.layout.size
        seconds = read / 5e8 + products / 1e10
        for name, _ in run_tasks(
            cluster, "gram", gram_slice, tasks, progress, memory=plan.memory, seconds=seconds
        ):
            bank.runs.mark_done(run.id, {name: run.inputs_sha256})
        bank.runs.finish(run.id)
    # Summed in the order of the slices: the same result however the tasks were scheduled.
    total = np.zeros((len(new), len(adapters)))
    for index in range(len(plan.slices)):
        every = slice(None)
        total += read_chunks(path, (slice(index, index + 1), every, every), delete=path)[0]
    if not np.isfinite(total).all():
        raise ComputeError(f"{path}: a slice of the Gram matrix lacks entries; delete it, {_AGAIN}")
    return total


def _delete_parts(bank: AdapterBank) -> None:
    """Delete the sums over slices, whose total is in the matrix, and what is known of them."""
    delete_others(bank, bank.array_path("gram"), keep=("gram",))
    for run in bank.runs.all("gram"):
        bank.runs.delete(run.id)


def _extend(
    bank: AdapterBank,
    path: Location,
    adapters: Sequence[AdapterRecord],
    new: Sequence[int],
    part: NDArray[np.float64],
    known: dict[str, str],
) -> None:
    """Put the new rows and columns into the stored matrix; its attribute comes last and makes them count."""
    written = {str(adapters[index].row): row_of(adapters[index]) for index in new}
    kept = {row: value for row, value in known.items() if row not in written}
    set_attributes(bank, path, rows=kept)
    rows = np.asarray([record.row for record in adapters])
    values: NDArray[np.float64] = read_chunks(path, delete=path, missing=True)
    among = part[:, new]
    part[:, new] = (among + among.T) / 2  # a general product may round its two halves in two ways
    values[rows[new], :] = values[:, rows[new]] = np.nan  # also with rows that are not in the bank now
    values[np.ix_(rows[new], rows)] = part
    values[np.ix_(rows, rows[new])] = part.T
    write_chunks(path, (0, 0), values)
    set_attributes(bank, path, rows=kept | written)


def _open_run(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], new: Sequence[int], budget: int, progress: Progress
) -> tuple[RunRecord, Location, GramPlan]:
    """Find the run of these rows, or begin it; its array holds the sum over each slice of columns."""
    parameters, n = bank.layout.size, len(adapters)
    # Its slices do not depend on the workers, so that a run goes on whatever it is run on.
    plan = plan_gram(n, len(new), parameters, chunk=column_chunk(parameters), budget=budget)
    slices = [[columns.start, columns.stop] for columns in plan.slices]
    made_from = digest_of(
        kind="gram part", strip=_STRIP, slices=slices, new=list(new), **rows_of(bank, adapters)
    )
    name = f"part-{made_from[:16]}"
    run = bank.runs.begin("gram", {"rows": made_from, "array": f"gram.zarr/{name}"})
    path = bank.array_path("gram") / name
    layout = ArrayLayout((len(slices), len(new), n), (1, len(new), n), "float64")
    if find_array(bank, path, layout, made_from, progress) is None:
        bank.runs.reopen(run.id)
        delete_others(bank, path.parent, keep=("gram",))
        make_array(bank, path, layout, made_from)
    return run, path, plan
