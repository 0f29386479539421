"""The task of one tile of a distance matrix: what a worker reads, computes and writes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import write_chunks
from bankdb.arrays.remote import Location, located
from bankdb.errors import ComputeError
from compute.metrics.base import Metric, allow_compiled
from compute.metrics.distributions import TokenCounts
from compute.metrics.divergences import FEW_TARGETS
from compute.pairwise.counts import StoredCounts, read_counts
from compute.pairwise.plan import Tile
from compute.pairwise.stored import read_entries


def compute_tile(
    distances_path: str,
    counts: StoredCounts,
    metric: Metric,
    tile: Tile,
    complete: NDArray[np.int64],
    compiled: bool = True,
) -> int:
    """Compute what a tile and its mirror lack, and write their chunks; runs in a worker.

    Parameters
    ----------
    complete
        Rows whose stored distances to each other are used as they are.
    compiled
        Whether compiled loops may be loaded where they pay.

    Returns
    -------
    The number of entries of the matrix that were not known before.

    Raises
    ------
    ComputeError
        A distance is not a finite number.
    """
    path = located(distances_path)
    rows, row_counts = read_counts(counts, tile.row_start, tile.row_stop)
    columns, column_counts = rows, row_counts
    if not tile.diagonal:
        columns, column_counts = read_counts(counts, tile.column_start, tile.column_stop)
    if not len(rows) or not len(columns):
        return 0
    upper, lower, known = _stored_entries(path, tile, rows, columns, complete)
    for r, c in _blocks_to_compute(known, tile.diagonal):
        with allow_compiled(compiled):
            forward, backward = _block(metric, tile, row_counts, column_counts, r, c)
        _check_finite(metric, forward, rows[r], columns[c])
        _check_finite(metric, backward, columns[c], rows[r])
        upper[np.ix_(rows[r] - tile.row_start, columns[c] - tile.column_start)] = forward
        lower[np.ix_(columns[c] - tile.column_start, rows[r] - tile.row_start)] = backward
    write_chunks(path, (tile.row_start, tile.column_start), upper)
    if not tile.diagonal:
        write_chunks(path, (tile.column_start, tile.row_start), lower)
    return int(np.count_nonzero(~known)) * (1 if tile.diagonal else 2)


def _stored_entries(
    path: Location,
    tile: Tile,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    complete: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the entries of a tile and of its mirror, and which of those of `rows` and `columns` are known."""
    usable = np.isin(rows, complete)[:, None] & np.isin(columns, complete)
    if usable.any():
        upper = read_entries(path, _slices(tile))
        lower = upper if tile.diagonal else read_entries(path, _slices(tile, mirror=True))
    else:
        # Whatever is stored: it is not used, and not worth reading.
        upper = np.full((tile.row_stop - tile.row_start, tile.column_stop - tile.column_start), np.nan)
        lower = upper if tile.diagonal else np.full(upper.shape[::-1], np.nan)
    at = np.ix_(rows - tile.row_start, columns - tile.column_start)
    return upper, lower, usable & np.isfinite(upper[at]) & np.isfinite(lower.T[at])


def _block(
    metric: Metric,
    tile: Tile,
    rows: TokenCounts,
    columns: TokenCounts,
    r: NDArray[np.int64],
    c: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if tile.diagonal and len(r) == len(rows):
        # The same object on both sides tells a symmetric metric that half of the block is a mirror.
        block = metric.block(rows, rows)
        return block, block
    if metric.symmetric and len(c) <= FEW_TARGETS < len(r):
        # Metrics have a quick way for few targets: an adapter more is compared with all by it.
        backward, forward = metric.both(_select(columns, c), _select(rows, r))
        return forward, backward
    return metric.both(_select(rows, r), _select(columns, c))


def _select(counts: TokenCounts, rows: NDArray[np.int64]) -> TokenCounts:
    return counts if len(rows) == len(counts) else counts.select(rows)


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


def _slices(tile: Tile, *, mirror: bool = False) -> tuple[slice, slice]:
    rows, columns = slice(tile.row_start, tile.row_stop), slice(tile.column_start, tile.column_stop)
    return (columns, rows) if mirror else (rows, columns)
