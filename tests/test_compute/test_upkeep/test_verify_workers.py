"""`bank verify` on workers: what the client finds, they find; what they cannot reach is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster

import compute
from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError, PlanError
from bankdb.verify import verify
from cli.main import cli
from compute.cluster.options import ClusterOptions
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.clusters.dask_processes import DaskProcesses


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as connected,
    ):
        yield connected


def spoil(bank: AdapterBank, place: int, how: str) -> None:
    """Damage the stored row of one adapter: a byte, its end, or all of it."""
    file = bank.store.file(bank.adapters()[place].row)
    assert isinstance(file, Path)
    if how == "gone":
        file.unlink()
        return
    content = bytearray(file.read_bytes())
    if how == "cut":
        del content[-7:]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_workers_find_a_whole_bank_clean(bank: AdapterBank, client: Client) -> None:
    progress = RecordedProgress()
    report = compute.verify(bank, cluster=client, progress=progress)
    assert (report.checked, report.damage, report.leftovers) == (6, [], [])
    assert progress.stages["read rows"] == 1


def test_workers_find_the_same_damage_in_the_same_words(
    bank: AdapterBank, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, how in ((0, "byte"), (2, "cut"), (5, "gone")):
        spoil(bank, place, how)
    here = verify(bank)
    monkeypatch.setattr("bankdb.verify._ROWS_READ", 2)
    there = compute.verify(bank, cluster=client)
    assert len(here.damage) == 3
    assert (there.checked, there.damage, there.leftovers) == (here.checked, here.damage, here.leftovers)


def test_what_workers_found_the_client_repairs(bank: AdapterBank, client: Client) -> None:
    before = bank.store.read(bank.adapters()[1].row).tobytes()
    spoil(bank, 1, "byte")
    report = compute.verify(bank, repair=True, cluster=client)
    assert report.clean
    assert len(report.repaired) == 1
    assert bank.store.read(bank.adapters()[1].row).tobytes() == before


def test_an_empty_bank_needs_no_worker(empty_bank: AdapterBank, client: Client) -> None:
    assert compute.verify(empty_bank, cluster=client).clean


def test_without_workers_asked_for_none_starts(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.cluster.client._started", lambda *_: pytest.fail("a cluster was started"))
    assert compute.verify(bank, cluster=ClusterOptions()).checked == 6


def test_a_row_beyond_a_task_s_memory_is_refused(bank: AdapterBank) -> None:
    with pytest.raises(PlanError, match=r"a task needs .*, its share of the memory is .*; raise --memory"):
        compute.verify(bank, cluster=ClusterOptions(workers=2, memory=2))


def test_workers_that_do_not_find_the_arrays_are_named(
    bank: AdapterBank, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host that does not mount the folder: there is nothing at that path."""
    marks = iter([f"array {number}" for number in range(100)])
    monkeypatch.setattr("compute.cluster.workers.array_mark", lambda _: next(marks))
    with pytest.raises(ComputeError, match=r"worker .* finds another array at .*adapters\.zarr.*same path"):
        compute.verify(bank, cluster=client)


def test_the_command_on_a_scheduler(tmp_path: Path, bank_template: Path) -> None:
    path = shutil.copytree(bank_template, tmp_path / "bank")
    (tmp_path / "dask").mkdir()
    with DaskProcesses(tmp_path / "dask") as processes:
        processes.start_scheduler()
        processes.start_worker("one")
        where = ["--bank", str(path), "--scheduler-file", str(processes.file), "--wait-workers", "1"]
        done = CliRunner().invoke(cli, ["verify", *where, "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["checked"] == 6
        with AdapterBank.open(path) as bank:
            spoil(bank, 3, "byte")
            name = bank.adapters()[3].name
        done = CliRunner().invoke(cli, ["verify", *where])
        assert done.exit_code == 1
        assert f"damage: {name}" in done.stderr
    gone = CliRunner().invoke(cli, ["verify", "--bank", str(path), "--scheduler", "tcp://127.0.0.1:9"])
    assert gone.exit_code == 1
    assert "tcp://127.0.0.1:9" in gone.stderr
