"""How large a bank is needed: weight-space errors of predictions from random subsets of a bank.

The subsets of one draw are nested: the smaller are the beginnings of one random order. Every adapter of the
bank is a target of every subset, predicted from the subset without its own unit (itself, or its group), so
that the points of a curve differ in their sources alone. What is fitted (`tuned`, `ridge`) is fitted on the
rows of the subset. arXiv 2507.01806 leaves the question open.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ParameterError
from compute.approaches.coefficients import leave_one_out_coefficients, new_coefficients
from compute.approaches.groups import same_unit
from compute.approaches.options import PredictionOptions
from compute.approaches.weight_errors import weight_space_errors
from compute.evaluation.systems import System, system_of
from compute.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class SizeCurve:
    """Errors by the number of adapters in the bank.

    Attributes
    ----------
    sizes
        Numbers of adapters, ascending.
    relative
        Shape (draws, sizes): relative weight error, the mean over the targets that have a prediction.
    targets
        Shape (draws, sizes): how many targets have one. A small subset may leave none for a target whose group
        it is of, or too few to fit on.
    system
        What predicts.
    """

    sizes: tuple[int, ...]
    relative: FloatArray
    targets: NDArray[np.intp]
    system: System

    def __repr__(self) -> str:
        """Return the mean error at each size."""
        means = ", ".join(f"{size}: {mean:.4g}" for size, mean in zip(self.sizes, self.mean, strict=True))
        return f"SizeCurve {self.system.name}, {len(self.relative)} draws, mean relative error at {means}"

    @property
    def mean(self) -> FloatArray:
        """Mean over the draws; shape (sizes,), NaN for a size without a prediction."""
        return self._over_draws(np.mean, 1)

    @property
    def spread(self) -> FloatArray:
        """Standard deviation over the draws; shape (sizes,), NaN for fewer than two."""
        return self._over_draws(functools.partial(np.std, ddof=1), 2)

    def _over_draws(self, statistic: Callable[[FloatArray], Any], fewest: int) -> FloatArray:
        known = [values[~np.isnan(values)] for values in self.relative.T]
        return np.array([statistic(values) if len(values) >= fewest else np.nan for values in known])


def nested_subsets(number: int, sizes: Sequence[int], draws: int, seed: int) -> list[list[NDArray[np.intp]]]:
    """Rows of nested random subsets of N adapters, ascending: for each draw, one subset a size.

    Raises
    ------
    ParameterError
        For sizes that are not ascending or not in [1, N], and draws or a seed out of range.
    """
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > number:
        raise ParameterError(
            f"bank sizes: expected ascending numbers from 1 to {number}, the size of the bank, found"
            f" {', '.join(map(str, sizes)) or 'none'}; give others"
        )
    if draws < 1 or seed < 0:
        raise ParameterError(
            f"bank sizes: expected at least 1 draw and a seed from 0 on, found {draws} and {seed}; give others"
        )
    orders = [np.random.default_rng([seed, draw]).permutation(number) for draw in range(draws)]
    return [[np.sort(order[:size]) for size in sizes] for order in orders]


def bank_size_curve(
    options: PredictionOptions,
    distances: FloatArray | None,
    gram: FloatArray,
    units: NDArray[np.intp],
    sizes: Sequence[int],
    *,
    draws: int = 20,
    seed: int = 0,
) -> SizeCurve:
    """Relative weight errors of predictions from nested random subsets of a bank.

    Parameters
    ----------
    options
        Any approach that trains no network.
    distances
        Shape (N, N), rows are targets; None for an approach that reads none.
    gram
        Shape (N, N): inner products of the adapters.
    units
        Shape (N,): number from 0 on of what each row is left out with.
    sizes, draws, seed
        See `nested_subsets`.

    Raises
    ------
    ParameterError
        For sizes, draws or a seed out of range, or an approach that trains a network.
    """
    subsets = nested_subsets(len(units), sizes, draws, seed)
    relative, targets = np.full((draws, len(sizes)), np.nan), np.zeros((draws, len(sizes)), dtype=np.intp)
    for draw, of_draw in enumerate(subsets):
        for size, subset in enumerate(of_draw):
            weights = subset_coefficients(options, distances, gram, units, subset)
            made = np.flatnonzero(~np.isnan(weights).any(axis=1))
            targets[draw, size] = len(made)
            if len(made):
                relative[draw, size] = np.nanmean(weight_space_errors(weights[made], gram, made, 1).relative)
    return SizeCurve(tuple(sizes), relative, targets, system_of(options))


def subset_coefficients(
    options: PredictionOptions,
    distances: FloatArray | None,
    gram: FloatArray,
    units: NDArray[np.intp],
    subset: NDArray[np.intp],
) -> FloatArray:
    """Coefficients of all N targets over the adapters of a subset, outside of the target's unit.

    Returns
    -------
    Shape (N, N), 0 outside of the subset; a row of NaN where nothing, or too little to fit on, is left.

    Raises
    ------
    ParameterError
        For an approach that trains a network.
    """
    how = options.how
    if not how.of_matrices_alone:
        raise ParameterError(
            f"bank sizes: expected an approach that reads no labels and trains no network, found {options.approach};"
            " use another"
        )
    if how.knows_answer:
        return _bound(options, distances, gram, units, subset)
    number = len(units)
    if not how.reads_distances or distances is None:
        distances = np.zeros((number, number))
    needed = 2 if how.fitted else 1
    weights = np.full((number, number), np.nan)
    inside = np.zeros(number, dtype=bool)
    inside[subset] = True
    own = _numbered(units[subset])
    if how.reads_bank and own.max() >= needed:
        # All rows of the subset at once, which nests what is fitted.
        block = np.ix_(subset, subset)
        made, _ = leave_one_out_coefficients(options, distances[block], gram[block], own)
        weights[subset], weights[block] = 0.0, made
    else:
        inside[:] = False
    present = np.isin(units, units[subset])
    for targets in _alike(units, present, ~inside):
        sources = subset[~np.isin(units[subset], units[targets])]
        if len(np.unique(units[sources])) >= needed:
            block = np.ix_(targets, sources)
            weights[targets] = 0.0
            weights[block] = _from(options, distances, gram, units, targets, sources)
    return weights


def _alike(
    units: NDArray[np.intp], present: NDArray[np.bool_], wanted: NDArray[np.bool_]
) -> list[NDArray[np.intp]]:
    """Wanted targets that have the same sources: those of one unit, or of any that the subset lacks."""
    alike = [np.flatnonzero(wanted & ~present)]
    alike += [np.flatnonzero(wanted & (units == unit)) for unit in np.unique(units[present])]
    return [targets for targets in alike if len(targets)]


def _from(
    options: PredictionOptions,
    distances: FloatArray,
    gram: FloatArray,
    units: NDArray[np.intp],
    targets: NDArray[np.intp],
    sources: NDArray[np.intp],
) -> FloatArray:
    to_sources = distances[np.ix_(targets, sources)]
    if options.how.averages_directions:
        to_sources = (to_sources + distances[np.ix_(sources, targets)].T) / 2.0
    block = np.ix_(sources, sources)
    weights, _ = new_coefficients(
        options, to_sources, distances[block], gram[block], _numbered(units[sources])
    )
    return weights


def _numbered(units: NDArray[np.intp]) -> NDArray[np.intp]:
    numbers: NDArray[np.intp] = np.unique(units, return_inverse=True)[1].astype(np.intp)
    return numbers


def _bound(
    options: PredictionOptions,
    distances: FloatArray | None,
    gram: FloatArray,
    units: NDArray[np.intp],
    subset: NDArray[np.intp],
) -> FloatArray:
    excluded = same_unit(units)
    excluded[:, np.setdiff1d(np.arange(len(units)), subset)] = True
    nothing = excluded.all(axis=1)
    excluded[nothing] = False
    weights, _ = leave_one_out_coefficients(options, distances, gram, units, excluded)
    weights[nothing] = np.nan
    return weights
