"""Threads that share passes over arrays, memory that trainings leave to each other, and what they go on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compute.types import FloatArray

Array = NDArray[np.floating[Any]]
Rows = NDArray[np.intp]
State = Mapping[str, NDArray[Any]]
"""A training between two epochs: all that its next one reads, by name."""
Share = Callable[[Callable[[int, int], None], Sequence[tuple[int, int]]], None]
"""What has a task done for all ranges, before it returns."""


def ranges(number: int, length: int) -> list[tuple[int, int]]:
    """Return ranges of a length, the last one perhaps shorter, that make up a number."""
    return [(start, min(start + length, number)) for start in range(0, number, length)]


class Kept(Protocol):
    """Where trainings that are interrupted are gone on from; each is known by its rows."""

    def state(self, rows: Rows) -> State | None:
        """Return what was kept last of the training on these rows."""

    def keep_state(self, rows: Rows, state: State) -> None:
        """Keep it, where that is worth it; what is in it changes afterwards."""

    def coefficients(self, rows: Rows) -> FloatArray | None:
        """Return the coefficients that were kept of these targets, shape (len(rows), N)."""

    def keep_coefficients(self, rows: Rows, values: FloatArray) -> None:
        """Keep coefficients of these targets, shape (len(rows), N), where that is worth it."""


class Threads:
    """Threads that share passes, as long as a with statement lasts; one is that of the caller."""

    def __init__(self, number: int) -> None:
        self._pool = ThreadPoolExecutor(number) if number > 1 else None

    def share(self, task: Callable[[int, int], None], ranges: Sequence[tuple[int, int]]) -> None:
        """Have a task done for all ranges."""
        if self._pool is None:
            for start, stop in ranges:
                task(start, stop)
        else:
            for future in [self._pool.submit(task, *limits) for limits in ranges]:
                future.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Workspace:
    """What trainings one after another work with.

    Large arrays that one leaves for the next are in it: a system clears memory more slowly than these are used.

    Attributes
    ----------
    threads
        Number that share the passes, beside those of BLAS; the results do not depend on it.
    kept
        Where trainings are kept until all are done; None keeps nothing. The results do not depend on it.
    """

    def __init__(self, threads: int = 1, kept: Kept | None = None) -> None:
        self.threads = threads
        self.kept = kept
        self._arrays: list[Array] = []

    def take(self, width: int, dtype: type[np.floating[Any]]) -> Array:
        """Return an array of shape (width, width); what is in it means nothing."""
        while self._arrays:
            array = self._arrays.pop()
            if array.shape == (width, width) and array.dtype == dtype:
                return array
        return np.empty((width, width), dtype)

    def leave(self, array: Array) -> None:
        """Leave an array that nobody uses any more."""
        self._arrays.append(array)
