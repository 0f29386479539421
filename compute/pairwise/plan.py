"""Plans of distance matrices: tiles of all metrics together, as large as memory and balance allow.

A larger tile reads and transforms each of its datasets for more pairs; smaller ones are shared out more evenly.
Integers alone: nothing here knows arrays, files or Dask.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bankdb.errors import PlanError
from compute.budget import mebibytes, roomy
from compute.metrics.base import Metric

# Rows and columns of a chunk of the stored distance matrix; a tile is a square of whole chunks.
CHUNK_ROWS = 64

# A tile on the diagonal costs this share of one above it, in hundredths: half of it is a mirror.
DIAGONAL_HUNDREDTHS = 55
# What a task takes beside pairs and datasets, opening arrays and writing chunks, in pairs.
_TASK_PAIRS = 10_000
# A pair of the dearest metric, for each of its ids. A dense transform costs as an eighth of the vocabulary would.
_ID_SECONDS = 2e-9
# Chunks on the side of a tile that are not cut to keep more workers busy: it takes less than a second.
_UNCUT = 4
# A bank of so few has tiles of one chunk: it takes no time anyway, and what is done when a run is killed is more than
# nothing. Up to 256 datasets tiles, and so the last digits of distances, are the same on whatever workers.
_SMALL = 2
# Plans with more tasks than this for each worker are not looked at: they are balanced, whatever they are.
_MOST_TASKS = 16
# Costs are estimates, and workers not equally fast: plans are compared as if one took 5 / 4 of the time.
_SLOW = (5, 4)


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
    def side(self) -> int:
        """Datasets on the longer side."""
        tile = self.tile
        return max(tile.row_stop - tile.row_start, tile.column_stop - tile.column_start)

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
    def pair_hundredths(self) -> int:
        """Hundredths of pairs that the tile's time goes with, beside its datasets."""
        return self.area * (DIAGONAL_HUNDREDTHS if self.tile.diagonal else 100)

    @property
    def cost(self) -> int:
        """Its time against other tiles', of whatever metric: a hundredth of a pair of the dearest metric is 1."""
        pairs = self.pair_hundredths + 100 * self.metric.dataset_pairs * self.datasets
        return round(self.metric.relative_cost * pairs) + 100 * _TASK_PAIRS


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
    largest = [_largest_side(metric, rows, vocabulary, nnz, budget) for metric in metrics]
    sides = _balanced_sides(metrics, largest, rows, slots)
    planned = [
        PlannedTile(index, metric, tile)
        for index, (metric, missing) in enumerate(matrices)
        for tile in cover(rows, missing, sides[index])
    ]
    return tuple(sorted(planned, key=lambda piece: piece.cost, reverse=True))


