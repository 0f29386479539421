"""Leave-one-out predictions of a whole bank: what is stored, what is computed again, and what is refused."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from bankdb.arrays.zarr_arrays import CHUNK_COLUMNS, open_array
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError, BankNotFoundError, ParameterError, PlanError
from bankdb.progress import SilentProgress
from bankdb.verify import verify
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.combination.plan import SHARD_ROWS, panel_bytes
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import distances
from compute.prediction.predict_all import PredictedBank, predict_all
from tests.support.banks.malformed_adapters import read_weights
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import create_bank, ingest_folder, write_pairs
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import (
    SyntheticBank,
    create_synthetic,
    draw_tokens,
    draw_vector,
    layout_of,
)

# Two chunks of columns and two shards of targets: four shards, of which three are cut off.
LAYOUT = layout_of(hidden=20_000, rank=2, layers=2)
N = SHARD_ROWS + 3
APPROACHES = ("attentional", "normalized", "uniform", "nearest", "oracle")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=2, processes=False), SilentProgress()) as opened:
        yield opened


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> SyntheticBank:
    """To be copied. Adapters are mixtures of a few, so that some predictions are good."""
    made = create_synthetic(tmp_path_factory.mktemp("template") / "bank", tokenizer_folder, LAYOUT)
    base = np.stack([draw_vector(1000 + k, LAYOUT.size) for k in range(5)])
    for seed in range(N):
        shares = np.random.default_rng(seed).dirichlet(np.ones(5)).astype(np.float32)
        vector = shares @ base + np.float32(0.1) * draw_vector(seed, LAYOUT.size)
        made.add(f"s{seed:02d}", draw_tokens(seed), vector.astype(np.float32))
    made.bank.close()
    return made


@pytest.fixture
def wide(template: SyntheticBank, tmp_path: Path) -> Iterator[SyntheticBank]:
    shutil.copytree(template.bank.path, tmp_path / "wide")
    with AdapterBank.open(tmp_path / "wide") as bank:
        copied = SyntheticBank(bank, LAYOUT, tmp_path / "adapter_config.json")
        copied.tokens |= template.tokens
        copied.vectors |= template.vectors
        yield copied


def stored(predicted: PredictedBank, name: str = "adapters") -> NDArray[np.float32]:
    return np.asarray(open_array(predicted.path / name)[:, :])


def assert_predictions(predicted: PredictedBank, theta: NDArray[np.float64]) -> None:
    found, weights = stored(predicted), stored(predicted, "coefficients")
    assert found.dtype == weights.dtype == np.float32
    np.testing.assert_array_equal(weights, predicted.coefficients.values.astype(np.float32))
    exact = weights.astype(np.float64) @ theta
    assert (np.abs(found - exact) <= 1e-6 * (weights.astype(np.float64) @ np.abs(theta))).all()


# -- values --------------------------------------------------------------------------------------------


def test_every_approach_is_the_product_and_never_uses_the_target_itself(
    wide: SyntheticBank, cluster: Cluster
) -> None:
    errors = {}
    for approach in APPROACHES:
        options = PredictionOptions(metric="js", approach=approach)
        predicted = predict_all_stored(wide.bank, options, cluster=cluster, weight_errors=True)
        values = predicted.coefficients.values
        assert (np.diag(values) == 0).all()
        assert (values >= 0).all()
        np.testing.assert_allclose(values.sum(axis=1), 1, rtol=0, atol=1e-12)
        np.testing.assert_allclose(predicted.coefficients.effective, 1 / (values**2).sum(axis=1))
        assert_predictions(predicted, wide.theta)
        difference = np.linalg.norm(values @ wide.theta - wide.theta, axis=1)
        np.testing.assert_allclose(
            predicted.relative_error, difference / np.linalg.norm(wide.theta, axis=1), rtol=1e-4
        )
        errors[approach] = predicted.relative_error
    for approach in APPROACHES:
        assert (errors["oracle"] <= errors[approach] * (1 + 1e-6)).all()
    assert errors["oracle"].mean() < 0.9 * errors["uniform"].mean()
    assert verify(wide.bank).clean


def test_coefficients_follow_from_the_distances(wide: SyntheticBank, cluster: Cluster) -> None:
    matrix = distances(wide.bank, "kl", cluster=cluster).to_xarray()
    names = list(matrix["target"].values)
    found = coefficients(
        wide.bank, PredictionOptions(metric="kl", approach="attentional", temperature=3), cluster=cluster
    ).to_xarray()
    assert found.dims == ("target", "source")
    assert list(found["target"].values) == list(found["source"].values) == names
    row = matrix.sel(target="s05").drop_sel(source="s05")
    expected = np.exp(-row.values / 3)
    expected /= expected.sum()
    np.testing.assert_allclose(found.sel(target="s05").drop_sel(source="s05"), expected, rtol=1e-9)
    assert float(found["effective_sources"].sel(target="s05")) == pytest.approx(1 / (expected**2).sum())


@pytest.mark.parametrize("compatible", ["correct", "published"])
def test_normalized_standardises_without_the_target_or_as_published_with_it(
    wide: SyntheticBank, cluster: Cluster, compatible: str
) -> None:
    options = PredictionOptions(metric="wd", approach="normalized", temperature=0.5, compatible=compatible)
    found = coefficients(wide.bank, options, cluster=cluster).values
    matrix = distances(wide.bank, "wd", compatible=compatible, cluster=cluster).values
    for i, row in enumerate(matrix):
        others = np.delete(row, i)
        over = row if compatible == "published" else others
        weights = np.exp(-(others - over.mean()) / over.std() / 0.5)
        np.testing.assert_allclose(np.delete(found[i], i), weights / weights.sum(), rtol=1e-9)


def test_uniform_nearest_and_the_temperatures_between_them(wide: SyntheticBank, cluster: Cluster) -> None:
    def values(**options: object) -> NDArray[np.float64]:
        chosen = PredictionOptions(metric="js", **options)  # type: ignore[arg-type]
        return np.asarray(coefficients(wide.bank, chosen, cluster=cluster).values)

    off_diagonal = ~np.eye(N, dtype=bool)
    uniform, nearest = values(approach="uniform"), values(approach="nearest")
    np.testing.assert_allclose(uniform, off_diagonal / (N - 1))
    matrix = distances(wide.bank, "js", cluster=cluster).values
    order = np.where(off_diagonal, matrix, np.inf).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.eye(N)[order])
    hot, cold = (values(approach="attentional", temperature=t) for t in (1e9, 1e-9))
    np.testing.assert_allclose(hot, uniform, atol=1e-6)
    np.testing.assert_allclose(cold, nearest, atol=1e-6)


def test_top_k_keeps_the_largest_and_reads_nothing_else(wide: SyntheticBank, cluster: Cluster) -> None:
    everything = coefficients(wide.bank, PredictionOptions(metric="js"), cluster=cluster).values
    predicted = predict_all_stored(wide.bank, PredictionOptions(metric="js", top_k=3), cluster=cluster)
    found = predicted.coefficients.values
    assert (np.count_nonzero(found, axis=1) == 3).all()
    for row, whole in zip(found, everything, strict=True):
        kept = np.flatnonzero(row)
        assert set(kept) == set(np.argsort(-whole)[:3])
        np.testing.assert_allclose(row[kept], whole[kept] / whole[kept].sum(), rtol=1e-12)
    assert_predictions(predicted, wide.theta)
    assert (predicted.coefficients.effective <= 3 + 1e-9).all()


def test_sources_of_other_scalings_are_brought_to_the_banks(
    tokenizer_folder: Path, tmp_path: Path, cluster: Cluster
) -> None:
    made = create_synthetic(tmp_path / "bank", tokenizer_folder, layout_of(hidden=6, rank=4))
    for seed, alpha in enumerate([8, 16, 2]):
        made.add(f"a{seed}", draw_tokens(seed), draw_vector(seed, made.layout.size), alpha=alpha)
    predicted = predict_all_stored(made.bank, PredictionOptions(approach="uniform"), cluster=cluster)
    is_b = np.concatenate([np.full(spec.size, ".lora_B." in spec.name) for spec in made.layout.tensors])
    theta = made.theta * np.where(is_b, np.array([[1], [2], [0.25]]), 1)
    assert_predictions(predicted, theta)
    made.bank.close()


def test_nearest_is_the_source_bit_for_bit_in_the_exported_file(
    bank: AdapterBank, pairs_folder: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """Sources of all three dtypes; each prediction is in its source's."""
    predicted = predict_all_stored(bank, PredictionOptions(approach="nearest"), cluster=cluster)
    predicted.save(tmp_path / "out")
    dtypes = set()
    for index, record in enumerate(predicted.coefficients.adapters):
        (source,) = np.flatnonzero(predicted.coefficients.values[index])
        source_name = predicted.coefficients.adapters[source].name
        written = tensors(tmp_path / "out" / record.name)
        assert written == tensors(pairs_folder / "adapters" / source_name)
        dtypes |= {dtype for dtype, _, _ in written.values()}
    assert len(dtypes) > 1


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    header, data = read_weights(folder)
    header.pop("__metadata__", None)
    return {
        name: (spec["dtype"], tuple(spec["shape"]), data[slice(*spec["data_offsets"])])
        for name, spec in header.items()
    }


