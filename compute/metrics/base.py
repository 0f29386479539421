"""What all metrics share: the interface, dense panels of ids, and repair of entries lost to cancellation.

A block of distances is a fast formula, mostly one matrix product, that subtracts large terms from each other.
Where little is left of them, the entry is computed again from the pair itself, by a sum of terms that are
never negative.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from compute.metrics.aligned import Aligned, align
from compute.metrics.distributions import CountsRow, TokenCounts
from compute.types import FloatArray

if TYPE_CHECKING:
    from scipy import sparse

PANEL_BYTES = 2**25
"""Dense panels of one block together stay near this size (32 MB), within a shared cache."""
SMALLEST_PANEL = 64
_ALLOWED = ContextVar("allowed", default=True)
LEAST_SAVING = 0.2
"""Seconds that compiled loops must save in a block: a process loads them in about one, for several blocks."""


class Metric(ABC):
    """A distance rho between token distributions; immutable and picklable.

    Attributes
    ----------
    name, short
        As users give it, in full and in short form.
    symmetric
        Whether rho(p, q) = rho(q, p).
    relative_cost
        Time of a pair in a large block against the other metrics', for the plan of tiles.
    dataset_pairs
        Time of a dataset on a side of a block, which is read and transformed, in pairs; likewise.
    few_targets
        So many targets are compared with sources id by id, in a time that the vocabulary does not change.
    """

    __slots__ = ()
    name: ClassVar[str]
    short: ClassVar[str]
    symmetric: ClassVar[bool]
    relative_cost: ClassVar[float] = 1.0
    dataset_pairs: ClassVar[int] = 80
    few_targets: ClassVar[int] = 0

    @property
    @abstractmethod
    def key(self) -> str:
        """Identity for storage, with every parameter that changes a value; safe as a file name."""

    def largest(self, vocabulary: int) -> float:
        """Largest distance there is, that of datasets without a common id of V; infinite where it is not one number."""
        return float("inf")

    @abstractmethod
    def block(self, targets: TokenCounts, sources: TokenCounts) -> FloatArray:
        """Distances of T targets to S sources; shape (T, S), `D[i, j] = rho(target i, source j)`.

        Never negative, never NaN, and exactly 0 for equal distributions.
        """

    def both(self, rows: TokenCounts, columns: TokenCounts) -> tuple[FloatArray, FloatArray]:
        """Both `block(rows, columns)` and `block(columns, rows)`, for one tile above the diagonal."""
        forward = self.block(rows, columns)
        return forward, np.ascontiguousarray(forward.T)

    @abstractmethod
    def pair(self, p: CountsRow, q: CountsRow, vocabulary: int) -> float:
        """Distance of one pair of datasets, each (ids, counts), by the form that does not cancel."""

    @abstractmethod
    def workspace_bytes(self, targets: int, sources: int, vocabulary: int, nnz_per_dataset: int) -> int:
        """Upper bound of the memory of `block` or `both` beyond their input, results included.

        `nnz_per_dataset` is the mean number of distinct ids of a dataset.
        """


def support_bytes(datasets: int, vocabulary: int, nnz_per_dataset: int, values: int = 1) -> int:
    """Bound the memory for the support of a block, the sparse values on it, and one aligned pair."""
    entries = datasets * min(nnz_per_dataset, vocabulary)
    return entries * (28 + 12 * values) + 200 * vocabulary + 2**20


def panel_width(rows: int) -> int:
    """Number of ids in a panel whose dense arrays have this many rows altogether."""
    return max(SMALLEST_PANEL, PANEL_BYTES // (8 * max(rows, 1)))


class Support:
    """The ids that occur anywhere in a block: the columns of its dense panels."""

    def __init__(self, *blocks: TokenCounts) -> None:
        present = np.zeros(blocks[0].vocabulary, dtype=bool)
        for counts in blocks:
            present[counts.ids] = True
        self.ids: NDArray[np.int64] = np.flatnonzero(present)
        # The column of each id; entries of absent ids are never read.
        self._columns = np.cumsum(present, dtype=np.int32)
        self._columns -= 1

    def columns(self, ids: NDArray[np.uint32]) -> NDArray[np.int32]:
        """Columns of ids of the support, of their shape."""
        columns: NDArray[np.int32] = self._columns[ids]
        return columns

    def matrix(self, counts: TokenCounts, values: FloatArray) -> sparse.csr_array:
        """Values of shape (nnz,) as a sparse matrix of shape (B, columns)."""
        from scipy import sparse

        return sparse.csr_array(
            (values, self.columns(counts.ids), counts.indptr), shape=(len(counts), len(self.ids)), copy=False
        )

    def panels(self, width: int) -> Iterator[tuple[int, int]]:
        """Ranges of columns, ascending, of at most this width."""
        for start in range(0, len(self.ids), width):
            yield start, min(start + width, len(self.ids))


def panel(matrix: sparse.csr_array, start: int, stop: int) -> FloatArray:
    """Columns [start, stop) as a dense array of shape (B, stop - start)."""
    columns: FloatArray = matrix[:, start:stop].toarray()
    return columns


def wide_panel(matrix: sparse.csr_array, start: int, stop: int) -> FloatArray:
    """What `panel` returns, quicker where rows have many entries in it: others are not read."""
    wide = np.zeros((matrix.shape[0], stop - start))
    for row, (first, last) in enumerate(itertools.pairwise(matrix.indptr.tolist())):
        columns, values = matrix.indices[first:last], matrix.data[first:last]
        begin, end = np.searchsorted(columns, (start, stop))
        wide[row, columns[begin:end] - start] = values[begin:end]
    return wide


def worth_compiling(operations: int, saved: float) -> bool:
    """Whether so many operations of the inner loop, each saving so many nanoseconds, repay loading it.

    It depends on the block alone, so that a block computed again has the same last digits.
    """
    return operations * saved >= LEAST_SAVING * 1e9


def compiled_kernels(operations: int, saved: float) -> ModuleType | None:
    """Return `compute.metrics.compiled` for a block that is worth it, or None: where it is not, or numba is missing."""
    return _compiled() if _ALLOWED.get() and worth_compiling(operations, saved) else None


@contextlib.contextmanager
def allow_compiled(allowed: bool) -> Iterator[None]:
    """Have blocks computed by NumPy alone, if not `allowed`: numba takes a process some 100 MB for good."""
    token = _ALLOWED.set(allowed)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


@functools.cache
def _compiled() -> ModuleType | None:
    try:
        import compute.metrics.compiled as kernels
    except ImportError:
        # Not installed, or not for this version of NumPy: the NumPy path is complete.
        return None
    return kernels if kernels.ENABLED else None


def recompute_cancelled(
    distances: FloatArray,
    bound: FloatArray | float,
    targets: TokenCounts,
    sources: TokenCounts,
    evaluate: Callable[[Aligned], float],
    *,
    upper_only: bool = False,
) -> None:
    """Replace, in place, the entries below `bound` by the direct evaluation of the pair.

    With `upper_only`, for a symmetric metric of a block with itself, the lower triangle is not read and
    becomes the mirror image of the upper one.
    """
    cancelled = distances < bound
    if upper_only:
        cancelled = np.triu(cancelled)
    for i, j in np.argwhere(cancelled):
        p, q = targets.row(i), sources.row(j)
        # Equal datasets are common (the diagonal), and cheaper to compare than to evaluate.
        equal = np.array_equal(p[0], q[0]) and np.array_equal(p[1], q[1])
        distances[i, j] = 0.0 if equal else evaluate(align(p, q))
    if upper_only:
        lower = np.tril_indices(len(distances), -1)
        distances[lower] = distances.T[lower]
