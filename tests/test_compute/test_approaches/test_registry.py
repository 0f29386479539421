"""An approach is a class and a registration, and then it is everywhere; taken away, it is nowhere."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click import Context
from click.testing import CliRunner, Result
from numpy.testing import assert_allclose, assert_array_equal

from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError, ConflictError, ParameterError
from bankdb.progress import SilentProgress
from cli.main import cli
from compute.approaches import registry
from compute.approaches.base import OPTIONS, Approach, LeaveOneOut, Made, NewDatasets, Settings, given
from compute.approaches.coefficients import leave_one_out_coefficients, new_coefficients
from compute.approaches.kinds.neural import Neural
from compute.approaches.neural.leave_one_out import apply, neural_leave_one_out
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.training import train
from compute.approaches.options import PredictionOptions
from compute.evaluation.bank_sizes import bank_size_curve
from compute.forecasting.rates import MetricRate, Rates, expected_seconds
from compute.forecasting.shape import BankShape
from compute.forecasting.steps import StepForecast, forecast_steps
from compute.prediction.coefficients import coefficients
from compute.prediction.matrices import Matrices, compute_matrices, distances
from compute.prediction.predict import predict
from compute.prediction.session import computing
from compute.reporting.gather import gather
from tests.support.banks.drawn_bank import draw_bank
from tests.support.banks.small_bank import write_dataset
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import SyntheticBank, create_synthetic
from tests.support.banks.tiny_bank import BASE, copy_pairs, make_bank

BUILT_IN = (
    "attentional",
    "normalized",
    "neural",
    "uniform",
    "nearest",
    "tuned",
    "ridge",
    "ridge-signed",
    "matching",
    "selected",
    "oracle",
)
NUMBER = 7


def matrices_of(bank: AdapterBank, way: PredictionOptions) -> Matrices:
    with computing(bank, None, SilentProgress()) as cluster:
        return compute_matrices(bank, [way], cluster, SilentProgress())[0]


def shares(values: np.ndarray, allowed: np.ndarray, temperature: float) -> np.ndarray:
    """Shares by 1 / (1 + distance / temperature), by a loop: what the tests below expect."""
    rows = []
    for row, mask in zip(values, allowed, strict=True):
        weights = [1 / (1 + d / temperature) if use else 0.0 for d, use in zip(row, mask, strict=True)]
        rows.append([weight / sum(weights) for weight in weights])
    return np.array(rows)


class Blend(Approach):
    """Shares that fall off slowly with the distance."""

    name = "blend"
    about = "shares that fall off slowly with the distance"
    reads = ("temperature",)

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        return self._made(given(inputs.distances, "reads_distances"), ~inputs.excluded, inputs.options)

    def new_dataset(self, inputs: NewDatasets) -> Made:
        return self._made(inputs.to_sources, np.ones(inputs.to_sources.shape, dtype=bool), inputs.options)

    def _made(self, values: np.ndarray, allowed: np.ndarray, options: Settings) -> Made:
        weights = allowed / (1 + values / options.temperature)
        return Made(weights / weights.sum(axis=1, keepdims=True))


@pytest.fixture
def blend() -> Iterator[None]:
    assert registry.register(Blend) is Blend
    yield
    if "blend" in registry.names():
        registry.unregister("blend")


@pytest.fixture
def synthetic(tmp_path: Path, tokenizer_folder: Path) -> Iterator[SyntheticBank]:
    made = create_synthetic(tmp_path / "bank", tokenizer_folder)
    with made.bank:
        made.add_many(range(NUMBER))
        yield made


@pytest.fixture
def bank(synthetic: SyntheticBank) -> AdapterBank:
    return synthetic.bank


@pytest.fixture
def newdata(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "newdata", seed=77)


def run(*arguments: str | Path, status: int = 0) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == status, (done.output, done.exception)
    return done


def others() -> np.ndarray:
    return ~np.eye(NUMBER, dtype=bool)


# -- everywhere ----------------------------------------------------------------------------------------


def test_the_project_s_own_are_registered_in_order() -> None:
    assert registry.names() == BUILT_IN
    assert all(known.name == name for known, name in zip(registry.approaches(), BUILT_IN, strict=True))
    assert {field.name for field in dataclasses.fields(PredictionOptions)} >= set(OPTIONS)
    assert [known.name for known in registry.approaches() if known.of_the_paper] == list(BUILT_IN[:3])
    assert [known.name for known in registry.approaches() if known.trained] == ["neural"]


@pytest.mark.usefixtures("blend")
def test_options_are_checked_by_what_it_states() -> None:
    assert PredictionOptions(approach="blend", temperature=2.0).how.about == Blend.about
    with pytest.raises(ParameterError, match="top-k: not for blend"):
        PredictionOptions(approach="blend", top_k=2)
    with pytest.raises(ParameterError, match=r"expected one of .*oracle, blend, found 'magic'"):
        PredictionOptions(approach="magic")
    with pytest.raises(ParameterError, match="expected one of"):
        PredictionOptions(approach=["blend"])  # type: ignore[arg-type]


@pytest.mark.usefixtures("blend")
def test_coefficients_are_its_own(bank: AdapterBank) -> None:
    for temperature in (1.0, 0.05):
        found = coefficients(bank, PredictionOptions(approach="blend", temperature=temperature))
        expected = shares(distances(bank).values, others(), temperature)
        assert_allclose(found.values, expected, rtol=1e-12)
        assert found.options.approach == "blend"


@pytest.mark.usefixtures("blend")
def test_a_new_dataset_is_predicted(bank: AdapterBank, newdata: Path) -> None:
    found = predict(bank, newdata, PredictionOptions(metric="wasserstein", approach="blend"))
    expected = shares(found.distances[None], np.ones((1, NUMBER), dtype=bool), 1.0)[0]
    assert_allclose(found.coefficients, expected, rtol=1e-12)
    theta = np.stack([bank.store.read(record.row) for record in bank.adapters()])
    assert_allclose(found.vector, expected @ theta, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("blend")
def test_all_are_predicted_and_stored_by_all_that_it_reads(synthetic: SyntheticBank) -> None:
    bank, way = synthetic.bank, PredictionOptions(approach="blend", temperature=0.1)
    found = predict_all_stored(bank, way, weight_errors=True)
    theta = np.stack([synthetic.vectors[record.name] for record in bank.adapters()])
    expected = shares(distances(bank).values, others(), 0.1) @ theta
    stored = np.stack([_row(found.path / "adapters", row) for row in range(NUMBER)])
    assert_allclose(stored, expected, rtol=1e-4, atol=1e-5)
    error = np.linalg.norm(expected - theta, axis=1) / np.linalg.norm(theta, axis=1)
    assert_allclose(found.relative_error, error, rtol=1e-5)
    assert predict_all_stored(bank, way).run.id == found.run.id
    other = predict_all_stored(bank, dataclasses.replace(way, temperature=0.2))
    assert other.path != found.path
    assert json.loads(other.run.parameters)["approach"] == "blend"


def _row(path: object, row: int) -> np.ndarray:
    import zarr

    return np.asarray(zarr.open_array(str(path), mode="r")[row])


@pytest.mark.usefixtures("blend")
def test_workers_need_not_know_it(bank: AdapterBank, newdata: Path, tmp_path: Path) -> None:
    """Processes of their own, in which nothing is registered: approaches run in the client."""
    words = ("predict", "--bank", bank.path, "--all", "--approach", "blend", "--workers", "2", "--json")
    (row,) = json.loads(run(*words, "--temperature", "0.5").stdout)["predictions"]
    assert (row["approach"], row["metric"]) == ("blend", "jensen-shannon")
    weights = shares(distances(bank).values, others(), 0.5)
    assert row["effective_sources"] == pytest.approx((1 / (weights**2).sum(axis=1)).mean())
    words = (
        "predict",
        newdata,
        "--bank",
        bank.path,
        "--approach",
        "blend",
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert json.loads(run(*words).stdout)["approach"] == "blend"
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    provenance = [json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")]
    assert "blend" in [record.get("approach") for record in provenance]


@pytest.mark.usefixtures("blend")
def test_it_is_evaluated_by_weights(bank: AdapterBank) -> None:
    words = ("evaluate", "--bank", bank.path, "--weights-only", "--metric", "js", "--workers", "1", "--json")
    sizes = ("--bank-sizes", "3,7", "--draws", "2")
    found = json.loads(run(*words, "--approach", "blend", *sizes).stdout)
    rows = {row["approach"]: row for row in found["weight_space"]["summaries"]}
    made = predict_all_stored(bank, PredictionOptions(approach="blend"), weight_errors=True)
    assert made.relative_error is not None
    assert rows["blend"]["relative_error"] == pytest.approx(made.relative_error.mean())
    curve = [row for row in found["bank_sizes"] if row["approach"] == "blend"]
    assert [row["adapters"] for row in curve] == [3, 7]
    assert curve[1]["relative_error"] == pytest.approx(rows["blend"]["relative_error"])
    every = json.loads(run(*words, "--approach", "all", "--width", "8").stdout)["weight_space"]["summaries"]
    assert "blend" in {row["approach"] for row in every}


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.usefixtures("blend")
def test_it_is_evaluated_by_generation(tmp_path: Path) -> None:
    make_bank(tmp_path / "bank", copy_pairs(tmp_path / "pairs", ("forms_plural", "records_city"))).close()
    words = (
        "evaluate",
        "--bank",
        tmp_path / "bank",
        "--model",
        BASE,
        "--workers",
        "1",
        "--max-examples",
        "2",
    )
    done = run(*words, "--metric", "js", "--approach", "blend", "--resamples", "20", "--json")
    found = {one["system"]["name"]: one for one in json.loads(done.stdout)["systems"]}
    assert found["jensen-shannon blend"]["system"]["approach"] == "blend"
    # Two adapters: each is predicted by the other, whatever the shares.
    assert found["jensen-shannon blend"]["rouge"] == found["uniform"]["rouge"]


@pytest.mark.usefixtures("blend")
def test_it_is_in_the_report(bank: AdapterBank, tmp_path: Path) -> None:
    run("report", "--bank", bank.path, "--out", tmp_path / "r.html", "--metric", "js")
    assert "Jensen-Shannon, blend" in (tmp_path / "r.html").read_text()
    found = gather(bank, [PredictionOptions(approach="blend"), PredictionOptions(approach="oracle")])
    assert found.recommended.approach == "blend"
    expected = shares(distances(bank).values, others(), 1.0)
    assert_allclose(found.coefficients[0].values, expected, rtol=1e-12)


RATES = Rates(
    **dict.fromkeys((field.name for field in dataclasses.fields(Rates) if field.name != "metrics"), 1e9),
    metrics={"jensen-shannon": MetricRate(1e-6, 1e-6)},
)


def test_it_is_planned_with_its_time_if_it_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blend, "quick", False)
    registry.register(Blend)
    try:
        words = ("plan", "--adapters", "100", "--parameters", "1000", "--approach", "blend", "--workers", "1")
        assert "coefficients blend jensen-shannon" in run(*words).stdout
        assert _blend_seconds() is None
        monkeypatch.setattr(Blend, "quick", True)
        assert (_blend_seconds() or 0.0) > 0.0
        assert "coefficients blend jensen-shannon" in run(*words[:-4], "--approach", "all").stdout
    finally:
        registry.unregister("blend")


def _blend_seconds() -> float | None:
    shape = BankShape.of_numbers(100, 1000, 500, 300)
    steps = forecast_steps(shape, [PredictionOptions(approach="blend")], slots=1, budget=2**30)
    (step,) = (one for one in steps if one.kind == "coefficients")
    assert isinstance(step, StepForecast)
    return expected_seconds(step, RATES, 1, 500, 100)


@pytest.mark.usefixtures("blend")
@pytest.mark.parametrize("command", ["coefficients", "predict", "evaluate", "report", "plan"])
def test_the_command_line_offers_and_explains_it(command: str) -> None:
    told = " ".join(run(command, "--help").stdout.split())
    assert "; oracle: " in told
    assert f"blend: {Blend.about}" in told.replace("- ", "-")
    # What generators of documentation read of a command.
    with Context(cli.commands[command]) as context:
        options = cli.commands[command].to_info_dict(context)["params"]
    (option,) = (item for item in options if item["name"] == "approaches")
    assert option["type"]["choices"] == (*BUILT_IN, "blend", "all")
    assert f"blend: {Blend.about}" in option["help"]


@pytest.mark.usefixtures("blend")
def test_what_is_unregistered_is_nowhere(bank: AdapterBank) -> None:
    way = PredictionOptions(approach="blend")
    registry.unregister("blend")
    assert registry.names() == BUILT_IN
    for use in (lambda: PredictionOptions(approach="blend"), lambda: coefficients(bank, way)):
        with pytest.raises(ParameterError, match=r"expected one of .*, found 'blend'"):
            use()
    with pytest.raises(ParameterError, match="found 'blend'"):
        registry.unregister("blend")
    done = run("coefficients", "--bank", bank.path, "--approach", "blend", status=2)
    assert "'blend' is not one of 'attentional'" in done.output
    assert "blend" not in run("coefficients", "--help").stdout
    # What it made and is stored is told as by any other name.
    assert not registry.is_bound("blend")
    assert not registry.is_baseline("blend")


# -- what is handed to it ------------------------------------------------------------------------------


class Spy(Blend):
    """Notes what it is given."""

    name = "spy"
    about = "notes what it is given"

    def __init__(self) -> None:
        self.seen: list[LeaveOneOut | NewDatasets] = []

    def leave_one_out(self, inputs: LeaveOneOut) -> Made:
        self.seen.append(inputs)
        return Made(~inputs.excluded / (~inputs.excluded).sum(axis=1, keepdims=True), ({"k": 1},) * NUMBER)

    def new_dataset(self, inputs: NewDatasets) -> Made:
        self.seen.append(inputs)
        return Made(np.full(inputs.to_sources.shape, 1 / inputs.to_sources.shape[1]), ({"k": 2},))


@pytest.mark.parametrize("reads_distances", [True, False])
@pytest.mark.parametrize("reads_gram", [True, False])
@pytest.mark.parametrize("reads_bank", [True, False])
def test_an_approach_gets_what_it_declares(
    bank: AdapterBank,
    newdata: Path,
    monkeypatch: pytest.MonkeyPatch,
    reads_distances: bool,
    reads_gram: bool,
    reads_bank: bool,
) -> None:
    for key, value in (
        ("reads_distances", reads_distances),
        ("reads_gram", reads_gram),
        ("reads_bank", reads_bank),
        ("metric", "mmd"),
    ):
        monkeypatch.setattr(Spy, key, value)
    spy = Spy()
    registry.register(spy)
    try:
        way = PredictionOptions(metric="js", approach="spy")
        assert way.metric == "mmd"
        coefficients(bank, way)
        found = predict(bank, newdata, way)
    finally:
        registry.unregister("spy")
    whole, new = spy.seen
    assert isinstance(whole, LeaveOneOut)
    assert isinstance(new, NewDatasets)
    values, gram = distances(bank, "mmd").values, _gram(bank)
    _same(whole.distances, values if reads_distances else None)
    _same(whole.gram, gram if reads_gram else None)
    _same(new.between_sources, values if reads_distances and reads_bank else None)
    _same(new.gram, gram if reads_gram and reads_bank else None)
    assert np.isnan(new.to_sources).all() == (not reads_distances)
    assert whole.labels is new.labels is None
    assert_array_equal(whole.excluded, np.eye(NUMBER, dtype=bool))
    assert_array_equal(new.units, np.arange(NUMBER))
    assert found.fitted == {"k": 2}


def test_what_is_not_declared_is_not_there(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blend, "reads_distances", False)
    registry.register(Blend)
    try:
        with pytest.raises(ParameterError, match="set reads_distances in its class"):
            coefficients(bank, PredictionOptions(approach="blend"))
    finally:
        registry.unregister("blend")


def _gram(bank: AdapterBank) -> np.ndarray:
    found = matrices_of(bank, PredictionOptions(approach="oracle")).gram
    assert found is not None
    return found


def _same(found: np.ndarray | None, expected: np.ndarray | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "weights",
    [
        np.full((NUMBER, NUMBER), 1 / NUMBER),  # of itself too
        2 * others() / (NUMBER - 1),
        others() * np.array([1.5, -0.5, *[0.0] * (NUMBER - 2)]),
        np.where(others(), np.nan, 0.0),
        np.full((NUMBER, NUMBER - 1), 1 / (NUMBER - 1)),
        (others() / (NUMBER - 1)).astype(np.float32),
    ],
    ids=["its own adapter", "sums", "negative", "nan", "shape", "dtype"],
)
def test_no_wrong_coefficients_go_on(
    bank: AdapterBank, monkeypatch: pytest.MonkeyPatch, weights: np.ndarray
) -> None:
    monkeypatch.setattr(Spy, "leave_one_out", lambda *_: Made(weights))
    registry.register(Spy)
    try:
        with pytest.raises(ComputeError, match="spy: expected coefficients"):
            predict_all_stored(bank, PredictionOptions(approach="spy"))
    finally:
        registry.unregister("spy")
    assert not bank.runs.all("predictions")


def test_a_bound_is_no_prediction(bank: AdapterBank, newdata: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spy, "knows_answer", True)
    registry.register(Spy)
    try:
        way = PredictionOptions(approach="spy")
        with pytest.raises(ParameterError, match="spy needs the adapter that is to be predicted"):
            predict(bank, newdata, way)
        found = gather(bank, [way, PredictionOptions(approach="attentional")])
        assert found.recommended.approach == "attentional"
        # On a subset of the bank too it is asked for every target at once.
        curve = bank_size_curve(
            way, np.ones((NUMBER, NUMBER)), _gram(bank), np.arange(NUMBER), [3, 7], draws=2
        )
        assert (curve.targets == NUMBER).all()
    finally:
        registry.unregister("spy")


# -- networks ------------------------------------------------------------------------------------------


class Narrow(Neural):
    """A network of other options than those of `neural`."""

    name = "narrow"
    about = "a network of eight units"

    def network(self, options: Settings) -> NeuralOptions:
        return dataclasses.replace(options.neural, width=8, epochs=4, learning_rate=0.01, folds=3)


def test_an_approach_may_have_a_network_of_its_own(bank: AdapterBank, newdata: Path) -> None:
    registry.register(Narrow)
    try:
        way = PredictionOptions(approach="narrow")
        found = coefficients(bank, way)
        options = Narrow().network(way)
        gram, values = _gram(bank), distances(bank).values
        assert_array_equal(found.values, neural_leave_one_out(values, gram, bank.layout.size, options)[0])
        stored = [json.loads(record.parameters)["options"] for record in bank.runs.all("neural")]
        assert [record["width"] for record in stored] == [8]
        predicted = predict(bank, newdata, way)
        model = train(values, gram, np.arange(NUMBER), options, 1).model
        expected = apply(model, predicted.distances[None], np.zeros((1, NUMBER), dtype=bool), options)[0]
        assert_array_equal(predicted.coefficients, expected)
        shape = BankShape.of_numbers(100, 1000, 500, 300)
        (step,) = (
            one for one in forecast_steps(shape, [way], slots=1, budget=2**30) if one.kind == "coefficients"
        )
        assert (step.width, step.epochs, step.timed) == (8, 4 * 4, True)
    finally:
        registry.unregister("narrow")


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["cross-fitted", "published"])
@pytest.mark.parametrize("leave_out", ["adapter", "group"])
def test_a_network_that_is_not_kept_is_the_one_that_is(
    synthetic: SyntheticBank, newdata: Path, protocol: str, leave_out: str
) -> None:
    bank = synthetic.bank
    for record, group in zip(bank.adapters(), ("a", "a", "b", "b", "c", None, None), strict=True):
        bank.catalog.set_group(record.name, group, None)
    way = PredictionOptions(approach="neural", width=8, epochs=3, protocol=protocol, leave_out=leave_out)
    matrices = matrices_of(bank, way)
    kept = coefficients(bank, way).values
    made, fitted = leave_one_out_coefficients(way, matrices.distances, matrices.gram, matrices.units)
    assert_array_equal(made, kept)
    assert fitted is None
    found = predict(bank, newdata, way)
    again, _ = new_coefficients(way, found.distances[None], matrices.distances, matrices.gram, matrices.units)
    assert_array_equal(again[0], found.coefficients)


def test_what_trains_is_not_drawn_by_bank_size() -> None:
    values, theta, units = draw_bank(0)
    with pytest.raises(ParameterError, match="trains no network, found neural"):
        bank_size_curve(PredictionOptions(approach="neural"), values, theta @ theta.T, units, [4])


# -- registrations that are refused --------------------------------------------------------------------


def _named(name: object, **other: object) -> type[Approach]:
    return type("Made", (Blend,), {"name": name, "about": "a line", **other})


@pytest.mark.parametrize("name", ["ridge", "blend"])
@pytest.mark.usefixtures("blend")
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    before = registry.get_approach(name)
    with pytest.raises(ConflictError, match=f"approach {name}: already registered; choose another name"):
        registry.register(_named(name))
    assert registry.get_approach(name) is before


@pytest.mark.parametrize(
    ("approach", "message"),
    [
        (_named("all"), "none of all, base, own, distance, found 'all'"),
        (_named("own"), "found 'own'"),
        (_named("Two Words"), "found 'Two Words'"),
        (_named(""), "expected a name"),
        (_named(None), "expected a name"),
        (_named("mine", about=""), "a line about it"),
        (_named("mine", reads=("temprature",)), "found temprature"),
        (
            type("Half", (Approach,), {"name": "half", "about": "x"}),
            "abstract methods leave_one_out, new_dataset",
        ),
        (
            type("Needy", (Blend,), {"__init__": lambda self, k: None}),
            "missing 1 required positional argument: 'k'",
        ),
        (int, "expected a class derived from"),
        ("ridge", "expected a class derived from"),
    ],
)
def test_what_cannot_be_one_is_refused(approach: type[Approach], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        registry.register(approach)
    assert registry.names() == BUILT_IN


# -- installed packages --------------------------------------------------------------------------------

PACKAGE = """
from compute.approaches.kinds.by_distance import ByDistance