# -- what is computed again ----------------------------------------------------------------------------


def test_the_same_again_does_nothing(wide: SyntheticBank, cluster: Cluster) -> None:
    first, second = RecordedProgress(), RecordedProgress()
    options = PredictionOptions(metric="js")
    before = predict_all_stored(wide.bank, options, cluster=cluster, weight_errors=True, progress=first)
    assert first.stages == {"distances jensen-shannon": 1, "gram": 2, "combine": 2}
    shards = {file: file.stat().st_mtime_ns for file in before.path.rglob("c/*/*")}
    after = predict_all_stored(wide.bank, options, cluster=cluster, weight_errors=True, progress=second)
    assert second.stages == {}
    assert after.run == wide.bank.runs.get(before.run.id)
    assert {file: file.stat().st_mtime_ns for file in after.path.rglob("c/*/*")} == shards
    np.testing.assert_array_equal(after.relative_error, before.relative_error)


def test_deleted_shards_are_computed_again(wide: SyntheticBank, cluster: Cluster) -> None:
    options = PredictionOptions(metric="js")
    predicted = predict_all_stored(wide.bank, options, cluster=cluster)
    before = stored(predicted)
    shards = sorted((predicted.path / "adapters").glob("c/*/*"))
    assert len(shards) == 4
    for gone in shards:
        gone.unlink()
        progress = RecordedProgress()
        predict_all_stored(wide.bank, options, cluster=cluster, progress=progress)
        assert progress.stages == {"combine": 1}
        np.testing.assert_array_equal(stored(predicted), before)
    for gone in (predicted.path / "coefficients" / "zarr.json", predicted.path, predicted.path.parent):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        predict_all_stored(wide.bank, options, cluster=cluster)
        np.testing.assert_array_equal(stored(predicted), before)


