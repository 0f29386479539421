"""The best convex combination there is, and the weight-space error of any, from the Gram matrix alone.

With `G = Theta Theta^T` every squared distance between convex combinations of adapters is a quadratic form of
their coefficients. The oracle (arXiv 2507.01806, proposition 2, in parameter space) knows the adapter that it
predicts: it bounds what any choice of coefficients can reach, and is never a prediction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import ComputeError, ParameterError
from compute.types import FloatArray

TOLERANCE = 1e-11
"""Largest violation of the optimality conditions, relative to the largest squared norm about the mean."""
RIDGE = 1e-9
"""Added to the diagonal, relative as above: duplicates make the matrix singular. It makes each step a proximal
one, repeated until the conditions hold, so that it does not move the solution."""
NEGLIGIBLE = 1e-14
"""A weight below this is rounding of zero."""
INDEFINITE = 1e-4
"""Rounding of a Gram matrix, even one of float32 products, leaves no eigenvalue below minus this share."""
DESCENT_STEPS = 300
DESCENT_TOLERANCE = 1e-9


def oracle(gram: FloatArray, excluded: NDArray[np.bool_]) -> FloatArray:
    """Coefficients nearest to each adapter; shape (N, N), rows sum to 1.

    Row i minimises `|theta_i - sum_j w_j theta_j|^2` over the simplex of the sources j that are not excluded.

    Parameters
    ----------
    gram
        Shape (N, N): inner products of the adapters.
    excluded
        Shape (N, N): sources that a row must not use, at least itself for a bound on leave-one-out.

    Raises
    ------
    ParameterError
        For shapes that differ, or a row with every source excluded.
    ComputeError
        For entries that are not finite, or a row whose optimality conditions cannot be met.
    """
    gram = checked_gram(gram)
    if excluded.shape != gram.shape or excluded.dtype != np.bool_:
        raise ParameterError(
            f"excluded: expected true or false for each of the {gram.shape} entries, found shape"
            f" {excluded.shape} of {excluded.dtype}; mark each entry"
        )
    allowed = ~excluded
    empty = np.flatnonzero(~allowed.any(axis=1))
    if len(empty):
        raise ParameterError(
            f"oracle of row {empty[0]}: expected at least one source, found all excluded; exclude fewer"
        )
    if len(gram) == 0:
        return np.zeros((0, 0))
    centred, cross = _standardise(gram, gram)
    weights = _descend(centred, cross, allowed)
    for row, sources in enumerate(allowed):
        index = np.flatnonzero(sources)
        problem = _Problem(centred[np.ix_(index, index)], cross[row, index], f"oracle of row {row}")
        weights[row, index] = problem.solve(weights[row, index])
    return weights


def simplex_least_squares(gram_ss: FloatArray, cross: FloatArray) -> FloatArray:
    """Minimise `w^T G w - 2 c^T w` over non-negative w that sum to 1.

    Parameters
    ----------
    gram_ss
        Shape (S, S): inner products of the sources.
    cross
        Shape (S,): inner products of the sources with the target.

    Raises
    ------
    ParameterError
        For shapes that differ, or no source.
    ComputeError
        For entries that are not finite, or when the optimality conditions cannot be met.
    """
    gram_ss = checked_gram(gram_ss)
    cross = np.asarray(cross, dtype=np.float64)
    if cross.shape != gram_ss.shape[:1] or len(cross) == 0:
        raise ParameterError(
            f"cross: expected one inner product for each of {len(gram_ss)} sources (at least one), found shape"
            f" {cross.shape}; compute it over the same sources"
        )
    if not np.isfinite(cross).all():
        raise ComputeError("cross: expected finite inner products, found NaN or infinity; compute them again")
    centred, crosses = _standardise(gram_ss, cross[None, :])
    start = _descend(centred, crosses, np.ones(crosses.shape, dtype=bool))
    return _Problem(centred, crosses[0], "simplex").solve(start[0])


def checked_gram(gram: FloatArray) -> FloatArray:
    """Return a Gram matrix in double precision; raises an error if it is not square, finite and symmetric."""
    gram = np.asarray(gram, dtype=np.float64)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ParameterError(
            f"Gram matrix: expected a square matrix, found shape {gram.shape}; compute it again"
        )
    if not np.isfinite(gram).all():
        row, column = np.argwhere(~np.isfinite(gram))[0]
        raise ComputeError(
            f"Gram matrix: expected finite entries, found {gram[row, column]} at row {row} and column {column};"
            " compute it again"
        )
    if np.abs(gram - gram.T).max(initial=0.0) > 1e-6 * np.abs(gram).max(initial=0.0):
        raise ComputeError(
            "Gram matrix: expected a symmetric matrix, found one that is not; compute it again"
        )
    return gram


def _standardise(gram: FloatArray, cross: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Inner products about the mean of the sources, scaled to a largest squared norm of 1.

    On the simplex the solution does not depend on the origin, but its accuracy does: what all adapters share
    would only take digits. Each row of `cross` is right up to a constant, which the simplex does not see.
    """
    from scipy import linalg

    means = gram.mean(axis=1)
    centred = gram - means[:, None] - means + means.mean()
    cross = cross - means
    cross -= cross.mean(axis=1, keepdims=True)
    # Where the sources are all the same, only the rounding of what was subtracted is left.
    scale = max(
        float(centred.diagonal().max()),
        1e-14 * float(np.abs(gram).max()),
        1e-12 * float(np.abs(cross).max()),
        np.finfo(np.float64).tiny,
    )
    smallest = float(linalg.eigvalsh(centred, subset_by_index=[0, 0])[0])
    if smallest < -INDEFINITE * float(np.abs(gram).max()):
        raise ComputeError(
            f"Gram matrix: expected no negative eigenvalue, found {smallest:.3g} about the mean of the adapters;"
            " compute it again"
        )
    return centred / scale, cross / scale


