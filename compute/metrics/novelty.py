"""Whether a new dataset is farther from a bank than the bank's own datasets are from each other.

Conformal novelty detection (Vovk, Gammerman and Shafer, 2005, Algorithmic Learning in a Random World, chapter 2), with
the distance to the nearest source for a score. Of n datasets that lie as the bank's own do, at most a share of `LEVEL`
is called novel, whatever the metric; each of the bank's is scored without its own group, as a new dataset has none.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.types import FloatArray

LEVEL = 0.05
"""A dataset is novel if no larger share of the bank's own, itself counted in, is as far from its nearest source."""
FEWEST = 10
"""Of fewer of the bank's datasets nothing is told; a verdict needs `1 / LEVEL - 1`."""
_TO_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Novelty:
    """Where a new dataset lies among the distances of a bank's datasets to their own nearest sources.

    Attributes
    ----------
    metric
        The metric's name, as people read it.
    nearest, source
        Distance of the new dataset to its nearest source, and that one's name.
    maximal
        Whether no source is nearer than the largest distance there is: they share no token.
    compared
        n, the bank's datasets that it is compared with; 0 where distances within the bank were not at hand, or
        fewer than `FEWEST`.
    nearer
        How many of these are nearer to their nearest source than the new dataset is.
    equally_far
        How many are not.
    groups_left_out
        Whether any of them has a group that was left out for it.
    """

    metric: str
    nearest: float
    source: str
    maximal: bool
    compared: int
    nearer: int
    groups_left_out: bool

    @property
    def equally_far(self) -> int:
        """See the class."""
        return self.compared - self.nearer

    @property
    def p_value(self) -> float | None:
        """`(1 + equally_far) / (n + 1)`; None where nothing is compared."""
        return (1 + self.equally_far) / (self.compared + 1) if self.compared else None

    @property
    def novel(self) -> bool:
        """Whether the distances say nothing: all are maximal, or the p-value is at most `LEVEL`."""
        return self.maximal or (self.p_value is not None and self.p_value <= LEVEL)

    def record(self) -> dict[str, Any]:
        """Return it as provenance has it; plain values."""
        return {
            "metric": self.metric,
            "nearest_source": self.source,
            "distance": self.nearest,
            "maximal": self.maximal,
            "compared_with": self.compared,
            "farther_than": self.nearer,
            "groups_left_out": self.groups_left_out,
            "p_value": self.p_value,
            "novel": self.novel,
        }

    def told(self) -> str:
        """Say in a line, without the dataset's name, what is novel about it; empty where it is not."""
        if not self.novel:
            return ""
        if self.maximal:
            found = (
                f"shares no token with any source: every distance by {self.metric} is {self.nearest:.4g}, the largest"
                " there is"
            )
        else:
            without = ", groups left out" if self.groups_left_out else ""
            found = (
                f"its nearest source by {self.metric}, {self.source}, is {self.nearest:.4g} away, farther than "
                f"{100 * self.nearer / self.compared:.0f}% of {self.compared} of the bank's datasets are from "
                f"their nearest{without}"
            )
        return f"{found}; the distances tell little of which adapters help: test the prediction before use"


def units_apart(groups: Sequence[str | None], contents: Sequence[Hashable]) -> NDArray[np.intp]:
    """Number of what each of N datasets must not be compared with: its group, and those of the same content.

    A dataset twice in a bank is nearest to itself, which no new dataset is. Returns shape (N,).
    """
    parents = list(range(len(groups)))

    def first(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for keys in (groups, contents):
        seen: dict[Hashable, int] = {}
        for index, key in enumerate(keys):
            if key is not None:
                one, other = first(index), first(seen.setdefault(key, index))
                parents[max(one, other)] = min(one, other)
    return np.asarray([first(index) for index in range(len(groups))], dtype=np.intp)


def nearest_of_others(
    distances: FloatArray, target_units: NDArray[np.intp], source_units: NDArray[np.intp]
) -> FloatArray:
    """Smallest distance of each of T targets to a source of another unit; shape (T,), infinite where there is none.

    Parameters
    ----------
    distances
        Shape (T, S).
    target_units, source_units
        Shapes (T,) and (S,): see `units_apart`.
    """
    apart = np.where(target_units[:, None] == source_units, np.inf, distances)
    nearest: FloatArray = apart.min(axis=1, initial=np.inf)
    return nearest


def novelty(
    metric: str,
    distances: Mapping[str, float],
    own: FloatArray,
    *,
    largest: float = np.inf,
    groups_left_out: bool = False,
) -> Novelty:
    """Compare a new dataset's nearest distance with the bank's own.

    Parameters
    ----------
    distances
        Of the new dataset to each source, by its name; at least one.
    own
        Of some of the bank's datasets, the distance to the nearest source that is not left out; infinite ones, which
        have none, are not counted.
    largest
        The largest distance that the metric knows.
    """
    source = min(distances, key=lambda name: distances[name])
    nearest, compared = distances[source], own[np.isfinite(own)]
    if len(compared) < FEWEST:
        compared = compared[:0]
    return Novelty(
        metric,
        float(nearest),
        source,
        bool(nearest >= largest * (1 - _TO_ROUNDING)),
        len(compared),
        int(np.count_nonzero(compared < nearest)),
        groups_left_out and bool(len(compared)),
    )