def test_lost_coefficients_are_told(wide: SyntheticBank, cluster: Cluster) -> None:
    predicted = predict_all_stored(wide.bank, PredictionOptions(metric="js"), cluster=cluster)
    shutil.rmtree(predicted.path / "coefficients" / "c")
    shutil.rmtree(predicted.path / "adapters" / "c")
    with pytest.raises(BankFormatError, match=r"delete predictions\.zarr"):
        predict_all_stored(wide.bank, PredictionOptions(metric="js"), cluster=cluster)


def test_a_run_that_was_interrupted_goes_on(
    wide: SyntheticBank, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PredictionOptions(metric="js")
    with monkeypatch.context() as patched:
        patched.setattr("compute.combination.predictions.run_tasks", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict_all_stored(wide.bank, options, cluster=cluster)
    progress = RecordedProgress()
    assert_predictions(predict_all_stored(wide.bank, options, cluster=cluster, progress=progress), wide.theta)
    assert progress.stages == {"combine": 1}


def _interrupted(*arguments: object, **named: object) -> Iterator[object]:
    from compute.cluster.tasks import run_tasks

    yield next(run_tasks(*arguments, **named))  # type: ignore[arg-type]
    raise KeyboardInterrupt


def test_adapters_that_come_and_go_make_another_run(wide: SyntheticBank, cluster: Cluster) -> None:
    options = PredictionOptions(metric="js")
    before = predict_all_stored(wide.bank, options, cluster=cluster)
    wide.add("later", draw_tokens(300), draw_vector(300, LAYOUT.size))
    progress = RecordedProgress()
    after = predict_all_stored(wide.bank, options, cluster=cluster, progress=progress)
    assert after.run.id != before.run.id
    assert_predictions(after, wide.theta)
    assert stored(after).shape == (N + 1, LAYOUT.size)
    wide.bank.remove("later")
    again = predict_all_stored(wide.bank, options, cluster=cluster)
    assert again.run.id == before.run.id
    assert_predictions(again, wide.theta)


def test_a_small_budget_gives_the_same(wide: SyntheticBank, cluster: Cluster) -> None:
    options = PredictionOptions(approach="uniform")
    before = predict_all_stored(wide.bank, options, cluster=cluster)
    values = stored(before)
    shutil.rmtree(before.path)
    least = panel_bytes(SHARD_ROWS, 1, N, CHUNK_COLUMNS, blocks=1)
    with open_cluster(ClusterOptions(workers=1, processes=False, memory=least), SilentProgress()) as poor:
        progress = RecordedProgress()
        after = predict_all_stored(wide.bank, options, cluster=poor, progress=progress)
        assert progress.stages == {"combine": 4}
    assert_predictions(after, wide.theta)
    np.testing.assert_allclose(stored(after), values, rtol=0, atol=1e-6)
    too_little = ClusterOptions(workers=1, processes=False, memory=least - 1)
    shutil.rmtree(before.path)
    with open_cluster(too_little, SilentProgress()) as poor, pytest.raises(PlanError, match="--memory"):
        predict_all_stored(wide.bank, options, cluster=poor)


def test_worker_processes_give_the_same_wherever_they_stand(
    wide: SyntheticBank, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank that was opened by a path that means nothing in the workers' folder."""
    options = PredictionOptions(metric="js")
    before = predict_all_stored(wide.bank, options, cluster=cluster, weight_errors=True)
    values = stored(before)
    for kind in ("distances", "distributions", "gram", "predictions"):
        shutil.rmtree(wide.bank.array_path(kind))
    with open_cluster(ClusterOptions(workers=2), SilentProgress()) as processes:
        monkeypatch.chdir(wide.bank.path.parent)
        with AdapterBank.open(wide.bank.path.name) as relative:
            after = predict_all_stored(relative, options, cluster=processes, weight_errors=True)
            np.testing.assert_array_equal(stored(after), values)
    np.testing.assert_array_equal(after.relative_error, before.relative_error)


# -- records -------------------------------------------------------------------------------------------


def test_each_prediction_is_recorded_with_what_it_is_made_of(
    wide: SyntheticBank, cluster: Cluster, tmp_path: Path
) -> None:
    options = PredictionOptions(metric="js", top_k=2)
    predicted = predict_all_stored(wide.bank, options, cluster=cluster, weight_errors=True)
    predicted.save(tmp_path / "out", dtype="float16")
    # Asked again for less: what is known stays.
    predict_all_stored(wide.bank, options, cluster=cluster)
    records = wide.bank.runs.predictions(predicted.run.id)
    assert [record.target for record in records] == list(wide.vectors)
    assert np.array_equal(stored(predicted, "coefficients"), predicted.coefficients.values.astype(np.float32))
    for index, record in enumerate(records):
        assert record.effective_sources == predicted.coefficients.effective[index]
        assert record.relative_error == predicted.relative_error[index]
        assert record.exported_to == str(tmp_path / "out" / record.target)
        assert record.export_dtype == "float16"
    assert wide.bank.runs.get(predicted.run.id).state == "done"


# -- errors --------------------------------------------------------------------------------------------


def test_an_empty_bank(empty_bank: AdapterBank, cluster: Cluster) -> None:
    with pytest.raises(BankNotFoundError, match="bank ingest"):
        predict_all(empty_bank, cluster=cluster)
    with pytest.raises(BankNotFoundError, match="bank ingest"):
        coefficients(empty_bank, PredictionOptions(approach="oracle"), cluster=cluster)


def test_a_bank_with_a_single_adapter(tokenizer_folder: Path, tmp_path: Path, cluster: Cluster) -> None:
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        ingest_folder(bank, write_pairs(tmp_path / "pairs", 1))
        for approach in APPROACHES:
            with pytest.raises(
                ParameterError, match="leave-one-out needs at least 2 adapters, the bank has 1"
            ):
                predict_all_stored(bank, PredictionOptions(approach=approach), cluster=cluster)
        assert not bank.array_path("predictions").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"approach": "best"},
        {"metric": "euclid"},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"compatible": "roughly"},
    ],
)
def test_options_are_refused_before_anything_is_computed(options: dict[str, object]) -> None:
    with pytest.raises(ParameterError):
        PredictionOptions(**options)  # type: ignore[arg-type]


