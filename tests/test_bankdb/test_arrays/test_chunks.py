"""Chunks read from their files against zarr's own reader, and files that were damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from bankdb.arrays import metadata
from bankdb.arrays.chunks import read_chunks, write_chunks
from bankdb.arrays.metadata import ArrayLayout, read_layout, read_metadata, write_array
from bankdb.arrays.zarr_arrays import chunk_file, create_array, open_array
from bankdb.errors import BankFormatError

CHUNK = 4
ADVICE = "compute it again"


def written(path: Path, values: np.ndarray) -> zarr.Array:
    array = create_array(
        path, shape=values.shape, chunks=(CHUNK, CHUNK), shards=None, dtype="float64", attributes={}
    )
    array[:] = values
    return open_array(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 13), st.integers(1, 13))
def test_a_rectangle_is_what_zarr_reads(tmp_path: Path, data: st.DataObject, rows: int, columns: int) -> None:
    """Whole chunks, those at the edges, those of nothing but NaN, which have no file, and -0.0."""
    values = np.random.default_rng(rows * 100 + columns).standard_normal((rows, columns))
    values[data.draw(st.integers(0, rows)) :, data.draw(st.integers(0, columns)) :] = np.nan
    values[0, 0] = -0.0
    array = written(tmp_path / "array", values)
    selection = []
    for size in (rows, columns):
        start = CHUNK * data.draw(st.integers(0, (size - 1) // CHUNK))
        selection.append(slice(start, data.draw(st.integers(start, size))))
    found = read_chunks(tmp_path / "array", selection, advice=ADVICE, missing=True)
    assert found.tobytes() == np.asarray(array[tuple(selection)]).tobytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 13), st.integers(1, 13))
def test_zarr_reads_what_is_written(tmp_path: Path, data: st.DataObject, rows: int, columns: int) -> None:
    """Over what was there before: the rectangle alone changes, and files are the ones that zarr would leave."""
    before = np.random.default_rng(1).standard_normal((rows, columns))
    array = written(tmp_path / "array", before)
    row, column = (CHUNK * data.draw(st.integers(0, (size - 1) // CHUNK)) for size in (rows, columns))
    values = np.random.default_rng(2).standard_normal((rows - row, columns - column))
    values[data.draw(st.integers(0, rows - row)) :] = np.nan
    write_chunks(tmp_path / "array", (row, column), values)
    expected = before.copy()
    expected[row:, column:] = values
    assert np.asarray(open_array(tmp_path / "array")[:, :]).tobytes() == expected.tobytes()
    by_zarr = written(tmp_path / "zarr", expected)
    assert by_zarr.shape == array.shape
    assert files(tmp_path / "array") == files(tmp_path / "zarr")


def files(root: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes() for file in (root / "c").rglob("*") if file.is_file()
    }


def test_a_chunk_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    written(tmp_path / "array", np.ones((8, 8)))
    chunk_file(tmp_path / "array", 1, 0).unlink()
    chunk_file(tmp_path / "array", 1, 1).unlink()
    folder = chunk_file(tmp_path / "array", 1, 0).parent
    folder.rmdir()
    folder.write_text("in the way")
    with pytest.raises(OSError, match="array/c/1"):
        write_chunks(tmp_path / "array", (0, 0), np.zeros((8, 8)))
    folder.unlink()
    found = read_chunks(tmp_path / "array", advice=ADVICE, missing=True)
    assert (found[:4] == 0).all()
    assert np.isnan(found[4:]).all()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "another size", "not blosc"])
def test_a_damaged_chunk_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path / "array", np.random.default_rng(0).random((8, 8)))
    file = chunk_file(tmp_path / "array", 1, 0)
    raw = bytearray(file.read_bytes())
    if damage == "truncated":
        raw = raw[:-5]
    elif damage == "empty":
        raw = bytearray()
    elif damage == "flipped":
        raw[30] ^= 1
    else:
        # A valid checksum around what is no chunk of this array.
        from bankdb.arrays.shard_format import checksum

        body = raw[:-4]
        body[4:8] = (7).to_bytes(4, "little") if damage == "another size" else body[4:8]
        body[0] = 200 if damage == "not blosc" else body[0]
        raw = body + checksum(bytes(body))
    file.write_bytes(raw)
    with pytest.raises(BankFormatError, match=f"{file}: .*; delete {file}; {ADVICE}"):
        read_chunks(tmp_path / "array", advice=ADVICE, missing=True)
    # What is not asked for is not looked at.
    assert np.isfinite(read_chunks(tmp_path / "array", (slice(0, 4), slice(None)), advice=ADVICE)).all()


def test_a_chunk_that_is_a_folder_is_named(tmp_path: Path) -> None:
    written(tmp_path / "array", np.ones((4, 4)))
    file = chunk_file(tmp_path / "array", 0, 0)
    file.unlink()
    file.mkdir()
    with pytest.raises(BankFormatError, match=str(file)):
        read_chunks(tmp_path / "array", advice=ADVICE, missing=True)


def test_other_layouts_are_not_known(tmp_path: Path) -> None:
    known = {"shape": (8, 8), "chunks": (4, 4), "dtype": "float64", "fill_value": float("nan")}
    packed = [BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()]

    def direct(**changes: object) -> bool:
        zarr.create_array(
            tmp_path / "array", overwrite=True, zarr_format=3, **known | {"compressors": packed} | changes
        )
        found = read_metadata(tmp_path / "array")
        assert found is not None
        return found.layout is not None

    assert direct()
    assert direct(dtype="float32")
    assert direct(shards=(8, 8))
    assert direct(shape=(8,), chunks=(4,))
    assert not direct(compressors=[ZstdCodec(), Crc32cCodec()])
    assert not direct(compressors=packed[:1])
    assert not direct(compressors=[BloscCodec(cname="zstd"), Crc32cCodec()])
    assert not direct(dtype="float16")
    assert not direct(fill_value=0.0)
    with pytest.raises(BankFormatError, match=r"zarr\.json: an array was expected"):
        read_chunks(tmp_path / "array")


def test_large_metadata_are_parsed_once_and_a_change_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    whole = metadata.parse_object
    monkeypatch.setattr(metadata, "parse_object", lambda text: parsed.append(len(text)) or whole(text))
    path, layout = tmp_path / "array", ArrayLayout((4, 4), (2, 2), "float64")
    names = {f"dataset {number}": f"{number:064d}" for number in range(2000)}
    write_array(path, layout, {"complete": names})
    first = read_layout(path)[1]
    first["complete"] = "what somebody puts into what was returned"
    assert read_layout(path) == (layout, {"complete": names})
    assert len(parsed) == 1
    write_array(path, layout, {"complete": names | {"dataset 0": "another"}})
    assert read_layout(path)[1]["complete"]["dataset 0"] == "another"
    file = path / "zarr.json"
    file.write_bytes(file.read_bytes().replace(b"another", b"changed"))
    for _ in range(2):  # what is refused is not kept
        with pytest.raises(BankFormatError, match="changed since it was written"):
            read_layout(path)
