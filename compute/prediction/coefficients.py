"""Leave-one-out coefficients of a bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import sources_of
from compute.approaches.base import Fitted, given
from compute.approaches.by_distance import effective_sources
from compute.approaches.coefficients import leave_one_out_coefficients
from compute.approaches.options import PredictionOptions
from compute.cluster.options import Cluster
from compute.combination.delta import check_rank_fits
from compute.gram.matrix import gram_matrix
from compute.prediction.matrices import Matrices, compute_matrices, coordinates
from compute.prediction.neural_models import neural_coefficients
from compute.prediction.session import computing

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, slots=True, eq=False)
class Coefficients:
    """Leave-one-out coefficients of a bank.

    Attributes
    ----------
    adapters
        The N adapters, by row; the order of both axes.
    values
        float64, shape (N, N); rows sum to 1, the diagonal is 0.
    effective
        1 / sum of squared coefficients of each row, shape (N,).
    metric
        The metric's key, or `none` for an approach that reads no distances.
    options
        How they were made.
    fitted
        Of an approach that is fitted: what was chosen for each target.
    """

    adapters: tuple[AdapterRecord, ...]
    values: NDArray[np.float64]
    effective: NDArray[np.float64]
    metric: str
    options: PredictionOptions
    fitted: tuple[Fitted, ...] | None = None


def coefficients(
    bank: AdapterBank,
    options: PredictionOptions | None = None,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> xarray.DataArray:
    """Return the leave-one-out coefficients with names on their axes: `target` (rows), `source` (columns)."""
    (matrix,) = coefficients_by(bank, [options or PredictionOptions()], cluster=cluster, progress=progress)
    return matrix


def coefficients_by(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> list[xarray.DataArray]:
    """Return the coefficients of each way, in their order; the distances are computed side by side."""
    import xarray

    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        found = compute_coefficients(bank, ways, used, shown)
    return [
        xarray.DataArray(
            way.values,
            coordinates(way.adapters) | {"effective_sources": ("target", way.effective)},
            ("target", "source"),
            name=way.options.approach,
        )
        for way in found
    ]


def leave_one_out(
    bank: AdapterBank,
    options: PredictionOptions | None = None,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> Coefficients:
    """Return the leave-one-out coefficients with the records of the adapters that they are of.

    Raises
    ------
    ParameterError
        The bank has fewer than two adapters, or the rank asked for is above what its modules can have.
    """
    options = options or PredictionOptions()
    check_rank_fits(bank, options.rank)
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        return compute_coefficients(bank, [options], used, shown)[0]


def all_coefficients(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> tuple[list[Coefficients], NDArray[np.float64]]:
    """Return the leave-one-out coefficients of each way, and the Gram matrix of the adapters."""
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        adapters = ready_adapters(bank)
        gram = gram_matrix(bank, adapters, sources_of(bank, adapters), used, shown)
        return compute_coefficients(bank, ways, used, shown), gram


def compute_coefficients(
    bank: AdapterBank, ways: Sequence[PredictionOptions], cluster: Cluster, progress: Progress
) -> list[Coefficients]:
    """Return the leave-one-out coefficients of each way; the caller holds the compute lock.

    Raises
    ------
    ParameterError
        The bank has fewer than two adapters, so that nothing is left when one is left out.
    """
    matrices = compute_matrices(bank, ways, cluster, progress)
    return [
        _coefficients(bank, options, found, progress) for options, found in zip(ways, matrices, strict=True)
    ]


def _coefficients(
    bank: AdapterBank, options: PredictionOptions, found: Matrices, progress: Progress
) -> Coefficients:
    adapters, units, fitted = found.adapters, found.units, None
    network = options.how.network(options)
    if network is not None:
        distances, gram = given(found.distances, "reads_distances"), given(found.gram, "reads_gram")
        left_out = None if options.leave_out == "adapter" else units
        values = neural_coefficients(
            bank, adapters, found.metric, distances, gram, network, progress, left_out
        )
    else:
        values, fitted = leave_one_out_coefficients(options, found.distances, found.gram, units)
    return Coefficients(adapters, values, effective_sources(values), found.metric, options, fitted)
