"""A progress that keeps what it was told, and can do something while a stage runs."""

from __future__ import annotations

from collections.abc import Callable


class RecordedProgress:
    """Keeps stages with their number of steps, and notes.

    `on_advance` is called with the stage at each step: the place to kill something.
    """

    def __init__(self, on_advance: Callable[[str], None] | None = None) -> None:
        self.stages: dict[str, int] = {}
        self.notes: list[str] = []
        self.received_last = (0, 0)
        self._stage = ""
        self._on_advance = on_advance

    def begin(self, stage: str, total: int) -> None:
        self._stage = stage
        self.stages[stage] = self.stages.get(stage, 0) + total

    def advance(self, steps: int = 1) -> None:
        if self._on_advance is not None:
            self._on_advance(self._stage)

    def received(self, count: int, expected: int) -> None:
        # Of several threads the last to tell may not be the last that counted.
        self.received_last = max(self.received_last, (count, expected))

    def end(self) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)
