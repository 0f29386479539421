"""What learning curves found: scores by start, step and target, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scores:
    """Mean Rouge-L and exact match of each target, 0 to 1, in the order of the targets."""

    rouge: tuple[float, ...]
    exact: tuple[float, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Scores:
        """Return them from pairs of both."""
        return cls(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


@dataclass(frozen=True, slots=True)
class CurveStart:
    """One start, and what followed from it.

    Attributes
    ----------
    name
        `zero`, or the system's that predicts it.
    leave_out
        `adapter` or `group`; None for `zero`.
    scores
        At each number of steps.
    held_out
        Loss on the examples held out: at each number of steps, of each target; nats a token.
    seconds
        Of training, of each target.
    """

    name: str
    leave_out: str | None
    scores: tuple[Scores, ...]
    held_out: tuple[tuple[float, ...], ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LearningCurves:
    """Scores of all starts; base model and own adapters beside them.

    Attributes
    ----------
    targets, groups
        Names, and their groups.
    steps
        Numbers of steps.
    base, own
        Of the base model, and of each target's own adapter.
    failures
        Targets that could not be trained on, with the reason.
    """

    targets: tuple[str, ...]
    groups: tuple[str | None, ...]
    steps: tuple[int, ...]
    base: Scores
    own: Scores
    starts: tuple[CurveStart, ...]
    failures: Mapping[str, str]
