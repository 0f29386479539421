"""All pairs of distances, in tiles on Dask; each tile on or above the diagonal computes its mirror too.

A stored matrix is indexed by row numbers of the bank, which are never used twice: an entry, once
computed, never becomes stale, and adapters added later only add entries. The array itself keeps which
datasets all its entries are of: a database restored from an older copy gives row numbers again, and a run
that was killed computes its unfinished tiles as a whole, to the same last digit.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays import (
    create_array,
    ensure_group,
    fsync_path,
    fsync_written,
    grow_array,
    open_array,
    read_region,
)
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, BankNotFoundError, ComputeError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord, RunRecord
from compute.blocks import Metric
from compute.cluster import Cluster, run_tasks
from compute.distributions import TokenCounts
from compute.tiles import CHUNK_ROWS, Tile, contiguous, plan_tiles

_COUNTS_CHUNK = 1 << 20
_AGAIN = "run the same command again: it is computed again"
_COUNTS = ("rows", "indptr", "ids", "counts", "vocabulary")


@dataclass(frozen=True, slots=True, eq=False)
class DistanceMatrix:
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


def ready_adapters(bank: AdapterBank) -> tuple[AdapterRecord, ...]:
    """Return the adapters of a bank, by row. Raises BankNotFoundError if there are none."""
    adapters = tuple(bank.adapters())
    if not adapters:
        raise BankNotFoundError(f"{bank.path}: the bank has no adapters; add some with `bank ingest`")
    return adapters


def distance_matrix(
    bank: AdapterBank, metric: Metric, cluster: Cluster, progress: Progress
) -> DistanceMatrix:
    """Compute the distances that are not stored yet, and return them all.

    The caller holds the bank's compute lock.

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
    run, path = _open_run(bank, metric, rows[-1] + 1)
    for attempt in range(2):
        _compute_missing(bank, run, path, metric, adapters, cluster, progress)
        values = _read_entries(path, np.s_[:, :])[np.ix_(rows, rows)]
        bad = ~np.isfinite(values)
        if not bad.any():
            return DistanceMatrix(adapters, values, metric.key)
        # Chunks that the database calls done and that are not there: somebody deleted files.
        if attempt == 0:
            _forget_chunks(bank, run, rows, bad)
    i, j = np.argwhere(bad)[0]
    raise ComputeError(
        f"{path}: the distance from {adapters[i].name} to {adapters[j].name} is {values[i, j]} after it was "
        "computed; delete that folder and run the same command again"
    )


def _open_run(bank: AdapterBank, metric: Metric, rows: int) -> tuple[RunRecord, Path]:
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
        return run, path
    bank.runs.reopen(run.id)
    create_array(
        path,
        shape=(rows, rows),
        chunks=(CHUNK_ROWS, CHUNK_ROWS),
        shards=None,
        dtype="float64",
        attributes={"run": run.inputs_sha256, "metric": metric.key, "rows": "targets", "complete": {}},
    )
    return run, path


def _complete_rows(
    bank: AdapterBank, run: RunRecord, path: Path, adapters: Sequence[AdapterRecord]
) -> NDArray[np.int64]:
    """Return the rows of which the array has the distances to each other."""
    stored: Any = open_array(path).attrs.get("complete", {})
    complete = [record for record in adapters if stored.get(str(record.row)) == record.content_sha256]
    if sum(str(record.row) in stored for record in adapters) > len(complete):
        # Some row was another dataset: whatever this database calls done, the array may have the other's.
        bank.runs.reopen(run.id)
        _set_complete(path, complete)
    return np.asarray([record.row for record in complete], dtype=np.int64)


