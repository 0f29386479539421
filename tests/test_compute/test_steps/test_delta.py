"""Combination in delta space against dense arithmetic: every product is formed and added up by NumPy."""

from __future__ import annotations

import json
import math
import shutil
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import compute.combination.delta
from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, ConflictError, ParameterError, PlanError
from bankdb.peft.config import scaling
from bankdb.peft.conversion.low_rank import truncate_matrix, truncate_product
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import load_adapter
from bankdb.records import AdapterRecord
from bankdb.scaled_rows import sources_of
from compute.approaches.options import PredictionOptions, check_rank
from compute.combination.combine import combine_one
from compute.combination.delta import DeltaAdapter, delta_adapter
from compute.combination.delta_shapes import DeltaForm, chosen_rank, delta_form, exact_rank
from compute.prediction.coefficients import coefficients
from compute.prediction.export import export_delta
from compute.prediction.predict import predict
from compute.prediction.predict_all import predict_all
from tests.support.banks.malformed_adapters import HIDDEN, LAYERS, TARGETS, write_good_adapter
from tests.support.banks.small_bank import create_bank, ingest_folder, write_dataset
from tests.support.banks.synthetic_bank import SyntheticBank, create_synthetic, draw_tokens, draw_vector

Float64 = NDArray[np.float64]

PREFIX = "base_model.model."
RANK = 3
# d_out, d_in: with five sources of rank 3 the factors of the first are stacked, the others added up.
SHAPES = {"model.layers.0.q": (40, 24), "model.layers.0.k": (6, 24), "model.layers.1.up": (30, 9)}
# alpha and rsLoRA of each source: scalings 8/3, 5/3, 1/sqrt(3), 12/sqrt(3), 3/3.
SCALINGS = [(8.0, False), (5.0, False), (1.0, True), (12.0, True), (3.0, False)]
WEIGHTS = np.asarray([0.4, 0.05, 0.25, 0.2, 0.1])


def layout_of(shapes: dict[str, tuple[int, int]], rank: int) -> AdapterLayout:
    tensors = {}
    for module, (d_out, d_in) in shapes.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = (rank, d_in)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = (d_out, rank)
    return AdapterLayout.from_shapes(tensors, rank, {module.split(".")[-1] for module in shapes})


def product(vector: NDArray[np.float32], layout: AdapterLayout, module: str) -> Float64:
    tensors = layout.unflatten(vector.astype(np.float64))
    return np.asarray(tensors[f"{PREFIX}{module}.lora_B.weight"] @ tensors[f"{PREFIX}{module}.lora_A.weight"])


def dense_sum(made: SyntheticBank, weights: Sequence[float] | Float64, module: str) -> Float64:
    """The sum of the products, each by its own alpha, rank and kind of scaling."""
    total = np.zeros(SHAPES[module])
    single = np.asarray(weights, dtype=np.float32).astype(np.float64)
    for weight, (alpha, use_rslora), vector in zip(single, SCALINGS, made.vectors.values(), strict=True):
        factor = alpha / (math.sqrt(RANK) if use_rslora else RANK)
        total += weight * factor * product(vector, made.layout, module)
    return total


def told(found: DeltaAdapter, module: str) -> Float64:
    """What PEFT adds to the module's weight, from the factors and what the configuration says."""
    form = found.form
    factor = form.alpha / (math.sqrt(form.layout.rank) if form.use_rslora else form.layout.rank)
    return factor * product(found.vector, form.layout, module)


def relative(found: Float64, expected: Float64) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def best(matrix: Float64, rank: int) -> tuple[Float64, float]:
    """The nearest matrix of a rank, and the energy that it retains, by the dense decomposition."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], float(np.sum(s[:rank] ** 2) / np.sum(s**2))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rslora"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path
) -> Iterator[SyntheticBank]:
    """Five adapters of all scalings; the first sets the bank's."""
    path = tmp_path_factory.mktemp("delta") / "bank"
    found = create_synthetic(path, tokenizer_folder, layout_of(SHAPES, RANK))
    order = list(enumerate(SCALINGS))
    if request.param:
        order = order[2:] + order[:2]
    for index, (alpha, use_rslora) in order:
        vector = draw_vector(index, found.layout.size)
        found.add(f"s{index}", draw_tokens(index), vector, alpha=alpha, use_rslora=use_rslora)
    # By name, as SCALINGS are.
    found.vectors = {f"s{index}": found.vectors[f"s{index}"] for index in range(5)}
    yield found
    found.bank.close()