def test_two_datasets_that_are_equal_are_no_trouble(wide: SyntheticBank, cluster: Cluster) -> None:
    wide.add("twin", draw_tokens(0), draw_vector(0, LAYOUT.size))
    for metric, approach in itertools.product(("js", "mmd"), ("attentional", "normalized", "nearest")):
        options = PredictionOptions(metric=metric, approach=approach)
        found = coefficients(wide.bank, options, cluster=cluster).to_xarray()
        assert np.isfinite(found).all()
        assert int(found.sel(target="twin").argmax("source")) == 0


def test_a_damaged_source_ends_the_command_without_an_export(bank: AdapterBank, tmp_path: Path) -> None:
    file = bank.store.file(4)
    file.write_bytes(file.read_bytes()[:200])
    out = tmp_path / "out"
    arguments = ["predict", "--bank", str(bank.path), "--all", "--approach", "uniform", "--workers", "1"]
    result = CliRunner().invoke(cli, [*arguments, "--export", str(out)])
    assert result.exit_code == 1
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("bank: error:")]
    assert "row 4" in message
    assert "bank verify --repair" in message
    assert not out.exists() or not list(out.iterdir())
    # Restored from its source, the same command ends well.
    assert verify(bank, repair=True).clean
    result = CliRunner().invoke(cli, [*arguments, "--export", str(out)])
    assert result.exit_code == 0, result.stderr
    assert len(list(out.iterdir())) == 6
