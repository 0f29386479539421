"""A few pairs of the example bank, whose base model is small enough to generate in tests."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from bankdb.bank import AdapterBank

TINY = Path(__file__).resolve().parents[3] / "examples" / "tiny_bank"
BASE = TINY / "base"
NAMES = ("forms_gerund", "forms_plural", "records_city", "records_surname", "reviews_mood")


def copy_pairs(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Copy some pairs with a manifest, so that test splits can be taken away; return the manifest."""
    for name in names:
        for kind in ("adapters", "datasets"):
            shutil.copytree(TINY / "bank" / kind / name, folder / kind / name)
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "adapter", "dataset", "group", "licence"])
        for name in names:
            rows.writerow([name, f"adapters/{name}", f"datasets/{name}", name.split("_")[0], ""])
    return manifest


def make_bank(path: Path, manifest: Path, arrays: str | None = None) -> AdapterBank:
    """A bank of the pairs of a manifest."""
    bank = AdapterBank.create(path, base_model="tiny-bank/base", tokenizer=BASE, arrays=arrays)
    assert not bank.ingest(manifest).refused
    return bank
