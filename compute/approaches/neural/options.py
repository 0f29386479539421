"""Options of the neural approach."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bankdb.errors import ParameterError
from compute.approaches.neural.knots import FEWEST_KNOTS
from compute.types import COMPATIBLE

PROTOCOLS = ("cross-fitted", "published")
HELD_OUT = {"cross-fitted": 0.1, "published": 0.0}
STREAMS = ("initial", "held-out", "folds", "share")
"""Uses of random numbers, each with a generator of its own from the one seed."""


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
        evaluates it at each distinct z-score. At the default width the coefficients of one network, applied
        both ways, differ by less than 1e-3 in total variation of a row (measured: 2e-4). Trained both ways
        they differ by up to 1e-2, at losses equal to 1e-3: 40 steps of Adam magnify any difference, and
        exact training in another order of summation alone moves them by 3e-3.
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
        for name, chosen, values in (
            ("protocol", self.protocol, PROTOCOLS),
            ("compatible", self.compatible, COMPATIBLE),
        ):
            if chosen not in values:
                raise ParameterError(
                    f"{name}: expected one of {', '.join(values)}, found {chosen!r}; use one of them"
                )
        for name, least in (("width", 2), ("epochs", 1), ("folds", 2), ("patience", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ParameterError(
                    f"{name}: expected a whole number from {least} on, found {getattr(self, name)};"
                    " leave it out for the default"
                )
        if self.seed >= 2**63:
            raise ParameterError(f"seed: expected a whole number below 2^63, found {self.seed}; use another")
        if self.knots is not None and self.knots < FEWEST_KNOTS:
            raise ParameterError(
                f"knots: expected at least {FEWEST_KNOTS}, found {self.knots}; None evaluates exactly"
            )
        for name, value, allowed, inside in (
            ("learning_rate", self.learning_rate, "above 0", 0.0 < self.learning_rate < math.inf),
            ("training_share", self.training_share, "above 0 up to 1", 0.0 < self.training_share <= 1.0),
            ("held_out", self.held_out, "from 0 to below 1", 0.0 <= self.held_out_share < 1.0),
        ):
            if not inside:
                raise ParameterError(
                    f"{name}: expected a number {allowed}, found {value}; leave it out for the default"
                )

    @property
    def held_out_share(self) -> float:
        """Share of the training rows that is held out."""
        return HELD_OUT[self.protocol] if self.held_out is None else self.held_out

    @property
    def trainings(self) -> int:
        """Number of networks that leave-one-out trains."""
        return self.folds if self.protocol == "cross-fitted" else 1

    def generator(self, stream: str) -> np.random.Generator:
        """Return a generator of this seed for one of `STREAMS`, independent of the others."""
        return np.random.default_rng([self.seed, STREAMS.index(stream)])
