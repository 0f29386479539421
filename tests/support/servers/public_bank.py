"""A public bank on the tests' hub, as Lots-of-LoRAs is: tiny files, Parquet datasets, cards without datasets."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.banks.malformed_adapters import BASE_MODEL, CONFIG, WEIGHTS, write_good_adapter
from tests.support.banks.small_bank import write_dataset
from tests.support.servers.hub_listing_server import ListingHubServer

OWNER = "Many-LoRAs"
ADAPTER, DATASET = "Tiny-4b-r4-task{:03d}", "task{:03d}_source{}_words"


def card(base_model: str | None = BASE_MODEL, **more: Any) -> str:
    """A model card's front matter, in JSON, which is YAML."""
    stated = {"license": "mit", "library_name": "peft", "base_model": base_model, **more}
    return f"---\n{json.dumps({key: value for key, value in stated.items() if value is not None})}\n---\n# Card\n"


def adapter_files(
    folder: Path, seed: int = 0, text: str | None = None, **config: Any
) -> dict[str, bytes | str]:
    """The files of an adapter's repository."""
    made = write_good_adapter(folder, seed=seed, **config)
    files = {name: (made / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    return {**files, "README.md": card() if text is None else text}


def parquet_files(folder: Path, seed: int = 0) -> dict[str, bytes | str]:
    """The files of a dataset's repository: id, input and output in Parquet, with held-out splits."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = (write_dataset(folder, seed) / "train.jsonl").read_text().splitlines()
    rows = [{**row, "id": str(row["id"])} for row in map(json.loads, lines)]
    whole = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), whole)
    return {
        "README.md": "# Data\n",
        "data/train-00000-of-00001.parquet": whole.getvalue(),
        "data/valid-00000-of-00001.parquet": b"held out",
        "data/test-00000-of-00001.parquet": b"held out",
    }


def publish_bank(
    hub: ListingHubServer,
    folder: Path,
    count: int,
    *,
    owner: str = OWNER,
    unmatched: Collection[int] = (),
    gated: Collection[int] = (),
    kinds: int = 4,
) -> None:
    """Publish adapters 1 to `count`, each with a dataset but those that are unmatched; files of a few kinds in turn."""
    adapters = [adapter_files(folder / f"a{seed}", seed) for seed in range(kinds)]
    datasets = [parquet_files(folder / f"d{seed}", seed) for seed in range(kinds)]
    for number in range(1, count + 1):
        hub.publish(
            "model",
            f"{owner}/{ADAPTER.format(number)}",
            adapters[number % kinds],
            gated=number in gated,
        )
        if number not in unmatched:
            hub.publish("dataset", f"{owner}/{DATASET.format(number, number % 3)}", datasets[number % kinds])


@contextmanager
def hub_here(folder: Path, monkeypatch: pytest.MonkeyPatch, page: int = 500) -> Iterator[ListingHubServer]:
    """A hub that this process uses, with an empty cache of its own."""
    from huggingface_hub import constants

    with ListingHubServer(page) as server:
        for name, value in server.environment(folder / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # The client has read its environment when it was imported; these are looked up at each call.
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "home" / "token"))
        yield server
