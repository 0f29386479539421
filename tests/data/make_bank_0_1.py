"""Make the bank that version 0.1.0 left behind: a fixture for tests that later versions open and reuse it.

It has to be run with version 0.1.0 of this project, in the root of its source tree, with the extra torch:

    git worktree add ../wt-0.1.0 <commit of 0.1.0>
    cd ../wt-0.1.0
    PYTHONPATH=$PWD python make_bank_0_1.py --out FOLDER

The pairs are cut out of `examples/tiny_bank`: a few examples of eight of its datasets, in four groups, and the first of
the eight ranks of two modules of their adapters, at three scalings. Everything that the bank stores comes from the
`bank` commands below and from one call of the library, for what no command can set. Writes into FOLDER:

bank-0.1.tar.xz
    `bank/`, and `sources/`, the pairs and test splits.
expected.json
    What was asked for, in its order, and what version 0.1.0 answered; floats are exact.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from safetensors.numpy import load_file, save_file

import compute
from bankdb.bank import AdapterBank
from compute.options import PredictionOptions
from compute.predict import coefficients, predict_all

TINY = Path("examples/tiny_bank")
SOURCES = Path("/tmp/bank-0.1-sources")
EXPORTS = Path("/tmp/bank-0.1-exports")
SHORT = {"{sources}": str(SOURCES), "{exports}": str(EXPORTS), "{base}": str(TINY / "base")}

ALPHAS = {
    "forms_past": 16.0,
    "forms_plural": 8.0,
    "lists_first": 16.0,
    "lists_last": 16.0,
    "records_city": 12.0,
    "records_surname": 16.0,
    "reviews_mood": 8.0,
    "reviews_topic": 16.0,
}
RANK, LAYERS, MODULES = 1, (2, 3), ("v_proj",)
EXAMPLES = {"train": 12, "test": 3}

DISTANCES = "--metric js --metric mmd --mmd-kernel gaussian --metric tf-idf --metric wasserstein"
PREDICTIONS = {
    "js-normalized": "--metric js --approach normalized",
    "mmd-gaussian-attentional": "--metric mmd --mmd-kernel gaussian --approach attentional --temperature 0.5 --top-k 3",
    "mmd-sigma-normalized": "--metric mmd --mmd-kernel gaussian --sigma 30 --approach normalized --top-k 5",
    "wasserstein-nearest": "--metric wasserstein --approach nearest",
    "tf-idf-temperature": "--metric tf-idf --approach normalized --temperature 2",
    "kl-published": "--metric kl --approach attentional --compatible published",
    "js-group": "--metric js --approach normalized --leave-out group",
    "uniform-group": "--approach uniform --leave-out group",
    "neural": "--metric js --approach neural --width 8",
    "neural-group": "--metric js --approach neural --width 8 --leave-out group",
    "neural-published": "--metric wasserstein --approach neural --protocol published --compatible published "
    "--seed 3 --width 6",
}
FROM_PYTHON = {
    "neural-epochs": {"metric": "js", "approach": "neural", "width": 4, "epochs": 6, "knots": 16, "seed": 1}
}
NEW = "examples/tiny_bank/new/records_given --metric js --approach neural --width 8"
EVALUATIONS = {
    "factors": "--metric js --approach normalized",
    "both": "--metric mmd --mmd-kernel gaussian --approach attentional --temperature 0.5 --top-k 3 --leave-out both "
    "--space delta --rank 3 --max-examples 2 --targets forms_past --targets records_city --targets reviews_mood",
}


def write_sources() -> None:
    """Cut the pairs out of the example bank, with a manifest."""
    shutil.rmtree(SOURCES, ignore_errors=True)
    rows = [["name", "adapter", "dataset", "group", "licence"]]
    for name, alpha in ALPHAS.items():
        dataset, adapter = SOURCES / "datasets" / name, SOURCES / "adapters" / name
        dataset.mkdir(parents=True)
        adapter.mkdir(parents=True)
        for split, count in EXAMPLES.items():
            lines = (TINY / "bank/datasets" / name / f"{split}.jsonl").read_text().splitlines(keepends=True)
            (dataset / f"{split}.jsonl").write_text("".join(lines[:count]))
        whole = load_file(TINY / "bank/adapters" / name / "adapter_model.safetensors")
        cut = {
            tensor: np.ascontiguousarray(values[:RANK] if "lora_A" in tensor else values[:, :RANK])
            for tensor, values in whole.items()
            if any(f"layers.{layer}." in tensor for layer in LAYERS)
            and any(f".{m}." in tensor for m in MODULES)
        }
        save_file(cut, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "base_model_name_or_path": "tiny-bank/base",
            "layers_to_transform": list(LAYERS),
            "lora_alpha": alpha,
            "peft_type": "LORA",
            "r": RANK,
            "target_modules": list(MODULES),
            "task_type": "CAUSAL_LM",
        }
        (adapter / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        rows.append([name, f"adapters/{name}", f"datasets/{name}", name.split("_")[0], "Apache-2.0"])
    with (SOURCES / "manifest.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def run(bank: Path, words: str) -> Any:
    """Run a `bank` command, telling it, and return the JSON that it printed."""
    print(f"$ bank {words}", flush=True)
    for short, whole in SHORT.items():
        words = words.replace(short, whole)
    program = [sys.executable, "-m", "cli.main", *words.split(), "--json"]
    done = subprocess.run(
        program, env={**os.environ, "BANK_PATH": str(bank)}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def sha256(content: bytes) -> str:
    """As text."""
    return hashlib.sha256(content).hexdigest()


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    """The sha256 of each file below a folder, by its path there."""
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    return {str(file.relative_to(folder)): sha256(file.read_bytes()) for file in files}


def predicted(label: str, made: dict[str, Any], values: list[list[float]]) -> dict[str, Any]:
    """What is compared of the predictions of one way."""
    return {
        "coefficients": values,
        **made,
        "exported": hashes(EXPORTS / label, "*/adapter_model.safetensors"),
    }


def from_command(bank: Path, label: str, options: str) -> dict[str, Any]:
    """Let the command line predict and export all adapters in one way."""
    weights = f"coefficients {options}"
    command = f"predict --all {options} --weight-error --export {{exports}}/{label}"
    (values,) = run(bank, weights)["matrices"]
    (made,) = run(bank, command)["predictions"]
    made["array"] = str(Path(made["array"]).relative_to(bank))
    return {"commands": [weights, command], **predicted(label, made, values["values"])}


def from_python(bank: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Let the library predict all adapters in one way."""
    chosen = PredictionOptions(**options)
    with AdapterBank.open(bank) as opened:
        values = coefficients(opened, chosen)
        made = predict_all(opened, chosen, weight_errors=True)
    assert made.relative_error is not None
    return {
        "options": options,
        "coefficients": values.values.tolist(),
        "effective_sources": float(np.mean(made.coefficients.effective)),
        "relative_error": float(np.nanmean(made.relative_error)),
        "run": made.run.id,
        "array": str(Path(str(made.path), "adapters").relative_to(bank)),
    }


