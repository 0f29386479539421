"""The task of one panel of predictions: what a worker reads, computes and writes, to shards or wherever else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.chunks import read_chunks
from bankdb.arrays.durable import fsync_folders
from bankdb.arrays.metadata import read_layout
from bankdb.arrays.remote import Location, located
from bankdb.arrays.shards import shards_of
from bankdb.arrays.zarr_arrays import chunk_file, open_array
from bankdb.errors import AdapterError, BankFormatError, ComputeError
from bankdb.peft.header import numpy_dtype
from bankdb.scaled_rows import Sources, read_scaled, read_scaled_into
from compute.cluster.memory import give_back
from compute.combination.combine import check_finite, combine_columns, combine_held
from compute.combination.merged.panels import PanelMerge, check_source, merge_columns, merge_held
from compute.combination.plan import SHARD_ROWS, Panel, PanelPart, split_panel
from compute.combination.products import spread_rows

Float32 = NDArray[np.float32]

_AGAIN = "delete predictions.zarr and run the same command again"

Sink = Callable[[Location, int, Float32], Callable[[], None]]
"""Takes rows of a run's predictions, from its group and the first of its targets on, and does of the writing what
computes; it gives back what does the rest, to be called once, in whatever thread."""


def combine_panel(
    adapters_path: str,
    group_paths: Sequence[str],
    sources: Sources,
    panel: Panel,
    chunk: int,
    following: tuple[int, int] = (0, 0),
    dtype: str = "float32",
    merge: PanelMerge | None = None,
) -> int:
    """Compute a panel of the predictions of several runs and write its shards; runs in a worker.

    The sources are read once for all runs. A block of targets is flushed in the background while the next is
    multiplied.

    Parameters
    ----------
    adapters_path
        The adapters' array, its folder or URL.
    group_paths
        Places with the arrays `coefficients` (M, N) and `adapters` (M, p) of each run.
    panel
        Its targets count through the runs, one after another, each at `padded(M)` rows.
    following
        Columns that the same worker is likely to be given next: they are read ahead where the sources are held.
    dtype
        What values are rounded to before they are stored, as float32.
    merge
        How the sources are merged; None for the weighted sum.

    Returns
    -------
    Bytes written, before compression; all of them are durable.

    Raises
    ------
    BankFormatError
        A source row, or the coefficients, are damaged.
    ComputeError, AdapterError
        The result overflows float32, or a file cannot be written; or a value is too large for the dtype.
    ArrayStoreUnavailableError
        The store of a URL failed.
    """
    groups = [located(group) for group in group_paths]

    def to_shards(group: Location, start: int, rows: Float32) -> Callable[[], None]:
        round_to(rows, dtype)
        return _begin_shards(group / "adapters", rows, start, panel.start)

    parts = combine_into(to_shards, adapters_path, groups, sources, panel, following, merge=merge)
    for part in parts:
        _flush_folders(groups[part.group] / "adapters", part, panel.start // chunk)
    return sum(4 * (part.stop - part.start) * (panel.stop - panel.start) for part in parts)


def combine_into(
    sink: Sink,
    adapters_path: str,
    groups: Sequence[Location],
    sources: Sources,
    panel: Panel,
    following: tuple[int, int],
    wanted: NDArray[np.bool_] | None = None,
    merge: PanelMerge | None = None,
) -> tuple[PanelPart, ...]:
    """Compute a panel of the predictions of several runs, and let a sink write them, while the next are multiplied.

    Parameters
    ----------
    wanted
        Shape (M,): targets that the sink takes; blocks without any are not computed. Others are cut, and rounded,
        as if all were.
    merge
        See `combine_panel`.

    Returns
    -------
    The parts of the panel, of which all that is wanted is written.

    Raises
    ------
    BankFormatError, ComputeError, ArrayStoreUnavailableError
        See `combine_panel`; and what the sink raises.
    """
    give_back()
    targets = read_layout(groups[0] / "coefficients")[0].shape[0]
    parts = split_panel(panel, targets, len(groups))
    store = AdapterStore(located(adapters_path))
    if panel.held:
        _combine_holding(sink, store, groups, sources, panel, parts, following, wanted, merge)
    else:
        _combine_in_batches(sink, store, groups, sources, panel, parts, merge)
    return parts


def round_to(rows: Float32, dtype: str) -> None:
    """Round rows to the values of a dtype, in place, ties to even. Raises AdapterError if one is too large for it."""
    if dtype == "float32":
        return
    for row in rows:
        row[:] = narrowed(row, dtype)


def narrowed(row: Float32, dtype: str) -> NDArray[Any]:
    """Return finite values in another dtype, rounded to the nearest, ties to even; AdapterError if one is too large."""
    if dtype == "float32":
        return row
    kind = numpy_dtype(dtype)
    extremes = np.array([row.min(), row.max()])
    with np.errstate(over="ignore"):
        if not np.isfinite(extremes.astype(kind)).all():
            raise AdapterError(
                f"combine: values up to {np.abs(extremes).max():.6g}, too large for {dtype}; use --dtype float32"
            )
    return row.astype(kind, copy=False)


def _combine_holding(
    sink: Sink,
    store: AdapterStore,
    groups: Sequence[Location],
    sources: Sources,
    panel: Panel,
    parts: Sequence[PanelPart],
    following: tuple[int, int],
    wanted: NDArray[np.bool_] | None,
    merge: PanelMerge | None,
) -> None:
    """Hold the sources that are used, and let blocks of targets pass; two at a time, one of them being written."""
    # A block never reaches from one run into the next: it is cut, and rounded, alike whatever is computed with it.
    blocks = [
        (groups[part.group], start, min(start + panel.block, part.stop))
        for part in parts
        for start in range(part.start, part.stop, panel.block)
    ]
    used = np.zeros(len(sources.rows), dtype=np.bool_)
    for block in blocks:
        used |= _read_coefficients(*block).any(axis=0)
    if wanted is not None:
        blocks = [(group, start, stop) for group, start, stop in blocks if wanted[start:stop].any()]
    which = np.flatnonzero(used)
    rows = sources.rows[which].tolist()
    written: list[Future[None]] = []

    def copy(source: int) -> Float32:
        one: Float32 = read_scaled(store, sources, [source], panel.start, panel.stop)[0]
        return one

    with (
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as ahead,
        ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as writer,
    ):
        ahead.submit(store.prefetch, rows, panel.start, panel.stop)
        width = panel.stop - panel.start
        held = spread_rows(len(which), width)
        _read_held(held, store, sources, which, panel, merge)
        ahead.submit(store.prefetch, rows, *following)
        buffers = [spread_rows(panel.block, width) for _ in blocks[:2]]
        for number, (group, start, stop) in enumerate(blocks):
            if number >= len(buffers):
                written[number - len(buffers)].result()  # its buffer is free
            out = buffers[number % len(buffers)][: stop - start]
            coefficients = _read_coefficients(group, start, stop)
            if merge is None:
                combine_held(out, coefficients, which, held)
            else:
                merge_held(out, coefficients, which, held, panel.start, merge, copy)
            check_finite(out, store, sources, coefficients, panel.start, panel.stop)
            # What computes is done here: a worker has one core. What waits for the disk, or for a store, has a thread.
            written.append(writer.submit(sink(group, start, out)))
        for future in written:
            future.result()


def _read_held(
    held: Float32,
    store: AdapterStore,
    sources: Sources,
    which: NDArray[np.int64],
    panel: Panel,
    merge: PanelMerge | None,
) -> None:
    """Read the columns of some sources, as they are multiplied."""
    some = which.tolist()
    if merge is None:
        read_scaled_into(held, store, sources, some, panel.start, panel.stop)
        return
    read_scaled_into(held, store, merge.as_read(sources), some, panel.start, panel.stop)
    for values, source in zip(held, some, strict=True):
        check_source(values, store, int(sources.rows[source]))
    merge.prune(held, which, panel.start)


def _combine_in_batches(
    sink: Sink,
    store: AdapterStore,
    groups: Sequence[Location],
    sources: Sources,
    panel: Panel,
    parts: Sequence[PanelPart],
    merge: PanelMerge | None,
) -> None:
    """Hold all targets of the panel, and let the sources pass in batches."""
    coefficients = np.concatenate(
        [_read_coefficients(groups[part.group], part.start, part.stop) for part in parts]
    )
    if merge is None:
        out = combine_columns(store, sources, coefficients, panel.start, panel.stop, panel.batch)
    else:
        out = merge_columns(store, sources, coefficients, panel.start, panel.stop, panel.batch, merge)
    check_finite(out, store, sources, coefficients, panel.start, panel.stop)
    written = 0
    for part in parts:
        rows = out[written : written + part.stop - part.start]
        sink(groups[part.group], part.start, rows)()
        written += len(rows)


def _read_coefficients(group: Location, start: int, stop: int) -> Float32:
    part = np.s_[start:stop, :]
    coefficients: Float32 = read_chunks(group / "coefficients", part, delete=group, missing=True)
    check_coefficients(group, coefficients)
    return coefficients


def check_coefficients(group: Location, coefficients: Float32) -> None:
    """Raise BankFormatError if some of a run's coefficients are not there."""
    if not np.isfinite(coefficients).all():
        raise BankFormatError(f"{group / 'coefficients'}: lacks chunks; {_AGAIN}")


