"""Plans of integers: which tiles of D and which panels of C @ Theta make up the work, and their memory.

Nothing here knows arrays, files or Dask; a plan can be tested without running it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from bankdb.errors import PlanError

# Rows and columns of a chunk of the stored distance matrix; a tile is a square of whole chunks.
CHUNK_ROWS = 64
# Rows of a shard of the stored predictions; a panel is made of whole shards.
SHARD_ROWS = 16
# Targets multiplied at once, where the sources are held: more make the matrix product hardly faster, and fewer
# not much slower, so that two blocks take an eighth of the budget at the most where there is a smaller one.
_BLOCKS = (128, 64, 32, SHARD_ROWS)
_BLOCKS_SHARE = 8
# Sources read at once, where they are not held: more of them make the matrix product no faster.
_LARGEST_BATCH = 64
# Targets of a stored chunk of coefficients.
COEFFICIENT_ROWS = 1024
# Columns multiplied at once where coefficients are sparse: those of all sources stay in cache.
SPARSE_STRIP = 2048
# Columns between rows of large arrays that are multiplied: rows apart by a power of two are in each other's way in
# the cache, and a product takes 15% longer.
ROW_GAP = 1040


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


@dataclass(frozen=True, slots=True)
class Panel:
    """Columns of the predictions, for a range of targets; both half-open, both of whole shards.

    Attributes
    ----------
    start, stop
        Columns.
    target_start, target_stop
        Targets.
    held
        Whether all sources are held in memory while the targets pass, in blocks: one block is written while
        the next is multiplied.
    batch
        Sources read at once.
    block
        Targets multiplied at once, whole shards.
    """

    start: int
    stop: int
    target_start: int
    target_stop: int
    held: bool
    batch: int
    block: int

    @property
    def name(self) -> str:
        """A name that says what the panel holds, the same in every plan that has this panel."""
        return f"{self.start}-{self.stop}-{self.target_start}-{self.target_stop}"


@dataclass(frozen=True, slots=True)
class PanelPart:
    """The targets of one run in a panel, half-open; `name` is the same in every plan that has this part."""

    group: int
    start: int
    stop: int
    name: str


def roomy(budget: int) -> int:
    """Return the bytes of a budget that tasks use at the most where workers keep what these free for the next.

    The rest is for arrays that do not fit where others were.
    """
    return budget * 3 // 4


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
            f"a tile of {smallest} datasets needs {_mib(workspace(smallest))}, but a task may use "
            f"{_mib(budget)}; raise --memory, or lower --workers"
        )
    sides = range(1, chunk_count(rows) + 1)
    return bisect_right(sides, budget, key=lambda side: workspace(min(side * CHUNK_ROWS, rows)))


def cover(rows: int, missing: Collection[tuple[int, int]], side: int) -> tuple[Tile, ...]:
    """Return the tiles of `side` chunks that hold a missing chunk on or above the diagonal; each chunk is in one."""
    edges = sorted({(i // side * side, j // side * side) for i, j in missing})
    return tuple(_tile(i, j, side, rows) for i, j in edges)


def _tile(i: int, j: int, side: int, rows: int) -> Tile:
    def edge(block: int) -> int:
        return min(block * CHUNK_ROWS, rows)

    return Tile(edge(i), edge(i + side), edge(j), edge(j + side))


def panel_bytes(block: int, batch: int, sources: int, chunk: int, *, blocks: int = 2) -> int:
    """Return the bytes that the task of a panel uses.

    Parameters
    ----------
    block, batch
        Targets multiplied and sources read at once.
    sources
        N: those that a target may have.
    chunk
        Columns.
    blocks
        Blocks there at a time: 2, one in the writer's hands, or 1 where the panel has no other.
    """
    # In the hands of reader and writer: a chunk raw and decoded, one padded and compressed.
    rows = blocks * block + batch + 4
    # Coefficients with what is made of them, and the stored chunk that they come from.
    coefficients = 4 * (3 * block + 2 * COEFFICIENT_ROWS) * sources
    sparse = 4 * min(SPARSE_STRIP, chunk) * (batch + block)
    return 4 * (chunk + ROW_GAP) * rows + coefficients + sparse


def plan_panels(targets: int, sources: int, parameters: int, *, chunk: int, budget: int) -> tuple[Panel, ...]:
    """Cut the targets x parameters predictions into panels that fit the budget, each entry once.

    Panels are a chunk wide. Where a chunk of all sources fits, it is held while blocks of targets pass, however
    many. Where it does not, targets are taken in ranges of whole shards, at the cost of reading the sources
    in batches once for each range.

    Parameters
    ----------
    targets, sources, parameters
        The shape of the product.
    chunk
        Columns of a stored chunk.
    budget
        Bytes that one task may use, as `panel_bytes` counts them.

    Raises
    ------
    PlanError
        Not even one shard of targets fits the budget.
    """
    for largest in _BLOCKS:
        block = min(largest, targets)
        if largest > SHARD_ROWS and 2 * 4 * chunk * block > budget // _BLOCKS_SHARE:
            continue
        if panel_bytes(block, sources, sources, chunk) <= budget:
            held, height, batch = True, targets, sources
            break
    else:
        height, batch = _plan_ranges(targets, sources, chunk, budget)
        held, block = False, height
    return tuple(
        Panel(start, min(start + chunk, parameters), first, min(first + height, targets), held, batch, block)
        for start in range(0, parameters, chunk)
        for first in range(0, targets, height)
    )


def _plan_ranges(targets: int, sources: int, chunk: int, budget: int) -> tuple[int, int]:
    """Return targets of a range and sources of a batch, where the sources do not fit."""
    least = min(targets, SHARD_ROWS)
    smallest = panel_bytes(least, 1, sources, chunk, blocks=1)
    if smallest > budget:
        raise PlanError(
            f"a panel of {least} targets needs {_mib(smallest)}, but a task may use {_mib(budget)}; "
            "raise --memory, or lower --workers"
        )
    room = budget - smallest
    # Another source, or target, costs its columns, and its share of a sparse product.
    each = 4 * (chunk + ROW_GAP + min(SPARSE_STRIP, chunk))
    # A quarter of what is left goes to the sources, the rest to more targets.
    batch = 1 + min(sources - 1, _LARGEST_BATCH - 1, room // 4 // each)
    height = least + (room - each * (batch - 1)) // (each + 12 * sources)
    return targets if height >= targets else height // SHARD_ROWS * SHARD_ROWS, batch


def padded(targets: int) -> int:
    """Return the rows that a run takes where runs are counted through: whole shards."""
    return -(-targets // SHARD_ROWS) * SHARD_ROWS


def split_panel(panel: Panel, targets: int, groups: int) -> tuple[PanelPart, ...]:
    """Cut a panel whose targets count through several runs into the part of each run.

    Parameters
    ----------
    targets
        Targets of each run.
    groups
        Number of runs.
    """
    parts = []
    for group in range(groups):
        first = group * padded(targets)
        start, stop = max(panel.target_start - first, 0), min(panel.target_stop - first, targets)
        if start < stop:
            parts.append(PanelPart(group, start, stop, f"{panel.start}-{panel.stop}-{start}-{stop}"))
    return tuple(parts)


def plan_slices(parameters: int, rows: int, *, chunk: int, budget: int, pieces: int) -> tuple[range, ...]:
    """Cut the columns into slices of whole chunks, for sums over all columns of `rows` rows.

    Parameters
    ----------
    pieces
        How many slices there should be at least, where there are chunks enough.

    Raises
    ------
    PlanError
        The N x N sum and one chunk of every row do not fit the budget.
    """
    needed = slice_bytes(rows, chunk, 1)
    if needed > budget:
        raise PlanError(
            f"the Gram matrix of {rows} adapters needs {_mib(needed)} in a task, which may use {_mib(budget)}; "
            "raise --memory, or lower --workers"
        )
    chunks = -(-parameters // chunk)
    each = max(1, chunks // max(1, pieces)) * chunk
    return tuple(range(start, min(start + each, parameters)) for start in range(0, parameters, each))


def reads_ahead(rows: int, *, chunk: int, budget: int) -> bool:
    """Return whether a task that sums over columns may hold two chunks of every row, one being read."""
    return slice_bytes(rows, chunk, 2) <= budget


def slice_bytes(rows: int, chunk: int, held: int) -> int:
    """Return the bytes that a task uses which sums over columns, holding so many chunks of every row."""
    # The sum, and while it is stored two copies of it; before that, the sum over a chunk and over a strip.
    return 3 * 8 * rows * rows + 4 * chunk * (held * rows + 2)


def following(slices: Sequence[range], index: int, slots: int) -> tuple[int, int]:
    """Return the columns that a worker is likely to be given after slice `index`, half-open; (0, 0) after the last."""
    later = index + slots
    return (slices[later].start, slices[later].stop) if later < len(slices) else (0, 0)


def contiguous(values: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """Return the positions in ascending `values` that lie in [start, stop), half-open."""
    return bisect_left(values, start), bisect_left(values, stop)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
