"""Squared maximum mean discrepancy of two token distributions, exactly: `(p - q)^T K (p - q)`.

The kernel K depends on the distance of two token ids only. It is a Toeplitz matrix, and a discrete Fourier
transform applies it to a distribution in V log V operations. The published implementation estimates the same
quantity from 1,000 tokens drawn for each pair without a seed (arXiv 2507.01806, appendix C.1.2); its sampling
noise is not reproduced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from compute.metrics.aligned import Aligned, align
from compute.metrics.base import Metric, recompute_cancelled, support_bytes
from compute.metrics.distributions import CountsRow, TokenCounts, dense, probabilities, row_blocks
from compute.types import FloatArray

MULTISCALE_BANDWIDTHS = (0.2, 0.5, 0.9, 1.3)
ROWS_AT_ONCE = 128
"""Sources of one product: the spectra of all targets are read once for so many."""
BATCH_BYTES = 2**26
"""Spectra of the sources of one product stay near this size, however large the vocabulary is."""
TRANSFORMED_BYTES = 2**22
"""Vectors that are transformed at once stay near this size, within a cache."""
ROUNDING = 4 * np.finfo(np.float64).eps
"""Rounding of a transformed value relative to the norms that went into it, with a margin."""
RELATIVE_ACCURACY = 1e-10


@dataclass(frozen=True, slots=True)
class MultiscaleKernel:
    """`sum_a a^2 / (a^2 + d^2)` for a in 0.2, 0.5, 0.9, 1.3: the kernel of the published experiments."""

    @property
    def key(self) -> str:
        """Identity for storage."""
        return "multiscale"

    def values(self, lags: FloatArray) -> FloatArray:
        """Kernel at these distances of token ids."""
        squares = lags * lags
        values = np.zeros_like(lags)
        for a in MULTISCALE_BANDWIDTHS:
            values += a * a / (a * a + squares)
        return values

    def curvatures(self, lags: FloatArray) -> FloatArray | None:
        """None: the eigenvalues of K are within a factor of 5, so that nothing cancels."""
        return None


@dataclass(frozen=True, slots=True)
class GaussianKernel:
    """`exp(-d^2 / (2 sigma^2))`, sigma in token ids."""

    sigma: float

    @property
    def key(self) -> str:
        """Identity for storage."""
        return f"gaussian-{self.sigma!r}".replace("+", "")

    def values(self, lags: FloatArray) -> FloatArray:
        """Kernel at these distances of token ids."""
        with np.errstate(over="ignore"):
            values: FloatArray = np.exp(-0.5 * (lags / self.sigma) ** 2)
        return values

    def curvatures(self, lags: FloatArray) -> FloatArray | None:
        """`2 k(d) - k(d - 1) - k(d + 1)`, each value to its own last digits; None for a narrow kernel."""
        if self.sigma < 2.0:
            return None
        inverse = 1.0 / (self.sigma * self.sigma)
        values = self.values(lags)
        # 1 - exp(-a) cosh(b) = -expm1(-a) - 2 exp(-a) sinh(b / 2)^2; where k is 0, sinh may overflow.
        halves = np.where(values > 0, lags * (0.5 * inverse), 0.0)
        cosine_terms: FloatArray = np.sinh(halves) ** 2
        cosine_terms *= -2.0 * math.exp(-0.5 * inverse)
        cosine_terms -= math.expm1(-0.5 * inverse)
        cosine_terms *= 2.0 * values
        return cosine_terms


Kernel = MultiscaleKernel | GaussianKernel
KERNEL_NAMES = ("multiscale", "gaussian")


class _Toeplitz:
    """A symmetric Toeplitz matrix of V rows, as the spectrum of the circulant one that contains it."""

    def __init__(self, values: FloatArray, vocabulary: int) -> None:
        from scipy import fft

        self.length = 2 * (len(values) - 1)
        self.vocabulary = vocabulary
        circulant = np.concatenate([values, values[-2:0:-1]])
        self.norm = float(np.sqrt(circulant @ circulant))
        self.spectrum: FloatArray = fft.rfft(circulant, workers=1).real
        # Parseval's weights: all frequencies but the first and the last stand for two.
        self.weights = self.spectrum * (2.0 / self.length)
        self.weights[[0, -1]] /= 2.0

    @property
    def width(self) -> int:
        """Numbers of a spectrum, real and imaginary parts."""
        return self.length + 2

    def spectra(
        self, counts: TokenCounts, weighted: FloatArray, spectra: FloatArray | None = None
    ) -> FloatArray:
        """Transform distributions, as numbers: into `spectra`, and times Parseval's weights into `weighted`.

        The sum of the products of one's `spectra` and another's `weighted`, each (B, width), is `p^T K q`.

        Returns
        -------
        `p^T K p`, shape (B,).
        """
        weights = np.repeat(self.weights, 2)
        self_terms = np.empty(len(counts))
        for rows in row_blocks(len(counts), max(1, TRANSFORMED_BYTES // (8 * self.width))):
            some = self.transform(dense(counts.select(rows), self.length)).view(np.float64)
            np.multiply(some, weights, out=weighted[rows[0] : rows[-1] + 1])
            self_terms[rows] = np.einsum("ij,ij->i", some, weighted[rows[0] : rows[-1] + 1])
            if spectra is not None:
                spectra[rows[0] : rows[-1] + 1] = some
        return self_terms

    def transform(self, vectors: FloatArray) -> NDArray[np.complex128]:
        """Fourier transform of vectors of shape (..., V), padded."""
        from scipy import fft

        transformed: NDArray[np.complex128] = fft.rfft(vectors, self.length, axis=-1, workers=1)
        return transformed

    def quadratic(self, transformed: NDArray[np.complex128]) -> FloatArray:
        """`x^T K x` of transformed vectors; shape (...,)."""
        return (transformed.real**2 + transformed.imag**2) @ self.weights


def _lags(vocabulary: int) -> FloatArray:
    """Distances 0, 1, ..., L / 2 of a circulant matrix of a fast even length L that holds V rows."""
    from scipy import fft

    return np.arange(fft.next_fast_len(max(vocabulary, 2), real=True) + 1, dtype=np.float64)


class _Evaluator:
    """One kernel on one vocabulary: the transforms for blocks, and pairs by the form that rounds least."""

    def __init__(self, kernel: Kernel, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.kernel = kernel
        self.direct = _Toeplitz(kernel.values(_lags(vocabulary)), vocabulary)
        self._summed: _Toeplitz | None = None

    @property
    def summed(self) -> _Toeplitz | None:
        """The kernel's negative second difference; it acts on cumulative sums (summation by parts)."""
        if self._summed is None:
            curvatures = self.kernel.curvatures(_lags(self.vocabulary))
            self._summed = None if curvatures is None else _Toeplitz(curvatures, self.vocabulary)
        return self._summed

    def distance(self, pair: Aligned) -> float:
        """`d^T K d` for d = p - q, or the equal `D^T M D` for D, the cumulative sums of d.

        A smooth kernel is blind to fine detail of d, and the first form cancels. With M the negative second
        difference of K the second form says the same, since d sums to zero.
        """
        d = np.zeros(self.vocabulary)
        d[pair.ids] = pair.difference
        value = float(self.direct.quadratic(self.direct.transform(d)))
        rounding = ROUNDING * self.direct.norm * float(d @ d)
        if value * RELATIVE_ACCURACY < rounding and self.summed is not None:
            gaps = np.diff(pair.ids, append=pair.ids[-1:])
            sums = np.zeros(self.vocabulary)
            sums[pair.ids[0] : pair.ids[-1]] = np.repeat(pair.cumulative_difference, gaps)
            if ROUNDING * self.summed.norm * float(sums @ sums) < rounding:
                value = float(self.summed.quadratic(self.summed.transform(sums)))
        return max(value, 0.0)


