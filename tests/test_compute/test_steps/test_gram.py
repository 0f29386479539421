"""G = Theta Theta^T against double precision; what is computed again, and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import CHUNK_COLUMNS
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, ComputeError, PlanError
from bankdb.progress import SilentProgress
from bankdb.scaled_rows import Sources, sources_of
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.gram import matrix as gram_module
from compute.gram.matrix import gram_matrix
from compute.gram.slices import _panels, partial_gram
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.stored_rows import write_rows
from tests.support.banks.synthetic_bank import (
    SyntheticBank,
    create_synthetic,
    draw_tokens,
    draw_vector,
    layout_of,
)

# p = 2 * hidden * rank * layers: three chunks of columns, the last cut off.
LAYOUT = layout_of(hidden=20_000, rank=2, layers=4)
SLICES = -(-LAYOUT.size // CHUNK_COLUMNS)
N = 5


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=2, processes=False), SilentProgress()) as opened:
        yield opened


@pytest.fixture
def made(tokenizer_folder: Path, tmp_path: Path) -> Iterator[SyntheticBank]:
    """Rows of different magnitudes, two of them nearly the same, one of another scaling."""
    made = create_synthetic(tmp_path / "bank", tokenizer_folder, LAYOUT)
    for seed in range(N):
        vector = draw_vector(seed, LAYOUT.size) * np.float32(10.0 ** (seed - 2))
        if seed == N - 1:
            vector = made.vectors["a1"] + np.float32(1e-4) * vector / 100
        made.add(f"a{seed}", draw_tokens(seed), vector, alpha=16 if seed == 2 else 8)
    yield made
    made.bank.close()


def at_the_banks_scaling(made: SyntheticBank) -> NDArray[np.float64]:
    is_b = np.concatenate([np.full(spec.size, ".lora_B." in spec.name) for spec in LAYOUT.tensors])
    theta = made.theta
    for index, record in enumerate(made.bank.adapters()):
        theta[index, is_b] *= record.scaling / made.bank.record.scaling
    return theta


def compute(
    bank: AdapterBank, cluster: Cluster, progress: RecordedProgress | None = None
) -> NDArray[np.float64]:
    adapters = bank.adapters()
    with bank.computing(SilentProgress()):
        return gram_matrix(
            bank, adapters, sources_of(bank, adapters), cluster, progress or RecordedProgress()
        )


def assert_gram(found: NDArray[np.float64], theta: NDArray[np.float64]) -> None:
    """Within 1e-5 of the product of norms, entry by entry."""
    norms = np.linalg.norm(theta, axis=1)
    assert (np.abs(found - theta @ theta.T) <= 1e-5 * np.outer(norms, norms)).all()


def test_equals_double_precision(made: SyntheticBank, cluster: Cluster) -> None:
    progress = RecordedProgress()
    found = compute(made.bank, cluster, progress)
    assert found.dtype == np.float64
    assert progress.stages == {"gram": SLICES}
    assert_gram(found, at_the_banks_scaling(made))
    np.testing.assert_array_equal(found, found.T)
    # What the weight errors need of it: the squared distance of two adapters that are nearly the same.
    theta = at_the_banks_scaling(made)
    exact = ((theta[1] - theta[4]) ** 2).sum()
    assert found[1, 1] + found[4, 4] - 2 * found[1, 4] == pytest.approx(exact, abs=2e-6 * found[1, 1])


@given(st.integers(1, 6), st.integers(1, 20_000), st.integers(0, 2**20))
def test_a_part_equals_double_precision(rows: int, columns: int, seed: int) -> None:
    panel = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    exact = panel.astype(np.float64)
    assert_gram(partial_gram(panel, range(rows)), exact)
    norms = np.linalg.norm(exact, axis=1)
    some = list(range(0, rows, 2))
    difference = np.abs(partial_gram(panel, some) - exact[some] @ exact.T)
    assert (difference <= 1e-5 * np.outer(norms[some], norms)).all()


def test_computed_once(made: SyntheticBank, cluster: Cluster) -> None:
    before = compute(made.bank, cluster)
    progress = RecordedProgress()
    np.testing.assert_array_equal(compute(made.bank, cluster, progress), before)
    assert progress.stages == {}


def test_goes_on_where_it_was_interrupted(
    made: SyntheticBank, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tasks = gram_module.run_tasks

    def interrupted(*arguments: object, **named: object) -> Iterator[object]:
        yield next(run_tasks(*arguments, **named))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gram_module, "run_tasks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compute(made.bank, cluster)
    progress = RecordedProgress()
    assert_gram(compute(made.bank, cluster, progress), at_the_banks_scaling(made))
    assert progress.stages == {"gram": SLICES - 1}


def test_the_same_with_any_workers(made: SyntheticBank, cluster: Cluster) -> None:
    before = compute(made.bank, cluster)
    delete(made.bank)
    with open_cluster(ClusterOptions(workers=1, processes=False), SilentProgress()) as other:
        np.testing.assert_array_equal(compute(made.bank, other), before)


def test_only_new_adapters_are_computed(
    made: SyntheticBank, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compute(made.bank, cluster)
    made.bank.remove("a3")
    made.add("a3", draw_tokens(3), draw_vector(77, LAYOUT.size))
    made.add("a9", draw_tokens(9), draw_vector(9, LAYOUT.size))
    computed: list[int] = []
    run_tasks = gram_module.run_tasks

    def counting(*arguments: object, **named: object) -> Iterator[object]:
        computed.extend(len(task[3]) for task in arguments[3].values())  # type: ignore[attr-defined]
        yield from run_tasks(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(gram_module, "run_tasks", counting)
    found = compute(made.bank, cluster)
    assert computed == [2] * SLICES
    assert_gram(found, at_the_banks_scaling(made))
    np.testing.assert_array_equal(found, found.T)
    kept = [0, 1, 2, 4]  # of the first matrix; a3 was the fourth
    np.testing.assert_array_equal(found[:4, :4], before[np.ix_(kept, kept)])
    made.bank.remove("a0")
    np.testing.assert_array_equal(compute(made.bank, cluster), found[1:, 1:])
    assert computed == [2] * SLICES


def test_what_was_deleted_is_computed_again(made: SyntheticBank, cluster: Cluster) -> None:
    before = compute(made.bank, cluster)
    (made.bank.array_path("gram") / "gram" / "c" / "0" / "0").unlink()
    progress = RecordedProgress()
    np.testing.assert_array_equal(compute(made.bank, cluster, progress), before)
    assert progress.stages == {"gram": SLICES}
    delete(made.bank)
    np.testing.assert_array_equal(compute(made.bank, cluster), before)


def test_nothing_is_left_of_the_slices(made: SyntheticBank, cluster: Cluster) -> None:
    compute(made.bank, cluster)
    assert [item.name for item in made.bank.array_path("gram").iterdir() if item.is_dir()] == ["gram"]
    assert made.bank.runs.all("gram") == []


def test_what_a_killed_run_left_of_the_slices_goes(
    made: SyntheticBank, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums were in their place, and what they were made of was not deleted, or a part of it."""

    def killed(bank: AdapterBank, root: Path, keep: tuple[str, ...]) -> None:
        if bank.runs.all("gram")[0].state == "done":
            next(root.glob("part-*/c/*/*/*")).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gram_module, "delete_others", killed)
        with pytest.raises(KeyboardInterrupt):
            compute(made.bank, cluster)
    assert len(made.bank.runs.all("gram")) == 1
    progress = RecordedProgress()
    assert_gram(compute(made.bank, cluster, progress), at_the_banks_scaling(made))
    assert progress.stages == {}
    assert [item.name for item in made.bank.array_path("gram").iterdir() if item.is_dir()] == ["gram"]
    assert made.bank.runs.all("gram") == []