class Other(ByDistance):
    name = "other"
    about = "as blend"
"""


def _installed(folder: Path, entry: str, module: str = PACKAGE, package: str = "otherbank") -> Path:
    """What pip leaves of a package that offers an approach."""
    about = folder / f"{package.replace('-', '_')}-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[lora_bank.approaches]\n{entry}\n")
    (folder / "offered.py").write_text(module)
    return folder


def _python(folder: Path, program: str) -> str:
    root = Path(__file__).resolve().parents[3]
    lines = f"import sys; sys.path[:0] = [{str(root)!r}, {str(folder)!r}]\n{program}"
    return subprocess.run(
        [sys.executable, "-c", lines], check=True, capture_output=True, text=True, cwd=folder
    ).stdout


def test_a_package_offers_an_approach_that_is_loaded_when_it_is_used(tmp_path: Path) -> None:
    folder = _installed(tmp_path, "other = offered:Other")
    program = """
from click.testing import CliRunner
from cli.main import cli
told = " ".join(CliRunner().invoke(cli, ["coefficients", "--help"]).output.split())
print("; oracle: " in told, "other: from the package otherbank" in told)
print("numpy" in sys.modules, "offered" in sys.modules)
"""
    assert _python(folder, program).split() == ["True", "True", "False", "False"]
    program = """
