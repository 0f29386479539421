"""How workflows tell of their progress, without knowing who shows it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol


class Mapper(Protocol):
    """Runs a function for each named piece of work, in other processes that find the bank's arrays."""

    def __call__(
        self, stage: str, function: Callable[..., Any], pieces: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, Any]]:
        """Yield the name and the result of each `function(*arguments)`, as they come; the first error ends it."""


class Progress(Protocol):
    """A stage begins with its number of steps, then advances; a note is a line for the user."""

    def begin(self, stage: str, total: int) -> None:
        """Start a stage of `total` steps; it ends when the next begins, or at `end`."""

    def advance(self, steps: int = 1) -> None:
        """Count `steps` of the current stage as done."""

    def received(self, count: int, expected: int) -> None:
        """Tell how many bytes came from elsewhere in the current stage, and how many were announced so far."""

    def end(self) -> None:
        """Close the current stage."""

    def note(self, text: str) -> None:
        """Show one line."""


class SilentProgress:
    """Shows nothing."""

    def begin(self, stage: str, total: int) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""

    def received(self, count: int, expected: int) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@contextlib.contextmanager
def quiet_loggers(*names: str, level: int = logging.ERROR) -> Iterator[None]:
    """Let the named loggers tell of errors alone, or of `level` and above; afterwards they have their own levels."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
