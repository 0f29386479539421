"""What is done otherwise where there are many datasets gives the same as where there are few."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, ConflictError
from bankdb.progress import SilentProgress
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions
from compute.pairwise import counts as counts_module
from compute.pairwise import matrix as matrix_module
from compute.pairwise.counts import read_counts, token_counts, write_distributions
from compute.pairwise.matrix import StoredDistances
from compute.pairwise.parquet import write_parquet
from compute.pairwise.plan import CHUNK_ROWS, cover
from compute.pairwise.text import joined, matrices_csv, values_json
from compute.pairwise.zarr_folder import write_zarr
from compute.prediction.matrices import distances
from compute.prediction.ways import combinations
from compute.reporting import sample
from compute.reporting.gather import gather
from compute.reporting.report import those_shown
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.synthetic_bank import SyntheticBank, create_synthetic


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> SyntheticBank:
    made = create_synthetic(tmp_path_factory.mktemp("many") / "bank", tokenizer_folder)
    made.add_many(range(CHUNK_ROWS + 6))
    made.bank.close()
    return made


@pytest.fixture
def many(template: SyntheticBank, tmp_path: Path) -> Iterator[SyntheticBank]:
    shutil.copytree(template.bank.path, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        copied = SyntheticBank(bank, template.layout, tmp_path / "adapter_config.json")
        copied.tokens |= template.tokens
        copied.vectors |= template.vectors
        yield copied


# -- counts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "stop"), [(0, 70), (10, 20), (16, 48), (15, 49), (69, 70), (70, 90)])
def test_counts_in_blocks_are_those_of_one(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch, start: int, stop: int
) -> None:
    monkeypatch.setattr(counts_module, "BLOCK_ROWS", 16)
    adapters = many.bank.adapters()
    stored, largest = write_distributions(many.bank, adapters, SilentProgress())
    assert len(stored.folders) == 5
    if start == 70:
        assert stored.blocks(80, stop) == []
        return
    rows, found = read_counts(stored, start, stop)
    expected = token_counts(many.bank, adapters[start:stop])
    assert rows.tolist() == list(range(start, stop))
    for name in ("indptr", "ids", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert largest == token_counts(many.bank, adapters).lengths.max()


def test_one_adapter_more_makes_one_block_anew(many: SyntheticBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "BLOCK_ROWS", 16)
    before, _ = write_distributions(many.bank, many.bank.adapters(), SilentProgress())
    many.add_many([900])
    read: list[int] = []
    monkeypatch.setattr(
        counts_module, "token_counts", lambda bank, some: read.append(len(some)) or token_counts(bank, some)
    )
    after, _ = write_distributions(many.bank, many.bank.adapters(), SilentProgress())
    assert read == [7]  # of the last block, not of the other four
    assert {n for n in after.folders if after.folders[n] != before.folders.get(n)} == {4}
    assert not Path(before.folders[4]).exists()


# -- matrices that are not held ------------------------------------------------------------------------


def test_a_matrix_that_is_not_held_has_the_same_values(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = distances(many.bank, "js")
    monkeypatch.setattr(matrix_module, "HELD_ROWS", 10)
    read: list[object] = []
    whole = matrix_module.read_entries
    monkeypatch.setattr(matrix_module, "read_entries", lambda *given: read.append(given) or whole(*given))
    stored = distances(many.bank, "js")
    assert isinstance(stored, StoredDistances)
    assert (read, stored.held, stored.shape) == ([], False, (70, 70))
    assert stored.band(3, 9).tobytes() == held.values[3:9].tobytes()
    assert stored.values.tobytes() == held.values.tobytes()
    assert stored.held
    assert "70 targets" in repr(stored)


def test_of_rows_that_are_left_out_nothing_is_read(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_module, "HELD_ROWS", 10)
    before = distances(many.bank, "js").values
    many.bank.remove(many.bank.adapters()[5].name)
    after = distances(many.bank, "js")
    kept = np.delete(np.delete(before, 5, 0), 5, 1)
    assert after.values.tobytes() == kept.tobytes()
    assert after.band(3, 8).tobytes() == kept[3:8].tobytes()


def test_chunks_that_somebody_deleted_are_computed_again_and_damaged_ones_told(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix_module, "HELD_ROWS", 10)
    first = distances(many.bank, "js")
    before = first.values
    folder = many.bank.array_path("distances") / "jensen-shannon" / "c"
    (folder / "1" / "0").unlink()
    again = distances(many.bank, "js")
    np.testing.assert_allclose(again.values, before, rtol=1e-12)
    (folder / "0" / "1").write_bytes((folder / "0" / "1").read_bytes()[:-3])
    damaged = distances(many.bank, "js")  # nothing of it is read
    with pytest.raises(BankFormatError, match="c/0/1"):
        _ = damaged.values


def test_a_run_with_nothing_to_do_starts_no_cluster(many: SyntheticBank) -> None:
    distances(many.bank, "js")
    with open_cluster(ClusterOptions(workers=1), SilentProgress()) as cluster:
        distances(many.bank, "js", cluster=cluster)
        assert cluster.start.cache_info().currsize == 0  # type: ignore[attr-defined]


# -- plans ---------------------------------------------------------------------------------------------


def test_an_adapter_more_is_a_band_of_each_tile() -> None:
    """Of 20 chunks and tiles of 8: the chunks of the last column, and the tile on the diagonal whole."""
    missing = [(i, 19) for i in range(20)]
    tiles = cover(20 * CHUNK_ROWS, missing, 8)
    found = {chunk for tile in tiles for chunk in tile.chunks()}
    assert found - set(missing) == {(i, j) for i in range(16, 20) for j in range(i, 19)}
    assert found >= set(missing)
    assert [(t.row_stop - t.row_start, t.column_stop - t.column_start) for t in tiles] == [
        (8 * CHUNK_ROWS, CHUNK_ROWS),
        (8 * CHUNK_ROWS, CHUNK_ROWS),
        (4 * CHUNK_ROWS, 4 * CHUNK_ROWS),
    ]


def test_other_holes_are_whole_tiles() -> None:
    (tile,) = cover(20 * CHUNK_ROWS, [(1, 9)], 8)
    assert (tile.row_start, tile.row_stop) == (0, 8 * CHUNK_ROWS)
    assert (tile.column_start, tile.column_stop) == (8 * CHUNK_ROWS, 16 * CHUNK_ROWS)


# -- text ----------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(allow_nan=False)
    )
)
def test_every_digit_of_a_number_is_there(values: np.ndarray) -> None:
    rows = [row.decode() for row in joined(values)]
    found = np.array([[float(cell) for cell in row.split(",")] for row in rows])
    np.testing.assert_array_equal(found, values)


def test_a_matrix_in_bands_is_the_matrix(many: SyntheticBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.pairwise.text._BAND_ENTRIES", 1)
    js, wd = distances(many.bank, ["js", "wd"])
    text = "".join(matrices_csv([js, wd], [{"metric": "js"}, {"metric": "wd"}]))
    head, *rows = csv.reader(io.StringIO(text))
    assert head == ["metric", "target", *js.names]
    assert [row[:2] for row in rows] == [[name, target] for name in ("js", "wd") for target in js.names]
    values = np.array([row[2:] for row in rows], dtype=np.float64)
    np.testing.assert_array_equal(values, np.concatenate([js.values, wd.values]))
    np.testing.assert_array_equal(np.array(json.loads("".join(values_json(js)))), js.values)


# -- the report ----------------------------------------------------------------------------------------


def test_a_large_banks_report_is_of_some_and_says_so(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "MOST_SHOWN", 30)
    monkeypatch.setattr("compute.reporting.report.MOST_SHOWN", 30)
    monkeypatch.setattr(sample, "SHOWN", 12)
    progress = RecordedProgress()
    ways = those_shown(many.bank, combinations(["js"], ["normalized", "uniform", "ridge"]), progress)
    assert {way.approach for way in ways} == {"normalized", "uniform"}
    assert "ridge" in progress.notes[0]
    found = gather(many.bank, ways, progress=progress)
    assert (len(found.adapters), found.in_bank) == (12, 70)
    assert "12 of 70" in progress.notes[1]
    rows = [record.row for record in found.adapters]
    assert rows == sorted(set(rows))
    assert not many.bank.array_path("distances").exists()
    whole = distances(many.bank, "js").values[np.ix_(rows, rows)]
    np.testing.assert_allclose(found.distances[0].values, whole, rtol=1e-9, atol=1e-15)
    from compute.reporting.page.page import render

    assert "The bank has 70 adapters" in render(found)


def test_the_gram_matrix_of_some_is_that_of_all(many: SyntheticBank) -> None:
    some = many.bank.adapters()[3:9]
    theta = many.theta[3:9]
    np.testing.assert_allclose(
        sample.gram_among(many.bank, some, SilentProgress()), theta @ theta.T, rtol=1e-12
    )


def test_parquet_has_a_row_a_target_and_the_sources_names(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    monkeypatch.setattr("compute.pairwise.text._BAND_ENTRIES", 1)
    js, wd = distances(many.bank, ["js", "wd"])
    file = many.bank.path.parent / "matrices.parquet"
    for _ in range(2):  # in place of one that is there
        write_parquet(file, [js, wd], [{"metric": "js"}, {"metric": "wd"}])
    table = parquet.read_table(file)
    assert table["metric"].to_pylist() == ["js"] * 70 + ["wd"] * 70
    assert table["target"].to_pylist() == js.names * 2
    assert json.loads(table.schema.metadata[b"sources"]) == js.names
    np.testing.assert_array_equal(
        np.array(table["values"].to_pylist()), np.concatenate([js.values, wd.values])
    )
    assert [path.name for path in file.parent.iterdir() if "partial" in path.name] == []


def test_a_zarr_group_has_the_matrices_their_names_and_dimensions(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zarr

    monkeypatch.setattr("compute.pairwise.text._BAND_ENTRIES", 1)  # bands of 64 rows
    monkeypatch.setattr("compute.pairwise.zarr_folder._COLUMNS", 32)
    js, wd = distances(many.bank, ["js", "wd"])
    folder = many.bank.path.parent / "matrices.zarr"
    labels = [{"metric": "jensen-shannon"}, {"metric": "wasserstein"}]
    write_zarr(folder, [js, wd], labels)
    group = zarr.open_group(folder, mode="r")
    assert sorted(name for name, _ in group.arrays()) == ["jensen-shannon", "wasserstein"]
    for matrix, label in zip((js, wd), labels, strict=True):
        array = group[label["metric"]]
        assert isinstance(array, zarr.Array)
        assert np.asarray(array[:]).tobytes() == matrix.values.tobytes()
        assert dict(array.attrs) == {**label, "names": matrix.names}
        assert array.metadata.to_dict()["dimension_names"] == ("target", "source")
    assert group.attrs["names"] == js.names
    with pytest.raises(ConflictError, match="already there"):
        write_zarr(folder, [js], labels[:1])
    assert [path.name for path in folder.parent.iterdir() if "partial" in path.name] == []


def test_a_zarr_group_that_cannot_be_written_leaves_nothing(
    many: SyntheticBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute.pairwise.text._BAND_ENTRIES", 1)
    js = distances(many.bank, "js")

    class Failing:
        names = js.names

        def band(self, start: int, stop: int) -> np.ndarray:
            if start:
                raise OSError(28, "No space left on device")
            return js.values[start:stop]

    before = sorted(many.bank.path.parent.iterdir())
    with pytest.raises(OSError, match="No space left"):
        write_zarr(many.bank.path.parent / "matrices.zarr", [Failing()], [{"metric": "js"}])
    assert sorted(many.bank.path.parent.iterdir()) == before
