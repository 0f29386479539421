"""The neural approach on a bank: trained once, kept, used for new datasets; and several ways in one pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.errors import BankNotFoundError, ParameterError
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.prediction.coefficients import coefficients
from compute.prediction.networks import models
from compute.prediction.predict import predict
from compute.prediction.predict_all import predict_all
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import ingest_folder, write_dataset, write_pairs

NEURAL = PredictionOptions(metric="js", approach="neural", width=16, epochs=8)


def test_rows_sum_to_one_and_leave_self_out(bank: AdapterBank) -> None:
    found = coefficients(bank, NEURAL)
    assert np.allclose(found.values.sum(axis=1), 1, atol=1e-12)
    assert not np.diagonal(found.values).any()


def test_training_is_kept_until_the_bank_changes(bank: AdapterBank, tmp_path: Path) -> None:
    first = coefficients(bank, NEURAL)
    again = RecordedProgress()
    assert np.array_equal(coefficients(bank, NEURAL, progress=again).values, first.values)
    assert not [stage for stage in again.stages if stage.startswith("train")]
    ingest_folder(bank, write_pairs(tmp_path / "more", 1, start=6))
    changed = RecordedProgress()
    assert coefficients(bank, NEURAL, progress=changed).shape == (7, 7)
    assert [stage for stage in changed.stages if stage.startswith("train")]


def test_deleted_array_is_trained_again_to_the_same(bank: AdapterBank) -> None:
    import shutil

    first = coefficients(bank, NEURAL)
    shutil.rmtree(bank.path / "neural.zarr")
    assert np.array_equal(coefficients(bank, NEURAL).values, first.values)


def test_a_new_dataset_uses_the_kept_network(bank: AdapterBank, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "new", 40)
    with pytest.raises(BankNotFoundError, match="bank coefficients --approach neural"):
        predict(bank, data, NEURAL)
    coefficients(bank, NEURAL)
    found = predict(bank, data, NEURAL)
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)
    order = np.argsort(found.distances)
    assert len(set(found.coefficients[order].round(6))) > 1
    with pytest.raises(BankNotFoundError):
        predict(bank, data, PredictionOptions(metric="wd", approach="neural", width=16, epochs=8))


def test_a_network_from_before_the_bank_changed_is_used_and_said(bank: AdapterBank, tmp_path: Path) -> None:
    coefficients(bank, NEURAL)
    bank.remove("task005")
    told = RecordedProgress()
    assert len(predict(bank, write_dataset(tmp_path / "new", 40), NEURAL, progress=told).coefficients) == 5
    assert any("trained on 6 adapters" in note for note in told.notes)


def test_what_an_older_version_trained_is_trained_again_and_said_once(
    bank: AdapterBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(models, "_VERSION", None)
        first = coefficients(bank, NEURAL)
    told = RecordedProgress()
    predict(bank, write_dataset(tmp_path / "new", 40), NEURAL, progress=told)
    assert [
        note for note in told.notes if "older version" in note and "trains it again" in note
    ] == told.notes
    assert len(told.notes) == 1
    notes, stages = [], []
    for _ in range(2):
        told = RecordedProgress()
        assert np.array_equal(coefficients(bank, NEURAL, progress=told).values, first.values)
        notes.append([note for note in told.notes if "older version" in note])
        stages.append([stage for stage in told.stages if stage.startswith("train")])
    assert [len(found) for found in notes] == [1, 0]
    assert [len(found) for found in stages] == [1, 0]
    assert len(list((bank.path / "neural.zarr").glob("*/zarr.json"))) == 1
    quiet = RecordedProgress()
    predict(bank, write_dataset(tmp_path / "other", 40), NEURAL, progress=quiet)
    assert quiet.notes == []


def test_softmin_options_are_not_for_neural() -> None:
    for wrong in ({"temperature": 2.0}, {"top_k": 3}):
        with pytest.raises(ParameterError, match="neural"):
            PredictionOptions(approach="neural", **wrong)


def test_several_ways_in_one_pass_are_each_alone(
    bank: AdapterBank, tmp_path: Path, bank_template: Path
) -> None:
    import shutil

    ways = [
        PredictionOptions(metric=metric, approach=approach, width=16, epochs=8)
        for metric in ("js", "wd")
        for approach in ("attentional", "normalized", "nearest", "neural")
    ]
    together = RecordedProgress()
    made = predict_all(bank, ways, store="float32", progress=together)
    assert together.stages["combine"] == 1
    shutil.copytree(bank_template, tmp_path / "other")
    with AdapterBank.open(tmp_path / "other") as other:
        for options, predicted in zip(ways, made, strict=True):
            alone = predict_all(other, options, store="float32")
            expected = np.asarray(open_array(alone.path / "adapters")[:, :])
            found = np.asarray(open_array(predicted.path / "adapters")[:, :])
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    done = RecordedProgress()
    predict_all(bank, ways[:3], store="float32", progress=done)
    assert "combine" not in done.stages


def test_neural_from_the_command_line(bank: AdapterBank, tmp_path: Path) -> None:
    where = ["--bank", str(bank.path), "--approach", "neural", "--width", "16"]
    for protocol in ("cross-fitted", "published"):
        arguments = ["predict", "--all", *where, "--protocol", protocol, "--json", "--workers", "1"]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["predictions"][0]["approach"] == "neural"
    data = write_dataset(tmp_path / "new", 41)
    result = CliRunner().invoke(cli, ["predict", str(data), *where, "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (record["approach"], record["parameters"]["width"]) == ("neural", 16)
