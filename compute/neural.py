"""The neural approach: coefficients from a learned function of the distance (arXiv 2507.01806, (29)-(32)).

A scalar network f maps the z-score of each distance to a number, and a row's coefficients are the softmin of
these over the sources. f is trained to minimise the mean squared error between predicted and actual adapters,
`trace((C - I) G (C - I)^T) / (N p)`, which needs the Gram matrix `G = Theta Theta^T` and never Theta.

The loss that is minimised is that one divided by the adapters' mean squared deviation from their mean, so
that 1 is about what equal shares reach and neither p nor the adapters' scale or common part matters. Adam's
steps do not change with such a factor, except through its epsilon (1e-8): against gradients of a mean squared
error of 1e-6 or less, as of LoRA weights, it would shorten most steps.

Memory at width W in float32: `16 W^2` bytes for parameters, gradient and moments, `4 W^2` more for the best
parameters where training stops early; 256 MB and 64 MB at the width 4000 of the paper. To this add about
`100 W` bytes for each of up to 512 points evaluated at once, and about 150 bytes for each pair of adapters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError, ParameterError
from compute.coefficients import COMPATIBLE, _check_distances, _softmin, _used, _z_scores
from compute.knots import FEWEST_KNOTS, Points, points_for
from compute.mlp import BATCH, Activations, Adam, Parameters, ScalarMLP, backward, forward, initial_mlp
from compute.oracle import _checked_gram

FloatArray = NDArray[np.float64]
Report = Callable[[int, float], None]

PROTOCOLS = ("cross-fitted", "published")
HELD_OUT = {"cross-fitted": 0.1, "published": 0.0}
APPLICATION_KNOTS = 4
"""To apply a network takes one forward pass, so that it affords this many times the knots of its training."""
FEWEST_ROWS = 3
"""With two adapters each has one source, and nothing to learn."""
NO_DEVIATION = 1e-12
"""Adapters whose squared deviation is less than this share of their squared norm differ by rounding alone."""
_INITIAL, _HELD_OUT, _FOLDS, _SHARE = range(4)
"""Streams of random numbers of one seed."""


@dataclass(frozen=True, slots=True)
class NeuralOptions:
    """How the network is made, trained and applied.

    Attributes
    ----------
    width
        Units of each hidden layer.
    epochs
        Steps of Adam, each over all training pairs; at most, where training stops early.
    learning_rate
        Of Adam.
    seed
        Of the initial parameters, the folds and the held-out rows.
    knots
        Points at which the network is evaluated in training; it is applied with 4 times as many. None
        evaluates it at each distinct z-score.
    protocol
        `cross-fitted`: each row is predicted by a network that was trained without its adapter, neither as
        target nor as source. `published`: one network, trained on a random share of the adapters, for all.
    folds
        Parts that the rows are cut into for `cross-fitted`, and so the number of trainings.
    training_share
        Share of the adapters that `published` trains on.
    held_out
        Share of the training rows kept apart to stop early and to choose the best epoch; 0 trains to the end.
        None is 0.1 for `cross-fitted` and 0 for `published`.
    patience
        Epochs without a better loss on the held-out rows after which training stops.
    compatible
        `published` takes mean and deviation of a row over the distance to the target itself as well.
    """

    width: int = 4000
    epochs: int = 40
    learning_rate: float = 1e-3
    seed: int = 0
    knots: int | None = 128
    protocol: str = "cross-fitted"
    folds: int = 5
    training_share: float = 0.8
    held_out: float | None = None
    patience: int = 10
    compatible: str = "correct"

    def __post_init__(self) -> None:
        """Check every option.

        Raises
        ------
        ParameterError
            For the first that is out of its range.
        """
        for name, value, values in (
            ("protocol", self.protocol, PROTOCOLS),
            ("compatible", self.compatible, COMPATIBLE),
        ):
            if value not in values:
                raise ParameterError(
                    f"{name}: expected one of {', '.join(values)}, found {value!r}; use one of them"
                )
        for name, least in (("width", 2), ("epochs", 1), ("folds", 2), ("patience", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ParameterError(
                    f"{name}: expected a whole number from {least} on, found {getattr(self, name)};"
                    " leave it out for the default"
                )
        if self.knots is not None and self.knots < FEWEST_KNOTS:
            raise ParameterError(
                f"knots: expected at least {FEWEST_KNOTS}, found {self.knots}; None evaluates exactly"
            )
        for name, value, inside in (
            ("learning_rate", self.learning_rate, 0.0 < self.learning_rate < math.inf),
            ("training_share", self.training_share, 0.0 < self.training_share <= 1.0),
            ("held_out", self.held_out, 0.0 <= self.held_out_share < 1.0),
        ):
            if not inside:
                raise ParameterError(
                    f"{name}: expected a number above 0 and below 1, found {value}; leave it out for the default"
                )

    @property
    def held_out_share(self) -> float:
        """Share of the training rows that is held out."""
        return HELD_OUT[self.protocol] if self.held_out is None else self.held_out

    @property
    def trainings(self) -> int:
        """Number of networks that leave-one-out trains."""
        return self.folds if self.protocol == "cross-fitted" else 1

    def generator(self, stream: int) -> np.random.Generator:
        """Return a generator of this seed, independent of its other streams."""
        return np.random.default_rng([self.seed, stream])


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A network with the record of its training.

    Attributes
    ----------
    model
        The network: of the epoch with the least held-out loss, or of the last where nothing was held out.
    losses
        Mean squared error (32) of a parameter over the fitted rows after 0, 1, 2, ... epochs, as evaluated
        at the knots.
    held_out_losses
        The same over the held-out rows, each predicted from all training rows but itself; empty without them.
    best_epoch
        Epochs after which the network is returned.
    rows
        Rows whose adapters were fitted, as targets and as sources; ascending.
    held_out_rows
        Rows whose adapters chose the epoch; ascending.
    seconds
        Time that it took.
    """

    model: ScalarMLP
    losses: FloatArray
    held_out_losses: FloatArray
    best_epoch: int
    rows: NDArray[np.intp]
    held_out_rows: NDArray[np.intp]
    seconds: float


