"""How workflows tell of their progress, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A stage begins with its number of steps, then advances; a note is a line for the user."""

    def begin(self, stage: str, total: int) -> None:
        """Start a stage of `total` steps; it ends when the next begins, or at `end`."""

    def advance(self, steps: int = 1) -> None:
        """Count `steps` of the current stage as done."""

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

    def end(self) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
