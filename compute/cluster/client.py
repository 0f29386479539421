"""A Dask client, local or remote, and what tasks may use; what runs on it is `compute.cluster.tasks`."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bankdb.arrays.remote import Location
from bankdb.errors import ComputeError, ParameterError
from bankdb.progress import Progress
from compute.cluster.machine import core_count, memory_budget
from compute.cluster.options import Cluster, ClusterLike, ClusterOptions
from compute.cluster.scheduler import check_remote, remote_client
from compute.cluster.workers import check_workers

if TYPE_CHECKING:
    from distributed import Client


@contextlib.contextmanager
def open_cluster(given: ClusterLike, progress: Progress, folder: Location | None = None) -> Iterator[Cluster]:
    """Have a cluster for as long as a workflow takes; the dashboard's address is told as a note when it starts.

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
    with contextlib.ExitStack() as stack:
        if given.remote:
            client = stack.enter_context(remote_client(given, progress))
            name = str(given.scheduler or given.scheduler_file)
            yield _running(client, progress, folder, given.memory, name)
            return
        slots = core_count() if given.workers is None else given.workers
        start = functools.cache(functools.partial(_started, given, progress, stack))
        budget = memory_budget(given.memory) // slots
        started = lambda: start.cache_info().currsize > 0  # noqa: E731
        yield Cluster(start, slots, budget, alone=True, started=started, asked=given.workers is not None)


def _started(options: ClusterOptions, progress: Progress, stack: contextlib.ExitStack) -> Client:
    """Start a local cluster, which ends with the workflow."""
    from compute.cluster.local import local_client

    client = stack.enter_context(local_client(options))
    if client.dashboard_link:  # threads of this process have none
        _tell_dashboard(client, progress)
    return client


def _tell_dashboard(client: Client, progress: Progress) -> None:
    from compute.cluster.bank_page import publish

    progress.note(f"dashboard: {client.dashboard_link}")
    publish(progress, client)


def _usable(given: object) -> Client | None:
    """Return the client that is given, or the default one; None if there is none that waits for its answers."""
    if given is None and "distributed" not in sys.modules:
        return None  # where nobody imported it, nobody has made a default client
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
    _tell_dashboard(client, progress)
    blas = check_workers(client, folder)
    budget = _worker_budget(client) if memory is None else None
    if budget is None:
        budget = memory_budget(memory) // slots
    return Cluster(lambda: client, slots, budget, blas)


def _check(options: ClusterOptions) -> None:
    check_remote(options)
    if options.workers is not None and options.workers < 1:
        raise ParameterError(
            f"workers: expected at least 1, found {options.workers}; leave it out for all cores"
        )
    memory_budget(options.memory)


def _worker_budget(client: Client) -> int | None:
    """Return half of the memory that the poorest worker has for each of its threads, if all have a limit."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [int(worker["memory_limit"] or 0) // worker["nthreads"] for worker in workers]
    return min(limits) // 2 if limits and all(limits) else None
