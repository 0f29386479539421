"""Clusters of real processes that fail: `kill -9` of workers and of the scheduler, and workers that are slow."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client

from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError
from bankdb.progress import Progress, SilentProgress
from bankdb.verify import verify
from compute.approaches.options import PredictionOptions
from compute.cluster import tasks as tasks_module
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.stored_files import copy_bank, digests
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import SyntheticBank, layout_of, zipf_bank
from tests.support.clusters.dask_processes import ROOT, DaskProcesses, wait_until

pytestmark = pytest.mark.faults

# Rows on both sides of a chunk's edge: three tiles; two chunks of columns: two slices, two panels.
N, VOCABULARY, TOKENS = 66, 4_000, 2_000
LAYOUT = layout_of(hidden=2**12, rank=2, layers=9)
WORKERS = 4
WAYS = [
    PredictionOptions(metric="js", approach="normalized"),
    PredictionOptions(metric="js", approach="oracle"),
]
KINDS = ("distances", "gram", "predictions")
Results = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SyntheticBank:
    return zipf_bank(tmp_path_factory.mktemp("template"), LAYOUT, N, VOCABULARY, TOKENS)


@contextmanager
def copied(template: SyntheticBank, folder: Path) -> Iterator[AdapterBank]:
    with AdapterBank.open(copy_bank(template.bank.path, folder / "bank")) as bank:
        yield bank


def run(bank: AdapterBank, cluster: Cluster, out: Path, progress: Progress) -> None:
    """As `bank predict --all`, by coefficients that need every stage; then the export of the first way."""
    made = predict_all_stored(bank, WAYS, cluster=cluster, progress=progress)
    made[0].save(out, progress=progress)


def results(bank: AdapterBank, out: Path) -> Results:
    """Every byte of what a run leaves."""
    found = {kind: digests(bank.path / f"{kind}.zarr") for kind in KINDS}
    return found | {"exported": digests(out)}


def own_options(**options: object) -> ClusterOptions:
    """Plans follow the memory of a task: the same for all clusters here."""
    return ClusterOptions(memory=WORKERS << 29, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def local(template: SyntheticBank, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What an undisturbed run leaves, on threads of this process."""
    folder = tmp_path_factory.mktemp("local")
    options = own_options(workers=WORKERS, processes=False)
    with copied(template, folder) as bank, open_cluster(options, SilentProgress()) as cluster:
        run(bank, cluster, folder / "out", SilentProgress())
        return results(bank, folder / "out")


@contextmanager
def started(folder: Path, workers: int = WORKERS, **environment: str) -> Iterator[DaskProcesses]:
    with DaskProcesses(folder, environment=environment) as processes:
        processes.start_scheduler()
        for index in range(workers):
            processes.start_worker(f"w{index}")
        yield processes


@contextmanager
def opened(processes: DaskProcesses, bank: AdapterBank, workers: int = WORKERS) -> Iterator[Cluster]:
    options = own_options(scheduler_file=processes.file, wait_workers=workers, wait_seconds=120)
    with open_cluster(options, SilentProgress(), bank.store.path) as cluster:
        # One thread as in a local cluster, so that products round alike.
        yield dataclasses.replace(cluster, blas=None)


@pytest.fixture
def cluster_folder(tmp_path: Path) -> Path:
    (tmp_path / "cluster").mkdir()
    return tmp_path / "cluster"


# -- workers -------------------------------------------------------------------------------------------


def test_four_worker_processes_give_what_threads_give_though_one_dies_in_each_stage(
    template: SyntheticBank, local: Results, tmp_path: Path, cluster_folder: Path
) -> None:
    orders = {"distances": "flush", "gram": "end", "combine": "flush"}
    with started(cluster_folder) as processes, copied(template, tmp_path) as bank:
        for stage, order in orders.items():
            (processes.faults / stage).write_text(order)

        def living() -> list[str]:
            return [name for name, process in processes.processes.items() if process.poll() is None]

        def between(stage: str) -> None:
            """Others take the place of the dead; in the export, one that has nothing to do dies too."""
            if stage == "export":
                for name in living()[1:2]:
                    processes.kill(name)
            elif len(living()) < 4:
                processes.start_worker(f"w{len(processes.processes)}")

        progress = RecordedProgress(between)
        with opened(processes, bank) as cluster:
            run(bank, cluster, tmp_path / "out", progress)
        assert results(bank, tmp_path / "out") == local
        told = [note for note in progress.notes if re.fullmatch(r"worker tcp://\S+ was lost: .*", note)]
        assert len(told) >= len(orders), progress.notes
        killed = {path.name.split("-")[0] for path in processes.faults.glob("*-killed-*")}
        assert killed == set(orders)
        codes = [process.poll() for process in processes.processes.values()]
        assert codes.count(-signal.SIGKILL) >= 4
        assert verify(bank).clean


