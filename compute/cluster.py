"""A Dask client, local or remote, and tasks whose failure names the piece that failed."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bankdb.errors import BankError, ComputeError, ParameterError
from bankdb.progress import Progress
from bankdb.quiet import quiet_loggers
from bankdb.remote import Location
from compute.blas import blas_threads, bounded_blas
from compute.connection import check_remote, remote_client
from compute.workers import check_workers

if TYPE_CHECKING:
    from distributed import Client

_SIZES = {"": 1, "B": 1, "K": 1024, "KB": 1000, "KIB": 1024, "M": 2**20, "MB": 10**6, "MIB": 2**20,
          "G": 2**30, "GB": 10**9, "GIB": 2**30, "T": 2**40, "TB": 10**12, "TIB": 2**40}  # fmt: skip

# Dask and its dashboard log that they start, stop, and take another port.
_CHATTY = ("distributed", "bokeh", "tornado.application")
# How often a run that waits looks whether there are workers, and how long it bears that there are none.
_LOOK_SECONDS, _ALONE_SECONDS = 2.0, 120.0
# Freed memory that a worker process may keep for its next arrays.
_KEPT_BYTES = 256 * 2**20
# Dask's default and ours: every process wakes up 50 times a second to look whether it is late, and every worker 100
# times to sample its stack. With a worker on each core that is 3% of a run.
_CALMED = {
    "distributed.admin.tick.interval": ("20ms", "500ms"),
    "distributed.worker.profile.interval": ("10ms", "100ms"),
}


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where tasks run. With neither scheduler given, a local cluster of `workers` processes starts.

    Attributes
    ----------
    scheduler
        Address of an existing scheduler, such as `tcp://host:8786`.
    scheduler_file
        File in which an existing scheduler left its address.
    workers
        Processes of a local cluster, one thread each; default: one for each core.
    memory
        Bytes that all tasks together may use; default: half of the memory of the machine, or of the
        workers of a running scheduler.
    processes
        Whether a local cluster's workers are processes, or threads of this one.
    tls_ca, tls_cert, tls_key
        PEM files of a running scheduler's CA, and of this client's certificate and key: all or none.
        Where given, nothing is sent that is not encrypted.
    wait_workers, wait_seconds
        Workers to wait for before anything runs, and for how long.
    """

    scheduler: str | None = None
    scheduler_file: Path | None = None
    workers: int | None = None
    memory: int | None = None
    processes: bool = True
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    wait_workers: int | None = None
    wait_seconds: float = 300.0

    @property
    def remote(self) -> bool:
        """Whether tasks run on a scheduler that somebody else started."""
        return self.scheduler is not None or self.scheduler_file is not None


@dataclass(frozen=True, slots=True)
class Cluster:
    """An open client, the tasks that it runs at once, and the bytes that each of them may use.

    `blas` is the threads of BLAS in a task on each host; None is one thread: a local cluster has a process
    for each core.
    """

    client: Client
    slots: int
    task_budget: int
    dashboard: str
    blas: Mapping[str, int] | None = None


def parse_memory(text: str) -> int:
    """Return bytes from text such as `4GiB`, `500MB` or `1073741824`.

    Raises
    ------
    ParameterError
        The text is not a positive size.
    """
    compact = text.strip().replace(" ", "").upper()
    number = compact.rstrip("BKMGTI")
    factor = _SIZES.get(compact[len(number) :])
    try:
        size = float(number) * (factor or 0)
    except ValueError:
        size = 0.0
    if not 1 <= size < 2**60:
        raise ParameterError(f"memory: expected a size such as 4GiB or 500MB, found {text!r}")
    return int(size)


