"""A bank made by version 0.1.0 opens, verifies, and what it stored is used: `tests/data/make_bank_0_1.py`."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bankdb.bank import AdapterBank
from bankdb.verify import verify
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.combination.runs import options_key
from compute.merge_methods.method import METHODS
from compute.prediction.coefficients import coefficients
from compute.prediction.networks.models import network_key
from compute.prediction.predict_all import predict_all
from tests.support.banks.recorded_progress import RecordedProgress

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text())
# What no command may do that finds everything stored; the Gram matrix and networks are made anew.
WORK = ("distances", "combine", "load the base model", "generate", "ingest")
REUSED = [label for label in EXPECTED["predictions"] if not label.startswith("neural")]
TRAINED = [label for label in EXPECTED["predictions"] if label.startswith("neural")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old")
    with tarfile.open(DATA / "bank-0.1.tar.xz") as packed:
        packed.extractall(path, filter="data")
    return path


@pytest.fixture
def bank(place: Path) -> Iterator[AdapterBank]:
    with AdapterBank.open(place / "bank") as opened:
        yield opened


class Answer:
    """What a command printed."""

    def __init__(self, place: Path, words: str) -> None:
        for short, whole in {
            "{sources}": place / "sources",
            "{exports}": place / "exports",
            "{base}": ROOT / "examples/tiny_bank/base",
        }.items():
            words = words.replace(short, str(whole))
        result = CliRunner().invoke(cli, [*words.split(), "--json"], env={"BANK_PATH": str(place / "bank")})
        assert result.exit_code == 0, (words, result.output)
        self.values: Any = json.loads(result.stdout)
        self.lines = result.stderr.splitlines()

    def did(self, *work: str) -> list[str]:
        return [line for line in self.lines if line.startswith(work)]


def exported(place: Path, label: str) -> dict[str, str]:
    folder = place / "exports" / label
    files = folder.glob("*/adapter_model.safetensors")
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def runs_of(bank: AdapterBank) -> list[tuple[int, str]]:
    return [(run.id, run.kind) for run in bank.runs.all() if run.kind != "gram"]


def test_it_verifies(bank: AdapterBank) -> None:
    report = verify(bank)
    assert report.clean, report.damage
    assert report.checked == len(EXPECTED["adapters"])
    told = [line for line in report.leftovers if "stored by an older version" in line]
    assert sorted(line.split(": ")[0].split(".zarr/")[1].split("/")[0] for line in told) == sorted(
        {name.split("/")[0] for kind in ("gram", "neural") for name in EXPECTED["files"][f"{kind}.zarr"]}
        - {"zarr.json"}
    )


def test_it_lists(place: Path) -> None:
    assert Answer(place, "list").values == EXPECTED["adapters"]


def test_distances_are_used(place: Path) -> None:
    found = Answer(place, EXPECTED["distances"]["command"])
    assert found.did(*WORK, "gram", "train") == []
    assert found.values["matrices"] == EXPECTED["distances"]["matrices"]


@pytest.mark.parametrize("label", REUSED)
def test_predictions_are_used(place: Path, bank: AdapterBank, label: str) -> None:
    way, before = EXPECTED["predictions"][label], runs_of(bank)
    weights, command = way["commands"]
    # The last bit of an exponential is the processor's: NumPy has its own for those with AVX-512.
    found = Answer(place, weights).values["matrices"][0]["values"]
    np.testing.assert_allclose(found, way["coefficients"], rtol=1e-14)
    found = Answer(place, command)
    assert found.did(*WORK, "train") == []
    (made,) = found.values["predictions"]
    assert (made["run"], str(Path(made["array"]).relative_to(place / "bank"))) == (way["run"], way["array"])
    assert made["effective_sources"] == pytest.approx(way["effective_sources"], rel=1e-12)
    assert made["relative_error"] == pytest.approx(way["relative_error"], rel=1e-6)
    assert exported(place, label) == way["exported"]
    assert runs_of(bank) == before


@pytest.mark.parametrize("label", TRAINED)
def test_networks_are_trained_again_and_say_so(place: Path, label: str) -> None:
    way = EXPECTED["predictions"][label]
    found = Answer(place, way["commands"][0])
    # 40 steps of Adam magnify the last digit of another processor's products.
    np.testing.assert_allclose(found.values["matrices"][0]["values"], way["coefficients"], atol=1e-2)
    assert len([line for line in found.lines if "neural.zarr" in line and "older version" in line]) == 1
    assert len(found.did("train")) > 0
    assert Answer(place, way["commands"][0]).did(*WORK, "train", "gram") == []


def test_the_gram_matrix_is_made_anew_once(tmp_path: Path) -> None:
    with tarfile.open(DATA / "bank-0.1.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    told = []
    for _ in range(2):
        progress = RecordedProgress()
        with AdapterBank.open(tmp_path / "bank") as bank:
            predict_all(bank, PredictionOptions(metric="js"), weight_errors=True, progress=progress)
        stages = set(progress.stages) - {"checksums"}  # of its rows, which that version did not keep
        told.append(([note for note in progress.notes if "older version" in note], stages))
    assert [(len(notes), stages) for notes, stages in told] == [(1, {"gram"}), (0, set())]
    assert "gram.zarr/gram" in told[0][0][0]


def test_options_that_no_command_has(bank: AdapterBank) -> None:
    for way in EXPECTED["from_python"].values():
        found = coefficients(bank, PredictionOptions(**way["options"]))
        np.testing.assert_allclose(found.values, way["coefficients"], atol=1e-2)


@pytest.mark.torch
@pytest.mark.parametrize("label", EXPECTED["evaluations"])
def test_answers_are_used(place: Path, label: str) -> None:
    way = EXPECTED["evaluations"][label]
    found = Answer(place, way["command"])
    assert found.did("load the base model", "generate") == []
    document = json.loads((place / f"bank/evaluations/{found.values['identity']}.json").read_text())
    for outcome in document["outcomes"]:
        expected = way["scores"][outcome["system"]][outcome["target"]]
        assert outcome["rouge_by_example"] == expected["rouge_by_example"]
        assert outcome["adapter_sha256"] == expected["adapter_sha256"]


# -- keys ----------------------------------------------------------------------------------------------


def fields_of(options: Any) -> set[str]:
    return set(type(options).__dataclass_fields__)


def test_keys_hold_every_option() -> None:
    options = PredictionOptions()
    # A merge method's are stated by the methods that read them.
    stated = set[str]().union(*(options_key(PredictionOptions(merge=method)) for method in METHODS))
    # Of labels, what is read is in the key by its bytes: see test_labels.
    assert stated - {"version"} == fields_of(options) - {"examples", "model"}
    assert set(network_key(options.neural)) == fields_of(options.neural)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("metric", "wasserstein"),
        ("approach", "uniform"),
        ("temperature", 2.0),
        ("top_k", 3),
        ("compatible", "published"),
        ("kernel", "gaussian"),
        ("sigma", 3.0),
        ("protocol", "published"),
        ("seed", 1),
        ("knots", 64),
        ("width", 8),
        ("epochs", 3),
        ("leave_out", "group"),
        ("space", "delta"),
    ],
)
def test_every_option_makes_another_key(change: str, value: object) -> None:
    changed: Mapping[str, Any] = {change: value}
    before, after = options_key(PredictionOptions()), options_key(PredictionOptions(**changed))
    assert after == before | changed


def test_keys_stay_what_they_are() -> None:
    """Written down once: what is stored is found under it."""
    assert options_key(PredictionOptions(metric="js", approach="normalized", top_k=3)) == {
        "version": 2,
        "metric": "jensen-shannon",
        "approach": "normalized",
        "temperature": 1.0,
        "top_k": 3,
        "compatible": "correct",
        "kernel": "multiscale",
        "sigma": None,
        "protocol": "cross-fitted",
        "seed": 0,
        "knots": 128,
        "width": 4000,
        "epochs": 40,
        "leave_out": "adapter",
        "space": "factors",
        "rank": None,
    }
