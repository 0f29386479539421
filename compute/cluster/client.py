"""A Dask client, local or remote, and what tasks may use; what runs on it is `compute.cluster.tasks`."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bankdb.arrays.remote import Location
from bankdb.errors import ComputeError, ParameterError
from bankdb.progress import Progress, quiet_loggers
from compute.cluster.machine import core_count, memory_budget
from compute.cluster.options import Cluster, ClusterLike, ClusterOptions
from compute.cluster.scheduler import check_remote, remote_client
from compute.cluster.workers import check_workers

if TYPE_CHECKING:
    from distributed import Client


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


@contextlib.contextmanager
def open_cluster(given: ClusterLike, progress: Progress, folder: Location | None = None) -> Iterator[Cluster]:
    """Have a cluster for as long as a workflow takes; the dashboard's address is told as a note.

    Parameters
    ----------
    given
        Options to connect to a scheduler or to start a local cluster by; or a client, which stays open; or a
        cluster that is open already, which is given back as it is. None takes the default client of this process,
        where there is one that can be used, else starts threads.
    folder
        The adapters' array that tasks will open: the workers of a scheduler that somebody else started have to find
        the same.

    Raises
    ------
    ComputeError
        The scheduler does not answer, or has no workers, or some that differ from this process in what
        matters: see `check_workers`.
    ParameterError
        Options contradict each other, or `given` is nothing of these.
    """
    if isinstance(given, Cluster):
        yield given
        return
    if not isinstance(given, ClusterOptions):
        client = _usable(given)
        if client is not None:
            yield _handed_over(client, progress, folder, default=given is None)
            return
        given = ClusterOptions(processes=False)
    _check(given)
    with remote_client(given, progress) if given.remote else _local(given) as client:
        if given.remote:
            name = str(given.scheduler or given.scheduler_file)
            yield _running(client, progress, folder, given.memory, name)
            return
        progress.note(f"dashboard: {client.dashboard_link}")
        slots = sum(client.nthreads().values())
        yield Cluster(client, slots, memory_budget(given.memory) // slots, client.dashboard_link)


def _usable(given: object) -> Client | None:
    """Return the client that is given, or the default one; None if there is none that waits for its answers."""
    from distributed import Client

    if given is None:
        try:
            client = Client.current()
        except ValueError:
            return None
        return None if client.asynchronous or client.status != "running" else client
    if not isinstance(given, Client):
        raise ParameterError(
            f"cluster: expected ClusterOptions, a distributed.Client, or None, found {type(given).__name__}; "
            "of a Dask cluster, give its get_client()"
        )
    if given.asynchronous or given.status != "running":
        what = "an asynchronous one" if given.asynchronous else f"one that is {given.status}"
        raise ParameterError(f"cluster: expected a client that is connected, found {what}; open another")
    return given


def _handed_over(client: Client, progress: Progress, folder: Location | None, default: bool) -> Cluster:
    """Return the cluster of a client that somebody else opened."""
    name = str(client.scheduler_info(n_workers=0)["address"])
    try:
        return _running(client, progress, folder, None, name)
    except ComputeError as error:
        if not default:
            raise
        raise ComputeError(
            f"{error} (this process's default client was taken; cluster=ClusterOptions() starts another)"
        ) from error


def _running(
    client: Client, progress: Progress, folder: Location | None, memory: int | None, name: str
) -> Cluster:
    """Return the cluster of a scheduler that somebody else started, its workers compared with this process."""
    slots = sum(client.nthreads().values())
    if not slots:
        raise ComputeError(f"{name}: the scheduler has no workers; start some first")
    progress.note(f"dashboard: {client.dashboard_link}")
    blas = check_workers(client, folder)
    budget = _worker_budget(client) if memory is None else None
    if budget is None:
        budget = memory_budget(memory) // slots
    return Cluster(client, slots, budget, client.dashboard_link, blas)


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
        # Not the default: what else this process computes with Dask goes where it went.
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client