def train(
    distances: FloatArray,
    gram: FloatArray,
    rows: NDArray[np.integer[Any]],
    options: NeuralOptions,
    parameters: int,
    report: Report | None = None,
    *,
    groups: Sequence[str | None] | None = None,
) -> Trained:
    """Train a network on the adapters of some rows; no other entry of either matrix is read.

    Parameters
    ----------
    distances
        Shape (N, N): rows are targets, columns sources. The diagonal is read for `compatible="published"`
        alone.
    gram
        Shape (N, N): inner products of the adapters.
    rows
        Rows to train on, as targets and as sources, the held-out ones among them.
    parameters
        p, the number of parameters of an adapter; it scales the losses returned and changes nothing else.
    report
        Called with the number of epochs done and the loss on the fitted rows after them.
    groups
        Group of each of the N datasets, None for one on its own: a group is held out as a whole.

    Raises
    ------
    ParameterError
        For arrays that do not fit, or too few rows.
    ComputeError
        For distances or inner products that are not finite, adapters that are all equal, or a training that
        diverges.
    """
    started = time.perf_counter()
    distances, gram = np.asarray(distances, dtype=np.float64), np.asarray(gram, dtype=np.float64)
    rows = _checked_rows(distances, gram, rows, parameters)
    fitted, held_out = _hold_out(rows, groups, options)
    scale, targets = _targets(distances, gram, fitted, held_out, options)
    fit = _Fit(targets, options)
    fit.run(report, scale / parameters)
    return Trained(
        model=ScalarMLP(fit.best),
        losses=np.array(fit.losses[0]) * (scale / parameters),
        held_out_losses=np.array(fit.losses[1] if len(targets) > 1 else []) * (scale / parameters),
        best_epoch=fit.best_epoch,
        rows=fitted,
        held_out_rows=held_out,
        seconds=time.perf_counter() - started,
    )


