"""A progress that kills a worker process of a local cluster in the midst of a stage."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.support.banks.recorded_progress import RecordedProgress


class KillingProgress(RecordedProgress):
    """Kills the first worker, once, when a stage has advanced so many times; `client` is the cluster's."""

    def __init__(self, stage: str, times: int) -> None:
        super().__init__(self._kill)
        self.client: Any = None
        self.killed: int | None = None
        self._at, self._left = stage, times

    def _kill(self, stage: str) -> None:
        self._left -= stage == self._at
        if self._left <= 0 and self.killed is None:
            self.killed = next(iter(self.client.run(os.getpid).values()))
            os.kill(self.killed, signal.SIGKILL)

    def another_came(self) -> bool:
        """Whether one was killed, and is no worker any more."""
        return self.killed is not None and self.killed not in self.client.run(os.getpid).values()
