"""What is trained, from where, and for how long: checked once, before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bankdb.errors import ParameterError

LEAST_EXAMPLES = 5
"""Fewest from which a fifth can be held out."""
LEARNING_RATE = 2e-3
"""Of AdamW, after the first steps."""
PREDICTED, ZERO = "predicted", "zero"
TRAIN_DTYPES = ("auto", "float32", "bfloat16")
MOST_STEPS = 1_000_000


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """How an adapter is trained on a dataset's own examples.

    Attributes
    ----------
    start
        `predicted`; `zero`, an adapter that changes nothing; the name of an adapter of the bank; or a folder that
        PEFT's save_pretrained wrote, of the bank's base model.
    steps
        Of training.
    budget
        Seconds of training, in place of `steps`: as many steps as fit, by what the first takes; at least one.
    examples
        Used at most, of which a fifth is held out; None is all.
    batch_size
        Examples of a step.
    learning_rate
        Of AdamW; lower in the first three steps from a start that changes answers: see `trainer.warmup_steps`.
    seed
        Draws the examples, their order, and the start from zero.
    train_dtype
        What the base model is read in: `float32`, `bfloat16`, or `auto`, whichever is faster here.
    model
        Folder or hub name of the base model; None is the bank's.
    device
        `auto`, `cpu` or `cuda`.
    threads
        Cores to use on a CPU; None is all.
    """

    start: str = PREDICTED
    steps: int = 8
    budget: float | None = None
    examples: int | None = 32
    batch_size: int = 8
    learning_rate: float = LEARNING_RATE
    seed: int = 0
    train_dtype: str = "auto"
    model: str | None = None
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("steps", self.steps, 1),
            ("examples", self.examples, LEAST_EXAMPLES),
            ("batch_size", self.batch_size, 1),
            ("seed", self.seed, 0),
            ("threads", self.threads, 1),
        ):
            if value is not None and (value < least or (name == "steps" and value > MOST_STEPS)):
                most = f" and at most {MOST_STEPS:,}" if name == "steps" else ""
                raise ParameterError(f"{name}: expected at least {least}{most}, found {value}; change it")
        for name, number in (("learning_rate", self.learning_rate), ("budget", self.budget)):
            if number is not None and not (math.isfinite(number) and number > 0):
                raise ParameterError(f"{name}: expected a positive number, found {number}; change it")
        if self.train_dtype not in TRAIN_DTYPES:
            raise ParameterError(
                f"train_dtype: expected one of {', '.join(TRAIN_DTYPES)}, found {self.train_dtype!r}; use one of them"
            )


def parse_seconds(text: str) -> float:
    """Return seconds from text such as `90s`, `10m` or `1.5h`.

    Raises
    ------
    ParameterError
        The text is not a positive time.
    """
    from dask.utils import parse_timedelta

    compact = text.replace(" ", "")
    try:
        seconds = float(parse_timedelta(compact, default="s")) if compact[:1].isdigit() else math.nan
    except (ValueError, KeyError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ParameterError(f"budget: expected a time such as 90s, 10m or 2h, found {text!r}")
    return seconds
