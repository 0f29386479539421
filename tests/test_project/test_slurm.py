"""deploy/slurm on a real SLURM cluster of one node: jobs end, are cancelled, run out of time; the bytes stay.

`FAULT_KILLS` sets the number of random kills, for each of both ways.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.banks.stored_files import copy_bank, digests
from tests.support.banks.synthetic_bank import layout_of, zipf_bank
from tests.support.clusters.dask_processes import wait_until
from tests.support.clusters.slurm_cluster import SlurmCluster, running_cluster

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "deploy" / "slurm"
KILLS = int(os.environ.get("FAULT_KILLS", "3"))
SECONDS = 900
OPTIONS = ("--metric", "js", "--approach", "normalized")
# Seconds of work on two workers: a random moment falls into it as often as into the start.
N, LAYOUT, VOCABULARY, TOKENS = 70, layout_of(hidden=2**13, rank=2, layers=12), 20_000, 60_000


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zipf_bank(tmp_path_factory.mktemp("template"), LAYOUT, N, VOCABULARY, TOKENS).bank.path


@dataclass(frozen=True)
class Place:
    """A bank of a test's own, and where its predictions go."""

    folder: Path
    slurm: SlurmCluster

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "PYTHONPATH": str(ROOT), "BANK_PATH": str(self.folder / "bank")}
        return os.environ | own | self.slurm.environment

    @property
    def options(self) -> tuple[str, ...]:
        return (*OPTIONS, "--export", str(self.folder / "out"))

    def submit(self, *sbatch: str) -> int:
        """Submit the batch script for two workers."""
        words = ("--chdir", self.folder, "--ntasks=2", "--mem-per-cpu=2G", *sbatch)
        return self.slurm.submit(
            *words, SCRIPTS / "predict.sbatch", *self.options, environment=self.environment
        )

    def jobqueue(self) -> subprocess.Popen[bytes]:
        """Start the script that asks for two jobs, in a session of its own."""
        words = [
            sys.executable,
            SCRIPTS / "jobqueue.py",
            "--jobs",
            "2",
            "--memory",
            "2GiB",
            "--",
            *self.options,
        ]
        with (self.folder / "jobqueue.log").open("ab") as log:
            return subprocess.Popen(
                words, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )

    def results(self) -> dict[str, dict[str, str]]:
        """Every byte that a run leaves."""
        arrays = {
            name: digests(self.folder / "bank" / f"{name}.zarr") for name in ("distances", "predictions")
        }
        return arrays | {"out": digests(self.folder / "out")}

    def logs(self) -> str:
        return "\n".join(file.read_text()[-4000:] for file in self.folder.glob("*.log"))

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not self.slurm.jobs(), "no job is left")
        assert not list(self.folder.glob("scheduler-*.json"))
        wait_until(lambda: not processes_with(str(self.folder)), "no process is left", 150)


def processes_with(word: str) -> list[str]:
    """The living processes that were started with a word, or with an environment that has it, but this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if word.encode() in words and int(process.name) != os.getpid():
                found.append(process.name)
    return found


@pytest.fixture
def place(slurm: SlurmCluster, template: Path, tmp_path: Path) -> Iterator[Place]:
    copy_bank(template, tmp_path / "bank")
    made = Place(tmp_path, slurm)
    yield made
    for job in slurm.jobs():
        slurm.control("scancel", job)
    made.assert_nothing_is_left()


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves, and how long it took."""

    results: dict[str, dict[str, str]]
    seconds: float


