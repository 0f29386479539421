"""A new dataset that is far from all of a bank: what is told of it, and from which distances."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import compute.prediction.novelty as module
from bankdb.bank import AdapterBank
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.cluster.options import ClusterOptions
from compute.metrics.novelty import units_apart
from compute.prediction.matrices import distances
from compute.prediction.predict import predict
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import WORDS, create_bank, ingest_folder, write_dataset, write_pairs

COUNT = 24


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of three groups, and one dataset twice."""
    folder = write_pairs(tmp_path_factory.mktemp("novelty"), COUNT)
    first, second = (folder / "datasets" / name / "train.jsonl" for name in ("task004", "task005"))
    second.write_bytes(first.read_bytes())
    return folder


@pytest.fixture(scope="module")
def bank(
    tmp_path_factory: pytest.TempPathFactory, pairs: Path, tokenizer_folder: Path
) -> Iterator[AdapterBank]:
    with create_bank(tmp_path_factory.mktemp("novelty") / "bank", tokenizer_folder) as made:
        report = ingest_folder(made, pairs, group_pattern="^task00([0-2])")
        assert len(report.added) == COUNT
        yield made


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Words that the tokenizer does not know."""
    path = tmp_path / "foreign.jsonl"
    rows = [{"input": "dies und das ", "output": ["jenes"]} for _ in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def own_by_matrix(bank: AdapterBank, metric: str, left_out: tuple[str, ...] = ()) -> list[float]:
    """Distances to the nearest of another group and other data, by loops over the whole matrix."""
    matrix = distances(bank, metric, cluster=ClusterOptions(workers=1, processes=False))
    found = []
    for i, one in enumerate(matrix.adapters):
        others = [
            matrix.values[i, j]
            for j, other in enumerate(matrix.adapters)
            if other.content_sha256 != one.content_sha256
            and (one.group is None or other.group != one.group)
            and other.name not in left_out
        ]
        if one.name not in left_out:
            found.append(min(others))
    return found


@pytest.mark.parametrize("metric", ["js", "wd", "kl", "mmd", "tf-idf"])
def test_it_lies_where_the_whole_matrix_says(bank: AdapterBank, tmp_path: Path, metric: str) -> None:
    own = own_by_matrix(bank, metric)
    for seed in (70, 71, 72):
        found = predict(
            bank, write_dataset(tmp_path / f"{seed}", seed), PredictionOptions(metric=metric)
        ).novelty
        assert found is not None
        row = found.nearest
        assert found.compared == COUNT
        assert found.nearer == sum(value < row for value in own)
        assert found.groups_left_out


def test_entries_of_the_same_data_are_not_compared_with(bank: AdapterBank, pairs: Path) -> None:
    """Predicted for as a new dataset, it is compared with what a bank without it would hold."""
    found = predict(bank, pairs / "datasets" / "task004")
    assert found.left_out == ("task004", "task005")
    own = own_by_matrix(bank, "js", found.left_out)
    assert found.novelty is not None
    assert found.novelty.compared == COUNT - 2
    assert found.novelty.nearest == np.delete(found.distances, [4, 5]).min()
    assert found.novelty.nearer == sum(value < found.novelty.nearest for value in own)


def test_a_foreign_dataset_is_told_once_a_metric(bank: AdapterBank, foreign: Path, tmp_path: Path) -> None:
    progress = RecordedProgress()
    ways = [PredictionOptions(approach=name) for name in ("normalized", "nearest", "uniform")]
    made = predict(bank, foreign, ways, progress=progress)
    assert [None if one.novelty is None else one.novelty.novel for one in made] == [True, True, None]
    told = [note for note in progress.notes if "farther than 100% of 24" in note]
    assert len(told) == 1
    assert told[0].startswith(f"{foreign}: its nearest source by jensen-shannon")
    assert "far from the bank" in repr(made[0])
    folder = made[0].save(tmp_path / "made")
    record = json.loads((folder / "provenance.json").read_text())
    assert record["novelty"] == made[0].novelty.record()  # type: ignore[union-attr]
    assert record["novelty"]["novel"]
    card = (folder / "README.md").read_text()
    assert "The dataset is far from all sources" in card
    assert "than 100% of 24 datasets of the bank are from theirs, groups left out" in card


def test_a_dataset_like_the_others_is_not_told(bank: AdapterBank, tmp_path: Path) -> None:
    progress = RecordedProgress()
    made = predict(bank, write_dataset(tmp_path / "new", 77), progress=progress)
    assert made.novelty is not None
    assert not made.novelty.novel
    assert not any("farther" in note for note in progress.notes)
    folder = made.save(tmp_path / "made")
    assert "far from all" not in (folder / "README.md").read_text()
    assert json.loads((folder / "provenance.json").read_text())["novelty"]["novel"] is False


def test_of_a_large_bank_stored_distances_are_used_or_nothing(
    bank: AdapterBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands of the matrix hold every row here, some of them twice: the share is that of all rows or near it."""
    new = write_dataset(tmp_path / "new", 78)
    whole = predict(bank, new).novelty
    monkeypatch.setattr(module, "COMPUTED", COUNT - 1)
    monkeypatch.setattr(module, "TARGETS", COUNT)
    monkeypatch.setattr(module, "_BAND", COUNT)
    other = PredictionOptions(metric="mmd", kernel="gaussian", sigma=3.5)
    unknown = predict(bank, new, other).novelty
    assert unknown is not None
    assert (unknown.compared, unknown.novel) == (0, False)
    distances(bank, "js", cluster=ClusterOptions(workers=1, processes=False))
    before = bank.runs.all()
    found = predict(bank, new).novelty
    assert (found, bank.runs.all()) == (whole, before)
    monkeypatch.setattr(module, "_BAND", 3)
    banded = predict(bank, new).novelty
    assert banded is not None
    assert banded.compared == COUNT


def test_stored_distances_of_fewer_datasets_are_not_used(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        ingest_folder(bank, write_pairs(tmp_path / "some", 12))
        distances(bank, "js", cluster=ClusterOptions(workers=1, processes=False))
        monkeypatch.setattr(module, "COMPUTED", 5)
        new = write_dataset(tmp_path / "new", 79)
        assert predict(bank, new).novelty.compared  # type: ignore[union-attr]
        ingest_folder(bank, write_pairs(tmp_path / "more", 1, start=12))
        assert predict(bank, new).novelty.compared == 0  # type: ignore[union-attr]


def test_too_little_memory_says_nothing(bank: AdapterBank, tmp_path: Path) -> None:
    from compute.approaches.options import PredictionOptions as Options

    way = Options()
    adapters = tuple(bank.adapters())
    row = np.linspace(0.1, 0.2, len(adapters))
    metric = way.resolve_metric(None)
    found = module.novelty_of(bank, metric, adapters, row, np.zeros(len(adapters), dtype=bool), way, 1)
    assert found is not None
    assert (found.nearest, found.compared) == (0.1, 0)


def test_the_command_says_it(bank: AdapterBank, foreign: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(foreign), "--bank", str(bank.path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["novelty"]["farther_than"] == COUNT
    assert "its nearest source by jensen-shannon" in done.stderr


def test_one_group_alone_has_nothing_to_compare_with() -> None:
    assert len(set(units_apart(["a"] * 20, list(range(20))))) == 1


def test_the_words_are_those_of_the_tokenizer() -> None:
    """The foreign text above is foreign."""
    assert not set(WORDS) & {"dies", "und", "das", "jenes"}
