"""A part of a large bank, for a page that could not show all of it: its matrices alone, which are not stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bankdb.bank import AdapterBank
from bankdb.errors import PlanError
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import read_scaled, sources_of
from compute.approaches.by_distance import effective_sources
from compute.approaches.coefficients import leave_one_out_coefficients
from compute.approaches.groups import units_of
from compute.approaches.options import PredictionOptions
from compute.cluster.machine import memory_budget
from compute.pairwise.counts import token_counts
from compute.prediction.coefficients import Coefficients
from compute.types import FloatArray

MOST_SHOWN = 1000
"""Adapters of which a page shows all. Of more it would be tens of megabytes, and hours in the making."""
SHOWN = 256
"""Adapters that are drawn of a larger bank."""


def drawn(adapters: Sequence[AdapterRecord]) -> tuple[AdapterRecord, ...]:
    """Return the adapters that a page shows, by row: all, or some at random, the same whenever the bank is the same."""
    if len(adapters) <= MOST_SHOWN:
        return tuple(adapters)
    chosen = np.random.default_rng(len(adapters)).choice(len(adapters), SHOWN, replace=False)
    return tuple(adapters[index] for index in np.sort(chosen).tolist())


def distances_among(
    bank: AdapterBank,
    every: Sequence[AdapterRecord],
    some: Sequence[AdapterRecord],
    ways: Sequence[PredictionOptions],
    progress: Progress,
) -> dict[str, FloatArray]:
    """Return the distances between some datasets, float64, shape (n, n), by the metric of each way.

    Parameters
    ----------
    every
        All of the bank, from whose counts a metric takes its parameters.

    Raises
    ------
    PlanError
        They do not fit half of the machine's memory.
    """
    counts = token_counts(bank, some)
    whole = token_counts(bank, every) if any(way.needs_counts for way in ways) else None
    nnz, found = int(counts.lengths.max()), {}
    progress.begin(f"distances of {len(some)} adapters", len(ways))
    for way in ways:
        metric = way.resolve_metric(whole)
        if metric.workspace_bytes(len(some), len(some), counts.vocabulary, nnz) > memory_budget(None):
            raise PlanError(
                f"{metric.key}: {len(some)} datasets do not fit the machine's memory; leave it out"
            )
        found[way.metric] = metric.block(counts, counts)
        progress.advance()
    progress.end()
    return found


def gram_among(bank: AdapterBank, some: Sequence[AdapterRecord], progress: Progress) -> FloatArray:
    """Return the inner products of some adapters at the bank's scaling, float64, shape (n, n); 4 n p bytes are read."""
    sources, parameters = sources_of(bank, some, progress), bank.layout.size
    # A panel in single and in double precision, in a quarter of the memory.
    width = max(1, memory_budget(None) // 4 // (12 * len(some)) // bank.store.chunk) * bank.store.chunk
    gram = np.zeros((len(some), len(some)))
    starts = range(0, parameters, width)
    progress.begin(f"gram of {len(some)} adapters", len(starts))
    for start in starts:
        stop = min(start + width, parameters)
        panel = read_scaled(bank.store, sources, range(len(some)), start, stop).astype(np.float64)
        gram += panel @ panel.T
        progress.advance()
    progress.end()
    return gram


def coefficients_among(
    some: tuple[AdapterRecord, ...],
    ways: Sequence[PredictionOptions],
    distances: dict[str, FloatArray],
    gram: FloatArray,
    progress: Progress,
) -> list[Coefficients]:
    """Return the leave-one-out coefficients of some adapters from each other, for each way."""
    groups, made = [record.group for record in some], []
    progress.begin("coefficients", len(ways))
    for way in ways:
        units = units_of(groups, way.leave_out)
        between = distances[way.metric] if way.how.reads_distances else None
        values, fitted = leave_one_out_coefficients(way, between, gram if way.how.reads_gram else None, units)
        metric = way.metric if way.how.reads_distances else "none"
        made.append(Coefficients(some, values, effective_sources(values), metric, way, fitted))
        progress.advance()
    progress.end()
    return made
