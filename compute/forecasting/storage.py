"""The rates of the storage below a place, measured as predictions are written and panels of rows are read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import fsync_path
from bankdb.arrays.remote import Location, RemotePath, located, object_size, read_ranges
from bankdb.arrays.shards import shards_of
from bankdb.arrays.zarr_arrays import CHUNK_COLUMNS, create_array, open_array
from compute.combination.plan import SHARD_ROWS
from compute.pairwise.plan import CHUNK_ROWS

if TYPE_CHECKING:
    import zarr

    from bankdb.arrays.remote_shards import RemoteShards
    from bankdb.arrays.shards import Shards

# Shards that each worker writes and reads: 16 of 8 MiB; and small files that it flushes, or objects that it puts.
_SHARDS, _FILES = 16, 24
_PIECE = 4 * CHUNK_COLUMNS
# Pieces of an object store that are asked for at once: 16 MiB, as of panels.
_REQUESTS = 32
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
    decoded = _SHARDS if isinstance(path, Path) else 2
    _, decode = _wall_and_processor(lambda: _read_shards(shards, decoded, np.empty_like(block)))
    rows = [located(text) for text in stored] or [shards.file(n * SHARD_ROWS, 0) for n in range(_SHARDS)]
    return {
        "write": size / write,
        "encode": size / encode,
        "read": _panel_rate(rows, size),
        "decode": decoded * block.nbytes / decode,
        "chunk": _chunk_seconds(array, 1 if isinstance(path, Path) else _CHUNKS),
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


def _chunk_seconds(array: zarr.Array[Any], number: int) -> float:
    """Time of a chunk, of so many that zarr reads together, each from a shard of its own: as a row is read."""
    # A slice: by a list of rows zarr decodes more of each shard than is asked for, which no export does.
    return best_seconds(lambda: array[: number * SHARD_ROWS : SHARD_ROWS], 3) / number


def _write_shards(shards: Shards | RemoteShards, block: NDArray[np.float32]) -> None:
    together = 4  # as many as a block of 64 targets has
    for first in range(0, _SHARDS, together):
        shards.write(first * SHARD_ROWS, 0, [block] * together)


def _read_shards(shards: Shards | RemoteShards, number: int, panel: NDArray[np.float32]) -> None:
    for first in range(0, number * SHARD_ROWS, SHARD_ROWS):
        shards.read_rows(range(first, first + SHARD_ROWS), 0, CHUNK_COLUMNS, panel)


def _panel_rate(rows: Sequence[Location], size: int) -> float:
    """Rate of reading a chunk of each row, then the next of each, from the storage: as panels of rows are read."""
    pieces = min(map(_size, rows)) // _PIECE
    if not pieces:  # of rows so short, whole files
        pieces = 1
    wanted = range(0, pieces, max(1, pieces * len(rows) * _PIECE // size))
    started = time.perf_counter()
    done = sum(length for number in wanted for length in _read_pieces(rows, number))
    return done / (time.perf_counter() - started)


def _size(row: Location) -> int:
    """Return the bytes of a file, which the kernel is asked to forget, or of an object."""
    if isinstance(row, RemotePath):
        return object_size(row)
    _forget(row)
    return row.stat().st_size


def _read_pieces(rows: Sequence[Location], number: int) -> Iterator[int]:
    """Read a piece of each row; yield the bytes of files one by one, and of objects many at once."""
    for file in (row for row in rows if isinstance(row, Path)):
        yield _read_piece(file, number)
    objects = [row for row in rows if isinstance(row, RemotePath)]
    for first in range(0, len(objects), _REQUESTS):
        some = objects[first : first + _REQUESTS]
        answers = read_ranges([(row, number * _PIECE, (number + 1) * _PIECE) for row in some])
        yield sum(len(answer or b"") for answer in answers)


def _read_piece(file: Path, number: int) -> int:
    """Read a shard's index, at its end, and a piece of it; return the bytes of the piece."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.pread(descriptor, 1024, max(0, os.fstat(descriptor).st_size - 1024))
        return len(os.pread(descriptor, _PIECE, number * _PIECE))
    finally:
        os.close(descriptor)


def _write_small(path: Location) -> None:
    """Write small files, each flushed; or chunks of distances on an object store, by zarr, as tiles are."""
    values = np.random.default_rng(0).random((CHUNK_ROWS, _FILES * CHUNK_ROWS))
    if isinstance(path, Path):
        for number in range(_FILES):
            file = path / f"{number}.small"
            file.write_bytes(values[:, number * CHUNK_ROWS : (number + 1) * CHUNK_ROWS].tobytes())
            fsync_path(file)
        return
    chunks = (CHUNK_ROWS, CHUNK_ROWS)
    array = create_array(
        path / "small", shape=values.shape, chunks=chunks, shards=None, dtype="float64", attributes={}
    )
    array[:] = values


def _forget(file: Path) -> None:
    """Ask the kernel to forget a file, so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
