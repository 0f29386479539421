"""Whether a new dataset is far from all of a bank, told from distances within it: `compute.metrics.novelty`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from bankdb.shown import metric_text
from compute.approaches.options import PredictionOptions
from compute.metrics.base import Metric, allow_compiled
from compute.metrics.novelty import Novelty, nearest_of_others, novelty, units_apart
from compute.pairwise.counts import token_counts
from compute.pairwise.matrix import stored_distances

COMPUTED = 512
"""Of so many datasets, and no more, distances are computed for this alone, in well under a second."""
TARGETS = 128
"""Of so many of them, spread over the bank, the nearest source is looked for: as much as a share needs."""
_BAND = 16  # neighbouring rows that are read of a stored matrix: they share its chunks


def novelty_of(
    bank: AdapterBank,
    metric: Metric | None,
    adapters: tuple[AdapterRecord, ...],
    row: NDArray[np.float64],
    excluded: NDArray[np.bool_],
    way: PredictionOptions,
    budget: int,
) -> Novelty | None:
    """Compare a new dataset with the bank's own, by the metric of its prediction; None without one or a source.

    Parameters
    ----------
    row
        Its distances to all N, shape (N,).
    excluded
        Those that are no sources, shape (N,): nothing is compared with them.

    Raises
    ------
    BankFormatError
        Distances that are stored were changed.
    """
    kept = np.flatnonzero(~excluded)
    if metric is None or not len(kept):
        return None
    sources = [adapters[index] for index in kept]
    units = units_apart([one.group for one in sources], [one.content_sha256 for one in sources])
    averaged = way.how.averages_directions and not metric.symmetric
    if len(kept) <= COMPUTED:
        own = _computed(bank, metric, sources, units, averaged, budget)
    else:  # Mirrored entries would have to be read by columns.
        own = np.empty(0) if averaged else _stored(bank, metric, adapters, kept, units)
    return novelty(
        metric_text(metric.key),
        {one.name: float(row[index]) for one, index in zip(sources, kept, strict=True)},
        own,
        largest=metric.largest(bank.record.vocabulary),
        groups_left_out=any(one.group is not None for one in sources),
    )


def tell_novelty(
    found: Novelty | None, before: Sequence[Novelty | None], place: str, progress: Progress
) -> None:
    """Say that a dataset is far from all sources, once a metric."""
    if found is not None and found.novel and found not in before:
        progress.note(f"{place}: {found.told()}")


def _computed(
    bank: AdapterBank,
    metric: Metric,
    sources: Sequence[AdapterRecord],
    units: NDArray[np.intp],
    averaged: bool,
    budget: int,
) -> NDArray[np.float64]:
    """Distances of some datasets to their nearest source of another unit; of none if not even one fits the budget."""
    counts = token_counts(bank, sources)
    chosen = np.unique(np.linspace(0, len(sources) - 1, min(TARGETS, len(sources))).round().astype(np.intp))
    size, support = len(chosen), int(counts.lengths.max())
    while size and metric.workspace_bytes(size, len(sources), counts.vocabulary, support) > budget:
        size //= 2
    found = []
    # Loops that are compiled take longer to load than these take without.
    with allow_compiled(False):
        for start in range(0, len(chosen), size) if size else ():
            part = chosen[start : start + size]
            if averaged:
                there, back = metric.both(counts.select(part), counts)
                block = (there + back.T) / 2
            else:
                block = metric.block(counts.select(part), counts)
            found.append(nearest_of_others(block, units[part], units))
    return np.concatenate([np.empty(0), *found])


def _stored(
    bank: AdapterBank,
    metric: Metric,
    adapters: tuple[AdapterRecord, ...],
    kept: NDArray[np.intp],
    units: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Return the same from the matrix that is stored, if all of it is."""
    matrix = stored_distances(bank, metric, adapters)
    if matrix is None:
        return np.empty(0)
    found = []
    for start in _bands(len(kept)):
        part = kept[start : start + _BAND]
        block = matrix.band(int(part[0]), int(part[-1]) + 1)[np.ix_(part - part[0], kept)]
        found.append(nearest_of_others(block, units[start : start + _BAND], units))
    return np.concatenate(found)


def _bands(size: int) -> Iterator[int]:
    """Yield where bands of neighbours begin, spread over so many."""
    for start in np.linspace(0, max(0, size - _BAND), TARGETS // _BAND).round().tolist():
        yield int(start)
