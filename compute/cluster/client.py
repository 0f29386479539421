"""A Dask client, local or remote, and what tasks may use; what runs on it is `compute.cluster.tasks`."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.arrays.remote import Location
from bankdb.errors import ComputeError, ParameterError
from bankdb.progress import Progress
from bankdb.quiet import quiet_loggers
from compute.cluster.scheduler import check_remote, remote_client
from compute.cluster.workers import check_workers

if TYPE_CHECKING:
    from distributed import Client

_SIZES = {"": 1, "B": 1, "K": 1024, "KB": 1000, "KIB": 1024, "M": 2**20, "MB": 10**6, "MIB": 2**20,
          "G": 2**30, "GB": 10**9, "GIB": 2**30, "T": 2**40, "TB": 10**12, "TIB": 2**40}  # fmt: skip

# Dask and its dashboard log that they start, stop, and take another port.
_CHATTY = ("distributed", "bokeh", "tornado.application")
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
    An eighth of the budget is kept at the most, but more in stages that `keep_freed` has keep it. Dask leaves
    these variables in this process's environment, so that the first cluster of a process decides; values that
    the user has set are kept.
    """
    import dask

    kept = min(_KEPT_BYTES, budget // 8)
    key = "distributed.nanny.pre-spawn-environ"
    wanted = {
        "MALLOC_TRIM_THRESHOLD_": str(kept),
        # glibc takes no more than 32 MiB.
        "MALLOC_MMAP_THRESHOLD_": str(min(kept, 32 * 2**20)),
        # For `compute.cluster.memory.keep_freed`.
        "MALLOC_ARENA_MAX": "1",
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
