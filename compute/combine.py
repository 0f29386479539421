"""The product C @ Theta (33) in column panels on Dask, and single combinations.

Factors A and B of each module are combined separately, as the paper does. A source of another scaling
than the bank's is brought to it by multiplying its B columns by `scaling / bank scaling`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import sgemm

from bankdb.adapter_store import AdapterStore
from bankdb.arrays import chunk_file, fsync_written, open_array, read_region
from bankdb.errors import BankFormatError, ComputeError
from compute.tiles import SHARD_ROWS, Panel

Float32 = NDArray[np.float32]

_AGAIN = "delete predictions.zarr and run the same command again"


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The rows that are combined.

    Attributes
    ----------
    rows
        Rows of the adapters' array, shape (N,).
    ratios
        float32, shape (N,): each source's scaling over the bank's; 1 leaves it as it is.
    b_segments
        Half-open column ranges of the B factors.
    """

    rows: NDArray[np.int64]
    ratios: Float32
    b_segments: tuple[tuple[int, int], ...]


def read_scaled(
    store: AdapterStore, sources: Sources, which: Sequence[int], start: int, stop: int
) -> Float32:
    """Read columns of some sources at the bank's scaling, shape (len(which), stop - start)."""
    panel = store.read_panel([int(row) for row in sources.rows[list(which)]], start, stop)
    for position, source in enumerate(which):
        ratio = sources.ratios[source]
        if ratio == 1:
            continue
        with np.errstate(over="ignore"):  # whoever combines it looks at the result
            for first, last in sources.b_segments:
                panel[position, max(first - start, 0) : max(last - start, 0)] *= ratio
    return panel


def accumulate(out: Float32, coefficients: Float32, batch: Float32) -> None:
    """Add `coefficients @ batch` to `out`, in place; 2 M K c flops, no temporary.

    Parameters
    ----------
    out
        C-contiguous, shape (M, c).
    coefficients
        Shape (M, K).
    batch
        C-contiguous, shape (K, c).
    """
    # In Fortran's order the same memory is (c, M) = (c, K) @ (K, M): nothing is copied.
    weights = np.asfortranarray(coefficients.T)
    result = sgemm(1.0, batch.T, weights, beta=1.0, c=out.T, overwrite_c=1)
    if not np.shares_memory(result, out):
        out[...] = result.T


def one_hot(coefficients: Float32) -> NDArray[np.int64]:
    """Return for each row the column that alone has weight exactly 1, or -1; shape (M,)."""
    alone = (np.count_nonzero(coefficients, axis=1) == 1) & (coefficients.max(axis=1) == 1)
    return np.where(alone, coefficients.argmax(axis=1), -1)


def combine_columns(
    store: AdapterStore, sources: Sources, coefficients: Float32, start: int, stop: int, batch: int
) -> Float32:
    """Combine columns `start` to `stop` for some targets.

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
    copies = one_hot(coefficients)
    mixed = coefficients
    if (copies >= 0).any():
        mixed = np.where((copies >= 0)[:, None], np.float32(0), coefficients)
    used = np.flatnonzero(mixed.any(axis=0))
    for first in range(0, len(used), batch):
        which = used[first : first + batch]
        accumulate(out, mixed[:, which], read_scaled(store, sources, which.tolist(), start, stop))
    for source in np.unique(copies[copies >= 0]):
        out[copies == source] = read_scaled(store, sources, [int(source)], start, stop)[0]
    return out


def combine_panel(adapters_path: str, group_path: str, sources: Sources, panel: Panel, chunk: int) -> int:
    """Compute a panel of the predictions and write its shards; runs in a worker.

    Parameters
    ----------
    adapters_path
        The adapters' array.
    group_path
        Folder with the arrays `coefficients` (M, N) and `adapters` (M, p).

    Returns
    -------
    Bytes written, before compression.

    Raises
    ------
    BankFormatError
        A source row, or the coefficients, are damaged.
    ComputeError
        The result overflows float32.
    """
    group = Path(group_path)
    coefficients: Float32 = read_region(
        open_array(group / "coefficients"), np.s_[panel.target_start : panel.target_stop, :], _AGAIN
    )
    if not np.isfinite(coefficients).all():
        raise BankFormatError(f"{group / 'coefficients'}: lacks chunks; {_AGAIN}")
    store = AdapterStore(Path(adapters_path))
    out = combine_columns(store, sources, coefficients, panel.start, panel.stop, panel.batch)
    _check_finite(out, store, sources, coefficients, panel.start, panel.stop)
    predictions = open_array(group / "adapters", mode="r+")
    _write_shards(predictions, out, panel)
    fsync_written(group / "adapters", shard_files(group / "adapters", panel, chunk))
    return out.nbytes


def _check_finite(
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


def _write_shards(array: Any, out: Float32, panel: Panel) -> None:
    for first in range(0, len(out), SHARD_ROWS):
        part = out[first : first + SHARD_ROWS]
        top = panel.target_start + first
        array[top : top + len(part), panel.start : panel.stop] = part


def shard_files(path: Path, panel: Panel, chunk: int) -> Iterator[Path]:
    """Return the files of the shards that a panel of the predictions' array at `path` is made of."""
    for top in range(panel.target_start // SHARD_ROWS, -(-panel.target_stop // SHARD_ROWS)):
        yield chunk_file(path, top, panel.start // chunk)


def combine_one(
    store: AdapterStore, sources: Sources, weights: Float32, *, chunk: int, budget: int
) -> Float32:
    """Combine one vector, shape (p,), reading only the sources whose weight is not zero.

    Raises
    ------
    BankFormatError
        A source row is damaged.
    ComputeError
        The result overflows float32.
    """
    parameters = int(store.array.shape[1])
    out = np.empty(parameters, dtype=np.float32)
    width = max(chunk, budget // (4 * 8) // chunk * chunk)
    for start in range(0, parameters, width):
        stop = min(start + width, parameters)
        batch = max(1, budget // (8 * (stop - start)))
        out[start:stop] = combine_columns(store, sources, weights[None, :], start, stop, batch)[0]
    _check_finite(out[None, :], store, sources, weights[None, :], 0, parameters)
    return out
