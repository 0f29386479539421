"""C @ Theta in panels and for single vectors, against dense arithmetic in double precision."""

from __future__ import annotations

import contextlib
import resource
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.shards import Shards
from bankdb.arrays.zarr_arrays import column_chunk, create_array, open_array
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, ComputeError
from bankdb.progress import SilentProgress
from bankdb.scaled_rows import Sources, read_scaled, sources_of
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions
from compute.combination.combine import combine_columns, combine_held, combine_one
from compute.combination.panel import combine_panel
from compute.combination.plan import SHARD_ROWS, SPARSE_STRIP, Panel, padded, panel_bytes, plan_panels
from compute.combination.products import accumulate, one_hot, product, sparse_product
from tests.support.banks.stored_rows import predict_all_stored, write_rows
from tests.support.banks.synthetic_bank import (
    SyntheticBank,
    create_synthetic,
    draw_tokens,
    draw_vector,
    layout_of,
)

Float32 = NDArray[np.float32]
N, PARAMETERS = 7, 150_001
CHUNK = column_chunk(PARAMETERS)
SEGMENTS = ((10, 60_000), (131_000, 131_100), (149_990, PARAMETERS))


@pytest.fixture(scope="module")
def theta() -> Float32:
    """Rows of different magnitudes, with negative zeros; two chunks of columns, the second cut off."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(N, PARAMETERS)).astype(np.float32) * 10.0 ** rng.integers(-3, 4, (N, 1))
    values[:, ::97] = -0.0
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def store(theta: Float32, tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    """Do not change it."""
    return write_rows(tmp_path_factory.mktemp("theta") / "adapters.zarr", theta)


def sources(ratios: Float32 | None = None) -> Sources:
    return Sources(np.arange(N), np.ones(N, np.float32) if ratios is None else ratios, SEGMENTS)


def scaled(theta: Float32, ratios: Float32) -> NDArray[np.float64]:
    result = theta.astype(np.float64)
    for start, stop in SEGMENTS:
        result[:, start:stop] *= ratios.astype(np.float64)[:, None]
    return result


def coefficients_of(seed: int, targets: int, density: float) -> Float32:
    """Rows that sum to 1: from one-hot to dense."""
    rng = np.random.default_rng(seed)
    values = rng.random((targets, N)) * (rng.random((targets, N)) < density)
    values[np.arange(targets), rng.integers(0, N, targets)] += 0.5
    return (values / values.sum(axis=1, keepdims=True)).astype(np.float32)


def assert_combined(found: Float32, weights: Float32, rows: NDArray[np.float64]) -> None:
    """Within 1e-6 of the sum of magnitudes, entry by entry."""
    exact = weights.astype(np.float64) @ rows
    magnitude = np.abs(weights).astype(np.float64) @ np.abs(rows)
    assert found.dtype == np.float32
    assert (np.abs(found - exact) <= 1e-6 * magnitude).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    targets=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    start=st.one_of(st.integers(0, PARAMETERS - 1), st.sampled_from([0, CHUNK - 1, CHUNK, PARAMETERS - 1])),
    width=st.one_of(st.integers(1, 3000), st.just(PARAMETERS)),
    batch=st.integers(1, N + 2),
    rescaled=st.booleans(),
)
def test_columns_equal_dense_arithmetic(
    store: AdapterStore,
    theta: Float32,
    seed: int,
    targets: int,
    density: float,
    start: int,
    width: int,
    batch: int,
    rescaled: bool,
) -> None:
    weights = coefficients_of(seed, targets, density)
    ratios = np.float32(2.0) ** np.random.default_rng(seed).integers(-1, 2, N).astype(np.float32)
    ratios = ratios if rescaled else np.ones(N, np.float32)
    stop = min(start + width, PARAMETERS)
    found = combine_columns(store, sources(ratios), weights, start, stop, batch)
    assert_combined(found, weights, scaled(theta, ratios)[:, start:stop])


@given(st.integers(0, 2**20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 50))
def test_accumulate_adds_in_place(seed: int, targets: int, batch: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    out = rng.normal(size=(targets, columns)).astype(np.float32)
    weights = rng.normal(size=(targets, batch)).astype(np.float32)
    rows = rng.normal(size=(batch, columns)).astype(np.float32)
    exact = out.astype(np.float64) + weights.astype(np.float64) @ rows
    accumulate(out, weights, rows)
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-5)


def test_a_one_hot_row_is_its_source_bit_for_bit(store: AdapterStore, theta: Float32) -> None:
    weights = np.eye(N, dtype=np.float32)[[3, 0, 3, 6]]
    weights = np.concatenate([weights, coefficients_of(1, 2, 1.0)])
    found = combine_columns(store, sources(), weights, 0, PARAMETERS, 2)
    assert np.signbit(found[0, ::97]).all()
    for target, source in enumerate([3, 0, 3, 6]):
        assert found[target].tobytes() == theta[source].tobytes()
    one = combine_one(store, sources(), weights[1], chunk=CHUNK, budget=1 << 26)
    assert one.tobytes() == theta[0].tobytes()


def test_one_hot_is_weight_one_alone() -> None:
    weights = np.array([[0, 1, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0.999, 0], [1, 1e-30, 0]], np.float32)
    assert one_hot(weights).tolist() == [1, -1, 2, -1, -1]


@pytest.mark.parametrize("budget", [1, 1 << 20, 1 << 23, 1 << 30])
def test_a_single_vector_equals_dense_arithmetic(store: AdapterStore, theta: Float32, budget: int) -> None:
    ratios = np.array([1, 0.5, 2, 1, 1, 4, 0.25], np.float32)
    weights = coefficients_of(9, 1, 0.7)
    found = combine_one(store, sources(ratios), weights[0], chunk=CHUNK, budget=budget)
    assert_combined(found[None, :], weights, scaled(theta, ratios))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    targets=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    width=st.sampled_from([1, 100, SPARSE_STRIP - 1, SPARSE_STRIP, 2 * SPARSE_STRIP + 3]),
)
def test_held_sources_give_what_batches_give(
    store: AdapterStore, theta: Float32, seed: int, targets: int, density: float, width: int
) -> None:
    weights = coefficients_of(seed, targets, density)
    which = np.flatnonzero(weights.any(axis=0))
    out = np.full((targets, width), np.nan, np.float32)
    combine_held(out, weights, which, read_scaled(store, sources(), which.tolist(), 0, width))
    assert_combined(out, weights, theta[:, :width].astype(np.float64))
    batches = combine_columns(store, sources(), weights, 0, width, 2)
    magnitude = np.abs(weights) @ np.abs(theta[:, :width])
    assert (np.abs(out - batches) <= 1e-6 * magnitude).all()
    for target in np.flatnonzero(one_hot(weights) >= 0):
        assert out[target].tobytes() == batches[target].tobytes()


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**20),
    targets=st.integers(1, 30),
    number=st.integers(1, 30),
    columns=st.sampled_from([1, 7, SPARSE_STRIP, SPARSE_STRIP + 1, 5000]),
    density=st.floats(0, 1),
)
def test_sparse_and_dense_products_are_the_same(
    seed: int, targets: int, number: int, columns: int, density: float
) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.random((targets, number)) * (rng.random((targets, number)) < density)).astype(np.float32)
    rows = rng.normal(size=(number, columns)).astype(np.float32)
    found = [np.full((targets, columns), np.nan, np.float32) for _ in range(2)]
    product(weights, rows, found[0])
    sparse_product(weights, rows, found[1])
    for values in found:
        assert_combined(values, weights, rows.astype(np.float64))


@pytest.mark.parametrize("rescaled", [False, True])
def test_threads_and_memory_do_not_change_a_single_vector(store: AdapterStore, rescaled: bool) -> None:
    """Not by a bit; a small chunk makes many parts to share among the threads."""
    ratios = np.array([1, 0.3, 2, 1, 1, 4, 0.25], np.float32) if rescaled else np.ones(N, np.float32)
    weights = coefficients_of(4, 1, 1.0)[0]
    expected = combine_one(store, sources(ratios), weights, chunk=1000, budget=1, threads=1)
    for threads in (2, 3, 16):
        for budget in (1, 1 << 16, 1 << 30):
            found = combine_one(store, sources(ratios), weights, chunk=1000, budget=budget, threads=threads)
            assert found.tobytes() == expected.tobytes()


# -- what is read --------------------------------------------------------------------------------------


@pytest.fixture
def damaged(theta: Float32, tmp_path: Path) -> AdapterStore:
    """A store of which row 2 is truncated and row 4 is gone."""
    store = write_rows(tmp_path / "adapters.zarr", theta[:, :1000])
    file = store.file(2)
    file.write_bytes(file.read_bytes()[:100])
    shutil.rmtree(store.file(4).parent)
    return AdapterStore(store.path)


def test_sources_without_weight_are_not_read(damaged: AdapterStore, theta: Float32) -> None:
    weights = coefficients_of(3, 5, 1.0)
    weights[:, [2, 4]] = 0
    found = combine_columns(damaged, sources(), weights, 0, 1000, 3)
    assert_combined(found, weights, theta[:, :1000].astype(np.float64))
    one = combine_one(damaged, sources(), weights[0], chunk=1000, budget=1 << 26)
    assert_combined(one[None, :], weights[:1], theta[:, :1000].astype(np.float64))


@pytest.mark.parametrize("row", [2, 4])
@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_a_damaged_source_that_is_needed_is_named(damaged: AdapterStore, row: int, weight: float) -> None:
    weights = np.zeros((1, N), np.float32)
    weights[0, row], weights[0, 0] = weight, 1 - weight
    for combine in (
        lambda: combine_columns(damaged, sources(), weights, 0, 1000, 3),
        lambda: combine_one(damaged, sources(), weights[0], chunk=1000, budget=1 << 26),
    ):
        with pytest.raises(BankFormatError, match=f"row {row}") as raised:
            combine()
        assert "bank verify --repair" in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_with_values_that_are_no_numbers_is_named(theta: Float32, tmp_path: Path, value: float) -> None:
    """Also where another target has no weight on it, whose zero times NaN is NaN."""
    rows = theta[:, :1000].copy()
    store = write_rows(tmp_path / "adapters.zarr", rows)
    rows[5, 333] = value
    open_array(store.path, mode="r+")[5, :] = rows[5]  # the store itself refuses it
    weights = np.zeros((2, N), np.float32)
    weights[0, [0, 5]], weights[1, [0, 1]] = 0.5, 0.5
    group = write_group(tmp_path / "group", weights, 1000)
    (panel,) = plan_panels(2, N, 1000, chunk=1000, budget=1 << 30)
    with pytest.raises(BankFormatError, match="row 5 holds values that are not finite"):
        combine_panel(str(store.path), (str(group),), sources(), panel, 1000)
    with pytest.raises(BankFormatError, match="row 5 holds values that are not finite"):
        combine_one(store, sources(), weights[0], chunk=1000, budget=1 << 26)
    assert np.isnan(np.asarray(open_array(group / "adapters")[:, :])).all()
    # Who does not use it is not disturbed.
    assert np.isfinite(combine_one(store, sources(), weights[1], chunk=1000, budget=1 << 26)).all()


def test_a_scaling_that_overflows_is_an_error(theta: Float32, tmp_path: Path) -> None:
    store = write_rows(tmp_path / "adapters.zarr", np.full((N, 1000), 100, np.float32))
    ratios = np.ones(N, np.float32)
    ratios[1] = 1e38
    weights = np.full((1, N), 1 / N, np.float32)
    with pytest.raises(ComputeError, match="overflowed float32"):
        combine_one(store, sources(ratios), weights[0], chunk=1000, budget=1 << 26)


# -- panels --------------------------------------------------------------------------------------------


def write_group(path: Path, weights: Float32, parameters: int) -> Path:
    targets, number = weights.shape
    chunk = column_chunk(parameters)
    path.mkdir()
    stored = create_array(
        path / "coefficients",
        shape=weights.shape,
        chunks=(targets, number),
        shards=None,
        dtype="float32",
        attributes={},
    )
    stored[:, :] = weights
    create_array(
        path / "adapters",
        shape=(targets, parameters),
        chunks=(1, chunk),
        shards=(SHARD_ROWS, chunk),
        dtype="float32",
        attributes={},
    )
    return path


@pytest.mark.parametrize("room", [1.0, 2.0, 100.0])
def test_panels_together_are_the_product(
    store: AdapterStore, theta: Float32, tmp_path: Path, room: float
) -> None:
    targets = 2 * SHARD_ROWS + 5
    weights = coefficients_of(2, targets, 0.6)
    group = write_group(tmp_path / "group", weights, PARAMETERS)
    budget = int(room * panel_bytes(SHARD_ROWS, 1, N, CHUNK, blocks=1))
    panels = plan_panels(targets, N, PARAMETERS, chunk=CHUNK, budget=budget)
    assert len(panels) == {1.0: 6, 2.0: 4, 100.0: 2}[room]
    assert {panel.held for panel in panels} == {room == 100}
    for panel in reversed(panels):
        written = combine_panel(str(store.path), (str(group),), sources(), panel, CHUNK)
        assert written == 4 * (panel.stop - panel.start) * (panel.target_stop - panel.target_start)
    found = np.asarray(open_array(group / "adapters")[:, :])
    assert_combined(found, weights, theta.astype(np.float64))


@pytest.mark.parametrize("density", [0.01, 1.0])
@pytest.mark.parametrize("held", [True, False])
def test_a_panel_stays_within_the_memory_it_was_planned_with(
    store: AdapterStore, tmp_path: Path, held: bool, density: float
) -> None:
    targets = 4 * SHARD_ROWS
    group = write_group(tmp_path / "group", coefficients_of(2, targets, density), PARAMETERS)
    block = SHARD_ROWS if held else targets
    panel = Panel(0, CHUNK, 0, targets, held, N if held else 3, block)
    arguments = (str(store.path), (str(group),), sources(), panel, CHUNK)
    combine_panel(*arguments)  # modules are loaded
    tracemalloc.start()
    combine_panel(*arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= panel_bytes(block, panel.batch, N, CHUNK, blocks=2 if held else 1)


@pytest.mark.parametrize("held", [True, False])
def test_several_runs_read_the_sources_once_and_each_is_as_if_it_were_alone(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    targets, runs = SHARD_ROWS + 5, 3
    weights = [coefficients_of(seed, targets, 1.0) for seed in range(runs)]
    for values in weights:
        values[:, 3] = 0
    read: list[int] = []
    read_into = AdapterStore.read_into

    def counting(self: AdapterStore, rows: list[int], *arguments: object) -> None:
        read.extend(rows)
        read_into(self, rows, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(AdapterStore, "read_into", counting)
    together = [write_group(tmp_path / f"a{i}", values, PARAMETERS) for i, values in enumerate(weights)]
    rows = (runs - 1) * padded(targets) + targets
    panel = Panel(0, CHUNK, 0, rows, held, N if held else 2, SHARD_ROWS if held else rows)
    combine_panel(str(store.path), [str(group) for group in together], sources(), panel, CHUNK)
    assert sorted(read) == [row for row in range(N) if row != 3]
    alone = Panel(0, CHUNK, 0, targets, held, panel.batch, SHARD_ROWS if held else targets)
    for i, values in enumerate(weights):
        group = write_group(tmp_path / f"b{i}", values, PARAMETERS)
        combine_panel(str(store.path), [str(group)], sources(), alone, CHUNK)
        found, expected = (np.asarray(open_array(g / "adapters")[:, :CHUNK]) for g in (together[i], group))
        if held:
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# -- what cannot be written ----------------------------------------------------------------------------


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A limit of the kernel's on what this process writes, as sudden as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("held", [True, False])
def test_a_file_that_cannot_be_written_is_named(store: AdapterStore, tmp_path: Path, held: bool) -> None:
    targets = 3 * SHARD_ROWS + 1
    group = write_group(tmp_path / "group", coefficients_of(2, targets, 1.0), PARAMETERS)
    panel = Panel(0, CHUNK, 0, targets, held, N, SHARD_ROWS if held else targets)
    # The last shard, of one row, is the only one that would fit.
    with (
        files_no_larger_than(8 * CHUNK),
        pytest.raises(ComputeError, match=r"adapters/c/[012]/0: cannot be written \(File too large\)"),
    ):
        combine_panel(str(store.path), (str(group),), sources(), panel, CHUNK)
    left = [path for path in (group / "adapters" / "c").rglob("*") if path.is_file()]
    assert left in ([], [group / "adapters" / "c" / "3" / "0"])
    combine_panel(str(store.path), (str(group),), sources(), panel, CHUNK)
    assert np.isfinite(np.asarray(open_array(group / "adapters")[:, :CHUNK])).all()


def test_a_folder_that_cannot_be_made_is_named(store: AdapterStore, tmp_path: Path) -> None:
    group = write_group(tmp_path / "group", coefficients_of(2, 3, 1.0), PARAMETERS)
    (group / "adapters" / "c").write_text("in the way")
    (panel, _) = plan_panels(3, N, PARAMETERS, chunk=CHUNK, budget=1 << 30)
    with pytest.raises(ComputeError, match=r"adapters/c/0.*: cannot be written \(Not a directory\)"):
        combine_panel(str(store.path), (str(group),), sources(), panel, CHUNK)


def test_coefficients_that_are_gone_are_an_error(store: AdapterStore, tmp_path: Path) -> None:
    group = write_group(tmp_path / "group", coefficients_of(2, 3, 1.0), PARAMETERS)
    shutil.rmtree(group / "coefficients" / "c")
    (panel, _) = plan_panels(3, N, PARAMETERS, chunk=CHUNK, budget=1 << 30)
    with pytest.raises(BankFormatError, match=r"coefficients: lacks chunks; delete predictions\.zarr"):
        combine_panel(str(store.path), (str(group),), sources(), panel, CHUNK)


@pytest.mark.parametrize("later", [False, True])
def test_what_could_not_be_written_is_not_done(
    mixed_scalings: SyntheticBank, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    """At once, or when what was written is flushed."""
    bank = mixed_scalings.bank
    with open_cluster(ClusterOptions(workers=1, processes=False), SilentProgress()) as cluster:
        with monkeypatch.context() as patched:

            def full(*arguments: object) -> None:
                raise OSError(28, "No space left on device", "somewhere/0")

            patched.setattr(Shards, "begin", (lambda *_: full) if later else full)
            with pytest.raises(ComputeError, match="somewhere/0: cannot be written"):
                predict_all_stored(bank, PredictionOptions(approach="uniform"), cluster=cluster)
        (run,) = bank.runs.all("predictions")
        assert bank.runs.done_pieces(run.id) == {}
        predicted = predict_all_stored(bank, PredictionOptions(approach="uniform"), cluster=cluster)
    assert np.isfinite(np.asarray(open_array(predicted.path / "adapters")[:, :])).all()


# -- scaling -------------------------------------------------------------------------------------------


@pytest.fixture
def mixed_scalings(tokenizer_folder: Path, tmp_path: Path) -> Iterator[SyntheticBank]:
    """Rank 4; scalings 2 (the bank's), 4, 4 by rsLoRA (8 / sqrt 4), and 0.25."""
    made = create_synthetic(tmp_path / "bank", tokenizer_folder, layout_of(hidden=8, rank=4, layers=3))
    for seed, options in enumerate(
        [{"alpha": 8}, {"alpha": 16}, {"alpha": 8, "use_rslora": True}, {"alpha": 1}]
    ):
        made.add(f"a{seed}", draw_tokens(seed), draw_vector(seed, made.layout.size), **options)  # type: ignore[arg-type]
    yield made
    made.bank.close()


def test_the_update_of_each_module_is_combined_at_its_own_scaling(mixed_scalings: SyntheticBank) -> None:
    """A one-hot prediction at the bank's scaling is the same update scaling * B @ A as its source's."""
    bank, layout = mixed_scalings.bank, mixed_scalings.layout
    adapters = bank.adapters()
    assert [record.scaling for record in adapters] == [2, 4, 4, 0.25]
    assert bank.record.scaling == 2
    for index, record in enumerate(adapters):
        weights = np.zeros(4, np.float32)
        weights[index] = 1
        vector = combine_one(bank.store, sources_of(bank, adapters), weights, chunk=layout.size, budget=1)
        ours, its = layout.unflatten(vector), layout.unflatten(mixed_scalings.vectors[record.name])
        for name, matrix in ours.items():
            if ".lora_B." in name:
                a = name.replace(".lora_B.", ".lora_A.")
                np.testing.assert_array_equal(ours[a], its[a])
                update = 2 * matrix.astype(np.float64) @ ours[a]
                expected = record.scaling * its[name].astype(np.float64) @ its[a]
                np.testing.assert_allclose(update, expected, rtol=1e-12)


def test_factors_are_combined_separately_at_one_scaling(mixed_scalings: SyntheticBank) -> None:
    bank, layout = mixed_scalings.bank, mixed_scalings.layout
    adapters = bank.adapters()
    weights = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    vector = combine_one(bank.store, sources_of(bank, adapters), weights, chunk=layout.size, budget=1)
    for name, tensor in layout.unflatten(vector).items():
        factors = [record.scaling / 2 if ".lora_B." in name else 1.0 for record in adapters]
        parts = [layout.unflatten(mixed_scalings.vectors[record.name])[name] for record in adapters]
        exact = sum(
            float(w) * factor * part.astype(np.float64)
            for w, factor, part in zip(weights, factors, parts, strict=True)
        )
        np.testing.assert_allclose(tensor, exact, rtol=0, atol=1e-6)


def test_any_columns_are_read_at_the_banks_scaling(mixed_scalings: SyntheticBank) -> None:
    """Wherever the columns are cut, B columns alone are multiplied."""
    bank, layout = mixed_scalings.bank, mixed_scalings.layout
    found = sources_of(bank, bank.adapters())
    whole = read_scaled(bank.store, found, [1, 3], 0, layout.size)
    is_b = np.concatenate([np.full(spec.size, ".lora_B." in spec.name) for spec in layout.tensors])
    for position, (name, ratio) in enumerate([("a1", 2.0), ("a3", 0.125)]):
        expected = mixed_scalings.vectors[name] * np.where(is_b, np.float32(ratio), np.float32(1))
        np.testing.assert_array_equal(whole[position], expected)
    for start in range(0, layout.size, 7):
        for stop in range(start + 1, layout.size + 1, 11):
            np.testing.assert_array_equal(
                read_scaled(bank.store, found, [1, 3], start, stop), whole[:, start:stop]
            )


def test_sources_are_those_of_the_bank(bank: AdapterBank) -> None:
    adapters = bank.adapters()
    bank.remove(adapters[1].name)
    left = bank.adapters()
    found = sources_of(bank, left)
    assert found.rows.tolist() == [record.row for record in left]
    assert found.ratios.tolist() == [1.0] * len(left)
