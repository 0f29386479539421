"""The verbs of `compute`: one way and many, any kind of cluster, and results that show and save themselves."""

from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bankdb
import compute
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import write_dataset

UNIFORM = compute.PredictionOptions(approach="uniform")
NORMALIZED = compute.PredictionOptions()
WAYS = [UNIFORM, NORMALIZED]
LONGEST_TEXT, LONGEST_HTML = 800, 20_000


@pytest.fixture(scope="module")
def shared(bank_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bankdb.AdapterBank]:
    """One bank for all tests that only look at results."""
    folder = tmp_path_factory.mktemp("shared") / "bank"
    shutil.copytree(bank_template, folder)
    with bankdb.open(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("new") / "mine", 50)


def values_of(result: Any) -> np.ndarray:
    if isinstance(result, compute.Prediction):
        return result.vector
    return np.asarray(result.coefficients if isinstance(result, compute.PredictedBank) else result.values)


# -- one way, or many ----------------------------------------------------------------------------------

VERBS: dict[str, Callable[..., Any]] = {
    "distances": lambda bank, data, ways: compute.distances(bank, ways),
    "coefficients": lambda bank, data, ways: compute.coefficients(bank, ways),
    "predict": lambda bank, data, ways: compute.predict(bank, data, ways),
    "predict_all": lambda bank, data, ways: compute.predict_all(bank, ways),
}


@pytest.mark.parametrize("verb", VERBS)
def test_one_way_gives_a_result_and_many_give_a_list(
    shared: bankdb.AdapterBank, data: Path, verb: str
) -> None:
    ways = [compute.PredictionOptions(metric="kl"), NORMALIZED]
    several = VERBS[verb](shared, data, ways)
    assert isinstance(several, list)
    for way, one in zip(ways, several, strict=True):
        alone = VERBS[verb](shared, data, way)
        assert type(alone) is type(one)
        np.testing.assert_array_equal(values_of(alone), values_of(one))
    (first,) = VERBS[verb](shared, data, tuple(ways[:1]))
    np.testing.assert_array_equal(values_of(first), values_of(several[0]))
    assert VERBS[verb](shared, data, []) == []
    assert not np.array_equal(values_of(several[0]), values_of(several[1]))


def test_the_default_way_is_the_one_that_is_recommended(shared: bankdb.AdapterBank, data: Path) -> None:
    np.testing.assert_array_equal(compute.distances(shared).values, compute.distances(shared, "js").values)
    np.testing.assert_array_equal(compute.coefficients(shared), compute.coefficients(shared, NORMALIZED))
    assert compute.predict(shared, data).options == NORMALIZED
    assert compute.predict_all(shared).coefficients.options == NORMALIZED


def test_metrics_by_name_or_options(shared: bankdb.AdapterBank) -> None:
    by_name = compute.distances(shared, ["wasserstein", "mmd"], kernel="gaussian", sigma=3.0)
    gaussian = compute.PredictionOptions(metric="mmd", kernel="gaussian", sigma=3.0)
    by_options = compute.distances(shared, [compute.PredictionOptions(metric="wd"), gaussian])
    for one, other in zip(by_name, by_options, strict=True):
        assert one.metric == other.metric
        np.testing.assert_array_equal(one.values, other.values)
    with pytest.raises(bankdb.ParameterError, match="metric"):
        compute.distances(shared, "nonsense")


def test_combinations_of_names() -> None:
    found = compute.combinations("all", ["normalized", "uniform", "neural"], temperature=2.0, width=8)
    four = ["wasserstein", "kullback-leibler", "jensen-shannon", "mmd"]
    assert [(way.metric, way.approach) for way in found] == [
        *((metric, "normalized") for metric in four),
        ("wasserstein", "uniform"),  # of no metric: once
        *((metric, "neural") for metric in four),
    ]
    # Each reads what is its own.
    assert {(way.temperature, way.width) for way in found if way.approach == "normalized"} == {(2.0, 4000)}
    assert {(way.temperature, way.width) for way in found if way.approach == "neural"} == {(1.0, 8)}
    assert compute.combinations() == [NORMALIZED]
    assert len(compute.combinations(["js", "jensen-shannon"])) == 1
    with pytest.raises(bankdb.ParameterError, match="temperature"):
        compute.combinations("js", "ridge", temperature=2.0)


