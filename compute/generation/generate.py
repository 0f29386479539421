"""Answers of the base model, with an adapter merged into it or without; greedy unless asked otherwise.

Prompts that begin alike are read once up to there; the rest is padded on the left of each batch and read at
once, and a row leaves its batch when it has ended. Nothing here knows of banks; torch is imported when used.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import BankError, DatasetError, ParameterError, listed, one_line
from bankdb.peft.layout import AdapterLayout
from bankdb.progress import quiet_loggers
from compute.generation.adapted_model import AdaptedModel
from compute.generation.base_model import end_ids
from compute.generation.prompts import Prompts, plan_batches

if TYPE_CHECKING:
    import torch

Choose: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")

# Models are loaded one at a time: transformers patches torch's own functions meanwhile, for all threads.
_loading = threading.Lock()
# Of `threads_of_torch`.
_turn = threading.Lock()
_limited = _before = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """What was generated: a text for each prompt in their order, the tokens of all, and seconds."""

    texts: tuple[str, ...]
    tokens: int
    seconds: float


def check_extra() -> None:
    """Raise ParameterError unless torch and rouge-score are installed; imports neither."""
    import importlib.util

    lacking = [name for name in ("torch", "rouge_score") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ParameterError(
            f"expected the extra torch: pip install 'lora-bank[torch]'; found no {' and no '.join(lacking)}"
        )


def chosen_device(asked: str) -> str:
    """Return `cpu` or `cuda`; `auto` takes a GPU where there is one."""
    import torch

    if asked not in DEVICES:
        raise ParameterError(f"device: expected one of {', '.join(DEVICES)}, found {asked!r}")
    if asked == "cuda" and not torch.cuda.is_available():
        raise ParameterError("device: cuda was asked for, torch finds no GPU; use --device cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


class Generator:
    """A base model that answers prompts, with one adapter after another.

    Parameters
    ----------
    adapted
        The base model.
    tokenizer
        The bank's; None where token ids are all that is asked for.
    ends
        Token ids that end an answer.
    batch_size
        Prompts of a batch; None chooses it by their lengths.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        tokenizer: BankTokenizer | None,
        ends: Iterable[int],
        batch_size: int | None = None,
    ) -> None:
        self.adapted = adapted
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._ends = frozenset(ends)
        known = inspect.signature(adapted.model.forward).parameters
        self._keeps = "logits_to_keep" in known
        self._positions = "position_ids" in known
        # Transformers 5.24 named the one as the other.
        self._cache = "cache" if "cache" in known else "past_key_values"

    def replica(self) -> Generator:
        """Return another one for another thread: see `AdaptedModel.replica`."""
        return Generator(self.adapted.replica(), self._tokenizer, self._ends, self._batch_size)

    def check_prompts(self, prompts: Prompts, name: str) -> None:
        """Raise DatasetError if the model has no row for an id, or too few positions for a prompt and its answer.

        A tokenizer may have more ids than the model has rows, as long as none of these is used.
        """
        rows = self.adapted.model.get_input_embeddings().weight.shape[0]
        largest = max(max(ids) for ids in prompts.ids)
        if largest >= rows:
            raise DatasetError(
                f"{name}: a prompt has token id {largest}, the base model has {rows} rows of token ids; "
                "pass the base model that belongs to the tokenizer with --model"
            )
        positions = getattr(self.adapted.model.config, "max_position_embeddings", None)
        if positions is not None and prompts.longest > positions:
            raise DatasetError(
                f"{name}: the longest prompt with its answer has {prompts.longest} tokens, the base model "
                f"has {positions} positions; shorten the test examples"
            )

    def answer(
        self,
        prompts: Prompts,
        tensors: Mapping[str, NDArray[Any]] | None = None,
        scaling: float = 1.0,
        *,
        done: Callable[[int], None] | None = None,
    ) -> Answers:
        """Answer all prompts, with the adapter given or by the base model alone.

        Parameters
        ----------
        tensors, scaling
            See `AdaptedModel.apply`.
        done
            Is told after each batch how many prompts were answered.
        """
        assert self._tokenizer is not None, "answers are text"
        started = time.perf_counter()
        self.adapted.exchange(tensors, scaling)
        found = self.answer_ids(prompts, done=done)
        texts = tuple(self._tokenizer.decode(ids) for ids in found)
        return Answers(texts, sum(map(len, found)), time.perf_counter() - started)

    def answer_ids(
        self, prompts: Prompts, choose: Choose | None = None, *, done: Callable[[int], None] | None = None
    ) -> list[list[int]]:
        """Return the token ids of all answers, with the adapter that is in the model.

        Parameters
        ----------
        choose
            The next token ids, shape (rows,), from logits of shape (rows, ids); None takes the likeliest.
        """
        found: list[list[int]] = [[] for _ in prompts.ids]
        lengths = [len(ids) - prompts.shared for ids in prompts.ids]
        for batch in plan_batches(lengths, self._batch_size):
            for position, ids in zip(batch, self._answers(prompts, batch, choose or _likeliest), strict=True):
                found[position] = ids
            if done is not None:
                done(len(batch))
        return found

    def tokens(self, ids: Sequence[int], most: int, choose: Choose | None = None) -> Iterator[int]:
        """Yield the token ids of an answer to one prompt as they come, at most so many, without what ends it."""
        import torch

        choose = choose or _likeliest
        # Not around what a consumer does between two tokens, which is none of this mode's.
        with torch.inference_mode():
            step = self._read(Prompts((tuple(ids),), 0, most), [0])
            chosen = choose(step.logits[:, -1])
        for left in range(most - 1, -1, -1):
            token = int(chosen[0])
            if token in self._ends:
                return
            yield token
            if left:
                with torch.inference_mode():
                    mask = torch.nn.functional.pad(step.mask, (0, 1), value=1)
                    step = self._forward(chosen[:, None], mask, step.cache)
                    chosen = choose(step.logits[:, -1])

    def _answers(self, prompts: Prompts, batch: Sequence[int], choose: Choose) -> list[list[int]]:
        """Token ids of the answers of one batch, without what ends them."""
        import torch

        with torch.inference_mode():
            step = self._read(prompts, batch)
            answers: list[list[int]] = [[] for _ in batch]
            active = list(range(len(batch)))
            for left in range(prompts.new_tokens - 1, -1, -1):
                chosen = choose(step.logits[:, -1])
                going = [i for i, token in enumerate(chosen.tolist()) if token not in self._ends]
                for i in going:
                    answers[active[i]].append(int(chosen[i]))
                if not going or not left:
                    break
                if len(going) < len(active):
                    rows = torch.tensor(going, device=chosen.device)
                    active = [active[i] for i in going]
                    chosen = chosen[rows]
                    step = step.only(rows)
                step = self._forward(
                    chosen[:, None], torch.nn.functional.pad(step.mask, (0, 1), value=1), step.cache
                )
        return answers

    def _read(self, prompts: Prompts, batch: Sequence[int]) -> _Step:
        """Read the prompts of a batch: what they share once, then the rest, padded on its left."""
        import torch

        shared = prompts.shared
        rest = [prompts.ids[position][shared:] for position in batch]
        width = max(map(len, rest))
        # Which id pads is of no matter: it is never attended to.
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rest])
        mask = torch.tensor([[1] * shared + [0] * (width - len(row)) + [1] * len(row) for row in rest])
        device = self.adapted.model.device
        cache = None
        if shared:
            first = torch.tensor([prompts.ids[batch[0]][:shared]], device=device)
            cache = self._forward(first, torch.ones_like(first), None).cache
            cache.batch_repeat_interleave(len(batch))
        return self._forward(ids.to(device), mask.to(device), cache)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> _Step:
        import torch

        options: dict[str, Any] = {}
        if self._keeps:
            # A place, not a number: what is indexed lies in one piece, and the output layer is one product.
            options["logits_to_keep"] = torch.tensor([ids.shape[1] - 1], device=ids.device)
        if self._positions:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        options[self._cache] = cache
        out = self.adapted.model(input_ids=ids, attention_mask=mask, use_cache=True, **options)
        return _Step(out.logits, mask, getattr(out, self._cache))


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """What is known after tokens were read: logits of the last, the mask so far, and the cache."""

    logits: torch.Tensor
    mask: torch.Tensor
    cache: Any

    def only(self, rows: torch.Tensor) -> _Step:
        """Return it for some rows of the batch; the cache itself is cut."""
        self.cache.batch_select_indices(rows)
        return _Step(self.logits[rows], self.mask[rows], self.cache)


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def load_generator(
    folder: Path,
    layout: AdapterLayout | None,
    tokenizer: BankTokenizer,
    *,
    device: str = "auto",
    dtype: str = "float32",
    batch_size: int | None = None,
) -> Generator:
    """Load the base model once.

    Raises
    ------
    ParameterError
        Torch is missing, or device or dtype are not known.
    BankError
        The model cannot be loaded whole.
    AdapterError
        Adapters of that layout do not fit it.
    """
    adapted = AdaptedModel(answering_model(folder, device=device, dtype=dtype), layout)
    return Generator(adapted, tokenizer, answer_ends(folder, tokenizer), batch_size)