def apply(
    model: ScalarMLP,
    distances: FloatArray,
    excluded: NDArray[np.bool_],
    options: NeuralOptions,
    *,
    self_index: NDArray[np.integer[Any]] | None = None,
) -> FloatArray:
    """Coefficients of M targets over N sources by a trained network; shape (M, N), rows sum to 1.

    Parameters
    ----------
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
    used = _used(distances, excluded, self_index)
    scores = _standardised(distances, used, self_index, options)[used]
    points = points_for(scores, None if options.knots is None else APPLICATION_KNOTS * options.knots)
    at_points = model(points.points).astype(np.float64)
    _check_values(at_points)
    values = np.zeros(used.shape)
    values[used] = points.spread(at_points)
    return _softmin(values, used, 1.0)


def neural_leave_one_out(
    distances: FloatArray,
    gram: FloatArray,
    parameters: int,
    options: NeuralOptions,
    groups: Sequence[str | None] | None = None,
    report: Report | None = None,
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

    Returns
    -------
    The coefficients, shape (N, N), with a diagonal of 0; and what was trained, the networks included
    (`4 W^2` bytes each), in the order of the folds.

    Raises
    ------
    ParameterError, ComputeError
        As `train` and `apply` do, or for fewer datasets or groups than folds.
    """
    number = len(distances)
    everything = np.arange(number)
    if options.protocol == "published":
        share = round(options.training_share * number)
        rows = np.sort(options.generator(_SHARE).permutation(number)[:share])
        plan = [(rows, everything)]
        groups = None
    else:
        fold = fold_of_rows(number, options, groups)
        plan = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(options.folds)]
    coefficients = np.zeros((number, number))
    results: list[Trained] = []
    for training_rows, predicted in plan:
        counting = _counting(report, len(results) * options.epochs)
        result = train(distances, gram, training_rows, options, parameters, counting, groups=groups)
        own = np.zeros((len(predicted), number), dtype=bool)
        own[np.arange(len(predicted)), predicted] = True
        coefficients[predicted] = apply(
            result.model, distances[predicted], own, options, self_index=predicted
        )
        results.append(result)
    return coefficients, results


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
    units = [units[k] for k in options.generator(_FOLDS).permutation(len(units))]
    fold = np.empty(number, dtype=np.intp)
    sizes = np.zeros(options.folds, dtype=np.intp)
    for unit in sorted(units, key=len, reverse=True):
        smallest = int(np.argmin(sizes))
        fold[unit] = smallest
        sizes[smallest] += len(unit)
    return fold


class _Targets:
    """Rows of targets over their sources, with the loss of coefficients given by values for each pair."""

    def __init__(self, scores: FloatArray, used: NDArray[np.bool_], own: NDArray[np.intp], gram: FloatArray):
        self.scores = scores[used]
        self._used = used
        self._own = (np.arange(len(own)), own)
        self._gram = gram

    def loss(self, values: FloatArray) -> tuple[float, FloatArray]:
        """Mean squared error of the softmin of `values`, one for each pair used, and its gradient by them.

        The gradient by the coefficients is `2 (C - I) G / M`; through the softmin, `C = softmax(-values)`, it
        becomes `C * (row mean weighted by C - itself)`.
        """
        whole = np.zeros(self._used.shape)
        whole[self._used] = values
        coefficients = _softmin(whole, self._used, 1.0)
        error = coefficients.copy()
        error[self._own] -= 1.0
        slopes = error @ self._gram
        loss = float(np.einsum("ij,ij->", slopes, error)) / len(error)
        slopes *= 2.0 / len(error)
        slopes -= np.einsum("ij,ij->i", slopes, coefficients)[:, None]
        slopes *= -coefficients
        return loss, slopes[self._used]