def _descend(gram: FloatArray, cross: FloatArray, allowed: NDArray[np.bool_]) -> FloatArray:
    """Approximate all rows at once by accelerated projected gradient steps with restarts; shape (M, S).

    It finds most of each row's support with matrix products of all rows; the active set does the rest.
    """
    from scipy import linalg

    lipschitz = float(linalg.eigvalsh(gram, subset_by_index=[len(gram) - 1] * 2)[0]) * 1.01
    weights: FloatArray = allowed / allowed.sum(axis=1, keepdims=True)
    if lipschitz <= 0.0:
        return weights
    ahead, momentum = weights, np.ones((len(weights), 1))
    for _ in range(DESCENT_STEPS):
        gradient = ahead @ gram - cross
        moved = project_to_simplex(ahead - gradient / lipschitz, allowed)
        step = moved - weights
        restart = np.einsum("ij,ij->i", ahead - moved, step)[:, None] > 0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + np.where(restart, 0.0, (momentum - 1) / following) * step
        momentum = np.where(restart, 1.0, following)
        weights = moved
        if np.abs(step).max() < DESCENT_TOLERANCE:
            break
    return weights


def project_to_simplex(points: FloatArray, allowed: NDArray[np.bool_]) -> FloatArray:
    """Point of the simplex of each row's allowed entries that is nearest to the given one; shape (M, S)."""
    points = np.where(allowed, points, -np.inf)
    descending = -np.sort(-points, axis=1)
    sums = np.cumsum(np.where(np.isfinite(descending), descending, 0.0), axis=1) - 1.0
    numbers = np.arange(1, points.shape[1] + 1)
    positive = descending * numbers > sums
    last = np.count_nonzero(positive, axis=1) - 1
    thresholds = sums[np.arange(len(sums)), last] / (last + 1)
    projected: FloatArray = np.maximum(points - thresholds[:, None], 0.0)
    return projected


