"""Plans of distance matrices: tiles of all metrics together, as large as memory and balance allow.

A larger tile reads and transforms each of its datasets for more pairs; smaller ones are shared out more evenly.
Integers alone: nothing here knows arrays, files or Dask.
"""

from __future__ import annotations

import functools
import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from compute.blocks import Metric
from compute.tiles import CHUNK_ROWS, Tile, chunk_count, cover, largest_side

# A tile on the diagonal costs this share of one above it, in tenths: half of it is a mirror.
DIAGONAL_TENTHS = 6
# What a task takes beside pairs and datasets, opening arrays and writing chunks, in pairs.
_TASK_PAIRS = 10_000
# Chunks on the side of a tile that are not cut to keep more workers busy: it takes less than a second.
_UNCUT = 4
# A bank of so few has tiles of one chunk: it takes no time anyway, and what is done when a run is killed is more than
# nothing. Up to 256 datasets tiles, and so the last digits of distances, are the same on whatever workers.
_SMALL = 2
# Plans with more tasks than this for each worker are not looked at: they are balanced, whatever they are.
_MOST_TASKS = 16
# Costs are estimates, and workers not equally fast: of the largest tile, this part is taken to be waited for.
_LATE = 4


@dataclass(frozen=True, slots=True)
class PlannedTile:
    """A tile of the matrix of one metric; `matrix` counts through those that are planned together."""

    matrix: int
    metric: Metric
    tile: Tile

    @property
    def area(self) -> int:
        """Pairs that the tile holds, those of its mirror not counted."""
        tile = self.tile
        return (tile.row_stop - tile.row_start) * (tile.column_stop - tile.column_start)

    @property
    def datasets(self) -> int:
        """Datasets whose counts are read."""
        tile = self.tile
        rows = tile.row_stop - tile.row_start
        return rows if tile.diagonal else rows + tile.column_stop - tile.column_start

    @property
    def entries(self) -> int:
        """Entries of the matrix that are written."""
        return self.area if self.tile.diagonal else 2 * self.area

    @property
    def pair_tenths(self) -> int:
        """Tenths of pairs that the tile's time goes with, beside its datasets."""
        return self.area * (DIAGONAL_TENTHS if self.tile.diagonal else 10)

    @property
    def cost(self) -> int:
        """Its time against other tiles', of whatever metric: a tenth of a pair of the dearest metric is 1."""
        pairs = self.pair_tenths + 10 * self.metric.dataset_pairs * self.datasets
        return round(self.metric.relative_cost * pairs) + 10 * _TASK_PAIRS


def plan_distances(
    matrices: Sequence[tuple[Metric, Collection[tuple[int, int]]]],
    rows: int,
    *,
    vocabulary: int,
    nnz: int,
    slots: int,
    budget: int,
) -> tuple[PlannedTile, ...]:
    """Cover the chunks that each matrix lacks with tiles, those of all matrices in one order.

    How large tiles are depends on the matrices, not on what they lack: a run that was killed goes on with the
    same tiles, so that what it computes has the same last digits.

    Parameters
    ----------
    matrices
        Each metric, with the chunks on and above the diagonal that its matrix lacks.
    rows
        Rows of the matrices.
    vocabulary, nnz
        V, and the largest number of distinct ids of a dataset.
    slots, budget
        Tasks that run at once, and the bytes that one of them may use.

    Returns
    -------
    The longest first: what is left for the end is short.

    Raises
    ------
    PlanError
        Not even a tile of one chunk fits the budget.
    """
    if not any(missing for _, missing in matrices):
        return ()
    metrics = [metric for metric, _ in matrices]
    largest = [
        largest_side(
            rows,
            budget=budget,
            workspace=functools.partial(tile_bytes, metric, vocabulary=vocabulary, nnz=nnz),
        )
        for metric in metrics
    ]
    side = _balanced_side(metrics, largest, rows, slots)
    planned = [
        PlannedTile(index, metric, tile)
        for index, (metric, missing) in enumerate(matrices)
        for tile in cover(rows, missing, min(side, largest[index]))
    ]
    return tuple(sorted(planned, key=lambda piece: piece.cost, reverse=True))


def tile_bytes(metric: Metric, side: int, vocabulary: int, nnz: int) -> int:
    """Return the bytes that the task of a square tile uses, `nnz` being the largest support of a dataset."""
    # The block and its mirror, what is stored of both, and the counts of both sides.
    return metric.workspace_bytes(side, side, vocabulary, nnz) + 4 * 8 * side * side + 2 * side * nnz * 16


def busiest(costs: Mapping[int, int], slots: int) -> int:
    """Return the cost of what the busiest of `slots` workers does, each taking the dearest task that is left.

    Parameters
    ----------
    costs
        How many tasks there are of each cost.
    """
    loads = [0] * slots
    for cost in sorted(costs, reverse=True):
        for _ in range(costs[cost]):
            heapq.heapreplace(loads, loads[0] + cost)
    return max(loads)


def _balanced_side(metrics: Sequence[Metric], largest: Sequence[int], rows: int, slots: int) -> int:
    """Return the chunks on the side of a tile with which the busiest worker is done first."""
    if chunk_count(rows) <= _SMALL:
        return 1
    found: list[tuple[int, int]] = []
    for side in _sides(chunk_count(rows), max(largest)):
        costs: Counter[int] = Counter()
        for metric, most in zip(metrics, largest, strict=True):
            costs += _costs(metric, rows, min(side, most))
        late = max(costs) // _LATE if slots > 1 else 0
        found.append((busiest(costs, slots) + late, side))
        if costs.total() > _MOST_TASKS * slots:
            break
    return min(found)[1]


def _sides(chunks: int, largest: int) -> Iterable[int]:
    """Sides that cut so many chunks into parts that are as equal as can be, the largest first."""
    sides = (max(_UNCUT, -(-chunks // parts)) for parts in range(1, chunks + 1))
    return dict.fromkeys([largest, *(side for side in sides if side < largest)])


def _costs(metric: Metric, rows: int, side: int) -> Counter[int]:
    """Return how many tiles of each cost a whole matrix has: the last of each row are smaller."""
    parts = -(-chunk_count(rows) // side)
    width, last = side * CHUNK_ROWS, rows - (parts - 1) * side * CHUNK_ROWS

    def cost(tile: Tile) -> int:
        return PlannedTile(0, metric, tile).cost

    counts: Counter[int] = Counter({cost(Tile(0, last, 0, last)): 1})
    if parts > 1:
        counts[cost(Tile(0, width, 0, width))] += parts - 1
        counts[cost(Tile(0, width, width, width + last))] += parts - 1
        counts[cost(Tile(0, width, width, 2 * width))] += (parts - 1) * (parts - 2) // 2
    return counts
