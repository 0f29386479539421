"""Adapters of another rank: NumPy's dense products and its full decomposition are the oracles."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bankdb.errors import AdapterError
from bankdb.peft.conversion.ranks import cut, padded
from bankdb.peft.header import stored_as
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import SourceAdapter, load_adapter, source_file, taken_config
from bankdb.records import Taking
from tests.support.banks.malformed_adapters import BASE_MODEL, CONFIG, WEIGHTS, write_good_adapter

Float64 = NDArray[np.float64]
ADAPT = Taking(adapt_rank=True)


def layout_of(shapes: list[tuple[int, int]], rank: int) -> AdapterLayout:
    """Modules m0, m1, ... of shapes (d_out, d_in)."""
    tensors = {}
    for index, (d_out, d_in) in enumerate(shapes):
        tensors[f"base_model.model.m{index}.lora_A.weight"] = (rank, d_in)
        tensors[f"base_model.model.m{index}.lora_B.weight"] = (d_out, rank)
    return AdapterLayout.from_shapes(tensors, rank, [f"m{index}" for index in range(len(shapes))])


def drawn(layout: AdapterLayout, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in layout.tensors}


def products(tensors: dict[str, NDArray[np.float32]]) -> list[Float64]:
    """B A of each module, summed over the rank in its order: of a matrix product that is the library's choice."""
    names = sorted(name for name in tensors if ".lora_A." in name)
    return [
        sum_in_order(tensors[name.replace(".lora_A.", ".lora_B.")].astype(float), tensors[name].astype(float))
        for name in names
    ]


def sum_in_order(b: Float64, a: Float64) -> Float64:
    total = np.zeros((len(b), a.shape[1]))
    for column, row in zip(b.T, a, strict=True):
        total += np.multiply.outer(column, row)
    return total


SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_padding_changes_no_product(shapes: list[tuple[int, int]], rank: int, more: int, seed: int) -> None:
    tensors = drawn(layout_of(shapes, rank), seed)
    made = padded(tensors, layout_of(shapes, rank + more))
    for before, after in zip(products(tensors), products(made), strict=True):
        assert np.array_equal(before, after)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.integers(1, 4), st.integers(1, 8), st.integers(0, 2**31))
def test_a_cut_is_the_nearest_of_its_rank(
    shapes: list[tuple[int, int]], rank: int, more: int, seed: int
) -> None:
    """No matrix of the rank is nearer (Eckart and Young): the squares of the singular values that are left out."""
    tensors = drawn(layout_of(shapes, rank + more), seed)
    made, lost = cut(tensors, layout_of(shapes, rank))
    left_out, energies = [], []
    for before, after in zip(products(tensors), products(made), strict=True):
        values = np.linalg.svd(before, compute_uv=False)
        energies.append(float(values @ values))
        left_out.append(float(values[rank:] @ values[rank:]))
        assert np.linalg.matrix_rank(after, tol=1e-4) <= rank
        np.testing.assert_allclose(
            ((before - after) ** 2).sum(), left_out[-1], rtol=1e-4, atol=1e-6 * energies[-1]
        )
    assert lost.share == pytest.approx(sum(left_out) / sum(energies), abs=1e-9)
    shares = [one / energy for one, energy in zip(left_out, energies, strict=True)]
    assert lost.most == pytest.approx(max(shares), abs=1e-9)
    assert shares[int(lost.module.removeprefix("m"))] == pytest.approx(max(shares), abs=1e-9)


def test_nothing_is_lost_of_an_adapter_that_does_nothing() -> None:
    tensors = drawn(layout_of([(4, 5)], 3), 0)
    tensors["base_model.model.m0.lora_B.weight"][:] = 0
    made, lost = cut(tensors, layout_of([(4, 5)], 2))
    assert lost.share == 0.0
    assert not products(made)[0].any()


def delta(adapter: SourceAdapter) -> list[Float64]:
    return [adapter.config.scaling * one for one in products(adapter.layout.unflatten(adapter.vector))]


