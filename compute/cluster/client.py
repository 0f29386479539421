"""A Dask client, local or remote, and what tasks may use; what runs on it is `compute.cluster.tasks`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from bankdb.arrays.remote import Location
from bankdb.errors import ComputeError, ParameterError
from bankdb.progress import Progress
from compute.cluster.machine import memory_budget
from compute.cluster.options import Cluster, ClusterOptions
from compute.cluster.scheduler import check_remote, remote_client
from compute.cluster.workers import check_workers

if TYPE_CHECKING:
    from distributed import Client


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
        client = stack.enter_context(_client(options, progress))
        slots = sum(client.nthreads().values())
        if not slots:
            raise ComputeError(
                f"{options.scheduler or options.scheduler_file}: the scheduler has no workers; start some first"
            )
        if client.dashboard_link:  # threads of this process have none
            progress.note(f"dashboard: {client.dashboard_link}")
        blas = check_workers(client, folder) if remote else None
        budget = _worker_budget(client) if remote and options.memory is None else None
        if budget is None:
            budget = memory_budget(options.memory) // slots
        yield Cluster(client, slots, budget, client.dashboard_link, blas)


def _client(options: ClusterOptions, progress: Progress) -> AbstractContextManager[Client]:
    if options.remote:
        return remote_client(options, progress)
    from compute.cluster.local import local_client

    return local_client(options)


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