def from_network(bank: Path) -> dict[str, Any]:
    """Predict for a dataset that is not in the bank, by a network that is."""
    command = f"predict {NEW} --out {{exports}}/new/made"
    made = run(bank, command)
    del made["folder"]
    return {"command": command, **made, "exported": hashes(EXPORTS / "new", "*/adapter_model.safetensors")}


def evaluated(bank: Path, options: str) -> dict[str, Any]:
    """Evaluate; the scores of every example are in the bank's file."""
    command = f"evaluate {options} --model {{base}} --data {{sources}}/datasets"
    identity = run(bank, command)["identity"]
    document = json.loads((bank / "evaluations" / f"{identity}.json").read_text())
    keep = ("rouge_by_example", "exact_by_example", "weight_error", "adapter_sha256")
    scores: dict[str, dict[str, Any]] = {}
    for outcome in document["outcomes"]:
        scores.setdefault(outcome["system"], {})[outcome["target"]] = {key: outcome[key] for key in keep}
    return {"command": command, "identity": identity, "scores": scores}


def generations(bank: Path) -> dict[str, Any]:
    """Number and hash of all kept answers."""
    query = "SELECT adapter_sha256, test_sha256, settings_sha256, texts FROM generation ORDER BY 1, 2, 3"
    with contextlib.closing(sqlite3.connect(bank / "bank.db")) as database:
        rows = database.execute(query).fetchall()
    return {"number": len(rows), "sha256": sha256(json.dumps(rows).encode())}


def make(bank: Path) -> dict[str, Any]:
    """Fill the bank, and return what version 0.1.0 answered."""
    commands = ["init --base-model tiny-bank/base --tokenizer {base}", "ingest {sources}/manifest.csv"]
    for command in commands:
        run(bank, command)
    found: dict[str, Any] = {"version": "0.1.0", "commands": commands}
    found["adapters"] = run(bank, "list")
    distances = f"distances {DISTANCES}"
    found["distances"] = {"command": distances, **run(bank, distances)}
    found["predictions"] = {
        label: from_command(bank, label, options) for label, options in PREDICTIONS.items()
    }
    found["from_python"] = {label: from_python(bank, options) for label, options in FROM_PYTHON.items()}
    found["new_dataset"] = from_network(bank)
    found["gram"] = np.asarray(zarr.open_array(bank / "gram.zarr/gram", mode="r")[:, :]).tolist()
    found["evaluations"] = {label: evaluated(bank, options) for label, options in EVALUATIONS.items()}
    found["generations"] = generations(bank)
    arrays = ("adapters", "distances", "gram", "neural", "predictions")
    found["files"] = {f"{kind}.zarr": hashes(bank / f"{kind}.zarr", "**/*") for kind in arrays}
    return found


def pack(bank: Path, archive: Path) -> None:
    """Pack bank and sources, with names and times that say nothing of this machine."""

    def plain(item: tarfile.TarInfo) -> tarfile.TarInfo:
        item.uid = item.gid = item.mtime = 0
        item.uname = item.gname = ""
        item.mode = 0o755 if item.isdir() else 0o644
        return item

    with tarfile.open(archive, "w:xz", preset=9) as packed:
        packed.add(bank, "bank", filter=plain)
        packed.add(SOURCES, "sources", filter=plain)


def shortened(found: dict[str, Any]) -> str:
    """As JSON, a line for each thing stored."""
    text = io.StringIO()
    text.write("{\n")
    for index, (key, value) in enumerate(found.items()):
        text.write(",\n" if index else "")
        if isinstance(value, dict):
            lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
            text.write(f"{json.dumps(key)}: {{\n{lines}\n}}")
        else:
            text.write(f"{json.dumps(key)}: {json.dumps(value)}")
    text.write("\n}\n")
    return text.getvalue()


def main() -> None:
    """Make both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    root = Path(compute.__file__).parents[1]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    if version != "0.1.0" or root != Path.cwd():
        sys.exit(f"expected version 0.1.0 in the current folder, found {version} in {root}")
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(EXPORTS, ignore_errors=True)
    write_sources()
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder, "bank")
        found = make(bank)
        for lock in bank.glob(".*.lock"):
            lock.unlink()
        (out / "expected.json").write_text(shortened(found))
        pack(bank, out / "bank-0.1.tar.xz")


if __name__ == "__main__":
    main()