def by_name(made: SyntheticBank) -> list[AdapterRecord]:
    return sorted(made.bank.adapters(), key=lambda record: record.name)


# -- the kernel ----------------------------------------------------------------------------------------


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Float64, Float64, int]:
    """B factors (R, d_out), A factors (R, d_in) and a rank; at times of less than full rank."""
    d_out, d_in, r = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 4))
    count, rank = draw(st.integers(1, 5)), draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    b = rng.normal(size=(count, r, d_out)) * 10.0 ** rng.integers(-3, 4, size=(count, 1, 1))
    a = rng.normal(size=(count, r, d_in))
    if draw(st.booleans()):
        a[:] = a[0]  # one initialisation for all
    if draw(st.booleans()):
        b[0] = 0
    return b.reshape(-1, d_out), a.reshape(-1, d_in), rank


@given(stacks(), st.sampled_from(["product", "matrix"]))
@settings(max_examples=300, deadline=None)
def test_both_ways_give_the_nearest_matrix_of_that_rank(
    stack: tuple[Float64, Float64, int], way: str
) -> None:
    b, a, rank = stack
    dense = b.T @ a
    found = truncate_product(b.copy(), a.copy(), rank) if way == "product" else truncate_matrix(dense, rank)
    size = np.linalg.norm(dense)
    assert found.b.shape == (b.shape[1], rank)
    assert found.a.shape == (rank, a.shape[1])
    assert 0 <= found.retained <= 1
    if size == 0:
        assert found.retained == 1
        assert not found.b.any()
        return
    nearest, energy = best(dense, rank)
    assert found.retained == pytest.approx(energy, abs=1e-12)
    # Of two equal singular values either may be kept: the distance is what is unique.
    error = np.linalg.norm(found.b @ found.a - dense)
    assert error == pytest.approx(np.linalg.norm(nearest - dense), abs=1e-7 * size)
    # What is claimed to be retained is what the factors hold.
    assert np.linalg.norm(found.b @ found.a) ** 2 / size**2 == pytest.approx(found.retained, abs=1e-12)


@given(stacks(), st.sampled_from(["product", "matrix"]))
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_at_the_exact_rank(stack: tuple[Float64, Float64, int], way: str) -> None:
    b, a, _ = stack
    dense = b.T @ a
    rank = exact_rank(len(b), b.shape[1], a.shape[1])
    found = truncate_product(b.copy(), a.copy(), rank) if way == "product" else truncate_matrix(dense, rank)
    # Cut below its side, a matrix loses 1e-16 of the energy: the Gram matrix squares its singular values.
    lost = 1e-8 if way == "matrix" and rank < min(dense.shape) else 1e-12
    np.testing.assert_allclose(found.b @ found.a, dense, atol=lost * max(np.linalg.norm(dense), 1e-300))
    assert found.retained == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("way", ["product", "matrix"])
def test_factors_are_balanced_and_orthogonal(way: str) -> None:
    rng = np.random.default_rng(0)
    b, a = rng.normal(size=(8, 20)), rng.normal(size=(8, 15))
    values = np.linalg.svd(b.T @ a, compute_uv=False)[:5]
    found = truncate_product(b.copy(), a.copy(), 5) if way == "product" else truncate_matrix(b.T @ a, 5)
    np.testing.assert_allclose(found.b.T @ found.b, np.diag(values), atol=1e-10)
    np.testing.assert_allclose(found.a @ found.a.T, np.diag(values), atol=1e-10)


