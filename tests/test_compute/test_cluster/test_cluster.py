"""Clusters and tasks: what is refused, and how a failing piece is told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster
from threadpoolctl import threadpool_info

from bankdb.errors import BankFormatError, ComputeError, ParameterError
from bankdb.progress import SilentProgress
from compute.cluster import blas
from compute.cluster import scheduler as connection
from compute.cluster.client import open_cluster
from compute.cluster.machine import core_count, machine_memory, memory_budget, parse_memory
from compute.cluster.options import Cluster, ClusterOptions
from compute.cluster.tasks import run_tasks
from tests.support.banks.recorded_progress import RecordedProgress


@pytest.fixture(scope="module")
def threads() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=2, processes=False, memory=1 << 30), SilentProgress()) as opened:
        yield opened


@pytest.fixture(scope="module")
def processes() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=2), SilentProgress()) as opened:
        yield opened


@pytest.fixture(scope="module")
def scheduler() -> Iterator[LocalCluster]:
    """A scheduler that somebody else started, with one worker of two threads."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=4 << 30,
    ) as started:
        yield started


# -- memory --------------------------------------------------------------------------------------------


def _intervals() -> tuple[str, str]:
    import dask

    return dask.config.get("distributed.admin.tick.interval"), dask.config.get(
        "distributed.worker.profile.interval"
    )


def test_processes_of_a_local_cluster_wake_up_less_often(processes: Cluster) -> None:
    assert set(processes.client.run(_intervals).values()) == {("500ms", "100ms")}


def test_what_the_user_has_set_is_kept() -> None:
    import dask

    before = _intervals()
    with (
        dask.config.set({"distributed.worker.profile.interval": "30ms"}),
        open_cluster(ClusterOptions(workers=1, memory=1 << 30), SilentProgress()) as opened,
    ):
        assert set(opened.client.run(_intervals).values()) == {("500ms", "30ms")}
    assert _intervals() == before


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("4gib", 4 * 2**30),
        ("4 G", 4 * 2**30),
        ("500MB", 500 * 10**6),
        ("1.5K", 1536),
        ("2kb", 2000),
        ("3TiB", 3 * 2**40),
        ("1073741824", 2**30),
        ("1073741824 B", 2**30),
        ("1e9", 10**9),
    ],
)
def test_memory_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "GiB",
        "many",
        "-4GiB",
        "0",
        "0.5",
        "4QiB",
        "4GiBB",
        "4BG",
        "1,5GB",
        "inf",
        "nan",
        "1e30",
        "50%",
    ],
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ParameterError, match="expected a size such as 4GiB") as raised:
        parse_memory(text)
    assert repr(text) in str(raised.value)


def test_half_of_the_machine_is_the_default() -> None:
    assert memory_budget(None) == machine_memory() // 2
    assert memory_budget(12345) == 12345
    with pytest.raises(ParameterError, match="memory"):
        memory_budget(0)


def test_cores_are_what_the_process_may_use() -> None:
    assert 1 <= core_count() <= len(os.sched_getaffinity(0))


# -- opening -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ClusterOptions(scheduler="tcp://h:1", scheduler_file=Path("s.json")), "not both"),
        (ClusterOptions(scheduler="tcp://h:1", workers=2), "--workers"),
        (ClusterOptions(workers=0), "expected at least 1, found 0"),
        (ClusterOptions(workers=-1), "expected at least 1, found -1"),
        (ClusterOptions(memory=0), "memory"),
        (ClusterOptions(scheduler_file=Path("/nowhere/scheduler.json")), "/nowhere/scheduler.json"),
    ],
)
def test_options_that_are_refused(options: ClusterOptions, message: str) -> None:
    with pytest.raises(ParameterError, match=message), open_cluster(options, SilentProgress()):
        pass


@pytest.mark.parametrize("content", ["", "not JSON", "[]", "{}"])
def test_a_scheduler_file_that_is_none(content: str, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(content)
    with (
        pytest.raises(ParameterError, match=r"scheduler\.json"),
        open_cluster(ClusterOptions(scheduler_file=file), SilentProgress()),
    ):
        pass


def test_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    for scheduler in (address, "nonsense://there", "::"):
        with (
            pytest.raises(ComputeError, match="no Dask scheduler answers there") as raised,
            open_cluster(ClusterOptions(scheduler=scheduler), SilentProgress()),
        ):
            pass
        assert str(raised.value).startswith(scheduler)


def test_something_else_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(ComputeError, match="no Dask scheduler answers there"),
            open_cluster(ClusterOptions(scheduler=address), SilentProgress()),
        ):
            pass


