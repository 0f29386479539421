"""Workers that died while tasks were running: the scheduler gives their tasks to others, and whoever waits is told."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

# Of the scheduler's events, where it says that a worker is gone.
_TOPIC = "all"

Lines = queue.SimpleQueue[str]


@contextlib.contextmanager
def told_of_lost_workers(client: Client) -> Iterator[Lines]:
    """Listen while tasks run; yields where a line comes for each worker that is gone without having been asked to go.

    A client whose owner listens to the same events is left alone.
    """
    lines: Lines = queue.SimpleQueue()
    given: Any = client
    if _TOPIC in getattr(given, "_event_handlers", {_TOPIC: None}):
        yield lines
        return

    def heard(event: tuple[float, Any]) -> None:
        for line in lost_workers([event[1]]):
            lines.put(line)

    given.subscribe_topic(_TOPIC, heard)
    try:
        yield lines
    finally:
        if client.status == "running":
            given.unsubscribe_topic(_TOPIC)
        given._event_handlers.pop(_TOPIC, None)


def lost_workers(messages: Iterable[Any]) -> list[str]:
    """Return a line for each worker that was lost, from the scheduler's events."""
    return [
        _line(str(message.get("worker")), len(message.get("processing-tasks") or ()))
        for message in messages
        if isinstance(message, dict)
        and message.get("action") == "remove-worker"
        and not message.get("expected")
    ]


def _line(address: str, tasks: int) -> str:
    again = (
        "it had no task"
        if not tasks
        else f"{tasks} task{'s' if tasks > 1 else ''} it had begun or waited for run again"
    )
    return f"worker {address} was lost: {again}"