def test_singular_values_of_all_sizes_are_reproduced() -> None:
    """The Gram matrix squares them: what it blurs is below the rounding of float32."""
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.normal(size=(30, 12)))[0] for _ in range(2))
    values = 10.0 ** -np.arange(12)
    matrix = (u * values) @ v.T
    for rank in (3, 7, 12, 30):
        found = truncate_matrix(matrix, rank)
        assert np.linalg.norm(found.b @ found.a - matrix) <= np.linalg.norm(values[rank:]) + 1e-8


def test_ranks() -> None:
    shapes = [(40, 24), (6, 24)]
    assert chosen_rank(None, 3, 15, shapes) == 3
    assert chosen_rank("full", 3, 15, shapes) == 15
    assert chosen_rank("full", 3, 30, shapes) == 24
    assert chosen_rank("full", 3, 3, shapes) == 3
    assert chosen_rank(24, 3, 6, shapes) == 24
    assert chosen_rank(None, 64, 64, [(6, 6)]) == 64  # a bank of a rank above its modules' own
    with pytest.raises(ParameterError, match="rank: expected at most 24, the largest rank of any module"):
        chosen_rank(25, 3, 15, shapes)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True, "all", ""])
def test_what_is_no_rank(rank: Any) -> None:
    with pytest.raises(ParameterError, match="rank: expected a whole number of at least 1, or 'full'"):
        check_rank(rank)
    with pytest.raises(ParameterError, match="rank: expected a whole number"):
        PredictionOptions(space="delta", rank=rank)


# -- adapters of a bank --------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(5))
def test_one_adapter_is_reproduced_whatever_its_scaling(made: SyntheticBank, index: int) -> None:
    weights = np.eye(5)[index]
    for rank in (None, "full"):
        found = delta_adapter(made.bank, by_name(made), weights, rank)
        assert found.form.layout == made.layout
        for module in SHAPES:
            assert relative(told(found, module), dense_sum(made, weights, module)) < 1e-6
            assert found.retained[module] == pytest.approx(1, abs=1e-12)


def test_the_sum_is_exact_at_full_rank(made: SyntheticBank) -> None:
    found = delta_adapter(made.bank, by_name(made), WEIGHTS, "full")
    assert found.form.layout.rank == 15
    for module in SHAPES:
        assert relative(told(found, module), dense_sum(made, WEIGHTS, module)) < 1e-6
        assert found.retained[module] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("rank", [None, 1, 4, 8, 24])
def test_a_cut_sum_is_the_nearest_of_that_rank(made: SyntheticBank, rank: int | None) -> None:
    found = delta_adapter(made.bank, by_name(made), WEIGHTS, rank)
    assert found.form.layout.rank == (rank or RANK)
    assert {name for name, _ in found.retained.items()} == set(SHAPES)
    for module in SHAPES:
        dense = dense_sum(made, WEIGHTS, module)
        nearest, energy = best(dense, rank or RANK)
        assert relative(told(found, module), nearest) < 1e-6
        assert found.retained[module] == pytest.approx(energy, abs=1e-9)


def test_negative_weights_are_sums_too(made: SyntheticBank) -> None:
    weights = np.asarray([0.9, -0.5, 0.3, 0.0, 0.3])
    found = delta_adapter(made.bank, by_name(made), weights, "full")
    assert found.form.layout.rank == 12
    for module in SHAPES:
        assert relative(told(found, module), dense_sum(made, weights, module)) < 1e-6


def test_the_prediction_in_the_banks_own_form(made: SyntheticBank) -> None:
    found = delta_adapter(made.bank, by_name(made), WEIGHTS)
    vector, retained = found.vector, found.retained
    assert vector.dtype == np.float32
    assert vector.shape == (made.layout.size,)
    for module in SHAPES:
        nearest, energy = best(dense_sum(made, WEIGHTS, module), RANK)
        assert made.bank.record.scaling is not None
        own = made.bank.record.scaling * product(vector, made.bank.layout, module)
        assert relative(own, nearest) < 1e-6
        assert retained[module] == pytest.approx(energy, abs=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 7, 24])
