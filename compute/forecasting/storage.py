"""The rates of the storage below a place, measured as predictions are written and panels of rows are read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import write_chunks
from bankdb.arrays.metadata import ArrayLayout, write_array
from bankdb.arrays.remote import Location, located, requests_at_once
from bankdb.arrays.shards import shards_of
from bankdb.arrays.uncached import cold_size, read_pieces
from bankdb.arrays.zarr_arrays import CHUNK_COLUMNS, create_array, open_array
from compute.combination.plan import SHARD_ROWS
from compute.pairwise.plan import CHUNK_ROWS

if TYPE_CHECKING:
    from bankdb.arrays.remote_shards import RemoteShards
    from bankdb.arrays.shards import Shards

# Shards that each worker writes and reads: 16 of 8 MiB; and small files that it flushes, or objects that it puts.
_SHARDS, _FILES = 16, 24
_PIECE = 4 * CHUNK_COLUMNS
# Chunks that a row has, at the least, where their requests overlap.
_CHUNKS = 8


def storage_rates(place: str, stored: Sequence[str]) -> dict[str, float]:
    """Measure the storage below a new place, a folder's path or a URL. Runs in a worker.

    Parameters
    ----------
    stored
        Files or objects of rows to read from, where there are some.

    Returns
    -------
    `write` and `read` in byte/s, `encode` and `decode` in byte/s of one thread, `chunk` and `opening` in seconds,
    `files` in files/s.

    Raises
    ------
    ArrayStoreUnavailableError
        The store of a URL failed.
    """
    path = located(place)
    array = create_array(
        path / "shards",
        shape=(_SHARDS * SHARD_ROWS, CHUNK_COLUMNS),
        chunks=(1, CHUNK_COLUMNS),
        shards=(SHARD_ROWS, CHUNK_COLUMNS),
        dtype="float32",
        attributes={},
    )
    shards = shards_of(array, path / "shards", "measure again")
    assert shards is not None, "made in the layout that is known"
    rng = np.random.default_rng(os.getpid())
    block = rng.standard_normal((SHARD_ROWS, CHUNK_COLUMNS), dtype=np.float32)
    size = _SHARDS * block.nbytes
    write, encode = _wall_and_processor(lambda: _write_shards(shards, block))
    # Of an object store two shards do: each row is two requests, whose time is not asked for here.
    decoded = _SHARDS if requests_at_once(path) == 1 else 2
    _, decode = _wall_and_processor(lambda: _read_shards(shards, decoded, np.empty_like(block)))
    rows = [located(text) for text in stored] or [shards.file(n * SHARD_ROWS, 0) for n in range(_SHARDS)]
    return {
        "write": size / write,
        "encode": size / encode,
        "read": _panel_rate(rows, size),
        "decode": decoded * block.nbytes / decode,
        "chunk": _chunk_seconds(shards, 1 if requests_at_once(path) == 1 else _CHUNKS),
        "opening": best_seconds(lambda: open_array(path / "shards"), 5),
        "files": _FILES / best_seconds(lambda: _write_small(path)),
    }


def best_seconds(function: Callable[[], Any], repeat: int = 1) -> float:
    """Return the best of several times."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return max(min(times), 1e-9)


def _wall_and_processor(function: Callable[[], Any]) -> tuple[float, float]:
    processor = time.thread_time()
    wall = best_seconds(function)
    return wall, max(time.thread_time() - processor, 1e-9)


def _chunk_seconds(shards: Shards | RemoteShards, number: int) -> float:
    """Time of a chunk, of so many that are read together, each from a shard of its own: as a row is read."""
    rows, panel = range(0, number * SHARD_ROWS, SHARD_ROWS), np.empty((number, CHUNK_COLUMNS), np.float32)
    return best_seconds(lambda: shards.read_rows(rows, 0, CHUNK_COLUMNS, panel), 3) / number


def _write_shards(shards: Shards | RemoteShards, block: NDArray[np.float32]) -> None:
    together = 4  # as many as a block of 64 targets has
    for first in range(0, _SHARDS, together):
        shards.write(first * SHARD_ROWS, 0, [block] * together)


def _read_shards(shards: Shards | RemoteShards, number: int, panel: NDArray[np.float32]) -> None:
    for first in range(0, number * SHARD_ROWS, SHARD_ROWS):
        shards.read_rows(range(first, first + SHARD_ROWS), 0, CHUNK_COLUMNS, panel)


def _panel_rate(rows: Sequence[Location], size: int) -> float:
    """Rate of reading a chunk of each row, then the next of each, from the storage: as panels of rows are read."""
    pieces = min(map(cold_size, rows)) // _PIECE
    if not pieces:  # of rows so short, whole files
        pieces = 1
    wanted = range(0, pieces, max(1, pieces * len(rows) * _PIECE // size))
    started = time.perf_counter()
    done = sum(
        length for number in wanted for length in read_pieces(rows, number * _PIECE, (number + 1) * _PIECE)
    )
    return done / (time.perf_counter() - started)


def _write_small(path: Location) -> None:
    """Write chunks of distances, as tiles are: each a file that is flushed, or an object."""
    values = np.random.default_rng(0).random((CHUNK_ROWS, _FILES * CHUNK_ROWS))
    write_array(path / "small", ArrayLayout(values.shape, (CHUNK_ROWS, CHUNK_ROWS), "float64"), {})
    write_chunks(path / "small", (0, 0), values)
