"""Reads past the page cache give the bytes that are there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.arrays.uncached import UncachedReader
from bankdb.errors import BankFormatError
from tests.support.banks.stored_rows import write_rows


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uncached") / "file"
    path.write_bytes(os.urandom(50_000))
    return path


@settings(deadline=None)
@given(ranges=st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)), min_size=1, max_size=5))
def test_any_range_is_read_as_it_is_and_ends_with_the_file(file: Path, ranges: list[tuple[int, int]]) -> None:
    reader, content = UncachedReader(), file.read_bytes()
    for offset, length in ranges:
        assert bytes(reader.read(file, offset, length)) == content[offset : offset + length]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        UncachedReader().read(tmp_path / "none", 0, 10)


@pytest.mark.parametrize("columns", [1000, 131_072 * 2 + 77])
@pytest.mark.parametrize("half", [False, True])  # compressed, and plain
def test_rows_read_past_the_cache_are_those_read_through_it(tmp_path: Path, columns: int, half: bool) -> None:
    values = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float16 if half else np.float32)
    store = write_rows(tmp_path / "adapters.zarr", values.astype(np.float32))
    for start, stop in ((0, columns), (17, columns - 5)):
        panel = np.empty((2, stop - start), dtype=np.float32)
        store.read_into([2, 0], start, stop, panel, UncachedReader())
        np.testing.assert_array_equal(panel, values[[2, 0], start:stop].astype(np.float32))


def test_a_flipped_bit_and_a_truncated_file_are_errors(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((2, 5000)).astype(np.float32)
    store = write_rows(tmp_path / "adapters.zarr", values)
    whole = store.file(1).read_bytes()
    panel = np.empty((1, 5000), dtype=np.float32)
    for damaged in (whole[:900] + bytes([whole[900] ^ 1]) + whole[901:], whole[: len(whole) // 2], b""):
        store.file(1).write_bytes(damaged)
        with pytest.raises(BankFormatError, match=r"row 1.*damaged"):
            store.read_into([1], 0, 5000, panel, UncachedReader())