def answer_ends(folder: Path, tokenizer: BankTokenizer) -> frozenset[int]:
    """Return the ids that end an answer: those of the model's settings, and the tokenizer's own."""
    own = tokenizer.end_of_sequence
    return end_ids(folder) if own is None else end_ids(folder) | {own}


def answering_model(folder: Path, *, device: str = "auto", dtype: str = "float32") -> Any:
    """Load a base model, to answer and not to train. Raises what `load_generator` does."""
    check_extra()
    import torch

    if dtype not in DTYPES:
        raise ParameterError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
    where = chosen_device(device)
    model = load_model(folder, getattr(torch, dtype))
    model.requires_grad_(False)
    return model.eval().to(where)


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """Return the base model on the CPU, as it is trained or answers. Raises BankError if it cannot be loaded whole."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with _loading, quiet_loggers("transformers"):
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        bars: Any = logging
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
            model, found = loaded
        except Exception as error:
            raise BankError(
                f"{folder}: the base model cannot be loaded ({type(error).__name__}: {one_line(error)}); "
                "pass a folder with config.json and *.safetensors"
            ) from error
        finally:
            if shown:
                bars.enable_progress_bar()
    lacking = sorted([*found["missing_keys"], *(str(item[0]) for item in found["mismatched_keys"])])
    if lacking:
        raise BankError(f"{folder}: the base model lacks weights for {listed(lacking, 3)}; copy it again")
    return model


@contextlib.contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """Let each operation of torch use so many threads; of those that overlap, the last to end sets what was before."""
    import torch

    global _limited, _before
    with _turn:
        if not _limited:
            _before = torch.get_num_threads()
        _limited += 1
    torch.set_num_threads(number)
    try:
        yield
    finally:
        with _turn:
            _limited -= 1
            if not _limited:
                torch.set_num_threads(_before)
