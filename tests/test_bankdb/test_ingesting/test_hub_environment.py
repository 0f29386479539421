"""The client's environment: offline, tokens, endpoints; gated and private repositories. A line each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bankdb.bank import AdapterBank
from bankdb.records import PairReference
from cli.main import cli
from tests.support.banks.bank_content import content
from tests.support.banks.small_bank import create_bank
from tests.support.servers.hub_listing_server import ListingHubServer
from tests.support.servers.public_bank import ADAPTER, DATASET, OWNER, hub_here, publish_bank

FIRST, SECOND = ADAPTER.format(1), ADAPTER.format(2)
ONE = PairReference(FIRST, f"hub:{OWNER}/{FIRST}", f"hub:{OWNER}/{DATASET.format(1, 1)}")
TWO = PairReference(SECOND, f"hub:{OWNER}/{SECOND}", f"hub:{OWNER}/{DATASET.format(2, 2)}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ListingHubServer]:
    with hub_here(tmp_path, monkeypatch) as server:
        publish_bank(server, tmp_path / "files", 2, kinds=2)
        yield server


def only_reason(bank: AdapterBank, *pairs: PairReference) -> str:
    (one,) = bank.ingest(list(pairs)).refused
    assert "\n" not in one.reason
    return one.reason


def test_offline_what_is_in_the_cache_is_ingested_without_a_request(
    hub: ListingHubServer,
    empty_bank: AdapterBank,
    tmp_path: Path,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where it was named by no commit, and with its licence."""
    from huggingface_hub import constants

    empty_bank.ingest(ONE)
    before = hub.requests.total()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with create_bank(tmp_path / "offline", tokenizer_folder) as offline:
        report = offline.ingest([ONE, TWO])
        assert report.added == [FIRST]
        (other,) = report.refused
        assert other.name == SECOND
        assert "HF_HUB_OFFLINE is set" in other.reason
        assert content(offline) == content(empty_bank)
        assert [one.licence for one in offline.adapters()] == ["mit"]
    assert hub.requests.total() == before


def test_a_damaged_cache_is_no_source_offline(
    hub: ListingHubServer,
    empty_bank: AdapterBank,
    tmp_path: Path,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    empty_bank.ingest(ONE)
    (weights,) = (tmp_path / "home" / "hub").glob("models--*/snapshots/*/*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.resolve().write_bytes(data)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with create_bank(tmp_path / "offline", tokenizer_folder) as offline:
        assert "is not whole in the cache" in only_reason(offline, ONE)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with create_bank(tmp_path / "online", tokenizer_folder) as online:
        assert online.ingest(ONE).added == [FIRST]
        assert content(online) == content(empty_bank)


def test_a_private_repository_takes_a_token(
    hub: ListingHubServer, empty_bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = hub.repositories["model", f"{OWNER}/{FIRST}"]
    files.token = "hf_mine"
    assert "not found on http" in only_reason(empty_bank, ONE)
    assert "set HF_TOKEN" in only_reason(empty_bank, ONE)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert empty_bank.ingest(ONE).added == [FIRST]
    assert {line.partition(" ")[0] for line in hub.authorised} == {f"127.0.0.1:{hub.port}"}


def test_a_gated_repository_names_the_page(hub: ListingHubServer, empty_bank: AdapterBank) -> None:
    hub.repositories["model", f"{OWNER}/{FIRST}"].gated = True
    reason = only_reason(empty_bank, ONE)
    assert f"is gated; accept its terms at {hub.endpoint}/{OWNER}/{FIRST} and set HF_TOKEN" in reason


def test_an_endpoint_that_is_none(
    hub: ListingHubServer, empty_bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hub.local")
    assert "expected an address such as https://huggingface.co" in only_reason(empty_bank, ONE)


def test_the_command_frees_what_it_downloaded(
    hub: ListingHubServer, empty_bank: AdapterBank, tmp_path: Path
) -> None:
    argument = f"{OWNER}/{FIRST}={OWNER}/{DATASET.format(1, 1)}"
    arguments = ["ingest", "--bank", str(empty_bank.path), "--hub", argument]
    done = CliRunner().invoke(cli, [*arguments, "--no-cache", "--downloads", "2"])
    assert done.exit_code == 0, done.output
    assert "1 added" in done.output
    assert [path for path in (tmp_path / "home" / "hub").glob("*--*/**/*") if path.is_file()] == []
    wrong = CliRunner().invoke(cli, [*arguments, "--downloads", "0"])
    assert wrong.exit_code == 2
    assert "0 is not in the range 1<=x<=64" in wrong.output