@dataclass(frozen=True, slots=True)
class MaximumMeanDiscrepancy(Metric):
    """Squared MMD, `(p - q)^T K (p - q)`."""

    name: ClassVar[str] = "mmd"
    short: ClassVar[str] = "mmd"
    symmetric: ClassVar[bool] = True
    relative_cost: ClassVar[float] = 0.65
    dataset_pairs: ClassVar[int] = 160
    kernel: Kernel = MultiscaleKernel()

    @property
    def key(self) -> str:
        """See `Metric.key`."""
        return f"mmd-{self.kernel.key}"

    def block(self, targets: TokenCounts, sources: TokenCounts) -> FloatArray:
        """See `Metric.block`; a transform for each dataset, then a product of the spectra."""
        alone = targets is sources
        evaluator = _Evaluator(self.kernel, targets.vocabulary)
        cross, target_self, source_self = _products(evaluator.direct, targets, sources)
        cross *= -2.0
        cross += target_self[:, None]
        cross += source_self
        target_bound = _bound(evaluator.direct, targets, target_self)
        source_bound = target_bound if alone else _bound(evaluator.direct, sources, source_self)
        bound = target_bound[:, None] + source_bound
        recompute_cancelled(cross, bound, targets, sources, evaluator.distance, upper_only=alone)
        return cross

    def pair(self, p: CountsRow, q: CountsRow, vocabulary: int) -> float:
        """See `Metric.pair`."""
        return _Evaluator(self.kernel, vocabulary).distance(align(p, q))

    def workspace_bytes(self, targets: int, sources: int, vocabulary: int, nnz_per_dataset: int) -> int:
        """See `Metric.workspace_bytes`."""
        width = 2 * len(_lags(vocabulary))
        # Targets' spectra; a batch of weighted ones; dense rows, padded, and their spectra; the kernel's own.
        few = 3 * max(1, TRANSFORMED_BYTES // (8 * width))
        spectra = 8 * width * (targets + min(_batch(width), max(targets, sources)) + few + 16)
        results = 5 * 8 * targets * sources
        return support_bytes(targets + sources, vocabulary, nnz_per_dataset) + spectra + results


def _batch(width: int) -> int:
    return max(1, min(ROWS_AT_ONCE, BATCH_BYTES // (8 * width)))


def _products(
    matrix: _Toeplitz, targets: TokenCounts, sources: TokenCounts
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`p^T K q` of all pairs, shape (T, S), and `p^T K p` of the targets and the sources.

    Of a block with itself, entries below the diagonal mean nothing.
    """
    alone = targets is sources
    cross = np.zeros((len(targets), len(sources)))
    target_self, source_self = np.empty(len(targets)), np.empty(len(sources))
    spectra = np.empty((len(targets), matrix.width))
    batch = _batch(matrix.width)
    weighted = np.empty((min(batch, max(len(targets), len(sources))), matrix.width))
    for rows in row_blocks(len(targets), batch):
        start, stop = rows[0], rows[-1] + 1
        target_self[rows] = matrix.spectra(targets.select(rows), weighted, spectra[start:stop])
        if alone:
            cross[:stop, rows] = spectra[:stop] @ weighted[: len(rows)].T
    if alone:
        return cross, target_self, target_self
    for rows in row_blocks(len(sources), batch):
        source_self[rows] = matrix.spectra(sources.select(rows), weighted)
        cross[:, rows] = spectra @ weighted[: len(rows)].T
    return cross, target_self, source_self


def _bound(matrix: _Toeplitz, counts: TokenCounts, self_terms: FloatArray) -> FloatArray:
    """Smallest distance whose relative accuracy is kept, one share for each dataset of the pair."""
    squares = counts.row_sums(probabilities(counts) ** 2)
    return ROUNDING / RELATIVE_ACCURACY * (self_terms + matrix.norm * squares)