def _begin_shards(path: Location, rows: Float32, top: int, column: int) -> Callable[[], None]:
    """Write whole shards of the predictions, from row `top` and column `column` on, as far as that computes.

    Returns
    -------
    What does the rest of it; the shards' folders are not flushed.

    Raises
    ------
    ComputeError
        A file cannot be written, now or then.
    """
    shards = shards_of(open_array(path), path, _AGAIN)
    assert shards is not None, "predictions are made in the layout that is written here"
    blocks = [rows[first : first + SHARD_ROWS] for first in range(0, len(rows), SHARD_ROWS)]
    with writing(path):
        end = shards.begin(top, column, blocks)

    def rest() -> None:
        with writing(path):
            end()

    return rest


@contextlib.contextmanager
def writing(path: Location) -> Iterator[None]:
    """Turn what a disk says into a ComputeError that names the file."""
    try:
        yield
    except OSError as error:
        raise ComputeError(
            f"{error.filename or path}: cannot be written ({error.strerror or error}); check the disk's space and "
            "permissions, and run the same command again: what was done is kept"
        ) from error


def _flush_folders(path: Location, part: PanelPart, column: int) -> None:
    rows = range(part.start // SHARD_ROWS, -(-part.stop // SHARD_ROWS))
    fsync_folders(path, [chunk_file(path, row, column) for row in rows])
