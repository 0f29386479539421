"""All pairs of distances, in tiles on Dask; each tile on or above the diagonal computes its mirror too.

A stored matrix is indexed by row numbers of the bank, which are never used twice: an entry, once
computed, never becomes stale, and adapters added later only add entries. The array itself keeps which
datasets all its entries are of: a database restored from an older copy gives row numbers again, and a run
that was killed computes its unfinished tiles as a whole, to the same last digit.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import fsync_path
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import create_array, ensure_group, grow_array, open_array
from bankdb.bank import AdapterBank, ready_adapters
from bankdb.errors import ComputeError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.metrics.base import Metric
from compute.pairwise.counts import write_distributions
from compute.pairwise.labelled import LabelledMatrix
from compute.pairwise.plan import CHUNK_ROWS, Tile, plan_distances, tile_bytes
from compute.pairwise.tile import compute_tile, read_entries

# Where a task may use less, the memory that compiled loops take a worker would be missed.
_COMPILED_BUDGET = 2**30


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DistanceMatrix(LabelledMatrix):
    """Distances between all datasets of a bank.

    Attributes
    ----------
    adapters
        The N adapters, by row; the order of both axes.
    values
        float64, shape (N, N): `values[i, j]` from target i to source j.
    metric
        The metric's key.
    """

    adapters: tuple[AdapterRecord, ...]
    values: NDArray[np.float64]
    metric: str

    def _label(self) -> str:
        return self.metric


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """The array and the run of one metric."""

    metric: Metric
    run: RunRecord
    path: Location

    @property
    def key(self) -> str:
        return self.metric.key


def distance_matrices(
    bank: AdapterBank, metrics: Sequence[Metric], cluster: Cluster, progress: Progress
) -> list[DistanceMatrix]:
    """Compute the distances that are not stored yet, and return them all, a matrix for each metric.

    The missing tiles of all metrics are one stage, so that workers wait once at the most, at its end. The
    caller holds the bank's compute lock.

    Raises
    ------
    BankNotFoundError
        The bank is empty.
    PlanError
        A tile does not fit the memory budget.
    ComputeError
        A tile failed, or left entries that are not numbers.
    """
    adapters = ready_adapters(bank)
    rows = [record.row for record in adapters]
    opened = {metric.key: _open_run(bank, metric, rows[-1] + 1) for metric in metrics}
    found: dict[str, DistanceMatrix] = {}
    for attempt in range(2):
        waiting = [stored for key, stored in opened.items() if key not in found]
        _compute_missing(bank, waiting, adapters, cluster, progress)
        for stored in waiting:
            values = _of_rows(read_entries(stored.path, np.s_[:, :]), rows)
            if np.isfinite(values).all():
                found[stored.key] = DistanceMatrix(adapters, values, stored.key)
            elif attempt == 0:
                # Chunks that the database calls done and that are not there: somebody deleted files.
                _forget_chunks(bank, stored.run, rows, ~np.isfinite(values))
            else:
                raise _not_numbers(stored, adapters, values)
    return [found[metric.key] for metric in metrics]


def _of_rows(values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
    """Return the entries of some rows and columns, without a copy where there are no others."""
    return values if len(rows) == len(values) else values[np.ix_(rows, rows)]


def _not_numbers(
    stored: _Stored, adapters: Sequence[AdapterRecord], values: NDArray[np.float64]
) -> ComputeError:
    i, j = np.argwhere(~np.isfinite(values))[0]
    return ComputeError(
        f"{stored.path}: the distance from {adapters[i].name} to {adapters[j].name} is {values[i, j]} after it "
        "was computed; delete that folder and run the same command again"
    )


def _open_run(bank: AdapterBank, metric: Metric, rows: int) -> _Stored:
    record = bank.record
    ensure_group(bank.array_path("distances"))
    parameters = {
        "metric": metric.key,
        "tokenizer": record.tokenizer_fingerprint,
        "text_rule": record.text_rule,
        "vocabulary": record.vocabulary,
        "chunk": CHUNK_ROWS,
        "array": f"distances.zarr/{metric.key}",
    }
    run = bank.runs.begin("distances", parameters)
    # Absolute: a worker may stand in another folder.
    path = bank.array_path("distances").absolute() / metric.key
    if (path / "zarr.json").is_file() and open_array(path).attrs.get("run") == run.inputs_sha256:
        grow_array(path, (rows, rows))
        return _Stored(metric, run, path)
    bank.runs.reopen(run.id)
    create_array(
        path,
        shape=(rows, rows),
        chunks=(CHUNK_ROWS, CHUNK_ROWS),
        shards=None,
        dtype="float64",
        attributes={"run": run.inputs_sha256, "metric": metric.key, "rows": "targets", "complete": {}},
    )
    return _Stored(metric, run, path)


def _complete_rows(
    bank: AdapterBank, run: RunRecord, path: Location, adapters: Sequence[AdapterRecord]
) -> NDArray[np.int64]:
    """Return the rows of which the array has the distances to each other."""
    stored: Any = open_array(path).attrs.get("complete", {})
    complete = [record for record in adapters if stored.get(str(record.row)) == record.content_sha256]
    if sum(str(record.row) in stored for record in adapters) > len(complete):
        # Some row was another dataset: whatever this database calls done, the array may have the other's.
        bank.runs.reopen(run.id)
        _set_complete(path, complete)
    return np.asarray([record.row for record in complete], dtype=np.int64)


def _set_complete(path: Location, adapters: Sequence[AdapterRecord]) -> None:
    complete = {str(record.row): record.content_sha256 for record in adapters}
    array = open_array(path, mode="r+")
    if array.attrs.get("complete") != complete:
        array.attrs["complete"] = complete
        fsync_path(path / "zarr.json")


def _forget_chunks(bank: AdapterBank, run: RunRecord, rows: Sequence[int], bad: NDArray[np.bool_]) -> None:
    chunks = np.asarray(rows)[np.argwhere(bad)] // CHUNK_ROWS
    names = {_chunk_name(int(min(pair)), int(max(pair))) for pair in np.unique(chunks, axis=0)}
    bank.runs.forget_pieces(run.id, names)


def _compute_missing(
    bank: AdapterBank,
    waiting: Sequence[_Stored],
    adapters: Sequence[AdapterRecord],
    cluster: Cluster,
    progress: Progress,
) -> None:
    contents = _chunk_contents(adapters)
    lacking = _lacking(bank, waiting, adapters, contents)
    if not lacking:
        return
    counts_path, nnz = write_distributions(bank, adapters)
    pieces: dict[str, tuple[_Stored, Tile]] = {}
    tasks: dict[str, tuple[Any, ...]] = {}
    compiled = cluster.task_budget >= _COMPILED_BUDGET
    planned = plan_distances(
        [(stored.metric, lacking[stored][1] if stored in lacking else ()) for stored in waiting],
        adapters[-1].row + 1,
        vocabulary=bank.record.vocabulary,
        nnz=nnz,
        slots=cluster.slots,
        budget=cluster.task_budget,
    )
    for piece in planned:
        stored, tile = waiting[piece.matrix], piece.tile
        name = tile.name if len(lacking) == 1 else f"{stored.key}-{tile.name}"
        pieces[name] = stored, tile
        complete, _ = lacking[stored]
        tasks[name] = (str(stored.path), str(counts_path), stored.metric, tile, complete, compiled)
    left = Counter(stored for stored, _ in pieces.values())

    def step(name: str) -> str:
        return _stage([pieces[name][0]])

    memory = max(tile_bytes(piece.metric, piece.side, bank.record.vocabulary, nnz) for piece in planned)
    for name, _ in run_tasks(cluster, _stage(list(lacking)), compute_tile, tasks, progress, step, memory):
        stored, tile = pieces[name]
        chunks = [chunk for chunk in tile.chunks() if chunk in contents]
        bank.runs.mark_done(stored.run.id, {_chunk_name(*chunk): contents[chunk] for chunk in chunks})
        left[stored] -= 1
        if not left[stored]:
            _set_complete(stored.path, adapters)
            bank.runs.finish(stored.run.id)


def _lacking(
    bank: AdapterBank,
    matrices: Sequence[_Stored],
    adapters: Sequence[AdapterRecord],
    contents: Mapping[tuple[int, int], str],
) -> dict[_Stored, tuple[NDArray[np.int64], list[tuple[int, int]]]]:
    """Return the matrices that lack chunks, each with its complete rows and those chunks."""
    lacking = {}
    for stored in matrices:
        complete = _complete_rows(bank, stored.run, stored.path, adapters)
        done = bank.runs.done_pieces(stored.run.id)
        missing = [chunk for chunk, content in contents.items() if done.get(_chunk_name(*chunk)) != content]
        if missing:
            lacking[stored] = complete, missing
        else:
            _set_complete(stored.path, adapters)
    return lacking


def _stage(matrices: Sequence[_Stored]) -> str:
    if len(matrices) == 1:
        return f"distances {matrices[0].key}"
    return f"distances by {len(matrices)} metrics"


def _chunk_name(i: int, j: int) -> str:
    return f"{i}-{j}"


def _chunk_contents(adapters: Sequence[AdapterRecord]) -> dict[tuple[int, int], str]:
    """Return, for each chunk with entries, the hash of the rows that its entries belong to."""
    blocks: dict[int, list[str]] = {}
    for record in adapters:
        blocks.setdefault(record.row // CHUNK_ROWS, []).append(f"{record.row}:{record.content_sha256}")
    digests = {block: hashlib.sha256(" ".join(rows).encode()).hexdigest() for block, rows in blocks.items()}
    return {
        (i, j): hashlib.sha256(f"{digests[i]}{digests[j]}".encode()).hexdigest()
        for i in digests
        for j in digests
        if i <= j
    }
