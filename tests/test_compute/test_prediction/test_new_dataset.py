"""A dataset that is not in the bank: compared with every dataset, and its adapter predicted."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import wasserstein_distance

from bankdb.bank import AdapterBank
from bankdb.datasets.read import read_dataset
from bankdb.errors import (
    BankFormatError,
    BankNotFoundError,
    DatasetError,
    ParameterError,
    PlanError,
    TokenizerError,
)
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import distances
from compute.prediction.predict import dataset_name, predict
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import WORDS, create_bank, ingest_folder, write_dataset, write_pairs

METRICS = ("wasserstein", "kullback-leibler", "jensen-shannon", "mmd")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=1, processes=False), SilentProgress()) as opened:
        yield opened


@pytest.fixture
def newdata(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "newdata", seed=77)


def train_file(pairs: Path, name: str) -> Path:
    return pairs / "datasets" / name / "train.jsonl"


# -- values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("compatible", ["correct", "published"])
def test_distances_are_those_of_the_matrix(
    bank: AdapterBank, pairs_folder: Path, cluster: Cluster, metric: str, compatible: str
) -> None:
    """Predicted for as a new dataset, an entry has the distances and coefficients of leave-one-out."""
    matrix = distances(bank, metric, compatible=compatible, cluster=cluster).to_xarray()
    options = PredictionOptions(metric=metric, approach="attentional", compatible=compatible)
    weights = coefficients(bank, options, cluster=cluster).to_xarray()
    for name in ("task001", "task004"):
        found = predict(bank, train_file(pairs_folder, name), options)
        np.testing.assert_allclose(found.distances, matrix.sel(target=name).values, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(found.coefficients, weights.sel(target=name).values, rtol=1e-9)
        assert found.metric == matrix.name
        assert found.left_out == (name,)


def test_distances_equal_scipy_on_raw_tokens(bank: AdapterBank, newdata: Path, pairs_folder: Path) -> None:
    """By the bank's own tokenizer, special tokens included, on input + output[0]."""

    def tokens(folder: Path) -> list[int]:
        ids = {word: index + 2 for index, word in enumerate(WORDS)}
        examples = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        texts = [example["input"] + example["output"][0] for example in examples]
        return [token for text in texts for token in [0, *(ids[word] for word in text.split())]]

    found = predict(bank, newdata, PredictionOptions(metric="wd"))
    ours = tokens(newdata)
    assert found.tokens == len(ours)
    for record, distance in zip(found.adapters, found.distances, strict=True):
        theirs = tokens(pairs_folder / "datasets" / record.name)
        assert distance == pytest.approx(wasserstein_distance(ours, theirs), rel=1e-9)


@pytest.mark.parametrize("approach", ["attentional", "normalized", "uniform", "nearest"])
def test_the_vector_is_the_combination(bank: AdapterBank, newdata: Path, approach: str) -> None:
    found = predict(bank, newdata, PredictionOptions(approach=approach))
    assert found.left_out == ()
    assert found.coefficients.sum() == pytest.approx(1, abs=1e-12)
    assert (found.coefficients >= 0).all()
    assert found.effective_sources == pytest.approx(1 / (found.coefficients**2).sum())
    theta = bank.store.read_rows([record.row for record in found.adapters]).astype(np.float64)
    exact = found.coefficients @ theta
    assert found.vector.dtype == np.float32
    assert (np.abs(found.vector - exact) <= 1e-6 * (found.coefficients @ np.abs(theta))).all()
    if approach == "uniform":
        assert found.metric == "none"
        assert np.isnan(found.distances).all()
        np.testing.assert_allclose(found.coefficients, 1 / 6)
    else:
        assert found.metric == "jensen-shannon"
    if approach == "nearest":
        nearest = int(found.distances.argmin())
        assert found.vector.tobytes() == bank.store.read(found.adapters[nearest].row).tobytes()


def test_normalized_standardises_over_all_sources(bank: AdapterBank, newdata: Path) -> None:
    for compatible in ("correct", "published"):
        found = predict(bank, newdata, PredictionOptions(metric="wd", compatible=compatible))
        z = (found.distances - found.distances.mean()) / found.distances.std()
        np.testing.assert_allclose(found.coefficients, np.exp(-z) / np.exp(-z).sum(), rtol=1e-9)


def test_top_k_and_temperature(bank: AdapterBank, newdata: Path) -> None:
    found = predict(bank, newdata, PredictionOptions(top_k=2, temperature=0.5))
    assert np.count_nonzero(found.coefficients) == 2
    assert set(np.flatnonzero(found.coefficients)) == set(np.argsort(found.distances)[:2])


