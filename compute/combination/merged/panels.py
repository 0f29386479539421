"""Merge methods in column panels: many targets from sources that are read once.

What is kept of a source does not depend on the target, so that pruned sources are multiplied as whole ones are; and
TIES is a few products of that size. A panel does not hold whole tensors: which magnitudes of each are kept is found in
a pass before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.errors import BankFormatError
from bankdb.scaled_rows import Sources, read_scaled
from compute.combination.products import one_hot, product
from compute.merge_methods.disjoint_mean import disjoint_means
from compute.merge_methods.dropping import Key, drop
from compute.merge_methods.method import MergeMethod
from compute.merge_methods.trimming import Border, trim

Float32 = NDArray[np.float32]
Copy = Callable[[int], Float32]

STRIP = 2048
"""Columns that are merged at once by TIES: what it multiplies is made for them."""


@dataclass(frozen=True, slots=True)
class TensorColumns:
    """The columns of a tensor, half-open, and whether it is a B factor."""

    start: int
    stop: int
    is_b: bool


@dataclass(frozen=True, slots=True, eq=False)
class PanelMerge:
    """How the N sources of a panel are merged.

    Attributes
    ----------
    method
        The method.
    keys
        Of each source: of what is dropped.
    ratios
        float32, shape (N,): each source's scaling over the bank's.
    tensors
        T of them, which follow each other and hold all columns.
    thresholds, stops
        Shape (N, T), float32 and int64: the `Border` of each source's tensors. None where nothing is trimmed.
    """

    method: MergeMethod
    keys: tuple[Key, ...]
    ratios: Float32
    tensors: tuple[TensorColumns, ...]
    thresholds: Float32 | None = None
    stops: NDArray[np.int64] | None = None

    def within(self, start: int, stop: int) -> PanelMerge:
        """Return the same for columns `start` to `stop`: with fewer tensors to carry."""
        some = [i for i, tensor in enumerate(self.tensors) if tensor.start < stop and tensor.stop > start]
        part = slice(some[0], some[-1] + 1)
        return replace(
            self,
            tensors=self.tensors[part],
            thresholds=None if self.thresholds is None else self.thresholds[:, part],
            stops=None if self.stops is None else self.stops[:, part],
        )

    def as_read(self, sources: Sources) -> Sources:
        """Return the sources as they are merged: at the bank's scaling, or with PEFT's weights as they are stored."""
        if self.method.weights == "convex":
            return sources
        return replace(sources, ratios=np.ones_like(sources.ratios))

    def prune(self, values: Float32, which: NDArray[np.int64], start: int) -> None:
        """Trim or drop values of some sources, in place.

        Parameters
        ----------
        values
            Shape (K, c): the columns from `start` on of the sources `which`.
        """
        density = self.method.density
        assert density is not None, "every method but the weighted sum has one"
        for row, source in zip(values, which.tolist(), strict=True):
            if self.method.drops:
                drop(row, self.keys[source], start, density, self.method.rescales)
                continue
            assert self.thresholds is not None, "what is trimmed has thresholds"
            assert self.stops is not None, "and stops"
            for index, (first, last, tensor) in enumerate(self._pieces(start, start + len(row))):
                border = Border(float(self.thresholds[source, index]), int(self.stops[source, index]))
                trim(row[first - start : last - start], border, first - tensor.start)

    def merge(
        self, out: Float32, coefficients: Float32, which: NDArray[np.int64], values: Float32, start: int
    ) -> None:
        """Set `out` to the merged adapters of some targets: 2 M K c flops, five times as many by TIES.

        Parameters
        ----------
        out
            Shape (M, c): columns from `start` on.
        coefficients
            Shape (M, N); zero for sources that are not among `which`.
        values
            Shape (K, c): those of the sources `which`, pruned.
        """
        weights = coefficients[:, which]
        for first, last, is_b in self._segments(start, start + out.shape[1]):
            entering = self._entering(weights, self.ratios[which], is_b)
            if not self.method.elects:
                columns = slice(first - start, last - start)
                product(entering, values[:, columns], out[:, columns])
                continue
            sign, by_number = self.method.majority_sign or "", self.method.weights == "peft"
            for strip in range(first - start, last - start, STRIP):
                columns = slice(strip, min(strip + STRIP, last - start))
                disjoint_means(entering, values[:, columns], sign, by_number, out[:, columns])

    def add(
        self, out: Float32, coefficients: Float32, which: NDArray[np.int64], values: Float32, start: int
    ) -> None:
        """Add what some sources make up, of a method without election, to `out`; see `merge`."""
        for first, last, is_b in self._segments(start, start + out.shape[1]):
            entering = self._entering(coefficients[:, which], self.ratios[which], is_b)
            for strip in range(first - start, last - start, STRIP):
                columns = slice(strip, min(strip + STRIP, last - start))
                with np.errstate(over="ignore", invalid="ignore"):  # whoever merges looks at the result
                    out[:, columns] += entering @ values[:, columns]

    def _entering(self, weights: Float32, ratios: Float32, is_b: bool) -> Float32:
        """Return the weights of A or B factors, as `merged_sources` has them."""
        if self.method.weights == "convex":
            return weights
        root = np.sqrt(np.abs(weights.astype(np.float64)) * ratios)
        entering: Float32 = (root if is_b else np.copysign(root, weights)).astype(np.float32)
        return entering

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, TensorColumns]]:
        """Yield the columns of each tensor that are in a range of columns."""
        for tensor in self.tensors:
            yield max(tensor.start, start), max(min(tensor.stop, stop), start), tensor

    def _segments(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Yield ranges of columns in which all sources have one weight each."""
        if self.method.weights == "convex":
            yield start, stop, False
            return
        for first, last, tensor in self._pieces(start, stop):
            if first < last:
                yield first, last, tensor.is_b


