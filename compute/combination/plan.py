"""Plans of integers: which tiles of D and which panels of C @ Theta make up the work, and their memory.

Nothing here knows arrays, files or Dask; a plan can be tested without running it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bankdb.errors import PlanError
from compute.budget import mebibytes

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
            f"a panel of {least} targets needs {mebibytes(smallest)}, but a task may use {mebibytes(budget)}; "
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


def following(slices: Sequence[range], index: int, slots: int) -> tuple[int, int]:
    """Return the columns that a worker is likely to be given after slice `index`, half-open; (0, 0) after the last."""
    later = index + slots
    return (slices[later].start, slices[later].stop) if later < len(slices) else (0, 0)


@dataclass(frozen=True, slots=True)
class CombinationPlan:
    """C @ Theta of several runs over the same sources, in one pass over these.

    Attributes
    ----------
    targets
        Of each run; the sources are as many.
    """

    targets: int
    parameters: int
    runs: int
    panels: tuple[Panel, ...]

    def parts(self, panel: Panel) -> tuple[PanelPart, ...]:
        """Return the part of each run in a panel."""
        return split_panel(panel, self.targets, self.runs)

    @property
    def read(self) -> int:
        """Bytes that all tasks read where every source has a coefficient: sources, and the coefficients."""
        sources = sum(4 * (panel.stop - panel.start) * self.targets for panel in self.panels)
        rows = sum(
            (2 if panel.held else 1) * (part.stop - part.start)
            for panel in self.panels
            for part in self.parts(panel)
        )
        return sources + 4 * rows * self.targets

    @property
    def written(self) -> int:
        """Bytes of predictions that all tasks write."""
        return 4 * self.runs * self.targets * self.parameters

    @property
    def memory(self) -> int:
        """Bytes that the largest task uses."""
        return max(
            panel_bytes(panel.block, panel.batch, self.targets, panel.stop - panel.start)
            if panel.held
            else panel_bytes(
                panel.target_stop - panel.target_start,
                panel.batch,
                self.targets,
                panel.stop - panel.start,
                blocks=1,
            )
            for panel in self.panels
        )


def plan_combination(targets: int, parameters: int, runs: int, *, chunk: int, budget: int) -> CombinationPlan:
    """Plan the predictions of all targets from each other, of one or several runs at once.

    Raises
    ------
    PlanError
        Not even one shard of targets fits the budget.
    """
    rows = (runs - 1) * padded(targets) + targets
    panels = plan_panels(rows, targets, parameters, chunk=chunk, budget=budget)
    return CombinationPlan(targets, parameters, runs, panels)
