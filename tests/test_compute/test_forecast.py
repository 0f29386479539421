"""`bank plan`: a forecast counts what a real run then does, and grows with what makes a run grow."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.bank import AdapterBank
from bankdb.errors import ParameterError, PlanError
from bankdb.progress import SilentProgress
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.combination import panel as combine_panels
from compute.combination import predictions
from compute.forecasting.rates import MetricRate, Rates, expected_seconds, read_rates, write_rates
from compute.forecasting.shape import BankShape, zipf_support
from compute.forecasting.steps import StepForecast, forecast_steps
from compute.gram import matrix as gram
from compute.pairwise import matrix as distances
from compute.pairwise import tile as distance_tiles
from compute.prediction.folders import one_pass
from compute.prediction.predict_all import predict_all
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import create_synthetic, draw_vector, layout_of

# Two blocks of distances, two chunks of columns, five shards of targets.
LAYOUT = layout_of(hidden=20_000, rank=2, layers=2)
N, DISTINCT = 70, 90
RATES = Rates(
    product=1e10,
    symmetric=2e10,
    read=1e9,
    write=5e8,
    decode=4e9,
    encode=2e9,
    flush=1e-3,
    chunk=2e-3,
    opening=1e-3,
    task=1e-3,
    step=1e-2,
    entry=1e-8,
    epoch=0.1,
    epoch_pair=1e-8,
    cores=2,
    vocabulary=32_000,
    distinct=8_000,
    width=4000,
    knots=128,
    metrics={
        name: MetricRate(1e-3 if name == "mmd" else 0.0, 1e-5)
        for name in ("wasserstein", "kullback-leibler", "jensen-shannon", "mmd")
    },
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    made = create_synthetic(tmp_path_factory.mktemp("forecast") / "bank", tokenizer_folder, LAYOUT)
    for seed in range(N):
        rng = np.random.default_rng(seed)
        ids = rng.choice(202, DISTINCT, replace=False)
        tokens = np.repeat(ids, rng.integers(1, 9, DISTINCT))
        made.add(f"s{seed:02d}", tokens, draw_vector(seed, LAYOUT.size))
    made.bank.close()
    return made.bank.path


@pytest.fixture
def opened(template: Path, tmp_path: Path) -> Iterator[AdapterBank]:
    shutil.copytree(template, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        yield bank


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=2, processes=False), SilentProgress()) as found:
        yield found


class Counted:
    """What a run does: tasks by stage, and bytes by what is read and written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._lock = threading.Lock()
        for module in (distances, gram, predictions, one_pass):
            monkeypatch.setattr(module, "run_tasks", self._stage(module.run_tasks))
        read_counts, read_into = distance_tiles.read_counts, AdapterStore.read_into
        read_coefficients = combine_panels._read_coefficients

        def counts(*arguments: Any) -> Any:
            rows, found = read_counts(*arguments)
            self._add("counts", found.ids.nbytes + found.counts.nbytes)
            return rows, found

        def into(store: AdapterStore, rows: Any, start: int, stop: int, *rest: Any) -> None:
            self._add("adapters", 4 * len(rows) * (stop - start))
            read_into(store, rows, start, stop, *rest)

        def coefficients(*arguments: Any) -> Any:
            found = read_coefficients(*arguments)
            self._add("coefficients", found.nbytes)
            return found

        monkeypatch.setattr(distance_tiles, "read_counts", counts)
        monkeypatch.setattr(AdapterStore, "read_into", into)
        monkeypatch.setattr(combine_panels, "_read_coefficients", coefficients)

    def _add(self, what: str, size: int) -> None:
        with self._lock:
            self.bytes[what] += size

    def _stage(self, run_tasks: Any) -> Any:
        def counted(cluster: Cluster, stage: str, function: Any, tasks: Any, *rest: Any, **named: Any) -> Any:
            self.tasks[stage.split(" ")[0]] += len(tasks)
            for name, result in run_tasks(cluster, stage, function, tasks, *rest, **named):
                self._add(f"{stage.split(' ')[0]} results", int(result))
                yield name, result

        return counted


def by_kind(steps: tuple[StepForecast, ...], kind: str) -> list[StepForecast]:
    return [step for step in steps if step.kind == kind]


