"""A cluster on this machine that nobody but its owner can use: over TLS between processes, without a port in one.

Imports `distributed`, so it is imported when a cluster starts.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
import warnings
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any, Self

import dask
from distributed import Client, Nanny, Scheduler, Security, SpecCluster, Worker

from bankdb.errors import ComputeError, one_line
from bankdb.progress import quiet_loggers
from compute.cluster.machine import core_count, machine_memory, memory_budget
from compute.cluster.options import ClusterOptions

# Dask and its dashboard log that they start, stop, take another port, and the traceback of a task that fails, which
# is told by the piece that does not come back.
_CHATTY = ("distributed", "bokeh", "tornado.application")
# Freed memory that a worker process may keep for its next arrays.
_KEPT_BYTES = 256 * 2**20
# Dask's default and ours: every process wakes up 50 times a second to look whether it is late, and every worker 100
# times to sample its stack. With a worker on each core that is 3% of a run.
_CALMED = {
    "distributed.admin.tick.interval": ("20ms", "500ms"),
    "distributed.worker.profile.interval": ("10ms", "100ms"),
}
# Of the user's own configuration of Dask, which is made for clusters of many machines, a local one takes these alone.
_USERS_OWN = ("distributed.admin", "distributed.worker.profile", "distributed.nanny.pre-spawn-environ")
# Pages that only show. Dask's others pass requests on to any port of a worker's host.
_PAGES = [
    "distributed.http.scheduler.info",
    "distributed.http.health",
    "distributed.http.statics",
    "compute.cluster.bank_page",
]


class _NoPages:
    """Of a Dask server: it serves no web pages, and so opens no port for them."""

    def start_http_server(self, *_arguments: Any, **_options: Any) -> None:
        """Start nothing."""


class PagelessWorker(_NoPages, Worker):
    """A worker without web pages of its own; the scheduler's show what it does."""


class SteadyNanny(Nanny):
    """What keeps a worker process, which does not hear of Ctrl-C: a terminal tells every process, the client ends them.

    A process inherits the signals that the thread which starts it has blocked; the one that waits for Ctrl-C is the
    client's main thread.
    """

    async def start_unsafe(self) -> Self:
        """Block SIGINT in the thread of the event loop, and start the worker."""
        # Before: where Python starts it itself, it allows the signal again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        await super().start_unsafe()
        return self


class PagelessScheduler(_NoPages, Scheduler):
    """A scheduler without a dashboard."""


class DashboardScheduler(Scheduler):
    """A scheduler whose dashboard talks to its own pages alone, not to others that are open in the same browser."""

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Start it; what is connected to it afterwards looks into Dask's configuration."""
        super().start_http_server(*arguments, **options)
        port = self.services["dashboard"].port
        origins = [f"{host}:{port}" for host in ("127.0.0.1", "localhost")]
        dask.config.set({"distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": origins})


@contextlib.contextmanager
def local_client(options: ClusterOptions) -> Iterator[Client]:
    """Start worker processes, or threads of this one, and connect to them.

    Processes speak TLS on 127.0.0.1, with a certificate made for this cluster that is kept in memory: other users of
    the machine can neither send tasks nor listen. The dashboard, on 127.0.0.1 too, only shows. Threads open no port.

    Raises
    ------
    ComputeError
        It did not start.
    """
    workers = core_count() if options.workers is None else options.workers
    with (
        warnings.catch_warnings(),
        quiet_loggers(*_CHATTY, level=logging.CRITICAL),
        dask.config.set(_settings(memory_budget(options.memory) // workers)),
    ):
        # A taken dashboard port is no news: the next free one is used, and printed.
        warnings.filterwarnings("ignore", message="Port .* is already in use")
        try:
            cluster = _processes(workers) if options.processes else _threads(workers)
        except (RuntimeError, OSError, TimeoutError) as error:
            raise ComputeError(
                f"the local Dask cluster of {workers} workers did not start ({type(error).__name__}: "
                f"{one_line(error)}); it needs a folder for temporary files (TMPDIR, now {tempfile.gettempdir()}), "
                "ports of 127.0.0.1, and memory and processes (ulimit -u) for its workers: fewer --workers need less"
            ) from error
        # Not the default: what else this process computes with Dask goes where it went.
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client


def _processes(workers: int) -> SpecCluster:
    security = Security.temporary()
    shared = {"host": "127.0.0.1", "protocol": "tls://", "security": security}
    scheduler = {"dashboard": True, "dashboard_address": "127.0.0.1:8787", **shared}
    worker = {
        "nthreads": 1,
        "memory_limit": machine_memory() // workers,
        "worker_class": PagelessWorker,
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
        **shared,
    }
    made = {"cls": SteadyNanny, "options": worker}
    return SpecCluster(
        workers=dict.fromkeys(range(workers), made),
        worker=made,
        scheduler={"cls": DashboardScheduler, "options": scheduler},
        security=security,
        silence_logs=logging.CRITICAL,
    )


def _threads(workers: int) -> SpecCluster:
    inside = {"protocol": "inproc://", "dashboard": False}
    worker = {
        "nthreads": workers,
        "memory_limit": machine_memory(),
        "silence_logs": logging.CRITICAL,
        **inside,
    }
    made = {"cls": PagelessWorker, "options": worker}
    return SpecCluster(
        workers={0: made},
        worker=made,
        scheduler={"cls": PagelessScheduler, "options": inside},
        silence_logs=logging.CRITICAL,
    )


def _settings(budget: int) -> dict[str, Any]:
    """Return Dask's settings for a local cluster: its defaults, but what the user may choose, and what is ours."""
    ours: dict[str, Any] = {"distributed": dask.config.merge(*dask.config.defaults)["distributed"]}
    ours |= {key: dask.config.get(key) for key in _USERS_OWN}
    ours |= {key: value for key, (default, value) in _CALMED.items() if dask.config.get(key) == default}
    key = "distributed.nanny.pre-spawn-environ"
    return ours | {
        key: dict(dask.config.get(key)) | _allocator(budget),
        "distributed.scheduler.http.routes": _PAGES,
    }


def _allocator(budget: int) -> dict[str, str]:
    """Return the environment with which worker processes keep some of the memory that they free.

    Dask has them give back every 64 KiB at once, so that tasks spend a third of their time on page faults.
    An eighth of the budget is kept at the most, but more in stages that `keep_freed` has keep it. Dask leaves
    these variables in this process's environment, so that the first cluster of a process decides; values that
    the user has set are kept.
    """
    kept = min(_KEPT_BYTES, budget // 8)
    return {
        "MALLOC_TRIM_THRESHOLD_": str(kept),
        # glibc takes no more than 32 MiB.
        "MALLOC_MMAP_THRESHOLD_": str(min(kept, 32 * 2**20)),
        # For `compute.cluster.memory.keep_freed`.
        "MALLOC_ARENA_MAX": "1",
    }
