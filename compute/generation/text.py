"""A base model and an adapter that answer a user's prompts: streamed one after another, or many at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import DatasetError, ParameterError, TokenizerError, one_line
from bankdb.progress import Progress, SilentProgress, quiet_loggers
from compute.generation.adapters import read_given, stated_base_model
from compute.generation.base_model import model_folder
from compute.generation.generate import Choose, Generator, check_extra, load_generator, threads_of_torch
from compute.generation.prompts import Prompts, encode_texts, shared_tokens

if TYPE_CHECKING:
    import torch

MOST_TOKENS = 256
_TOGETHER = 64
"""Prompts that are answered together, so that answers come in order and in bounded memory."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes
    ----------
    temperature
        Divides the logits before the softmax; 0 takes the likeliest token.
    seed
        Of what is drawn.
    """

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ParameterError(
                f"temperature: expected a number from 0, greedy, to 100, found {self.temperature}"
            )

    def chooser(self, device: Any) -> Choose | None:
        """Return what draws; None is greedy."""
        if self.temperature == 0:
            return None
        import torch

        source = torch.Generator(device=device).manual_seed(self.seed)

        def draw(logits: torch.Tensor) -> torch.Tensor:
            shares = torch.softmax(logits.float() / self.temperature, -1)
            return torch.multinomial(shares, 1, generator=source)[:, 0]

        return draw


class TextGenerator:
    """A base model, with an adapter or without, that answers texts.

    Parameters
    ----------
    adapter
        Its folder; None is the base model alone.
    model
        Folder or hub name of the base model; None is the one that the adapter states.
    chat
        Put each prompt into the chat template that comes with the base model, as a user's turn.

    Raises
    ------
    ParameterError
        Torch is missing, there is neither adapter nor model, or no chat template.
    AdapterError
        The adapter is refused, or does not fit the model.
    BankError, TokenizerError
        The model or its tokenizer cannot be loaded.
    """

    def __init__(
        self,
        adapter: str | Path | None = None,
        model: str | Path | None = None,
        *,
        chat: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_extra()
        shown = progress or SilentProgress()
        given = None if adapter is None else read_given(adapter)
        for note in () if given is None else given.notes:
            shown.note(f"{adapter}: {note}")
        folder = model_folder(stated_base_model([given] if given else []) if model is None else model)
        self._tokenizer = BankTokenizer(folder)
        self._template = _chat_template(folder) if chat else None
        shown.begin("load the base model", 1)
        layout = None if given is None else given.layout
        self._generator: Generator = load_generator(
            folder, layout, self._tokenizer, device=device, dtype=dtype, batch_size=batch_size
        )
        if given is not None:
            self._generator.adapted.apply(given.tensors(), given.scaling)
        shown.end()

    def stream(
        self, prompt: str, most_tokens: int = MOST_TOKENS, sampling: Sampling | None = None
    ) -> Iterator[str]:
        """Yield an answer piece by piece, as its tokens come; the pieces together are the answer.

        Raises
        ------
        DatasetError
            The prompt has no tokens, or the model has no room for it.
        """
        (prompts,) = self._prompts([prompt], most_tokens)
        generator, chosen = self._generator, (sampling or Sampling()).chooser(self._device)
        ids: list[int] = []
        told = ""
        for token in generator.tokens(prompts.ids[0], prompts.new_tokens, chosen):
            ids.append(token)
            text = self._tokenizer.decode(ids)
            # A character of several tokens is not whole yet.
            if text.startswith(told) and not text.endswith("\ufffd"):
                if piece := text[len(told) :]:
                    yield piece
                told = text
        rest = self._tokenizer.decode(ids)
        if rest != told:
            yield rest[len(told) :]

    def answers(
        self,
        prompts: Sequence[str],
        most_tokens: int = MOST_TOKENS,
        sampling: Sampling | None = None,
        done: Callable[[int], None] | None = None,
    ) -> Iterator[str]:
        """Yield the answer to each prompt, in their order; a few dozen are made at once.

        Raises what `stream` does, before anything is answered.
        """
        batches = list(self._prompts(prompts, most_tokens))
        chosen = (sampling or Sampling()).chooser(self._device)
        for batch in batches:
            for ids in self._generator.answer_ids(batch, chosen, done=done):
                yield self._tokenizer.decode(ids)

    @property
    def _device(self) -> Any:
        return self._generator.adapted.model.device

    def _prompts(self, texts: Sequence[str], most_tokens: int) -> Iterator[Prompts]:
        """Tokenize texts, and cut them into those that are answered together."""
        if most_tokens < 1:
            raise ParameterError(f"max-tokens: expected at least 1, found {most_tokens}")
        name = "prompt"
        if self._template is None:
            ids = encode_texts(self._tokenizer, texts, name)
        else:
            ids = [self._template(text) for text in texts]
        for start in range(0, len(ids), _TOGETHER):
            part = ids[start : start + _TOGETHER]
            prompts = Prompts(tuple(part), shared_tokens(part), self._room(part, most_tokens))
            self._generator.check_prompts(prompts, name)
            yield prompts

    def _room(self, ids: Sequence[tuple[int, ...]], asked: int) -> int:
        """Return how many tokens an answer may have: what was asked for, where the model has as many positions."""
        config = self._generator.adapted.model.config
        positions: int | None = getattr(config, "max_position_embeddings", None)
        longest = max(map(len, ids))
        if positions is None:
            return asked
        if longest >= positions:
            raise DatasetError(
                f"a prompt has {longest} tokens, the base model has {positions} positions; shorten it"
            )
        return min(asked, positions - longest)


def _chat_template(folder: Path) -> Callable[[str], tuple[int, ...]]:
    """Return what puts a prompt into a model's own chat template; transformers runs it in a sandbox."""
    with quiet_loggers("transformers"):
        from transformers import AutoTokenizer

        try:
            loaded: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise TokenizerError(
                f"{folder}: its tokenizer cannot be loaded by transformers ({one_line(error)}); leave out --chat"
            ) from error
    if not loaded.chat_template:
        raise ParameterError(
            f"{folder}: the base model has no chat template; leave out --chat, or pass a model that has one"
        )

    def template(prompt: str) -> tuple[int, ...]:
        turns = [{"role": "user", "content": prompt}]
        try:
            text = loaded.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            # The template writes special tokens itself.
            ids = loaded(text, add_special_tokens=False)["input_ids"]
        except Exception as error:
            raise TokenizerError(
                f"{folder}: its chat template fails on a prompt ({one_line(error)}); leave out --chat"
            ) from error
        return tuple(ids)

    return template


