"""Named tasks on a cluster: in their order, a few at a time, and a failure names the piece that failed."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bankdb.errors import BankError, ComputeError, one_line
from bankdb.progress import Progress
from compute.budget import roomy
from compute.cluster.blas import blas_threads, bounded_blas
from compute.cluster.lost_workers import told_of_lost_workers
from compute.cluster.memory import keep_freed
from compute.cluster.options import Cluster

# How often a run that waits looks whether there are workers, and how long it bears that there are none.
_LOOK_SECONDS, _ALONE_SECONDS = 2.0, 120.0
# Tasks wait at the workers for what these do in so many seconds, but never more than so many for each that runs: the
# next one is there when it is wanted, and a long one waits here until some worker has nothing else to do.
_AHEAD_SECONDS, _MOST_AHEAD = 0.5, 3

# Local workers take so long to start, each of them in processor time.
_START_SECONDS = 2.0

GPU = "GPU"
"""What workers call the resource of which a task takes one, where it computes on a GPU."""

Key = tuple[str, str, str]


class MadeWhenSent(Mapping[str, tuple[Any, ...]]):
    """What each named task is given, made when it is sent: of all tasks at once, a large bank has no room for it.

    Parameters
    ----------
    names
        Of the tasks, in their order.
    make
        What one of them is given, by its name.
    """

    def __init__(self, names: Collection[str], make: Callable[[str], tuple[Any, ...]]) -> None:
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> tuple[Any, ...]:
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def run_tasks(
    cluster: Cluster,
    stage: str,
    function: Callable[..., Any],
    tasks: Mapping[str, tuple[Any, ...]],
    progress: Progress,
    step: Callable[[str], str] | None = None,
    memory: int | None = None,
    seconds: float | None = None,
    gpus: int = 0,
) -> Iterator[tuple[str, Any]]:
    """Run `function(*arguments)` for each named task, submitted in their order; yield names and results as they come.

    At most a few tasks a worker are in flight, so that results are taken as they are made, and of tasks that take
    long only those that run. Those of a step begin in their order; a short task may begin before one of another
    step that was submitted just before, as the scheduler holds back what belongs to many of a kind. BLAS has one
    thread in each task of a local cluster: the workers are the parallelism. Elsewhere a task has its share of its
    host's cores.

    Parameters
    ----------
    step
        From a task's name to the step that the dashboard shows it under; by default all are under `stage`.
    memory
        Bytes that the largest task uses, if they are known: workers keep as many for the next, if the budget has room.
    seconds
        What all tasks together are expected to take one process, if that is known. Where it is less than workers take
        to start, they run in this one.
    gpus
        Of the workers, if each task takes one: see `gpu_slots`. Tasks go to workers that have one free alone.

    Raises
    ------
    ComputeError
        A task failed, or killed its workers; it is named, and the others are cancelled. Or the scheduler died, or
        there are no workers any more and none comes.
    """
    if not tasks:
        return
    progress.begin(stage, len(tasks))
    if cluster.alone and seconds is not None and seconds < worth_workers(cluster.slots):
        for name, arguments in tasks.items():
            yield name, _here(stage, name, function, arguments)
            progress.advance()
        progress.end()
        return
    waiting = iter(tasks.items())
    keep = memory if memory is not None and memory <= roomy(cluster.task_budget) else 0
    flight = _Flight(cluster, stage, function, keep, gpus or cluster.slots, gpus > 0)
    with told_of_lost_workers(cluster.client) as lost, flight.cancelling():
        flight.fill(waiting, step)
        while flight.names:
            ended = flight.next()
            while not lost.empty():
                progress.note(lost.get())
            flight.fill(waiting, step)
            if ended is not None:
                yield ended
                progress.advance()
    progress.end()


def gpu_slots(cluster: Cluster) -> int:
    """Return how many GPUs the workers state, as `dask worker --resources GPU=1` does; 0 for local ones."""
    if cluster.alone:
        return 0
    workers = cluster.client.scheduler_info(n_workers=-1)["workers"].values()
    return int(sum(worker.get("resources", {}).get(GPU, 0) for worker in workers))


def worth_workers(slots: int) -> float:
    """Return how many seconds of work one process does before so many local workers would, which have to start first.

    One alone is started as two are: for its memory.
    """
    return _START_SECONDS * max(slots, 2) / (max(slots, 2) - 1)


@dataclass(slots=True)
class _Flight:
    """The tasks that the scheduler has.

    Attributes
    ----------
    keep
        Bytes that a worker keeps of what a task frees.
    slots
        How many run at once.
    on_gpus
        Whether each takes a GPU.
    names
        By key: each task's name, and what holds its result.
    ended
        What came to an end and was not looked at yet.
    seconds
        Of the task that ended last; before there is one, as if it took long.
    workers_counted, workers_seen
        When workers were counted, and when there were some.
    """

    cluster: Cluster
    stage: str
    function: Callable[..., Any]
    keep: int
    slots: int
    on_gpus: bool = False
    names: dict[Key, tuple[str, Any]] = field(default_factory=dict)
    ended: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    seconds: float = _AHEAD_SECONDS + 1
    workers_counted: float = field(default_factory=time.monotonic)
    workers_seen: float = field(default_factory=time.monotonic)

    def fill(self, waiting: Iterator[tuple[str, tuple[Any, ...]]], step: Callable[[str], str] | None) -> None:
        """Submit tasks for as long as there is room."""
        ahead = min(_MOST_AHEAD, int(_AHEAD_SECONDS / max(self.seconds, 1e-6)))
        room = self.slots * (1 + ahead) - len(self.names)
        for _, (name, arguments) in zip(range(room), waiting, strict=False):
            # The dashboard groups by the first part; a key of its own, as the same piece computed again in another
            # run is another task.
            key = (self.stage if step is None else step(name), name, os.urandom(4).hex())
            future: Any = self.cluster.client.submit(
                _bounded,
                self.cluster.blas,
                self.keep,
                self.function,
                arguments,
                key=key,
                pure=False,
                retries=0,
                resources={GPU: 1} if self.on_gpus else None,
                fifo_timeout="0s",  # of a step, whoever is submitted first begins first
            )
            self.names[key] = (name, future)
            future.add_done_callback(self.ended.put)

    def next(self) -> tuple[str, Any] | None:
        """Wait for a task that ends, and return its name and result; None if none did for some time."""
        now = time.monotonic()
        if now - self.workers_counted > _LOOK_SECONDS:
            self._look(now)
        try:
            future = self.ended.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            return None
        name, _ = self.names.pop(future.key)
        self.seconds, result = _result(future, self.stage, name)
        return name, result

    def _look(self, now: float) -> None:
        """Count the workers, some may have come; not to wait for ever is for where every worker is gone."""
        self.workers_counted = now
        client = self.cluster.client
        if client.status != "running":
            return  # asking a scheduler that is lost takes long; what was waited for comes as cancelled
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        if self.on_gpus:
            self.slots = max(self.slots, gpu_slots(self.cluster))
        else:
            self.slots = max(self.cluster.slots, sum(worker["nthreads"] for worker in workers))
        if workers:
            self.workers_seen = now
        elif now - self.workers_seen > _ALONE_SECONDS:
            raise ComputeError(
                f"{self.stage}: expected workers, found none for {_ALONE_SECONDS:.0f} s; what was done before is kept: "
                "start some, and run the same command again to go on"
            )

    @contextlib.contextmanager
    def cancelling(self) -> Iterator[None]:
        """Cancel what is still running or waiting at the end."""
        try:
            yield
        finally:
            if self.names and self.cluster.client.status == "running":
                client: Any = self.cluster.client
                client.cancel([future for _, future in self.names.values()], force=True)


def _bounded(
    blas: Mapping[str, int] | None, keep: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[float, Any]:
    """Return the seconds that a task took, and its result; runs in a worker."""
    begin = time.perf_counter()
    keep_freed(keep)
    with bounded_blas(1 if blas is None else blas_threads(blas)):
        result = function(*arguments)
    return time.perf_counter() - begin, result


def _here(stage: str, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return the result of a task that runs in this process."""
    try:
        with bounded_blas(1):
            return function(*arguments)
    except BankError:
        raise
    except Exception as error:
        raise _failed(stage, name, error) from error


def _result(future: Any, stage: str, name: str) -> tuple[float, Any]:
    try:
        answer: tuple[float, Any] = future.result()
    except BankError:
        raise
    except Exception as error:
        if future.status != "error":  # no answer of the task's own
            raise _lost(stage, name, error) from error
        raise _failed(stage, name, error) from error
    return answer


def _failed(stage: str, name: str, error: Exception) -> ComputeError:
    reason = one_line(str(error).strip().partition("\n")[0] or error)  # others' lines below it are details
    return ComputeError(
        f"{stage}: piece {name} failed ({type(error).__name__}: {reason}); what was done before is kept, "
        "run the same command again to go on"
    )


def _lost(stage: str, name: str, error: Exception) -> ComputeError:
    return ComputeError(
        f"{stage}: piece {name} did not come back ({type(error).__name__}): the scheduler was lost, or somebody "
        "cancelled the task; what was done before is kept: start the scheduler and its workers if they are gone, and "
        "run the same command again to go on"
    )
