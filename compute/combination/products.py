"""Products of coefficients and rows of adapters: dense, sparse, and added up in batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compute.combination.plan import ROW_GAP, SPARSE_STRIP

Float32 = NDArray[np.float32]

# Below this share of coefficients that are not zero a sparse product is faster: measured up to 14% with 8 lanes of
# vector arithmetic, half of it with 16.
SPARSE_DENSITY = 0.08


def spread_rows(rows: int, columns: int) -> Float32:
    """Return an array of C-contiguous rows, shape (rows, columns), apart by `ROW_GAP`; its values are undefined."""
    return np.empty((rows, columns + ROW_GAP), dtype=np.float32)[:, :columns]


def product(coefficients: Float32, rows: Float32, out: Float32) -> None:
    """Set `out` to `coefficients @ rows`: 2 M K c flops, or 2 nnz c where coefficients are sparse.

    Parameters
    ----------
    coefficients
        Shape (M, K).
    rows
        Shape (K, c).
    out
        Shape (M, c).
    """
    if np.count_nonzero(coefficients) < SPARSE_DENSITY * coefficients.size:
        sparse_product(coefficients, rows, out)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # whoever multiplies looks at the result
            # Other threads run meanwhile; SciPy's own would keep the interpreter to itself.
            np.matmul(coefficients, rows, out=out)


def sparse_product(coefficients: Float32, rows: Float32, out: Float32) -> None:
    """Set `out` as `product` does, by what is not zero; in strips of columns that stay in cache."""
    from scipy.sparse import csr_array

    entries = csr_array(coefficients)
    for first in range(0, rows.shape[1], SPARSE_STRIP):
        columns = slice(first, first + SPARSE_STRIP)
        out[:, columns] = entries @ rows[:, columns]


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
    from scipy.linalg.blas import sgemm

    # In Fortran's order the same memory is (c, M) = (c, K) @ (K, M): nothing is copied.
    weights = np.asfortranarray(coefficients.T)
    result = sgemm(1.0, batch.T, weights, beta=1.0, c=out.T, overwrite_c=1)
    if not np.shares_memory(result, out):
        out[...] = result.T


def one_hot(coefficients: Float32) -> NDArray[np.int64]:
    """Return for each row the column that alone has weight exactly 1, or -1; shape (M,)."""
    alone = (np.count_nonzero(coefficients, axis=1) == 1) & (coefficients.max(axis=1) == 1)
    return np.where(alone, coefficients.argmax(axis=1), -1)