class _Fit:
    """One training: the network, its optimiser, and the best parameters so far."""

    def __init__(self, targets: list[_Targets], options: NeuralOptions, dtype: type = np.float32) -> None:
        self.targets = targets
        self.options = options
        self.points: Points = points_for(np.concatenate([t.scores for t in targets]), options.knots)
        self.sites = self.points.points.astype(dtype)
        initial = initial_mlp(options.width, options.generator(_INITIAL), dtype)
        self.parameters: Parameters = dict(initial.parameters)
        self.gradient: Parameters = {name: np.empty_like(array) for name, array in self.parameters.items()}
        self.adam = Adam(self.parameters, options.learning_rate)
        self.best = self.parameters
        self.best_epoch = 0
        self.losses: list[list[float]] = [[] for _ in targets]

    def run(self, report: Report | None, unit: float) -> None:
        """Train to the end or until the held-out loss has stopped falling."""
        for epoch in range(self.options.epochs + 1):
            values, activations = self._evaluate()
            slopes = self._record(values)
            if report is not None and epoch > 0:
                report(epoch, self.losses[0][-1] * unit)
            if len(self.targets) == 1:
                self.best_epoch = epoch
            elif epoch == 0 or self.losses[1][-1] < self.losses[1][self.best_epoch]:
                self.best_epoch = epoch
                self._keep()
            elif epoch - self.best_epoch >= self.options.patience:
                return
            if epoch < self.options.epochs:
                self._descend(slopes, activations)

    def _evaluate(self) -> tuple[FloatArray, Activations | None]:
        """Values at the points, and the activations where one batch holds them all."""
        if len(self.sites) <= BATCH:
            activations = forward(self.parameters, self.sites)
            return activations.values.astype(np.float64), activations
        return ScalarMLP(self.parameters)(self.sites).astype(np.float64), None

    def _record(self, at_points: FloatArray) -> FloatArray:
        """Note the losses; return the fitted rows' gradient by the values at the points."""
        _check_values(at_points)
        ends = np.cumsum([len(t.scores) for t in self.targets])[:-1]
        parts = np.split(self.points.spread(at_points), ends)
        slopes = [np.zeros(len(part)) for part in parts]
        for k, (targets, values) in enumerate(zip(self.targets, parts, strict=True)):
            loss, by_values = targets.loss(values)
            self.losses[k].append(loss)
            if k == 0:
                slopes[0] = by_values
        return self.points.gather(np.concatenate(slopes))

    def _descend(self, slopes: FloatArray, activations: Activations | None) -> None:
        for start in range(0, len(self.sites), BATCH):
            batch = slice(start, start + BATCH)
            done = forward(self.parameters, self.sites[batch]) if activations is None else activations
            backward(self.parameters, done, slopes[batch], self.gradient, add=start > 0)
        self.adam.step(self.parameters, self.gradient)

    def _keep(self) -> None:
        if self.best is self.parameters:
            self.best = {name: np.empty_like(array) for name, array in self.parameters.items()}
        for name, array in self.parameters.items():
            self.best[name][...] = array


def _targets(
    distances: FloatArray,
    gram: FloatArray,
    fitted: NDArray[np.intp],
    held_out: NDArray[np.intp],
    options: NeuralOptions,
) -> tuple[float, list[_Targets]]:
    """Fitted rows over each other and held-out rows over both, with the scale that their losses were divided by.

    Predictions do not depend on the origin; about the mean of the fitted adapters no digits are lost to what
    all adapters share.
    """
    rows = np.concatenate([fitted, held_out])
    inside = len(fitted)
    means = gram[:, fitted].mean(axis=1)
    centred = gram[np.ix_(rows, rows)] - means[rows, None] - means[rows] + means[fitted].mean()
    scale = float(centred.diagonal()[:inside].mean())
    if scale <= NO_DEVIATION * float(gram[fitted, fitted].mean()):
        raise ComputeError(
            f"neural training: expected adapters that differ, found {inside} equal ones; use another approach"
        )
    centred /= scale
    targets = []
    for rows_of, sources in ((slice(0, inside), slice(0, inside)), (slice(inside, None), slice(None))):
        own = np.arange(len(rows))[rows_of]
        if len(own) == 0:
            continue
        block = distances[np.ix_(rows[rows_of], rows[sources])]
        used = np.ones(block.shape, dtype=bool)
        used[np.arange(len(own)), own] = False
        scores = _standardised(block, used, own, options)
        targets.append(_Targets(scores, used, own, centred[sources, sources]))
    return scale, targets


