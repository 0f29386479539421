"""Prompts as token ids: what they share, how they are batched, how many tokens an answer may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bankdb.datasets.held_out import HeldOut
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import DatasetError

MARGIN = 8
"""Tokens that an answer may have beyond those of the longest reference of its task."""
_BATCH_COST = 128
"""What one more batch costs, in tokens read: its decoding steps read every weight once more."""
_MOST_TOKENS = 4096
_MOST_ROWS = 64


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one test split.

    Attributes
    ----------
    ids
        Token ids of each prompt.
    shared
        Tokens that all of them begin with; at least one token of each prompt is not shared.
    new_tokens
        Limit on the tokens of an answer.
    """

    ids: tuple[tuple[int, ...], ...]
    shared: int
    new_tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with the longest answer."""
        return max(len(ids) for ids in self.ids) + self.new_tokens


def encode_prompts(tokenizer: BankTokenizer, split: HeldOut, name: str) -> Prompts:
    """Tokenize the inputs of a test split as `encode_texts` does, and find the limit for answers.

    Raises
    ------
    DatasetError
        An input has no tokens, so that there is nothing to continue.
    """
    ids = encode_texts(tokenizer, split.inputs, f"{name}: test example")
    references = [answer for answers in split.references for answer in answers]
    lengths = [len(tokens) - tokenizer.added_tokens() for tokens in tokenizer.encode(references)]
    return Prompts(tuple(ids), shared_tokens(ids), max(1, *lengths) + MARGIN)


def encode_texts(tokenizer: BankTokenizer, texts: Sequence[str], what: str) -> list[tuple[int, ...]]:
    """Tokenize texts that are to be continued, as they are counted (section C.1.2).

    A tokenizer that puts an end-of-sequence token behind each text has it taken off: an answer follows.

    Parameters
    ----------
    what
        What messages call a text, before its number.

    Raises
    ------
    DatasetError
        A text has no tokens, so that there is nothing to continue.
    """
    end = tokenizer.end_of_sequence
    ids = [tuple(tokens) for tokens in tokenizer.encode(texts)]
    if tokenizer.added_tokens() and all(tokens and tokens[-1] == end for tokens in ids):
        ids = [tokens[:-1] for tokens in ids]
    empty = [index for index, tokens in enumerate(ids) if not tokens]
    if empty:
        raise DatasetError(f"{what} {empty[0] + 1} has an input without tokens; expected text to continue")
    return ids


def shared_tokens(ids: Sequence[tuple[int, ...]]) -> int:
    """Return how many tokens all prompts begin with, leaving one of each."""
    shortest, longest = min(ids), max(ids)  # in the order of the alphabet: what these share, all share
    most = min(len(tokens) for tokens in ids) - 1
    same = (index for index in range(most) if shortest[index] != longest[index])
    return next(same, most)


def plan_batches(lengths: Sequence[int], rows: int | None = None) -> list[list[int]]:
    """Cut prompts into batches of similar length, so that little is computed for padding.

    Parameters
    ----------
    lengths
        Tokens of each prompt that are read, those shared left out.
    rows
        Prompts of a batch; None cuts where the padded tokens, and a fixed cost for each batch, are fewest.

    Returns
    -------
    Positions in `lengths` of each batch, longest prompts first.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    if rows is not None:
        return [order[start : start + rows] for start in range(0, len(order), rows)]
    best = np.full(len(order) + 1, np.inf)
    best[0] = 0.0
    begin = [0] * (len(order) + 1)
    for stop in range(1, len(order) + 1):
        for start in range(max(0, stop - _MOST_ROWS), stop):
            tokens = lengths[order[start]] * (stop - start)
            if tokens > _MOST_TOKENS and stop - start > 1:
                continue
            cost = best[start] + tokens + _BATCH_COST
            if cost < best[stop]:
                best[stop], begin[stop] = cost, start
    batches: list[list[int]] = []
    stop = len(order)
    while stop:
        batches.append(order[begin[stop] : stop])
        stop = begin[stop]
    return batches[::-1]
