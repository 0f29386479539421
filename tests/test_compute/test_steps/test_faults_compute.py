"""`kill -9` in distances, gram and combine: of a client with its threads, and of clients and workers of a cluster.

`FAULT_KILLS` sets the number of kills, for each of both. Clients are forked from a server that has the imports
done (`compute_driver`), so that the moments fall into the work and not into the start of Python.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bankdb.bank import AdapterBank
from bankdb.verify import verify
from tests.support.banks.stored_files import copy_bank, digests
from tests.support.banks.synthetic_bank import SyntheticBank, layout_of, zipf_bank
from tests.support.clusters.dask_processes import DaskProcesses
from tests.support.faults.compute_driver import ComputeServer

pytestmark = pytest.mark.faults

# Three tiles, two slices, two panels.
N, VOCABULARY, TOKENS = 66, 20_000, 40_000
LAYOUT = layout_of(hidden=2**12, rank=2, layers=9)
KILLS = int(os.environ.get("FAULT_KILLS", "5"))
KILLS_A_CHAIN = 6
STAGES = ("distances", "gram", "combine")
KINDS = ("distances", "gram", "predictions")
KILLED = -signal.SIGKILL
Seconds = dict[str, float]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SyntheticBank:
    return zipf_bank(tmp_path_factory.mktemp("template"), LAYOUT, N, VOCABULARY, TOKENS)


@pytest.fixture(scope="module")
def server() -> Iterator[ComputeServer]:
    with ComputeServer() as started:
        yield started


def results(bank: Path) -> dict[str, dict[str, str]]:
    return {kind: digests(bank / f"{kind}.zarr") for kind in KINDS}


def stage_of(log: Path) -> str:
    """The stage that was begun last."""
    lines = [line.split()[0].rstrip(":") for line in log.read_text().splitlines() if ": 0/" in line]
    return next((name for name in reversed(lines) if name in STAGES), "start")


def passed(log: Path) -> set[str]:
    """The stages of which every piece is done."""
    lines = log.read_text().splitlines()
    return {line.split()[0].rstrip(":") for line in lines if " in " in line and line.endswith(" s")}


def timed(server: ComputeServer, bank: Path, log: Path, scheduler_file: Path | None) -> Seconds:
    """Run undisturbed; return how long each stage took."""
    pid = server.start(bank, log, scheduler_file)
    began: dict[str, float] = {}
    while not server.ended(pid):
        began.setdefault(stage_of(log), time.monotonic())
        time.sleep(0.002)
    assert server.wait(pid) == 0, log.read_text()
    moments = [*(began.get(stage, time.monotonic()) for stage in STAGES), time.monotonic()]
    return {stage: max(0.02, moments[i + 1] - moments[i]) for i, stage in enumerate(STAGES)}


@pytest.fixture(scope="module")
def unbroken(
    server: ComputeServer, template: SyntheticBank, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict[str, str]], Seconds]:
    folder = tmp_path_factory.mktemp("unbroken")
    bank = copy_bank(template.bank.path, folder / "bank")
    seconds = timed(server, bank, folder / "log", None)
    return results(bank), seconds


class Kills:
    """Random kills of a run that is begun again and again, until enough of them hit."""

    def __init__(self, server: ComputeServer, seconds: Seconds, scheduler_file: Path | None = None) -> None:
        self.server, self.seconds, self.scheduler_file = server, seconds, scheduler_file
        self.rng = random.Random(2507)
        self.hit: Counter[str] = Counter()
        self.chains = 0

    def chain(self, bank: Path, log: Path, kill: Callable[[int], str | None], most: int) -> None:
        """Kill up to `most` times on one bank, then let it finish."""
        done: set[str] = set()
        self.chains += 1
        for _ in range(most):
            left = [name for name in STAGES if name not in done]
            if not left:
                break
            # Where the fewest were killed so far; when in it, is random.
            stage = min(left, key=lambda name: (self._hits(name), self.rng.random()))
            pid = self.server.start(bank, log, self.scheduler_file)
            while not self.server.ended(pid) and stage_of(log) != stage:
                time.sleep(0.001)
            time.sleep(self.rng.uniform(0, self.seconds[stage]))
            if not self.server.ended(pid) and (whom := kill(pid)) is not None:
                self.hit[f"{whom} in {stage_of(log)}"] += 1
            status = self.server.wait(pid)
            assert status in (0, KILLED), log.read_text()
            done |= passed(log) & set(STAGES)
            assert_whole(bank)
            if status == 0:
                return
        assert self.server.wait(self.server.start(bank, log, self.scheduler_file)) == 0, log.read_text()

    def _hits(self, stage: str) -> int:
        return sum(count for where, count in self.hit.items() if where.endswith(stage))


def assert_whole(path: Path) -> None:
    with AdapterBank.open(path) as bank:
        report = verify(bank)
        assert report.clean, report.damage
        assert report.checked == N


def kill_client(pid: int) -> str:
    os.kill(pid, signal.SIGKILL)
    return "client"


def test_a_client_with_its_threads_is_killed(
    server: ComputeServer,
    template: SyntheticBank,
    unbroken: tuple[dict[str, dict[str, str]], Seconds],
    tmp_path: Path,
) -> None:
    expected, seconds = unbroken
    kills = Kills(server, seconds)
    while kills.hit.total() < KILLS:
        bank = copy_bank(template.bank.path, tmp_path / "bank")
        kills.chain(bank, tmp_path / "log", kill_client, min(KILLS_A_CHAIN, KILLS - kills.hit.total()))
        assert results(bank) == expected
        shutil.rmtree(bank)
    print(f"{kills.hit.total()} kills in {kills.chains} runs: {dict(kills.hit)}")
    assert kills.hit.total() >= KILLS


def test_clients_and_workers_of_a_cluster_are_killed(
    server: ComputeServer,
    template: SyntheticBank,
    unbroken: tuple[dict[str, dict[str, str]], Seconds],
    tmp_path: Path,
) -> None:
    expected, _ = unbroken
    (tmp_path / "cluster").mkdir()
    with DaskProcesses(tmp_path / "cluster") as cluster:
        cluster.start_scheduler()
        for name in ("w0", "w1"):
            cluster.start_worker(name)
        warm = copy_bank(template.bank.path, tmp_path / "warm")
        seconds = timed(server, warm, tmp_path / "log", cluster.file)
        assert results(warm) == expected
        kills = Kills(server, seconds, cluster.file)

        def kill_worker(pid: int) -> str | None:
            name = kills.rng.choice(
                [
                    name
                    for name, one in cluster.processes.items()
                    if name != "scheduler" and one.poll() is None
                ]
            )
            cluster.kill(name)
            cluster.start_worker(f"w{len(cluster.processes)}")
            return "worker"

        while kills.hit.total() < KILLS:
            bank = copy_bank(template.bank.path, tmp_path / "bank")
            most = min(KILLS_A_CHAIN, KILLS - kills.hit.total())
            kills.chain(bank, tmp_path / "log", kills.rng.choice([kill_client, kill_worker]), most)
            assert results(bank) == expected
            shutil.rmtree(bank)
    print(f"{kills.hit.total()} kills in {kills.chains} runs: {dict(kills.hit)}")
    assert kills.hit.total() >= KILLS