def merge_held(
    out: Float32,
    coefficients: Float32,
    which: NDArray[np.int64],
    held: Float32,
    start: int,
    merge: PanelMerge,
    copy: Copy,
) -> None:
    """Merge sources that are held in memory, pruned; a target of one source is that source.

    Parameters
    ----------
    out, coefficients, which, held
        See `compute.combination.combine.combine_held`.
    copy
        Reads the columns of a source as they are, at the bank's scaling.
    """
    merge.merge(out, coefficients, which, held, start)
    copies = one_hot(coefficients)
    for target in np.flatnonzero(copies >= 0).tolist():
        out[target] = copy(int(copies[target]))


def merge_columns(
    store: AdapterStore,
    sources: Sources,
    coefficients: Float32,
    start: int,
    stop: int,
    batch: int,
    merge: PanelMerge,
) -> Float32:
    """Merge columns `start` to `stop` for some targets, reading the sources in batches: of methods without election.

    See `compute.combination.combine.combine_columns`.
    """
    assert not merge.method.elects, "an election needs all sources; plans see to that"
    out = np.zeros((len(coefficients), stop - start), dtype=np.float32)
    copies = one_hot(coefficients)
    mixed = np.where((copies >= 0)[:, None], np.float32(0), coefficients)
    used, read = np.flatnonzero(mixed.any(axis=0)), merge.as_read(sources)
    for first in range(0, len(used), batch):
        which = used[first : first + batch]
        values = read_scaled(store, read, which.tolist(), start, stop)
        for row, source in zip(values, which.tolist(), strict=True):
            check_source(row, store, int(sources.rows[source]))
        merge.prune(values, which, start)
        merge.add(out, mixed, which, values, start)
    for source in np.unique(copies[copies >= 0]).tolist():
        out[copies == source] = read_scaled(store, sources, [source], start, stop)[0]
    return out


def check_source(values: Float32, store: AdapterStore, row: int) -> None:
    """Raise BankFormatError for values of a row that are no numbers: dropped, they would be seen by nobody."""
    if not np.isfinite(values).all():
        raise BankFormatError(
            f"{store.file(row)}: row {row} holds values that are not finite numbers; "
            "`bank verify --repair` restores it from its source"
        )