def machine_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def core_count() -> int:
    """Return the cores that this process may use: its affinity's, or its control group's."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)


@contextlib.contextmanager
def open_cluster(
    options: ClusterOptions, progress: Progress, folder: Location | None = None
) -> Iterator[Cluster]:
    """Connect to a scheduler, or start a local cluster; the dashboard's address is told as a note.

    Parameters
    ----------
    folder
        The adapters' array that tasks will open: a running scheduler's workers have to find the same.

    Raises
    ------
    ComputeError
        The scheduler does not answer, or has no workers, or some that differ from this process in what
        matters: see `check_workers`.
    ParameterError
        Options contradict each other.
    """
    _check(options)
    remote = options.remote
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(remote_client(options, progress) if remote else _local(options))
        slots = sum(client.nthreads().values())
        if not slots:
            raise ComputeError(
                f"{options.scheduler or options.scheduler_file}: the scheduler has no workers; start some first"
            )
        progress.note(f"dashboard: {client.dashboard_link}")
        blas = check_workers(client, folder) if remote else None
        budget = _worker_budget(client) if remote and options.memory is None else None
        if budget is None:
            budget = memory_budget(options.memory) // slots
        yield Cluster(client, slots, budget, client.dashboard_link, blas)


def memory_budget(asked: int | None) -> int:
    """Return the bytes that may be used: what was asked for, or half of the machine's memory."""
    if asked is None:
        return machine_memory() // 2
    if asked < 1:
        raise ParameterError(f"memory: expected at least 1 byte, found {asked}; give a size such as 4GiB")
    return asked


def _check(options: ClusterOptions) -> None:
    check_remote(options)
    if options.workers is not None and options.workers < 1:
        raise ParameterError(
            f"workers: expected at least 1, found {options.workers}; leave it out for all cores"
        )
    memory_budget(options.memory)


def _calmer() -> dict[str, str]:
    """Return Dask's settings for fewer wake-ups, but those that the user has set."""
    import dask

    return {key: ours for key, (default, ours) in _CALMED.items() if dask.config.get(key) == default}


