"""What a worker computes of the Gram matrix: the products over some columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.chunks import write_chunks
from bankdb.arrays.remote import located
from bankdb.arrays.uncached import UncachedReader
from bankdb.errors import ComputeError
from bankdb.scaled_rows import Sources, read_scaled_into
from compute.cluster.machine import machine_memory
from compute.cluster.memory import give_back

# Columns multiplied at once in single precision before they are added in double: bounds both the
# rounding of a product and what has to stay in cache.
_STRIP = 8192


def gram_slice(
    adapters_path: str,
    part_path: str,
    sources: Sources,
    new: Sequence[int],
    index: int,
    start: int,
    stop: int,
    ahead: bool = False,
) -> int:
    """Compute the new sources' products with all over some columns; runs in a worker; returns bytes read.

    Parameters
    ----------
    ahead
        Whether memory allows that a chunk of columns is read while the one before it is multiplied.

    Raises
    ------
    BankFormatError
        A row is damaged.
    ComputeError
        A product of two rows overflows float32.
    """
    give_back()
    store = AdapterStore(located(adapters_path))
    which = range(len(sources.rows))
    total = np.zeros((len(new), len(which)))
    for panel in _panels(store, sources, range(start, stop, store.chunk), stop, ahead):
        total += partial_gram(panel, new)
    if not np.isfinite(total).all():
        k, other = np.argwhere(~np.isfinite(total))[0]
        i, j = int(sources.rows[new[k]]), int(sources.rows[other])
        raise ComputeError(
            f"gram: the product of rows {i} and {j} is not a finite number in float32; run `bank verify`, and check "
            "their weights and scalings"
        )
    write_chunks(located(part_path), (index, 0, 0), total[None])
    return 4 * len(which) * (stop - start)


def _panels(
    store: AdapterStore, sources: Sources, starts: Sequence[int], stop: int, ahead: bool
) -> Iterator[NDArray[np.float32]]:
    """Read the columns from each start to the next, or to `stop`; with `ahead`, the next while one is used."""
    if not starts:
        return
    which = list(range(len(sources.rows)))
    width = min(store.chunk, stop - starts[0])
    buffers = [np.empty((len(which), width), dtype=np.float32) for _ in starts[: 2 if ahead else 1]]
    # The kernel cannot keep so many rows until somebody reads them again.
    past_cache = 4 * math.prod(store.shape) > machine_memory() // 2

    def read(number: int, rows: slice = slice(None)) -> NDArray[np.float32]:
        first = starts[number]
        last = min(first + width, stop)
        part = buffers[number % len(buffers)][:, : last - first]
        uncached = UncachedReader() if past_cache else None
        read_scaled_into(part[rows], store, sources, which[rows], first, last, uncached)
        return part

    if not ahead:
        yield from map(read, range(len(starts)))
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read") as reader:
        # Nothing is there to be multiplied yet: this thread reads half of the first chunk.
        half = len(which) // 2
        following = reader.submit(read, 0, slice(half, None))
        read(0, slice(half))
        for number in range(1, len(starts)):
            panel = following.result()
            following = reader.submit(read, number)
            yield panel
        yield following.result()


def partial_gram(panel: NDArray[np.float32], new: Sequence[int]) -> NDArray[np.float64]:
    """Return `panel[new] @ panel.T`: single precision within strips of columns, double across them.

    Where every row is new, NumPy computes half of the symmetric product.
    """
    total = np.zeros((len(new), len(panel)))
    every = len(new) == len(panel)
    for first in range(0, panel.shape[1], _STRIP):
        strip = panel[:, first : first + _STRIP]
        with np.errstate(over="ignore"):  # the caller looks at the sum
            total += (strip if every else strip[list(new)]) @ strip.T
    return total