def generate(
    prompts: str | Sequence[str],
    adapter: str | Path | None = None,
    model: str | Path | None = None,
    *,
    most_tokens: int = MOST_TOKENS,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Answer prompts by a base model with an adapter; the model is loaded for this call alone.

    Parameters
    ----------
    prompts
        Texts, taken as they are: the bank's tasks are plain text.
    adapter
        A folder that PEFT's save_pretrained, `predict` or others wrote; None is the base model alone.
    model
        Folder or hub name of the base model; None is the one that the adapter states.
    most_tokens
        Limit on the tokens of an answer.
    temperature, seed
        See `Sampling`; by default the likeliest token is taken.
    chat
        Put each prompt into the base model's own chat template.
    device, dtype, batch_size, threads
        As in `Machine`; None of the last two chooses.

    Raises
    ------
    ParameterError, AdapterError, DatasetError, TokenizerError, BankError
        See `TextGenerator`.
    """
    sampling = Sampling(temperature, seed)
    shown = progress or SilentProgress()
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    text_generator = TextGenerator(
        adapter, model, chat=chat, device=device, dtype=dtype, batch_size=batch_size, progress=shown
    )
    shown.begin("generate, prompts", len(texts))
    with threads_of_torch(threads) if threads else contextlib.nullcontext():
        answers = list(text_generator.answers(texts, most_tokens, sampling, shown.advance))
    shown.end()
    return answers
