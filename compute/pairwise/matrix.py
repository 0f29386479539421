"""All pairs of distances, in tiles on Dask; each tile on or above the diagonal computes its mirror too.

A stored matrix is indexed by row numbers of the bank, which are never used twice: an entry, once
computed, never becomes stale, and adapters added later only add entries. But a database restored from an older
copy gives row numbers again, and calls pieces done that were overwritten since. So the array itself keeps which
datasets all its entries are of, and a mark of those that are being written: a piece that the database calls done
counts under that mark alone. A run that was killed computes its unfinished tiles as a whole, to the same last digit.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.metadata import ArrayLayout, read_layout
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import stored_chunks
from bankdb.bank import AdapterBank, ready_adapters
from bankdb.derived import OLD_DISTANCES, find_array, make_array, set_attributes
from bankdb.errors import ComputeError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from bankdb.shown import metric_text
from compute.cluster.options import Cluster
from compute.cluster.tasks import run_tasks
from compute.metrics.base import Metric
from compute.pairwise.counts import write_distributions
from compute.pairwise.labelled import LabelledMatrix
from compute.pairwise.plan import CHUNK_ROWS, Tile, expected_seconds, plan_distances, tile_bytes
from compute.pairwise.stored import StoredRows, read_band, read_entries
from compute.pairwise.tile import compute_tile

HELD_ROWS = 4096
"""Of more datasets a matrix (134 MB) is read when its values are asked for, and not before."""
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


class StoredDistances(DistanceMatrix):
    """A matrix that is read when its values are asked for: of many datasets it is larger than what most need of it."""

    __slots__ = ("_path", "_whole")
    _path: Location
    _whole: list[NDArray[np.float64]]

    def __init__(self, adapters: tuple[AdapterRecord, ...], metric: str, path: Location) -> None:
        for name, value in (("adapters", adapters), ("metric", metric), ("_path", path), ("_whole", [])):
            object.__setattr__(self, name, value)

    @property
    def values(self) -> NDArray[np.float64]:  # type: ignore[override]
        """See `DistanceMatrix`."""
        if not self._whole:
            self._whole.append(self.band(0, len(self.adapters)))
        return self._whole[0]

    @property
    def held(self) -> bool:
        """See `LabelledMatrix`."""
        return bool(self._whole)

    @property
    def stored(self) -> StoredRows | None:
        """See `LabelledMatrix`."""
        return None if self._whole else StoredRows(str(self._path), _row_numbers(self.adapters))

    def band(self, start: int, stop: int) -> NDArray[np.float64]:
        """See `LabelledMatrix`."""
        if self._whole:
            return self._whole[0][start:stop]
        return _of_path(self._path, self.adapters, start, stop)


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """The array and the run of one metric."""

    metric: Metric
    run: RunRecord
    path: Location

    @property
    def key(self) -> str:
        return self.metric.key


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What one matrix lacks.

    Attributes
    ----------
    complete
        Rows whose distances to each other are stored.
    chunks
        Those that are computed.
    mark
        What pieces are done under.
    """

    complete: NDArray[np.int64]
    chunks: list[tuple[int, int]]
    mark: str


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
    rows = _row_numbers(adapters)
    opened = {metric.key: _open_run(bank, metric, rows[-1] + 1, progress) for metric in metrics}
    found: dict[str, DistanceMatrix] = {}
    lost: dict[_Stored, set[tuple[int, int]]] = {}
    for attempt in range(2):
        waiting = [stored for key, stored in opened.items() if key not in found]
        if not waiting:
            break
        _compute_missing(bank, waiting, adapters, lost, cluster, progress)
        for stored in waiting:
            if len(rows) > HELD_ROWS:
                if gone := _not_there(stored.path, rows):
                    lost[stored] = gone
                else:
                    found[stored.key] = StoredDistances(adapters, stored.key, stored.path)
                if not gone or attempt == 0:
                    continue
            values = _of_rows(read_entries(stored.path), rows)
            if np.isfinite(values).all():
                found[stored.key] = DistanceMatrix(adapters, values, stored.key)
            elif attempt == 0:
                # Chunks that are called done and that are not there: somebody deleted files.
                chunks = np.sort(np.asarray(rows)[np.argwhere(~np.isfinite(values))] // CHUNK_ROWS)
                lost[stored] = {(int(i), int(j)) for i, j in np.unique(chunks, axis=0)}
            else:
                raise _not_numbers(stored.path, adapters, adapters, values)
    return [found[metric.key] for metric in metrics]


def _of_rows(values: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
    """Return the entries of some rows and columns, without a copy where there are no others."""
    return values if len(rows) == len(values) else values[np.ix_(rows, rows)]


def _not_there(path: Location, rows: Sequence[int]) -> set[tuple[int, int]]:
    """Return the chunks on and above the diagonal that have entries of these rows, and are not stored on both sides."""
    stored = stored_chunks(path)
    blocks = sorted({row // CHUNK_ROWS for row in rows})
    return {(i, j) for i in blocks for j in blocks if i <= j and not {(i, j), (j, i)} <= stored}


def _of_path(path: Location, adapters: Sequence[AdapterRecord], start: int, stop: int) -> NDArray[np.float64]:
    """Read the distances from the targets in [start, stop), shape (stop - start, N).

    Raises
    ------
    BankFormatError, ComputeError
        A chunk is damaged, or has entries that are not numbers.
    """
    values = read_band(path, _row_numbers(adapters), start, stop)
    if not np.isfinite(values).all():
        raise _not_numbers(path, adapters[start:stop], adapters, values)
    return values


def _row_numbers(adapters: Sequence[AdapterRecord]) -> list[int]:
    return [record.row for record in adapters]


def _not_numbers(
    path: Location,
    targets: Sequence[AdapterRecord],
    sources: Sequence[AdapterRecord],
    values: NDArray[np.float64],
) -> ComputeError:
    i, j = np.argwhere(~np.isfinite(values))[0]
    return ComputeError(
        f"{path}: the distance from {targets[i].name} to {sources[j].name} is {values[i, j]} after it "
        "was computed; delete that folder and run the same command again"
    )


def _parameters(bank: AdapterBank, metric: Metric) -> dict[str, Any]:
    record = bank.record
    return {
        "metric": metric.key,
        "tokenizer": record.tokenizer_fingerprint,
        "text_rule": record.text_rule,
        "vocabulary": record.vocabulary,
        "chunk": CHUNK_ROWS,
        "array": f"distances.zarr/{metric.key}",
    }


def _place(bank: AdapterBank, metric: Metric) -> Location:
    # Absolute: a worker may stand in another folder.
    return bank.array_path("distances").absolute() / metric.key


def stored_distances(
    bank: AdapterBank, metric: Metric, adapters: tuple[AdapterRecord, ...]
) -> StoredDistances | None:
    """Return the distances between all these datasets if all are stored; None otherwise. Writes nothing.

    Raises
    ------
    BankFormatError
        What is stored of them was changed.
    """
    path, wanted = _place(bank, metric), _parameters(bank, metric)
    runs = [run for run in bank.runs.all("distances") if json.loads(run.parameters) == wanted]
    if not runs or not path.exists():
        return None
    attributes = read_layout(path)[1]
    same = attributes.get("made_from") == runs[0].inputs_sha256
    whole = _complete(adapters).items() <= attributes.get("complete", {}).items()
    return StoredDistances(adapters, metric.key, path) if same and whole else None


def _open_run(bank: AdapterBank, metric: Metric, rows: int, progress: Progress) -> _Stored:
    run = bank.runs.begin("distances", _parameters(bank, metric))
    path = _place(bank, metric)
    layout = ArrayLayout((rows, rows), (CHUNK_ROWS, CHUNK_ROWS), "float64")
    made_from = run.inputs_sha256
    if find_array(bank, path, layout, made_from, progress, old=OLD_DISTANCES, grows=True) is None:
        bank.runs.reopen(run.id)
        make_array(bank, path, layout, made_from, {"metric": metric.key, "complete": {}})
    return _Stored(metric, run, path)


def _complete(adapters: Sequence[AdapterRecord]) -> dict[str, str]:
    """Return how the array states that it has the distances of these datasets to each other."""
    return {str(record.row): record.content_sha256 for record in adapters}


def _compute_missing(
    bank: AdapterBank,
    waiting: Sequence[_Stored],
    adapters: Sequence[AdapterRecord],
    lost: Mapping[_Stored, Collection[tuple[int, int]]],
    cluster: Cluster,
    progress: Progress,
) -> None:
    contents = _chunk_contents(adapters)
    lacking = {stored: _lacking(bank, stored, adapters, contents, lost.get(stored, ())) for stored in waiting}
    lacking = {stored: work for stored, work in lacking.items() if work.chunks}
    if not lacking:
        return
    counts, nnz = write_distributions(bank, adapters, progress)
    pieces: dict[str, tuple[_Stored, Tile]] = {}
    tasks: dict[str, tuple[Any, ...]] = {}
    compiled = cluster.task_budget >= _COMPILED_BUDGET
    planned = plan_distances(
        [(stored.metric, lacking[stored].chunks if stored in lacking else ()) for stored in waiting],
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
        complete = lacking[stored].complete
        tasks[name] = (str(stored.path), counts, stored.metric, tile, complete, compiled)
    left = Counter(stored for stored, _ in pieces.values())

    def step(name: str) -> str:
        return _stage([pieces[name][0]])

    memory = max(tile_bytes(piece.metric, piece.side, bank.record.vocabulary, nnz) for piece in planned)
    new = [len(adapters) - len(lacking[stored].complete) if stored in lacking else 0 for stored in waiting]
    seconds = expected_seconds(planned, new, bank.record.vocabulary, nnz)
    for name, _ in run_tasks(
        cluster, _stage(list(lacking)), compute_tile, tasks, progress, step, memory, seconds
    ):
        stored, tile = pieces[name]
        chunks = [chunk for chunk in tile.chunks() if chunk in contents]
        bank.runs.mark_done(stored.run.id, _pieces(lacking[stored].mark, chunks, contents))
        left[stored] -= 1
        if not left[stored]:
            # Of what is whole no mark is left: any run that made it leaves the same bytes.
            set_attributes(bank, stored.path, complete=_complete(adapters), writing={})
            bank.runs.finish(stored.run.id)


def _lacking(
    bank: AdapterBank,
    stored: _Stored,
    adapters: Sequence[AdapterRecord],
    contents: Mapping[tuple[int, int], str],
    lost: Collection[tuple[int, int]],
) -> _Work:
    """Return what a matrix lacks; its array then says what it is about to hold."""
    attributes = read_layout(stored.path)[1]
    before, writing = attributes["complete"], attributes.get("writing", {})
    kept = [record for record in adapters if before.get(str(record.row)) == record.content_sha256]
    complete = np.asarray([record.row for record in kept], dtype=np.int64)
    rows, mark = {record.row for record in kept}, str(writing.get("mark", ""))
    pieces = bank.runs.done_pieces(stored.run.id) if mark and len(kept) < len(adapters) else {}
    done = [
        chunk
        for chunk, text in contents.items()
        if pieces and pieces.get(_chunk_name(*chunk)) == _content(mark, text)
    ]
    new = {record.row // CHUNK_ROWS for record in adapters if record.row not in rows}
    missing = {chunk for chunk in contents if new & set(chunk)} - set(done) | set(lost)
    if not missing:
        set_attributes(bank, stored.path, complete=_complete(adapters), writing={})
        if stored.run.state != "done":
            bank.runs.finish(stored.run.id)
        return _Work(complete, [], mark)
    intent = hashlib.sha256(" ".join(contents.values()).encode()).hexdigest()
    if writing.get("of") != intent:
        # Other datasets than those that the mark stands for: what is done is recorded under a new one.
        mark = uuid.uuid4().hex
        writing = {"of": intent, "mark": mark}
        set_attributes(bank, stored.path, complete=_complete(kept), writing=writing)
        bank.runs.reopen(stored.run.id)
        bank.runs.mark_done(stored.run.id, _pieces(mark, done, contents))
    return _Work(complete, sorted(missing), mark)


def _stage(matrices: Sequence[_Stored]) -> str:
    if len(matrices) == 1:
        return f"distances {metric_text(matrices[0].key)}"
    return f"distances by {len(matrices)} metrics"


def _chunk_name(i: int, j: int) -> str:
    return f"{i}-{j}"


def _content(mark: str, content: str) -> str:
    return hashlib.sha256(f"{mark} {content}".encode()).hexdigest()


def _pieces(
    mark: str, chunks: Sequence[tuple[int, int]], contents: Mapping[tuple[int, int], str]
) -> dict[str, str]:
    return {_chunk_name(*chunk): _content(mark, contents[chunk]) for chunk in chunks}


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