def test_gaussian_kernel_takes_the_banks_median(bank: AdapterBank, newdata: Path, cluster: Cluster) -> None:
    found = predict(bank, newdata, PredictionOptions(metric="mmd", kernel="gaussian"))
    assert found.metric == distances(bank, "mmd", kernel="gaussian", cluster=cluster).metric


def test_blocks_of_sources_give_the_same(
    bank: AdapterBank, newdata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(bank, newdata, PredictionOptions(metric="kl")).distances
    for block in (1, 4):
        monkeypatch.setattr("compute.prediction.predict._BLOCK", block)
        found = predict(bank, newdata, PredictionOptions(metric="kl")).distances
        np.testing.assert_allclose(found, whole, rtol=1e-12)


# -- the same content in the bank ----------------------------------------------------------------------


def test_the_same_content_is_left_out_and_said(bank: AdapterBank, pairs_folder: Path, tmp_path: Path) -> None:
    # Under another name, in another order and format, with something else beside it.
    examples = [json.loads(line) for line in train_file(pairs_folder, "task002").read_text().splitlines()]
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{**example, "more": 1} for example in reversed(examples)]))
    progress = RecordedProgress()
    found = predict(bank, other, progress=progress)
    assert found.left_out == ("task002",)
    (note,) = progress.notes
    assert "the same data as task002 in the bank, which is left out" in note
    index = [record.name for record in found.adapters].index("task002")
    assert found.coefficients[index] == 0
    assert found.distances[index] == 0
    assert found.coefficients.sum() == pytest.approx(1)


def test_the_same_content_is_used_when_told_so(bank: AdapterBank, pairs_folder: Path) -> None:
    progress = RecordedProgress()
    found = predict(
        bank,
        train_file(pairs_folder, "task002"),
        PredictionOptions(approach="nearest"),
        include_same=True,
        progress=progress,
    )
    assert found.left_out == ()
    assert progress.notes == []
    assert found.coefficients.tolist() == [0, 0, 1, 0, 0, 0]
    assert found.vector.tobytes() == bank.store.read(2).tobytes()


def test_nothing_is_left_to_combine(tokenizer_folder: Path, tmp_path: Path) -> None:
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        pairs = write_pairs(tmp_path / "pairs", 1)
        ingest_folder(bank, pairs)
        for approach in ("normalized", "uniform", "nearest"):
            with pytest.raises(ParameterError, match="at least one source"):
                predict(bank, train_file(pairs, "task000"), PredictionOptions(approach=approach))
        # One other dataset, and the single source has all the weight.
        found = predict(bank, write_dataset(tmp_path / "newdata", 9))
        assert found.coefficients.tolist() == [1.0]
        assert found.vector.tobytes() == bank.store.read(0).tobytes()


# -- what is read --------------------------------------------------------------------------------------


def write_csv(path: Path, examples: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["input", "output"])
        writer.writeheader()
        writer.writerows(examples)


def write_parquet(path: Path, examples: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(examples), path)


def write_json(path: Path, examples: list[dict[str, str]]) -> None:
    path.write_text(json.dumps(examples))


def test_every_format_gives_the_same_prediction(bank: AdapterBank, newdata: Path, tmp_path: Path) -> None:
    lines = (newdata / "train.jsonl").read_text().splitlines()
    examples = [{"input": e["input"], "output": e["output"][0]} for e in map(json.loads, lines)]
    expected = predict(bank, newdata)
    writers: dict[str, Callable[[Path, list[dict[str, str]]], None]] = {
        "data.csv": write_csv,
        "data.parquet": write_parquet,
        "data.json": write_json,
    }
    for name, write in writers.items():
        write(tmp_path / name, examples)
        found = predict(bank, tmp_path / name)
        assert found.vector.tobytes() == expected.vector.tobytes()
        assert found.coefficients.tolist() == expected.coefficients.tolist()
        assert found.dataset.sha256 == expected.dataset.sha256
    read = read_dataset([tmp_path / "data.csv"])
    assert predict(bank, read).vector.tobytes() == expected.vector.tobytes()