@pytest.fixture(scope="module")
def small(template: SyntheticBank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    """Two workers that share their fate with a few tests."""
    with started(
        tmp_path_factory.mktemp("small"),
        2,
        DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="5s",
        DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1",
    ) as processes:
        yield processes


def test_a_worker_that_hangs_is_left_behind(
    small: DaskProcesses, template: SyntheticBank, local: Results, tmp_path: Path
) -> None:
    """Stopped while it has tasks, it is given up when it has been silent for `worker-ttl`."""

    def stop_when_all_are_busy(client: Client) -> None:
        def busy() -> int:
            return sum(any(key[0] == "combine" for key in keys) for keys in client.processing().values())

        wait_until(lambda: busy() == 2, "both workers combine")
        small.processes["w0"].send_signal(signal.SIGSTOP)
        (small.faults / "combine").unlink()

    with copied(template, tmp_path) as bank, opened(small, bank, 2) as cluster:
        (small.faults / "combine").write_text("hold")
        with ThreadPoolExecutor(1) as beside:
            stopping = beside.submit(stop_when_all_are_busy, cluster.client)
            begin = time.monotonic()
            run(bank, cluster, tmp_path / "out", SilentProgress())
            assert time.monotonic() - begin < 150
            stopping.result()
        assert results(bank, tmp_path / "out") == local
    small.processes["w0"].send_signal(signal.SIGCONT)
    small.kill("w0")


def test_a_task_that_always_kills_its_worker_is_named(
    small: DaskProcesses, template: SyntheticBank, local: Results, tmp_path: Path
) -> None:
    for index in range(3):
        small.start_worker(f"doomed{index}")
    with copied(template, tmp_path) as bank:
        (small.faults / "combine").write_text("always")
        begin = time.monotonic()
        with (
            opened(small, bank, 2) as cluster,
            pytest.raises(
                ComputeError, match=r"combine: piece \S+ failed \(KilledWorker.*same command again"
            ),
        ):
            run(bank, cluster, tmp_path / "out", SilentProgress())
        assert time.monotonic() - begin < 150
        (small.faults / "combine").unlink()
        for index in range(2):
            small.start_worker(f"fresh{index}")
        progress = RecordedProgress()
        with opened(small, bank, 2) as cluster:
            run(bank, cluster, tmp_path / "out", progress)
        assert {"distances jensen-shannon", "gram"} & set(progress.stages) == set()
        assert results(bank, tmp_path / "out") == local


def test_no_worker_is_left(
    template: SyntheticBank,
    local: Results,
    tmp_path: Path,
    cluster_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks_module, "_ALONE_SECONDS", 3.0)
    with started(cluster_folder, 1) as processes, copied(template, tmp_path) as bank:

        def kill(stage: str) -> None:
            processes.kill("w0")

        with (
            opened(processes, bank, 1) as cluster,
            pytest.raises(ComputeError, match=r"expected workers, found none for 3 s; .*same command again"),
        ):
            run(bank, cluster, tmp_path / "out", RecordedProgress(kill))
        processes.start_worker("late")
        with opened(processes, bank, 1) as cluster:
            run(bank, cluster, tmp_path / "out", SilentProgress())
        assert results(bank, tmp_path / "out") == local


# -- the scheduler -------------------------------------------------------------------------------------


def command(bank: Path, out: Path, processes: DaskProcesses, log: Path) -> subprocess.Popen[bytes]:
    options = ["--metric", "js", "--approach", "normalized", "--store", "--export", str(out)]
    where = ["--scheduler-file", str(processes.file), "--wait-workers", "2", "--wait-seconds", "120"]
    program = [
        sys.executable,
        "-m",
        "cli.main",
        "predict",
        "--bank",
        str(bank),
        "--all",
        *options,
        "--memory",
        "2GiB",
        *where,
    ]
    with log.open("wb") as file:
        return subprocess.Popen(program, cwd=ROOT, stdout=file, stderr=file)


def test_the_scheduler_killed_then_the_same_command(
    template: SyntheticBank, local: Results, tmp_path: Path, cluster_folder: Path
) -> None:
    bank, out, log = copy_bank(template.bank.path, tmp_path / "bank"), tmp_path / "out", tmp_path / "log"
    with started(cluster_folder, 2) as processes:
        (processes.faults / "combine").write_text("hold")
        (processes.faults / "combine-pass").touch()
        client = command(bank, out, processes, log)
        wait_until(lambda: done_pieces(bank) == 1, "a piece of two")
        begin = time.monotonic()
        processes.kill("scheduler")
        assert client.wait(120) == 1
        assert time.monotonic() - begin < 110
        said = log.read_text()
        assert "combine: piece" in said
        assert "the scheduler was lost" in said
        assert "run the same command again" in said
        assert "Traceback" not in said
        (processes.faults / "combine").unlink()
        for name in ("w0", "w1"):
            processes.kill(name)
        processes.start_scheduler()
        for name in ("w0", "w1"):
            processes.start_worker(name)
        assert command(bank, out, processes, log).wait(120) == 0, log.read_text()
        said = log.read_text()
        total = len([name for name in local["predictions"] if "adapters/c/0/" in name]) // len(WAYS)
        assert "distances" not in said
        assert f"combine: 0/{total - 1}" in said
    with AdapterBank.open(bank) as opened_bank:
        found = results(opened_bank, out)
    assert found["distances"] == local["distances"]
    assert found["exported"] == local["exported"]
    assert found["predictions"].items() <= local["predictions"].items()


def done_pieces(path: Path) -> int:
    with AdapterBank.open(path) as bank:
        runs = bank.runs.all("predictions")
        return sum(len(bank.runs.done_pieces(run.id)) for run in runs)
