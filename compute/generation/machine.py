"""Where and how the base model computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how the base model computes; nothing of it but `dtype` determines what comes out.

    Attributes
    ----------
    device
        `auto`, `cpu` or `cuda`.
    dtype
        Of the base model, and what merged weights are rounded to.
    batch_size
        Prompts or examples of a batch; None chooses it.
    threads
        Cores to use on a CPU; None is all.
    """

    device: str = "auto"
    dtype: str = "float32"
    batch_size: int | None = None
    threads: int | None = None
