"""`selected` on a bank: the choice against a loop over all candidates, what is kept, and what it is kept under."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bankdb.arrays.zarr_arrays import chunk_file
from bankdb.bank import AdapterBank
from bankdb.datasets.read import read_dataset
from bankdb.derived import LISTED
from bankdb.errors import BankError, BankFormatError, DatasetError, ParameterError
from compute.approaches.kinds.selected import Selected
from compute.approaches.options import PredictionOptions
from compute.combination.tensors import combined_tensors
from compute.evaluation.evaluate import EvaluationOptions, evaluate
from compute.generation.machine import Machine
from compute.labels.answer_labels import AnsweringModel, LabelOptions
from compute.labels.examples import training_examples
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import distances
from compute.prediction.predict import predict
from compute.prediction.predict_all import predict_all
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank

pytestmark = pytest.mark.torch
WAY = PredictionOptions(approach="selected", model=str(BASE), examples=6)
ONE = LabelOptions(Machine(threads=1))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root


@pytest.fixture
def tiny(template: Path, tmp_path: Path) -> Iterator[AdapterBank]:
    """A bank of five pairs, whose datasets are `template / "pairs"`."""
    shutil.copytree(template / "bank", tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as opened:
        yield opened


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The dataset of each loss that is computed, and not found."""
    found: list[str] = []
    loss = AnsweringModel.loss

    def counted(self: Any, tensors: Any, scaling: float, examples: Any) -> float:
        found.append(examples.name)
        return loss(self, tensors, scaling, examples)

    monkeypatch.setattr(AnsweringModel, "loss", counted)
    return found


def candidates_of(bank: AdapterBank, row: int, leave_out: str) -> dict[str, np.ndarray]:
    """The candidates of one target, from what the other approaches say."""
    records = bank.adapters()
    ways = {"uniform": PredictionOptions(approach="uniform", leave_out=leave_out)}
    for approach in ("normalized", "nearest"):
        for metric in Selected.metrics:
            ways[f"{metric} {approach}"] = PredictionOptions(
                metric=metric, approach=approach, leave_out=leave_out
            )
    made = coefficients(bank, list(ways.values()))
    found = {name: one.values[row] for name, one in zip(ways, made, strict=True)}
    near = distances(bank, "js").values[row]
    others = [
        index
        for index, record in enumerate(records)
        if (record.group != records[row].group if leave_out == "group" else index != row)
    ]
    others.sort(key=lambda index: near[index])
    for place, index in enumerate(others[1:3], 2):
        found[f"jensen-shannon nearest {place}"] = np.eye(len(records))[index]
    return found


