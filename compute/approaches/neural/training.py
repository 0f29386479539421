"""The neural approach: coefficients from a learned function of the distance (arXiv 2507.01806, (29)-(32)).

A scalar network f maps the z-score of each distance to a number, and a row's coefficients are the softmin of
these over the sources. f is trained to minimise the mean squared error between predicted and actual adapters,
`trace((C - I) G (C - I)^T) / (N p)`, which needs the Gram matrix `G = Theta Theta^T` and never Theta.

The loss that is minimised is that one divided by the adapters' mean squared deviation from their mean, so
that 1 is about what equal shares reach and neither p nor the adapters' scale or common part matters. Adam's
steps do not change with such a factor, except through its epsilon (1e-8): against gradients of a mean squared
error of 1e-6 or less, as of LoRA weights, it would shorten most steps.

Memory at width W in float32: `12 W^2` bytes for parameters and moments, `4 W^2` more for the best parameters where
training stops early, and another `4 W^2` for the gradient where it goes by dense products; 192 MB and 64 MB at the
width 4000 of the paper. To this add about `40 W` bytes for each of up to 512 points evaluated at once, and about 150
bytes for each pair of adapters. See `piecewise` for what an epoch takes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError, ParameterError
from compute.approaches.by_distance import check_distances, softmin, z_scores
from compute.approaches.neural.knots import Points, points_for
from compute.approaches.neural.learners import learner_for
from compute.approaches.neural.network import ScalarMLP
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.splits import FEWEST_ROWS, hold_out
from compute.approaches.neural.workspace import Kept, State, Workspace
from compute.approaches.oracle import checked_gram
from compute.types import FloatArray

Report = Callable[[int, float], None]

NO_DEVIATION = 1e-12
"""Adapters whose squared deviation is less than this share of their squared norm differ by rounding alone."""


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
    excluded: NDArray[np.bool_] | None = None,
    workspace: Workspace | None = None,
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
    excluded
        Shape (N, N): sources that a target must not use, itself among them; None for itself alone.
    workspace
        What it shares with trainings before and after it; one thread and memory of its own if None. With a place
        where trainings are kept, it goes on from what is there of the training on these rows.

    Raises
    ------
    ParameterError
        For arrays that do not fit, too few rows, or a row with every source excluded.
    ComputeError
        For distances or inner products that are not finite, adapters that are all equal, or a training that
        diverges.
    """
    started = time.perf_counter()
    distances, gram = np.asarray(distances, dtype=np.float64), np.asarray(gram, dtype=np.float64)
    rows = _checked_rows(distances, gram, rows, parameters)
    fitted, held_out = hold_out(rows, len(distances), options, groups)
    scale, targets = _targets(distances, gram, fitted, held_out, options, excluded)
    fit = _Fit(targets, options, workspace=workspace)
    model = fit.run(report, scale / parameters, rows, workspace.kept if workspace is not None else None)
    return Trained(
        model=model,
        losses=np.array(fit.losses[0]) * (scale / parameters),
        held_out_losses=np.array(fit.losses[1] if len(targets) > 1 else []) * (scale / parameters),
        best_epoch=fit.best_epoch,
        rows=fitted,
        held_out_rows=held_out,
        seconds=time.perf_counter() - started,
    )


class _Targets:
    """Rows of targets over their sources, with the loss of coefficients given by values for each pair."""

    def __init__(self, scores: FloatArray, used: NDArray[np.bool_], own: NDArray[np.intp], gram: FloatArray):
        self.scores = scores[used]
        self.used_entries = used
        self._own = (np.arange(len(own)), own)
        self._gram = gram

    def loss(self, values: FloatArray) -> tuple[float, FloatArray]:
        """Mean squared error of the softmin of `values`, one for each pair used, and its gradient by them.

        The gradient by the coefficients is `2 (C - I) G / M`; through the softmin, `C = softmax(-values)`, it
        becomes `C * (row mean weighted by C - itself)`.
        """
        whole = np.zeros(self.used_entries.shape)
        whole[self.used_entries] = values
        coefficients = softmin(whole, self.used_entries, 1.0)
        error = coefficients.copy()
        error[self._own] -= 1.0
        slopes = error @ self._gram
        loss = float(np.einsum("ij,ij->", slopes, error)) / len(error)
        slopes *= 2.0 / len(error)
        slopes -= np.einsum("ij,ij->i", slopes, coefficients)[:, None]
        slopes *= -coefficients
        return loss, slopes[self.used_entries]


