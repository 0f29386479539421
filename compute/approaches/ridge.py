"""Kernel ridge regression from datasets to adapters, through the distances and the Gram matrix.

The adapter of a dataset is taken for a smooth function of the dataset. With the kernel `k = exp(-D / s)` of
the distances D and an intercept that is not penalised, the prediction for a target t is
`sum_j w_j theta_j`, where the weights solve

    [K + lambda I   1] [w ]   [k_t]
    [1^T            0] [mu] = [1  ].

They sum to 1 whatever the kernel, and come to equal shares, the mean adapter, where t is far from all sources
or lambda is large. It is kernel ridge regression (Saunders, Gammerman and Vovk, 1998, Ridge regression
learning algorithm in dual variables) with an intercept, and the ordinary kriging of Matheron (1963,
Principles of geostatistics). s and lambda are chosen from a grid by the squared error of the bank's own rows,
each predicted without its unit (itself, or its group). For that, with B the upper left block of the inverse
of the matrix above, the residuals of a unit V left out are `B_VV^-1 (B Theta)_V` (Dubrule, 1983, Cross
validation of kriging in a unique neighborhood), whose squares need `Q = B G B` alone.

Nested: for a row that is itself predicted, its unit U is left out altogether. The same formulas hold for the
matrix without it, `B' = L B` and `Q' = L Q L^T` with `L = I - B_{.U} B_UU^-1` (applied to the rows of U), so
that one decomposition for each s serves all. Neither the adapter of the row nor those of its group have a
part in its coefficients.

Weights may be negative, by little. They are projected onto the simplex, so that a prediction is a convex
combination of adapters as with every other approach; on the banks measured it made no mean error larger
(docs/coefficients.md). `ridge-signed` takes them as they are. The sum of 1 stays: it comes with the intercept, and
what all adapters have in common, such as the A that they began with, is in every prediction as it is; a regression
without it would shrink that too.

`exp(-D / s)` is a positive definite kernel for Jensen-Shannon, squared MMD, Wasserstein on a line, and
tf-idf, all of negative type (Schoenberg, 1938). Kullback-Leibler is not: its two directions are averaged, and
what negative eigenvalues the kernel has are set to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from bankdb.errors import ComputeError
from compute.approaches.by_distance import check_distances
from compute.approaches.oracle import checked_gram, project_to_simplex
from compute.approaches.tuned import least_of, too_few
from compute.types import FloatArray

SCALES = (10.0, 3.0, 1.0, 0.3, 0.1)
PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)


@dataclass(frozen=True, slots=True)
class Ridge:
    """Parameters of one regression.

    Attributes
    ----------
    scale
        s, in medians of the bank's distances.
    penalty
        lambda.
    """

    scale: float
    penalty: float


@dataclass(frozen=True, slots=True, eq=False)
class FittedRidge:
    """What was chosen for a bank of N datasets.

    Attributes
    ----------
    rows
        Of each row, for leave-one-out; empty for a bank of fewer than three units.
    overall
        For a new dataset.
    median
        Median distance of the bank.
    """

    rows: tuple[Ridge, ...]
    overall: Ridge
    median: float


def default_grid() -> list[Ridge]:
    """All parameters, the smoothest first."""
    return [Ridge(scale, penalty) for scale in SCALES for penalty in PENALTIES]


def fit(
    distances: FloatArray,
    gram: FloatArray,
    units: NDArray[np.intp],
    grid: Sequence[Ridge] | None = None,
    *,
    nested: bool = True,
) -> FittedRidge:
    """Choose s and lambda for each row of a bank, and for new datasets.

    Parameters
    ----------
    distances
        Shape (N, N); of the diagonal nothing is read.
    gram
        Shape (N, N): inner products of the adapters.
    units
        Shape (N,): number from 0 on of what each row is left out with.
    grid
        What to try; of equally good ones the first is chosen.
    nested
        Whether to choose for each row too; for a new dataset alone it takes far less time.

    Raises
    ------
    ParameterError
        For fewer than two units.
    ComputeError
        For a distance that is negative, infinite or NaN, or a Gram matrix that is damaged.
    """
    grid = default_grid() if grid is None else grid
    median = median_distance(distances)
    losses = nested_losses(distances, gram, units, grid, nested=nested)
    return FittedRidge(*least_of(grid, losses, units), median)


def leave_one_out(
    distances: FloatArray, units: NDArray[np.intp], fitted: FittedRidge, *, signed: bool = False
) -> FloatArray:
    """Coefficients of each row over the sources outside of its unit; shape (N, N), rows sum to 1.

    Those that are signed may be negative; others are projected onto the simplex.
    """
    if not fitted.rows:
        raise too_few("ridge", int(units.max(initial=-1)) + 1, 3)
    weights = np.zeros(distances.shape)
    makers: dict[Ridge, FloatArray] = {}
    for unit in range(int(units.max()) + 1):
        members, sources = np.flatnonzero(units == unit), np.flatnonzero(units != unit)
        chosen = fitted.rows[members[0]]
        if chosen not in makers:
            spectrum = _spectrum(distances, chosen.scale * fitted.median)
            makers[chosen] = _residual_maker(*spectrum, chosen.penalty)
        b = makers[chosen]
        # The residual is the target minus its prediction: the weights with the sign turned.
        solved = np.linalg.solve(b[np.ix_(members, members)], b[np.ix_(members, sources)])
        weights[np.ix_(members, sources)] = _finished(-solved.astype(np.float64), signed)
    return weights


def new_target(
    to_sources: FloatArray, between_sources: FloatArray, chosen: Ridge, median: float, *, signed: bool = False
) -> FloatArray:
    """Coefficients of M targets that are not in the bank over S sources; shape (M, S), rows sum to 1.

    Parameters
    ----------
    to_sources
        Shape (M, S): distances, averaged over both directions where they differ.
    between_sources
        Shape (S, S).
    chosen, median
        As fitted.
    signed
        See `leave_one_out`.

    Raises
    ------
    ComputeError
        For a distance that is negative, infinite or NaN.
    """
    check_distances(to_sources, np.ones(to_sources.shape, dtype=bool))
    scale = chosen.scale * median
    weights = affine_weights(
        kernel_matrix(between_sources, scale), np.exp(-to_sources / scale), chosen.penalty
    )
    return _finished(weights, signed)


def affine_weights(kernel: FloatArray, to_targets: FloatArray, penalty: float) -> FloatArray:
    """Weights of M targets over S sources that sum to 1; shape (M, S).

    Parameters
    ----------
    kernel
        Shape (S, S): positive semi-definite.
    to_targets
        Shape (M, S): kernel of each target with each source.
    penalty
        lambda, above 0.
    """
    factor = linalg.cho_factor(kernel + penalty * np.eye(len(kernel)))
    ones = linalg.cho_solve(factor, np.ones(len(kernel)))
    solved = linalg.cho_solve(factor, to_targets.T).T
    weights: FloatArray = solved + ((1.0 - solved.sum(axis=1)) / ones.sum())[:, None] * ones
    return weights


def _finished(weights: FloatArray, signed: bool) -> FloatArray:
    return weights if signed else project_to_simplex(weights, np.ones(weights.shape, dtype=bool))


def median_distance(distances: FloatArray) -> float:
    """Median of the distances of different datasets; 1 where it is 0."""
    off = ~np.eye(len(distances), dtype=bool)
    check_distances(distances, off)
    return (float(np.median(distances[off])) if off.any() else 0.0) or 1.0


def kernel_matrix(distances: FloatArray, scale: float) -> FloatArray:
    """`exp(-D / scale)`, with D made symmetric and negative eigenvalues set to zero; shape (N, N)."""
    values, vectors = _spectrum(distances, scale)
    kernel: FloatArray = (vectors * values) @ vectors.T
    return kernel


def _spectrum(distances: FloatArray, scale: float) -> tuple[FloatArray, FloatArray]:
    average = (distances + distances.T) / 2.0
    np.fill_diagonal(average, 0.0)
    try:
        values, vectors = linalg.eigh(np.exp(-average / scale))
    except np.linalg.LinAlgError as error:
        raise ComputeError(
            f"kernel ridge: no eigenvalues of the kernel of scale {scale:g}: {error}"
        ) from error
    return np.maximum(values, 0.0), vectors


# -- choosing s and lambda -----------------------------------------------------------------------------


def nested_losses(
    distances: FloatArray,
    gram: FloatArray,
    units: NDArray[np.intp],
    grid: Sequence[Ridge],
    *,
    nested: bool = True,
) -> FloatArray:
    """Mean squared error of the rows outside of each unit, predicted without it and their own units.

    Returns
    -------
    Shape (parameters, units + 1): the last column is with nothing left out. Where it is not nested, or there
    are two units, of which nothing is left of one without the other, it is the only column.
    """
    gram = checked_gram(gram)
    number = int(units.max(initial=-1)) + 1
    if number < 2:
        raise too_few("ridge", number, 2)
    median = median_distance(distances)
    # B takes any common part of the adapters to zero; without it, no digits are lost to it.
    means = gram.mean(axis=1)
    centred = gram - means[:, None] - means + means.mean()
    nested = nested and number > 2
    losses = np.empty((len(grid), number + 1 if nested else 1))
    spectra: dict[float, tuple[FloatArray, FloatArray]] = {}
    for index, chosen in enumerate(grid):
        if chosen.scale not in spectra:
            spectra = {chosen.scale: _spectrum(distances, chosen.scale * median)}
        b = _residual_maker(*spectra[chosen.scale], chosen.penalty)
        losses[index] = _Residuals(b, b @ centred @ b, units).losses(nested)
    return losses


def _residual_maker(values: FloatArray, vectors: FloatArray, penalty: float) -> FloatArray:
    """B: `A - A 1 1^T A / (1^T A 1)` with `A = (K + lambda I)^-1`."""
    inverse = (vectors / (values + penalty)) @ vectors.T
    ones = inverse.sum(axis=1)
    b: FloatArray = inverse - np.outer(ones, ones / ones.sum())
    return b


class _Residuals:
    """Squared residuals of units left out, from B and `Q = B G B`; units of one size are done at once."""

    def __init__(self, b: FloatArray, q: FloatArray, units: NDArray[np.intp]) -> None:
        self.b, self.q, self.units = b, q, units
        self.number = int(units.max()) + 1
        sizes = np.bincount(units)
        order = np.argsort(units, kind="stable")
        starts = np.cumsum(sizes) - sizes
        self.classes = []
        for size in np.unique(sizes).tolist():
            which = np.flatnonzero(sizes == size)
            rows = order[starts[which][:, None] + np.arange(size)]
            pairs = (rows[:, :, None], rows[:, None, :])
            self.classes.append((which, rows, b[pairs], q[pairs]))

    def losses(self, nested: bool) -> FloatArray:
        """Mean loss with each unit left out, if nested, and with none; shape (units + 1,) or (1,)."""
        whole = sum(self._squares(bs, qs).sum() for _, _, bs, qs in self.classes) / len(self.units)
        if not nested:
            return np.array([whole])
        return np.append([self._without(unit) for unit in range(self.number)], whole)

    def _without(self, unit: int) -> float:
        """Mean loss of the rows outside of a unit, with it left out."""
        members = np.flatnonzero(self.units == unit)
        b_rows, q_rows = self.b[members], self.q[members]
        reduction = np.linalg.solve(b_rows[:, members], b_rows).T
        q_of_unit = q_rows[:, members]
        total, rows_counted = 0.0, 0
        for which, rows, bs, qs in self.classes:
            other = which != unit
            if not other.any():
                continue
            rows, bs, qs = rows[other], bs[other], qs[other]
            w = reduction[rows]
            crossing = w @ q_rows[:, rows].transpose(1, 0, 2)
            q_left = qs - crossing - crossing.transpose(0, 2, 1) + w @ q_of_unit @ w.transpose(0, 2, 1)
            b_left = bs - w @ b_rows[:, rows].transpose(1, 0, 2)
            total += float(self._squares(b_left, q_left).sum())
            rows_counted += rows.size
        return total / rows_counted

    @staticmethod
    def _squares(b: FloatArray, q: FloatArray) -> FloatArray:
        """Diagonals of `B_VV^-1 Q_VV B_VV^-1`, both of shape (units, size, size)."""
        if b.shape[1] == 1:
            squares: FloatArray = q[:, 0, 0] / b[:, 0, 0] ** 2
            return squares
        solved = np.linalg.solve(b, q)
        both: FloatArray = np.linalg.solve(b, solved.transpose(0, 2, 1))
        return np.diagonal(both, axis1=1, axis2=2)
