"""The three commands on the README's first screen, as they stand, on the bank and the base model of the project."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bankdb.bank import AdapterBank
from tests.support.banks.tiny_bank import TINY

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "adapter_model.safetensors"


def first_commands() -> list[list[str]]:
    """The lines of the first block of the README, without what follows a `#`."""
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def ran(words: list[str], folder: Path, *, without: str = "") -> str:
    """What a command prints; it succeeds, also where a package cannot be imported."""
    program = "import sys; sys.argv[0] = 'bank'\n" + (f"sys.modules[{without!r}] = None\n" if without else "")
    program += "from bankdb.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words[1:]],
        cwd=folder,
        env=os.environ | {"BANK_PATH": str(folder / "bank"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_screen_has_the_three_commands() -> None:
    assert [words[:2] for words in first_commands()] == [
        ["bank", name] for name in ("predict", "finetune", "evaluate")
    ]
    assert (ROOT / "README.md").read_text().index("bank evaluate") < 3000


@pytest.mark.torch
def test_the_first_commands_lead_to_a_tested_adapter(tmp_path: Path) -> None:
    """The first needs no torch; each of the others makes of the one before what it says."""
    made = AdapterBank.create(tmp_path / "bank", base_model="tiny-bank/base", tokenizer=TINY / "base")
    with made:
        assert not made.ingest(TINY / "bank" / "manifest.csv").refused
    shutil.copytree(TINY / "base", tmp_path / "base-model")
    shutil.copy(TINY / "new" / "lists_ends" / "train.jsonl", tmp_path / "my-data.jsonl")
    shutil.copy(TINY / "new" / "lists_ends" / "test.jsonl", tmp_path / "my-test.jsonl")
    predict, finetune, evaluate = first_commands()

    ran(predict, tmp_path, without="torch")
    predicted = load_file(tmp_path / "my-adapter" / WEIGHTS)
    told = ran(finetune, tmp_path)
    assert "step 8 is kept" in told
    trained = load_file(tmp_path / "better" / WEIGHTS)
    assert predicted.keys() == trained.keys()
    assert any(np.any(predicted[name] != trained[name]) for name in predicted)

    told = ran(evaluate, tmp_path)
    answered = json.loads(ran([*evaluate, "--json"], tmp_path))
    expected = [json.loads(line)["output"] for line in (tmp_path / "my-test.jsonl").read_text().splitlines()]
    expected = expected[:30]  # as many as are asked by default
    assert answered["references"] == expected
    exact = {}
    for system in answered["systems"]:
        right = [
            answer.strip() in outputs for answer, outputs in zip(system["answers"], expected, strict=True)
        ]
        exact[system["name"]] = sum(right) / len(expected)
    assert exact.keys() == {"base model", "my-adapter", "better"}
    for name, share in exact.items():
        (line,) = (line for line in told.splitlines() if re.match(rf" {name}\s+[0-9]", line))
        assert float(line.removeprefix(f" {name}").split()[1]) == pytest.approx(share, abs=1e-3)
    assert exact["base model"] < min(exact["my-adapter"], exact["better"])
    for name in ("my-adapter", "better"):
        assert f"{name}: better than the base model: " in told
