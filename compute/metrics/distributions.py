"""Datasets as empirical distributions of token ids (arXiv 2507.01806, section 3 and appendix C.1.2).

What is kept is integer counts in compressed rows; probabilities and cumulative sums are derived from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import DatasetError, ParameterError
from compute.types import FloatArray

LARGEST_COUNT = np.iinfo(np.uint32).max
BLOCK_ENTRIES = 2**15
"""Numbers of an elementwise function at once: several arrays of them (256 kB) stay in a core's own cache."""

CountsRow = tuple[NDArray[np.uint32], NDArray[np.uint32] | NDArray[np.uint64]]
"""Ids, ascending, and their counts: one dataset."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenCounts:
    """Token counts of B datasets over one vocabulary, as compressed rows.

    Attributes
    ----------
    indptr
        Shape (B + 1,): row b is `ids[indptr[b]:indptr[b + 1]]`, as in a SciPy CSR matrix.
    ids
        Shape (nnz,): token ids, strictly ascending within a row.
    counts
        Shape (nnz,): how often each id occurs, all above zero.
    vocabulary
        V, the number of token ids; ids are in [0, V).
    largest
        What a count may be: a bin that two ids share holds more than a stored count does.

    Raises
    ------
    DatasetError
        For empty rows, ids that are not ascending or not below V, and counts that are zero or negative.
    """

    indptr: NDArray[np.int64]
    ids: NDArray[np.uint32]
    counts: NDArray[np.uint32] | NDArray[np.uint64]
    vocabulary: int
    largest: int = LARGEST_COUNT

    def __post_init__(self) -> None:
        # The checks come before the conversion: a negative number must not wrap to a large one.
        self.validate()
        count_type = np.uint32 if self.largest <= LARGEST_COUNT else np.uint64
        for name, dtype in (("indptr", np.int64), ("ids", np.uint32), ("counts", count_type)):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))

    @classmethod
    def stack(cls, rows: Sequence[tuple[NDArray[Any], NDArray[Any]]], vocabulary: int) -> Self:
        """Join one (ids, counts) pair a dataset, in order.

        Raises
        ------
        DatasetError
            As the constructor, or when ids and counts of a row differ in length.
        """
        for row, (ids, counts) in enumerate(rows):
            if np.ndim(ids) != 1 or np.shape(ids) != np.shape(counts):
                raise DatasetError(
                    f"dataset {row}: expected one count for each token id, found shapes"
                    f" {np.shape(ids)} and {np.shape(counts)}; tokenize it again"
                )
        lengths = np.array([len(ids) for ids, _ in rows], dtype=np.int64)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        empty = np.zeros(0, np.uint32)
        ids = np.concatenate([np.asarray(ids) for ids, _ in rows]) if rows else empty
        counts = np.concatenate([np.asarray(counts) for _, counts in rows]) if rows else empty
        return cls(indptr, ids, counts, vocabulary)

    def validate(self) -> None:
        """Check everything that the class promises.

        Raises
        ------
        DatasetError
            Naming the first row that breaks a promise.
        """
        _check_shape(self.indptr, self.ids, self.counts)
        ids = self.ids
        too_large = (ids < 0) | (ids >= self.vocabulary)
        self._refuse(too_large, f"token ids in [0, {self.vocabulary})", "use the bank's tokenizer", ids)
        wrong_count = (self.counts < 1) | (self.counts > self.largest)
        self._refuse(wrong_count, f"counts in [1, {self.largest}]", "leave out ids never seen", self.counts)
        unsorted = np.zeros(len(ids), dtype=bool)
        unsorted[1:] = ids[1:] <= ids[:-1]
        unsorted[self.indptr[:-1]] = False
        self._refuse(unsorted, "ids ascending, each once", "sort the ids and add up their counts", ids)

    def _refuse(self, wrong: NDArray[np.bool_], expected: str, advice: str, values: NDArray[Any]) -> None:
        if wrong.any():
            first = int(np.argmax(wrong))
            row = int(np.searchsorted(self.indptr, first, side="right")) - 1
            raise DatasetError(
                f"dataset {row}: expected {expected}, found {values[first]} at entry"
                f" {first - int(self.indptr[row])}; {advice}"
            )

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Shape (B,): the number of distinct ids of each dataset."""
        return np.diff(self.indptr)

    @property
    def totals(self) -> FloatArray:
        """Shape (B,): the number of tokens of each dataset, exact below 2**53."""
        if len(self) == 0:
            return np.zeros(0)
        totals: FloatArray = np.add.reduceat(self.counts, self.indptr[:-1], dtype=np.float64)
        return totals

    def row_sums(self, values: FloatArray) -> FloatArray:
        """Sum values of shape (nnz,) within each row; shape (B,)."""
        if len(self) == 0:
            return np.zeros(0)
        sums: FloatArray = np.add.reduceat(values, self.indptr[:-1])
        return sums

    def row(self, index: int) -> CountsRow:
        """Ids and counts of one dataset, as views."""
        start, stop = self.indptr[index], self.indptr[index + 1]
        return self.ids[start:stop], self.counts[start:stop]

    def select(self, rows: NDArray[np.integer[Any]]) -> TokenCounts:
        """Take the datasets at these row numbers, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self._range(int(rows[0]), int(rows[-1]) + 1)
        lengths = self.lengths[rows]
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        entries = np.arange(indptr[-1]) + np.repeat(self.indptr[:-1][rows] - indptr[:-1], lengths)
        return TokenCounts(indptr, self.ids[entries], self.counts[entries], self.vocabulary, self.largest)

    def _range(self, start: int, stop: int) -> TokenCounts:
        """Take the datasets in [start, stop), without a copy of them."""
        indptr = self.indptr[start : stop + 1]
        entries = slice(indptr[0], indptr[-1])
        return TokenCounts(
            indptr - indptr[0], self.ids[entries], self.counts[entries], self.vocabulary, self.largest
        )


def _check_shape(indptr: NDArray[Any], ids: NDArray[Any], counts: NDArray[Any]) -> None:
    """Refuse arrays that are not compressed rows of integers, and rows that are empty."""
    for name, array in (("indptr", indptr), ("ids", ids), ("counts", counts)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DatasetError(
                f"token counts: expected {name} to be a list of integers, found shape {array.shape}"
                f" of {array.dtype}; tokenize the datasets again"
            )
    ends = (int(indptr[0]), int(indptr[-1])) if len(indptr) else None
    if ends != (0, len(ids)) or len(ids) != len(counts):
        raise DatasetError(
            f"token counts: expected indptr from 0 to the number of ids, found {ends} for {len(ids)} ids"
            f" and {len(counts)} counts; tokenize the datasets again"
        )
    empty = np.flatnonzero(np.diff(indptr.astype(np.int64)) < 1)
    if len(empty):
        raise DatasetError(f"dataset {empty[0]}: expected at least one token, found none; leave it out")


def probabilities(counts: TokenCounts) -> FloatArray:
    """Empirical probability of each stored id, `counts / total` of its row; shape (nnz,)."""
    values = np.empty(len(counts.ids))
    ends = itertools.pairwise(counts.indptr.tolist())
    for total, (start, stop) in zip(counts.totals.tolist(), ends, strict=True):
        np.divide(counts.counts[start:stop], total, out=values[start:stop])
    return values


def row_blocks(rows: int, size: int) -> list[NDArray[np.int64]]:
    """Row numbers 0 to `rows`, at most `size` in each array."""
    return [np.arange(start, min(start + size, rows), dtype=np.int64) for start in range(0, rows, size)]


def in_blocks(
    function: Callable[[FloatArray], tuple[FloatArray, ...]],
    values: FloatArray,
    results: int,
) -> tuple[FloatArray, ...]:
    """Apply an elementwise function that makes several arrays, each of the values' shape.

    A block of values at a time: what is made on the way stays in a core's own cache, where arrays as large as
    `values` each come as fresh memory from the kernel.
    """
    # Apart, so that one can be freed without the others.
    arrays = tuple(np.empty(len(values)) for _ in range(results))
    for start in range(0, len(values), BLOCK_ENTRIES):
        entries = slice(start, start + BLOCK_ENTRIES)
        for result, made in zip(arrays, function(values[entries]), strict=True):
            result[entries] = made
    return arrays


def dense(counts: TokenCounts, width: int | None = None) -> FloatArray:
    """Probabilities over the whole vocabulary; shape (B, V), rows sum to 1; wider, zeros follow."""
    out = np.zeros((len(counts), width or counts.vocabulary))
    values = probabilities(counts)
    for row, (start, stop) in enumerate(itertools.pairwise(counts.indptr.tolist())):
        out[row, counts.ids[start:stop]] = values[start:stop]
    return out


def merge_last_two(counts: TokenCounts) -> TokenCounts:
    """Bin the counts as the published implementation does: V - 1 bins, the last two ids share one.

    It asks for a histogram with edges 0, 1, ..., V - 1, whose last bin is closed: it holds the ids V - 2
    and V - 1.

    Raises
    ------
    ParameterError
        For a vocabulary of fewer than two ids.
    """
    vocabulary = counts.vocabulary
    if vocabulary < 2:
        raise ParameterError(
            f"published histograms need a vocabulary of at least 2 ids, found {vocabulary}; use 'correct'"
        )
    ids, amounts = counts.ids.copy(), counts.counts.astype(np.uint64)
    last = counts.indptr[1:] - 1
    last = last[ids[last] == vocabulary - 1]
    ids[last] = vocabulary - 2
    # Two entries of one row now have the same id exactly when both ids were there.
    doubled = last[last > 0]
    doubled = doubled[(ids[doubled - 1] == vocabulary - 2) & ~np.isin(doubled, counts.indptr)]
    amounts[doubled - 1] += amounts[doubled]
    dropped = np.zeros(len(counts) + 1, dtype=np.int64)
    rows = np.searchsorted(counts.indptr, doubled, side="right")
    np.add.at(dropped, rows, 1)
    return TokenCounts(
        counts.indptr - np.cumsum(dropped),
        np.delete(ids, doubled),
        np.delete(amounts, doubled),
        vocabulary - 1,
        2 * LARGEST_COUNT,
    )


def median_sigma(counts: TokenCounts) -> float:
    """Bandwidth of a Gaussian kernel by the median heuristic, exact and without sampling.

    The weighted median of `abs(k - l)` in token ids, where k and l are drawn independently from the mean of
    the datasets' distributions (each dataset weighs the same) and pairs with k = l are left out. Where the
    median is not unique, the lower one.

    Raises
    ------
    DatasetError
        When there is no pair of different ids.
    """
    from scipy import fft

    pooled = np.zeros(counts.vocabulary)
    np.add.at(pooled, counts.ids, probabilities(counts))
    if np.count_nonzero(pooled) < 2:
        raise DatasetError(
            f"median heuristic: expected at least two different token ids in the datasets, found"
            f" {np.count_nonzero(pooled)}; give sigma"
        )
    pooled /= pooled.sum()
    length = fft.next_fast_len(2 * len(pooled) - 1, real=True)
    spectrum = fft.rfft(pooled, length, workers=1)
    autocorrelation = fft.irfft(spectrum.real**2 + spectrum.imag**2, length, workers=1)
    weights = np.maximum(autocorrelation[1 : len(pooled)], 0.0)
    sums = np.cumsum(weights)
    # The transform's rounding is below 1e-13; the margin lets an exact half count as reached.
    return float(np.searchsorted(sums, (0.5 - 1e-12) * sums[-1]) + 1)
