"""A prediction is its coefficients: one adapter of a run, made when it is read, and predictions that are stored too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, BankNotFoundError, ConflictError, ParameterError
from bankdb.peft.weights import load_adapter
from bankdb.verify import verify
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.prediction.folders.by_run import export_prediction
from compute.prediction.matrices import distances
from compute.prediction.predict_all import predict_all
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import ingest_folder, write_pairs
from tests.support.banks.stored_files import digests
from tests.support.banks.stored_rows import predict_all_stored

WAYS = [
    PredictionOptions(approach="normalized", temperature=0.7),
    PredictionOptions(metric="mmd", kernel="gaussian", sigma=4.0, top_k=2),
    PredictionOptions(approach="nearest"),
    PredictionOptions(approach="ridge"),
]


def others(folder: Path) -> dict[str, bytes]:
    """All of a folder but the weights."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".safetensors"}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.approach + (way.kernel if way.top_k else ""))
def test_one_adapter_is_that_of_all(bank: AdapterBank, tmp_path: Path, way: PredictionOptions) -> None:
    """All it says of itself, to the byte; its weights up to the order of a sum of five."""
    made = predict_all(bank, way)
    for name in ("task001", "task004"):
        one = export_prediction(bank, made.run.id, name, tmp_path / "one" / name)
        (all_of_it,) = (item for item in made.save(tmp_path / "all") if item.name == name)
        assert others(one) == others(all_of_it)
        ours, theirs = load_adapter(one), load_adapter(all_of_it)
        assert ours.dtype == theirs.dtype
        atol = 2**-7 if ours.dtype == "bfloat16" else 2**-10 if ours.dtype == "float16" else 1e-6
        np.testing.assert_allclose(ours.vector, theirs.vector, rtol=0, atol=atol)
        np.testing.assert_allclose(made.adapter(name), theirs.vector, rtol=0, atol=atol)


def test_coefficients_alone_are_stored_and_nothing_is_combined(bank: AdapterBank) -> None:
    progress = RecordedProgress()
    made = predict_all(bank, WAYS, progress=progress)
    assert "combine" not in progress.stages
    assert [one.stored for one in made] == [None] * len(WAYS)
    files = digests(bank.path / "predictions.zarr")
    assert not [name for name in files if "/adapters/" in name]
    assert sum((bank.path / "predictions.zarr" / name).stat().st_size for name in files) < 20_000
    for one in made:
        found = np.asarray(open_array(one.path / "coefficients")[:, :])
        np.testing.assert_array_equal(found, one.coefficients.values.astype(np.float32))
        assert bank.runs.get(one.run.id).state == "done"
    assert verify(bank).clean
    again = RecordedProgress()
    assert [one.run.id for one in predict_all(bank, WAYS, progress=again)] == [one.run.id for one in made]
    assert again.stages == {}


def test_weight_errors_are_told_where_the_gram_matrix_is_read_anyway(bank: AdapterBank) -> None:
    plain, oracle = predict_all(bank, [WAYS[0], PredictionOptions(approach="oracle")])
    assert plain.relative_error is not None
    assert oracle.relative_error is not None
    assert predict_all(bank, WAYS[0]).relative_error is None
    theta = bank.store.read_rows([record.row for record in bank.adapters()]).astype(np.float64)
    difference = np.linalg.norm(plain.coefficients.values @ theta - theta, axis=1)
    np.testing.assert_allclose(plain.relative_error, difference / np.linalg.norm(theta, axis=1), rtol=1e-4)


def test_what_is_stored_is_read(bank: AdapterBank, tmp_path: Path) -> None:
    made = predict_all_stored(bank, WAYS[0])
    one = export_prediction(bank, made.run.id, "task002", tmp_path / "one")
    assert digests(one) == digests(made.save(tmp_path / "all")[2])
    row = np.asarray(open_array(made.path / "adapters")[2, :])
    assert made.adapter("task002").tobytes() == row.tobytes()


# -- what is not there -----------------------------------------------------------------------------------


