"""`bank ingest --hub OWNER`, `--hub-collection` and `bank init --like`, in this process, by the real client."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from cli.main import cli
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import create_bank
from tests.support.servers.hub_listing_server import ListingHubServer
from tests.support.servers.public_bank import (
    OWNER,
    adapter_files,
    card,
    hub_here,
    parquet_files,
    publish_bank,
)

NAMES = [f"Tiny-4b-r4-task{number:03d}" for number in range(1, 9)]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ListingHubServer]:
    """Eight adapters: the second is gated, the fifth has no dataset."""
    with hub_here(tmp_path, monkeypatch) as server:
        publish_bank(server, tmp_path / "files", 8, unmatched={5}, gated={2})
        monkeypatch.setenv("BANK_PATH", str(tmp_path / "bank"))
        yield server


@pytest.fixture
def made(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """An empty bank for these."""
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    return tmp_path / "bank"


def bank(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_a_public_bank_in_one_command_and_a_rerun_that_asks_for_the_listing_alone(
    hub: ListingHubServer, made: Path
) -> None:
    first = bank("ingest", "--hub", OWNER, "--yes", "--json", "--group-pattern", "r4-(task00[1-4])")
    assert first.exit_code == 1, first.output
    report = json.loads(first.stdout)
    assert report["added"] == [name for name in NAMES if name not in (NAMES[1], NAMES[4])]
    reasons = {item["name"]: item["reason"] for item in report["refused"]}
    assert set(reasons) == {NAMES[1], NAMES[4]}
    assert "is gated; accept its terms" in reasons[NAMES[1]]
    assert "none of the datasets of Many-LoRAs has its task number 5" in reasons[NAMES[4]]
    with AdapterBank.open(made) as opened:
        one = opened.catalog.adapter(NAMES[0])
    assert (one.source, one.licence, one.group) == (f"hub:{OWNER}/{NAMES[0]}", "mit", "task001")
    assert one.dataset_source == f"hub:{OWNER}/task001_source1_words"
    assert one.revision == hub.repositories["model", f"{OWNER}/{NAMES[0]}"].branches["main"]
    before = hub.asked()
    again = bank("ingest", "--hub", OWNER, "--yes", "--json")
    assert json.loads(again.stdout)["skipped"] == report["added"]
    assert hub.asked() - before == 2


def test_a_dry_run_shows_what_is_found_and_downloads_nothing(hub: ListingHubServer, made: Path) -> None:
    shown = bank("ingest", "--hub", OWNER, "--dry-run", "--exclude", "*008")
    assert shown.exit_code == 0
    lines = [line.strip() for line in shown.stdout.splitlines()]
    assert lines[0] == "Many-LoRAs:"
    assert {"adapters: 8", "left out by name, or beyond the limit: 1", "pairs: 5"} <= set(lines)
    assert "dataset of the same task number: 5" in lines
    assert any(line.startswith("to download: about ") for line in lines)
    assert any(line.startswith(f"cannot be taken: {NAMES[4]}: no dataset") for line in lines)
    values = json.loads(bank("ingest", "--hub", OWNER, "--dry-run", "--json", "--limit", "2").stdout)[0]
    assert [pair["name"] for pair in values["pairs"]] == [NAMES[0], NAMES[2]]
    assert values["bytes"] > 0
    assert values["pairs"][0]["how"] == "number"
    assert hub.downloads() == []
    with AdapterBank.open(made) as opened:
        assert len(opened) == 0


def test_a_script_has_to_say_yes(hub: ListingHubServer, made: Path) -> None:
    refused = bank("ingest", "--hub", OWNER)
    assert refused.exit_code == 2
    assert "standard input is no terminal" in refused.stderr
    assert "--yes" in refused.stderr
    assert bank("ingest", "--hub", OWNER, "--json").exit_code == 2
    assert bank("ingest", "--hub-collection", "o/x-1").exit_code == 2
    assert hub.asked() == 0


def test_wrong_use_is_one_line(hub: ListingHubServer, made: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["ingest"], "no source is given"),
        (["ingest", str(tmp_path), "--yes"], "--yes: would do nothing here"),
        (["ingest", "--hub", f"{OWNER}/{NAMES[0]}", "--limit", "1"], "is one adapter"),
        (["ingest", "--hub", OWNER, "--yes", "--include", ""], "include: expected a pattern"),
    ):
        found = bank(*arguments)
        assert (found.exit_code, message in found.stderr) == (2, True), found.output
    nobody = bank("ingest", "--hub", "nobody", "--yes")
    assert nobody.exit_code == 1
    assert "found no model repository; check the owner's name" in nobody.stderr


def test_a_collection_and_a_library(hub: ListingHubServer, made: Path, tmp_path: Path) -> None:
    hub.collect("o/some-1a2b", [("model", f"{OWNER}/{name}") for name in (NAMES[0], NAMES[2])])
    found = bank("ingest", "--hub-collection", "o/some-1a2b", "--yes", "--json")
    assert json.loads(found.stdout)["added"] == [NAMES[0], NAMES[2]], found.output
    files = {
        f"experts/{name}/{file}": text
        for number, name in enumerate(("boolq", "rte"))
        for file, text in adapter_files(tmp_path / name, number).items()
    }
    hub.publish("model", "o/library", {**files, "README.md": card()})
    data = {
        f"{name}/{file}": text
        for number, name in enumerate(("boolq", "rte"))
        for file, text in parquet_files(tmp_path / f"{name}-data", number).items()
    }
    hub.publish("dataset", "o/flat", data)
    found = bank("ingest", "--hub", "o/library=o/flat", "--yes", "--json")
    assert json.loads(found.stdout)["added"] == ["boolq", "rte"], found.output
    with AdapterBank.open(made) as opened:
        assert opened.catalog.adapter("rte").source == "hub:o/library/experts/rte"
        assert opened.catalog.adapter("rte").dataset_source == "hub:o/flat/rte"
    # A manifest names the same folders.
    manifest = tmp_path / "m.csv"
    manifest.write_text("name,adapter,dataset\nrte2,hub:o/library/experts/rte,hub:o/flat/rte\n")
    found = bank("ingest", str(manifest), "--json")
    assert json.loads(found.stdout)["added"] == ["rte2"], found.output
    assert bank("verify").exit_code == 0


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_it_asks(hub: ListingHubServer, made: Path, tmp_path: Path, answer: str) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "BANK_PATH": str(made)}
    os.write(leader, f"{answer}\n".encode())
    program = [sys.executable, "-m", "cli.main", "ingest", "--hub", OWNER, "--limit", "1"]
    try:
        done = subprocess.run(
            program, env=environment, stdin=follower, capture_output=True, text=True, check=False, timeout=300
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert "Ingest 1 pair?" in done.stderr
    assert done.returncode == (0 if answer == "y" else 1), done.stderr
    with AdapterBank.open(made) as opened:
        assert len(opened) == (1 if answer == "y" else 0)


def test_a_bank_like_a_known_one(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANK_PATH", str(tmp_path / "bank"))
    made = bank("init", "--like", "lots-of-loras", "--tokenizer", str(tokenizer_folder))
    assert made.exit_code == 0, made.output
    assert "bank ingest --hub Lots-of-LoRAs" in made.stdout
    shown = json.loads(bank("show", "--json").stdout)
    assert "mistralai/Mistral-7B-Instruct-v0.2" in json.dumps(shown)
    monkeypatch.setenv("BANK_PATH", str(tmp_path / "other"))
    given = ["--base-model", BASE_MODEL, "--tokenizer", str(tokenizer_folder), "--json"]
    record = json.loads(bank("init", "--like", "lots-of-loras", *given).stdout)
    assert (record["base_model"], record["base_model_aliases"]) == (
        BASE_MODEL,
        ["mistralai/Mistral-7B-Instruct-v0.2"],
    )
    monkeypatch.setenv("BANK_PATH", str(tmp_path / "third"))
    assert bank("init", "--like", "nobody").exit_code == 2
    assert "expected base model and tokenizer" in bank("init", "--base-model", "x").stderr
    assert not (tmp_path / "third").exists()
