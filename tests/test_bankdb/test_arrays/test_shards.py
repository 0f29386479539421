"""Shards read and written directly are the ones that zarr reads and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from google_crc32c import value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from bankdb.arrays.shards import Shards
from bankdb.arrays.zarr_arrays import create_array, open_array
from bankdb.errors import BankFormatError

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


def values(rows: int, columns: int, dtype: str = "float32") -> np.ndarray:
    """Noise that was born in some dtype: half precision alone is worth compressing."""
    found = np.random.default_rng(0).standard_normal((rows, columns)).astype(dtype).astype(np.float32)
    if dtype == "float16":
        return found
    found.flat[::7] = -0.0
    found.flat[::11] = np.float32(1e-42)
    return found


shapes = st.tuples(
    st.integers(1, 40), st.integers(1, 50), st.integers(1, 20), st.integers(1, 17), st.integers(1, 4)
)


dtypes = st.sampled_from(["float16", "float32"])


@SOME
@given(shapes, dtypes, st.data())
def test_reads_what_zarr_wrote(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, data: st.DataObject
) -> None:
    rows, columns, *_ = shape
    array = make(tmp_path / "a", *shape)
    stored = values(rows, columns, dtype)
    array[:, :] = stored
    shards = Shards.of(open_array(tmp_path / "a"), tmp_path / "a", "do something")
    assert shards is not None
    row, start = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    stop = data.draw(st.integers(start + 1, columns))
    out = np.empty(stop - start, dtype=np.float32)
    shards.read(row, start, stop, out)
    assert np.array_equal(out.view(np.uint32), stored[row, start:stop].view(np.uint32))


@pytest.mark.slow
@SOME
@given(shapes, dtypes)
def test_zarr_reads_what_it_wrote(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    rows, columns, chunk, height, across = shape
    make(tmp_path / "a", *shape)
    stored = values(rows, columns, dtype)
    shards = Shards.of(open_array(tmp_path / "a"), tmp_path / "a", "do something")
    assert shards is not None
    for row in range(0, rows, height):
        for column in range(0, columns, chunk * across):
            shards.write(row, column, [stored[row : row + height, column : column + chunk * across]])
    found = np.asarray(open_array(tmp_path / "a")[:, :])
    assert np.array_equal(found.view(np.uint32), stored.view(np.uint32))
    assert not list((tmp_path / "a").rglob("*.partial"))


def test_shards_one_below_the_other_are_written_together(tmp_path: Path) -> None:
    array = make(tmp_path / "a", 11, 20, 5, 4, 2)
    stored = values(11, 20)
    shards = Shards.of(array, tmp_path / "a", "do something")
    for column in (0, 10):
        shards.write(0, column, [stored[row : row + 4, column : column + 10] for row in (0, 4, 8)])
    assert np.array_equal(np.asarray(open_array(tmp_path / "a")[:, :]), stored)


CHUNK = 8192
KINDS = {
    "noise": values(1, 2 * CHUNK),
    "float16": values(1, 2 * CHUNK, "float16"),
    "bfloat16": (values(1, 2 * CHUNK).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
    "one value": np.full((1, 2 * CHUNK), np.float32(0.1)),
    # Not what its first chunk says.
    "half noise": np.concatenate([np.zeros((1, CHUNK), np.float32), values(1, CHUNK)], axis=1),
    # Not what the first values of a chunk say.
    "noise at last": np.concatenate(
        [np.zeros((1, CHUNK + 5000), np.float32), values(1, CHUNK - 5000)], axis=1
    ),
}
PLAIN = 4 * CHUNK + 20  # header and checksum


@pytest.mark.parametrize("kind", KINDS)
def test_what_compresses_well_is_compressed_and_the_rest_is_plain(tmp_path: Path, kind: str) -> None:
    stored = KINDS[kind]
    shards = Shards.of(make(tmp_path / "a", 1, 2 * CHUNK, CHUNK, 1, 2), tmp_path / "a", "do something")
    shards.write(0, 0, [stored])
    size = shards.file(0, 0).stat().st_size - 36  # the index
    plain = {"noise": 2, "half noise": 1}.get(kind, 0)
    assert plain * PLAIN <= size <= plain * PLAIN + (2 - plain) * 0.75 * 4 * CHUNK + 40
    assert np.array_equal(np.asarray(open_array(tmp_path / "a")[:, :]).view("u4"), stored.view("u4"))
    for start, stop in ((0, 2 * CHUNK), (0, CHUNK), (CHUNK, 2 * CHUNK), (5, 9000), (CHUNK - 1, CHUNK + 1)):
        out = np.empty(stop - start, np.float32)
        shards.read(0, start, stop, out)
        assert np.array_equal(out.view("u4"), stored[0, start:stop].view("u4"))


def plain_file(path: Path) -> tuple[Shards, Path, bytes]:
    """A row in three plain chunks, the last one cut off."""
    shards = Shards.of(make(path, 1, 150, 64, 1, 3), path, "do something")
    shards.write(0, 0, [values(1, 150)])
    file = shards.file(0, 0)
    raw = file.read_bytes()
    assert len(raw) == 3 * (16 + 4 * 64 + 4) + 3 * 16 + 4
    return shards, file, raw


@pytest.mark.faults
@SOME
@given(bit=st.integers(0, 7), first=st.integers(0, 10))
def test_any_flipped_byte_of_plain_chunks_is_an_error(tmp_path: Path, bit: int, first: int) -> None:
    shards, file, raw = plain_file(tmp_path / "a")
    for position in range(first, len(raw), 11):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << bit
        file.write_bytes(flipped)
        with pytest.raises(BankFormatError, match="row 0"):
            shards.read(0, 0, 150, np.empty(150, np.float32))


@pytest.mark.parametrize("length", range(0, 880, 40))
def test_a_plain_file_cut_off_is_an_error(tmp_path: Path, length: int) -> None:
    shards, file, raw = plain_file(tmp_path / "a")
    file.write_bytes(raw[:length])
    with pytest.raises(BankFormatError, match="row 0"):
        shards.read(0, 0, 150, np.empty(150, np.float32))
    # The index alone, put back over less than it speaks of.
    file.write_bytes((raw[:length] + raw[-52:])[-len(raw) :])
    with pytest.raises(BankFormatError, match="row 0"):
        shards.read(0, 0, 150, np.empty(150, np.float32))


def test_a_plain_chunk_that_states_another_size_is_an_error(tmp_path: Path) -> None:
    """Though its checksum is right."""
    shards, file, raw = plain_file(tmp_path / "a")
    header = raw[:4] + (4 * 65).to_bytes(4, "little") + raw[8:16]
    body = header + raw[16 : 16 + 4 * 64]
    file.write_bytes(body + value(body).to_bytes(4, "little") + raw[len(body) + 4 :])
    for out in (np.empty(64, np.float32), np.empty(10, np.float32)):
        with pytest.raises(BankFormatError, match="row 0: chunk 0"):
            shards.read(0, 0, len(out), out)


def test_a_chunk_of_a_plain_ones_length_that_is_not_plain_is_decoded(tmp_path: Path) -> None:
    """The length is a guess, the flag decides: here a compressed chunk with bytes behind it."""
    shards, file, raw = plain_file(tmp_path / "a")
    stored = np.zeros(64, np.float32)
    packed = blosc.compress(stored, b"lz4", 5, blosc.BITSHUFFLE)
    body = packed + bytes(16 + 4 * 64 - len(packed))
    file.write_bytes(body + value(body).to_bytes(4, "little") + raw[len(body) + 4 :])
    out = np.empty(64, np.float32)
    shards.read(0, 0, 64, out)
    assert np.array_equal(out, stored)


def test_shards_appear_when_they_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun holds nothing of the blocks any more: they may change before the end."""
    shards = Shards.of(make(tmp_path / "a", 8, 64, 64, 4, 1), tmp_path / "a", "do something")
    assert shards is not None
    blocks = [values(4, 64), values(4, 64)]
    expected = np.concatenate(blocks)
    flushed: list[Path] = []
    monkeypatch.setattr("bankdb.arrays.shards.fsync_path", flushed.append)
    end = shards.begin(0, 0, blocks)
    assert not shards.file(0, 0).exists()
    assert flushed == []
    for block in blocks:
        block[:] = 0
    end()
    assert len(flushed) == 2
    read = np.empty((8, 64), np.float32)
    shards.read_rows(range(8), 0, 64, read)
    np.testing.assert_array_equal(read, expected)
    assert sorted(path for path in (tmp_path / "a" / "c").rglob("*") if path.is_file()) == [
        shards.file(0, 0),
        shards.file(4, 0),
    ]


@pytest.mark.parametrize("when", ["_begin_writing", "fsync_path"])
def test_a_full_disk_names_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    shards = Shards.of(make(tmp_path / "a", 8, 64, 64, 4, 1), tmp_path / "a", "do something")

    def full(path: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"bankdb.arrays.shards.{when}", full)
    with pytest.raises(OSError, match="No space left") as raised:
        shards.write(0, 0, [values(4, 64), values(4, 64)])
    assert raised.value.filename == str(shards.file(0, 0))
    assert [path for path in (tmp_path / "a" / "c").rglob("*") if path.is_file()] == []


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
