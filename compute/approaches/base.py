"""What an approach is: what it states of itself, what it is given, and what it makes of that.

An approach turns distances, and whatever else it declares that it reads, into the coefficients of convex
combinations. This module loads no NumPy, and neither do the approaches of `compute.approaches.kinds` before
they compute: `bank --help` knows all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bankdb.errors import ParameterError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compute.approaches.neural.options import NeuralOptions
    from compute.types import FloatArray

    Units = NDArray[np.intp]
    Excluded = NDArray[np.bool_]

Fitted = dict[str, Any]
"""What was chosen for one target by the bank's own rows, under the names of the settings."""


OPTIONS = (
    "temperature",
    "top_k",
    "compatible",
    "protocol",
    "seed",
    "knots",
    "width",
    "epochs",
    "examples",
    "model",
)
"""Options of a prediction that an approach may read, besides what makes its matrices."""


class Settings(Protocol):
    """What an approach may read of the options: see `compute.approaches.options.PredictionOptions`."""

    @property
    def metric(self) -> str:
        """Full name of the metric."""

    @property
    def temperature(self) -> float:
        """Divides what goes into a softmin."""

    @property
    def top_k(self) -> int | None:
        """Largest coefficients that are kept; None for all."""

    @property
    def compatible(self) -> str:
        """`correct`, or `published` for the choices of the paper's code."""

    @property
    def leave_out(self) -> str:
        """`adapter` or `group`."""

    @property
    def seed(self) -> int:
        """Of all that is drawn."""

    @property
    def examples(self) -> int | None:
        """Labelled examples that are read of a target, at the most; None is all."""

    @property
    def neural(self) -> NeuralOptions:
        """Protocol, seed, knots, width and epochs of a network."""


class Labels(Protocol):
    """What an approach that reads labels is given of the targets' own labelled examples."""

    def loss(self, target: int, weights: FloatArray) -> float:
        """Return the base model's loss on the examples of a target under one combination of the sources.

        Parameters
        ----------
        target
            The row that is predicted.
        weights
            float64, shape (S,): coefficients over the sources, S = N by leave-one-out; none below 0, sum 1.

        Returns
        -------
        Nats per answer token, a finite number from 0 on; the lower, the better.

        Raises
        ------
        BankError
            The base model or the examples cannot be read, or the loss is no finite number.
        """