def test_alpha_is_a_whole_number_near_the_banks_scaling(made: SyntheticBank, rank: int) -> None:
    form = delta_form(made.bank, by_name(made), WEIGHTS, rank)
    about = made.bank.record
    assert form.alpha is not None
    assert float(form.alpha).is_integer()
    assert form.use_rslora == about.use_rslora
    assert form.scaling == scaling(form.alpha, rank, form.use_rslora)
    assert about.scaling is not None
    assert form.scaling == pytest.approx(about.scaling, abs=0.5 / (rank**0.5 if form.use_rslora else rank))
    if rank == RANK:
        assert form == DeltaForm(made.bank.layout, about.alpha or 0, bool(about.use_rslora))


@pytest.mark.parametrize("rank", [None, "full"])
def test_batches_of_sources_change_nothing(
    made: SyntheticBank, monkeypatch: pytest.MonkeyPatch, rank: str | None
) -> None:
    whole = delta_adapter(made.bank, by_name(made), WEIGHTS, rank)
    read: list[int] = []
    store = type(made.bank.store)
    original = store.read_into

    def counted(self: Any, rows: Sequence[int], *more: Any) -> Any:
        read.append(len(rows))
        return original(self, rows, *more)

    monkeypatch.setattr(store, "read_into", counted)
    # What the largest module needs beside the result with one source at a time, found by asking.
    low, high = 1, 1 << 24
    while low < high:
        middle = (low + high) // 2
        try:
            delta_adapter(made.bank, by_name(made), WEIGHTS, rank, memory=middle)
            high = middle
        except PlanError:
            low = middle + 1
    read.clear()
    folded = delta_adapter(made.bank, by_name(made), WEIGHTS, rank, memory=low)
    assert min(read) == 1
    for module in SHAPES:
        assert relative(told(folded, module), told(whole, module)) < 1e-6
        assert folded.retained[module] == pytest.approx(whole.retained[module], abs=1e-12)
    with pytest.raises(
        PlanError, match=r"delta space: model\.layers\..* of 5 sources needs .* MiB .*--memory"
    ):
        delta_adapter(made.bank, by_name(made), WEIGHTS, rank, memory=low - 1)


def test_memory_is_bounded(tmp_path: Path, tokenizer_folder: Path) -> None:
    """120 modules of thirty sources, 11 MiB in all: what is in use at once is what may be."""
    shapes = {f"model.layers.{layer}.q": (96, 96) for layer in range(120)}
    made = create_synthetic(tmp_path / "bank", tokenizer_folder, layout_of(shapes, 4))
    for seed in range(30):
        made.add(f"s{seed:02d}", draw_tokens(seed), draw_vector(seed, made.layout.size))
    adapters, weights = made.bank.adapters(), np.full(30, 1 / 30)
    whole = delta_adapter(made.bank, adapters, weights)
    memory = 8 * made.layout.size + (1 << 20)
    tracemalloc.start()
    found = delta_adapter(made.bank, adapters, weights, memory=memory)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * memory < 4 * made.layout.size * 30 / 2
    np.testing.assert_allclose(found.vector, whole.vector, atol=1e-6)
    made.bank.close()


@pytest.mark.parametrize("memory", [None, 1 << 20])
def test_the_same_on_any_number_of_cores(
    made: SyntheticBank, monkeypatch: pytest.MonkeyPatch, memory: int | None
) -> None:
    found = []
    for cores in (1, 2, 5):
        monkeypatch.setattr("compute.combination.delta.core_count", lambda cores=cores: cores)
        found.append(delta_adapter(made.bank, by_name(made), WEIGHTS, memory=memory))
    for other in found[1:]:
        assert other.vector.tobytes() == found[0].vector.tobytes()
        assert other.retained == found[0].retained