class _Problem:
    """One quadratic programme on the simplex, solved by a primal active set from any start.

    Each step minimises over the face of the sources with positive weight (a Cholesky factor), goes there as
    far as the simplex allows, and drops the sources that reach zero. At the minimum of a face, sources whose
    gradient is below the face's are added; where there are none, the conditions of optimality hold.
    """

    def __init__(self, gram: FloatArray, cross: FloatArray, name: str) -> None:
        self.gram = gram
        self.cross = cross
        self.name = name
        size = float(np.abs(cross).max())
        self.largest = max(float(gram.diagonal().max()), 1e-12 * size, np.finfo(np.float64).eps)
        self.tolerance = TOLERANCE * max(self.largest, size)

    def solve(self, weights: FloatArray) -> FloatArray:
        """Return the minimiser; `weights` is a point of the simplex."""
        face = weights > 0.0
        for _ in range(10 * len(weights) + 50):
            gradient = self.gram @ weights - self.cross
            level = float(gradient @ weights)
            below = (gradient < level - self.tolerance) & ~face
            stationary = np.all(np.abs(gradient[face] - level) <= self.tolerance)
            if stationary and not below.any():
                weights = np.where(weights < NEGLIGIBLE, 0.0, weights)
                weights /= weights.sum()
                return weights
            if stationary:
                face = face | below
            weights, face = self._minimise_on_face(weights, face)
        raise ComputeError(
            f"{self.name}: expected the optimality conditions within {TOLERANCE:g}, found {len(weights)} sources"
            " without them; check the Gram matrix for damage"
        )

    def _minimise_on_face(
        self, weights: FloatArray, face: NDArray[np.bool_]
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """One full step on the face or, as long as it leaves the simplex, on ever smaller ones."""
        while True:
            index = np.flatnonzero(face)
            gradient = self.gram[index] @ weights - self.cross[index]
            step = self._newton_step(index, gradient)
            target = weights[index] + step
            whole = bool(target.min() > 0.0)
            kept = np.ones(len(index), dtype=bool)
            if not whole:
                target, kept = self._best_feasible(index, weights[index], step, gradient)
            weights, face = np.zeros_like(weights), np.zeros_like(face)
            weights[index], face[index[kept]] = target, True
            if whole:
                return weights, face

    def _best_feasible(
        self, index: NDArray[np.int64], current: FloatArray, step: FloatArray, gradient: FloatArray
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """The end of the step cut to the simplex if that descends, else the step's last feasible point.

        Cutting drops many sources at once, where the boundary mostly drops one. Returned with the sources
        that stay on the face: one just added may stay there with weight zero.
        """
        lengths = np.full(len(step), np.inf)
        shrinking = step < 0.0
        lengths[shrinking] = current[shrinking] / -step[shrinking]
        kept = lengths > lengths.min()
        boundary = np.where(kept, np.maximum(current + lengths.min() * step, 0.0), 0.0)
        boundary /= boundary.sum()
        cut = np.maximum(current + step, 0.0)
        cut /= cut.sum()
        gram = self.gram[np.ix_(index, index)]
        cut_change, boundary_change = (
            float(move @ (gradient + gram @ move / 2)) for move in (cut - current, boundary - current)
        )
        if cut_change < 0.5 * min(boundary_change, 0.0):
            return cut, cut > 0.0
        return boundary, kept

    def _newton_step(self, index: NDArray[np.int64], gradient: FloatArray) -> FloatArray:
        """Step to the minimum over the plane of the face, on which weights keep their sum."""
        from scipy import linalg

        gram = self.gram[np.ix_(index, index)]
        # A constant added to all of the matrix changes nothing on the plane, and gives it full rank off it.
        gram += self.largest
        factor = self._cholesky(gram)
        solutions = linalg.cho_solve(factor, np.column_stack([gradient, np.ones(len(index))]))
        step: FloatArray = solutions[:, 1] * (solutions[:, 0].sum() / solutions[:, 1].sum()) - solutions[:, 0]
        step -= step.mean()
        return step

    def _cholesky(self, gram: FloatArray) -> tuple[FloatArray, bool]:
        from scipy import linalg

        ridge = RIDGE * self.largest
        diagonal = gram.diagonal().copy()
        while True:
            np.fill_diagonal(gram, diagonal + ridge)
            try:
                factor: tuple[FloatArray, bool] = linalg.cho_factor(gram, check_finite=False)
            except np.linalg.LinAlgError:
                # Rounding of the Gram matrix left a slightly negative eigenvalue.
                ridge *= 10.0
                if ridge > self.largest:
                    raise ComputeError(
                        f"{self.name}: expected a Gram matrix without negative eigenvalues, found one beyond"
                        " rounding; compute it again"
                    ) from None
            else:
                return factor