class _Fit:
    """One training: the network, its optimiser, and the best parameters so far."""

    def __init__(
        self,
        targets: list[_Targets],
        options: NeuralOptions,
        dtype: type[np.floating[Any]] = np.float32,
        workspace: Workspace | None = None,
    ) -> None:
        self.targets = targets
        self.options = options
        self.points: Points = points_for(np.concatenate([t.scores for t in targets]), options.knots)
        self.learner = learner_for(self.points.points, options, dtype, workspace)
        self.best_epoch = 0
        self.losses: list[list[float]] = [[] for _ in targets]

    def run(self, report: Report | None, unit: float, rows: NDArray[np.intp], kept: Kept | None) -> ScalarMLP:
        """Train to the end or until the held-out loss has stopped falling; return the best network."""
        with contextlib.closing(self.learner):
            first = self._resumed(kept.state(rows)) if kept is not None else 0
            for epoch in range(first, self.options.epochs + 1):
                slopes = self._record(self.learner.values())
                if report is not None and epoch > 0:
                    report(epoch, self.losses[0][-1] * unit)
                if len(self.targets) == 1:
                    self.best_epoch = epoch
                elif epoch == 0 or self.losses[1][-1] < self.losses[1][self.best_epoch]:
                    self.best_epoch = epoch
                    self.learner.keep()
                elif epoch - self.best_epoch >= self.options.patience:
                    break
                if epoch < self.options.epochs:
                    self.learner.descend(slopes)
                    if kept is not None:
                        kept.keep_state(rows, self._state())
            return self.learner.network()

    def _state(self) -> State:
        """All that the epochs after this one read."""
        own = {"best": np.array([self.best_epoch]), "losses": np.array(self.losses)}
        return {**self.learner.state(), **own}

    def _resumed(self, state: State | None) -> int:
        """Go on from what was kept; return the epoch that is next."""
        if state is None or not self.learner.resume(state):
            return 0
        self.best_epoch = int(state["best"][0])
        self.losses = state["losses"].tolist()
        return len(self.losses[0])

    def _record(self, at_points: FloatArray) -> FloatArray:
        """Note the losses; return the fitted rows' gradient by the values at the points."""
        check_values(at_points)
        ends = np.cumsum([len(t.scores) for t in self.targets])[:-1]
        parts = np.split(self.points.spread(at_points), ends)
        slopes = [np.zeros(len(part)) for part in parts]
        for k, (targets, values) in enumerate(zip(self.targets, parts, strict=True)):
            loss, by_values = targets.loss(values)
            self.losses[k].append(loss)
            if k == 0:
                slopes[0] = by_values
        return self.points.gather(np.concatenate(slopes))


def _targets(
    distances: FloatArray,
    gram: FloatArray,
    fitted: NDArray[np.intp],
    held_out: NDArray[np.intp],
    options: NeuralOptions,
    excluded: NDArray[np.bool_] | None = None,
) -> tuple[float, list[_Targets]]:
    """Fitted rows over each other and held-out rows over both, with the scale that their losses were divided by.

    Predictions do not depend on the origin; about the mean of the fitted adapters no digits are lost to what
    all adapters share.
    """
    rows = np.concatenate([fitted, held_out])
    inside = len(fitted)
    gram = gram[np.ix_(rows, rows)]
    means = gram[:, :inside].mean(axis=1)
    centred = gram - means[:, None] - means + means[:inside].mean()
    scale = float(centred.diagonal()[:inside].mean())
    if scale <= NO_DEVIATION * float(gram.diagonal()[:inside].mean()):
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
        if excluded is not None:
            used = ~excluded[np.ix_(rows[rows_of], rows[sources])]
        used[np.arange(len(own)), own] = False
        if not used.any(axis=1).all():
            raise ParameterError(
                "neural training: expected a source outside of each row's group among the training rows, found"
                f" none for row {rows[rows_of][np.argmin(used.any(axis=1))]}; ingest other groups"
            )
        scores = standardised(block, used, own, options)
        targets.append(_Targets(scores, used, own, centred[sources, sources]))
    return scale, targets


def standardised(
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
    check_distances(distances, counted)
    return z_scores(distances, counted)


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
            " add adapters to the bank, or take another --approach"
        )
    checked_gram(gram[np.ix_(ascending, ascending)])
    return ascending


def check_values(values: FloatArray) -> None:
    """Refuse values of a network that are not finite."""
    if not np.isfinite(values).all():
        raise ComputeError(
            "neural model: expected finite values, found NaN or infinity; train it with a smaller learning rate"
        )
