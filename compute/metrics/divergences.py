"""Kullback-Leibler and Jensen-Shannon divergence in nats (arXiv 2507.01806, appendix C.1.2).

Both come as `correct`, a divergence of two probability distributions, and `published`: the paper's code bins
the tokens into V - 1 bins (`merge_last_two`) and adds epsilon to every bin without normalising again.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compute.metrics.aligned import Aligned, align
from compute.metrics.base import (
    Metric,
    Support,
    compiled_kernels,
    panel,
    panel_width,
    recompute_cancelled,
    support_bytes,
    wide_panel,
)
from compute.metrics.distributions import (
    CountsRow,
    TokenCounts,
    in_blocks,
    merge_last_two,
    probabilities,
    row_blocks,
)
from compute.metrics.mixtures import SUMMED_ROWS, MixtureTerms, distances_by_loops
from compute.types import Compatible, FloatArray

if TYPE_CHECKING:
    from scipy import sparse

EPSILON = 1e-10
CANCELLED = 3e-5
"""An entry below this share of the terms it was subtracted from has lost too many digits.

The terms are sums of up to V products, rounded to about 1e-15: what remains is good to 1e-10.
"""
PRODUCT_PANELS = 2
"""Panels of a matrix product are so many times wider: no cache has to hold them, and each costs every row a cut."""
GATHER_ELEMENTS = 2**14
"""Elements of the buffers of the inner loop (128 kB each): they stay in a core's own cache."""
LONGEST_SUM = 128
"""Addends summed one by one: the rounding of many equal ones does not average out."""
ROWS_OF_TRIANGLE = 32
"""Targets at once, of a block with itself: sources before the first of them are left out."""

FEW_TARGETS = 4
"""So many are compared with each entry of the sources: quicker than to lay the sources out in panels."""

SAVED = 7.0
"""Nanoseconds that the compiled loop saves for each id of a target and each source."""

# (1 + u) log(1 + u) - u = u^2 sum_n (-u)^n / ((n + 1)(n + 2)), to rounding for abs(u) <= 0.05.
_SERIES_LIMIT = 0.05
_SERIES = tuple((-1.0) ** n / ((n + 1) * (n + 2)) for n in range(12))


@dataclass(frozen=True, slots=True)
class _Divergence(Metric):
    """What the two divergences share: their variants and how a pair is read."""

    compatible: Compatible = "correct"

    @property
    def published(self) -> bool:
        """Whether the published implementation's bins and smoothing are used."""
        return self.compatible == "published"

    @property
    def key(self) -> str:
        """See `Metric.key`."""
        return f"{self.name}-published" if self.published else self.name

    def pair(self, p: CountsRow, q: CountsRow, vocabulary: int) -> float:
        """See `Metric.pair`."""
        both = self._binned(TokenCounts.stack([p, q], vocabulary))
        return self._distance(align(both.row(0), both.row(1)), both.vocabulary)

    def _binned(self, counts: TokenCounts) -> TokenCounts:
        return merge_last_two(counts) if self.published else counts

    @abstractmethod
    def _distance(self, pair: Aligned, bins: int) -> float:
        """Evaluate one aligned pair, its ids already binned."""


@dataclass(frozen=True, slots=True)
class KullbackLeibler(_Divergence):
    """`sum P~ log(P~ / Q~)` with `P~ = (P + eps) / (1 + V eps)`, eps = 1e-10; target first.

    `published`: `P~ = P + eps` over V - 1 bins.
    """

    name = "kullback-leibler"
    short = "kl"
    symmetric = False
    relative_cost = 0.55
    dataset_pairs = 150

    def block(self, targets: TokenCounts, sources: TokenCounts) -> FloatArray:
        """See `Metric.block`; one matrix product of T x U by U x S, U the ids that occur."""
        alone = targets is sources
        targets = self._binned(targets)
        sources = targets if alone else self._binned(sources)
        support = Support(targets, sources)
        p = _Smoothed(support, targets)
        return self._smoothed_block(support, p, p if alone else _Smoothed(support, sources))

    def both(self, rows: TokenCounts, columns: TokenCounts) -> tuple[FloatArray, FloatArray]:
        """See `Metric.both`; the logarithms are taken once."""
        rows, columns = self._binned(rows), self._binned(columns)
        support = Support(rows, columns)
        p, q = _Smoothed(support, rows), _Smoothed(support, columns)
        return self._smoothed_block(support, p, q), self._smoothed_block(support, q, p)

    def _smoothed_block(self, support: Support, p: _Smoothed, q: _Smoothed) -> FloatArray:
        """Divergences from `P @ logarithms(Q)`.

        With `l(x) = log(x + eps) - log eps`, zero off the support, `sum (P + eps) (l(P) - l(Q))` needs no
        term outside the supports.
        """
        cross = np.zeros((len(p.counts), len(q.counts)))
        for start, stop in support.panels(_product_width(len(p.counts) + len(q.counts))):
            cross += wide_panel(p.probabilities, start, stop) @ wide_panel(q.logarithms, start, stop).T
        cross += EPSILON * q.logarithm_sums
        magnitude = cross + p.self_terms[:, None]
        np.subtract(p.self_terms[:, None], cross, out=cross)
        mass = self._mass(p.counts.vocabulary)
        cross /= mass
        magnitude *= CANCELLED / mass
        bins = p.counts.vocabulary
        recompute_cancelled(cross, magnitude, p.counts, q.counts, lambda pair: self._distance(pair, bins))
        return cross

    def _mass(self, bins: int) -> float:
        return 1.0 if self.published else 1.0 + bins * EPSILON

    def _distance(self, pair: Aligned, bins: int) -> float:
        """Sum `x log(x / y) - x + y`, never negative; the added terms cancel, both masses being equal."""
        x, y, difference = pair.p + EPSILON, pair.q + EPSILON, pair.difference
        u = difference / y
        series = np.zeros_like(u)
        for coefficient in reversed(_SERIES):
            series *= u
            series += coefficient
        near = np.abs(u) <= _SERIES_LIMIT
        terms = np.where(near, y * u * u * series, x * np.log(x / y) - difference)
        return float(terms.sum()) / self._mass(bins)

    def workspace_bytes(self, targets: int, sources: int, vocabulary: int, nnz_per_dataset: int) -> int:
        """See `Metric.workspace_bytes`."""
        datasets = targets + sources
        panels = 8 * datasets * min(_product_width(datasets), vocabulary)
        # Block and transpose, a product being added, the bound and its comparison.
        results = 5 * 8 * targets * sources
        return support_bytes(datasets, vocabulary, nnz_per_dataset, values=3) + panels + results


