"""`bank ingest --hub` and hub references in a manifest, against a hub on localhost and the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.banks.malformed_adapters import CONFIG, WEIGHTS
from tests.support.banks.small_bank import create_bank
from tests.support.servers.hub_server import HubServer

ADAPTER, DATASET = "bank-of-loras/tiny-r4-task000", "bank-of-loras/task000_words"


@pytest.fixture
def hub(pairs_folder: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        adapter = pairs_folder / "adapters" / "task000"
        files = {name: (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)}
        card = f"---\nlicense: mit\ndatasets:\n- {DATASET}\n---\n# Task 000\n"
        server.publish("model", ADAPTER, {**files, "README.md": card})
        data = (pairs_folder / "datasets" / "task000" / "train.jsonl").read_bytes()
        server.publish("dataset", DATASET, {"data/train-00000-of-00001.jsonl": data, "data/test.jsonl": b""})
        yield server


def bank(hub: HubServer, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Its own process: the client reads its environment when it is imported.
    environment = {**os.environ, **hub.environment(tmp_path / "cache"), "BANK_PATH": str(tmp_path / "bank")}
    program = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(program, env=environment, capture_output=True, text=True, check=False)


def test_a_pair_from_the_hub_is_pinned_recorded_and_skipped(
    hub: HubServer, tmp_path: Path, tokenizer_folder: Path
) -> None:
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    first = bank(hub, tmp_path, "ingest", "--hub", ADAPTER, "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["added"] == ["tiny-r4-task000"]
    shown = json.loads(bank(hub, tmp_path, "show", "tiny-r4-task000", "--json").stdout)
    assert shown["source"] == f"hub:{ADAPTER}"
    assert shown["dataset_source"] == f"hub:{DATASET}"
    assert len(shown["revision"]) == len(shown["dataset_revision"]) == 40
    assert shown["licence"] == "mit"
    downloads = len(hub.downloads())
    again = bank(hub, tmp_path, "ingest", "--hub", f"{ADAPTER}={DATASET}", "--json")
    assert json.loads(again.stdout)["skipped"] == ["tiny-r4-task000"]
    assert len(hub.downloads()) == downloads


def test_a_bad_repository_does_not_stop_the_others(
    hub: HubServer, tmp_path: Path, tokenizer_folder: Path
) -> None:
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    hub.publish("model", "somebody/pickled", {CONFIG: b"{}", "adapter_model.bin": b"PK"})
    result = bank(
        hub, tmp_path, "ingest", "--hub", "somebody/pickled=somebody/d", "nobody/none", ADAPTER, "--json"
    )
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert report["added"] == ["tiny-r4-task000"]
    reasons = {item["name"]: item["reason"] for item in report["refused"]}
    assert "safetensors" in reasons["pickled"]
    assert "nobody/none" in reasons["none"]
    assert not any("adapter_model.bin" in path for path in hub.downloads())


def test_a_manifest_may_name_the_hub(
    hub: HubServer, tmp_path: Path, tokenizer_folder: Path, pairs_folder: Path
) -> None:
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    manifest = tmp_path / "manifest.jsonl"
    local = pairs_folder / "datasets" / "task000"
    rows = [{"name": "both", "adapter": f"hub:{ADAPTER}@main", "dataset": f"hub:{DATASET}"},
            {"name": "half", "adapter": f"hub:{ADAPTER}", "dataset": str(local), "group": "g"}]  # fmt: skip
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = bank(hub, tmp_path, "ingest", str(manifest), "--json")
    assert json.loads(result.stdout)["added"] == ["both", "half"], result.stderr
    shown = json.loads(bank(hub, tmp_path, "show", "half", "--json").stdout)
    assert (shown["group"], shown["dataset_revision"]) == ("g", None)
    assert bank(hub, tmp_path, "verify").returncode == 0