def test_other_column_names(bank: AdapterBank, newdata: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.jsonl"
    text = (newdata / "train.jsonl").read_text()
    renamed.write_text(text.replace('"input"', '"body"').replace('"output"', '"label"'))
    found = predict(bank, renamed, input_column="body", output_column="label")
    assert found.coefficients.tolist() == predict(bank, newdata).coefficients.tolist()
    with pytest.raises(DatasetError, match=r"renamed\.jsonl"):
        predict(bank, renamed)


@pytest.mark.parametrize("metric", METRICS)
def test_tokens_that_no_dataset_of_the_bank_has(tokenizer_folder: Path, tmp_path: Path, metric: str) -> None:
    """Nothing in common with any source but the special token, or words that the tokenizer does not know."""
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        pairs = write_pairs(tmp_path / "pairs", 3)
        for index in range(3):
            rows = [{"input": f"{WORDS[index]} ", "output": WORDS[10 + index]}] * 5
            train_file(pairs, f"task{index:03d}").write_text("\n".join(map(json.dumps, rows)))
        ingest_folder(bank, pairs)
        for word in (WORDS[150], "no-such-word"):
            file = tmp_path / f"{word}.jsonl"
            file.write_text(json.dumps({"input": f"{word} {word} ", "output": word}))
            found = predict(bank, file, PredictionOptions(metric=metric))
            assert np.isfinite(found.distances).all()
            assert (found.distances > 0).all()
            assert found.coefficients.sum() == pytest.approx(1)
            assert np.isfinite(found.vector).all()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/reviews.jsonl", "reviews"),
        ("data/reviews/train.jsonl", "reviews"),
        ("data/reviews", "reviews"),
        ("reviews.tar.jsonl", "reviews"),
    ],
)
def test_a_name_from_the_place(path: str, name: str) -> None:
    assert dataset_name(path) == name
    assert dataset_name(Path(path)) == name


def test_a_name_of_the_folder_one_stands_in(
    bank: AdapterBank, newdata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(newdata)
    assert dataset_name("train.jsonl") == "newdata"
    assert dataset_name(".") == "newdata"
    assert predict(bank, ".").name == "newdata"
    assert predict(bank, newdata, name="mine").name == "mine"


# -- errors --------------------------------------------------------------------------------------------


def test_the_oracle_is_refused(bank: AdapterBank, newdata: Path) -> None:
    with pytest.raises(ParameterError, match="oracle needs the adapter that is to be predicted"):
        predict(bank, newdata, PredictionOptions(approach="oracle"))


GAUSSIAN = PredictionOptions(metric="mmd", kernel="gaussian")


@pytest.mark.parametrize("options", [PredictionOptions(), GAUSSIAN])
def test_an_empty_bank(empty_bank: AdapterBank, newdata: Path, options: PredictionOptions) -> None:
    with pytest.raises(BankNotFoundError, match="bank ingest"):
        predict(empty_bank, newdata, options)


@pytest.mark.parametrize("options", [PredictionOptions(), GAUSSIAN])
def test_a_bank_whose_adapters_were_removed(
    bank: AdapterBank, newdata: Path, options: PredictionOptions
) -> None:
    for record in bank.adapters():
        bank.remove(record.name)
    with pytest.raises(BankNotFoundError, match="bank ingest"):
        predict(bank, newdata, options)


def test_a_damaged_row_matters_if_it_is_used(bank: AdapterBank, newdata: Path) -> None:
    nearest = int(predict(bank, newdata, PredictionOptions(approach="nearest")).coefficients.argmax())
    unused = next(row for row in range(6) if row != nearest)
    file = bank.store.file(unused)
    file.write_bytes(file.read_bytes()[:-30])
    assert predict(bank, newdata, PredictionOptions(approach="nearest")).coefficients[nearest] == 1
    with pytest.raises(BankFormatError, match=f"row {unused}"):
        predict(bank, newdata, PredictionOptions(approach="uniform"))


def test_a_tokenizer_that_is_gone(bank: AdapterBank, newdata: Path) -> None:
    shutil.rmtree(bank.path / "tokenizer")
    with AdapterBank.open(bank.path) as reopened, pytest.raises(TokenizerError, match="tokenizer is missing"):
        predict(reopened, newdata)


def test_memory(bank: AdapterBank, newdata: Path) -> None:
    with pytest.raises(ParameterError, match="memory"):
        predict(bank, newdata, memory=0)
    with pytest.raises(PlanError, match="--memory"):
        predict(bank, newdata, memory=1000)
    assert predict(bank, newdata, memory=1 << 26).vector.shape == (bank.layout.size,)


def test_no_data(bank: AdapterBank, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        predict(bank, tmp_path / "nowhere.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(DatasetError, match=r"empty\.jsonl"):
        predict(bank, empty)