def _set_complete(path: Path, adapters: Sequence[AdapterRecord]) -> None:
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
    run: RunRecord,
    path: Path,
    metric: Metric,
    adapters: Sequence[AdapterRecord],
    cluster: Cluster,
    progress: Progress,
) -> None:
    contents = _chunk_contents(adapters)
    complete = _complete_rows(bank, run, path, adapters)
    done = bank.runs.done_pieces(run.id)
    missing = [chunk for chunk, content in contents.items() if done.get(_chunk_name(*chunk)) != content]
    if not missing:
        _set_complete(path, adapters)
        return
    counts_path, nnz = write_distributions(bank, adapters)
    vocabulary = bank.record.vocabulary
    tiles = plan_tiles(
        adapters[-1].row + 1,
        missing,
        workers=cluster.slots,
        budget=cluster.task_budget,
        workspace=lambda side: tile_bytes(metric, side, vocabulary, nnz),
    )
    by_name = {tile.name: tile for tile in tiles}
    tasks = {name: (str(path), str(counts_path), metric, tile, complete) for name, tile in by_name.items()}
    for name, _ in run_tasks(cluster, f"distances {metric.key}", compute_tile, tasks, progress):
        chunks = [chunk for chunk in by_name[name].chunks() if chunk in contents]
        bank.runs.mark_done(run.id, {_chunk_name(*chunk): contents[chunk] for chunk in chunks})
    _set_complete(path, adapters)
    bank.runs.finish(run.id)


def tile_bytes(metric: Metric, side: int, vocabulary: int, nnz: int) -> int:
    """Return the bytes that the task of a square tile uses, `nnz` being the largest support of a dataset."""
    # The block and its mirror, what is stored of both, and the counts of both sides.
    return metric.workspace_bytes(side, side, vocabulary, nnz) + 4 * 8 * side * side + 2 * side * nnz * 16


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


# -- token distributions as arrays, for workers, who never open the database ---------------------------


