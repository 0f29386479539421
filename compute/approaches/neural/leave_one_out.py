"""The neural approach (arXiv 2507.01806, (29)-(32)): leave-one-out by its two protocols, and application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compute.approaches.by_distance import softmin, used_entries
from compute.approaches.groups import same_unit
from compute.approaches.neural.knots import points_for
from compute.approaches.neural.learners import evaluating
from compute.approaches.neural.network import Array
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.splits import fold_of_rows
from compute.approaches.neural.training import Report, Trained, check_values, standardised, train
from compute.approaches.neural.workspace import Workspace
from compute.types import FloatArray

APPLICATION_KNOTS = 4
"""To apply a network takes one forward pass, so that it affords this many times the knots of its training."""


def apply(
    model: Callable[[FloatArray], Array],
    distances: FloatArray,
    excluded: NDArray[np.bool_],
    options: NeuralOptions,
    *,
    self_index: NDArray[np.integer[Any]] | None = None,
) -> FloatArray:
    """Coefficients of M targets over N sources by a trained network; shape (M, N), rows sum to 1.

    Parameters
    ----------
    model
        The network, or what evaluates it at ascending points.
    distances
        Shape (M, N): rows are targets. Entries that are excluded are not read.
    excluded
        Shape (M, N): sources that a target must not use; they get exactly 0.
    options
        As for the training; of these `knots` and `compatible` are used.
    self_index
        Shape (M,): column of the target itself, for `compatible="published"`; None for new datasets.

    Raises
    ------
    ParameterError
        For shapes that differ, or a row with every source excluded.
    ComputeError
        For a distance that is needed and is negative, infinite or NaN, or a network that returns such values.
    """
    distances = np.asarray(distances, dtype=np.float64)
    used = used_entries(distances, excluded, self_index)
    scores = standardised(distances, used, self_index, options)[used]
    points = points_for(scores, None if options.knots is None else APPLICATION_KNOTS * options.knots)
    at_points = model(points.points).astype(np.float64)
    check_values(at_points)
    values = np.zeros(used.shape)
    values[used] = points.spread(at_points)
    return softmin(values, used, 1.0)


def left_out_together(
    options: NeuralOptions, units: NDArray[np.intp] | None, number: int
) -> tuple[NeuralOptions, list[str] | None, NDArray[np.bool_] | None]:
    """What training on `number` rows needs to know where units are left out, None where adapters are.

    There are no more folds than units, or rows.

    Returns
    -------
    The options, and `groups` and `excluded` as `train` takes them.
    """
    if units is None:
        return replace(options, folds=min(options.folds, max(number, 2))), None, None
    groups = [str(unit) for unit in units.tolist()]
    folds = min(options.folds, max(len(set(groups)), 2))
    return replace(options, folds=folds), groups, same_unit(units)


def rows_for_new(number: int, options: NeuralOptions) -> NDArray[np.intp]:
    """Rows that the network for new datasets is trained on: all, or `published`'s random share; ascending."""
    if options.protocol != "published":
        return np.arange(number)
    share = round(options.training_share * number)
    return np.sort(options.generator("share").permutation(number)[:share])


def neural_leave_one_out(
    distances: FloatArray,
    gram: FloatArray,
    parameters: int,
    options: NeuralOptions,
    groups: Sequence[str | None] | None = None,
    report: Report | None = None,
    *,
    excluded: NDArray[np.bool_] | None = None,
    workspace: Workspace | None = None,
) -> tuple[FloatArray, list[Trained]]:
    """Coefficients of each adapter over all others, by the protocol of the options.

    Parameters
    ----------
    distances, gram, parameters
        As for `train`.
    groups
        Group of each dataset, None for one on its own. Datasets of one group fall into one fold and are held
        out together; `published` knows no groups.
    report
        Called with the epochs done and the fitted rows' loss. The epochs count on over the trainings, up to
        `options.trainings * options.epochs`; one that stops early counts in full.
    excluded
        Shape (N, N): sources that a target must not use, itself among them, in training or when predicted;
        None for itself alone.
    workspace
        As for `train`.

    Returns
    -------
    The coefficients, shape (N, N), with a diagonal of 0; and what was trained, the networks included
    (`4 W^2` bytes each), in the order of the folds; without those whose coefficients the workspace kept.

    Raises
    ------
    ParameterError, ComputeError
        As `train` and `apply` do, or for fewer datasets or groups than folds.
    """
    number = len(distances)
    groups = None if options.protocol == "published" else groups
    left_out = np.eye(number, dtype=bool) if excluded is None else excluded
    coefficients = np.zeros((number, number))
    results: list[Trained] = []
    used = workspace or Workspace()
    # The network of `published` is wanted, not its coefficients alone.
    kept = used.kept if options.protocol != "published" else None
    for k, (rows, predicted) in enumerate(_plan(number, options, groups)):
        block = kept.coefficients(predicted) if kept is not None else None
        if block is None:
            arguments = (distances, gram, rows, options, parameters, _counting(report, k * options.epochs))
            results.append(train(*arguments, groups=groups, excluded=excluded, workspace=used))
            model = evaluating(results[-1].model, options, used.threads)
            block = apply(model, distances[predicted], left_out[predicted], options, self_index=predicted)
            if kept is not None:
                kept.keep_coefficients(predicted, block)
        coefficients[predicted] = block
    return coefficients, results


def _plan(
    number: int, options: NeuralOptions, groups: Sequence[str | None] | None
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows of each training, and those that its network predicts."""
    if options.protocol == "published":
        return [(rows_for_new(number, options), np.arange(number))]
    fold = fold_of_rows(number, options, groups)
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(options.folds)]


def _counting(report: Report | None, before: int) -> Report | None:
    """Report epochs counted on from those of earlier trainings."""
    if report is None:
        return None
    return lambda epoch, loss: report(before + epoch, loss)