def chunk_bytes(path: Path) -> int:
    """Bytes of the chunks that are there, were they not compressed."""
    shape = json.loads((path / "zarr.json").read_text())
    chunk = shape["chunk_grid"]["configuration"]["chunk_shape"]
    covered = [
        min(side, size - int(place) * side)
        for file in path.glob("c/*/*")
        for side, size, place in zip(chunk, shape["shape"], file.relative_to(path / "c").parts, strict=True)
    ]
    item = {"float64": 8, "float32": 4}[shape["data_type"]]
    return item * sum(rows * columns for rows, columns in zip(covered[::2], covered[1::2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "weight_errors"), [(1 << 30, True), (24 << 20, False)])
def test_a_run_does_what_was_forecast(
    opened: AdapterBank,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    budget: int,
    weight_errors: bool,
) -> None:
    """The second budget does not hold the sources: they are read once for each range of targets."""
    ways = [PredictionOptions(metric=name) for name in ("jensen-shannon", "mmd")]
    shape = BankShape.of_bank(opened)
    named = {"slots": cluster.slots, "budget": budget, "weight_errors": weight_errors}
    steps = forecast_steps(shape, ways, store=True, **named)
    counted = Counted(monkeypatch)
    made = predict_all_stored(
        opened,
        ways,
        cluster=replace(cluster, task_budget=budget),
        weight_errors=weight_errors,
    )
    found = by_kind(steps, "distances")
    assert counted.tasks["distances"] == sum(step.tasks for step in found)
    assert counted.bytes["counts"] == sum(step.read for step in found)
    folders = [opened.array_path("distances") / step.name.split()[1] for step in found]
    folders[1] = next(opened.array_path("distances").glob("mmd*"))
    assert [step.written for step in found] == [chunk_bytes(folder) for folder in folders]
    assert [step.files for step in found] == [len(list(folder.glob("c/*/*"))) for folder in folders]
    (combined,) = by_kind(steps, "combine")
    assert counted.tasks["combine"] == combined.tasks
    adapters = counted.bytes["adapters"] - counted.bytes["gram results"]
    assert adapters + counted.bytes["coefficients"] == combined.read
    assert counted.bytes["combine results"] == combined.written
    predicted = [one.path / "adapters" for one in made]
    assert sum(len(list(path.glob("c/*/*"))) for path in predicted) == combined.files
    assert combined.memory <= budget
    assert [step.tasks for step in by_kind(steps, "gram")] == [counted.tasks["gram"]] * weight_errors
    assert [step.read for step in by_kind(steps, "gram")] == [counted.bytes["gram results"]] * weight_errors
    (exported,) = by_kind(steps, "export")
    folders = made[0].save(tmp_path / "out")
    files = [file for folder in folders for file in folder.iterdir()]
    assert len(files) == exported.files
    weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    assert exported.written < weights < 1.01 * exported.written


@pytest.mark.parametrize("budget", [1 << 30, 24 << 20])
def test_folders_in_one_pass_do_what_was_forecast(
    opened: AdapterBank, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, budget: int
) -> None:
    small = replace(cluster, task_budget=budget)
    steps = forecast_steps(
        BankShape.of_bank(opened), [PredictionOptions()], slots=cluster.slots, budget=budget
    )
    predicted = predict_all(opened, cluster=small)
    counted = Counted(monkeypatch)
    folders = predicted.save(tmp_path / "out", cluster=small)
    (step,) = by_kind(steps, "combine")
    assert step.name == "export"
    assert counted.tasks["export"] == step.tasks
    assert counted.bytes["adapters"] + counted.bytes["coefficients"] == step.read
    assert counted.bytes["export results"] == step.written
    assert len([file for folder in folders for file in folder.iterdir()]) == step.files
    assert step.memory <= budget


def test_what_does_not_fit_says_what_the_run_says(opened: AdapterBank, cluster: Cluster) -> None:
    for budget, kind in ((1 << 20, "distances"), (20 << 20, "gram"), (4 << 20, "combine")):
        weight_errors = kind == "gram"
        small = replace(cluster, task_budget=budget)
        with pytest.raises(PlanError) as refused:
            predict_all_stored(opened, [PredictionOptions()], cluster=small, weight_errors=weight_errors)
        shape = BankShape.of_bank(opened)
        steps = forecast_steps(
            shape,
            [PredictionOptions()],
            slots=cluster.slots,
            budget=budget,
            weight_errors=weight_errors,
            store=True,
            export=False,
        )
        assert [step.problem for step in by_kind(steps, kind)] == [str(refused.value)]


def test_a_bank_with_removed_rows_is_planned_by_the_rows_that_are_left(opened: AdapterBank) -> None:
    before = BankShape.of_bank(opened)
    assert (before.rows, before.blocks, before.distinct) == (N, (0, 1), N * DISTINCT)
    for index in range(64, N - 1):
        opened.remove(f"s{index:02d}")
    after = BankShape.of_bank(opened)
    assert (after.adapters, after.rows, after.blocks) == (65, N, (0, 1))
    opened.remove(f"s{N - 1:02d}")
    assert BankShape.of_bank(opened).blocks == (0,)


# -- what grows ------------------------------------------------------------------------------------------

SIZES = {"adapters": (2, 400), "parameters": (1, 3_000_000), "vocabulary": (3_000, 40_000)}
APPROACHES = st.sampled_from(["normalized", "nearest", "neural", "uniform"])


def shape_of(adapters: int, parameters: int, vocabulary: int) -> BankShape:
    return BankShape.of_numbers(adapters, parameters, vocabulary, tokens=5_000)


def planned(shape: BankShape, approach: str, workers: int = 2) -> tuple[StepForecast, ...]:
    ways = [PredictionOptions(approach=approach)]
    return forecast_steps(shape, ways, slots=workers, budget=1 << 33, weight_errors=True)


@settings(max_examples=60, deadline=None)
@given(st.data(), APPROACHES, st.sampled_from(sorted(SIZES)))
def test_a_larger_bank_costs_no_less(data: st.DataObject, approach: str, which: str) -> None:
    small = {name: data.draw(st.integers(*limits), name) for name, limits in SIZES.items()}
    large = small | {which: data.draw(st.integers(small[which], SIZES[which][1]), f"larger {which}")}
    steps = [planned(shape_of(**numbers), approach) for numbers in (small, large)]
    assert [step.name for step in steps[0]] == [step.name for step in steps[1]]
    for before, after in zip(*steps, strict=True):
        # Larger tiles read each dataset fewer times.
        names = ["written", "flops", "files"] + (["read"] if before.kind != "distances" else [])
        for name in names:
            assert getattr(before, name) <= getattr(after, name), (before.name, name)
        assert after.memory <= 1 << 33 or after.kind == "coefficients"


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(0, 40))
def test_more_workers_take_no_more_time(data: st.DataObject, workers: int, more: int) -> None:
    shape = shape_of(**{name: data.draw(st.integers(*limits), name) for name, limits in SIZES.items()})
    for step in planned(shape, "normalized", workers)[1:]:
        times = [expected_seconds(step, RATES, count, 32_000, 8_000) for count in (workers, workers + more)]
        assert times[0] is not None
        assert times[1] is not None
        assert 0 < times[1] <= times[0] * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["product", "symmetric", "read", "write", "decode", "encode"]), st.floats(1, 100))
