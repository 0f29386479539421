"""Temperature and top-k fitted in weight space on the bank's own rows, nested.

Every row of the bank is predicted from the others with each setting of a grid, and its squared error is
`e G e^T` with e = its coefficients minus its own unit vector: the Gram matrix is all that is needed. For a row
that is itself predicted, the setting with the smallest mean error is chosen over the rows outside of its unit
(itself, or its group), each predicted without the sources of that unit. So the choice reads neither the
adapter of the row nor those of its group: changing them does not change its coefficients. For a new dataset,
all rows of the bank are used.

Two scales are tried: z-scores of each row, as the approach `normalized` of arXiv 2507.01806 (C.1.4), and
distances divided by one standard deviation for the whole bank. The first gives every target equally sharp
coefficients; the second sharper ones to targets with near sources. Standard deviations are of distances only,
and over all sources of a row: no adapter has a part in them.

Selecting by leave-one-out error is Stone (1974), Cross-validatory choice; nesting it is Varma and Simon
(2006), Bias in error estimation when using cross-validation for model selection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from compute.approaches.by_distance import check_distances, coefficients, softmin, z_scores
from compute.approaches.groups import same_unit
from compute.approaches.oracle import checked_gram
from compute.types import FloatArray

SCALES = ("row", "bank")
TEMPERATURES = (100.0, 20.0, 7.0, 3.5, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.2, 0.1, 0.05)
TOP_K = (None, 10, 3, 1)
TIE = 1e-9
"""Losses closer than this are equal; of equal ones the first of the grid is chosen, which mixes most."""
DOMINANT = 0.5
"""Where sources that are left out had more of a row's weight than this, the row is computed anew."""
ENTRIES_AT_ONCE = 2**21


