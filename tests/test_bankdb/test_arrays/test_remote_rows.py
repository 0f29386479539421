"""Rows under a URL: what a folder keeps, an object store keeps, and what a folder refuses it refuses."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore, row_sha256
from bankdb.arrays.durable import delete_tree, folders_in, is_empty, move
from bankdb.arrays.remote import Location, RemotePath, delete, filesystem, located, put
from bankdb.arrays.shards import shards_of
from bankdb.arrays.zarr_arrays import (
    chunk_file,
    create_array,
    ensure_group,
    group_attributes,
    open_array,
    stored_chunks,
)
from bankdb.derived import find_group, read_group, write_group
from bankdb.errors import (
    AdapterError,
    ArrayStoreUnavailableError,
    BankFormatError,
    BankNotFoundError,
    ParameterError,
)
from bankdb.progress import SilentProgress
from tests.support.servers.object_store import Proxy, reached_at

KINDS = ("local", "memory", pytest.param("s3", marks=pytest.mark.s3))


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty place, in a folder, in memory, and on a server."""
    if request.param == "local":
        return tmp_path / "arrays"
    if request.param == "memory":
        return located(f"memory://{uuid.uuid4().hex}")
    return located(request.getfixturevalue("s3"))


def make_store(place: Location, parameters: int, rows: int) -> AdapterStore:
    store = AdapterStore(place / "adapters.zarr")
    store.create(parameters, "identity")
    store.grow(rows)
    return store


def noise(parameters: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=parameters).astype(dtype).astype(np.float32)


def read_raw(file: Location) -> bytes:
    return file.read_bytes() if isinstance(file, Path) else filesystem(file.url).cat_file(file.url)