def test_what_is_not_used_is_not_read(made: SyntheticBank, tmp_path: Path) -> None:
    shutil.copytree(made.bank.path, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        adapters = sorted(bank.adapters(), key=lambda record: record.name)
        weights = np.asarray([0.5, 0.5, 0, 1e-60, 0])
        whole = delta_adapter(bank, adapters, weights)
        bank.store.delete(adapters[3].row)
        again = delta_adapter(bank, adapters, weights)
        assert again.vector.tobytes() == whole.vector.tobytes()
        bank.store.delete(adapters[1].row)
        with pytest.raises(BankFormatError, match=r"row \d is missing"):
            delta_adapter(bank, adapters, weights)


def test_a_damaged_row_is_named(made: SyntheticBank, tmp_path: Path) -> None:
    shutil.copytree(made.bank.path, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        record = bank.adapters()[1]
        row = record.row
        vector = bank.store.read(row)
        vector[7] = np.nan
        open_array(bank.store.path, mode="r+")[row, :] = vector
        # As if a faulty program had stored it so.
        stored = bank.store.read_stored(row)[1].checksums.tobytes()
        bank.ownership.set_checksums({row: (record.row_sha256, stored)})
        with pytest.raises(BankFormatError, match=rf"row {row} holds values that are not finite"):
            delta_adapter(bank, bank.adapters(), WEIGHTS)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0, 0, 0, 0, 0], [1, np.nan, 0, 0, 0], [1, np.inf, 0, 0, 0]])
def test_weights_that_are_none(made: SyntheticBank, weights: list[float]) -> None:
    with pytest.raises(ParameterError, match="weights: expected 5 finite numbers, not all zero"):
        delta_adapter(made.bank, by_name(made), np.asarray(weights, dtype=np.float64))


# -- options -------------------------------------------------------------------------------------------


def test_space_and_rank_are_checked_and_told() -> None:
    assert PredictionOptions().parameters() == {}
    assert PredictionOptions(space="delta", rank=7).parameters() == {"space": "delta", "rank": 7}
    with pytest.raises(ParameterError, match="space: expected one of factors, delta, found 'weights'"):
        PredictionOptions(space="weights")
    with pytest.raises(ParameterError, match="rank: goes with space delta, factors found"):
        PredictionOptions(rank=8)


def test_stored_predictions_are_of_factors(bank: AdapterBank) -> None:
    with pytest.raises(ParameterError, match="space: stored predictions are of factors, delta found"):
        predict_all(bank, PredictionOptions(space="delta"))
    assert not bank.runs.all("predictions")


def test_a_rank_that_is_too_large_is_refused_before_anything_is_computed(
    bank: AdapterBank, tmp_path: Path
) -> None:
    options = PredictionOptions(space="delta", rank=HIDDEN + 1)
    with pytest.raises(ParameterError, match=f"rank: expected at most {HIDDEN}"):
        coefficients(bank, options)
    with pytest.raises(ParameterError, match=f"rank: expected at most {HIDDEN}"):
        predict(bank, write_dataset(tmp_path / "new", 40), options)
    assert not bank.runs.all()


# -- folders -------------------------------------------------------------------------------------------


def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "provenance.json").read_text())  # type: ignore[no-any-return]


def inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*")}


@pytest.mark.parametrize("rank", [None, 7, "full"])
def test_a_folder_for_a_new_dataset(bank: AdapterBank, tmp_path: Path, rank: int | str | None) -> None:
    data = write_dataset(tmp_path / "new", 40)
    found = predict(bank, data, PredictionOptions(space="delta", rank=rank))
    folder = found.save(tmp_path / "out", dtype="float32")
    assert found.delta is not None
    expected_rank = {None: 4, 7: 7, "full": 16}[rank]
    read = load_adapter(folder)
    assert read.vector.tobytes() == found.vector.tobytes()
    assert (read.config.rank, read.config.scaling) == (expected_rank, found.delta.form.scaling)
    assert (read.layout == bank.layout) == (rank is None)
    assert read.layout.target_modules == bank.layout.target_modules
    record = provenance(folder)
    assert record["parameters"] == {"space": "delta", **({} if rank is None else {"rank": rank})}
    assert (record["rank"], record["alpha"]) == (expected_rank, read.config.alpha)
    assert (record["scaling"], record["use_rslora"]) == (read.config.scaling, False)
    assert record["retained_energy"] == dict(found.delta.retained)
    modules = [f"model.layers.{layer}.self_attn.{name}" for layer in range(LAYERS) for name in TARGETS]
    assert sorted(record["retained_energy"]) == sorted(modules)


