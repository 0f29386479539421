"""A prediction that was ingested as a pair is no adapter that was trained on its task, wherever that matters."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError
from bankdb.peft.config import is_rendered
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.evaluation.correlation import weight_correlations
from compute.evaluation.evaluate import evaluate
from compute.evaluation.records import Evaluation
from compute.evaluation.scores import Outcome, Target, of_predicted
from compute.evaluation.systems import System
from compute.evaluation.tables import summaries
from tests.support.banks.malformed_adapters import write_good_adapter
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import write_dataset
from tests.support.servers.backends import execute

SAID = "of mine the own adapter is itself a prediction, not trained"


def run(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def made(bank_template: Path, tmp_path: Path) -> Path:
    """The bank, and `pairs/` with a prediction of it as the adapter of the dataset `mine`."""
    shutil.copytree(bank_template, tmp_path / "bank")
    data = write_dataset(tmp_path / "pairs" / "datasets" / "mine", seed=77)
    (tmp_path / "pairs" / "adapters").mkdir()
    run("predict", "--bank", tmp_path / "bank", data, "--out", tmp_path / "pairs" / "adapters" / "mine")
    return tmp_path / "bank"


def ingested(bank: Path) -> str:
    return run("ingest", "--bank", bank, bank.with_name("pairs")).stderr


def test_a_prediction_that_is_ingested_is_told(made: Path) -> None:
    assert "note: mine: a prediction, not trained" in ingested(made)
    with AdapterBank.open(made) as bank:
        assert bank.predicted_among(bank.adapters()) == ["mine"]
        # Whatever names its folder has, and after it went through another bank's export.
        bank.export("mine", made.with_name("exported"))
    text = (made.with_name("exported") / "adapter_config.json").read_text()
    assert is_rendered(text)
    assert not is_rendered(json.dumps(json.loads(text)))
    assert not is_rendered(text.replace('"lora_dropout": 0.0', '"lora_dropout": 0.05'))
    assert not is_rendered(text.replace('"r"', '"rr"'))
    assert not is_rendered("[")


def test_one_that_was_trained_since_counts_as_trained(made: Path) -> None:
    """A library that trains writes the configuration anew; the record of before lies there still."""
    config = made.with_name("pairs") / "adapters" / "mine" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_version": "0.18.0"}, indent=2))
    assert "provenance.json of a prediction" in ingested(made)
    with AdapterBank.open(made) as bank:
        assert bank.predicted_among(bank.adapters()) == []


def test_trained_adapters_are_not_told_of(made: Path) -> None:
    shutil.rmtree(made.with_name("pairs") / "adapters" / "mine")
    write_good_adapter(made.with_name("pairs") / "adapters" / "mine")
    assert "prediction" not in ingested(made)


def test_a_damaged_configuration_is_no_trained_adapter(made: Path) -> None:
    ingested(made)
    with AdapterBank.open(made) as bank:
        (record,) = (one for one in bank.adapters() if one.name == "mine")
        execute(bank, f"UPDATE blob SET data = x'7b7d' WHERE sha256 = '{record.config_sha256}'", seal=False)
        with pytest.raises(BankFormatError, match=f"stored bytes {record.config_sha256[:12]} are damaged"):
            bank.predicted_among(bank.adapters())


def test_distances_in_weights_are_to_trained_adapters(made: Path) -> None:
    ways = [PredictionOptions(), PredictionOptions(approach="uniform")]
    ingested(made)
    progress = RecordedProgress()
    with AdapterBank.open(made) as bank:
        place = [record.name for record in bank.adapters()].index("mine")
        table = evaluate(bank, ways, weights_only=True, leave_out="adapter", progress=progress)
        told = predicted_errors(bank, ways[0], place)
    assert [note for note in progress.notes if note.startswith(SAID)] == of_predicted(["mine"])
    assert table.predicted == ("mine",)
    for row, summary in zip(table.rows, table.summaries(), strict=True):
        assert np.isnan(row.errors.relative[place])
        others = np.delete(row.errors.relative, place)
        assert np.isfinite(others).all()
        assert summary.relative_error == pytest.approx(others.mean())
        assert summary.mse == pytest.approx(np.delete(row.errors.mse, place).mean())
    # The others' errors are as they were: the prediction is a source like any other.
    (row,) = (row for row in table.rows if row.system.is_papers_best)
    np.testing.assert_allclose(np.delete(row.errors.relative, place), told, rtol=1e-4)


def predicted_errors(bank: AdapterBank, way: PredictionOptions, place: int) -> list[float]:
    """By the adapters themselves."""
    from compute.prediction.coefficients import coefficients

    theta = bank.store.read_rows([record.row for record in bank.adapters()]).astype(np.float64)
    from bankdb.scaled_rows import sources_of

    sources = sources_of(bank, bank.adapters())
    for start, stop in sources.b_segments:
        theta[:, start:stop] *= np.asarray(sources.ratios)[:, None]
    weights = coefficients(bank, way).values
    errors = [
        float(np.linalg.norm(weights[index] @ theta - theta[index]) / np.linalg.norm(theta[index]))
        for index in range(len(theta))
    ]
    return errors[:place] + errors[place + 1 :]


def test_a_report_says_it(made: Path, tmp_path: Path) -> None:
    ingested(made)
    out = tmp_path / "page.html"
    told = run("report", "--bank", made, "--approach", "normalized", "--out", out)
    assert SAID in told.stderr
    page = out.read_text()
    assert page.count("Of mine the own adapter is itself a prediction, not trained") == 1
    assert "each trained on its own dataset, but 1 that were predicted." in page
    assert "Means over 6 targets" in page


# -- by answers ----------------------------------------------------------------------------------------

SCORES = {
    "base": (0.0, 0.2, 0.1, 0.0),
    "own": (1.0, 0.8, 0.9, 0.5),
    "uniform": (0.3, 0.2, 0.1, 0.5),
    "js normalized": (0.5, 0.1, 0.9, 0.5),
}


def evaluation(*predicted: str) -> Evaluation:
    systems = (
        System("base", "base"),
        System("own", "own", space="factors"),
        System("uniform", "uniform", None, "adapter", "factors"),
        System("js normalized", "normalized", "jensen-shannon", "adapter", "factors"),
    )
    targets = tuple(Target(name, None, 1, 9, name, name in predicted) for name in "xyzp")
    outcomes = tuple(
        Outcome(name, target.name, 1, score, 0, 0, (score,), (0,), (0,), (), (), None, "0", 1.0)
        for name, scores in SCORES.items()
        for target, score in zip(targets, scores, strict=True)
    )
    settings = {"resamples": 300, "seed": 0}
    return Evaluation("abc", "2026-01-01T00:00:00Z", settings, {}, systems, targets, outcomes, (), 1.0)


def test_no_gap_is_told_of_a_target_without_a_trained_adapter() -> None:
    base, own, uniform, ours = summaries(evaluation("p"))
    assert own.gap_share is not None
    assert ours.gap_share is not None
    assert uniform.gap_share is not None
    # Over x, y and z: the own adapters gain 2.4, the prediction 1.2, uniform 0.3.
    assert own.gap_share.estimate == pytest.approx(1)
    assert ours.gap_share.estimate == pytest.approx(1.2 / 2.4)
    assert uniform.gap_share.estimate == pytest.approx(0.3 / 2.4)
    assert (own.tasks, own.rouge.mean) == (3, pytest.approx(0.9))
    assert own.rouge_to_base is not None
    assert own.rouge_to_base.estimate == pytest.approx(0.8)
    # What is compared without own adapters is over all four.
    assert (base.tasks, ours.tasks, ours.rouge.mean) == (4, 4, pytest.approx(0.5))
    assert ours.rouge_to_base is not None
    assert ours.rouge_to_base.estimate == pytest.approx((0.5 - 0.1 + 0.8 + 0.5) / 4)
    plain = summaries(evaluation())[3]
    assert plain.gap_share is not None
    assert plain.gap_share.estimate == pytest.approx(1.7 / 2.9)


def test_where_no_adapter_was_trained_there_is_no_gap() -> None:
    found = summaries(evaluation(*"xyzp"))
    assert [one.gap_share for one in found] == [None] * 4
    assert all(np.isfinite(one.rouge.mean) for one in found)
    weighted = evaluation(*"xyzp")
    outcomes = tuple(dataclasses.replace(one, weight_error=0.5) for one in weighted.outcomes)
    assert weight_correlations(dataclasses.replace(weighted, outcomes=outcomes)) == []


def test_weight_errors_to_a_prediction_are_not_correlated() -> None:
    systems = tuple(System(name, name, None, "adapter", "factors") for name in ("one", "two", "three"))
    record = evaluation("p")
    outcomes = [
        dataclasses.replace(
            record.outcomes[0],
            system=system.name,
            target=target.name,
            rouge=0.1 * place,
            weight_error=(1.0 - place if target.name == "p" else 1.0 + place),
        )
        for place, system in enumerate(systems)
        for target in record.targets
    ]
    record = dataclasses.replace(
        record, systems=(*record.systems, *systems), outcomes=(*record.outcomes, *outcomes)
    )
    (found,) = weight_correlations(record)
    assert (found.targets, found.across) == (3, pytest.approx(1.0))
    assert found.within is not None
    assert found.within.estimate == pytest.approx(1.0)


def test_the_record_comes_back_and_is_as_before_where_all_were_trained() -> None:
    record = evaluation("p")
    assert Evaluation.from_json(record.to_json()) == record
    assert '"predicted": true' in record.to_json()
    assert "predicted" not in evaluation().to_json()
    with pytest.raises(BankFormatError, match="predicted is a number"):
        Evaluation.from_json(record.to_json().replace('"predicted": true', '"predicted": 1'))


def test_the_line() -> None:
    assert of_predicted([]) == []
    (line,) = of_predicted([f"t{index}" for index in range(40)])
    assert len(line) < 250
    assert "and 35 more" in line
