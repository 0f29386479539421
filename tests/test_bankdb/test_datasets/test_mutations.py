"""Damaged datasets, manifests and tokenizers: taken for what they are, or refused by name, in little time and memory.

LORA_BANK_MUTATIONS=2000 tries so many of each kind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.banks.small_bank import write_tokenizer
from tests.support.faults.mutated_inputs import READERS
from tests.test_bankdb.test_datasets.small_pieces import write_pieces

ROOT = Path(__file__).resolve().parents[3]
COUNT = int(os.environ.get("LORA_BANK_MUTATIONS", "60"))


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", sorted(READERS))
def test_damaged_inputs_are_taken_or_refused(tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base"
    if kind == "tokenizer":
        write_tokenizer(base)
    elif kind == "tokenizer-pieces":
        write_pieces(base)
    (tmp_path / "mutated").mkdir()
    arguments = (kind, str(COUNT), "0", str(tmp_path / "mutated"), str(base))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faults.mutated_inputs", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["others"] == {}
    assert report["found"]["taken"] + report["found"]["refused"] == COUNT
    assert min(report["found"]["taken"], report["found"]["refused"]) > 0