def _product_width(rows: int) -> int:
    return PRODUCT_PANELS * panel_width(rows)


def _logarithms(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Smoothed logarithms relative to log eps, and these times the smoothed probabilities."""
    logarithms = np.log1p(values / EPSILON)
    return logarithms, (values + EPSILON) * logarithms


class _Smoothed:
    """Probabilities of a block, their smoothed logarithms relative to log eps, and the sums of these."""

    def __init__(self, support: Support, counts: TokenCounts) -> None:
        self.counts = counts
        values = probabilities(counts)
        logarithms, own = in_blocks(_logarithms, values, 2)
        self.probabilities = support.matrix(counts, values)
        self.logarithms = support.matrix(counts, logarithms)
        self.logarithm_sums = counts.row_sums(logarithms)
        self.self_terms = counts.row_sums(own)


@dataclass(frozen=True, slots=True)
class JensenShannon(_Divergence):
    """`H(M) - (H(P) + H(Q)) / 2` with `M = (P + Q) / 2`: at most ln 2, no smoothing.

    `published`: `(sum p log(p / m) + sum q log(q / m)) / 2` with `p = P + eps`, `q = Q + eps` over V - 1 bins
    and `m = (p + q) / 2`.
    """

    name = "jensen-shannon"
    short = "js"
    symmetric = True
    relative_cost = 1.0
    dataset_pairs = 35
    few_targets = FEW_TARGETS

    @property
    def _epsilon(self) -> float:
        return EPSILON if self.published else 0.0

    def block(self, targets: TokenCounts, sources: TokenCounts) -> FloatArray:
        """See `Metric.block`; a logarithm for each id that both have, half of them if both are one block."""
        alone = targets is sources
        targets = self._binned(targets)
        sources = targets if alone else self._binned(sources)
        support = Support(targets, sources)
        few = len(targets) <= FEW_TARGETS and not alone
        kernels = None if few else compiled_kernels(len(targets.ids) * len(sources), SAVED)
        p = MixtureTerms(support, targets, self._epsilon, kept=kernels is None)
        if few:
            distances, magnitudes = self._from_entries(support, p, sources)
        else:
            q = p if alone else MixtureTerms(support, sources, self._epsilon, kept=kernels is None)
            magnitudes = q.magnitudes
            if kernels is None:
                distances = self._from_panels(support, p, q)
            else:
                distances = distances_by_loops(kernels, support, p, q)
        bound = CANCELLED * (p.magnitudes[:, None] + magnitudes)
        bins = targets.vocabulary
        recompute_cancelled(
            distances, bound, targets, sources, lambda pair: self._distance(pair, bins), upper_only=alone
        )
        return np.minimum(distances, self._largest(bins), out=distances)

    def _from_panels(self, support: Support, p: MixtureTerms, q: MixtureTerms) -> FloatArray:
        """Distances by NumPy: S logarithms for each id of each target."""
        alone, targets, sources = p is q, len(p.counts), len(q.counts)
        distances = p.target_terms[:, None] + q.source_terms
        indicators = support.matrix(p.counts, np.ones(len(p.counts.ids)))
        target_halves, source_halves = (support.matrix(side.counts, side.halves) for side in (p, q))
        outside = support.matrix(q.counts, q.outside)
        for start, stop in support.panels(panel_width(targets + 3 * sources)):
            distances += panel(indicators, start, stop) @ panel(outside, start, stop).T
            halves = np.ascontiguousarray(panel(source_halves, start, stop).T)
            halves += self._epsilon
            rows = ROWS_OF_TRIANGLE if alone else targets
            for row in range(0, targets, rows):
                first = row if alone else 0
                upper = np.ascontiguousarray(halves[:, first:])
                _subtract_mixed(
                    distances[row : row + rows, first:], target_halves[row : row + rows], upper, start
                )
        return distances

    def _from_entries(
        self, support: Support, p: MixtureTerms, sources: TokenCounts
    ) -> tuple[FloatArray, FloatArray]:
        """Distances of a few targets by NumPy: a logarithm for each entry of the sources that a target has too.

        The mixture's term starts at what it is where no source has the target's ids. Sources pass a few at a time, in
        one reading of their counts: what is made of them stays in a core's own cache. Returns what bounds the rounding
        of the sources' terms too, shape (S,).
        """
        halves, terms = np.zeros((2, len(p.counts), len(support.ids)))
        for target, (start, stop) in enumerate(itertools.pairwise(p.counts.indptr.tolist())):
            own = support.columns(p.counts.ids[start:stop])
            halves[target, own] = p.halves[start:stop]
            mixed = halves[target, own] + self._epsilon
            terms[target, own] = mixed * np.log(mixed)
        distances, magnitudes = np.empty((len(p.counts), len(sources))), np.empty(len(sources))
        for rows in row_blocks(len(sources), SUMMED_ROWS):
            q = MixtureTerms(support, sources.select(rows), self._epsilon, kept=True)
            magnitudes[rows] = q.magnitudes
            distances[:, rows] = p.target_terms[:, None] + q.source_terms
            columns = support.columns(q.counts.ids)
            for target in range(len(p.counts)):
                common = np.flatnonzero(halves[target][columns])
                where = columns[common]
                mixed = halves[target][where] + (q.halves[common] + self._epsilon)
                gained = np.zeros(len(columns))
                gained[common] = q.outside[common] + terms[target][where] - mixed * np.log(mixed)
                distances[target, rows] += q.counts.row_sums(gained) - terms[target].sum()
        return distances, magnitudes

    def largest(self, vocabulary: int) -> float:
        """See `Metric.largest`."""
        return self._largest(vocabulary - 1 if self.published else vocabulary)

    def _largest(self, bins: int) -> float:
        return float(np.log(2.0) * (1.0 + bins * self._epsilon))

    def _distance(self, pair: Aligned, bins: int) -> float:
        """Sum `m ((1 + t) log(1 + t) + (1 - t) log(1 - t)) / 2` with `t = (p - q) / (2 m)`."""
        from scipy import special

        m = (pair.p + pair.q) / 2 + self._epsilon
        t = np.minimum(np.abs(pair.difference) / (2 * m), 1.0)
        far = special.xlog1py(1 + t, t) + special.xlog1py(1 - t, -t)
        # The same sum, as 2 t^2 + ... less t^2 + ...: for small t it keeps its digits, the first form does not.
        small = np.minimum(t, 0.5)
        near = 2 * small * np.arctanh(small) + np.log1p(-small * small)
        value = float(m @ np.where(t > 0.5, far, near)) / 2
        return min(max(value, 0.0), self._largest(bins))

    def workspace_bytes(self, targets: int, sources: int, vocabulary: int, nnz_per_dataset: int) -> int:
        """See `Metric.workspace_bytes`."""
        datasets = targets + sources
        panels = 8 * (targets + 3 * sources) * min(panel_width(targets + 3 * sources), vocabulary)
        gathered = 3 * 8 * max(GATHER_ELEMENTS, sources)
        results = 6 * 8 * targets * sources
        # Of few targets, entry by entry: what is gained, and what it is made of.
        few = 6 if targets <= FEW_TARGETS else 0
        entries = support_bytes(datasets, vocabulary, nnz_per_dataset, values=4 + few)
        return entries + panels + gathered + results


def _subtract_mixed(
    distances: FloatArray, targets: sparse.csr_array, sources: FloatArray, start: int
) -> None:
    """Subtract `sum m log m` over the ids of each target in one panel, in place.

    `targets` holds P / 2 as rows, `sources` Q / 2 + eps of shape (ids of the panel, S): the ids of a target
    are whole rows of it.
    """
    width, columns = sources.shape
    step = max(1, min(LONGEST_SUM, GATHER_ELEMENTS // columns))
    mixed, logarithms = np.empty((step, columns)), np.empty((step, columns))
    for i in range(len(distances)):
        entries = slice(targets.indptr[i], targets.indptr[i + 1])
        ids, halves = targets.indices[entries] - start, targets.data[entries]
        first, last = np.searchsorted(ids, (0, width))
        for at in range(first, last, step):
            end = min(at + step, last)
            m, log_m = mixed[: end - at], logarithms[: end - at]
            # All ids are in range; 'clip' only spares NumPy a buffered copy.
            np.take(sources, ids[at:end], axis=0, out=m, mode="clip")
            m += halves[at:end, None]
            np.log(m, out=log_m)
            log_m *= m
            distances[i] -= log_m.sum(axis=0)
