"""Where work runs, and what its tasks may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from distributed import Client


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
    """A client, the tasks that it runs at once, and the bytes that each of them may use.

    Attributes
    ----------
    start
        Returns the client, always the same. Of a local cluster it is started when it is asked for first: what is
        all stored already, or one process does before workers would have, needs none.
    blas
        Threads of BLAS in a task on each host; None is one thread: a local cluster has a process for each core.
    alone
        Whether tasks may run in this process instead, where they are short.
    started
        Returns whether there may be workers: not of a local cluster that was never asked for.
    asked
        Whether somebody asked for workers, by a scheduler, a client, or a number of processes: what this process does
        as quickly in threads runs on them then.
    """

    start: Callable[[], Client]
    slots: int
    task_budget: int
    blas: Mapping[str, int] | None = None
    alone: bool = False
    started: Callable[[], bool] = lambda: True
    asked: bool = True

    @property
    def client(self) -> Client:
        """The client, connected."""
        return self.start()

    @property
    def dashboard(self) -> str:
        """The dashboard's address; empty where there is none."""
        return str(self.client.dashboard_link)


ClusterLike: TypeAlias = "Cluster | ClusterOptions | Client | None"
"""Where work runs: on a cluster as described, on a client's, or, for None, on the default client's if there is one,
else in threads of this process."""
