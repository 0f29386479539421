"""How many threads BLAS uses within tasks; a limit of a process, which its tasks share."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_lock = threading.Lock()
_running = 0
# Holds the process's limit. A thread of its own: the threads of OpenBLAS belong to who limited them first, and
# the task that begins first is rarely the last to end.
_holder: ThreadPoolExecutor | None = None
_limits: Any = None
_known: tuple[int, Any] | None = None


@contextlib.contextmanager
def bounded_blas(limit: int) -> Iterator[None]:
    """Bound BLAS to some threads while any task of this process runs.

    The first to begin sets the process's limit and the last to end lifts it: tasks in threads overlap. Each
    also limits its own thread, which is what counts where BLAS is built on OpenMP.
    """
    controller = _hold(limit)
    try:
        with controller.limit(limits=limit):
            yield
    finally:
        _release()


def _hold(limit: int) -> Any:
    """Set the process's limit if nobody has; return what sets limits of the libraries that are loaded now."""
    from threadpoolctl import ThreadpoolController

    global _running, _limits, _holder, _known
    with _lock:
        # To look for libraries takes a millisecond; they come with modules.
        if _known is None or _known[0] != len(sys.modules):
            _known = (len(sys.modules), ThreadpoolController())
        controller = _known[1]
        if not _running:
            _holder = _holder or ThreadPoolExecutor(max_workers=1, thread_name_prefix="blas-limit")
            _limits = _holder.submit(lambda: controller.limit(limits=limit).__enter__()).result()
        _running += 1
    return controller


def _release() -> None:
    global _running
    with _lock:
        _running -= 1
        if not _running and _holder is not None:
            _holder.submit(_limits.__exit__, None, None, None).result()


def threads_by_host(workers: Mapping[str, tuple[str, int, int]]) -> dict[str, int]:
    """Return the BLAS threads of a task on each host: its cores over the tasks that it runs at once.

    Parameters
    ----------
    workers
        By address: the worker's host, the cores that it may use, and the tasks that it runs at once.
    """
    tasks: dict[str, int] = {}
    cores: dict[str, int] = {}
    for host, available, threads in workers.values():
        tasks[host] = tasks.get(host, 0) + threads
        cores[host] = max(cores.get(host, 1), available)
    return {host: max(1, cores[host] // tasks[host]) for host in tasks}


def blas_threads(by_host: Mapping[str, int]) -> int:
    """Return the BLAS threads of the task that calls this, in a worker; a host that came later has its own share."""
    from dask.system import CPU_COUNT
    from distributed import get_worker
    from distributed.comm.addressing import get_address_host

    worker = get_worker()
    known = by_host.get(get_address_host(worker.address))
    return known or max(1, int(CPU_COUNT) // int(worker.state.nthreads))
