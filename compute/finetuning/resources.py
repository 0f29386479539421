"""What training needs and what there is: weights by their headers, memory, and the faster dtype of two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bankdb.errors import ParameterError, PlanError
from compute.generation.labelled import LabelledExample
from compute.generation.model_size import BYTES as BYTES
from compute.generation.model_size import ModelSize as ModelSize
from compute.generation.model_size import model_size as model_size

if TYPE_CHECKING:
    import torch

# Of an adapter in float32: the last iterate, its gradient, the average, both means of AdamW, the best so far, and a
# copy of all but the gradient to be kept.
_ADAPTER_COPIES = 11
_MARGIN = 1.2
"""How many times faster bfloat16 has to be: by less it may be chance, and it rounds."""
_REPEATED, _MOST_VALUES = 3, 1 << 24
# Python with torch and transformers in it, and what a step needs beside the rest.
_BESIDE = 3 << 28


@dataclass(frozen=True, slots=True)
class Reading:
    """How the base model is read.

    Attributes
    ----------
    dtype
        `float32` or `bfloat16`.
    chosen
        Why: `given`, `measured`, or `memory`, where the other does not fit.
    at_once
        Examples that a step reads at once; their gradients are summed.
    """

    dtype: str
    chosen: str
    at_once: int


def check_training_extra() -> None:
    """Raise ParameterError unless torch, peft and accelerate are installed; imports none."""
    import importlib.util

    lacking = [name for name in ("torch", "peft", "accelerate") if importlib.util.find_spec(name) is None]
    if lacking:
        raise ParameterError(
            f"expected the extra torch: pip install 'lora-bank[torch]'; found no {' and no '.join(lacking)}"
        )


def chosen_reading(
    size: ModelSize,
    adapter: int,
    examples: Sequence[LabelledExample],
    batch_size: int,
    asked: str,
    device: str,
    memory: int,
) -> Reading:
    """Choose the dtype that is faster here, of those that fit, and how many examples are read at once.

    Parameters
    ----------
    adapter
        Parameters of the adapter.
    asked
        `float32`, `bfloat16` or `auto`.
    memory
        Bytes that may be used.

    Raises
    ------
    PlanError
        The model does not fit.
    """
    dtypes = ("float32", "bfloat16") if asked == "auto" else (asked,)
    fitting = {
        dtype: at_once
        for dtype in dtypes
        if (at_once := _examples_at_once(size, adapter, examples, batch_size, dtype, memory))
    }
    if not fitting:
        smallest = dtypes[-1]
        needed = needed_bytes(size, adapter, examples, 1, smallest)
        weights = size.parameters * BYTES[smallest]
        raise PlanError(
            f"the base model has {weights / 2**30:.1f} GiB of weights in {smallest}, about {needed / 2**30:.1f} GiB "
            f"are needed to train on one example at a time; {memory / 2**30:.1f} GiB may be used: give more, "
            "with --memory if there is more, or take shorter examples"
            + (", or --train-dtype bfloat16" if smallest == "float32" else "")
        )
    if len(fitting) == 1:
        ((dtype, at_once),) = fitting.items()
        return Reading(dtype, "given" if asked != "auto" else "memory", at_once)
    dtype = "bfloat16" if bfloat16_gain(size, device) > _MARGIN else "float32"
    return Reading(dtype, "measured", fitting[dtype])


def needed_bytes(
    size: ModelSize, adapter: int, examples: Sequence[LabelledExample], at_once: int, dtype: str
) -> int:
    """Return the bytes, roughly, that training takes with so many examples read at once, the longest together."""
    tokens, answer = (max(values) for values in zip(*((len(e.ids), e.answer) for e in examples), strict=True))
    fixed = size.parameters * BYTES[dtype] + _ADAPTER_COPIES * 4 * adapter + _BESIDE
    return fixed + at_once * size.example_bytes(tokens, answer, dtype)


def _examples_at_once(
    size: ModelSize,
    adapter: int,
    examples: Sequence[LabelledExample],
    batch_size: int,
    dtype: str,
    memory: int,
) -> int:
    """Return how many examples fit, at most a batch; 0 if not even one does."""
    none, one = (needed_bytes(size, adapter, examples, number, dtype) for number in (0, 1))
    return max(0, min(batch_size, len(examples), (memory - none) // (one - none)))


def bfloat16_gain(size: ModelSize, device: str) -> float:
    """Return how many times faster bfloat16 multiplies by the weights that the model has most of, here and now."""
    import torch

    (rows, columns), _ = max(size.linear, key=lambda one: one[0][0] * one[0][1] * one[1])
    # The tokens of a few examples; fewer where a weight is large, so that it takes no seconds.
    tokens = max(64, min(1024, _MOST_VALUES * 16 // (rows * columns)))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(tokens, columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (tensor.to(device, dtype) for tensor in (values, weight))
        seconds[dtype] = min(_product_seconds(left, right) for _ in range(_REPEATED + 1))
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _product_seconds(values: torch.Tensor, weight: torch.Tensor) -> float:
    """Time one product forward and one back."""
    import torch

    synchronise: Any = torch.cuda.synchronize if values.is_cuda else lambda: None
    with torch.inference_mode():
        synchronise()
        started = time.perf_counter()
        (values @ weight.T) @ weight
        synchronise()
        return time.perf_counter() - started


def usable_memory(asked: int | None, device: str) -> int:
    """Return the bytes that training may use: what was asked for, or all that this process may have on the device."""
    from compute.cluster.machine import machine_memory

    if asked is not None:
        return asked
    if device == "cpu":
        return machine_memory()
    import torch

    return int(torch.cuda.mem_get_info()[1])


def most_memory_used(device: str) -> int:
    """Return the most bytes that this process has used so far, on the device."""
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