def test_folders_of_all_are_kept_and_made_again(bank: AdapterBank, tmp_path: Path) -> None:
    found = coefficients(bank, PredictionOptions(space="delta"))
    out = tmp_path / "out"
    first = export_delta(bank, found, out)
    assert [one.folder for one in first] == [out / record.name for record in bank.adapters()]
    for index, one in enumerate(first):
        expected = delta_adapter(bank, found.adapters, found.values[index])
        assert load_adapter(one.folder, expected=bank.layout).vector.tobytes() == expected.vector.tobytes()
        assert one.retained == expected.retained == provenance(one.folder)["retained_energy"]
        assert all(0 < value < 1 for value in one.retained.values())
    assert not bank.array_path("predictions").exists()
    before = inodes(out)
    shutil.rmtree(out / "task003")
    again = export_delta(bank, found, out)
    assert again == first
    after = inodes(out)
    assert {name: before[name] for name in before if not name.startswith("task003")}.items() <= after.items()
    with pytest.raises(ConflictError, match="another prediction"):
        export_delta(bank, coefficients(bank, PredictionOptions(space="delta", rank=5)), out)
    with pytest.raises(ConflictError, match="another prediction"):
        export_delta(bank, found, out, dtype="float16")
    with pytest.raises(ParameterError, match="space: delta expected, factors found"):
        export_delta(bank, coefficients(bank, PredictionOptions()), out)


