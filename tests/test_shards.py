"""Shards read and written directly are the ones that zarr reads and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankdb.arrays import create_array, open_array
from bankdb.errors import BankFormatError
from bankdb.shards import Shards

SOME = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(path: Path, rows: int, columns: int, chunk: int, height: int, across: int) -> zarr.Array:
    return create_array(
        path,
        shape=(rows, columns),
        chunks=(1, chunk),
        shards=(height, chunk * across),
        dtype="float32",
        attributes={},
    )


def values(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    found.flat[::7] = -0.0
    found.flat[::11] = np.float32(1e-42)
    return found


shapes = st.tuples(
    st.integers(1, 40), st.integers(1, 50), st.integers(1, 20), st.integers(1, 17), st.integers(1, 4)
)


@SOME
@given(shapes, st.data())
def test_reads_what_zarr_wrote(tmp_path: Path, shape: tuple[int, ...], data: st.DataObject) -> None:
    rows, columns, *_ = shape
    array = make(tmp_path / "a", *shape)
    stored = values(rows, columns)
    array[:, :] = stored
    shards = Shards.of(open_array(tmp_path / "a"), tmp_path / "a", "do something")
    assert shards is not None
    row, start = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    stop = data.draw(st.integers(start + 1, columns))
    out = np.empty(stop - start, dtype=np.float32)
    shards.read(row, start, stop, out)
    assert np.array_equal(out.view(np.uint32), stored[row, start:stop].view(np.uint32))


@SOME
@given(shapes)
def test_zarr_reads_what_it_wrote(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows, columns, chunk, height, across = shape
    make(tmp_path / "a", *shape)
    stored = values(rows, columns)
    shards = Shards.of(open_array(tmp_path / "a"), tmp_path / "a", "do something")
    assert shards is not None
    for row in range(0, rows, height):
        for column in range(0, columns, chunk * across):
            shards.write(row, column, stored[row : row + height, column : column + chunk * across])
    found = np.asarray(open_array(tmp_path / "a")[:, :])
    assert np.array_equal(found.view(np.uint32), stored.view(np.uint32))
    assert not list((tmp_path / "a").rglob("*.partial"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"", "truncated"),
        (lambda raw: raw[:10], "truncated"),
        (lambda raw: raw[:-1], "checksum"),
        (lambda raw: raw[:-10] + bytes([raw[-10] ^ 1]) + raw[-9:], "checksum"),
        (lambda raw: bytes(16) + raw[16:], "damaged"),
        (lambda raw: raw[:4] + b"\xff\xff\xff\x7f" + raw[8:], "damaged"),
        (lambda raw: raw[:40] + bytes([raw[40] ^ 1]) + raw[41:], "damaged"),
        (None, "No such file"),
    ],
)
def test_damage_is_an_error_that_names_the_row(tmp_path: Path, damage, message: str) -> None:
    array = make(tmp_path / "a", 4, 64, 16, 1, 4)
    array[:, :] = values(4, 64)
    shards = Shards.of(array, tmp_path / "a", "do something")
    file = shards.file(2, 0)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BankFormatError, match=rf"row 2: .*{message}.*do something"):
        shards.read(2, 0, 64, np.empty(64, dtype=np.float32))


def test_a_missing_chunk_is_an_error(tmp_path: Path) -> None:
    array = make(tmp_path / "a", 4, 64, 16, 4, 1)
    array[:2, :] = values(2, 64)
    shards = Shards.of(array, tmp_path / "a", "do something")
    with pytest.raises(BankFormatError, match="row 3: chunk 0 is not there"):
        shards.read(3, 0, 16, np.empty(16, dtype=np.float32))


def test_other_layouts_are_left_to_zarr(tmp_path: Path) -> None:
    plain = zarr.create_array(str(tmp_path / "p"), shape=(4, 8), chunks=(1, 8), dtype="float32")
    double = zarr.create_array(
        str(tmp_path / "d"), shape=(4, 8), chunks=(1, 8), shards=(2, 8), dtype="float64"
    )
    assert Shards.of(plain, tmp_path / "p", "") is None
    assert Shards.of(double, tmp_path / "d", "") is None
