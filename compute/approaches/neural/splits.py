"""Which rows the neural approach trains on, holds out, and predicts; groups stay together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from compute.approaches.groups import units_of
from compute.approaches.neural.options import NeuralOptions

FEWEST_ROWS = 3
"""With two adapters each has one source, and nothing to learn."""


def fold_of_rows(
    number: int, options: NeuralOptions, groups: Sequence[str | None] | None = None
) -> NDArray[np.intp]:
    """Fold of each of N rows for `cross-fitted`; shape (N,).

    The groups, or rows without one, are permuted by the seed; then the largest come first, and each goes to
    the fold with the fewest rows.

    Raises
    ------
    ParameterError
        For fewer rows or groups than folds.
    """
    units = _units(np.arange(number), groups, number)
    if len(units) < options.folds:
        raise ParameterError(
            f"folds: expected at most {len(units)}, the number of datasets or groups, found {options.folds};"
            " use fewer folds or add adapters to the bank"
        )
    units = [units[k] for k in options.generator("folds").permutation(len(units))]
    fold = np.empty(number, dtype=np.intp)
    sizes = np.zeros(options.folds, dtype=np.intp)
    for unit in sorted(units, key=len, reverse=True):
        smallest = int(np.argmin(sizes))
        fold[unit] = smallest
        sizes[smallest] += len(unit)
    return fold


def hold_out(
    rows: NDArray[np.intp], number: int, options: NeuralOptions, groups: Sequence[str | None] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Cut training rows, ascending ones of N, into fitted and held-out ones, both ascending.

    Groups, or rows without one, are taken in an order by the seed as long as the share is not exceeded, or
    the smallest where any exceeds it.

    Raises
    ------
    ParameterError
        Where too few rows are left to fit.
    """
    if options.held_out_share == 0.0:
        return rows, rows[:0]
    units = _units(rows, groups, number)
    units = [units[k] for k in options.generator("held-out").permutation(len(units))]
    wanted = max(1, round(options.held_out_share * len(rows)))
    taken: list[NDArray[np.intp]] = []
    for unit in units:
        if sum(map(len, taken)) + len(unit) <= wanted:
            taken.append(unit)
    held_out = np.sort(np.concatenate(taken or [min(units, key=len)]))
    fitted = np.setdiff1d(rows, held_out)
    if len(fitted) < FEWEST_ROWS:
        raise ParameterError(
            f"held_out: expected at least {FEWEST_ROWS} of {len(rows)} training adapters left to fit, found"
            f" {len(fitted)} besides {len(held_out)} held out; add adapters to the bank, or take another --approach"
        )
    return fitted, held_out


def _units(
    rows: NDArray[np.intp], groups: Sequence[str | None] | None, number: int
) -> list[NDArray[np.intp]]:
    """Rows that must stay together, in the order of their first row."""
    if groups is None:
        return [np.array([row]) for row in rows]
    if len(groups) != number:
        raise ParameterError(
            f"groups: expected one for each of {number} datasets, found {len(groups)}; use None for no group"
        )
    units = units_of([groups[row] for row in rows], "group")
    order = np.argsort(units, kind="stable")
    return np.split(rows[order], np.cumsum(np.bincount(units))[:-1])