# -- results -------------------------------------------------------------------------------------------


def few_lines(result: Any, *words: str) -> None:
    """A result is shown in a few lines, also in a notebook, however large it is."""
    text = repr(result)
    assert len(text) < LONGEST_TEXT
    assert "array(" not in text
    assert str(result) == text
    for word in words:
        assert word in text
    html = result._repr_html_()
    assert html.startswith("<div>")
    assert len(html) < LONGEST_HTML


def again(result: Any) -> Any:
    return pickle.loads(pickle.dumps(result))


def test_a_distance_matrix_is_shown_saved_and_named(shared: bankdb.AdapterBank, tmp_path: Path) -> None:
    matrix = compute.distances(shared, "kl")
    few_lines(matrix, "kullback-leibler", "6 targets x 6 sources", "median")
    array = matrix.to_xarray()
    assert (array.name, array.dims) == ("kullback-leibler", ("target", "source"))
    assert array.sel(target="task001", source="task004").item() == matrix.values[1, 4]
    with matrix.save(tmp_path / "kl.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["target", *matrix.names]
    assert [row[0] for row in rows] == matrix.names
    np.testing.assert_array_equal([[float(x) for x in row[1:]] for row in rows], matrix.values)
    with pytest.raises(bankdb.ConflictError, match="already there"):
        matrix.save(tmp_path / "kl.csv")
    matrix.save(tmp_path / "kl.csv", overwrite=True)
    np.testing.assert_array_equal(again(matrix).values, matrix.values)


def test_coefficients_are_shown_saved_and_named(shared: bankdb.AdapterBank, tmp_path: Path) -> None:
    found = compute.coefficients(shared, compute.PredictionOptions(temperature=0.5))
    few_lines(found, "jensen-shannon normalized (temperature 0.5)", "effective sources")
    array = found.to_xarray()
    np.testing.assert_allclose(array["effective_sources"], 1 / (found.values**2).sum(axis=1), rtol=1e-14)
    assert float(array.sel(target="task002").sum()) == pytest.approx(1)
    text = found.save(tmp_path / "c.csv").read_text()
    assert text.splitlines()[2].split(",")[1] == repr(float(found.values[1, 0]))
    assert again(found).options == found.options


def test_a_prediction_is_shown_saved_and_named(
    shared: bankdb.AdapterBank, data: Path, tmp_path: Path
) -> None:
    prediction = compute.predict(shared, data)
    largest = shared.adapters()[int(prediction.coefficients.argmax())].name
    few_lines(prediction, "Prediction for mine", "of 6", f"largest sources: {largest}")
    table = prediction.to_xarray()
    assert float(table["coefficients"].sum()) == pytest.approx(1)
    assert table["distances"].sel(source=largest).item() == prediction.distances.min()
    assert prediction.sources()[0][0] == largest
    # Saved after it was pickled, and without its bank: all that is written is in it.
    folder = again(prediction).save(tmp_path / "out", dtype="float32")
    record = json.loads((folder / "provenance.json").read_text())
    assert record["sources"][0]["name"] == largest
    assert record["dtype"] == "float32"
    with pytest.raises(bankdb.ConflictError):
        prediction.save(folder)
    kept = (folder / "adapter_model.safetensors").read_bytes()
    prediction.save(folder, dtype="bfloat16", overwrite=True)
    assert len((folder / "adapter_model.safetensors").read_bytes()) < len(kept)


def test_predictions_of_a_bank_are_shown_and_saved(shared: bankdb.AdapterBank, tmp_path: Path) -> None:
    predicted = compute.predict_all(shared, weight_errors=True)
    few_lines(predicted, "6 adapters by leave-one-out", "relative weight error", f"run: {predicted.run.id}")
    table = predicted.to_xarray()
    np.testing.assert_array_equal(table["relative_error"], predicted.relative_error)
    np.testing.assert_array_equal(table["coefficients"], predicted.coefficients.values)
    folders = predicted.save(tmp_path / "all")
    assert [folder.name for folder in folders] == [record.name for record in shared.adapters()]
    assert all((folder / "adapter_config.json").is_file() for folder in folders)
    assert "relative_error" not in compute.predict_all(shared, UNIFORM).to_xarray()


def test_names_of_a_bank_are_no_html(shared: bankdb.AdapterBank) -> None:
    named = tuple(dataclasses.replace(record, name="<b>x</b>") for record in shared.adapters())
    matrix = dataclasses.replace(compute.distances(shared), adapters=named)
    assert "<b>" not in matrix._repr_html_()
    empty = compute.DistanceMatrix((), np.empty((0, 0)), "<script>")
    assert "<script>" not in empty._repr_html_()
    assert "0 targets" in repr(empty)


# -- clusters ------------------------------------------------------------------------------------------


@pytest.fixture
def local() -> Iterator[Any]:
    """A Dask cluster of two threads, as a notebook may have one; its client is not the default."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def fresh(bank: bankdb.AdapterBank) -> None:
    """Forget what is derived, so that it is computed again."""
    for kind in ("distances", "gram", "predictions", "distributions"):
        shutil.rmtree(bank.array_path(kind), ignore_errors=True)


def dashboards(progress: RecordedProgress) -> list[str]:
    return [note.removeprefix("dashboard: ") for note in progress.notes if note.startswith("dashboard")]


@pytest.mark.parametrize("verb", ["distances", "coefficients", "predict_all", "report", "predict"])
def test_a_client_runs_the_work_and_stays_open(
    bank: bankdb.AdapterBank, data: Path, local: Any, verb: str
) -> None:
    verbs: dict[str, Callable[..., Any]] = {
        "distances": compute.distances,
        "coefficients": lambda bank, **cluster: compute.coefficients(bank, NORMALIZED, **cluster),
        "predict_all": compute.predict_all,
        "report": lambda bank, **cluster: compute.report(bank, None, WAYS, **cluster),
        "predict": lambda bank, **cluster: compute.predict(
            bank, data, compute.PredictionOptions(approach="ridge"), **cluster
        ),
    }
    progress = RecordedProgress()
    verbs[verb](bank, cluster=local, progress=progress)
    assert dashboards(progress) == [local.dashboard_link]
    assert local.status == "running"
    assert local.submit(int, "3").result() == 3


def test_every_kind_of_cluster_gives_the_same(bank: bankdb.AdapterBank, local: Any) -> None:
    expected = compute.distances(bank).values
    kinds = [compute.ClusterOptions(processes=False, workers=1), compute.ClusterOptions(workers=1), local]
    for kind in kinds:
        fresh(bank)
        np.testing.assert_array_equal(compute.distances(bank, cluster=kind).values, expected)


def test_the_default_client_of_a_notebook_is_used_and_ours_is_never_the_default(
    bank: bankdb.AdapterBank, local: Any
) -> None:
    from distributed import Client

    progress = RecordedProgress()
    with local.as_current():
        compute.distances(bank, progress=progress)
    assert dashboards(progress) == [local.dashboard_link]
    assert local.status == "running"
    fresh(bank)
    inside: list[bool] = []

    def look(_: str) -> None:
        with pytest.raises(ValueError, match="No clients"):
            Client.current()
        inside.append(True)

    compute.distances(bank, progress=(threads := RecordedProgress(look)))
    assert inside
    assert dashboards(threads) != [local.dashboard_link]


def test_a_default_client_that_cannot_be_waited_for_is_left_alone(
    bank: bankdb.AdapterBank, local: Any
) -> None:
    from distributed import Client

    closed = Client(local.scheduler.address, set_as_default=False)
    with closed.as_current():
        closed.close()
        progress = RecordedProgress()
        compute.distances(bank, progress=progress)
    assert dashboards(progress) != [local.dashboard_link]


def test_what_is_no_cluster_is_refused_before_anything_runs(bank: bankdb.AdapterBank, local: Any) -> None:
    from distributed import Client

    for wrong in ("tcp://127.0.0.1:1", local.cluster, 3):
        with pytest.raises(
            bankdb.ParameterError, match=r"expected ClusterOptions, a distributed\.Client, or None"
        ):
            compute.distances(bank, cluster=wrong)  # type: ignore[call-overload]
    closed = Client(local.scheduler.address, set_as_default=False)
    closed.close()
    with pytest.raises(
        bankdb.ParameterError, match="expected a client that is connected, found one that is closed"
    ):
        compute.distances(bank, cluster=closed)
    assert not bank.array_path("distances").exists()


def test_workers_of_a_client_are_compared_with_this_process(
    bank: bankdb.AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        compute.distances(bank, "js", cluster=client)
        monkeypatch.setattr("compute.cluster.workers.code_digest", lambda: "another")
        with pytest.raises(bankdb.ComputeError, match=r"has other code of lora-bank \([0-9a-f]{12}\)"):
            compute.distances(bank, "wd", cluster=client)
        with client.as_current(), pytest.raises(bankdb.ComputeError, match=r"default client was taken"):
            compute.distances(bank, "wd")
        assert client.status == "running"


def test_a_cluster_without_workers_is_told(bank: bankdb.AdapterBank) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.raises(bankdb.ComputeError, match="the scheduler has no workers"),
    ):
        compute.distances(bank, cluster=client)


def test_an_empty_bank_starts_nothing(empty_bank: bankdb.AdapterBank) -> None:
    progress = RecordedProgress()
    for verb in (compute.distances, compute.coefficients, compute.predict_all):
        with pytest.raises(bankdb.BankNotFoundError, match="no adapters"):
            verb(empty_bank, cluster=compute.ClusterOptions(), progress=progress)
    assert progress.notes == []


# -- evaluations by weights, reports, forecasts --------------------------------------------------------


def test_weights_are_evaluated_between_baselines_and_the_bound(
    shared: bankdb.AdapterBank, tmp_path: Path
) -> None:
    table = compute.evaluate(shared, NORMALIZED, leave_out="adapter", weights_only=True)
    found = {row.options.approach: float(np.nanmean(row.errors.relative)) for row in table.rows}
    assert list(found) == ["uniform", "nearest", "normalized", "oracle"]
    assert found["oracle"] == min(found.values())
    predicted = compute.predict_all(shared, NORMALIZED, weight_errors=True)
    assert found["normalized"] == pytest.approx(float(np.mean(predicted.relative_error)))
    few_lines(table, "6 targets, 4 ways", "jensen-shannon, normalized, adapter left out")
    assert table.save(tmp_path / "w.csv").read_text().startswith("metric,approach,leave_out")
    with pytest.raises(bankdb.ConflictError):
        table.save(tmp_path / "w.csv")
    alone = compute.evaluate(shared, [NORMALIZED, UNIFORM], weights_only=True, baselines=False)
    assert [row.options.approach for row in alone.rows] == ["normalized", "uniform"]


def test_ways_and_what_they_leave_out() -> None:
    from compute.evaluation.systems import evaluated_ways, with_baselines

    paper = evaluated_ways(None, None)
    assert len(paper) == 12
    assert {way.approach for way in paper} == {"attentional", "normalized", "neural"}
    assert [way.leave_out for way in evaluated_ways(NORMALIZED, "both")] == ["adapter", "group"]
    grouped = compute.PredictionOptions(leave_out="group")
    assert evaluated_ways([grouped], None) == [grouped]
    found = [(way.approach, way.leave_out) for way in with_baselines([NORMALIZED, grouped])]
    assert found == [
        (approach, left_out)
        for left_out in ("adapter", "group")
        for approach in ("uniform", "nearest", "normalized")
    ]
    assert [way.approach for way in with_baselines([])] == ["uniform", "nearest"]


def test_a_report_is_written_and_shown(shared: bankdb.AdapterBank, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    page = compute.report(shared, out, WAYS, title="A <title>")
    assert out.read_text() == page.html
    assert "A &lt;title&gt;" in page.html
    few_lines(page, "6 adapters", "ways compared: 2")
    assert len(repr(page.data)) < LONGEST_TEXT
    with pytest.raises(bankdb.ConflictError, match="already there"):
        compute.report(shared, out, WAYS)
    other = page.save(tmp_path / "other.html")
    assert other.read_text() == page.html
    with pytest.raises(bankdb.ConflictError):
        page.save(other)


def test_a_forecast_of_a_bank_and_of_numbers(shared: bankdb.AdapterBank, tmp_path: Path) -> None:
    found = compute.forecast(shared, workers=2, memory=1 << 30, weight_errors=True)
    assert [step.kind for step in found.steps] == ["distances", "gram", "coefficients", "combine"]
    assert found.steps[-1].name == "export"
    assert (found.shape.adapters, found.workers, found.task_memory) == (6, 2, 1 << 29)
    assert (found.total_seconds, found.problems) == (None, {})
    few_lines(found, "6 adapters", "export")
    size = compute.BankShape.of_numbers(1000, 1_000_000)
    several = compute.forecast(size, WAYS, workers=4, memory=8 << 30)
    assert [step.kind for step in several.steps][-1] == "coefficients"  # of several, no folders are written
    kept = compute.forecast(size, WAYS, workers=4, memory=8 << 30, export=True, store=True)
    assert [step.kind for step in kept.steps][-2:] == ["combine", "export"]
    small = compute.forecast(size, workers=4, memory=4 << 20)
    assert small.problems
    assert "does not fit" in repr(small)
    record = json.loads(found.save(tmp_path / "plan.json").read_text())
    assert record["adapters"] == 6
    assert again(found) == found


def test_a_forecast_with_rates(shared: bankdb.AdapterBank, tmp_path: Path, local: Any) -> None:
    from compute.forecasting.rates import write_rates

    before = sorted(Path.cwd().iterdir())
    measured = compute.forecast(shared, workers=2, measure=True, cluster=local)
    assert measured.rates is not None
    assert measured.total_seconds == pytest.approx(sum(value or 0 for value in measured.seconds))
    assert measured.total_seconds > 0
    write_rates(tmp_path / "rates.json", measured.rates)
    for rates in (measured.rates, tmp_path / "rates.json", str(tmp_path / "rates.json")):
        assert compute.forecast(shared, workers=2, rates=rates).seconds == measured.seconds
    with pytest.raises(bankdb.ParameterError, match="given or measured, found both"):
        compute.forecast(shared, rates=measured.rates, measure=True)
    with pytest.raises(bankdb.ParameterError, match="workers: expected at least 1"):
        compute.forecast(shared, workers=0)
    few_lines(measured, "expected in all")
    assert sorted(Path.cwd().iterdir()) == before


def test_the_command_for_one_dataset_runs_on_the_scheduler_that_is_given(
    bank: bankdb.AdapterBank, data: Path, tmp_path: Path
) -> None:
    """Where the approach reads the bank's own matrices; others need no worker."""
    from click.testing import CliRunner
    from distributed import Client, LocalCluster

    from cli.main import cli

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            host="127.0.0.1",
            dashboard_address=":0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        for approach, told in (("ridge", True), ("normalized", False)):
            command = ["predict", str(data), "--bank", str(bank.path), "--out", str(tmp_path / approach)]
            command += ["--approach", approach, "--scheduler", cluster.scheduler_address]
            done = CliRunner().invoke(cli, command)
            assert done.exit_code == (0 if told else 2), done.output
            assert (f"dashboard: {client.dashboard_link}" in done.stderr) is told
            assert told or "--scheduler: would do nothing here" in done.stderr