def test_a_running_scheduler_by_address_and_by_file(scheduler: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(f'{{"address": "{scheduler.scheduler_address}"}}')
    by_address = ClusterOptions(scheduler=scheduler.scheduler_address)
    for options in (by_address, ClusterOptions(scheduler_file=file)):
        with open_cluster(options, SilentProgress()) as opened:
            assert opened.slots == 2
            # Half of what its worker has for each thread, whatever this machine has.
            assert opened.task_budget == 1 << 30
            assert dict(run_tasks(opened, "sums", sum, {"a": ((1, 2),)}, SilentProgress())) == {"a": 3}
    with open_cluster(ClusterOptions(scheduler_file=file, memory=1000), SilentProgress()) as opened:
        assert opened.task_budget == 500
    # Another's scheduler goes on when we leave.
    with Client(scheduler.scheduler_address, timeout="5s") as client:
        assert client.submit(sum, (1, 2)).result() == 3


def test_a_scheduler_without_workers() -> None:
    with (
        LocalCluster(
            n_workers=0, processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as idle,
        pytest.raises(ComputeError, match="has no workers"),
        open_cluster(ClusterOptions(scheduler=idle.scheduler_address), SilentProgress()),
    ):
        pass


def test_the_dashboard_answers() -> None:
    progress = RecordedProgress()
    options = ClusterOptions(workers=1, memory=1000)
    with open_cluster(options, progress) as opened:
        assert progress.notes == [f"dashboard: {opened.dashboard}"]
        with urllib.request.urlopen(opened.dashboard, timeout=20) as answer:
            assert answer.status == 200
            assert b"Dask" in answer.read()
        assert opened.slots == 1
        assert opened.task_budget == 1000


# -- tasks ---------------------------------------------------------------------------------------------


def double(value: int) -> int:
    return 2 * value


def fail(reason: str) -> None:
    raise ValueError(reason)


def refuse(reason: str) -> None:
    raise BankFormatError(reason)


def die(code: int) -> None:
    os._exit(code)


def leave_a_mark(folder: Path, seconds: float) -> None:
    time.sleep(seconds)
    (folder / uuid.uuid4().hex).touch()


def blas_threads(seconds: float) -> int:
    time.sleep(seconds)
    return max(int(library["num_threads"]) for library in threadpool_info() if library["user_api"] == "blas")


def test_each_piece_comes_once_with_its_result(threads: Cluster) -> None:
    progress = RecordedProgress()
    tasks = {f"piece-{index}": (index,) for index in range(50)}
    found = list(run_tasks(threads, "doubling", double, tasks, progress))
    assert sorted(found) == sorted((name, 2 * value) for name, (value,) in tasks.items())
    assert progress.stages == {"doubling": 50}


_BEGUN: list[int] = []


def begin(number: int, seconds: float) -> str:
    """Note that a piece begins, and return which worker has it; workers of these tests are threads of this process."""
    from distributed import get_worker

    _BEGUN.append(number)
    time.sleep(seconds)
    return str(get_worker().address)


@pytest.fixture
def alone() -> Iterator[Cluster]:
    _BEGUN.clear()
    options = ClusterOptions(workers=1, processes=False, memory=1 << 30)
    with open_cluster(options, SilentProgress()) as opened:
        yield opened


def test_pieces_of_a_step_begin_in_their_order(alone: Cluster) -> None:
    """However their names sort."""
    order = [int(number) for number in np.random.default_rng(0).permutation(40)]
    tasks = {f"piece-{number}": (number, 0.0) for number in order}
    assert len(list(run_tasks(alone, "ordered", begin, tasks, SilentProgress()))) == 40
    assert order == _BEGUN


def test_long_pieces_begin_in_their_order_whatever_their_step(alone: Cluster) -> None:
    """Short ones of other steps may change places with a neighbour, these are at the scheduler one at a time."""
    order = [4, 1, 5, 0, 3, 2]
    tasks = {f"piece-{number}": (number, 0.55) for number in order}
    steps = {name: f"step {number % 3}" for name, (number, _) in tasks.items()}
    assert len(list(run_tasks(alone, "ordered", begin, tasks, SilentProgress(), steps.__getitem__))) == 6
    assert order == _BEGUN


@pytest.mark.parametrize(("seconds", "count", "most"), [(0.55, 3, 1), (0.3, 6, 2), (0.0, 100, 4)])
def test_long_pieces_wait_until_a_worker_is_free(
    alone: Cluster, monkeypatch: pytest.MonkeyPatch, seconds: float, count: int, most: int
) -> None:
    """So that whoever is free first takes the next; short ones are there when the one before ends."""
    submit, submitted = alone.client.submit, []

    def counted(*arguments: object, **options: object) -> object:
        submitted.append(options["key"])
        return submit(*arguments, **options)

    monkeypatch.setattr(alone.client, "submit", counted)
    waiting = []
    tasks = {f"{number}": (number, seconds) for number in range(count)}
    for done, _ in enumerate(run_tasks(alone, "paced", begin, tasks, SilentProgress()), start=1):
        waiting.append(len(submitted) - done)
    assert max(waiting) == most
    assert len(submitted) == count


def test_workers_that_come_later_have_pieces_too(alone: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.cluster.tasks._LOOK_SECONDS", 0.2)
    tasks = {f"{number}": (number, 0.6) for number in range(12)}
    found = set()
    for done, (_, worker) in enumerate(run_tasks(alone, "many", begin, tasks, SilentProgress())):
        found.add(worker)
        if done == 0:
            alone.client.cluster.scale(3)
    assert len(found) == 3
    assert sorted(_BEGUN) == list(range(12))


def test_the_same_piece_again_is_computed_again(threads: Cluster, tmp_path: Path) -> None:
    for _ in range(2):
        dict(run_tasks(threads, "again", leave_a_mark, {"same": (tmp_path, 0.0)}, SilentProgress()))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failing_piece_is_named(threads: Cluster) -> None:
    tasks = {"seven": ("broken\nat the second line",)}
    with pytest.raises(ComputeError) as raised:
        list(run_tasks(threads, "tiles of glass", fail, tasks, SilentProgress()))
    message = str(raised.value)
    assert "tiles of glass: piece seven failed (ValueError: broken)" in message
    assert "run the same command again" in message
    assert "\n" not in message


def test_an_error_that_explains_itself_comes_as_it_is(processes: Cluster) -> None:
    with pytest.raises(BankFormatError, match=r"^row 7 is damaged$"):
        list(run_tasks(processes, "panels", refuse, {"a": ("row 7 is damaged",)}, SilentProgress()))


def test_after_a_failure_the_others_are_cancelled(threads: Cluster, tmp_path: Path) -> None:
    tasks = {"missing": (tmp_path / "missing", 0.0)} | {f"{index}": (tmp_path, 0.05) for index in range(60)}
    with pytest.raises(ComputeError, match="marks: piece missing failed"):
        list(run_tasks(threads, "marks", leave_a_mark, tasks, SilentProgress()))
    assert dict(run_tasks(threads, "next", double, {"a": (4,)}, SilentProgress())) == {"a": 8}
    assert len(list(tmp_path.iterdir())) < 20


def test_a_piece_that_kills_its_workers_is_named(processes: Cluster) -> None:
    tasks: dict[str, tuple[int, ...]] = {"deadly": (9,)}
    with pytest.raises(ComputeError, match=r"panels: piece deadly failed \(KilledWorker"):
        list(run_tasks(processes, "panels", die, tasks, SilentProgress()))
    # The cluster has recovered.
    assert dict(run_tasks(processes, "next", double, {"a": (4,)}, SilentProgress())) == {"a": 8}


def test_blas_has_one_thread_in_tasks_and_its_own_afterwards(threads: Cluster) -> None:
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    while blas._running:  # what an earlier test cancelled
        time.sleep(0.01)
    before = blas_threads(0)
    # Of different lengths, so that they overlap: the first to end must not lift the limit of the others.
    tasks = {f"{index}": (0.02 * (1 + index % 3),) for index in range(8)}
    found = dict(run_tasks(threads, "blas", blas_threads, tasks, SilentProgress()))
    assert set(found.values()) == {1}
    while blas._running:
        time.sleep(0.01)
    assert blas_threads(0) == before


def environment(name: str) -> str | None:
    return os.environ.get(name)


def print_allocator() -> None:
    """Run in a process of its own: Dask leaves what the first cluster of a process set in its environment."""
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "OMP_NUM_THREADS")
    with open_cluster(ClusterOptions(workers=1, memory=1 << 30), SilentProgress()) as poor:
        tasks = {name: (name,) for name in names}
        found = dict(run_tasks(poor, "environment", environment, tasks, SilentProgress()))
    print(json.dumps(found))


def test_workers_keep_no_more_freed_memory_than_an_eighth_of_their_share() -> None:
    program = f"from {__name__} import print_allocator\nif __name__ == '__main__':\n    print_allocator()"
    here = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    here["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program], env=here, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {
        "MALLOC_TRIM_THRESHOLD_": str((1 << 30) // 8),
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "OMP_NUM_THREADS": "1",
    }


# -- the machine as Dask counts it ---------------------------------------------------------------------


def test_memory_and_cores_are_what_dask_counts() -> None:
    from dask.system import cpu_count
    from distributed.system import memory_limit

    assert (machine_memory(), core_count()) == (memory_limit(), cpu_count())


@pytest.mark.parametrize(
    ("files", "memory", "cores"),
    [
        ({"memory.max": "1000000\n", "cpu.max": "150000 100000\n"}, 1_000_000, 2),
        ({"memory.max": "max\n", "memory.high": "2000000\n", "cpu.max": "max 100000\n"}, 2_000_000, None),
        (
            {
                "memory/memory.limit_in_bytes": "3000000",
                "cpu,cpuacct/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            3_000_000,
            1,
        ),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, None, None),
    ],
)
def test_a_control_group_limits_both(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    memory: int | None,
    cores: int | None,
) -> None:
    monkeypatch.setattr("compute.cluster.machine._GROUPS", tmp_path / "none")
    unlimited = machine_memory(), core_count()
    group = Path("/proc/self/cgroup").read_text().strip().split(":")[-1].strip("/")
    monkeypatch.setattr("compute.cluster.machine._GROUPS", tmp_path)
    for name, text in files.items():
        place = tmp_path / group / name if name == "cpu.max" else tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert machine_memory() == (memory or unlimited[0])
    assert core_count() == min(cores or unlimited[1], unlimited[1])