def expected_seconds(planned: Sequence[PlannedTile], new: Sequence[int], vocabulary: int, nnz: int) -> float:
    """Return about what one process takes for tiles, reading and writing left out: good to a factor of two.

    Parameters
    ----------
    new
        Of each matrix, how many datasets have no distances yet: the others' to each other are kept.
    """
    seconds = 0.0
    for piece in planned:
        metric, fresh = piece.metric, new[piece.matrix]
        computed = min(piece.pair_hundredths / 100, fresh * piece.datasets)
        ids = nnz if fresh <= metric.few_targets else max(nnz, vocabulary // 8)
        seconds += (
            metric.relative_cost * (computed + metric.dataset_pairs * piece.datasets) * ids * _ID_SECONDS
        )
    return seconds


def tile_bytes(metric: Metric, side: int, vocabulary: int, nnz: int) -> int:
    """Return the bytes that the task of a square tile uses, `nnz` being the largest support of a dataset."""
    # The block and its mirror, what is stored of both, and the counts of both sides.
    return metric.workspace_bytes(side, side, vocabulary, nnz) + 4 * 8 * side * side + 2 * side * nnz * 16


def _largest_side(metric: Metric, rows: int, vocabulary: int, nnz: int, budget: int) -> int:
    """Return the chunks on the side of the largest tile, whose memory is kept for the next if that costs little."""
    workspace = functools.partial(tile_bytes, metric, vocabulary=vocabulary, nnz=nnz)
    largest = largest_side(rows, budget=budget, workspace=workspace)
    if largest <= _UNCUT:
        return largest
    return max(_UNCUT, largest_side(rows, budget=roomy(budget), workspace=workspace))


def busiest(costs: Mapping[int, int], slots: int, slow: tuple[int, int] = (1, 1)) -> int:
    """Return the cost of what the busiest of `slots` workers does, each taking the dearest task that is left.

    Parameters
    ----------
    costs
        How many tasks there are of each cost.
    slow
        What one of the workers takes for a task, as a fraction of what the others do.
    """
    times, usual = slow
    loads = [(0, worker) for worker in range(slots)]
    for cost in sorted(costs, reverse=True):
        for _ in range(costs[cost]):
            load, worker = loads[0]
            heapq.heapreplace(loads, (load + cost * (usual if worker else times), worker))
    return -(-max(loads)[0] // usual)


def _balanced_sides(metrics: Sequence[Metric], largest: Sequence[int], rows: int, slots: int) -> list[int]:
    """Return for each metric the chunks on the side of a tile with which the busiest worker is done first.

    Few workers have least to do where some matrices are not cut at all, and the rest is shared out evenly. Looked for
    from no cut at all, and from the best that all metrics have alike.
    """
    if chunk_count(rows) <= _SMALL:
        return [1] * len(metrics)
    cuts = _cuts(metrics, largest, rows, slots)

    def cost(chosen: Sequence[int]) -> int:
        costs = sum((cuts[cut][1][metric] for metric, cut in enumerate(chosen)), Counter[int]())
        return busiest(costs, slots, _SLOW if slots > 1 else (1, 1))

    alike = min(([cut] * len(metrics) for cut in range(len(cuts))), key=cost)
    chosen = min((_improved(start, len(cuts), cost) for start in ([0] * len(metrics), alike)), key=cost)
    return [min(cuts[cut][0], most) for cut, most in zip(chosen, largest, strict=True)]


def _improved(start: Sequence[int], cuts: int, cost: Callable[[Sequence[int]], int]) -> list[int]:
    """Return the choice that costs no less with one metric cut otherwise, going on from `start` in such steps."""
    chosen, least, improved = list(start), cost(start), len(start) > 1
    while improved:
        improved = False
        for metric, cut in itertools.product(range(len(chosen)), range(cuts)):
            other = [*chosen[:metric], cut, *chosen[metric + 1 :]]
            if (cost_of_other := cost(other)) < least:
                chosen, least, improved = other, cost_of_other, True
    return chosen


def _cuts(
    metrics: Sequence[Metric], largest: Sequence[int], rows: int, slots: int
) -> list[tuple[int, list[Counter[int]]]]:
    """Return sides to choose from, the largest first, each with the costs of each metric's tiles."""
    choices = []
    for side in _sides(chunk_count(rows), max(largest)):
        costs = [_costs(metric, rows, min(side, most)) for metric, most in zip(metrics, largest, strict=True)]
        choices.append((side, costs))
        if sum(each.total() for each in costs) > _MOST_TASKS * slots:
            break
    return choices


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


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the distance matrix on or above the diagonal, in rows of the bank, half-open.

    The task of a tile computes its mirror below the diagonal too.
    """

    row_start: int
    row_stop: int
    column_start: int
    column_stop: int

    @property
    def diagonal(self) -> bool:
        """Whether the tile is its own mirror."""
        return self.row_start == self.column_start

    @property
    def name(self) -> str:
        """A name that is unique in a plan, and sorts by place."""
        return f"{self.row_start:06d}-{self.column_start:06d}-{self.row_stop - self.row_start}"

    def chunks(self) -> Iterator[tuple[int, int]]:
        """The chunks on and above the diagonal that the tile covers, by chunk number."""
        for i in range(self.row_start // CHUNK_ROWS, -(-self.row_stop // CHUNK_ROWS)):
            for j in range(self.column_start // CHUNK_ROWS, -(-self.column_stop // CHUNK_ROWS)):
                if i <= j:
                    yield i, j


def chunk_count(rows: int) -> int:
    """Return how many chunks of the distance matrix cover `rows` rows."""
    return -(-rows // CHUNK_ROWS)


def largest_side(rows: int, *, budget: int, workspace: Callable[[int], int]) -> int:
    """Return the chunks on the side of the largest tile that fits, at most those of the whole matrix.

    Parameters
    ----------
    budget
        Bytes that one task may use.
    workspace
        Bytes that a task of a square tile of so many rows uses; it does not fall as tiles grow.

    Raises
    ------
    PlanError
        Not even a tile of one chunk fits the budget.
    """
    smallest = min(CHUNK_ROWS, rows)
    if workspace(smallest) > budget:
        raise PlanError(
            f"a tile of {smallest} datasets needs {mebibytes(workspace(smallest))}, but a task may use "
            f"{mebibytes(budget)}; raise --memory, or lower --workers"
        )
    sides = range(1, chunk_count(rows) + 1)
    return bisect_right(sides, budget, key=lambda side: workspace(min(side * CHUNK_ROWS, rows)))


def cover(rows: int, missing: Collection[tuple[int, int]], side: int) -> tuple[Tile, ...]:
    """Return the tiles of `side` chunks that hold a missing chunk on or above the diagonal; each chunk is in one.

    Of a tile above the diagonal that lacks whole rows of chunks, or whole columns, as one does when adapters are added,
    these alone: its other chunks would be read and written as they are.
    """
    lacking: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for i, j in missing:
        lacking.setdefault((i // side * side, j // side * side), set()).add((i, j))
    return tuple(_tile(i, j, side, rows, lacking[i, j]) for i, j in sorted(lacking))


def _tile(i: int, j: int, side: int, rows: int, missing: Collection[tuple[int, int]]) -> Tile:
    chunks = chunk_count(rows)
    downwards, across = range(i, min(i + side, chunks)), range(j, min(j + side, chunks))
    if i != j:
        first, second = (sorted({chunk[axis] for chunk in missing}) for axis in (0, 1))
        bands = range(first[0], first[-1] + 1), range(second[0], second[-1] + 1)
        if len(missing) == len(bands[0]) * len(bands[1]) and (bands[0] == downwards or bands[1] == across):
            downwards, across = bands

    def edge(block: int) -> int:
        return min(block * CHUNK_ROWS, rows)

    return Tile(edge(downwards.start), edge(downwards.stop), edge(across.start), edge(across.stop))
