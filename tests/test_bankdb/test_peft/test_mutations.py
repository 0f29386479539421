"""Adapters that were changed at random are stored right or refused by name, in 10 s and 1 GiB; nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bankdb.bank import AdapterBank
from tests.support.banks.malformed_adapters import write_good_adapter
from tests.support.banks.mutated_adapters import write_mutated
from tests.support.banks.small_bank import ingest_folder, write_dataset

ROOT = Path(__file__).resolve().parents[3]
# ADAPTER_MUTATIONS=2000 tries more of them, from another place on.
NUMBER = int(os.environ.get("ADAPTER_MUTATIONS", "120"))
FIRST = int(os.environ.get("ADAPTER_MUTATIONS_FROM", "0"))


@pytest.mark.faults
@pytest.mark.timeout(600 + 2 * NUMBER)
def test_mutated_adapters_are_stored_right_or_refused_by_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults.mutation_driver", tmp_path, str(FIRST), str(NUMBER)],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = {seed: (what, seconds) for seed, what, seconds in map(json.loads, done.stdout.splitlines())}
    assert outcomes.keys() == set(range(FIRST, FIRST + NUMBER))
    assert {
        seed: found
        for seed, found in outcomes.items()
        if found[0] not in {"stored", "refused"} or found[1] > 10
    } == {}
    # Both kinds are there, or the mutations say nothing.
    assert {what for what, _ in outcomes.values()} == {"stored", "refused"}


def test_one_ingest_goes_through_all_of_them(tmp_path: Path, empty_bank: AdapterBank) -> None:
    folder = tmp_path / "pairs"
    for seed in range(40):
        write_dataset(folder / "datasets" / f"m{seed:02d}", seed, examples=2)
        write_mutated(folder / "adapters" / f"m{seed:02d}", seed)
    for name in ("a-good", "z-good"):
        write_dataset(folder / "datasets" / name, 0, examples=2)
        write_good_adapter(folder / "adapters" / name)
    report = ingest_folder(empty_bank, folder)
    assert {"a-good", "z-good"} <= set(report.added)
    assert len(report.added) + len(report.refused) == 42
    assert len(report.refused) > 20
    assert all(item.name in item.reason for item in report.refused)