def losses_one_by_one(
    bank: AdapterBank, model: Any, name: str, number: int, found: dict[str, Any]
) -> dict[str, float]:
    """Nats per answer token of each candidate: every example on its own, unpadded, by all logits."""
    import torch

    from compute.generation.adapted_model import AdaptedModel

    records = bank.adapters()
    (record,) = [one for one in records if one.name == name]
    (examples,) = training_examples([record], number, 0)
    tokenizer = bank.tokenizer
    adapted = AdaptedModel(model, bank.layout)
    end = tokenizer.end_of_sequence
    assert end is not None
    losses = {}
    for key, weights in found.items():
        adapted.apply(*combined_tensors(bank, records, weights.astype(np.float32), "factors", None))
        total, tokens = 0.0, 0
        for text, answer in zip(examples.inputs, examples.outputs, strict=True):
            prompt, whole = tokenizer.encode([text])[0], tokenizer.encode([text + answer])[0]
            assert whole[: len(prompt)] == prompt
            ids = torch.tensor([[*whole, end]])
            with torch.inference_mode():
                logs = model(ids).logits[0].double().log_softmax(-1)
            for place in range(len(prompt), ids.shape[1]):
                total -= float(logs[place - 1, ids[0, place]])
                tokens += 1
        losses[key] = total / tokens
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("leave_out", ["adapter", "group"])
def test_the_choice_is_that_of_a_loop_over_all_candidates(tiny: AdapterBank, leave_out: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    names = NAMES[1:4:2]
    made = coefficients(
        tiny, dataclasses.replace(WAY, leave_out=leave_out), labels=dataclasses.replace(ONE, targets=names)
    )
    assert made.fitted is not None
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    for row, record in enumerate(tiny.adapters()):
        if record.name not in names:
            continue
        found = candidates_of(tiny, row, leave_out)
        expected = losses_one_by_one(tiny, copy.deepcopy(model), record.name, 6, found)
        chosen = made.fitted[row]
        assert chosen["losses"].keys() == expected.keys()
        for name, loss in expected.items():
            assert chosen["losses"][name] == pytest.approx(loss, rel=1e-4, abs=1e-5)
        assert expected[chosen["chosen"]] == pytest.approx(min(expected.values()), rel=1e-4, abs=1e-5)
        np.testing.assert_array_equal(made.values[row], found[chosen["chosen"]])
        assert (chosen["examples"], chosen["seed"], chosen["dtype"]) == (6, 0, "float32")


def test_a_new_dataset_is_read_itself(tiny: AdapterBank, template: Path, tmp_path: Path) -> None:
    """One of the bank's own, which is left out, is predicted as by leave-one-out: idf is of the whole bank."""
    data = template / "pairs" / "datasets" / NAMES[0]
    made = predict(tiny, data, WAY, machine=ONE.machine)
    whole = coefficients(tiny, WAY, labels=dataclasses.replace(ONE, targets=(NAMES[0],)))
    assert whole.fitted is not None
    row = [record.name for record in tiny.adapters()].index(NAMES[0])
    assert made.fitted == whole.fitted[row]
    np.testing.assert_allclose(made.coefficients, whole.values[row], rtol=1e-9)
    folder = made.save(tmp_path / "out")
    record = json.loads((folder / "provenance.json").read_text())
    assert record["fitted"]["chosen"] in record["fitted"]["losses"]
    assert record["fitted"]["examples_sha256"] == made.fitted["examples_sha256"]
    assert str(BASE) not in json.dumps(record)


def test_what_is_kept_is_not_computed_again(tiny: AdapterBank, losses: list[str]) -> None:
    first = predict_all(tiny, WAY, labels=ONE)
    known = len(losses)
    assert set(losses) == set(NAMES)
    again = predict_all(tiny, WAY, labels=ONE)
    assert len(losses) == known
    assert again.run.id == first.run.id
    assert again.coefficients.fitted == first.coefficients.fitted
    # Groups left out: what is the same combination is not computed twice.
    grouped = coefficients(tiny, dataclasses.replace(WAY, leave_out="group"), labels=ONE)
    assert grouped.fitted is not None
    assert tiny.verify().clean


def test_kept_losses_need_no_torch(tiny: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    before = coefficients(tiny, WAY, labels=ONE)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(coefficients(tiny, WAY, labels=ONE).values, before.values)
    with pytest.raises(ParameterError, match="expected the extra torch"):
        coefficients(tiny, dataclasses.replace(WAY, examples=5), labels=ONE)


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["seed", "examples", "model", "dtype"])
def test_what_changes_the_choice_is_part_of_what_it_is_kept_under(
    tiny: AdapterBank, losses: list[str], tmp_path: Path, changed: str
) -> None:
    name = NAMES[2]
    labels = dataclasses.replace(ONE, targets=(name,))
    before = coefficients(tiny, WAY, labels=labels)
    known = len(losses)
    way = WAY
    if changed == "model":
        import torch
        from safetensors.torch import load_file, save_file

        other = Path(shutil.copytree(BASE, tmp_path / "other"))
        tensors = load_file(other / "model.safetensors")
        key = next(iter(sorted(tensors)))
        tensors[key] = tensors[key] + torch.full_like(tensors[key], 0.01)
        save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
        way = dataclasses.replace(WAY, model=str(other))
    elif changed == "dtype":
        labels = dataclasses.replace(labels, machine=Machine(dtype="bfloat16"))
    else:
        way = dataclasses.replace(WAY, **{changed: 5})
    after = coefficients(tiny, way, labels=labels)
    assert len(losses) == known * 2
    assert after.labels != before.labels
    row = [record.name for record in tiny.adapters()].index(name)
    assert before.fitted is not None
    assert after.fitted is not None
    assert before.fitted[row]["losses"] != after.fitted[row]["losses"]


def test_a_run_that_broke_goes_on(
    tiny: AdapterBank, losses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = AnsweringModel.loss

    def breaks(self: Any, tensors: Any, scaling: float, examples: Any) -> float:
        if len(losses) == 7:
            raise KeyboardInterrupt
        return counted(self, tensors, scaling, examples)

    monkeypatch.setattr(AnsweringModel, "loss", breaks)
    with pytest.raises(KeyboardInterrupt):
        coefficients(tiny, WAY, labels=ONE)
    monkeypatch.setattr(AnsweringModel, "loss", counted)
    made = coefficients(tiny, WAY, labels=ONE)
    known = len(losses)
    shutil.rmtree(tiny.path / "losses.zarr")
    again = coefficients(tiny, WAY, labels=ONE)
    assert len(losses) == 2 * known
    np.testing.assert_array_equal(again.values, made.values)
    assert again.fitted == made.fitted


def test_a_damaged_loss_is_an_error_and_made_again_after_repair(tiny: AdapterBank) -> None:
    labels = dataclasses.replace(ONE, targets=(NAMES[1],))
    before = coefficients(tiny, WAY, labels=labels)
    (kept,) = [item for item in (tiny.path / "losses.zarr").iterdir() if item.is_dir()]
    listed = json.loads((kept / "zarr.json").read_text())["attributes"][LISTED]
    file = chunk_file(kept, len(listed) - 1)
    data = bytearray(file.read_bytes())
    data[-6] ^= 1
    file.write_bytes(data)
    with pytest.raises(BankFormatError, match=r"losses\.zarr"):
        coefficients(tiny, WAY, labels=labels)
    report = tiny.verify()
    assert not report.clean
    tiny.verify(repair=True)
    assert tiny.verify().clean
    assert coefficients(tiny, WAY, labels=labels).fitted == before.fitted


def test_an_evaluation_reads_labels_of_its_targets_alone(
    tiny: AdapterBank, losses: list[str], template: Path
) -> None:
    options = EvaluationOptions(
        targets=NAMES[:1], model=str(BASE), max_examples=2, resamples=50, machine=ONE.machine
    )
    way = PredictionOptions(approach="selected", examples=4)
    found = evaluate(tiny, way, options, leave_out="both")
    names = [system.name for system in found.systems]
    assert {"selected (examples 4)", "selected (examples 4, group left out)"} <= set(names)
    assert set(losses) == {NAMES[0]}
    known = len(losses)
    assert evaluate(tiny, way, options, leave_out="both").identity == found.identity
    assert len(losses) == known


def test_space_delta_is_evaluated_in_delta_space(tiny: AdapterBank) -> None:
    labels = dataclasses.replace(ONE, targets=(NAMES[0],))
    factors = coefficients(tiny, WAY, labels=labels)
    delta = coefficients(tiny, dataclasses.replace(WAY, space="delta", rank="full"), labels=labels)
    assert factors.fitted is not None
    assert delta.fitted is not None
    row = [record.name for record in tiny.adapters()].index(NAMES[0])
    one, other = factors.fitted[row]["losses"], delta.fitted[row]["losses"]
    # A single source is the same either way; a mean of factors is not.
    assert one["jensen-shannon nearest"] == pytest.approx(other["jensen-shannon nearest"], rel=1e-4)
    assert one["uniform"] != pytest.approx(other["uniform"], rel=1e-4)


def test_targets_whose_examples_are_gone_are_named(tiny: AdapterBank, tmp_path: Path) -> None:
    with AdapterBank.open(tiny.path) as bank:
        moved = copy_pairs(tmp_path / "pairs", NAMES[:3])
    own = make_bank(tmp_path / "own", moved)
    (tmp_path / "pairs" / "datasets" / NAMES[0] / "train.jsonl").unlink()
    with pytest.raises(DatasetError, match=f"of 1 of 3 targets cannot be read: {NAMES[0]}"):
        predict_all(own, WAY)
    made = coefficients(own, WAY, labels=dataclasses.replace(ONE, targets=NAMES[1:3]))
    assert np.isfinite(made.values).any(axis=1).sum() == 2
    own.close()
    del bank


def test_a_model_that_is_not_there_is_an_error(tiny: AdapterBank, template: Path) -> None:
    data = read_dataset([template / "pairs" / "datasets" / NAMES[0] / "train.jsonl"])
    with pytest.raises(BankError, match=r"config\.json"):
        predict(tiny, data, dataclasses.replace(WAY, model=str(template)))