@dataclass(frozen=True, slots=True, eq=False)
class LeaveOneOut:
    """The N datasets of a bank, each to be predicted from others.

    Attributes
    ----------
    options
        Those of the prediction.
    distances
        float64, shape (N, N), rows are targets; None for an approach that does not declare that it reads them.
    gram
        float64, shape (N, N): inner products of the adapters; None likewise.
    units
        Shape (N,): number from 0 on of what each row is left out with.
    excluded
        bool, shape (N, N): sources that a row must not use, at least those of its unit. They get exactly 0.
    labels
        The targets' own training examples, for an approach that declares that it reads labels; else None.
    by_metric
        Full names of the metrics that the approach declares, each with distances of shape (N, N).
    targets
        bool, shape (N,): rows that are asked for, where a row is dear; None for all. Others need not be made.
    """

    options: Settings
    distances: FloatArray | None
    gram: FloatArray | None
    units: Units
    excluded: Excluded
    labels: Labels | None = None
    by_metric: Mapping[str, FloatArray] = field(default_factory=dict)
    targets: Excluded | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NewDatasets:
    """M datasets that are not among the S sources that they are predicted from.

    Attributes
    ----------
    options
        Those of the prediction.
    to_sources
        float64, shape (M, S); where a metric has two directions, from the target to the source, or the mean
        of both for an approach with `averages_directions`. NaN for one that reads no distances.
    between_sources
        float64, shape (S, S); None for an approach that does not declare `reads_bank`.
    gram
        float64, shape (S, S): inner products of the adapters; None for one that does not read both.
    units
        Shape (S,): number from 0 on of what each source is left out with, where something is fitted.
    labels
        The datasets' own examples, as `LeaveOneOut.labels`.
    by_metric
        As `LeaveOneOut.by_metric`, of shape (M, S), from the target to the source.
    """

    options: Settings
    to_sources: FloatArray
    between_sources: FloatArray | None
    gram: FloatArray | None
    units: Units
    labels: Labels | None = None
    by_metric: Mapping[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What an approach made.

    Attributes
    ----------
    coefficients
        float64, a row a target, a column a source; rows sum to 1, none below 0 unless the approach is `signed`.
    fitted
        What was chosen for each row; None for an approach that chooses nothing.
    """

    coefficients: FloatArray
    fitted: tuple[Fitted, ...] | None = None


class Approach(ABC):
    """A way from distances to coefficients; a class and a registration make one: see `registry.register`.

    Attributes
    ----------
    name
        As `--approach` and `PredictionOptions.approach` have it, and under which predictions are stored:
        one name, one way to compute. Parameters of its own make approaches of other names.
    about
        What it does, in a line, for `--help` and the documentation.
    reads_distances
        Whether it reads distances: `nearest` does, `uniform` does not.
    metric
        The metric that it reads, whatever is asked for; None for the one asked for.
    reads_gram
        Whether it reads the Gram matrix, the inner products of the adapters.
    metrics
        Full names of metrics whose distances it reads all, whatever is asked for: see `LeaveOneOut.by_metric`.
    reads_labels
        Whether it reads the targets' own labelled examples, through the base model: see `Labels`. Such an approach
        is part of no `all` and of no default, and is made when it is asked for by name.
    reads_bank
        Whether it reads the bank's own distances, and the Gram matrix if it reads one, for a new dataset too.
    averages_directions
        Whether a new dataset's distances are the mean of both directions, where a metric has two.
    reads
        Those of `OPTIONS` that it reads. A temperature or a top-k other than the default is refused for an
        approach that does not name it.
    fitted
        Whether it chooses settings on the bank's rows; it takes two units among the sources at least.
    least
        Adapters, or groups where these are left out, that a bank must have for it to predict each from the others.
    knows_answer
        Whether it reads the adapter that it predicts: a bound, never there for new datasets, never the best.
    baseline
        Whether the others are compared with it: equal shares of all sources.
    single_source
        Whether it takes one source alone, so that a prediction is a copy.
    signed
        Whether coefficients may be negative: the combination is affine then, and not convex.
    quick
        Whether it is one pass over the distances, whose time `bank plan` tells; `all` are these.
    of_the_paper
        Whether it is one of the three that arXiv 2507.01806 proposes.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    reads_distances: ClassVar[bool] = True
    metric: ClassVar[str | None] = None
    reads_gram: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ()
    reads_labels: ClassVar[bool] = False
    reads_bank: ClassVar[bool] = False
    averages_directions: ClassVar[bool] = False
    reads: ClassVar[tuple[str, ...]] = ()
    fitted: ClassVar[bool] = False
    least: ClassVar[int] = 2
    knows_answer: ClassVar[bool] = False
    baseline: ClassVar[bool] = False
    single_source: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    quick: ClassVar[bool] = False
    of_the_paper: ClassVar[bool] = False

    @abstractmethod
    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        """Coefficients of each dataset of a bank over the sources that are not excluded; shape (N, N).

        Raises
        ------
        ParameterError
            Nothing is left to combine or to fit on.
        ComputeError
            For a distance or a Gram matrix that is damaged.
        """

    @abstractmethod
    def new_dataset(self, inputs: NewDatasets) -> Made:
        """Coefficients of M new datasets over S sources; shape (M, S).

        Raises
        ------
        ParameterError, ComputeError
            As `leave_one_out`; or it knows no way to predict for a new dataset.
        """

    def network(self, options: Settings) -> NeuralOptions | None:
        """Return the options of the network that a bank trains for it, and keeps with its coefficients.

        An approach that overrides this is trained: the coefficients are those of a network with these
        options (`compute.approaches.neural`), which is stored and applied to new datasets. All others return
        None, and nothing of theirs but predictions is stored.
        """
        return None

    @property
    def trained(self) -> bool:
        """Whether a network is trained for it, which takes minutes: see `network`."""
        return type(self).network is not Approach.network

    @property
    def of_matrices_alone(self) -> bool:
        """Whether the bank's matrices are all that it takes: no network is trained for it, no base model asked."""
        return not self.trained and not self.reads_labels


def given(matrix: FloatArray | None, declared: str) -> FloatArray:
    """Return a matrix that an approach reads, which is there if the approach declares so.

    Raises
    ------
    ParameterError
        It is not there; `declared` names the attribute to set.
    """
    if matrix is None:
        raise ParameterError(f"approach: expected a matrix that was asked for; set {declared} in its class")
    return matrix
