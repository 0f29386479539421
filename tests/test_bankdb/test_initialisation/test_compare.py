"""Who shares an initialisation: cosines of whole A factors by NumPy, and adapters of known seeds, are the oracles."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb import derived
from bankdb.arrays.adapter_store import AdapterStore
from bankdb.bank import AdapterBank
from bankdb.initialisation.compare import compare, grouped, sampled_columns
from bankdb.initialisation.shared import LISTED, Initialisations, initialisations_of, keys_of, known_of
from bankdb.peft.layout import AdapterLayout, modules_of
from bankdb.progress import SilentProgress
from tests.support.banks.malformed_adapters import read_weights, write_weights
from tests.support.banks.small_bank import ingest_folder
from tests.support.banks.stored_files import digests
from tests.test_bankdb.test_adapter_kinds import add, run


def drawn(seeds: list[int], width: int = 400, noise: float = 0.3) -> np.ndarray:
    """Samples of adapters whose A began with these seeds, each trained a little apart."""
    rows = []
    for place, seed in enumerate(seeds):
        begun = np.random.default_rng(seed).normal(size=width)
        rows.append(begun + noise * np.random.default_rng([place, 99]).normal(size=width))
    return np.asarray(rows, dtype=np.float32)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=14), st.data())
def test_groups_are_those_of_the_seeds(seeds: list[int], data: st.DataObject) -> None:
    samples = drawn(seeds)
    groups, nearest = grouped(samples, 0, [], [])
    together = [[a == b for b in groups] for a in groups]
    assert together == [[a == b for b in seeds] for a in seeds]
    unit = samples.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T - 3 * np.eye(len(seeds))
    for place, found in enumerate(nearest):
        expected = None if len(seeds) == 1 else cosines[place].max()
        assert found == (expected if expected is None else pytest.approx(expected, abs=2e-4))
    # Those that come later are compared with those before: the same as all at once.
    first = data.draw(st.integers(0, len(seeds)))
    before = grouped(samples[:first], 0, [], []) if first else ([], [])
    again = grouped(samples, first, *before)
    assert again[0] == groups
    assert again[1] == pytest.approx(nearest, abs=1e-4)


def test_two_groups_become_one_by_an_adapter_between() -> None:
    one, other = np.eye(2, dtype=np.float32)
    between = one + other
    assert grouped(np.stack([one, other]), 0, [], [])[0] == [0, 1]
    assert grouped(np.stack([one, other, between]), 2, [0, 1], [0.0, 0.0])[0] == [0, 0, 0]


def test_no_a_at_all_is_like_no_other() -> None:
    samples = np.zeros((3, 5), dtype=np.float32)
    assert grouped(samples, 0, [], []) == ([0, 1, 2], [0.0, 0.0, 0.0])


def layout_of(d_in: int, modules: int, rank: int = 4) -> AdapterLayout:
    tensors = {}
    for index in range(modules):
        tensors[f"base_model.model.m{index:03d}.lora_A.weight"] = (rank, d_in)
        tensors[f"base_model.model.m{index:03d}.lora_B.weight"] = (7, rank)
    return AdapterLayout.from_shapes(tensors, rank, ["m"])


@pytest.mark.parametrize(("d_in", "modules"), [(16, 4), (4096, 1), (64, 64), (512, 96), (4099, 3), (5, 1)])
def test_what_is_compared_are_columns_of_a(d_in: int, modules: int) -> None:
    layout = layout_of(d_in, modules)
    of_a = np.concatenate([np.arange(m.a.offset, m.a.offset + m.a.size) for m in modules_of(layout)])
    columns = sampled_columns(layout)
    assert np.isin(columns, of_a).all()
    assert (np.diff(columns) > 0).all()
    assert len(columns) == min(len(of_a), 512)
    # From everywhere: no part of the factors is left out.
    shares = np.histogram(np.searchsorted(of_a, columns), bins=8, range=(0, len(of_a)))[0]
    assert len(columns) < 16 or shares.min() > 0


def same_a(folder: Path, other: Path) -> None:
    """Give an adapter the A factors of another one."""
    header, data = read_weights(folder)
    source, of_source = read_weights(other)
    values = bytearray(data)
    for name, entry in header.items():
        if ".lora_A." in name:
            values[slice(*entry["data_offsets"])] = of_source[slice(*source[name]["data_offsets"])]
    write_weights(folder, header, bytes(values))


def test_a_bank_says_who_shares_one(tmp_path: Path, empty_bank: AdapterBank) -> None:
    first = add(tmp_path / "1", "a", 1)
    same_a(add(tmp_path / "1", "b", 2), first)
    output = run(empty_bank, "ingest", tmp_path / "1").output
    assert "initialisation: " not in output
    assert "the A factors of all 2 adapters share one" in run(empty_bank, "show").output
    assert "share one with 1 of 1 others; cosine to the nearest 1.00" in run(empty_bank, "show", "a").output
    add(tmp_path / "2", "c", 3)
    same_a(add(tmp_path / "2", "d", 4), first)
    result = run(empty_bank, "ingest", tmp_path / "2")
    (line,) = [line for line in result.output.splitlines() if line.startswith("initialisation: ")]
    assert "of the A factors of 4 adapters 3 share one, 1 has its own" in line
    assert "`--space delta` loses less" in line
    assert "its A factors have their own" in run(empty_bank, "show", "c").output
    # What is asked for a part of them, or after one has gone, is of those.
    run(empty_bank, "remove", "c")
    found = initialisations_of(empty_bank, empty_bank.adapters())
    assert found.told() == "the A factors of all 3 adapters share one"
    assert found.nearest == {}
    told = compare(empty_bank, SilentProgress())
    assert told is not None
    assert list(told.nearest.values()) == pytest.approx([1.0, 1.0, 1.0], abs=2e-6)
    assert "clean" in run(empty_bank, "verify").output


def test_it_is_the_same_however_the_bank_came_to_be(tmp_path: Path, empty_bank: AdapterBank) -> None:
    for index, name in enumerate("abcd"):
        add(tmp_path / name, name, index)
        ingest_folder(empty_bank, tmp_path / name)
    one_by_one = initialisations_of(empty_bank, empty_bank.adapters())
    place = empty_bank.array_path("initialisation")
    derived.delete_derived(
        empty_bank, place / next(item.name for item in Path(str(place)).iterdir() if item.is_dir())
    )
    assert "not compared yet" in run(empty_bank, "show").output
    at_once = compare(empty_bank, SilentProgress())
    assert at_once is not None
    assert at_once.groups == one_by_one.groups
    assert at_once.nearest == pytest.approx(one_by_one.nearest, abs=1e-4)


def test_what_an_ingest_stores_is_not_read_again_and_is_what_reading_gives(
    tmp_path: Path, empty_bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path / "pairs", "a0", 0)
    ingest_folder(empty_bank, tmp_path / "pairs")
    read: list[int] = []
    original = AdapterStore.read_into

    def noted(self: AdapterStore, rows: Sequence[int], *others: Any, **named: Any) -> None:
        read.extend(rows)
        original(self, rows, *others, **named)

    monkeypatch.setattr(AdapterStore, "read_into", noted)
    for name, seed in (("a1", 1), ("a2", 2)):
        add(tmp_path / "pairs", name, seed)
    ingest_folder(empty_bank, tmp_path / "pairs")
    assert read == []
    place = Path(str(empty_bank.array_path("initialisation")))
    taken = digests(place)
    shutil.rmtree(place)
    compare(empty_bank, SilentProgress())
    assert sorted(set(read)) == [0, 1, 2]
    assert digests(place) == taken


def test_adapters_of_several_chunks_are_compared_as_those_of_one(
    tmp_path: Path, empty_bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bankdb.initialisation.compare._CHUNK", 2)
    first = add(tmp_path / "0", "a0", 0)
    ingest_folder(empty_bank, tmp_path / "0")
    for index in range(1, 5):  # a chunk is begun, filled, and begun again
        folder = add(tmp_path / str(index), f"a{index}", index)
        if index % 2 == 0:
            same_a(folder, first)
        ingest_folder(empty_bank, tmp_path / str(index))
    found = initialisations_of(empty_bank, empty_bank.adapters())
    assert list(found.groups.values()) == [0, 1, 0, 3, 0]
    (array,) = [
        item for item in Path(str(empty_bank.array_path("initialisation"))).iterdir() if item.is_dir()
    ]
    assert sorted(item.parent.name for item in array.glob("c/*/0")) == ["0", "1", "2"]
    assert "clean" in run(empty_bank, "verify").output
    (array / "c" / "1" / "0").unlink()
    assert "the block is missing" in run(empty_bank, "verify").output


def test_what_one_shares_is_told_without_reading_the_others_records(
    tmp_path: Path, empty_bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(tmp_path, "a", 1)
    same_a(add(tmp_path, "b", 2), first)
    ingest_folder(empty_bank, tmp_path)
    by_records = initialisations_of(empty_bank, empty_bank.adapters())
    monkeypatch.setattr(AdapterBank, "adapters", lambda *_: pytest.fail("all records were read"))
    assert "share one with 1 of 1 others" in run(empty_bank, "show", "a").output
    assert known_of(empty_bank, keys_of(empty_bank)) == by_records


def test_an_ingest_does_not_wait_for_who_computes(tmp_path: Path, empty_bank: AdapterBank) -> None:
    add(tmp_path, "a", 1)
    with AdapterBank.open(empty_bank.path) as other, other.computing(SilentProgress()):
        assert ingest_folder(empty_bank, tmp_path).added == ["a"]
    assert "not compared yet" in run(empty_bank, "show").output


def test_what_cannot_be_written_does_not_undo_an_ingest(
    tmp_path: Path, empty_bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bankdb.initialisation.compare.write_chunks", full)
    add(tmp_path, "a", 1)
    report = ingest_folder(empty_bank, tmp_path)
    assert report.added == ["a"]
    assert "not compared: [Errno 28] No space left on device" in report.initialisations


@pytest.mark.parametrize(
    ("adapters", "groups", "expected"),
    [
        (1, [0], "of one adapter, nothing to compare with"),
        (3, [0, 0, 0], "the A factors of all 3 adapters share one"),
        (3, [0, 1, 2], "the A factors of all 3 adapters have each their own"),
        (4, [0, 0, 1, 1], "of the A factors of 4 adapters 2 share one, 2 another"),
        (5, [0, 0, 0, 1], "of the A factors of 5 adapters 3 share one, 1 has its own, 1 not compared yet"),
        (7, [0, 0, 1, 1, 2, 2, 3], "of the A factors of 7 adapters 2 share one, 2 another, 2 another, 1 has its own"),
        (11, [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4], "of the A factors of 11 adapters 3 share one, 2 another, 2 another, "
                                                "4 are in 2 smaller groups"),
        (2, [], "not compared yet; the next ingest compares them"),
    ],
)  # fmt: skip
def test_in_words(adapters: int, groups: list[int], expected: str) -> None:
    assert Initialisations(adapters, dict(enumerate(groups)), {}).told() == expected


def test_the_name_of_the_entries_is_the_one_that_verification_reads() -> None:
    assert LISTED == derived.LISTED
