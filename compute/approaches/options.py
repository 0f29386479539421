"""How a prediction is made: metric, approach and their parameters, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bankdb.errors import ParameterError
from compute.approaches.base import Approach
from compute.approaches.by_distance import coefficients
from compute.approaches.groups import LEAVE_OUT
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.registry import get_approach
from compute.merge_methods.method import LINEAR, MergeMethod, merge_method
from compute.metrics.base import Metric
from compute.metrics.distributions import TokenCounts, median_sigma
from compute.metrics.registry import canonical_metric_name, get_metric
from compute.metrics.tfidf import inverse_document_frequencies

FULL = "full"
EXAMPLES = 32
"""Labelled examples that are read of a target by default."""

SPACES = ("factors", "delta")
_NEURAL = NeuralOptions()


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """Metric, approach and their parameters; the defaults are the ones recommended to users.

    Attributes
    ----------
    metric
        `wasserstein`, `kullback-leibler`, `jensen-shannon`, `mmd`, or `wd`, `kl`, `js`; or `tf-idf`.
    approach
        Name of one that is registered: see `compute.approaches.registry`. `attentional`, `normalized`, `neural`,
        `uniform`, `nearest`; `tuned`, `ridge`, `ridge-signed` (whose coefficients may be negative) and `matching`,
        which are none of the paper's; `selected`, which reads the dataset's labels; `oracle` knows the answer and is
        a bound only. `matching` is by MMD, whatever the metric.
    temperature
        Divides the distances, or z-scores, before the softmin.
    top_k
        Keep the k largest coefficients and renormalise; None keeps all.
    compatible
        `correct`, or `published` for the choices of the paper's code.
    kernel, sigma
        Of `mmd`: `multiscale`, or `gaussian` of bandwidth `sigma` (None: the median heuristic).
    protocol, seed, knots, width, epochs
        Of `neural`: see `NeuralOptions`.
    leave_out
        `adapter`: each is predicted from all others; `group`: from those of other groups. What is fitted on
        the bank's own rows is fitted so too.
    space
        `factors`, A and B combined apart, as the paper does; or `delta`, the products B A summed and cut.
    rank
        Of `delta`: a whole number, `full` for the exact sum, None for the bank's.
    merge
        `linear`, the weighted sum; or a merge method that looks at each value: `ties`, `dare-linear`, `dare-ties`,
        `magnitude-prune`.
    density, majority_sign, merge_weights, merge_seed
        Of such a method: see `compute.merge_methods.method.MergeMethod`; None for its default, or if it reads none.
    examples, model
        Of an approach that reads labels: how many of the dataset's examples are drawn, by `seed`, None for all; and
        folder or hub name of the base model, None for the name that the bank has.
    """

    metric: str = "jensen-shannon"
    approach: str = "normalized"
    temperature: float = 1.0
    top_k: int | None = None
    compatible: str = "correct"
    kernel: str = "multiscale"
    sigma: float | None = None
    protocol: str = "cross-fitted"
    seed: int = 0
    knots: int | None = _NEURAL.knots
    width: int = _NEURAL.width
    epochs: int = _NEURAL.epochs
    # Stored predictions are of factors and found by this text, which these have no part in.
    leave_out: str = field(default="adapter", repr=False)
    space: str = field(default="factors", repr=False)
    rank: int | str | None = field(default=None, repr=False)
    merge: str = field(default=LINEAR, repr=False)
    density: float | None = field(default=None, repr=False)
    majority_sign: str | None = field(default=None, repr=False)
    merge_weights: str | None = field(default=None, repr=False)
    merge_seed: int | None = field(default=None, repr=False)
    examples: int | None = field(default=EXAMPLES, repr=False)
    model: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        how = self.how
        object.__setattr__(self, "metric", canonical_metric_name(how.metric or self.metric))
        # Refused here, before hours of distances: a row of one source goes through the same checks.
        coefficients(
            np.zeros((1, 1)),
            np.zeros((1, 1), dtype=np.bool_),
            "uniform",
            temperature=self.temperature,
            top_k=self.top_k,
            compatible=self.compatible,
        )

        _ = self.neural
        self._check_space()
        for name, value in self.merge_method.parameters().items():
            object.__setattr__(self, name, value)
        if how.signed and self.merge_method.elects and self.merge_weights == "convex":
            raise ParameterError(
                f"merge-weights: expected peft for {self.merge} with {self.approach}, whose coefficients may be "
                "negative, found convex: a mean by such weights is none; pass --merge-weights peft, or another method"
            )
        number = self.examples
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ParameterError(
                f"examples: expected a whole number from 1 on, found {number!r}; {EXAMPLES} is the default"
            )
        if self.leave_out not in LEAVE_OUT:
            raise ParameterError(
                f"leave_out: expected {' or '.join(LEAVE_OUT)}, found {self.leave_out!r}; use one of them"
            )
        given = {"temperature": self.temperature != 1, "top_k": self.top_k is not None}
        if any(given[name] for name in given.keys() - set(how.reads)):
            raise ParameterError(
                f"temperature and top-k: not for {self.approach}, which has its own weights; leave them out"
            )

    def _check_space(self) -> None:
        if self.space not in SPACES:
            raise ParameterError(
                f"space: expected one of {', '.join(SPACES)}, found {self.space!r}; use one of them"
            )
        check_rank(self.rank)
        if self.rank is not None and self.space != "delta":
            raise ParameterError(
                f"rank: goes with space delta, {self.space} found; combined factors have the bank's rank"
            )

    @property
    def how(self) -> Approach:
        """The approach itself, with all that it states. Raises ParameterError if it is none (any more)."""
        return get_approach(self.approach)

    @property
    def neural(self) -> NeuralOptions:
        """Options of the neural approach."""
        return NeuralOptions(
            protocol=self.protocol,
            seed=self.seed,
            knots=self.knots,
            width=self.width,
            epochs=self.epochs,
            compatible=self.compatible,
        )

    @property
    def merge_method(self) -> MergeMethod:
        """How the sources are combined. Raises ParameterError for parameters that do not go together."""
        return merge_method(self.merge, self.density, self.majority_sign, self.merge_weights, self.merge_seed)

    def resolve_metric(self, counts: TokenCounts | None) -> Metric:
        """Return the metric, with what it takes from the bank's `counts`: see `needs_counts`."""
        gaussian = self.metric == "mmd" and self.kernel == "gaussian"
        sigma = self.sigma if self.metric == "mmd" else None
        tf_idf = self.metric == "tf-idf"
        if gaussian and sigma is None and counts is not None:
            sigma = median_sigma(counts)
        return get_metric(
            self.metric,
            kernel=self.kernel if self.metric == "mmd" else "multiscale",
            sigma=sigma,
            compatible=self.compatible,
            frequencies=inverse_document_frequencies(counts) if tf_idf and counts is not None else None,
        )

    @property
    def needs_counts(self) -> bool:
        """Whether the metric takes parameters from the bank's token counts: a bandwidth, or tf-idf's frequencies."""
        median = self.metric == "mmd" and self.kernel == "gaussian" and self.sigma is None
        return median or self.metric == "tf-idf"

    def parameters(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, for a record; where the model lies is no part of it."""
        defaults = asdict(PredictionOptions())
        chosen = asdict(self)
        return {
            key: value
            for key, value in chosen.items()
            if key not in {"metric", "approach", "model"} and value != defaults[key]
        }


def each_way(options: PredictionOptions | Sequence[PredictionOptions] | None) -> list[PredictionOptions]:
    """Return the ways that were asked for; for None, the default one."""
    if options is None or isinstance(options, PredictionOptions):
        return [options or PredictionOptions()]
    return list(options)


def check_rank(rank: int | str | None) -> None:
    """Check a rank as users give it: a whole number of at least 1, `full`, or None for the bank's.

    Raises
    ------
    ParameterError
        It is none of these.
    """
    whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    if not whole and rank is not None and rank != FULL:
        raise ParameterError(f"rank: expected a whole number of at least 1, or {FULL!r}, found {rank!r}")
