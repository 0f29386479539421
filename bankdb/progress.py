"""How workflows tell of their progress, without knowing who shows it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# Stages and notes of a run that are kept for others to show.
_KEPT = 50


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


@dataclass(slots=True)
class _Stage:
    name: str
    total: int
    begun: float
    done: int = 0
    bytes: int = 0
    ended: float | None = None

    def as_plain(self, now: float) -> dict[str, Any]:
        """Return it as JSON has it, with the seconds that it has taken."""
        seconds = (now if self.ended is None else self.ended) - self.begun
        return {
            "name": self.name,
            "done": self.done,
            "total": self.total,
            "bytes": self.bytes,
            "seconds": seconds,
        }


Told = Callable[[bool], None]
"""Hears that there is another state, and whether by more than a step: a stage that begins or ends, a note."""


class PublishedProgress:
    """Shows progress as another does, and keeps what others can show too, such as the dashboard's page for a bank.

    A state is plain: `begun` and `changed` (seconds since 1970), `notes`, and `stages`, each with `name`, `done`,
    `total`, `bytes` and `seconds`.
    """

    def __init__(self, shown: Progress) -> None:
        self._shown, self._told = shown, dict[str, Told]()
        self._begun, self._lock = time.time(), threading.Lock()
        self._stages: deque[_Stage] = deque(maxlen=_KEPT)
        self._notes: deque[str] = deque(maxlen=_KEPT)

    def tell(self, name: str, told: Told) -> None:
        """Tell somebody now, and whenever the state changes; whoever was told under that name before is not."""
        self._told[name] = told
        told(True)

    def state(self) -> dict[str, Any]:
        """Return the state."""
        now = time.time()
        with self._lock:
            stages = [stage.as_plain(now) for stage in self._stages]
            return {"begun": self._begun, "changed": now, "notes": list(self._notes), "stages": stages}

    def begin(self, stage: str, total: int) -> None:
        """Show, and keep, that a stage begins."""
        self._close()
        with self._lock:
            self._stages.append(_Stage(stage, total, time.time()))
        self._shown.begin(stage, total)
        self._changed(whole=True)

    def advance(self, steps: int = 1) -> None:
        """Show and count steps."""
        with self._lock:
            if self._stages:
                self._stages[-1].done += steps
        self._shown.advance(steps)
        self._changed()

    def received(self, count: int, expected: int) -> None:
        """Show and keep bytes."""
        with self._lock:
            if self._stages:
                self._stages[-1].bytes = count
        self._shown.received(count, expected)
        self._changed()

    def end(self) -> None:
        """Show, and keep, that the stage has ended."""
        self._close()
        self._shown.end()
        self._changed(whole=True)

    def note(self, text: str) -> None:
        """Show and keep a line."""
        with self._lock:
            self._notes.append(text)
        self._shown.note(text)
        self._changed(whole=True)

    def _close(self) -> None:
        with self._lock:
            if self._stages and self._stages[-1].ended is None:
                self._stages[-1].ended = time.time()

    def _changed(self, *, whole: bool = False) -> None:
        for told in list(self._told.values()):
            told(whole)


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