def _standardised(
    distances: FloatArray,
    used: NDArray[np.bool_],
    self_index: NDArray[np.integer[Any]] | None,
    options: NeuralOptions,
) -> FloatArray:
    """z-scores of the rows (29); only entries that are used mean anything."""
    counted = used
    if options.compatible == "published" and self_index is not None:
        counted = used.copy()
        counted[np.arange(len(counted)), self_index] = True
    _check_distances(distances, counted)
    return _z_scores(distances, counted)


def _checked_rows(
    distances: FloatArray, gram: FloatArray, rows: NDArray[np.integer[Any]], parameters: int
) -> NDArray[np.intp]:
    """Rows in ascending order, after the arguments of a training are checked."""
    number = len(distances)
    if distances.shape != (number, number) or gram.shape != (number, number):
        raise ParameterError(
            f"neural training: expected distances and Gram matrix of one square shape, found {distances.shape}"
            f" and {gram.shape}; compute both over the same adapters"
        )
    if parameters < 1:
        raise ParameterError(f"parameters: expected at least 1, found {parameters}; give the adapters' size")
    ascending = np.unique(rows).astype(np.intp)
    if len(ascending) != np.size(rows) or np.any((ascending < 0) | (ascending >= number)):
        raise ParameterError(
            f"training rows: expected distinct rows below {number}, found {np.size(rows)} of which"
            f" {np.sum((ascending >= 0) & (ascending < number))} are; name each row once"
        )
    if len(ascending) < FEWEST_ROWS:
        raise ParameterError(
            f"neural training: expected at least {FEWEST_ROWS} adapters to train on, found {len(ascending)};"
            " add adapters to the bank or use another approach"
        )
    _checked_gram(gram[np.ix_(ascending, ascending)])
    return ascending


def _hold_out(
    rows: NDArray[np.intp], groups: Sequence[str | None] | None, options: NeuralOptions, number: int = 0
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Cut the training rows into fitted and held-out ones, both ascending."""
    if options.held_out_share == 0.0:
        return rows, rows[:0]
    units = _units(rows, groups, None)
    units = [units[k] for k in options.generator(_HELD_OUT).permutation(len(units))]
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
            f" {len(fitted)} besides {len(held_out)} held out; set it to 0, or add adapters to the bank"
        )
    return fitted, held_out


def _units(
    rows: NDArray[np.intp], groups: Sequence[str | None] | None, number: int | None
) -> list[NDArray[np.intp]]:
    """Rows that must stay together, in the order of their first row."""
    if groups is None:
        return [np.array([row]) for row in rows]
    if number is not None and len(groups) != number:
        raise ParameterError(
            f"groups: expected one for each of {number} datasets, found {len(groups)}; use None for no group"
        )
    members: dict[tuple[str, str | int], list[int]] = {}
    for row in rows.tolist():
        group = groups[row]
        members.setdefault(("row", row) if group is None else ("group", group), []).append(row)
    return [np.array(unit) for unit in members.values()]


def _check_values(values: FloatArray) -> None:
    if not np.isfinite(values).all():
        raise ComputeError(
            "neural model: expected finite values, found NaN or infinity; train it with a smaller learning rate"
        )


def _counting(report: Report | None, before: int) -> Report | None:
    """Report epochs counted on from those of earlier trainings."""
    if report is None:
        return None
    return lambda epoch, loss: report(before + epoch, loss)
