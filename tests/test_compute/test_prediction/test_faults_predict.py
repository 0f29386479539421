"""`kill -9` of a whole `bank predict --all`, and of its workers: nothing is lost, and the result is the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bankdb.bank import AdapterBank
from bankdb.progress import SilentProgress
from bankdb.verify import verify
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.stored_files import copy_bank, digests
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import SyntheticBank, layout_of, zipf_bank

pytestmark = pytest.mark.faults

# Large enough that a random moment falls into each stage: rows on both sides of a chunk's edge, three chunks
# of columns, many token ids.
N, VOCABULARY, TOKENS = 70, 20_000, 60_000
LAYOUT = layout_of(hidden=2**13, rank=2, layers=9)
KILLS = int(os.environ.get("FAULT_KILLS", "10"))
KILLS_A_CHAIN = 5
STAGES = ("start-up", "distances", "export", "folders")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SyntheticBank:
    return zipf_bank(tmp_path_factory.mktemp("template"), LAYOUT, N, VOCABULARY, TOKENS)


# -- one command ---------------------------------------------------------------------------------------


@dataclass
class Command:
    """A run of the command in a session of its own, so that its worker processes can be found."""

    bank: Path
    out: Path
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        program = [sys.executable, "-m", "cli.main", "predict", "--bank", str(self.bank), "--all"]
        options = ["--metric", "js", "--approach", "normalized", "--workers", "2", "--export", str(self.out)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, *options], cwd=ROOT, stderr=log, stdout=log, start_new_session=True
            )

    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Kill the client alone, as a user does; its workers must end by themselves."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def stage(self) -> str:
        """The stage that was begun last."""
        begun = [name for line in self.lines() if (name := _stage_begun(line))]
        return begun[-1] if begun else "start-up"

    def ended(self) -> set[str]:
        return {
            line.split()[0].rstrip(":") for line in self.lines() if " in " in line and line.endswith(" s")
        }


def _stage_begun(line: str) -> str | None:
    """`distances jensen-shannon: 0/3` begins a stage."""
    name = line.split()[0].rstrip(":") if line.strip() else ""
    return name if name in STAGES and ": 0/" in line else None


def processes_of(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, *numbers = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(numbers[2]) == session and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def assert_workers_end(session: int) -> None:
    deadline = time.monotonic() + 20
    while left := processes_of(session):
        assert time.monotonic() < deadline, f"{left} outlived the client that started them"
        time.sleep(0.05)


# -- results -------------------------------------------------------------------------------------------


def results(bank: Path, out: Path) -> dict[str, dict[str, str]]:
    """Every byte of what a run leaves: distances, coefficients, predictions, exported folders."""
    return {
        "distances": digests(bank / "distances.zarr"),
        "predictions": digests(bank / "predictions.zarr"),
        "exported": digests(out),
    }


@dataclass(frozen=True)
class Unbroken:
    """A run that nobody disturbed: its results, and how long each stage took."""

    results: dict[str, dict[str, str]]
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def unbroken(template: SyntheticBank, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    command = Command(copy_bank(template.bank.path, folder / "bank"), folder / "out", folder / "log")
    began = {"start-up": time.monotonic()}
    while command.running():
        began.setdefault(command.stage(), time.monotonic())
        time.sleep(0.005)
    assert command.process.returncode == 0, command.log.read_text()
    moments = [*(began[stage] for stage in STAGES), time.monotonic()]
    seconds = {stage: moments[i + 1] - moments[i] for i, stage in enumerate(STAGES)}
    assert_workers_end(command.process.pid)
    found = results(folder / "bank", folder / "out")
    assert len(found["exported"]) == 4 * N
    return Unbroken(found, seconds)


# -- the client is killed ------------------------------------------------------------------------------


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(
    template: SyntheticBank, unbroken: Unbroken, tmp_path: Path
) -> None:
    rng = random.Random(2507)
    hit: Counter[str] = Counter()
    chain = 0
    while hit.total() < KILLS:
        chain += 1
        folder = tmp_path / f"chain{chain}"
        folder.mkdir()
        bank, out = copy_bank(template.bank.path, folder / "bank"), folder / "out"
        _kill_some(bank, out, unbroken, rng, min(KILLS_A_CHAIN, KILLS - hit.total()), hit)
        last = Command(bank, out, folder / "log")
        assert last.process.wait(120) == 0, last.log.read_text()
        assert results(bank, out) == unbroken.results
        _assert_clean(bank)
        shutil.rmtree(folder)
    print(f"{hit.total()} kills in {chain} runs: {dict(hit)}; an unbroken run took {unbroken.seconds}")
    assert hit.total() >= KILLS
    if KILLS >= 10:
        assert len(set(hit) - {"start-up"}) >= 2, hit


def _kill_some(
    bank: Path, out: Path, unbroken: Unbroken, rng: random.Random, kills: int, hit: Counter[str]
) -> None:
    """Start the same command again and again, and kill it in a random stage that is still to come."""
    passed: set[str] = set()
    log = out.with_name("log")
    for _ in range(kills):
        # The one that was hit least; which of several, and when in it, is random.
        stage = min(
            [name for name in STAGES if name not in passed], key=lambda name: (hit[name], rng.random())
        )
        command = Command(bank, out, log)
        while command.running() and stage != "start-up" and command.stage() != stage:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, unbroken.seconds[stage]))
        if not command.running():
            return
        command.kill()
        hit[command.stage()] += 1
        passed |= command.ended() & set(STAGES)
        assert_workers_end(command.process.pid)
        _assert_clean(bank)
        there = {name: digest for name, digest in digests(out).items() if not name.startswith(".")}
        assert there.items() <= unbroken.results["exported"].items(), "half a folder under its name"
        assert len(there) % 4 == 0


def _assert_clean(path: Path) -> None:
    with AdapterBank.open(path) as bank:
        report = verify(bank)
        assert report.clean, report.damage
        assert report.checked == N


# -- workers are killed --------------------------------------------------------------------------------


@pytest.fixture
def bank(template: SyntheticBank, tmp_path: Path) -> Iterator[AdapterBank]:
    with AdapterBank.open(copy_bank(template.bank.path, tmp_path / "bank")) as opened:
        yield opened


def test_a_worker_killed_in_each_stage_changes_nothing(bank: AdapterBank, unbroken: Unbroken) -> None:
    killed: dict[str, int] = {}
    with open_cluster(ClusterOptions(workers=2), SilentProgress()) as cluster:

        def kill_one(stage: str) -> None:
            if stage in killed:
                return
            busy = [address for address, tasks in cluster.client.processing().items() if tasks]
            # On a slow machine each piece may be done by now: then one that has nothing to do.
            there = list(cluster.client.scheduler_info()["workers"])
            pids = cluster.client.run(os.getpid, workers=(busy or there)[:1])
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
                killed[stage] = pid

        options = PredictionOptions(metric="js", approach="normalized")
        progress = RecordedProgress(kill_one)
        predicted = predict_all_stored(bank, options, cluster=cluster, progress=progress)
    assert set(killed) == {"distances jensen-shannon", "combine"}
    assert len(set(killed.values())) == 2
    assert digests(bank.path / "distances.zarr") == unbroken.results["distances"]
    found = digests(bank.path / "predictions.zarr")
    assert unbroken.results["predictions"].items() <= found.items()
    assert verify(bank).clean
    # What was stored becomes the very folders that others are combined into.
    predicted.save(out := bank.path.with_name("out"))
    assert digests(out) == unbroken.results["exported"]
