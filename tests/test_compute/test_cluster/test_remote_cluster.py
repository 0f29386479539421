"""A scheduler and workers that somebody else started: TLS, waiting, versions, the shared folder, threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from dask.system import CPU_COUNT
from distributed import Client
from threadpoolctl import threadpool_info

from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError, ParameterError
from bankdb.progress import SilentProgress
from cli.main import cli
from compute.cluster import scheduler as connection
from compute.cluster import workers
from compute.cluster.blas import threads_by_host
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions
from compute.cluster.tasks import run_tasks
from compute.metrics.registry import get_metric
from compute.pairwise.matrix import distance_matrices
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.clusters.dask_processes import ROOT, Certificates, DaskProcesses, make_certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[DaskProcesses]:
    """Encrypted, with one worker of one thread."""
    with DaskProcesses(tmp_path_factory.mktemp("cluster"), certificates) as cluster:
        cluster.start_scheduler()
        cluster.start_worker("first")
        yield cluster


@pytest.fixture(scope="module")
def options(started: DaskProcesses, certificates: Certificates) -> ClusterOptions:
    found = ClusterOptions(
        scheduler_file=started.file,
        tls_ca=certificates.ca,
        tls_cert=certificates.cert,
        tls_key=certificates.key,
        wait_workers=1,
        wait_seconds=120,
    )
    with open_cluster(found, SilentProgress()):
        return found


# -- options -------------------------------------------------------------------------------------------

PEM = Path(__file__)  # any file that is there


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ClusterOptions(tls_ca=PEM, tls_cert=PEM, tls_key=PEM), "--tls-ca.*give --scheduler"),
        (ClusterOptions(wait_workers=2), "--wait-workers: for a running scheduler"),
        (ClusterOptions(scheduler="tls://h:1", wait_workers=0), "wait-workers: expected at least 1, found 0"),
        (ClusterOptions(scheduler="tls://h:1", tls_ca=PEM), "--tls-cert, --tls-key missing"),
        (ClusterOptions(scheduler="tls://h:1", tls_ca=PEM, tls_key=PEM), "--tls-cert missing"),
        (
            ClusterOptions(scheduler="tls://h:1", tls_ca=PEM, tls_cert=Path("/no/c.pem"), tls_key=PEM),
            "--tls-cert: expected a PEM file, found none at /no/c.pem",
        ),
        (
            ClusterOptions(scheduler="tcp://h:1", tls_ca=PEM, tls_cert=PEM, tls_key=PEM),
            "tcp://h:1: expected an address that begins with tls://",
        ),
        (ClusterOptions(scheduler="tls://h:1"), "needs certificates; give --tls-ca"),
        (
            ClusterOptions(scheduler="tls://h:1", tls_ca=PEM, tls_cert=PEM, tls_key=PEM),
            "as PEM, found something",
        ),
    ],
)
def test_options_that_are_refused(wrong: ClusterOptions, message: str) -> None:
    with pytest.raises(ParameterError, match=message), open_cluster(wrong, SilentProgress()):
        pass


@pytest.mark.parametrize("command", ["distances", "coefficients", "predict"])
def test_the_commands_take_them(command: str, bank: AdapterBank) -> None:
    more = ["--all"] if command == "predict" else []
    where = ["--scheduler", "tls://h:1", "--wait-workers", "2", "--tls-ca", str(PEM)]
    done = CliRunner().invoke(cli, [command, "--bank", str(bank.path), *more, *where])
    assert done.exit_code == 2
    assert "--tls-cert, --tls-key missing; give all three or none" in done.output


# -- connecting ----------------------------------------------------------------------------------------


def test_a_run_is_encrypted(options: ClusterOptions, bank: AdapterBank) -> None:
    progress = RecordedProgress()
    with open_cluster(options, progress, bank.store.path) as cluster:
        assert cluster.client.scheduler is not None
        assert cluster.client.scheduler.address.startswith("tls://")
        (matrix,) = distance_matrices(bank, [get_metric("jensen-shannon")], cluster, progress)
    assert matrix.values.shape == (6, 6)


def test_clients_that_are_refused(
    started: DaskProcesses, options: ClusterOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_CONNECT_SECONDS", 3.0)
    foreign = make_certificates(tmp_path, "foreign")
    other = replace(options, tls_ca=foreign.ca, tls_cert=foreign.cert, tls_key=foreign.key)
    # It trusts the scheduler; the scheduler does not trust it.
    half = replace(options, tls_cert=foreign.cert, tls_key=foreign.key)
    plain = ClusterOptions(scheduler=started.address.replace("tls://", "tcp://"))
    for wrong in (other, half, plain):
        begin = time.monotonic()
        with pytest.raises(ComputeError) as raised, open_cluster(wrong, SilentProgress()):
            pass
        assert time.monotonic() - begin < 60
        assert "start one" in str(raised.value) or "no TLS connection" in str(raised.value)
    assert started.processes["scheduler"].poll() is None
    swapped = replace(options, tls_key=foreign.key)
    with (
        pytest.raises(ParameterError, match="a certificate with its own key"),
        open_cluster(swapped, SilentProgress()),
    ):
        pass


def test_waiting_for_workers(options: ClusterOptions) -> None:
    progress = RecordedProgress()
    begin = time.monotonic()
    with (
        pytest.raises(ComputeError, match="expected 9 workers within 1 s, found 1; start more"),
        open_cluster(replace(options, wait_workers=9, wait_seconds=1), progress),
    ):
        pass
    assert time.monotonic() - begin < 60
    assert progress.notes == ["waiting up to 1 s for 9 workers, 1 are there"]


# -- what workers have to share ------------------------------------------------------------------------


def fake_distribution(folder: Path, package: str, version: str) -> str:
    """A folder in front of others on the path, in which a package says that it is of another version."""
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    return str(folder)


def copied_code(folder: Path, changed: str) -> str:
    """This package as somebody else has it: one line of one module differs."""
    for name in ("bankdb", "compute"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / changed).open("a") as file:
        file.write("\n# another line\n")
    return str(folder)


CODE = sorted(
    min(path for path in (ROOT / name).rglob("*.py") if path.parent == folder).relative_to(ROOT).as_posix()
    for name in ("bankdb", "compute")
    for folder in {path.parent for path in (ROOT / name).rglob("*.py")}
)
"""A module of each folder of code that tasks may run."""


@pytest.mark.parametrize("changed", CODE)
def test_a_changed_line_in_any_folder_is_other_code(tmp_path: Path, changed: str) -> None:
    program = "from compute.cluster.workers import code_digest; print(code_digest())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=copied_code(tmp_path, changed),
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() != workers.code_digest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "version", "message"),
    [
        ("numpy", "1.26.4", r"has numpy 1\.26\.4, the client .*pip install 'numpy==.*and start it again"),
        ("dask", "2020.1.0", r"has dask 2020\.1\.0, the client .*pip install 'dask=="),
        ("lora-bank", "0.0.9", r"has lora-bank 0\.0\.9, the client .*pip install 'lora-bank=="),
        ("", "bankdb/arrays/shards.py", "has other code of lora-bank"),
        ("", "compute/approaches/neural/network.py", "has other code of lora-bank"),
        ("", "compute/cluster/workers.py", "has other code of lora-bank"),
    ],
)
def test_a_worker_of_another_version_is_named(
    started: DaskProcesses, options: ClusterOptions, tmp_path: Path, package: str, version: str, message: str
) -> None:
    code = tmp_path / "code"
    front = fake_distribution(code, package, version) if package else copied_code(code, version)
    paths = f"{front}:{ROOT}"
    with DaskProcesses(tmp_path, started.certificates) as extra:
        extra.start_worker("odd", scheduler=started.address, PYTHONPATH=paths)
        with (
            pytest.raises(ComputeError, match=message) as raised,
            open_cluster(replace(options, wait_workers=2), SilentProgress()),
        ):
            pass
        assert str(raised.value).startswith("worker tls://127.0.0.1:")
    wait_for_workers_left(options, 1)


def wait_for_workers_left(options: ClusterOptions, count: int) -> None:
    with open_cluster(options, SilentProgress()) as cluster:
        deadline = time.monotonic() + 20
        while len(cluster.client.scheduler_info(n_workers=-1)["workers"]) > count:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_python_and_what_does_not_matter() -> None:
    own = {"python": "3.11.9.final.0", "dask": "2025.1", "numpy": "2.1.0", "zarr": "3.1.2", "tornado": "6"}
    same = own | {"python": "3.11.2.final.0", "numpy": "2.1.3", "tornado": "5"}
    workers._compare("worker w", own, same, ("python", "dask", "numpy", "zarr"))
    with pytest.raises(
        ComputeError, match=r"^worker w has python 3\.12\.1, the client 3\.11\.9; .*use Python 3\.11,"
    ):
        workers._compare("worker w", own, own | {"python": "3.12.1.final.0"}, ("python",))
    with pytest.raises(ComputeError, match=r"^worker w has zarr none, the client 3\.1\.2; "):
        workers._compare("worker w", own, own | {"zarr": None}, ("zarr",))


def test_a_worker_that_sees_another_folder_is_named(
    options: ClusterOptions, bank: AdapterBank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The client finds another array than the worker: the copy that a host has of its own.
    copy = Path(shutil.copytree(bank.store.path, tmp_path / "copy"))
    (copy / "zarr.json").write_text((copy / "zarr.json").read_text() + " ")
    there = workers.array_mark
    monkeypatch.setattr(workers, "array_mark", lambda folder: there(str(copy)))
    before = sorted(path.name for path in bank.path.rglob("*"))
    with (
        pytest.raises(ComputeError, match=r"worker tls://.* finds another array at .*adapters\.zarr"),
        open_cluster(options, SilentProgress(), bank.store.path),
    ):
        pass
    assert sorted(path.name for path in bank.path.rglob("*")) == before


def test_a_worker_without_the_folder_is_named(started: DaskProcesses, bank: AdapterBank) -> None:
    nothing = workers.array_mark(str(bank.path / "nowhere"))
    assert nothing == "nothing (No such file or directory)"
    facts = {"tcp://b:1": workers.WorkerFacts(2, "", nothing)}
    own = workers.array_mark(str(bank.store.path))
    assert list(workers._elsewhere(own, facts)) == [("tcp://b:1", nothing)]


# -- threads and names ---------------------------------------------------------------------------------


def blas_threads(seconds: float) -> set[int]:
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    time.sleep(seconds)
    return {int(library["num_threads"]) for library in threadpool_info() if library["user_api"] == "blas"}


def test_blas_has_its_share_of_a_host() -> None:
    workers = {
        "a:1": ("a", 8, 1),
        "a:2": ("a", 8, 1),
        "b:1": ("b", 6, 4),
        "c:1": ("c", 2, 4),
        "d:1": ("d", 16, 1),
    }
    assert threads_by_host(workers) == {"a": 4, "b": 1, "c": 1, "d": 16}


def test_a_lone_worker_of_one_thread_has_all_cores(options: ClusterOptions) -> None:
    with open_cluster(options, SilentProgress()) as cluster:
        assert cluster.blas == {"127.0.0.1": CPU_COUNT}
        tasks = {f"{index}": (0.0,) for index in range(3)}
        found = dict(run_tasks(cluster, "blas", blas_threads, tasks, SilentProgress()))
        assert found == {name: {CPU_COUNT} for name in tasks}
        # A host that came later.
        later = replace(cluster, blas={})
        assert dict(run_tasks(later, "blas", blas_threads, tasks, SilentProgress())) == found


def group_names(dask_scheduler: object) -> list[str]:
    return list(dask_scheduler.task_prefixes)  # type: ignore[attr-defined]


def test_the_dashboard_shows_named_steps(options: ClusterOptions, bank: AdapterBank) -> None:
    metrics = [get_metric(name) for name in ("jensen-shannon", "mmd")]
    with open_cluster(options, SilentProgress(), bank.store.path) as cluster:
        client: Client = cluster.client
        distance_matrices(bank, metrics, cluster, SilentProgress())
        assert dict(run_tasks(cluster, "gram", sum, {"0": ((1,),)}, SilentProgress())) == {"0": 1}
        names = client.run_on_scheduler(group_names)
    assert {"distances jensen-shannon", "distances mmd-multiscale", "gram"} <= set(names)
