"""A Dask client, local or remote, and tasks whose failure names the piece that failed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bankdb.errors import BankError, ComputeError, ParameterError
from bankdb.progress import Progress
from bankdb.quiet import quiet_loggers

if TYPE_CHECKING:
    from distributed import Client

_SIZES = {"": 1, "B": 1, "K": 1024, "KB": 1000, "KIB": 1024, "M": 2**20, "MB": 10**6, "MIB": 2**20,
          "G": 2**30, "GB": 10**9, "GIB": 2**30, "T": 2**40, "TB": 10**12, "TIB": 2**40}  # fmt: skip

_CONNECT_SECONDS = 20.0


# Dask and its dashboard log that they start, stop, and take another port.
_CHATTY = ("distributed", "bokeh", "tornado.application")
# Freed memory that a worker process may keep for its next arrays.
_KEPT_BYTES = 256 * 2**20


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
    """

    scheduler: str | None = None
    scheduler_file: Path | None = None
    workers: int | None = None
    memory: int | None = None
    processes: bool = True


@dataclass(frozen=True, slots=True)
class Cluster:
    """An open client, the tasks that it runs at once, and the bytes that each of them may use."""

    client: Client
    slots: int
    task_budget: int
    dashboard: str


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
def open_cluster(options: ClusterOptions, progress: Progress) -> Iterator[Cluster]:
    """Connect to a scheduler, or start a local cluster; the dashboard's address is told as a note.

    Raises
    ------
    ComputeError
        The scheduler does not answer, or has no workers.
    ParameterError
        Options contradict each other.
    """
    _check(options)
    remote = options.scheduler is not None or options.scheduler_file is not None
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_remote(options) if remote else _local(options))
        slots = sum(client.nthreads().values())
        if not slots:
            raise ComputeError(
                f"{options.scheduler or options.scheduler_file}: the scheduler has no workers; start some first"
            )
        progress.note(f"dashboard: {client.dashboard_link}")
        budget = _worker_budget(client) if remote and options.memory is None else None
        if budget is None:
            budget = memory_budget(options.memory) // slots
        yield Cluster(client, slots, budget, client.dashboard_link)


def memory_budget(asked: int | None) -> int:
    """Return the bytes that may be used: what was asked for, or half of the machine's memory."""
    if asked is None:
        return machine_memory() // 2
    if asked < 1:
        raise ParameterError(f"memory: expected at least 1 byte, found {asked}; give a size such as 4GiB")
    return asked


def _check(options: ClusterOptions) -> None:
    if options.scheduler is not None and options.scheduler_file is not None:
        raise ParameterError("give --scheduler or --scheduler-file, not both")
    remote = options.scheduler is not None or options.scheduler_file is not None
    if remote and options.workers is not None:
        raise ParameterError("--workers is for a local cluster; a running scheduler has its own workers")
    if options.workers is not None and options.workers < 1:
        raise ParameterError(
            f"workers: expected at least 1, found {options.workers}; leave it out for all cores"
        )
    memory_budget(options.memory)


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
    from distributed import Client, LocalCluster

    workers = core_count() if options.workers is None else options.workers
    with (
        warnings.catch_warnings(),
        quiet_loggers(*_CHATTY),
        _allocator(memory_budget(options.memory) // workers),
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


@contextlib.contextmanager
def _remote(options: ClusterOptions) -> Iterator[Client]:
    from distributed import Client

    address = options.scheduler or _address(options.scheduler_file)
    try:
        _shake_hands(address)
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise ComputeError(
            f"{address}: no Dask scheduler answers there ({type(error).__name__}); start one"
        ) from error
    with client:
        yield client


def _shake_hands(address: str) -> None:
    """Connect and close: `Client` waits forever where something accepts and is silent, such as a dashboard."""
    from distributed import Security
    from distributed.comm.core import connect

    async def shake() -> None:
        comm = await connect(address, timeout=_CONNECT_SECONDS, **Security().get_connection_args("client"))
        await comm.close()

    # In a thread of its own: a notebook's has a loop running.
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(asyncio.run, asyncio.wait_for(shake(), _CONNECT_SECONDS)).result()


def _address(scheduler_file: Path | None) -> str:
    """Read the address that a scheduler left in its file."""
    try:
        return str(json.loads(Path(scheduler_file or "").read_text())["address"])
    except OSError as error:
        raise ParameterError(
            f"{scheduler_file}: no such scheduler file ({error.strerror}); start the scheduler first"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            f"{scheduler_file}: expected the file that `dask scheduler --scheduler-file` writes, found something "
            "else; start the scheduler again"
        ) from error


def run_tasks(
    cluster: Cluster,
    stage: str,
    function: Callable[..., Any],
    tasks: Mapping[str, tuple[Any, ...]],
    progress: Progress,
) -> Iterator[tuple[str, Any]]:
    """Run `function(*arguments)` for each named task; yield names and results as they come.

    At most a few tasks a worker are in flight, so that results are taken as they are made. BLAS is bound
    to one thread in each task: the workers are the parallelism.

    Raises
    ------
    ComputeError
        A task failed, or killed its workers; it is named, and the others are cancelled.
    """
    from distributed import as_completed
    from threadpoolctl import threadpool_limits

    progress.begin(stage, len(tasks))
    waiting = iter(tasks.items())
    pool = as_completed()
    flying: dict[str, tuple[str, Any]] = {}
    # Here too: threads of one process share the limit, and the first task to end must not lift it.
    with threadpool_limits(limits=1), _cancelling(cluster, flying):
        for name, arguments in _take(waiting, 4 * cluster.slots):
            _submit(cluster, stage, function, name, arguments, pool, flying)
        for future in pool:
            name, _ = flying.pop(future.key)
            result = _result(future, stage, name)
            for following, arguments in _take(waiting, 1):
                _submit(cluster, stage, function, following, arguments, pool, flying)
            yield name, result
            progress.advance()
    progress.end()


@contextlib.contextmanager
def _cancelling(cluster: Cluster, flying: Mapping[str, tuple[str, Any]]) -> Iterator[None]:
    """Cancel what is still running or waiting at the end."""
    try:
        yield
    finally:
        if flying:
            cluster.client.cancel([future for _, future in flying.values()], force=True)


def _take(items: Iterator[tuple[str, tuple[Any, ...]]], count: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for _, item in zip(range(count), items, strict=False):
        yield item


def _submit(
    cluster: Cluster,
    stage: str,
    function: Callable[..., Any],
    name: str,
    arguments: tuple[Any, ...],
    pool: Any,
    flying: dict[str, tuple[str, Any]],
) -> None:
    # A key of its own: the same piece computed again in another run is another task.
    key = f"{stage.replace(' ', '-')}-{name}-{os.urandom(4).hex()}"
    future = cluster.client.submit(_bounded, function, arguments, key=key, pure=False, retries=0)
    flying[key] = (name, future)
    pool.add(future)


def _bounded(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        return function(*arguments)


def _result(future: Any, stage: str, name: str) -> Any:
    try:
        return future.result()
    except BankError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ComputeError(
            f"{stage}: piece {name} failed ({type(error).__name__}: {reason}); what was done before is kept, "
            "run the same command again to go on"
        ) from error