def write_distributions(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> tuple[Path, int]:
    """Write the counts of all adapters' datasets as zarr arrays; return their folder and the largest support.

    The folder is named by what it holds and appears whole or not at all; older ones are deleted.
    """
    counts = token_counts(bank, adapters)
    largest = int(np.diff(counts.indptr).max())
    text = " ".join(f"{record.row}:{record.content_sha256}" for record in adapters)
    digest = hashlib.sha256(f"{bank.record.tokenizer_fingerprint} {text}".encode()).hexdigest()
    root = bank.array_path("distributions").absolute()
    ensure_group(root)
    path = root / digest[:16]
    if all((path / name / "zarr.json").is_file() for name in _COUNTS):
        return path, largest
    for old in root.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    unfinished = root / f"{digest[:16]}.unfinished"
    values: tuple[NDArray[Any], ...] = (
        np.asarray([record.row for record in adapters], dtype=np.int64),
        counts.indptr,
        counts.ids,
        counts.counts,
        np.asarray([counts.vocabulary], dtype=np.int64),
    )
    for name, array in zip(_COUNTS, values, strict=True):
        _write_plain(unfinished / name, array)
    unfinished.rename(path)
    fsync_path(root)
    return path, largest


def _write_plain(path: Path, values: NDArray[Any]) -> None:
    import zarr

    array = zarr.create_array(
        str(path),
        shape=values.shape,
        chunks=(min(len(values), _COUNTS_CHUNK),),
        dtype=values.dtype,
        zarr_format=3,
    )
    array[:] = values


def token_counts(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> TokenCounts:
    """Return the cached counts of the adapters' datasets, in their order."""
    rows = bank.catalog.token_counts([record.row for record in adapters])
    return TokenCounts.stack(rows, bank.record.vocabulary)


def _read_counts(path: Path, start: int, stop: int) -> tuple[NDArray[np.int64], TokenCounts]:
    """Read the counts of the datasets whose row is in [start, stop), and those rows."""

    def read(name: str, first: int | None, last: int | None) -> NDArray[Any]:
        return read_region(open_array(path / name), slice(first, last), f"delete {path}; {_AGAIN}")

    rows: NDArray[np.int64] = read("rows", None, None)
    first, last = contiguous(rows.tolist(), start, stop)
    indptr: NDArray[np.int64] = read("indptr", first, last + 1)
    ids = read("ids", int(indptr[0]), int(indptr[-1]))
    counts = read("counts", int(indptr[0]), int(indptr[-1]))
    vocabulary = int(read("vocabulary", 0, 1)[0])
    return rows[first:last], TokenCounts(indptr - indptr[0], ids, counts, vocabulary)


# -- the task ----------------------------------------------------------------------------------------


def compute_tile(
    distances_path: str, counts_path: str, metric: Metric, tile: Tile, complete: NDArray[np.int64]
) -> int:
    """Compute what a tile and its mirror lack, and write their chunks; runs in a worker.

    Parameters
    ----------
    complete
        Rows whose stored distances to each other are used as they are.

    Returns
    -------
    The number of entries of the matrix that were not known before.

    Raises
    ------
    ComputeError
        A distance is not a finite number.
    """
    path = Path(distances_path)
    array = open_array(path, mode="r+")
    rows, row_counts = _read_counts(Path(counts_path), tile.row_start, tile.row_stop)
    columns, column_counts = rows, row_counts
    if not tile.diagonal:
        columns, column_counts = _read_counts(Path(counts_path), tile.column_start, tile.column_stop)
    if not len(rows) or not len(columns):
        return 0
    upper = _read_entries(path, _slices(tile))
    lower = upper if tile.diagonal else _read_entries(path, _slices(tile, mirror=True))
    at = np.ix_(rows - tile.row_start, columns - tile.column_start)
    known = np.isfinite(upper[at]) & np.isfinite(lower.T[at])
    known &= np.isin(rows, complete)[:, None] & np.isin(columns, complete)
    for r, c in _blocks_to_compute(known, tile.diagonal):
        if tile.diagonal and len(r) == len(rows):
            # The same object on both sides tells a symmetric metric that half of the block is a mirror.
            forward = backward = metric.block(row_counts, row_counts)
        else:
            forward, backward = metric.both(row_counts.select(r), column_counts.select(c))
        _check_finite(metric, forward, rows[r], columns[c])
        _check_finite(metric, backward, columns[c], rows[r])
        upper[np.ix_(rows[r] - tile.row_start, columns[c] - tile.column_start)] = forward
        lower[np.ix_(columns[c] - tile.column_start, rows[r] - tile.row_start)] = backward
    array[_slices(tile)] = upper
    if not tile.diagonal:
        array[_slices(tile, mirror=True)] = lower
    fsync_written(path, _files(path, tile))
    return int(np.count_nonzero(~known)) * (1 if tile.diagonal else 2)


def _blocks_to_compute(
    known: NDArray[np.bool_], diagonal: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cover the unknown entries by blocks: whole rows that lack something, or whole columns, or both."""
    rows, columns = known.shape
    new_rows = np.flatnonzero(~known.any(axis=1))
    new_columns = np.flatnonzero(~known.any(axis=0))
    covered = known.copy()
    covered[new_rows] = True
    covered[:, new_columns] = True
    if not covered.all():
        # Holes in the middle: not what adding adapters leaves; compute every row that has one.
        new_rows = np.flatnonzero(~known.all(axis=1))
        new_columns = new_columns[:0]
    if new_rows.size:
        yield new_rows, np.arange(columns)
    rest = np.setdiff1d(np.arange(rows), new_rows)
    # On the diagonal new columns are the mirror of new rows.
    if new_columns.size and rest.size and not diagonal:
        yield rest, new_columns


def _check_finite(
    metric: Metric, block: NDArray[np.float64], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> None:
    bad = np.argwhere(~np.isfinite(block))
    if bad.size:
        i, j = bad[0]
        raise ComputeError(
            f"distances {metric.key}: row {rows[i]} to row {columns[j]} gave {block[i, j]}, expected a number; "
            "please report it with both datasets"
        )


def _read_entries(path: Path, selection: tuple[slice, slice]) -> NDArray[np.float64]:
    """Read entries of the matrix; a chunk that cannot be read is named."""
    array = open_array(path)
    try:
        return np.array(read_region(array, selection, _AGAIN), dtype=np.float64)
    except BankFormatError:
        for file in sorted(path.glob("c/*/*")):
            if file.name.isdigit():
                chunk = tuple(
                    slice(int(n) * CHUNK_ROWS, (int(n) + 1) * CHUNK_ROWS)
                    for n in (file.parent.name, file.name)
                )
                read_region(array, chunk, f"delete {file}; {_AGAIN}")
        raise


def _slices(tile: Tile, *, mirror: bool = False) -> tuple[slice, slice]:
    rows, columns = slice(tile.row_start, tile.row_stop), slice(tile.column_start, tile.column_stop)
    return (columns, rows) if mirror else (rows, columns)


def _files(path: Path, tile: Tile) -> list[Path]:
    chunks = {(i, j) for pair in tile.chunks() for i, j in (pair, pair[::-1])}
    files = (path.joinpath("c", str(i), str(j)) for i, j in chunks)
    # A chunk of nothing but NaN has no file.
    return [file for file in files if file.is_file()]
