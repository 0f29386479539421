"""A public bank ingested: how many requests that takes, what comes beside what, what is freed, and what kills leave."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bankdb.bank import AdapterBank
from bankdb.errors import FileSystemError
from bankdb.records import PairReference
from bankdb.sources.downloads import files
from bankdb.verify import verify
from tests.support.banks.bank_content import assert_nothing_else, content
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import create_bank
from tests.support.faults.fault_driver import FaultServer
from tests.support.servers.hub_listing_server import ListingHubServer
from tests.support.servers.public_bank import ADAPTER, DATASET, OWNER, hub_here, publish_bank

PAIRS = 24
UNMATCHED, GATED = (3, 5, 7), (9,)
GOOD = [number for number in range(1, PAIRS + 1) if number not in (*UNMATCHED, *GATED)]
KILLS = int(os.environ.get("FAULT_KILLS", "3"))
SEED = int(os.environ.get("FAULT_SEED", "0"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ListingHubServer]:
    with hub_here(tmp_path, monkeypatch) as server:
        publish_bank(server, tmp_path / "files", PAIRS, unmatched=UNMATCHED, gated=GATED)
        yield server


def name(number: int) -> str:
    return ADAPTER.format(number)


def cached(tmp_path: Path) -> list[Path]:
    """Files of content in the hub's cache."""
    return [path for path in (tmp_path / "home" / "hub").glob("*--*/**/*") if path.is_file()]


def test_three_requests_a_pair_and_none_again(hub: ListingHubServer, empty_bank: AdapterBank) -> None:
    hub.latency = 0.01
    progress = RecordedProgress()
    report = empty_bank.ingest(OWNER, hub=True, progress=progress)
    assert report.added == [name(number) for number in GOOD]
    assert sorted(one.name for one in report.refused) == [name(n) for n in sorted((*UNMATCHED, *GATED))]
    reasons = {one.name: one.reason for one in report.refused}
    assert "is gated; accept its terms" in reasons[name(9)]
    assert all("no dataset" in reasons[name(number)] for number in UNMATCHED)
    assert all("\n" not in reason for reason in reasons.values())
    for number in GOOD:
        sides = (ADAPTER.format(number), DATASET.format(number, number % 3))
        assert sum(hub.asked_of(f"{OWNER}/{side}") for side in sides) == 3
    assert 1 < hub.most_at_once <= 4 + 1  # a request may begin while the answer before it ends
    assert progress.received_last == (report.downloaded, report.downloaded)
    assert report.downloaded > 0
    assert_nothing_else(empty_bank)
    before = hub.requests.total()
    again = empty_bank.ingest(OWNER, hub=True)
    assert again.skipped == report.added
    assert hub.requests.total() - before <= 5


def test_one_at_a_time_where_asked_and_the_same_bank(
    hub: ListingHubServer, empty_bank: AdapterBank, tmp_path: Path, tokenizer_folder: Path
) -> None:
    hub.latency = 0.002
    empty_bank.ingest(OWNER, hub=True, downloads=1)
    assert hub.most_at_once <= 2
    with create_bank(tmp_path / "side-by-side", tokenizer_folder) as other:
        other.ingest(OWNER, hub=True, downloads=8)
        assert content(other) == content(empty_bank)
        assert [one.row for one in other.adapters()] == [one.row for one in empty_bank.adapters()]


def test_pauses_and_broken_connections_lose_nothing(hub: ListingHubServer, empty_bank: AdapterBank) -> None:
    hub.fail("resolve", status=429, headers={"RateLimit": '"resolvers";r=0;t=1'}, times=3)
    hub.fail("/blobs/", cut=700, times=9)
    progress = RecordedProgress()
    report = empty_bank.ingest(OWNER, hub=True, progress=progress)
    assert report.added == [name(number) for number in GOOD]
    assert any("takes no more requests for 1 s" in note for note in progress.notes)
    assert hub.ranges
    assert verify(empty_bank).clean


def test_an_adapter_of_another_model_is_refused_before_its_weights_come(
    hub: ListingHubServer, empty_bank: AdapterBank
) -> None:
    from tests.support.servers.public_bank import adapter_files, card

    made = adapter_files(
        Path(str(empty_bank.path) + "-other"), 1, card(base_model=None), base_model_name_or_path="other/model"
    )
    hub.publish("model", f"{OWNER}/{name(2)}", made)
    report = empty_bank.ingest(OWNER, hub=True)
    reasons = {one.name: one.reason for one in report.refused}
    assert "'other/model' found" in reasons[name(2)]
    assert not [path for path in hub.downloads() if f"{name(2)}/" in path and "safetensors" in path]
    assert len(report.added) == len(GOOD) - 1


def test_what_most_are_decides_though_the_first_is_another(
    hub: ListingHubServer, empty_bank: AdapterBank
) -> None:
    from tests.support.servers.public_bank import adapter_files

    hub.publish("model", f"{OWNER}/{name(1)}", adapter_files(Path(str(empty_bank.path) + "-8"), 1, r=8))
    report = empty_bank.ingest(OWNER, hub=True)
    assert report.added == [name(number) for number in GOOD if number != 1]
    assert "rank 4 expected, 8 found" in {one.name: one.reason for one in report.refused}[name(1)]