@pytest.fixture(scope="module")
def expected() -> AdapterLayout:
    """The layout of a bank of rank 4."""
    with tempfile.TemporaryDirectory() as folder:
        return load_adapter(write_good_adapter(Path(folder) / "one")).layout


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(
    ("rank", "options"),
    [(1, {}), (2, {"lora_alpha": 3}), (3, {"use_rslora": True}), (2, {"rank_pattern": {"q_proj": 2}})],
    ids=str,
)
def test_upward_the_delta_is_the_same(
    tmp_path: Path, expected: AdapterLayout, rank: int, options: dict[str, object], dtype: str
) -> None:
    folder = write_good_adapter(tmp_path / "one", seed=rank, dtype=dtype, r=rank, **options)
    own, taken = load_adapter(folder), load_adapter(folder, expected=expected, taking=ADAPT)
    assert taken.layout == expected
    assert taken.config.rank == 4
    assert not taken.config.use_rslora
    for before, after in zip(delta(own), delta(taken), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-15)
    assert f"rank {rank} padded with zeros to 4" in taken.notes[-1]
    assert taken.dtype == own.dtype
    assert not taken.is_cut
    as_written(tmp_path / "again", taken)


@pytest.mark.parametrize(
    ("rank", "options"), [(5, {}), (8, {"use_rslora": True}), (12, {"alpha_pattern": {"v": 8}})], ids=str
)
def test_downward_it_is_told_what_is_lost(
    tmp_path: Path, expected: AdapterLayout, rank: int, options: dict[str, object]
) -> None:
    folder = write_good_adapter(tmp_path / "one", seed=rank, dtype="F16", r=rank, **options)
    own, taken = load_adapter(folder), load_adapter(folder, expected=expected, taking=ADAPT)
    before, after = delta(own), delta(taken)
    lost = sum(((a - b) ** 2).sum() for a, b in zip(before, after, strict=True))
    share = 100 * lost / sum((one**2).sum() for one in before)
    assert f"rank {rank} cut to 4 in delta space: {share:.2g}% of its energy is lost" in taken.notes[-1]
    assert stored_as(taken.header) == taken.notes[-1]
    assert (taken.dtype, taken.is_cut) == ("float32", True)
    assert taken.config.scaling == pytest.approx(own.config.scaling, rel=1e-15)
    as_written(tmp_path / "again", taken)


def as_written(folder: Path, adapter: SourceAdapter) -> None:
    """What is stored of it is an adapter of the layout, which is read as it is."""
    folder.mkdir()
    (folder / CONFIG).write_text(adapter.config.text)
    (folder / WEIGHTS).write_bytes(source_file(adapter.vector, adapter.layout, adapter.header))
    again = load_adapter(folder, expected=adapter.layout)
    assert again.vector.tobytes() == adapter.vector.tobytes()
    assert again.config.scaling == adapter.config.scaling
    assert again.notes == ()
    assert again.header == adapter.header


def test_the_stored_configuration_is_known_without_the_data(tmp_path: Path, expected: AdapterLayout) -> None:
    folder = write_good_adapter(tmp_path / "one", r=8)
    taken = load_adapter(folder, expected=expected, taking=ADAPT)
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[:-64])
    assert taken_config(folder, expected, BASE_MODEL) == taken.config.text


@pytest.mark.parametrize(("rank", "how"), [(2, "padded with zeros"), (8, "cut in delta space")])
def test_without_the_option_it_is_refused_by_what_would_be_done(
    tmp_path: Path, expected: AdapterLayout, rank: int, how: str
) -> None:
    folder = write_good_adapter(tmp_path / "one", r=rank)
    with pytest.raises(AdapterError, match=f"rank 4 expected, {rank} found.*--adapt-rank it is taken, {how}"):
        load_adapter(folder, expected=expected)


def test_other_modules_are_refused_whatever_the_rank(tmp_path: Path, expected: AdapterLayout) -> None:
    folder = write_good_adapter(tmp_path / "one", r=8, target_modules=["q_proj", "k_proj"])
    with pytest.raises(AdapterError, match="target modules q_proj, v_proj expected, k_proj, q_proj found"):
        load_adapter(folder, expected=expected, taking=ADAPT)
