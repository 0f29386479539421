"""The product C @ Theta (33): some targets at some columns, and single combinations.

Factors A and B of each module are combined separately, as the paper does. A source of another scaling
than the bank's is brought to it by multiplying its B columns by `scaling / bank scaling`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.shard_format import Float32
from bankdb.errors import BankFormatError, ComputeError
from bankdb.scaled_rows import Sources, read_scaled, read_scaled_into
from compute.cluster.machine import core_count
from compute.combination.products import accumulate, one_hot, product

# Of a single combination: sources added at once, and chunks of each that are read while its file is open. Together
# they stay in cache.
_TOGETHER = 4
_CHUNKS_READ = 8


def combine_columns(
    store: AdapterStore, sources: Sources, coefficients: Float32, start: int, stop: int, batch: int
) -> Float32:
    """Combine columns `start` to `stop` for some targets, reading the sources in batches.

    Sources whose coefficients are all zero are not read. A row of weight 1 on one source is that source,
    copied bit for bit.

    Parameters
    ----------
    coefficients
        Shape (M, N).
    batch
        Sources read at once.

    Returns
    -------
    float32, shape (M, stop - start).
    """
    out = np.zeros((len(coefficients), stop - start), dtype=np.float32)
    mixed, copies = _split_copies(coefficients)
    used = np.flatnonzero(mixed.any(axis=0))
    for first in range(0, len(used), batch):
        which = used[first : first + batch]
        accumulate(out, mixed[:, which], read_scaled(store, sources, which.tolist(), start, stop))
    for source in np.unique(copies[copies >= 0]):
        out[copies == source] = read_scaled(store, sources, [int(source)], start, stop)[0]
    return out


def combine_held(out: Float32, coefficients: Float32, which: NDArray[np.int64], held: Float32) -> None:
    """Combine sources that are held in memory; the same as `combine_columns`, into `out`.

    Parameters
    ----------
    out
        Shape (M, c).
    coefficients
        Shape (M, N); zero for sources that are not held.
    which
        The sources that are held, ascending, shape (K,).
    held
        Their columns at the bank's scaling, shape (K, c).
    """
    mixed, copies = _split_copies(coefficients)
    product(mixed[:, which], held, out)
    for target in np.flatnonzero(copies >= 0):
        out[target] = held[np.searchsorted(which, copies[target])]


def _split_copies(coefficients: Float32) -> tuple[Float32, NDArray[np.int64]]:
    """Return the coefficients with the rows set to zero that are copies, and what each row copies, or -1."""
    copies = one_hot(coefficients)
    if not (copies >= 0).any():
        return coefficients, copies
    return np.where((copies >= 0)[:, None], np.float32(0), coefficients), copies


def check_finite(
    out: Float32, store: AdapterStore, sources: Sources, coefficients: Float32, start: int, stop: int
) -> None:
    """Raise an error that names the source at fault, if the result is not finite."""
    # A row at a time: no mask of the size of the result.
    if all(np.isfinite(row).all() for row in out):
        return
    for source in np.flatnonzero(coefficients.any(axis=0)).tolist():
        row = int(sources.rows[source])
        if not np.isfinite(store.read_panel([row], start, stop)).all():
            raise BankFormatError(
                f"{store.file(row)}: row {row} holds values that are not finite numbers; "
                "`bank verify --repair` restores it from its source"
            )
    raise ComputeError(
        f"combine: columns {start} to {stop} overflowed float32; check the scalings of the adapters in the bank"
    )


def combine_one(
    store: AdapterStore,
    sources: Sources,
    weights: Float32,
    *,
    chunk: int,
    budget: int,
    threads: int | None = None,
) -> Float32:
    """Combine one vector, shape (p,), reading only the sources whose weight is not zero.

    Threads share the columns among them. The result does not depend on their number, nor on the budget.

    Parameters
    ----------
    weights
        Shape (N,).
    chunk
        Columns of a stored chunk.
    budget
        Bytes that may be used beside the result; with less than a thread needs, one is started all the same.
    threads
        At the most; None for the number of cores.

    Raises
    ------
    BankFormatError
        A source row is damaged.
    ComputeError
        The result overflows float32.
    """
    from threadpoolctl import threadpool_limits

    out = np.empty(store.shape[1], dtype=np.float32)
    width = _CHUNKS_READ * chunk
    affordable = max(1, budget // (4 * width * (_TOGETHER + 1)))
    count = min(core_count() if threads is None else threads, affordable)
    starts = iter(range(0, len(out), width))  # each thread takes the next
    with threadpool_limits(limits=1), ThreadPoolExecutor(count, thread_name_prefix="combine") as pool:
        futures = [
            pool.submit(_combine_next, out, store, sources, weights, starts, width) for _ in range(count)
        ]
        for future in futures:
            future.result()
    check_finite(out[None, :], store, sources, weights[None, :], 0, len(out))
    return out


def _combine_next(
    out: Float32, store: AdapterStore, sources: Sources, weights: Float32, starts: Iterator[int], width: int
) -> None:
    """Combine columns of `out`, from one start after another, until there are no more."""
    used = np.flatnonzero(weights).tolist()
    copied = len(used) == 1 and weights[used[0]] == 1
    batch = np.empty((_TOGETHER, min(width, len(out))), dtype=np.float32)
    try:
        for start in starts:
            stop = min(start + width, len(out))
            part = out[start:stop]
            if copied:
                read_scaled_into(part[None, :], store, sources, used, start, stop)
                continue
            part[:] = 0
            for first in range(0, len(used), _TOGETHER):
                which = used[first : first + _TOGETHER]
                rows = batch[: len(which), : len(part)]
                read_scaled_into(rows, store, sources, which, start, stop)
                part += weights[which] @ rows
    finally:
        for _ in starts:  # after an error the others need not go on
            pass
