"""Plans of Gram matrix and combination: tasks, and their bytes and flops. What runs and what is forecast share them.

Integers alone: nothing here knows arrays, files or Dask. Bytes are those of the values, before compression.
"""

from __future__ import annotations

from dataclasses import dataclass

from compute.combination.plan import (
    Panel,
    PanelPart,
    padded,
    panel_bytes,
    plan_panels,
    plan_slices,
    reads_ahead,
    slice_bytes,
    split_panel,
)

# Slices of the columns that the Gram matrix is summed over, whatever it is run on, so that a run goes on elsewhere.
GRAM_PIECES = 12


@dataclass(frozen=True, slots=True)
class GramPlan:
    """The products of `new` adapters with all `adapters`, summed over slices of columns.

    Attributes
    ----------
    ahead
        Whether memory allows that a chunk of columns is read while the one before it is multiplied.
    memory
        Bytes that a task uses.
    """

    adapters: int
    new: int
    parameters: int
    slices: tuple[range, ...]
    ahead: bool
    memory: int

    @property
    def read(self) -> int:
        """Bytes of adapters that all tasks read."""
        return 4 * self.adapters * self.parameters

    @property
    def written(self) -> int:
        """Bytes of sums that all tasks write."""
        return 8 * len(self.slices) * self.new * self.adapters

    @property
    def flops(self) -> int:
        """Of all tasks: where every adapter is new, half of a symmetric product."""
        products = self.new * self.adapters * self.parameters
        return products if self.new == self.adapters else 2 * products


def plan_gram(adapters: int, new: int, parameters: int, *, chunk: int, budget: int) -> GramPlan:
    """Plan the products of K new adapters with all N, over p columns stored in chunks.

    Raises
    ------
    PlanError
        The N x N sum and one chunk of every row do not fit the budget.
    """
    slices = plan_slices(parameters, adapters, chunk=chunk, budget=budget, pieces=GRAM_PIECES)
    ahead = reads_ahead(adapters, chunk=chunk, budget=budget)
    return GramPlan(adapters, new, parameters, slices, ahead, slice_bytes(adapters, chunk, 2 if ahead else 1))


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
