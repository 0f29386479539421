"""The product C @ Theta (33) in column panels on Dask, and single combinations.

Factors A and B of each module are combined separately, as the paper does. A source of another scaling
than the bank's is brought to it by multiplying its B columns by `scaling / bank scaling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import sgemm

from bankdb.adapter_store import AdapterStore
from bankdb.arrays import fsync_written, open_array, read_region
from bankdb.errors import BankFormatError, ComputeError
from bankdb.shards import Shards
from compute.tiles import SHARD_ROWS, Panel, split_panel

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


def combine_panel(
    adapters_path: str, group_paths: Sequence[str], sources: Sources, panel: Panel, chunk: int
) -> int:
    """Compute a panel of the predictions of several runs and write its shards; runs in a worker.

    The sources are read once for all runs.

    Parameters
    ----------
    adapters_path
        The adapters' array.
    group_paths
        Folders with the arrays `coefficients` (M, N) and `adapters` (M, p) of each run.
    panel
        Its targets count through the runs, one after another, each at `padded(M)` rows.

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
    shapes = [open_array(Path(group) / "coefficients").shape for group in group_paths]
    parts = split_panel(panel, int(shapes[0][0]), len(group_paths))
    coefficients = np.concatenate(
        [_read_coefficients(Path(group_paths[part.group]), part.start, part.stop) for part in parts]
    )
    store = AdapterStore(Path(adapters_path))
    out = combine_columns(store, sources, coefficients, panel.start, panel.stop, panel.batch)
    _check_finite(out, store, sources, coefficients, panel.start, panel.stop)
    written = 0
    for part in parts:
        rows = out[written : written + part.stop - part.start]
        _write_shards(Path(group_paths[part.group]) / "adapters", rows, part.start, panel.start)
        written += len(rows)
    return out.nbytes


def _read_coefficients(group: Path, start: int, stop: int) -> Float32:
    coefficients: Float32 = read_region(open_array(group / "coefficients"), np.s_[start:stop, :], _AGAIN)
    if not np.isfinite(coefficients).all():
        raise BankFormatError(f"{group / 'coefficients'}: lacks chunks; {_AGAIN}")
    return coefficients


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


def _write_shards(path: Path, rows: Float32, top: int, column: int) -> None:
    """Write whole shards of the predictions, from row `top` and column `column` on, and flush them."""
    shards = Shards.of(open_array(path), path, _AGAIN)
    assert shards is not None, "predictions are made in the layout that is written here"
    for first in range(0, len(rows), SHARD_ROWS):
        shards.write(top + first, column, rows[first : first + SHARD_ROWS])
    # The files are flushed; their folders are what is left.
    fsync_written(path, [shards.file(top + first, column) for first in range(0, len(rows), SHARD_ROWS)])


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
