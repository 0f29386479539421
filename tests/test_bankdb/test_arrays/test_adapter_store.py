"""Rows come back bit for bit, or not at all."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.arrays.adapter_store import AdapterStore, is_finite, row_sha256
from bankdb.arrays.zarr_arrays import CHUNK_COLUMNS, chunk_file, column_chunk, open_array
from bankdb.errors import AdapterError, BankFormatError, BankNotFoundError

SIZES = (1, 2, 1000, CHUNK_COLUMNS - 1, CHUNK_COLUMNS, CHUNK_COLUMNS + 1, 2 * CHUNK_COLUMNS, 300_000)


def make_store(path: Path, parameters: int, rows: int) -> AdapterStore:
    store = AdapterStore(path / "adapters.zarr")
    store.create(parameters, "identity")
    store.grow(rows)
    return store


def finite(parameters: int, seed: int = 0) -> np.ndarray:
    """Values of all kinds: any bits that are a finite float32."""
    bits = np.random.default_rng(seed).integers(0, 2**32, parameters, dtype=np.uint32)
    values = bits.view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0.5))


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """Three rows in five chunks each."""
    store = make_store(tmp_path, 4 * CHUNK_COLUMNS + 7, 3)
    for row in range(3):
        store.write(row, finite(store.shape[1], row))
    return store


# -- what is written comes back ---------------------------------------------------------------------


@pytest.mark.parametrize("parameters", SIZES)
def test_round_trip_of_sizes_around_a_chunk(tmp_path: Path, parameters: int) -> None:
    vector = finite(parameters)
    store = make_store(tmp_path, parameters, 3)
    checksum = store.write(1, vector)
    assert checksum == row_sha256(vector) == hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()
    for reader in (store, AdapterStore(store.path)):
        found = reader.read(1)
        assert found.dtype == np.float32
        assert found.tobytes() == vector.tobytes()
    # A row is one file, whatever its length.
    assert [path for path in (store.path / "c").rglob("*") if path.is_file()] == [store.file(1)]
    assert open_array(store.path).chunks == (1, column_chunk(parameters))


SPECIAL = (0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1 / 3)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.sampled_from(SPECIAL) | st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=300,
    )
)
def test_every_float_survives_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    vector = np.array(values, dtype=np.float32)
    store = make_store(tmp_path_factory.mktemp("store"), len(vector), 1)
    store.write(0, vector)
    assert AdapterStore(store.path).read(0).tobytes() == vector.tobytes()


@pytest.mark.parametrize("value", SPECIAL)
def test_a_row_of_one_value_is_stored(tmp_path: Path, value: float) -> None:
    """Chunks that equal the fill value are left out by zarr; NaN is it, so none of these may be."""
    vector = np.full(CHUNK_COLUMNS + 5, value, dtype=np.float32)
    store = make_store(tmp_path, len(vector), 1)
    store.write(0, vector)
    assert store.read(0).tobytes() == vector.tobytes()


def test_a_row_can_be_written_again(store: AdapterStore) -> None:
    vector = finite(store.shape[1], 9)
    store.write(1, vector)
    assert store.read(1).tobytes() == vector.tobytes()
    assert store.read(0).tobytes() == finite(len(vector), 0).tobytes()


def test_a_view_is_written_as_its_values(tmp_path: Path) -> None:
    vector = finite(2000)[::2]
    store = make_store(tmp_path, 1000, 1)
    assert store.write(0, vector) == row_sha256(vector.copy())
    assert store.read(0).tobytes() == vector.tobytes()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_column_panel_equals_the_slice(panel_store: AdapterStore, data: st.DataObject) -> None:
    width = panel_store.shape[1]
    near = st.sampled_from([index * CHUNK_COLUMNS + step for index in range(3) for step in (-1, 0, 1)])
    edge = st.integers(0, width) | near.map(lambda column: min(max(column, 0), width))
    start, stop = sorted((data.draw(edge), data.draw(edge)))
    rows = data.draw(st.lists(st.integers(0, 2), max_size=4))
    panel = panel_store.read_panel(rows, start, stop)
    assert (panel.shape, panel.dtype) == ((len(rows), stop - start), np.float32)
    for position, row in enumerate(rows):
        assert panel[position].tobytes() == finite(width, row)[start:stop].tobytes()


@pytest.fixture(scope="module")
def panel_store(tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    store = make_store(tmp_path_factory.mktemp("panels"), 2 * CHUNK_COLUMNS + 3, 3)
    for row in range(3):
        store.write(row, finite(store.shape[1], row))
    return store


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_the_same_for_zarr_and_in_banks_that_zarr_wrote(tmp_path: Path, dtype: str) -> None:
    """Earlier versions left the writing to zarr, which compresses whatever it is given."""
    vector = np.random.default_rng(0).normal(size=300_000).astype(dtype).astype(np.float32)
    store = make_store(tmp_path, len(vector), 2)
    store.write(0, vector)
    open_array(store.path, mode="r+")[1, :] = vector
    for row in (0, 1):
        assert store.read(row).tobytes() == vector.tobytes()
        assert np.asarray(open_array(store.path)[row, :]).tobytes() == vector.tobytes()
    size, compressed = (store.file(row).stat().st_size for row in (0, 1))
    if dtype == "float16":
        assert size == compressed < 0.6 * vector.nbytes
    else:
        assert size > vector.nbytes > compressed


# -- growth -----------------------------------------------------------------------------------------


def test_growing_keeps_rows_and_never_shrinks(store: AdapterStore) -> None:
    before = store.read_rows([0, 1, 2]).tobytes()
    store.grow(10)
    assert store.shape[0] == 10
    store.grow(2)
    assert store.shape[0] == 10
    assert AdapterStore(store.path).read_rows([0, 1, 2]).tobytes() == before
    store.write(9, finite(store.shape[1], 9))
    assert store.rows_on_disk() == [0, 1, 2, 9]


def test_rows_that_another_process_made_room_for(store: AdapterStore) -> None:
    other = AdapterStore(store.path)
    assert other.shape[0] == 3
    store.grow(5)
    vector = finite(store.shape[1], 4)
    other.write(4, vector)
    late = AdapterStore(store.path)
    assert late.shape[0] == 5
    store.grow(6)
    store.write(5, vector)
    assert late.read(5).tobytes() == other.read(5).tobytes() == vector.tobytes()


def test_creating_again_forgets_what_was_there(store: AdapterStore) -> None:
    store.create(10, "another")
    assert (store.shape, store.identity(), store.rows_on_disk()) == ((0, 10), "another", [])


def test_what_does_not_fit_is_not_written(store: AdapterStore) -> None:
    width = store.shape[1]
    for row, vector in ((3, finite(width)), (0, finite(width - 1)), (0, finite(width)[None])):
        with pytest.raises(BankFormatError, match=f"cannot write row {row}"):
            store.write(row, vector)
    for value in (np.nan, np.inf, -np.inf):
        bad = finite(width)
        bad[CHUNK_COLUMNS + 1] = value
        with pytest.raises(AdapterError, match="row 0 was expected to be finite"):
            store.write(0, bad)
    assert store.read(0).tobytes() == finite(width, 0).tobytes()


def test_no_unfinished_file_is_left(store: AdapterStore) -> None:
    files = [path.name for path in store.path.rglob("*") if path.is_file()]
    assert sorted(files) == ["0", "0", "0", "zarr.json"]


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "a::b", "ä b", "file:", "x.zip"])
def test_any_folder_name_will_do(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / name, 10, 1)
    store.write(0, finite(10))
    assert AdapterStore(store.path).read(0).tobytes() == finite(10).tobytes()
    assert {path.name for path in tmp_path.iterdir()} == {name}


# -- damage -----------------------------------------------------------------------------------------


def refused(store: AdapterStore, row: int, start: int = 0, stop: int | None = None) -> str:
    """The message with which reading a row is refused; it is one line and names the row and the way out."""
    with pytest.raises(BankFormatError) as caught:
        AdapterStore(store.path).read_panel([row], start, stop or store.shape[1])
    message = str(caught.value)
    assert "\n" not in message
    assert f"row {row}" in message
    assert "bank verify --repair" in message
    return message


def test_a_missing_row_is_an_error(store: AdapterStore) -> None:
    store.file(1).unlink()
    assert "missing" in refused(store, 1)
    shutil.rmtree(store.file(1).parent)
    assert "missing" in refused(store, 1)
    assert store.read(0).size == store.read(2).size == store.shape[1]
    with pytest.raises(BankFormatError, match="row 1"):
        store.read_rows([0, 1, 2])


def test_a_folder_in_the_place_of_a_row_is_an_error(store: AdapterStore) -> None:
    store.file(1).unlink()
    store.file(1).mkdir()
    assert "missing" in refused(store, 1)


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 16, 84, 0.3, 0.5, 0.9, -1])
def test_a_truncated_row_is_an_error(store: AdapterStore, keep: float) -> None:
    raw = store.file(1).read_bytes()
    length = int(keep * len(raw)) if isinstance(keep, float) else keep
    store.file(1).write_bytes(raw[:length])
    refused(store, 1)
    refused(store, 1, stop=1)


@pytest.mark.parametrize("extra", [b"\0", b"more"])
def test_a_row_with_bytes_behind_it_is_an_error(store: AdapterStore, extra: bytes) -> None:
    store.file(1).write_bytes(store.file(1).read_bytes() + extra)
    refused(store, 1)


def test_any_flipped_bit_is_an_error(tmp_path: Path) -> None:
    """All through a file of several chunks: data, compression headers, checksums, index."""
    vector = finite(150) * np.float32(0)  # compresses well: blosc alone takes most flips for other numbers
    vector[::7] = 1.5
    store = make_small_chunks(tmp_path, vector)
    raw = store.file(0).read_bytes()
    for position in range(0, len(raw) * 8, 7):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        store.file(0).write_bytes(flipped)
        with pytest.raises(BankFormatError, match="row 0"):
            store.read(0)


def make_small_chunks(path: Path, vector: np.ndarray) -> AdapterStore:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bankdb.arrays.zarr_arrays.CHUNK_COLUMNS", 64)
        store = make_store(path, len(vector), 1)
        store.write(0, vector)
    assert open_array(store.path).chunks == (1, 64)
    return store


def test_damage_matters_only_to_panels_that_read_it(store: AdapterStore) -> None:
    raw = bytearray(store.file(1).read_bytes())
    raw[100] ^= 1  # in the first chunk
    store.file(1).write_bytes(raw)
    refused(store, 1)
    refused(store, 1, 0, 1)
    panel = store.read_panel([1], CHUNK_COLUMNS, CHUNK_COLUMNS + 10)
    assert panel.tobytes() == finite(store.shape[1], 1)[CHUNK_COLUMNS:][:10].tobytes()


@pytest.mark.parametrize("chunk", range(5))
def test_a_chunk_that_is_not_there_is_an_error(store: AdapterStore, chunk: int) -> None:
    """It reads as NaN, zarr's fill value: written here past the store, which would refuse it."""
    width = store.shape[1]
    start, stop = chunk * CHUNK_COLUMNS, min((chunk + 1) * CHUNK_COLUMNS, width)
    open_array(store.path, mode="r+")[1, start:stop] = np.nan
    for first, last in ((0, width), (start, stop), (stop - 1, stop), (max(start - 3, 0), start + 1)):
        assert "lacks chunks" in refused(store, 1, first, last) or "not there" in refused(store, 1)
    if start:
        assert np.isfinite(store.read_panel([1], 0, start)).all()
    if stop < width:
        assert np.isfinite(store.read_panel([1], stop, width)).all()