def test_a_faster_machine_takes_no_more_time(name: str, factor: float) -> None:
    faster = replace(RATES, **{name: getattr(RATES, name) * factor})
    for step in planned(shape_of(200, 1_000_000, 30_000), "neural"):
        slow, fast = (expected_seconds(step, rates, 2, 30_000, 3_000) for rates in (RATES, faster))
        assert slow is not None
        assert fast is not None
        assert fast <= slow


def test_time_of_the_gram_matrix_by_hand() -> None:
    """10 equal slices on 4 workers: three rounds. Arithmetic and reading overlap; half of the shorter shows."""
    step = StepForecast("gram", "gram", tasks=10, read=10**9, flops=4 * 10**11)
    work, storage, fixed = 0.3 * (4e11 / 2e10 + 1e9 / 4e9), 1e9 / 1e9, 1e-2
    assert expected_seconds(step, RATES, 4, 1, 1) == pytest.approx(work + storage / 2 + fixed)
    read = replace(step, flops=0)
    assert expected_seconds(read, RATES, 4, 1, 1) == pytest.approx(storage + 0.3 * 0.25 / 2 + fixed)
    assert expected_seconds(replace(step, problem="too large"), RATES, 4, 1, 1) is None


def test_distinct_ids_of_a_zipf_distribution() -> None:
    vocabulary, tokens = 2_000, 5_000
    shares = 1 / np.arange(1, vocabulary + 1)
    rng = np.random.default_rng(0)
    drawn = [len(np.unique(rng.choice(vocabulary, tokens, p=shares / shares.sum()))) for _ in range(20)]
    assert zipf_support(vocabulary, tokens) == pytest.approx(np.mean(drawn), rel=0.02)
    assert zipf_support(1, 10) == 1
    assert zipf_support(10, 1) == 1


# -- rates -------------------------------------------------------------------------------------------------


def test_rates_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_rates(tmp_path / "rates.json", RATES)
    assert read_rates(tmp_path / "rates.json") == RATES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"product": 0}, "product: expected a number above 0, found 0"),
        ({"read": "fast"}, "read: expected a number above 0, found 'fast'"),
        ({"speed": 1.0}, "missing or unknown: speed"),
        ({"metrics": {"mmd": {"dataset": 1.0}}}, "mmd pair: expected a number above 0, found None"),
        ({"metrics": 3}, "metrics: expected an object"),
    ],
)
def test_rates_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(RATES.to_json() | change))
    with pytest.raises(ParameterError, match=message):
        read_rates(path)


