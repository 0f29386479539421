"""Leave-one-out coefficients of a bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from bankdb.bank import AdapterBank
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord
from compute.approaches.base import Fitted, given
from compute.approaches.by_distance import effective_sources
from compute.approaches.coefficients import leave_one_out_coefficients
from compute.approaches.options import PredictionOptions, each_way
from compute.cluster.options import Cluster, ClusterLike
from compute.combination.delta_shapes import check_rank_fits
from compute.labels.answer_labels import LabelOptions
from compute.labels.reader import LabelReader
from compute.pairwise.labelled import LabelledMatrix
from compute.prediction.matrices import Matrices, compute_matrices
from compute.prediction.networks.models import neural_coefficients
from compute.prediction.session import computing


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Coefficients(LabelledMatrix):
    """Leave-one-out coefficients of a bank.

    Attributes
    ----------
    adapters
        The N adapters, by row; the order of both axes.
    values
        float64, shape (N, N); rows sum to 1, the diagonal is 0. Where labels are read, NaN in rows of targets that
        were not asked for.
    effective
        1 / sum of squared coefficients of each row, shape (N,).
    metric
        The metric's key, or `none` for an approach that reads no distances.
    options
        How they were made.
    fitted
        Of an approach that chooses: what was chosen for each target.
    labels
        Of an approach that reads labels: a hash of the targets' examples and of the base model.
    """

    adapters: tuple[AdapterRecord, ...]
    values: NDArray[np.float64]
    effective: NDArray[np.float64]
    metric: str
    options: PredictionOptions
    fitted: tuple[Fitted, ...] | None = None
    labels: str | None = None

    def _title(self) -> str:
        n = len(self.adapters)
        return f"Coefficients {described(self.options)}, {n:,} targets x {n:,} sources"

    def _label(self) -> str:
        return self.options.approach

    def _facts(self) -> dict[str, object]:
        mean, least, most = (float(f(self.effective)) for f in (np.mean, np.min, np.max))
        return {"effective sources": f"{mean:.4g} on average, from {least:.4g} to {most:.4g}"}

    def _coordinates(self) -> dict[str, tuple[str, NDArray[np.float64]]]:
        return {"effective_sources": ("target", self.effective)}


def described(options: PredictionOptions) -> str:
    """Return a way of predicting in a few words: metric, approach, and what is not the default."""
    changed = [f"{key.replace('_', '-')} {value}" for key, value in options.parameters().items()]
    name = f"{options.metric} {options.approach}" if options.how.reads_distances else options.approach
    return name + (f" ({', '.join(changed)})" if changed else "")


@overload
def coefficients(
    bank: AdapterBank,
    options: PredictionOptions | None = ...,
    *,
    labels: LabelOptions | None = ...,
    cluster: ClusterLike = ...,
    progress: Progress | None = ...,
) -> Coefficients: ...


@overload
def coefficients(
    bank: AdapterBank,
    options: Sequence[PredictionOptions],
    *,
    labels: LabelOptions | None = ...,
    cluster: ClusterLike = ...,
    progress: Progress | None = ...,
) -> list[Coefficients]: ...


def coefficients(
    bank: AdapterBank,
    options: PredictionOptions | Sequence[PredictionOptions] | None = None,
    *,
    labels: LabelOptions | None = None,
    cluster: ClusterLike = None,
    progress: Progress | None = None,
) -> Coefficients | list[Coefficients]:
    """Compute the leave-one-out coefficients: how much of each source goes into each target.

    Parameters
    ----------
    options
        Metric, approach and their parameters; of a list, a list of coefficients in its order, with the distances
        computed side by side.
    labels
        Where the base model computes, and of which targets, for an approach that reads labels.
    cluster
        Options, a `distributed.Client`, or None: the default client if there is one, else threads.

    Raises
    ------
    BankNotFoundError, ParameterError
        The bank is empty, or has a single adapter; or the rank asked for is above what its modules can have.
    PlanError, ComputeError, BankFormatError
        The work does not fit the memory, a piece failed, or a stored row is damaged; what was done is kept.

    Examples
    --------
    >>> found = coefficients(bank, PredictionOptions(approach="uniform"))
    >>> found.to_xarray().sel(target="task001", source="task002").item()
    0.2
    """
    one = options is None or isinstance(options, PredictionOptions)
    ways = each_way(options)
    for way in ways:
        check_rank_fits(bank, way.rank)
    shown = progress or SilentProgress()
    with computing(bank, cluster, shown) as used:
        found = compute_coefficients(bank, ways, used, shown, labels)
    return found[0] if one else found


def compute_coefficients(
    bank: AdapterBank,
    ways: Sequence[PredictionOptions],
    cluster: Cluster,
    progress: Progress,
    labels: LabelOptions | None = None,
) -> list[Coefficients]:
    """Return the leave-one-out coefficients of each way; the caller holds the compute lock.

    Raises
    ------
    ParameterError
        The bank has fewer than two adapters, so that nothing is left when one is left out.
    DatasetError
        Labels are to be read, and training examples of a target are not there any more.
    """
    matrices, reader = compute_matrices(bank, ways, cluster, progress), LabelReader(bank, labels, progress)
    return [
        _by_labels(options, found, reader, progress)
        if options.how.reads_labels
        else _coefficients(bank, options, found, progress)
        for options, found in zip(ways, matrices, strict=True)
    ]


def _by_labels(
    options: PredictionOptions, found: Matrices, reader: LabelReader, progress: Progress
) -> Coefficients:
    adapters = found.adapters
    labels, asked = reader.of_bank(options, adapters)
    progress.begin(f"losses {options.approach}, {options.leave_out} left out", int(asked.sum()))
    values, fitted = leave_one_out_coefficients(
        options,
        found.distances,
        found.gram,
        found.units,
        labels=labels,
        by_metric=found.by_metric,
        targets=asked,
    )
    progress.end()
    if fitted is not None:
        fitted = tuple({**one, **labels.about(row)} if asked[row] else one for row, one in enumerate(fitted))
    return Coefficients(
        adapters, values, effective_sources(values), found.metric, options, fitted, labels.sha256()
    )


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
        values, fitted = leave_one_out_coefficients(
            options, found.distances, found.gram, units, by_metric=found.by_metric
        )
    return Coefficients(adapters, values, effective_sources(values), found.metric, options, fitted)
