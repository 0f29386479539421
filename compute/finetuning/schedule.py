"""Which examples are trained on, which are held out, what each step reads, and where a step is looked back from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bankdb.errors import DatasetError
from compute.finetuning.options import LEAST_EXAMPLES

_HELD_OUT = 5


@dataclass(frozen=True, slots=True)
class Split:
    """Examples by their place in the dataset.

    Attributes
    ----------
    training, held_out
        Places, in the order drawn; none is in both.
    repeated
        How many examples of the dataset were left out since they stand in it before.
    """

    training: tuple[int, ...]
    held_out: tuple[int, ...]
    repeated: int


def split_examples(examples: Sequence[tuple[str, str]], most: int | None, seed: int, name: str) -> Split:
    """Draw up to `most` different examples and hold a fifth of them out, rounded, at least one.

    The same seed draws the same of equal datasets; more examples contain those that fewer have.

    Raises
    ------
    DatasetError
        There are fewer than `LEAST_EXAMPLES`, or none has an answer.
    """
    first: dict[tuple[str, str], int] = {}
    for place, example in enumerate(examples):
        first.setdefault(example, place)
    places = np.asarray(list(first.values()))
    if not any(answer for _, answer in first):
        raise DatasetError(
            f"{name}: expected answers to learn from, found none in {len(examples)} examples; name their column with "
            "--output-column"
        )
    if len(places) < LEAST_EXAMPLES:
        raise DatasetError(
            f"{name}: expected at least {LEAST_EXAMPLES} different examples, of which a fifth is held out, found "
            f"{len(places)}; add some, or use the prediction as it is (`bank predict`)"
        )
    drawn = np.random.default_rng(seed).permutation(places)[:most].tolist()
    if len(drawn) < LEAST_EXAMPLES:
        raise DatasetError(
            f"{name}: expected at least {LEAST_EXAMPLES} examples to be used, found {len(drawn)}; raise --examples"
        )
    # Every fifth of the order drawn, so that more examples keep those that were held out.
    held_out = drawn[_HELD_OUT - 1 :: _HELD_OUT]
    training = [place for number, place in enumerate(drawn, 1) if number % _HELD_OUT]
    return Split(tuple(training), tuple(held_out), len(examples) - len(places))


def plan_batches(examples: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Return which training examples each step reads: passes over all of them, each in an order of its own.

    A longer plan begins with every shorter one.

    Parameters
    ----------
    examples
        Their number; a batch that is larger has each once.

    Returns
    -------
    A list of `steps` lists of places among the training examples.
    """
    generator = np.random.default_rng([seed, 1])
    size = min(batch_size, examples)
    batches: list[list[int]] = []
    waiting: list[int] = []
    while len(batches) < steps:
        while len(waiting) < size:
            waiting += generator.permutation(examples).tolist()
        batches.append(waiting[:size])
        waiting = waiting[size:]
    return batches


def is_checked(step: int, steps: int) -> bool:
    """Whether the held-out loss is computed after a step: at powers of two and the last, so that few passes tell."""
    return step == steps or step & (step - 1) == 0