def test_files_without_rates_are_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{}"):
        (tmp_path / "rates.json").write_text(text)
        with pytest.raises(ParameterError, match=r"rates\.json"):
            read_rates(tmp_path / "rates.json")
    with pytest.raises(ParameterError, match="no rates can be read there"):
        read_rates(tmp_path / "none.json")


# -- the command -------------------------------------------------------------------------------------------


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["plan", *(str(argument) for argument in arguments)])
    assert result.exit_code == status, (result.output, result.stderr, result.exception)
    assert "Traceback" not in result.output
    return result


def files_of(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_plan_of_a_bank_changes_nothing(opened: AdapterBank) -> None:
    opened.close()
    before = files_of(opened.path)
    words = ("--metric", "all", "--approach", "neural", "--store", "--json")
    found = json.loads(run("--bank", opened.path, *words).stdout)
    assert files_of(opened.path) == before
    assert (found["adapters"], found["parameters"], found["distinct"]) == (N, LAYOUT.size, DISTINCT)
    assert [step["name"] for step in found["steps"]] == [
        *(f"distances {name}" for name in ("wasserstein", "kullback-leibler", "jensen-shannon", "mmd")),
        "gram",
        *(
            f"coefficients neural {name}"
            for name in ("wasserstein", "kullback-leibler", "jensen-shannon", "mmd")
        ),
        "combine",
    ]
    assert found["seconds"] is None
    assert found["rates"] is None
    # Four predictions of 70 adapters.
    assert found["steps"][-1]["written"] == 4 * 4 * N * LAYOUT.size


def test_a_plan_without_a_bank_with_given_rates(tmp_path: Path) -> None:
    write_rates(tmp_path / "rates.json", RATES)
    sizes = ("--adapters", "502", "--parameters", "9437184", "--distinct", "8000", "--memory", "16GiB")
    plan = (*sizes, "--workers", "2", "--rates", tmp_path / "rates.json")
    found = json.loads(run(*plan, "--json").stdout)
    steps = {step["name"]: step for step in found["steps"]}
    assert "combine" not in steps
    assert steps["export"]["tasks"] == 72
    assert steps["export"]["flops"] == 2 * 502 * 501 * 9_437_184
    assert found["seconds"] == pytest.approx(sum(step["seconds"] for step in found["steps"]))
    shown = run(*plan).stdout
    assert "502 adapters of 9,437,184 parameters" in shown
    assert "expected in all" in shown
    untimed = run(*plan, "--approach", "ridge").stdout
    assert "without 1 steps whose time is not known" in untimed


def test_a_plan_that_does_not_fit_says_so_and_fails() -> None:
    result = run("--adapters", "11000", "--parameters", "200000", "--workers", "1", "--memory", "8GiB",
                 "--weight-error", status=1)  # fmt: skip
    assert "gram: the Gram matrix of 11000 adapters needs" in result.stdout
    assert "raise --memory, or lower --workers" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--adapters", "5"), "--adapters and --parameters go together"),
        (("--measure", "--rates", "x.json"), "give --measure or --rates"),
        (("--adapters", "5", "--parameters", "5", "--save-rates", "x"), "--save-rates goes with --measure"),
        (("--adapters", "5", "--parameters", "5", "--distinct", "70001"), "expected 1 to 32000 ids"),
        (("--adapters", "5", "--parameters", "5", "--rates", "none.json"), "no rates can be read"),
        (("--adapters", "5", "--parameters", "5", "--memory", "much"), "memory: expected a size"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], message: str) -> None:
    assert message in run(*arguments, status=2).stderr


def test_rates_lack_a_metric(tmp_path: Path) -> None:
    write_rates(tmp_path / "rates.json", replace(RATES, metrics={"mmd": RATES.metrics["mmd"]}))
    sizes = ("--adapters", "5", "--parameters", "5", "--rates", tmp_path / "rates.json")
    assert "expected one of jensen-shannon, found mmd" in run(*sizes, status=2).stderr


@pytest.mark.slow
def test_measured_rates_are_this_machines(opened: AdapterBank, tmp_path: Path) -> None:
    opened.close()
    before = files_of(opened.path)
    saved = tmp_path / "rates.json"
    found = json.loads(run("--bank", opened.path, "--measure", "--save-rates", saved, "--json").stdout)
    assert files_of(opened.path) == before
    assert read_rates(saved).to_json() == found["rates"]
    assert set(found["rates"]["metrics"]) >= {"wasserstein", "kullback-leibler", "jensen-shannon", "mmd"}
    # Between a slow machine that does much else and one that nobody has.
    assert 1e8 < found["rates"]["product"] < 1e13
    assert 1e6 < found["rates"]["read"] < 1e12
    assert 1e6 < found["rates"]["write"] < found["rates"]["encode"] * 1.5 * found["rates"]["cores"]
    assert found["seconds"] > 0