_Point = TypeVar("_Point")


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the grid.

    Attributes
    ----------
    scale
        `row`: z-scores of the row; `bank`: distances over their standard deviation in the whole bank.
    temperature
        Divides them before the softmin.
    top_k
        Largest coefficients that are kept; None for all.
    """

    scale: str
    temperature: float
    top_k: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """What was chosen for a bank of N datasets.

    Attributes
    ----------
    settings
        Of each row, for leave-one-out; empty for a bank of fewer than three units.
    overall
        For a new dataset.
    spread
        Standard deviation of the bank's distances, by which those of the scale `bank` are divided.
    """

    settings: tuple[Setting, ...]
    overall: Setting
    spread: float


def default_grid() -> list[Setting]:
    """All settings, those that mix most first."""
    return [Setting(scale, t, k) for t in TEMPERATURES for k in TOP_K for scale in SCALES]


def fit(
    distances: FloatArray,
    gram: FloatArray,
    units: NDArray[np.intp],
    grid: Sequence[Setting] | None = None,
    *,
    nested: bool = True,
) -> Tuned:
    """Choose a setting for each row of a bank, and one for new datasets.

    Parameters
    ----------
    distances
        Shape (N, N): rows are targets. Entries within a unit are not read.
    gram
        Shape (N, N): inner products of the adapters.
    units
        Shape (N,): number from 0 on of what each row is left out with.
    grid
        Settings to try; of equally good ones the first is chosen.
    nested
        Whether to choose for each row too; for a new dataset alone it takes far less time.

    Raises
    ------
    ParameterError
        For fewer than two units.
    ComputeError
        For a distance that is needed and is negative, infinite or NaN, or a Gram matrix that is damaged.
    """
    if grid is None:
        grid = [point for point in default_grid() if point.top_k is None or point.top_k < len(units) - 1]
    losses, spread = nested_losses(distances, gram, units, grid, nested=nested)
    return Tuned(*least_of(grid, losses, units), spread)


def least_of(
    grid: Sequence[_Point], losses: FloatArray, units: NDArray[np.intp]
) -> tuple[tuple[_Point, ...], _Point]:
    """Return the point of the grid with the least loss for each row, none if nothing is nested, and over all.

    Of points that are equal up to rounding it is the first. Losses have shape (points, units + 1) or (points, 1).
    """
    least = losses.min(axis=0)
    best = [grid[index] for index in np.argmax(losses <= least * (1 + TIE), axis=0)]
    rows = tuple(best[unit] for unit in units.tolist()) if losses.shape[1] > 1 else ()
    return rows, best[-1]


def apply(setting: Setting, spread: float, distances: FloatArray, excluded: NDArray[np.bool_]) -> FloatArray:
    """Coefficients of M targets over N sources by one setting; shape (M, N), rows sum to 1."""
    approach, unit = ("normalized", 1.0) if setting.scale == "row" else ("attentional", spread)
    return coefficients(
        distances, excluded, approach, temperature=setting.temperature * unit, top_k=setting.top_k
    )


def leave_one_out(distances: FloatArray, units: NDArray[np.intp], tuned: Tuned) -> FloatArray:
    """Coefficients of each row over the sources outside of its unit, by its own setting; shape (N, N)."""
    if not tuned.settings:
        raise too_few("tuning", int(units.max(initial=0)) + 1, 3)
    excluded, weights = same_unit(units), np.zeros(distances.shape)
    for setting in dict.fromkeys(tuned.settings):
        rows = [row for row, own in enumerate(tuned.settings) if own == setting]
        weights[rows] = apply(setting, tuned.spread, distances[rows], excluded[rows])
    return weights


def nested_losses(
    distances: FloatArray,
    gram: FloatArray,
    units: NDArray[np.intp],
    grid: Sequence[Setting],
    *,
    nested: bool = True,
) -> tuple[FloatArray, float]:
    """Mean squared error of the rows outside of each unit, predicted without its sources; and the spread.

    Returns
    -------
    Shape (settings, units + 1): the last column is with nothing left out. Where it is not nested, or there are
    two units, of which nothing is left of one without the other, it is the only column.
    """
    distances, gram = np.asarray(distances, dtype=np.float64), checked_gram(gram)
    used = ~same_unit(units)
    number = int(units.max(initial=-1)) + 1
    if number < 2:
        raise too_few("tuning", number, 2)
    check_distances(distances, used)
    means = gram.mean(axis=1)
    rows = _Rows(distances, gram - means[:, None] - means + means.mean(), units, number, used)
    return np.stack([rows.losses(setting, nested and number > 2) for setting in grid]), rows.spread


def too_few(fitted: str, found: int, needed: int) -> ParameterError:
    """Return the error that says that a bank is too small to fit on."""
    return ParameterError(
        f"{fitted}: expected at least {needed} adapters or groups to fit on, found {found}; ingest more, or "
        "take an approach that is not fitted, such as --approach normalized"
    )


class _Rows:
    """All rows of a bank as targets, each over the sources outside of its own unit."""

    def __init__(
        self,
        distances: FloatArray,
        gram: FloatArray,
        units: NDArray[np.intp],
        number: int,
        used: NDArray[np.bool_],
    ) -> None:
        self.gram, self.units, self.number, self.used = gram, units, number, used
        deviation = float(np.std(distances[used]))
        self.spread = deviation if deviation > 0 else 1.0
        self.scores = {
            "row": np.where(used, z_scores(distances, used), 0.0),
            "bank": np.where(used, distances / self.spread, 0.0),
        }
        # Sources of each row, nearest first; those of its own unit come last.
        self.order = np.argsort(np.where(used, distances, np.inf), axis=1, kind="stable")
        self.members = np.zeros((len(units), number))
        self.members[np.arange(len(units)), units] = 1.0
        self.largest_unit = int(np.bincount(units).max())

    def losses(self, setting: Setting, nested: bool) -> FloatArray:
        """Mean loss with each unit left out, if nested, and with none; shape (units + 1,) or (1,)."""
        everything = np.arange(len(self.units))
        whole = self._anew(setting, everything, np.full(len(everything), -1))
        if not nested:
            return np.array([whole.mean()])
        if setting.top_k is None:
            without = self._all_sources(setting)
        else:
            without = np.repeat(whole[:, None], self.number, axis=1)
            nearest = self.units[self.order[:, : setting.top_k]]
            self._replace(without, setting, np.repeat(everything, nearest.shape[1]), nearest.ravel())
        inside = self.members > 0
        sums = np.sum(without, axis=0, where=~inside)
        return np.append(sums / (~inside).sum(axis=0), whole.mean())

    def _all_sources(self, setting: Setting) -> FloatArray:
        """Loss of each row with each unit left out, where all sources are kept; shape (N, units).

        Leaving out sources with the weights w_U turns w into v = w - w_U, divided by its sum 1 - s. With
        a = w G: `v G v = w G w - 2 w_U a_U + w_U G w_U` and `v G_t = a_t - w_U G_Ut`.
        """
        w = softmin(self.scores[setting.scale], self.used, setting.temperature)
        a = w @ self.gram
        own = self.gram.diagonal()
        at_target = a.diagonal()
        quadratic = np.einsum("ij,ij->i", a, w)
        left_out = np.stack([self._within(w, unit) for unit in range(self.number)], axis=1)
        remaining = 1.0 - w @ self.members
        numerator = quadratic[:, None] - 2.0 * ((w * a) @ self.members) + left_out
        cross = at_target[:, None] - (w * self.gram) @ self.members
        with np.errstate(divide="ignore", invalid="ignore"):
            without: FloatArray = numerator / remaining**2 - 2.0 * cross / remaining + own[:, None]
        targets, dominant = np.nonzero((remaining < 1.0 - DOMINANT) & (self.members == 0))
        self._replace(without, setting, targets, dominant)
        return without

    def _within(self, w: FloatArray, unit: int) -> FloatArray:
        rows = np.flatnonzero(self.units == unit)
        part = w[:, rows]
        inside: FloatArray = np.einsum("ij,ij->i", part @ self.gram[np.ix_(rows, rows)], part)
        return inside

    def _replace(
        self, without: FloatArray, setting: Setting, targets: NDArray[np.intp], left_out: NDArray[np.intp]
    ) -> None:
        """Compute these pairs of target and unit left out anew, in place; a target's own unit is passed over."""
        pairs = np.unique(targets * self.number + left_out)
        targets, left_out = pairs // self.number, pairs % self.number
        other = self.units[targets] != left_out
        targets, left_out = targets[other], left_out[other]
        if len(targets):
            without[targets, left_out] = self._anew(setting, targets, left_out)

    def _anew(self, setting: Setting, targets: NDArray[np.intp], left_out: NDArray[np.intp]) -> FloatArray:
        """Loss of each target with one unit left out, -1 for none; shape (pairs,)."""
        losses = np.empty(len(targets))
        for part in _parts(len(targets), len(self.units)):
            target, unit = targets[part], left_out[part, None]
            if setting.top_k is None:
                kept = self.used[target] & (self.units != unit)
                w = softmin(self.scores[setting.scale][target], kept, setting.temperature)
            else:
                w = self._largest(setting, target, unit)
            a = w @ self.gram
            at_target = a[np.arange(len(target)), target]
            losses[part] = np.einsum("ij,ij->i", a, w) - 2.0 * at_target + self.gram[target, target]
        return losses

    def _largest(self, setting: Setting, target: NDArray[np.intp], left_out: NDArray[np.intp]) -> FloatArray:
        """Softmin over the nearest sources that are not left out; shape (pairs, N)."""
        assert setting.top_k is not None, "for settings that keep some"
        sources = self.order[target, : setting.top_k + self.largest_unit]
        kept = self.used[target[:, None], sources] & (self.units[sources] != left_out)
        kept &= np.cumsum(kept, axis=1) <= setting.top_k
        scores = self.scores[setting.scale][target[:, None], sources]
        weights = np.zeros((len(target), len(self.units)))
        np.put_along_axis(weights, sources, softmin(scores, kept, setting.temperature), axis=1)
        return weights


def _parts(number: int, entries: int) -> Iterator[slice]:
    """Slices of pairs, of this many entries each, that together stay small."""
    step = max(1, ENTRIES_AT_ONCE // max(entries, 1))
    return (slice(start, start + step) for start in range(0, number, step))
