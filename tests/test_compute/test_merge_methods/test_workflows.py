"""Predictions by merge methods: one dataset, all of a bank in panels, and what is stored and told of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bankdb.errors import BankFormatError, ParameterError, PlanError
from bankdb.peft.weights import load_adapter
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.combination.merged.borders import plan_merged
from compute.combination.plan import panel_bytes
from compute.combination.runs import options_key, options_of
from compute.combination.tensors import combined_vector
from compute.evaluation.systems import system_of
from compute.merge_methods.method import METHODS, merge_method
from compute.prediction.coefficients import coefficients
from compute.prediction.folders.by_run import export_prediction
from compute.prediction.predict_all import predict_all
from tests.support.banks.synthetic_bank import (
    SyntheticBank,
    create_synthetic,
    draw_tokens,
    draw_vector,
    layout_of,
)

# Two panels of columns; tensors of 33,000 values do not end where panels do.
LAYOUT = layout_of(hidden=16_500, rank=2, layers=3)
N = 6
CHUNK = 131_072
MERGES = METHODS[1:]
LITTLE = panel_bytes(N, 1, N, CHUNK, blocks=1) + 17 * CHUNK


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Iterator[SyntheticBank]:
    """Sources of two scalings; one has many equal magnitudes, where trimming cuts."""
    found = create_synthetic(tmp_path_factory.mktemp("merged") / "bank", tokenizer_folder, LAYOUT)
    for seed in range(N):
        vector = draw_vector(seed, LAYOUT.size)
        if seed == 1:
            vector = np.round(vector).astype(np.float32)
        found.add(f"s{seed:02d}", draw_tokens(seed), vector, alpha=8 if seed % 3 else 5)
    yield found
    found.bank.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=2, processes=False), SilentProgress()) as opened:
        yield opened


def way(merge: str, **options: object) -> PredictionOptions:
    return PredictionOptions(metric="js", merge=merge, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("merge", "weights"),
    [*((merge, "convex") for merge in MERGES), ("ties", "peft"), ("magnitude-prune", "peft")],
)
def test_all_predictions_in_panels_are_those_of_one_after_another(
    made: SyntheticBank, cluster: Cluster, tmp_path: Path, merge: str, weights: str
) -> None:
    """In files, from a stored run, and from their coefficients; sources held, and in batches where that can be."""
    chosen = way(merge, merge_weights=weights, density=0.3)
    budgets = [1 << 30] if chosen.merge_method.elects else [1 << 30, LITTLE]
    for number, budget in enumerate(budgets):
        used = replace(cluster, task_budget=budget)
        predicted = predict_all(made.bank, chosen, cluster=used)
        predicted.save(tmp_path / f"{number}", dtype="float32", cluster=used)
    found = predicted.coefficients
    for index in (0, 1, N - 1):
        name, row = found.adapters[index].name, found.values[index].astype(np.float32)
        expected = combined_vector(made.bank, found.adapters, row, method=chosen.merge_method)
        np.testing.assert_array_equal(predicted.adapter(name), expected)
        for number in range(len(budgets)):
            written = load_adapter(tmp_path / f"{number}" / name).vector
            np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-5)
    one = export_prediction(
        made.bank, predicted.run.id, found.adapters[0].name, tmp_path / "one", dtype="float32"
    )
    first = combined_vector(
        made.bank, found.adapters, found.values[0].astype(np.float32), method=chosen.merge_method
    )
    np.testing.assert_array_equal(load_adapter(one).vector, first)
    record = json.loads((one / "provenance.json").read_text())
    assert record["parameters"] == chosen.parameters()
    assert f"merge method `{merge}`" in (one / "README.md").read_text()


def test_stored_numbers_of_several_methods_are_each_their_own(
    made: SyntheticBank, cluster: Cluster, tmp_path: Path
) -> None:
    ways = [way("linear"), way("ties"), way("magnitude-prune")]
    stored = predict_all(made.bank, ways, cluster=cluster, store="float32")
    assert len({one.run.id for one in stored}) == 3
    for one in stored:
        row = one.coefficients.values[2].astype(np.float32)
        method = one.coefficients.options.merge_method
        expected = combined_vector(made.bank, one.coefficients.adapters, row, method=method)
        np.testing.assert_allclose(one.adapter("s02"), expected, rtol=1e-4, atol=1e-5)
    again = predict_all(made.bank, ways, cluster=cluster)
    assert [one.run.id for one in again] == [one.run.id for one in stored]


def test_targets_of_one_source_are_copies(made: SyntheticBank, cluster: Cluster, tmp_path: Path) -> None:
    chosen = PredictionOptions(metric="js", approach="nearest", merge="ties", density=0.1)
    predicted = predict_all(made.bank, chosen, cluster=cluster)
    predicted.save(tmp_path / "out", dtype="float32", cluster=cluster)
    sums = predict_all(made.bank, PredictionOptions(metric="js", approach="nearest"), cluster=cluster)
    for name in ("s00", "s03"):
        written = load_adapter(tmp_path / "out" / name).vector
        np.testing.assert_array_equal(written, sums.adapter(name))
        np.testing.assert_array_equal(predicted.adapter(name), written)


@pytest.mark.parametrize("merge", ["dare-linear", "magnitude-prune"])
def test_a_density_of_one_is_the_weighted_sum(made: SyntheticBank, merge: str) -> None:
    found = coefficients(made.bank, way("linear"))
    row = found.values[4].astype(np.float32)
    merged = combined_vector(made.bank, found.adapters, row, method=merge_method(merge, 1.0))
    np.testing.assert_allclose(merged, combined_vector(made.bank, found.adapters, row), rtol=1e-5, atol=1e-6)


def test_seeds_drop_others_and_one_seed_the_same(made: SyntheticBank) -> None:
    found = coefficients(made.bank, way("linear"))
    row = found.values[0].astype(np.float32)
    one, again, other = (
        combined_vector(made.bank, found.adapters, row, method=merge_method("dare-linear", 0.5, seed=seed))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).mean() > 0.5


def test_threads_and_memory_change_nothing_and_too_little_is_an_error(made: SyntheticBank) -> None:
    found = coefficients(made.bank, way("linear"))
    row, method = found.values[0].astype(np.float32), merge_method("ties", 0.3)
    whole = combined_vector(made.bank, found.adapters, row, method=method)
    small = combined_vector(made.bank, found.adapters, row, 52 * 33_000, method=method)
    np.testing.assert_array_equal(whole, small)
    with pytest.raises(PlanError, match="a tensor of 33000 values needs 2 MiB, 1 MiB found; raise --memory"):
        combined_vector(made.bank, found.adapters, row, 1 << 20, method=method)


def test_ties_in_a_panel_without_all_sources_is_refused_before_any_work() -> None:
    ties = merge_method("ties")
    _, more = plan_merged(N, LAYOUT.size, 1, ties, chunk=CHUNK, budget=1 << 30)
    with pytest.raises(PlanError, match=r"merge ties: 6 sources .* raise --memory, or lower --workers"):
        plan_merged(N, LAYOUT.size, 1, ties, chunk=CHUNK, budget=LITTLE + more)
    plan, beside = plan_merged(N, LAYOUT.size, 1, merge_method("magnitude-prune"), chunk=CHUNK, budget=LITTLE)
    assert plan.memory + beside <= LITTLE


@pytest.mark.parametrize("merge", ["ties", "dare-linear"])
def test_a_row_that_is_no_number_is_named_and_not_dropped(
    tmp_path: Path, tokenizer_folder: Path, merge: str
) -> None:
    """A chunk that is missing reads as NaN, which neither has a sign nor is among the largest."""
    bad = create_synthetic(tmp_path / "bank", tokenizer_folder)
    bad.add_many(range(3))
    found = coefficients(bad.bank, way("linear"))
    vector = bad.vectors["s001"].copy()
    vector[3] = np.nan
    row = found.adapters[1].row
    shards = bad.bank.store._known_shards()
    shards.write(row, 0, [vector[None, :]], [])
    bad.bank.ownership.set_checksums({})
    records = [replace(one, checksums=None) for one in found.adapters]
    with pytest.raises(BankFormatError):
        combined_vector(bad.bank, records, np.full(3, 1 / 3, np.float32), method=merge_method(merge, 0.5))
    bad.bank.close()


def test_weight_errors_are_of_sums_alone(made: SyntheticBank) -> None:
    with pytest.raises(ParameterError, match="weight errors: of weighted sums alone, a merge method found"):
        predict_all(made.bank, way("ties"), weight_errors=True)


# -- keys ----------------------------------------------------------------------------------------------


def test_keys_of_sums_are_what_they_were_and_those_of_methods_are_read_again() -> None:
    old = options_key(PredictionOptions())
    before = (
        "version metric approach temperature top_k compatible kernel sigma protocol seed knots width epochs"
    )
    assert " ".join(old) == f"{before} leave_out space rank"
    for merge in MERGES:
        chosen = way(merge, density=0.25)
        assert options_of(json.loads(json.dumps(options_key(chosen)))) == chosen
        assert set(options_key(chosen)) - set(old) == set(chosen.merge_method.parameters())


def test_a_merged_system_is_not_the_papers_best_nor_the_baseline() -> None:
    assert system_of(way("linear")).is_papers_best
    merged = system_of(way("ties"))
    assert not merged.is_papers_best
    assert merged.name == (
        "jensen-shannon normalized (density 0.5, majority-sign total, merge ties, merge-weights convex)"
    )
    assert not system_of(PredictionOptions(approach="uniform", merge="ties")).is_uniform