def write_raw(file: Location, data: bytes) -> None:
    if isinstance(file, Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    else:
        put({file: data})


def remove_raw(file: Location) -> None:
    file.unlink() if isinstance(file, Path) else delete(file)


CHUNK = 1000
WIDTH = 4 * CHUNK + 7


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bankdb.arrays.zarr_arrays.CHUNK_COLUMNS", CHUNK)


@pytest.fixture
def store(place: Location) -> AdapterStore:
    """Three rows in five chunks each; the second of values that shrink."""
    store = make_store(place, WIDTH, 3)
    for row, dtype in enumerate(("float32", "float16", "float32")):
        store.write(row, noise(WIDTH, row, dtype))
    return store


def stored_row(row: int) -> np.ndarray:
    return noise(WIDTH, row, "float16" if row == 1 else "float32")


# -- the contract ------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [1, CHUNK - 1, CHUNK, 3 * CHUNK + 1])
def test_a_row_comes_back_bit_for_bit(place: Location, parameters: int) -> None:
    store = make_store(place, parameters, 3)
    vector = noise(parameters)
    assert store.write(1, vector) == row_sha256(vector)
    assert AdapterStore(store.path).read(1).tobytes() == vector.tobytes()
    assert (store.rows_on_disk(), store.foreign_files(), store.identity()) == ([1], [], "identity")
    assert np.asarray(open_array(store.path)[1, :]).tobytes() == vector.tobytes()  # zarr reads it


def test_columns_of_rows(store: AdapterStore) -> None:
    edges = [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 5, WIDTH]
    for rows in ([0], [2, 1], [1, 1, 0]):
        for start in edges:
            for stop in (edge for edge in edges if edge >= start):
                panel = AdapterStore(store.path).read_panel(rows, start, stop)
                expected = np.stack([stored_row(row)[start:stop] for row in rows])
                assert panel.tobytes() == expected.tobytes()


def test_a_row_written_anew_is_read_by_those_who_knew_the_old_one(store: AdapterStore) -> None:
    """With other places of its chunks, which a reader may have kept."""
    reader = AdapterStore(store.path)
    assert reader.read(1).tobytes() == stored_row(1).tobytes()
    raw = read_raw(store.file(1))
    for seed, dtype in ((7, "float32"), (8, "float16")):
        vector = noise(WIDTH, seed, dtype)
        other = make_store(store.path.parent / "other", WIDTH, 1)
        other.write(0, vector)
        write_raw(store.file(1), read_raw(other.file(0)))  # past this process, as another one does
        assert reader.read(1).tobytes() == vector.tobytes()
    store.write(1, stored_row(1))
    assert read_raw(store.file(1)) == raw
    assert reader.read(1).tobytes() == stored_row(1).tobytes()


def test_growing_and_making_anew(store: AdapterStore) -> None:
    late = AdapterStore(store.path)
    assert late.shape[0] == 3
    store.grow(6)
    store.grow(2)
    assert store.shape[0] == 6
    store.write(5, stored_row(0))
    assert late.read(5).tobytes() == stored_row(0).tobytes()
    store.create(10, "another")
    assert (store.shape, store.identity(), store.rows_on_disk()) == ((0, 10), "another", [])


def test_what_does_not_fit_is_not_written(store: AdapterStore) -> None:
    for row, vector in ((3, stored_row(0)), (0, stored_row(0)[1:])):
        with pytest.raises(BankFormatError, match=f"cannot write row {row}"):
            store.write(row, vector)
    bad = stored_row(0)
    bad[-1] = np.nan
    with pytest.raises(AdapterError, match="row 0 was expected to be finite"):
        store.write(0, bad)
    assert store.read(0).tobytes() == stored_row(0).tobytes()


def refused(store: AdapterStore, row: int, start: int = 0, stop: int = WIDTH) -> str:
    with pytest.raises(BankFormatError) as caught:
        AdapterStore(store.path).read_panel([row], start, stop)
    message = str(caught.value)
    assert "\n" not in message
    assert f"row {row}" in message
    assert str(store.path) in message
    assert "bank verify --repair" in message
    return message


def test_a_missing_row_is_an_error(store: AdapterStore) -> None:
    store.delete(1)
    store.delete(1)
    assert "row 1 is missing" in refused(store, 1)
    assert store.rows_on_disk() == [0, 2]
    with pytest.raises(BankFormatError, match="row 1"):
        store.read_rows([0, 1, 2])
    remove_raw(store.file(2))
    assert "is missing" in refused(store, 2)  # by a reader that knows where its chunks were
    assert store.read(0).tobytes() == stored_row(0).tobytes()


@pytest.mark.parametrize("keep", [0, 1, 4, 84, 0.3, 0.9, -1])
def test_a_truncated_row_is_an_error(store: AdapterStore, keep: float) -> None:
    store.read(1)
    raw = read_raw(store.file(1))
    write_raw(store.file(1), raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    refused(store, 1)
    assert store.read(0).tobytes() == stored_row(0).tobytes()


@pytest.mark.parametrize("place", ["local", "memory"], indirect=True)  # s3:// would be a request a bit
def test_any_flipped_bit_is_an_error(place: Location) -> None:
    vector = np.zeros(150, np.float32)  # compresses well: blosc alone takes most flips for other numbers
    vector[::7] = 1.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bankdb.arrays.zarr_arrays.CHUNK_COLUMNS", 64)
        store = make_store(place, len(vector), 1)
        store.write(0, vector)
    raw = read_raw(store.file(0))
    for position in range(0, len(raw) * 8, 31):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        store.write(0, vector)  # forgets where its chunks are
        write_raw(store.file(0), bytes(flipped))
        with pytest.raises(BankFormatError, match="row 0"):
            store.read(0)


def test_a_chunk_that_is_not_there_is_an_error(store: AdapterStore) -> None:
    open_array(store.path, mode="r+")[2, CHUNK : 2 * CHUNK] = np.nan
    assert "chunk 1 is not there" in refused(store, 2)
    assert np.isfinite(store.read_panel([2], 0, CHUNK)).all()


def test_what_is_foreign_is_told_and_stays(store: AdapterStore) -> None:
    names = ["notes.txt", "c/007/0", "c/1/1", "c/readme/0"]
    for name in names:
        write_raw(store.path.joinpath(*name.split("/")), b"mine")
    found = [str(item).removeprefix(f"{store.path}/") for item in store.foreign_files()]
    assert {name.removesuffix("/0") for name in found} == {"notes.txt", "c/007", "c/1/1", "c/readme"}
    store.delete(1)
    assert read_raw(store.path.joinpath("c", "1", "1")) == b"mine"


def test_metadata_that_is_missing_or_damaged(store: AdapterStore) -> None:
    write_raw(store.path / "zarr.json", b"{")
    with pytest.raises(BankFormatError, match=r"zarr\.json"):
        AdapterStore(store.path).read(0)
    remove_raw(store.path / "zarr.json")
    with pytest.raises(BankNotFoundError, match="expected a zarr array"):
        AdapterStore(store.path).read(0)


# -- places --------------------------------------------------------------------------------------------


def test_places(place: Location) -> None:
    assert is_empty(place)
    assert (stored_chunks(place), folders_in(place), group_attributes(place)) == (set(), [], None)
    array = create_array(
        place / "a", shape=(5, 4), chunks=(2, 2), shards=None, dtype="float64", attributes={"run": 3}
    )
    array[2:4, 2:4] = 1
    array[4:, :2] = 2
    assert stored_chunks(place / "a") == {(1, 1), (2, 0)}
    assert chunk_file(place / "a", 1, 1).is_file()
    assert not chunk_file(place / "a", 0, 0).is_file()
    assert not is_empty(place)
    ensure_group(place, {"bank": "x"})
    ensure_group(place, {"bank": "y"})
    assert group_attributes(place) == {"bank": "x"}
    assert folders_in(place) == [place / "a"]
    move(place / "a", place / "orphans" / "b")
    assert not (place / "a").exists()
    assert open_array(place / "orphans" / "b").attrs["run"] == 3
    delete_tree(place / "orphans")
    delete_tree(place / "orphans")
    assert folders_in(place) == []


def test_a_group_appears_whole_or_not_at_all(place: Location) -> None:
    bank: Any = SimpleNamespace(arrays=place, derived=place, record=SimpleNamespace(identity="x"))
    silent = SilentProgress()

    def arrays(value: float) -> dict[str, NDArray[np.float64]]:
        class Interrupted(dict[str, NDArray[np.float64]]):
            def items(self) -> Any:
                yield next(iter(super().items()))
                raise InterruptedError

        return (Interrupted if value < 0 else dict)({name: np.full(2, value) for name in "ab"})

    for value in (-1.0, 1.0, -1.0, 2.0):
        if value < 0:
            with pytest.raises(InterruptedError):
                write_group(bank, place / "g", "inputs", arrays(value))
            assert not find_group(bank, place / "g", silent)
            continue
        write_group(bank, place / "g", "inputs", arrays(value))
        assert find_group(bank, place / "g", silent, "inputs")
        assert not find_group(bank, place / "g", silent, "others")
        assert [item.name for item in folders_in(place / "g")] == ["a", "b"]
        assert np.asarray(open_array(place / "g" / "b")[:]).tolist() == [value, value]
        assert {name: array.tolist() for name, array in read_group(place / "g").items()} == {
            name: [value, value] for name in "ab"
        }


def test_what_a_text_names() -> None:
    assert located("/a/s3://b") == Path("/a/s3://b")
    assert located("file:///a/b") == Path("/a/b")
    assert located("s3://b/c/") == RemotePath("s3://b/c")
    assert str(RemotePath("s3://b/c") / "d" / "e") == "s3://b/c/d/e"
    assert RemotePath("s3://b/c/d").parent / "x" == RemotePath("s3://b/c/x")
    assert RemotePath("s3://b/c/d").relative_to(RemotePath("s3://b")) == "c/d"
    with pytest.raises(ValueError, match="is not below"):
        RemotePath("s3://bc/d").relative_to(RemotePath("s3://b"))
    with pytest.raises(ParameterError, match="no such kind of URL"):
        located("nonsense://x").check()


# -- requests ------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(s3: str, object_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of the server; this process goes through it, and gives up sooner than it would."""
    monkeypatch.setattr("bankdb.arrays.remote._ATTEMPTS", 3)
    made = Proxy(object_server, lambda number, method, path: 0)
    with reached_at(made.address):
        yield made
    made.die()


def test_requests_of_rows(proxy: Proxy, s3: str) -> None:
    """A row is one PUT; an index is read once, chunks that follow each other by one range."""
    store = make_store(located(s3), WIDTH, 3)
    for row in range(3):
        assert store.shape[0] == 3  # its metadata is read here
        proxy.seen.clear()
        store.write(row, stored_row(row))
        assert [method for method, _ in proxy.seen] == ["PUT"]
    for columns, expected in (((0, WIDTH - 1), 6), ((5, 6), 3), ((0, 3 * CHUNK), 3), ((0, WIDTH), 6)):
        proxy.seen.clear()
        store.read_panel([0, 1, 2], *columns)
        assert [method for method, _ in proxy.seen] == ["GET"] * expected


def test_blocks_of_predictions_are_written_and_read(place: Location) -> None:
    array = create_array(
        place / "p", shape=(40, 70), chunks=(1, 10), shards=(16, 10), dtype="float32", attributes={}
    )
    shards = shards_of(array, place / "p", "do something")
    assert shards is not None
    values = np.random.default_rng(0).normal(size=(40, 70)).astype(np.float32)
    for column in range(0, 70, 10):
        part = values[:, column : column + 10]
        shards.write(0, column, [part[first : first + 16] for first in range(0, 40, 16)])
    assert np.asarray(open_array(place / "p")[:, :]).tobytes() == values.tobytes()
    out = np.empty((3, 33), np.float32)
    shards.read_rows([39, 0, 17], 8, 41, out)
    assert out.tobytes() == values[[39, 0, 17], 8:41].tobytes()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_columns_in_small_requests(data: st.DataObject) -> None:
    """With bounds so small that requests are split and batched everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bankdb.arrays.zarr_arrays.CHUNK_COLUMNS", 16)
        patch.setattr("bankdb.arrays.remote_shards._RANGE", data.draw(st.sampled_from([1, 100, 250, 10_000])))
        patch.setattr(
            "bankdb.arrays.remote_shards._IN_FLIGHT", data.draw(st.sampled_from([1, 200, 700, 10_000]))
        )
        patch.setattr("bankdb.arrays.remote_shards._INDEXES_KEPT", data.draw(st.sampled_from([0, 1, 100])))
        store = make_store(located(f"memory://{uuid.uuid4().hex}"), 150, 4)
        rows = [noise(150, row, ("float16", "float32")[row % 2]) for row in range(4)]
        for row, vector in enumerate(rows):
            store.write(row, vector)
        start, stop = sorted(data.draw(st.tuples(st.integers(0, 150), st.integers(0, 150))))
        which = data.draw(st.lists(st.integers(0, 3), max_size=5))
        panel = store.read_panel(which, start, stop)
        assert panel.shape == (len(which), stop - start)
        for position, row in enumerate(which):
            assert panel[position].tobytes() == rows[row][start:stop].tobytes()


# -- a store that fails --------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [503, 500, -1, -2])
def test_what_fails_now_and_then_is_asked_again(proxy: Proxy, s3: str, failure: int) -> None:
    """Refusals, connections that are closed without an answer, answers that break off."""
    broken = ("GET",) if failure == -2 else ("GET", "PUT", "HEAD", "DELETE", "POST")
    proxy.answer = lambda number, method, path: failure if number % 6 == 0 and method in broken else 0
    store = make_store(located(s3), 1000, 6)
    for row in range(6):
        store.write(row, noise(1000, row))
    for row in range(6):
        assert AdapterStore(store.path).read(row).tobytes() == noise(1000, row).tobytes()
    assert proxy.failed >= 2
    assert store.rows_on_disk() == list(range(6))


def test_a_store_that_is_gone_is_named(proxy: Proxy, s3: str) -> None:
    store = make_store(located(s3), 1000, 2)
    store.write(0, noise(1000))
    proxy.die()
    with pytest.raises(
        ArrayStoreUnavailableError, match=f"{s3}.*cannot be reached.*run the same command again"
    ):
        store.write(1, noise(1000))


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    with pytest.raises(ArrayStoreUnavailableError, match="s3://missing/x"):
        AdapterStore(located("s3://missing/x")).create(10, "identity")
