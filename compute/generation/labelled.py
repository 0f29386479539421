"""Labelled examples as token ids, and the loss of a model on their answers alone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import DatasetError, TokenizerError
from compute.generation.prompts import shared_tokens

if TYPE_CHECKING:
    import torch

_BATCH = 8


@dataclass(frozen=True, slots=True)
class LabelledExample:
    """A prompt with its answer.

    Attributes
    ----------
    ids
        Token ids of the prompt, then of the answer, then the token that ends it.
    answer
        How many of them are the answer, its end included; at least 1.
    """

    ids: tuple[int, ...]
    answer: int


def encode_labelled(
    tokenizer: BankTokenizer, inputs: Sequence[str], outputs: Sequence[str], end: int, name: str
) -> tuple[LabelledExample, ...]:
    """Tokenize examples so that a model reads a prompt as it will when it answers: see `encode_prompts`.

    Input and output are tokenized as one text where that begins with the tokens of the input; else apart. An answer
    that ends with the token already, as by a chat template, is not ended twice: nothing is generated after its end.

    Parameters
    ----------
    end
        Id of the token that ends an answer.

    Raises
    ------
    DatasetError
        An input has no tokens, so that there is nothing to answer.
    """
    added, closing = tokenizer.added_tokens(), tokenizer.end_of_sequence
    prompts = tokenizer.encode(list(inputs))
    whole = tokenizer.encode([text + output for text, output in zip(inputs, outputs, strict=True)])
    alone = tokenizer.encode(list(outputs))
    # A tokenizer that ends each text has the end taken off: an answer follows, and has its own.
    closes = added > 0 and all(ids and ids[-1] == closing for ids in (*prompts, *whole, *alone))
    stop = -1 if closes else None
    found = []
    for number, (prompt, both, answer) in enumerate(zip(prompts, whole, alone, strict=True), 1):
        prompt, both, answer = prompt[:stop], both[:stop], answer[added - closes : stop]
        if not prompt:
            raise DatasetError(
                f"{name}: example {number} has an input without tokens; expected text to answer"
            )
        rest = both[len(prompt) :] if both[: len(prompt)] == prompt else answer
        rest = _ended(tokenizer, rest, end)
        found.append(LabelledExample((*prompt, *rest), len(rest)))
    return tuple(found)


def _ended(tokenizer: BankTokenizer, answer: Sequence[int], end: int) -> list[int]:
    """Return an answer that ends once: chat templates end answers themselves, some with a line break after the end."""
    if end in answer:
        last = len(answer) - 1 - list(answer[::-1]).index(end)
        if not tokenizer.decode(answer[last + 1 :]).strip():
            return list(answer[: last + 1])
    return [*answer, end]


def answer_end(tokenizer: BankTokenizer, ends: Collection[int], folder: Path) -> int:
    """Return the id that ends an answer: the tokenizer's, or the least of those that the model's settings state.

    Raises
    ------
    TokenizerError
        There is none.
    """
    own = tokenizer.end_of_sequence
    if own is None and not ends:
        raise TokenizerError(
            f"{folder}: expected a token that ends a text, found none in the bank's tokenizer nor as eos_token_id of "
            "the base model; state it in generation_config.json"
        )
    return min(ends) if own is None else own


def check_labelled(model: Any, examples: Sequence[LabelledExample], name: str) -> None:
    """Raise DatasetError if the model has no row for an id, or too few positions for an example."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(max(example.ids) for example in examples)
    if largest >= rows:
        raise DatasetError(
            f"{name}: an example has token id {largest}, the base model has {rows} rows of token ids; "
            "pass the bank's base model with --model"
        )
    longest = max(len(example.ids) for example in examples)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise DatasetError(
            f"{name}: the longest example has {longest} tokens with its answer, the base model has {positions} "
            "positions; shorten the examples"
        )


class AnswerLoss:
    """Cross-entropy of a causal model on answers: logits of nothing else are computed, where the model can.

    Parameters
    ----------
    model
        The model, an adapter in it or not.
    forward
        Whose signature tells what it takes: a wrapper's own hides it. The model's if not given.
    """

    def __init__(self, model: Any, forward: Any = None) -> None:
        self._model = model
        known = inspect.signature(forward or model.forward).parameters
        self._keeps, self._positions = "logits_to_keep" in known, "position_ids" in known
        # Transformers 5.24 named the one as the other.
        self._cache = next((name for name in ("cache", "past_key_values") if name in known), "")

    def total(self, examples: Sequence[LabelledExample]) -> torch.Tensor:
        """Return the sum over all tokens of all answers, in nats, as a float32 scalar.

        Examples are padded on the left, so that answers end together.
        """
        return self._total(examples, 0, None)

    def _total(self, examples: Sequence[LabelledExample], shared: int, cache: Any) -> torch.Tensor:
        """Return the sum, with the first tokens, which all share, read already into a cache that is used up."""
        import torch

        examples = [LabelledExample(one.ids[shared:], one.answer) for one in examples]
        width, answer = (max(values) for values in zip(*map(_lengths, examples), strict=True))
        device = self._model.device
        # Which id pads is of no matter: it is never attended to.
        ids = torch.tensor([[0] * (width - len(one.ids)) + list(one.ids) for one in examples], device=device)
        mask = torch.tensor(
            [[1] * shared + [0] * (width - len(one.ids)) + [1] * len(one.ids) for one in examples],
            device=device,
        )
        options: dict[str, Any] = {}
        if self._positions:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
        if self._keeps:
            # Places, not their number: what is indexed lies in one piece, and the output layer is one product.
            options["logits_to_keep"] = torch.arange(width - answer - 1, width - 1, device=device)
        if cache is not None:
            cache.batch_repeat_interleave(len(examples))
            options[self._cache] = cache
        out = self._model(input_ids=ids, attention_mask=mask, use_cache=cache is not None, **options)
        found = out.logits if self._keeps else out.logits[:, -answer - 1 : -1]
        wanted = torch.tensor([[i >= answer - one.answer for i in range(answer)] for one in examples])
        wanted = wanted.to(device)
        logits = found[wanted].float()
        return torch.nn.functional.cross_entropy(logits, ids[:, -answer:][wanted], reduction="sum")

    def mean(self, examples: Sequence[LabelledExample], batch_size: int = _BATCH) -> float:
        """Return the mean over all tokens of all answers, in nats; no gradient is kept.

        What all prompts begin with is read once.
        """
        import torch

        shared = shared_tokens([one.ids[: -one.answer] for one in examples]) if self._cache else 0
        with torch.inference_mode():
            cache = self._read(examples[0].ids[:shared]) if shared else None
            sums = [
                float(self._total(batch, shared, copy.deepcopy(cache)))
                for batch in batches_by_length(examples, batch_size)
            ]
        return sum(sums) / sum(example.answer for example in examples)

    def _read(self, ids: Sequence[int]) -> Any:
        """Return the cache of a model that has read these ids."""
        import torch

        options: dict[str, Any] = {"logits_to_keep": 1} if self._keeps else {}
        given = torch.tensor([list(ids)], device=self._model.device)
        return getattr(self._model(input_ids=given, use_cache=True, **options), self._cache)


def batches_by_length(
    examples: Sequence[LabelledExample], batch_size: int
) -> Iterator[list[LabelledExample]]:
    """Yield batches of similar length, longest first."""
    ordered = sorted(examples, key=lambda example: -len(example.ids))
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def _lengths(example: LabelledExample) -> tuple[int, int]:
    return len(example.ids), example.answer
