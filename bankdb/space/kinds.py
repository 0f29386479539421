"""What of a bank can be freed, by the names that `bank clean --only` takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Freeable:
    """A kind of what can be made again.

    Attributes
    ----------
    name, about
        How users call it, and what it is.
    named
        Whether it is freed only when it is named: it cost a base model's time, or stored runs are read by it.
    """

    name: str
    about: str
    named: bool = False


FREEABLE = (
    Freeable("distributions", "token counts of the datasets"),
    Freeable("distances", "distances between the datasets"),
    Freeable("gram", "inner products of the adapters"),
    Freeable("neural", "networks, and their coefficients"),
    # Before the runs that they are of, which then are what is left of them.
    Freeable("stored", "numbers of predictions (--store)"),
    Freeable("predictions", "stored runs: their coefficients", named=True),
    Freeable("losses", "losses on labelled examples", named=True),
    Freeable("answers", "answers of models to test examples", named=True),
    Freeable("initialisation", "which A factors began alike", named=True),
    # Last: those in an array that goes are its own.
    Freeable("unfinished", "what killed runs left half written"),
)
UNNAMED = tuple(kind.name for kind in FREEABLE if not kind.named)
"""The kinds that are freed unless others are named."""