def delete(bank: AdapterBank) -> None:
    for file in sorted(bank.array_path("gram").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


def test_a_truncated_matrix_is_named(made: SyntheticBank, cluster: Cluster) -> None:
    compute(made.bank, cluster)
    chunk = made.bank.array_path("gram") / "gram" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(BankFormatError, match=r"delete .*gram"):
        compute(made.bank, cluster)


def test_a_damaged_row_is_named(made: SyntheticBank, cluster: Cluster) -> None:
    file = made.bank.store.file(3)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BankFormatError, match="row 3"):
        compute(made.bank, cluster)


def test_products_that_overflow_are_an_error(made: SyntheticBank, cluster: Cluster) -> None:
    made.add("large", draw_tokens(99), np.full(LAYOUT.size, 1e18, np.float32))
    with pytest.raises(ComputeError, match=f"rows {N} and {N} is not a finite number"):
        compute(made.bank, cluster)


def test_memory_that_is_not_enough(made: SyntheticBank) -> None:
    options = ClusterOptions(workers=1, processes=False, memory=1 << 20)
    with (
        open_cluster(options, SilentProgress()) as poor,
        pytest.raises(PlanError, match="--memory"),
    ):
        compute(made.bank, poor)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("past", [False, True])
def test_panels_read_ahead_and_past_the_cache_are_the_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool, past: bool
) -> None:
    values = np.random.default_rng(3).standard_normal((3, 131_072 * 2 + 100)).astype(np.float32)
    store = write_rows(tmp_path / "adapters.zarr", values)
    monkeypatch.setattr("compute.gram.slices.machine_memory", lambda: 0 if past else 2**40)
    sources = Sources(np.arange(3), np.ones(3, np.float32), ())
    starts = range(0, values.shape[1], store.chunk)
    found = [panel.copy() for panel in _panels(store, sources, starts, values.shape[1], ahead)]
    np.testing.assert_array_equal(np.concatenate(found, axis=1), values)
    assert list(_panels(store, sources, range(0), 0, ahead)) == []