def test_downloads_are_freed_and_what_was_there_stays(
    hub: ListingHubServer, empty_bank: AdapterBank, tmp_path: Path
) -> None:
    first = PairReference("mine", f"hub:{OWNER}/{name(1)}", f"hub:{OWNER}/{DATASET.format(1, 1)}")
    empty_bank.ingest(first)
    before = sorted(cached(tmp_path))
    report = empty_bank.ingest(OWNER, hub=True, keep_downloads=False)
    assert report.added == [name(number) for number in GOOD]
    left = sorted(cached(tmp_path))
    gated = [path for path in left if name(9) in str(path)]
    assert [path for path in left if path not in gated] == before
    assert verify(empty_bank).clean


def test_two_pairs_that_share_a_dataset_are_both_stored_though_it_is_freed(
    hub: ListingHubServer, empty_bank: AdapterBank, tmp_path: Path
) -> None:
    references = [
        PairReference(f"p{number}", f"hub:{OWNER}/{name(number)}", f"hub:{OWNER}/{DATASET.format(1, 1)}")
        for number in (1, 2, 4, 6)
    ]
    report = empty_bank.ingest(references, keep_downloads=False)
    assert report.added == ["p1", "p2", "p4", "p6"]
    assert cached(tmp_path) == []


def test_a_full_disk_is_one_line_and_what_was_stored_stays(
    hub: ListingHubServer, empty_bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk says so as Linux does, in the middle of a file; on a disk that really is full: test_full_disk."""
    copy = files._Download._copy

    def full(self: files._Download, response: object, out: object, content: object) -> None:
        if name(14) in self._url and "safetensors" in self._url:
            with open("/dev/full", "wb", buffering=0) as disk:
                disk.write(b"x")
        copy(self, response, out, content)  # type: ignore[arg-type]

    monkeypatch.setattr(files._Download, "_copy", full)
    with pytest.raises(FileSystemError, match=r"No space left on device while .*; free some space") as error:
        empty_bank.ingest(OWNER, hub=True, downloads=1)
    assert "\n" not in str(error.value)
    stored = re.search(r"(\d+) pairs were stored before, and stay", str(error.value))
    assert stored is not None
    assert int(stored[1]) == len(empty_bank) > 0
    monkeypatch.undo()
    assert verify(empty_bank).clean


@pytest.mark.faults
def test_killed_at_random_moments(
    hub: ListingHubServer, tmp_path: Path, tokenizer_folder: Path, empty_bank: AdapterBank
) -> None:
    """What was stored stays; of what was downloaded, at most that under way is done again."""
    manifest = tmp_path / "manifest.csv"
    lines = [
        f"{name(number)},hub:{OWNER}/{name(number)},hub:{OWNER}/{DATASET.format(number, number % 3)}"
        for number in GOOD
    ]
    manifest.write_text("\n".join(["name,adapter,dataset", *lines]) + "\n")
    assert len(empty_bank.ingest(manifest).added) == len(GOOD)
    expected = content(empty_bank)
    path = tmp_path / "killed"
    create_bank(path, tokenizer_folder).close()
    rng = random.Random(SEED)
    environment = {**hub.environment(tmp_path / "home2"), "HF_HUB_OFFLINE": "0"}
    downloaded_before = sum(path.startswith("/blobs/") for path in hub.downloads())
    hub.latency = 0.005
    killed = stored = 0
    with FaultServer(environment) as server:
        for kill in range(KILLS):
            pid = server.start("ingest", "--bank", path, manifest, log=tmp_path / "log")
            wait_for(path, min(len(GOOD) - 1, stored + rng.randint(0, max(1, (len(GOOD) - stored) // 2))))
            time.sleep(rng.uniform(0, 0.3))
            os.kill(pid, signal.SIGKILL)
            killed += server.wait(pid) == -signal.SIGKILL
            with AdapterBank.open(path) as bank:
                assert verify(bank).clean
                found = content(bank)
                assert found == {one: expected[one] for one in found}
                assert len(found) >= stored, kill
                stored = len(found)
        assert killed > 0
        assert server.wait(server.start("ingest", "--bank", path, manifest, log=tmp_path / "log")) == 0
    with AdapterBank.open(path) as bank:
        assert content(bank) == expected
        assert_nothing_else(bank)
    large = sum(path.startswith("/blobs/") for path in hub.downloads()) - downloaded_before
    # Two large files a pair; of each kill, those of the four pairs that were coming may be asked for again.
    assert large <= 2 * len(GOOD) + killed * 4


def wait_for(path: Path, number: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    with AdapterBank.open(path) as bank:
        while len(bank) < number:
            assert time.monotonic() < end, f"only {len(bank)} of {number} adapters after {seconds} s"
            time.sleep(0.005)