def test_runs_and_targets_that_are_not_there(bank: AdapterBank, tmp_path: Path) -> None:
    made = predict_all(bank, WAYS[0])
    distances(bank, "js")
    other = next(run.id for run in bank.runs.all() if run.kind != "predictions")
    for run, name, message in (
        (99, "task001", "run 99: no such run"),
        (other, "task001", "a run of predictions was expected, one of"),
        (made.run.id, "nobody", "nobody: one of the 6 targets of run .* this is not in the bank"),
    ):
        with pytest.raises(BankNotFoundError, match=message):
            export_prediction(bank, run, name, tmp_path / "out")
    with pytest.raises(BankNotFoundError, match="nobody: expected one of the 6"):
        made.adapter("nobody")
    with pytest.raises(ParameterError, match="expected one of source"):
        export_prediction(bank, made.run.id, "task001", tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_a_bank_that_changed_since(bank: AdapterBank, tmp_path: Path) -> None:
    nearest, every = predict_all(bank, [WAYS[2], WAYS[0]])
    before = export_prediction(bank, nearest.run.id, "task001", tmp_path / "before")
    ingest_folder(bank, write_pairs(tmp_path / "more", 1, start=6))
    with pytest.raises(BankNotFoundError, match=r"task006: .* stored or replaced since"):
        export_prediction(bank, every.run.id, "task006", tmp_path / "out")
    source = nearest.coefficients.adapters[int(nearest.coefficients.values[1].argmax())].name
    gone = next(record.name for record in bank.adapters() if record.name not in {source, "task001"})
    bank.remove(gone)
    # Its own source is there; of the others one is not.
    assert digests(export_prediction(bank, nearest.run.id, "task001", tmp_path / "after")) == digests(before)
    with pytest.raises(ConflictError, match=r"5 sources were expected, row . of them found removed"):
        export_prediction(bank, every.run.id, "task001", tmp_path / "out")


@pytest.mark.parametrize("what", ["metadata", "chunk", "all"])
def test_coefficients_that_are_damaged_or_gone(bank: AdapterBank, tmp_path: Path, what: str) -> None:
    made = predict_all(bank, WAYS[0])
    if what == "all":
        made.path.joinpath("zarr.json").unlink()
        expected: type[Exception] = BankNotFoundError
    else:
        file = made.path / "zarr.json" if what == "metadata" else made.path / "coefficients" / "c" / "0" / "0"
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        expected = BankFormatError
    with pytest.raises(expected, match="again"):
        export_prediction(bank, made.run.id, "task001", tmp_path / "out")
    if what != "all":
        assert not verify(bank).clean
    if what == "chunk":
        assert verify(bank, repair=True).repaired
    elif what == "metadata":
        shutil.rmtree(made.path)  # as the message says: nobody knows whose it is
    assert predict_all(bank, WAYS[0]).run.id == made.run.id
    assert export_prediction(bank, made.run.id, "task001", tmp_path / "out").is_dir()


def test_a_run_killed_before_its_coefficients_were_whole(bank: AdapterBank) -> None:
    made = predict_all(bank, WAYS[0])
    # As it is between the array's metadata and its chunks.
    made.path.joinpath("zarr.json").write_text('{"attributes": {}, "zarr_format": 3, "node_type": "group"}')
    made.path.joinpath("coefficients", "c", "0", "0").unlink()
    bank.runs.reopen(made.run.id)
    again = predict_all(bank, WAYS[0])
    assert again.run.id == made.run.id
    assert np.isfinite(np.asarray(open_array(again.path / "coefficients")[:, :])).all()


# -- stored, in a dtype ----------------------------------------------------------------------------------


def test_stored_in_the_dtype_that_is_asked_for(bank: AdapterBank) -> None:
    exact = np.asarray(open_array(predict_all_stored(bank, WAYS[0]).path / "adapters")[:, :])
    for dtype, kind in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16), ("float32", np.float32)):
        made = predict_all(bank, WAYS[0], store=dtype)
        assert made.stored == dtype
        found = np.asarray(open_array(made.path / "adapters")[:, :])
        assert found.tobytes() == exact.astype(kind).astype(np.float32).tobytes()
        progress = RecordedProgress()
        # Neither again, nor without, is anything computed.
        assert predict_all(bank, WAYS[0], store=dtype, progress=progress).stored == dtype
        assert predict_all(bank, WAYS[0], progress=progress).stored == dtype
        assert progress.stages == {}
        assert verify(bank).clean
    with pytest.raises(ParameterError, match="store: expected one of float32"):
        predict_all(bank, WAYS[0], store="source")


def test_a_stored_shard_that_is_lost_is_told_and_made_again(bank: AdapterBank) -> None:
    made = predict_all_stored(bank, WAYS[0])
    (shard,) = (made.path / "adapters" / "c").glob("*/*")
    shard.unlink()
    assert not verify(bank).clean
    predict_all_stored(bank, WAYS[0])
    assert shard.exists()
    assert verify(bank).clean


# -- the commands ----------------------------------------------------------------------------------------


def run(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result.output


def test_the_commands(bank: AdapterBank, tmp_path: Path) -> None:
    local = ("--bank", bank.path, "--all", "--workers", 1)
    told = run("predict", *local, "--approach", "uniform")
    assert "bank export NAME --prediction RUN --out FOLDER" in told
    output = CliRunner().invoke(cli, ["predict", *map(str, local), "--approach", "uniform", "--json"]).stdout
    (made,) = json.loads(output)["predictions"]
    assert (made["array"], made["stored"]) == (None, None)
    assert Path(made["coefficients"]).is_dir()
    words = ("export", "--bank", bank.path, "task003", "--prediction", made["run"], "--out", tmp_path / "one")
    assert "PEFT and vLLM load" in run(*words, "--dtype", "float16")
    assert load_adapter(tmp_path / "one").dtype == "float16"
    assert "another prediction" in run(*words, status=1)
    assert "no such run" in run(*words[:5], 77, "--out", tmp_path / "two", status=1)
    stored = json.loads(
        CliRunner()
        .invoke(
            cli,
            [
                "predict",
                *map(str, local),
                "--approach",
                "uniform",
                "--store",
                "--dtype",
                "bfloat16",
                "--json",
            ],
        )
        .stdout
    )
    assert stored["predictions"][0]["stored"] == "bfloat16"
    assert stored["predictions"][0]["run"] == made["run"]
    assert Path(stored["predictions"][0]["array"]).is_dir()
    assert "go with --all" in run("predict", "--bank", bank.path, "x", "--out", "y", "--store", status=2)