def test_a_row_beyond_the_array_is_an_error(store: AdapterStore) -> None:
    """As when an older zarr.json was put back."""
    metadata = store.path / "zarr.json"
    text = metadata.read_text()
    assert '"shape": [\n    3,' in text
    metadata.write_text(text.replace('"shape": [\n    3,', '"shape": [\n    2,', 1))
    assert "beyond the array's 2 rows" in refused(store, 2)
    assert store.read(1).size


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"zarr_format": 3, "node_type": "group"}'])
def test_damaged_metadata_is_an_error(store: AdapterStore, content: str) -> None:
    (store.path / "zarr.json").write_text(content)
    with pytest.raises(BankFormatError) as caught:
        AdapterStore(store.path).read(0)
    assert str(store.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_metadata_is_an_error(store: AdapterStore) -> None:
    (store.path / "zarr.json").unlink()
    with pytest.raises(BankNotFoundError, match="expected a zarr array"):
        AdapterStore(store.path).read(0)


# -- files ------------------------------------------------------------------------------------------


def test_deleting_takes_only_the_rows_own_files(store: AdapterStore) -> None:
    partial = store.file(1).with_suffix(f".{'0a' * 16}.partial")
    partial.write_bytes(b"left by a killed writer")
    store.delete(1)
    store.delete(1)
    assert store.rows_on_disk() == [0, 2]
    notes = store.file(2).parent / "notes.txt"
    notes.write_text("mine")
    store.delete(2)
    assert not store.file(2).exists()
    assert notes.read_text() == "mine"
    assert store.foreign_files() == [notes]
    assert store.read(0).size


def test_foreign_files_are_told_from_the_stores_own(store: AdapterStore) -> None:
    assert store.foreign_files() == []
    for own in (f"zarr.{'1' * 32}.partial", f"c/1/0.{'2' * 32}.partial"):
        (store.path / own).write_bytes(b"")
    assert store.foreign_files() == []
    names = ["notes.txt", "c/readme", "c/007", "c/-1", "c/1/1", "c/1/0.partial", "c/9", ".hidden"]
    for name in names:
        (store.path / name).write_bytes(b"")
    (store.path / "c" / "٣").mkdir()  # a digit, of another script
    shutil.move(store.file(2), store.path / "c" / "2" / "moved")
    store.file(2).mkdir()
    expected = {*names, "c/٣", "c/2/moved", "c/2/0"}
    assert {path.relative_to(store.path).as_posix() for path in store.foreign_files()} == expected
    assert store.rows_on_disk() == [0, 1, 2]


def test_a_store_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters.zarr")
    assert (store.rows_on_disk(), store.foreign_files()) == ([], [])
    store.delete(0)
    assert chunk_file(store.path, 3, 0) == store.file(3)


def test_reading_ahead_changes_nothing_and_raises_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path, 1000, 2)
    vector = np.arange(1000, dtype=np.float32)
    store.write(0, vector)
    store.prefetch([0, 1], 0, 1000)  # row 1 was never written
    np.testing.assert_array_equal(store.read_panel([0], 0, 1000)[0], vector)
    with store.file(0).open("r+b") as file:
        file.truncate(100)
    store.prefetch([0], 0, 1000)
    with pytest.raises(BankFormatError):
        store.read_panel([0], 0, 1000)


@given(
    length=st.integers(0, 7),
    place=st.integers(0, 6),
    value=st.sampled_from([np.nan, np.inf, -np.inf, np.finfo(np.float32).max, 0.0]),
)
def test_a_value_that_is_not_finite_is_found_wherever_it_is(length: int, place: int, value: float) -> None:
    vector = np.zeros(length, dtype=np.float32)
    vector[place : place + 1] = value
    with pytest.MonkeyPatch.context() as small:
        small.setattr("bankdb.arrays.adapter_store._AT_ONCE", 3)
        assert is_finite(vector) == bool(np.isfinite(vector).all())
