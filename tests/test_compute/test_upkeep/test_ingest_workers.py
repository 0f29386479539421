"""`bank ingest` on workers: the same bank as the client makes; what they do not find ends it, and costs no pair."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from distributed import Client, LocalCluster

import compute
from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError
from bankdb.ingesting import counted
from bankdb.ingesting.counted import NotReachedError, count_elsewhere, dataset_to_count
from cli.main import cli
from compute.cluster.options import ClusterOptions
from tests.support.banks.small_bank import create_bank


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as connected,
    ):
        yield connected


@pytest.fixture
def pairs(tmp_path: Path, pairs_folder: Path) -> Path:
    return Path(shutil.copytree(pairs_folder, tmp_path / "pairs"))


def content(bank: AdapterBank) -> dict[str, Any]:
    """All that tokenizing decides, and the rows themselves."""
    return {
        record.name: (
            record.row,
            record.row_sha256,
            record.content_sha256,
            record.examples,
            record.tokens,
            [values.tolist() for values in bank.catalog.token_counts([record.row])[0]],
        )
        for record in bank.adapters()
    }


def test_workers_make_the_bank_that_the_client_makes(
    bank: AdapterBank, tmp_path: Path, tokenizer_folder: Path, pairs: Path, client: Client
) -> None:
    with create_bank(tmp_path / "made", tokenizer_folder) as made:
        report = compute.ingest(made, pairs, cluster=client)
        assert (len(report.added), report.refused) == (6, [])
        assert content(made) == content(bank)
        again = compute.ingest(made, pairs, cluster=client)
        assert (again.added, len(again.skipped)) == ([], 6)


def test_a_bad_dataset_is_refused_in_the_same_words(
    tmp_path: Path, tokenizer_folder: Path, pairs: Path, client: Client
) -> None:
    first = sorted((pairs / "datasets").iterdir())[0]
    file = next(path for path in first.iterdir() if path.is_file())
    file.write_text('{"neither": 1}\n')
    with create_bank(tmp_path / "here", tokenizer_folder) as here:
        own = here.ingest(pairs)
    with create_bank(tmp_path / "there", tokenizer_folder) as there:
        other = compute.ingest(there, pairs, cluster=client)
    assert len(own.refused) == 1
    assert (other.added, other.refused) == (own.added, own.refused)


def test_what_a_worker_does_not_find_ends_it_and_costs_nothing(
    empty_bank: AdapterBank, pairs: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the fourth dataset is on a disk of the client alone; run again where it is reached, it goes on."""
    names = sorted(path.name for path in (pairs / "datasets").iterdir())

    def reached(dataset: Any, memory: int) -> Any:
        if f"/{names[3]}/" in dataset.files[0].path:
            raise NotReachedError(f"expected the client's {dataset.files[0].path}, found nothing there")
        return count_elsewhere(dataset, memory)

    with monkeypatch.context() as patch:
        patch.setattr("compute.upkeep.ingest.count_elsewhere", reached)
        with pytest.raises(ComputeError, match=rf"worker inproc://.*: expected the client's .*/{names[3]}/"):
            compute.ingest(empty_bank, pairs, cluster=client)
    assert [record.name for record in empty_bank.adapters()] == names[:3]
    assert empty_bank.verify().clean
    report = compute.ingest(empty_bank, pairs, cluster=client)
    assert (len(report.added), len(report.skipped)) == (3, 3)


def test_files_that_differ_are_not_read(bank: AdapterBank, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"input": "a", "output": "b"}\n')
    known = (bank.path / "tokenizer", bank.record.tokenizer_fingerprint)
    asked = dataset_to_count([file], bank.reading(), *known)
    found = count_elsewhere(asked, 2**28)
    assert found.examples == 1
    assert found.histogram.tokens == bank.tokenizer.count(["ab"], "here").tokens
    os.utime(file, ns=(1, 1))
    with pytest.raises(NotReachedError, match="found other content"):
        count_elsewhere(asked, 2**28)
    file.unlink()
    with pytest.raises(NotReachedError, match="found nothing there; keep datasets in a folder"):
        count_elsewhere(asked, 2**28)


def test_a_tokenizer_that_differs_is_not_used(bank: AdapterBank, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"input": "a", "output": "b"}\n')
    counted._tokenizer.cache_clear()
    gone = dataset_to_count([file], bank.reading(), tmp_path / "gone", bank.record.tokenizer_fingerprint)
    with pytest.raises(NotReachedError, match="found no such folder"):
        count_elsewhere(gone, 2**28)
    other = dataset_to_count([file], bank.reading(), bank.path / "tokenizer", "0" * 64)
    with pytest.raises(NotReachedError, match="found another"):
        count_elsewhere(other, 2**28)


def test_without_workers_asked_for_none_starts(
    empty_bank: AdapterBank, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute.cluster.client._started", lambda *_: pytest.fail("a cluster was started"))
    assert len(compute.ingest(empty_bank, pairs, cluster=ClusterOptions()).added) == 6


def test_a_scheduler_that_is_not_there_is_an_error_and_nothing_is_stored(
    empty_bank: AdapterBank, pairs: Path
) -> None:
    words = ["ingest", "--bank", str(empty_bank.path), str(pairs), "--scheduler", "tcp://127.0.0.1:9"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 1
    assert "tcp://127.0.0.1:9" in done.stderr
    assert len(empty_bank) == 0