@contextlib.contextmanager
def _allocator(budget: int) -> Iterator[None]:
    """Let worker processes keep some of the memory that they free.

    Dask has them give back every 64 KiB at once, so that tasks spend a third of their time on page faults.
    An eighth of the budget is kept at the most. Dask leaves these variables in this process's environment, so
    that the first cluster of a process decides; values that the user has set are kept.
    """
    import dask

    kept = min(_KEPT_BYTES, budget // 8)
    key = "distributed.nanny.pre-spawn-environ"
    wanted = {
        "MALLOC_TRIM_THRESHOLD_": str(kept),
        # glibc takes no more than 32 MiB.
        "MALLOC_MMAP_THRESHOLD_": str(min(kept, 32 * 2**20)),
    }
    with dask.config.set({key: dict(dask.config.get(key)) | wanted}):
        yield


def _worker_budget(client: Client) -> int | None:
    """Return half of the memory that the poorest worker has for each of its threads, if all have a limit."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [int(worker["memory_limit"] or 0) // worker["nthreads"] for worker in workers]
    return min(limits) // 2 if limits and all(limits) else None


@contextlib.contextmanager
def _local(options: ClusterOptions) -> Iterator[Client]:
    import dask
    from distributed import Client, LocalCluster

    workers = core_count() if options.workers is None else options.workers
    with (
        warnings.catch_warnings(),
        quiet_loggers(*_CHATTY),
        _allocator(memory_budget(options.memory) // workers),
        dask.config.set(_calmer()),
    ):
        # A taken dashboard port is no news: the next free one is used, and printed.
        warnings.filterwarnings("ignore", message="Port .* is already in use")
        try:
            cluster = LocalCluster(
                n_workers=workers if options.processes else 1,
                threads_per_worker=1 if options.processes else workers,
                processes=options.processes,
                host="127.0.0.1",
                protocol="tcp://",
                dashboard_address="127.0.0.1:8787",
                silence_logs=logging.ERROR,
            )
        except RuntimeError as error:
            raise ComputeError(
                f"the local Dask cluster did not start ({error}); try fewer --workers"
            ) from error
        with cluster, Client(cluster) as client:
            yield client


def run_tasks(
    cluster: Cluster,
    stage: str,
    function: Callable[..., Any],
    tasks: Mapping[str, tuple[Any, ...]],
    progress: Progress,
    step: Callable[[str], str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Run `function(*arguments)` for each named task; yield names and results as they come.

    At most a few tasks a worker are in flight, so that results are taken as they are made. BLAS has one
    thread in each task of a local cluster: the workers are the parallelism. Elsewhere a task has its share of
    its host's cores.

    Parameters
    ----------
    step
        From a task's name to the step that the dashboard shows it under; by default all are under `stage`.

    Raises
    ------
    ComputeError
        A task failed, or killed its workers; it is named, and the others are cancelled. Or the scheduler died, or
        there are no workers any more and none comes.
    """

    def submit(name: str, arguments: tuple[Any, ...]) -> None:
        # The dashboard groups by the first part; a key of its own, as the same piece computed again in another
        # run is another task.
        key = (stage if step is None else step(name), name, os.urandom(4).hex())
        future = cluster.client.submit(
            _bounded, cluster.blas, function, arguments, key=key, pure=False, retries=0
        )
        flying[key] = (name, future)
        future.add_done_callback(ended.put)

    progress.begin(stage, len(tasks))
    waiting = iter(tasks.items())
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    flying: dict[tuple[str, str, str], tuple[str, Any]] = {}
    with _cancelling(cluster, flying):
        for name, arguments in _take(waiting, 4 * cluster.slots):
            submit(name, arguments)
        while flying:
            future = _next(cluster, stage, ended)
            name, _ = flying.pop(future.key)
            result = _result(future, stage, name)
            for following, arguments in _take(waiting, 1):
                submit(following, arguments)
            yield name, result
            progress.advance()
    progress.end()


@contextlib.contextmanager
def _cancelling(cluster: Cluster, flying: Mapping[Any, tuple[str, Any]]) -> Iterator[None]:
    """Cancel what is still running or waiting at the end."""
    try:
        yield
    finally:
        if flying and cluster.client.status == "running":
            cluster.client.cancel([future for _, future in flying.values()], force=True)


def _next(cluster: Cluster, stage: str, ended: queue.SimpleQueue[Any]) -> Any:
    """Return the next future that ended; not to wait for ever is for where every worker is gone."""
    alone = time.monotonic()
    while True:
        try:
            return ended.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            if cluster.client.status != "running":
                continue  # asking a scheduler that is lost takes long; what was waited for comes as cancelled
            if cluster.client.scheduler_info()["workers"]:
                alone = time.monotonic()
            elif time.monotonic() - alone > _ALONE_SECONDS:
                raise ComputeError(
                    f"{stage}: expected workers, found none for {_ALONE_SECONDS:.0f} s; what was done before is kept: "
                    "start some, and run the same command again to go on"
                ) from None


def _take(items: Iterator[tuple[str, tuple[Any, ...]]], count: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for _, item in zip(range(count), items, strict=False):
        yield item


def _bounded(blas: Mapping[str, int] | None, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    with bounded_blas(1 if blas is None else blas_threads(blas)):
        return function(*arguments)


def _result(future: Any, stage: str, name: str) -> Any:
    try:
        return future.result()
    except BankError:
        raise
    except Exception as error:
        if future.status != "error":  # no answer of the task's own
            raise _lost(stage, name, error) from error
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ComputeError(
            f"{stage}: piece {name} failed ({type(error).__name__}: {reason}); what was done before is kept, "
            "run the same command again to go on"
        ) from error


def _lost(stage: str, name: str, error: Exception) -> ComputeError:
    return ComputeError(
        f"{stage}: piece {name} did not come back ({type(error).__name__}): the scheduler was lost, or somebody "
        "cancelled the task; what was done before is kept: start the scheduler and its workers if they are gone, and "
        "run the same command again to go on"
    )
