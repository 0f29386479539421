"""The Gram matrix in slices of columns, planned of integers before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from bankdb.errors import PlanError
from compute.budget import mebibytes

# Slices of the columns that the Gram matrix is summed over, whatever it is run on, so that a run goes on elsewhere.
GRAM_PIECES = 12


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
            f"the Gram matrix of {rows} adapters needs {mebibytes(needed)} in a task, which may use "
            f"{mebibytes(budget)}; raise --memory, or lower --workers"
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