def test_a_kept_folder_is_not_computed(
    bank: AdapterBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = coefficients(bank, PredictionOptions(space="delta"))
    export_delta(bank, found, tmp_path / "out")
    monkeypatch.setattr(
        compute.combination.delta, "_combine_module", lambda *_: pytest.fail("computed again")
    )
    export_delta(bank, found, tmp_path / "out")


# -- what the average of factors loses -----------------------------------------------------------------


def draw_family(shared: bool, *, count: int = 8, d: int = 64, rank: int = 4) -> tuple[Float64, Float64]:
    """Adapters of one family: A near its initialisation, one for all or not, B of a few latent factors.

    As after training: B learns in whatever subspace its A spans, so that the products have one common part.
    """
    rng = np.random.default_rng(0)
    update = rng.normal(size=(d, d)) / d
    starts = rng.normal(size=(1 if shared else count, rank, d)) / np.sqrt(d)
    a = starts + 0.1 * rng.normal(size=(count, rank, d)) / np.sqrt(d)
    own = rng.normal(size=(count, d, d)) / d
    # The first step of B is the gradient through A: the update, projected onto the rows of A.
    b = (update + 0.5 * own) @ a.transpose(0, 2, 1)
    return b, a


def errors_of_both(b: Float64, a: Float64) -> tuple[float, float]:
    rank = a.shape[1]
    mean = (b @ a).mean(axis=0)
    stacked_b = b.transpose(0, 2, 1).reshape(-1, b.shape[1]) / len(b)
    cut = truncate_product(stacked_b, a.reshape(-1, a.shape[2]).copy(), rank)
    return relative(b.mean(axis=0) @ a.mean(axis=0), mean), relative(cut.b @ cut.a, mean)


def test_with_other_seeds_the_average_of_factors_loses_what_delta_space_keeps() -> None:
    factors, delta = errors_of_both(*draw_family(shared=False))
    assert delta < factors
    # The products of different adapters, B_i A_j, drown the mean: most of it is lost.
    assert factors > 0.9
    assert delta < 0.85
    same_factors, same_delta = errors_of_both(*draw_family(shared=True))
    assert same_delta < same_factors < 0.25 * factors


def test_orthogonal_adapters_show_the_loss_exactly() -> None:
    """n adapters in orthogonal subspaces, same norms: factors keep the mean over n, delta the best of rank r."""
    n, r, d = 4, 2, 16
    q = np.eye(d)
    a = np.stack([q[i * r : (i + 1) * r] for i in range(n)])
    b = a.transpose(0, 2, 1)
    factors, delta = errors_of_both(b, a)
    # mean(B) mean(A) = sum_ij B_i A_j / n^2: the right part at 1/n of its size, and all the crossed ones.
    expected = np.sqrt(((1 / n - 1 / n**2) ** 2 * n * r + (n**2 - n) * r / n**4) / (r / n))
    assert factors == pytest.approx(expected)
    assert delta == pytest.approx(np.sqrt(1 - 1 / n))


def test_a_bank_of_one_a_loses_nothing_either_way(tmp_path: Path, tokenizer_folder: Path) -> None:
    """With the same A everywhere both spaces are the same: the mean of B A is mean(B) A."""
    made = create_synthetic(tmp_path / "bank", tokenizer_folder, layout_of({"model.layers.0.q": (12, 10)}, 2))
    common = draw_vector(99, made.layout.size)
    ((start, stop),) = made.layout.b_segments()
    for index, (alpha, use_rslora) in enumerate(SCALINGS):
        vector = common.copy()
        vector[start:stop] = draw_vector(index, stop - start)
        made.add(f"s{index}", draw_tokens(index), vector, alpha=alpha, use_rslora=use_rslora)
    adapters = made.bank.adapters()
    found = delta_adapter(made.bank, adapters, WEIGHTS)
    vector, retained = found.vector, found.retained
    factors = combine_one(
        made.bank.store,
        sources_of(made.bank, adapters),
        WEIGHTS.astype(np.float32),
        chunk=made.layout.size,
        budget=1 << 26,
    )
    one, other = (product(v, made.layout, "model.layers.0.q") for v in (vector, factors))
    assert relative(one, other) < 1e-6
    assert retained["model.layers.0.q"] == pytest.approx(1, abs=1e-12)
    made.bank.close()


# -- PEFT itself ---------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("first", [0, 1], ids=["plain", "rslora"])
@pytest.mark.parametrize("rank", [None, 6, "full"])
def test_peft_adds_the_sum_of_the_products(
    tmp_path: Path, tokenizer_folder: Path, rank: int | str | None, first: int
) -> None:
    """Sources of other alpha and rsLoRA: the change of every weight that PEFT makes, against the dense sum."""
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    kinds = [{"lora_alpha": 8}, {"lora_alpha": 3, "use_rslora": True}, {"lora_alpha": 16}]
    kinds = kinds[first:] + kinds[:first]
    for index, options in enumerate(kinds):
        write_dataset(tmp_path / "pairs" / "datasets" / f"t{index}", index)
        write_good_adapter(tmp_path / "pairs" / "adapters" / f"t{index}", seed=index, **options)
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        ingest_folder(bank, tmp_path / "pairs")
        options = PredictionOptions(space="delta", rank=rank)
        found = predict(bank, write_dataset(tmp_path / "new", 40), options)
        folder = found.save(tmp_path / "out", dtype="float32")
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=HIDDEN,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(LlamaForCausalLM(config).eval(), str(folder)).eval()
    adapters = [load_adapter(tmp_path / "pairs" / "adapters" / record.name) for record in found.adapters]
    weights = found.coefficients.astype(np.float32).astype(np.float64)
    for layer in range(LAYERS):
        for target in TARGETS:
            module = f"model.layers.{layer}.self_attn.{target}"
            dense = np.zeros((HIDDEN, HIDDEN))
            for weight, adapter in zip(weights, adapters, strict=True):
                factor = adapter.config.alpha / (2 if adapter.config.use_rslora else 4)
                dense += weight * factor * product(adapter.vector, adapter.layout, module)
            nearest, _ = best(dense, {None: 4, 6: 6, "full": 12}[rank])
            tuned = loaded.get_submodule(f"base_model.model.{module}")
            added = tuned.get_delta_weight("default").detach().double().numpy()
            assert relative(added, nearest) < 1e-6
            if rank == "full":
                assert relative(added, dense) < 1e-6
