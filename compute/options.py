"""How a prediction is made: metric, approach and their parameters, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bankdb.errors import ParameterError
from compute.blocks import Metric
from compute.coefficients import APPROACHES, coefficients
from compute.distributions import TokenCounts, median_sigma
from compute.metrics import canonical_metric_name, get_metric
from compute.neural_options import NeuralOptions

ALL_APPROACHES = (*APPROACHES, "neural", "oracle")
NO_DISTANCES = ("uniform", "oracle")
_NEURAL = NeuralOptions()


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """Metric, approach and their parameters; the defaults are the ones recommended to users.

    Attributes
    ----------
    metric
        `wasserstein`, `kullback-leibler`, `jensen-shannon`, `mmd`, or `wd`, `kl`, `js`.
    approach
        `attentional`, `normalized`, `neural`, `uniform`, `nearest`; `oracle` knows the answer and is a
        bound only.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", canonical_metric_name(self.metric))
        if self.approach not in ALL_APPROACHES:
            raise ParameterError(
                f"approach: expected one of {', '.join(ALL_APPROACHES)}, found {self.approach!r}; use one of them"
            )
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
        if self.approach in ("neural", "oracle") and (self.temperature != 1 or self.top_k is not None):
            raise ParameterError(
                f"temperature and top-k: not for {self.approach}, which has its own weights; leave them out"
            )

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

    def resolve_metric(self, counts: TokenCounts | None) -> Metric:
        """Return the metric; for a Gaussian kernel without a bandwidth, with the median of `counts`."""
        gaussian = self.metric == "mmd" and self.kernel == "gaussian"
        sigma = self.sigma if self.metric == "mmd" else None
        if gaussian and sigma is None and counts is not None:
            sigma = median_sigma(counts)
        return get_metric(
            self.metric,
            kernel=self.kernel if self.metric == "mmd" else "multiscale",
            sigma=sigma,
            compatible=self.compatible,
        )

    @property
    def needs_counts(self) -> bool:
        """Whether the metric's own parameters depend on the bank's token counts."""
        return self.metric == "mmd" and self.kernel == "gaussian" and self.sigma is None

    def parameters(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, for a record."""
        defaults = asdict(PredictionOptions())
        chosen = asdict(self)
        return {
            key: value
            for key, value in chosen.items()
            if key not in {"metric", "approach"} and value != defaults[key]
        }