@pytest.fixture(scope="module")
def local(slurm: SlurmCluster, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A run on this machine's own workers, without SLURM."""
    folder = tmp_path_factory.mktemp("local")
    copy_bank(template, folder / "bank")
    place = Place(folder, slurm)
    words = [sys.executable, "-m", "cli.main", "predict", "--all", "--workers", "2", *place.options]
    began = time.monotonic()
    subprocess.run(words, env=place.environment, cwd=ROOT, check=True, capture_output=True)
    return Undisturbed(place.results(), time.monotonic() - began)


def moments(local: Undisturbed) -> Iterator[float]:
    """Random seconds after a start, from before the scheduler is there to after the end of a quick run."""
    drawn = random.Random(int(os.environ.get("FAULT_SEED", time.time_ns())))
    while True:
        yield drawn.uniform(0, 1.5 * local.seconds)


def test_a_batch_job_predicts_what_a_local_run_does(place: Place, local: Undisturbed) -> None:
    job = place.submit()
    assert place.slurm.wait(job, SECONDS) == "COMPLETED", place.logs()
    assert place.results() == local.results
    assert "Ignoring provided memory limit" not in place.logs()
    assert len(local.results["out"]) == 4 * N


def test_jobs_of_their_own_predict_what_a_local_run_does(place: Place, local: Undisturbed) -> None:
    assert place.jobqueue().wait(SECONDS) == 0, place.logs()
    assert place.results() == local.results
    assert not place.slurm.jobs()


def test_a_batch_job_that_is_cancelled_or_put_back(place: Place, local: Undisturbed) -> None:
    """At random moments; the last one submitted goes on to the end."""
    ways = (("scancel",), ("scancel", "--signal=KILL", "--full"), ("scontrol", "requeue"))
    for number, (moment, _) in enumerate(zip(moments(local), range(KILLS), strict=False)):
        job = place.submit()
        place.slurm.wait(job, SECONDS, until="PENDING".__ne__)
        time.sleep(moment)
        program, *words = ways[number % len(ways)]
        if place.slurm.state(job) != "RUNNING":
            continue
        place.slurm.control(program, *words, job)
        if program == "scontrol":
            wait_until(lambda job=job: place.slurm.restarts(job) == 1, "put back")  # type: ignore[misc]
            assert place.slurm.wait(job, SECONDS) == "COMPLETED", place.logs()
        else:
            assert place.slurm.wait(job, SECONDS) in ("CANCELLED", "FAILED"), place.logs()
    assert place.slurm.wait(place.submit(), SECONDS) == "COMPLETED", place.logs()
    assert place.results() == local.results


def test_jobs_that_are_cancelled_are_submitted_again(place: Place, local: Undisturbed) -> None:
    """At random moments, one of the two: the command goes on with the other, and ends."""
    script = place.jobqueue()
    for moment, _ in zip(moments(local), range(KILLS), strict=False):
        time.sleep(moment)
        running = [job for job in place.slurm.jobs() if place.slurm.state(job) == "RUNNING"]
        if script.poll() is None and running:
            with suppress(AssertionError):  # it may have ended by itself
                place.slurm.control("scancel", random.choice(running))
    assert script.wait(SECONDS) == 0, place.logs()
    assert place.results() == local.results


def test_a_command_on_jobs_that_is_interrupted_goes_on(place: Place, local: Undisturbed) -> None:
    """Ctrl-C, and SIGTERM to the script alone: its jobs end with it."""
    for end, moment in zip((signal.SIGINT, signal.SIGTERM), moments(local), strict=False):
        script = place.jobqueue()
        wait_until(lambda: bool(place.slurm.jobs()), "jobs are submitted")
        time.sleep(moment)
        os.killpg(script.pid, end) if end == signal.SIGINT else script.send_signal(end)
        assert script.wait(SECONDS) in (0, 130, 143), place.logs()
        wait_until(lambda: not place.slurm.jobs(), "its jobs end")
    assert place.jobqueue().wait(SECONDS) == 0, place.logs()
    assert place.results() == local.results


def test_an_interrupt_after_the_commands_end_still_cancels_the_jobs(place: Place, local: Undisturbed) -> None:
    script = place.jobqueue()
    wait_until(lambda: "wrote 70 folders" in place.logs(), "the command ends", SECONDS)
    while script.poll() is None:  # at every moment from then on
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGINT)
        time.sleep(0.05)
    assert script.returncode in (0, 130), place.logs()
    assert "Traceback" not in place.logs()
    wait_until(lambda: not place.slurm.jobs(), "its jobs end")
    assert place.results() == local.results


def test_a_job_whose_time_ends_is_followed_by_the_next(place: Place, local: Undisturbed) -> None:
    """Two of one name with `--dependency=singleton`; the first never gets on, and ends with its minute."""
    first = place.submit("--time=1", "--dependency=singleton")
    second = place.submit("--dependency=singleton")
    client = f"{place.folder}/scheduler-{first}.json"
    wait_until(lambda: "--wait-workers" in place_command(client), "the client runs")
    os.kill(int(place_command(client).partition(" ")[0]), signal.SIGSTOP)
    assert place.slurm.state(second) == "PENDING"
    assert place.slurm.wait(first, SECONDS) == "TIMEOUT", place.logs()
    assert place.slurm.wait(second, SECONDS) == "COMPLETED", place.logs()
    assert place.results() == local.results


def place_command(scheduler_file: str) -> str:
    """The number and the words of the client's process that was given a scheduler file, or nothing."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if "predict --all" in words and scheduler_file in words:
                return f"{process.name} {words}"
    return ""


def test_a_scheduler_that_does_not_start_is_said_at_once(place: Place) -> None:
    programs = place.folder / "bin"
    programs.mkdir()
    shutil.copy("/bin/false", programs / "dask")
    environment = place.environment
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    words = ("--chdir", place.folder, "--ntasks=1", "--mem-per-cpu=1G", SCRIPTS / "predict.sbatch")
    job = place.slurm.submit(*words, environment=environment)
    assert place.slurm.wait(job, 60) == "FAILED"
    assert "the scheduler did not start" in place.logs()