from compute.approaches.options import PredictionOptions
from compute.approaches.registry import names
PredictionOptions()
print("offered" in sys.modules, PredictionOptions(approach="other").how.about, names()[-1])
"""
    assert _python(folder, program).strip() == "False as blend other"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("other = offered:Nothing", "approach other of the package otherbank: cannot be loaded"),
        ("other = nowhere:Other", "approach other of the package otherbank: cannot be loaded"),
        ("another = offered:Other", "expected a class of this name, found 'other'"),
        ("other = offered:__name__", "expected a class derived from"),
        ("ridge = offered:Other", "approach ridge: of the package otherbank and of this project"),
    ],
)
def test_a_package_that_offers_none_is_named(tmp_path: Path, entry: str, message: str) -> None:
    folder = _installed(tmp_path, entry)
    program = """
from bankdb.errors import BankError
from compute.approaches.options import PredictionOptions
from compute.approaches.registry import approaches
PredictionOptions()
try:
    approaches()
except BankError as error:
    print(error)
"""
    assert message in _python(folder, program)


def test_two_packages_of_one_name_are_named(tmp_path: Path) -> None:
    _installed(tmp_path / "a", "other = offered:Other")
    _installed(tmp_path / "b", "other = offered:Other", package="second-bank")
    program = f"""
sys.path.insert(0, {str(tmp_path / "b")!r})
from compute.approaches.registry import names
try:
    names()
except Exception as error:
    print(type(error).__name__, error)
"""
    told = _python(tmp_path / "a", program)
    assert told.startswith("ConflictError approach other: of the package ")
    assert "otherbank" in told
    assert "second-bank" in told
