"""Sums of `B_j A_j` cut to a rank: the truncated singular value decomposition of one module's combined update.

Adapters act through the products `scaling * B @ A` alone, and `mean(B) @ mean(A)` is not the mean of the
products unless the adapters share A or B. Here the products themselves are summed, exactly, and the sum is
replaced by the nearest matrix of a given rank (Eckart and Young). This goes beyond arXiv 2507.01806, which
combines the factors apart (33).

Everything is in double precision: the sources are float32, so that nothing of theirs is lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A matrix as a product of two factors of the same norms.

    Attributes
    ----------
    b
        float64, shape (d_out, k): U sqrt(S).
    a
        float64, shape (k, d_in): sqrt(S) V^T.
    retained
        Sum of the k squared singular values that are kept over the sum of all, in [0, 1]; 1 for zero.
    """

    b: Float64
    a: Float64
    retained: float


def truncate_product(b_transposed: Float64, a: Float64, rank: int) -> LowRank:
    """Cut `b_transposed.T @ a` to a rank without forming it: QR of both, SVD of the product of the two R.

    Meant for R <= min(d_out, d_in). 4 R^2 (d_out + d_in) flops for the QR, about 22 R^3 for the SVD;
    memory: see `product_bytes`. Both arguments are overwritten.

    Parameters
    ----------
    b_transposed
        The weighted B factors below each other, each transposed: shape (R, d_out).
    a
        The A factors below each other, shape (R, d_in).
    rank
        k; factors are filled with zeros where the product's own rank is less.
    """
    from scipy.linalg import qr, svd

    # The transpose of a C-contiguous array is what LAPACK wants: nothing is copied.
    q_b, r_b = qr(b_transposed.T, mode="economic", overwrite_a=True, check_finite=False)
    q_a, r_a = qr(a.T, mode="economic", overwrite_a=True, check_finite=False)
    u, values, v_transposed = svd(r_b @ r_a.T, full_matrices=False, overwrite_a=True, check_finite=False)
    kept = min(rank, len(values))
    root = np.sqrt(values[:kept])
    b = q_b @ (u[:, :kept] * root)
    a = (root[:, None] * v_transposed[:kept]) @ q_a.T
    total = float(values @ values)
    return _padded(b, a, float(values[:kept] @ values[:kept]), total, rank)


def truncate_matrix(matrix: Float64, rank: int) -> LowRank:
    """Cut a matrix to a rank by the leading eigenvectors of its Gram matrix on the shorter side.

    With d the shorter side: 2 d^2 max(d_out, d_in) flops for the Gram matrix, about 4 d^3 / 3 for its k
    leading eigenvectors U; the factors are U and `U^T matrix`. What is lost is the least possible to a
    relative 1e-16 of the energy: that the squares blur singular values below 1e-8 of the largest, which are
    below the rounding of float32 sources, moves the product by no more.

    Parameters
    ----------
    matrix
        Shape (d_out, d_in).
    rank
        k; factors are filled with zeros where it exceeds min(d_out, d_in).
    """
    from scipy.linalg import eigh

    if matrix.shape[0] > matrix.shape[1]:
        turned = truncate_matrix(matrix.T, rank)
        return LowRank(np.ascontiguousarray(turned.a.T), np.ascontiguousarray(turned.b.T), turned.retained)
    short = matrix.shape[0]
    kept = min(rank, short)
    _, u = eigh(matrix @ matrix.T, subset_by_index=(short - kept, short - 1), check_finite=False)
    u = u[:, ::-1]
    a = u.T @ matrix
    values = np.sqrt(np.einsum("ij,ij->i", a, a))
    root = np.sqrt(values)
    a /= np.where(root > 0, root, 1)[:, None]
    return _padded(u * root, a, float(values @ values), float(np.vdot(matrix, matrix)), rank)


def _padded(b: Float64, a: Float64, kept: float, total: float, rank: int) -> LowRank:
    missing = rank - b.shape[1]
    if missing > 0:
        b = np.pad(b, ((0, 0), (0, missing)))
        a = np.pad(a, ((0, missing), (0, 0)))
    return LowRank(b, a, min(kept / total, 1.0) if total > 0 else 1.0)


def is_stacked(stacked: int, d_out: int, d_in: int) -> bool:
    """Whether the factors are stacked, or the products added up in a matrix of shape (d_out, d_in).

    From R = min(d_out, d_in) on the stacked factors are the larger of the two, and no exact compression of
    them is smaller than the matrix.
    """
    return stacked < min(d_out, d_in)


def product_bytes(stacked: int, d_out: int, d_in: int) -> int:
    """Return the bytes that `truncate_product` and its arguments take: the factors, their Q, four R x R."""
    return 8 * (2 * stacked * (d_out + d_in) + 4 * stacked**2)


def matrix_bytes(d_out: int, d_in: int) -> int:
    """Return the bytes for `truncate_matrix`: the matrix and a product, the Gram matrix and eigenvectors."""
    return 8 * (2 * d_out * d_in + 4 * min(d_out, d_in) ** 2)
