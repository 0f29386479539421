"""Leaving groups out, and the approaches that are fitted, through the workflows and the commands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal

from bankdb.bank import AdapterBank
from bankdb.errors import BankNotFoundError, ParameterError
from bankdb.progress import SilentProgress
from cli.main import cli
from compute.approaches.coefficients import new_coefficients
from compute.approaches.groups import same_unit, units_of
from compute.approaches.neural.leave_one_out import neural_leave_one_out
from compute.approaches.neural.options import NeuralOptions
from compute.approaches.neural.splits import fold_of_rows
from compute.approaches.options import PredictionOptions
from compute.approaches.registry import get_approach, names
from compute.evaluation.bootstrap import mean_difference, task_weights
from compute.evaluation.weight_space import (
    HEADINGS,
    as_csv,
    as_record,
    summary_rows,
    table_of,
    weight_space_table,
)
from compute.prediction.coefficients import Coefficients, coefficients
from compute.prediction.matrices import Matrices, compute_matrices
from compute.prediction.networks.models import stored_model
from compute.prediction.session import computing
from tests.support.banks.small_report import adapter_record
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import SyntheticBank, create_synthetic, draw_tokens, draw_vector

GROUPS = ["a", "b", "a", None, "c", "b", "c", None, "a"]
NEURAL = {"width": 4, "epochs": 3}


def options_of(approach: str, leave_out: str = "group", **other: object) -> PredictionOptions:
    neural = NEURAL if approach == "neural" else {}
    return PredictionOptions(approach=approach, leave_out=leave_out, **neural, **other)  # type: ignore[arg-type]


@pytest.fixture
def grouped(tmp_path: Path, tokenizer_folder: Path) -> Iterator[SyntheticBank]:
    made = create_synthetic(tmp_path / "bank", tokenizer_folder)
    with made.bank:
        made.add_many(range(len(GROUPS)))
        for record, group in zip(made.bank.adapters(), GROUPS, strict=True):
            made.bank.catalog.set_group(record.name, group, None)
        yield made


def bank_matrices(bank: AdapterBank, options: PredictionOptions) -> Matrices:
    with computing(bank, None, SilentProgress()) as cluster:
        return compute_matrices(bank, [options], cluster, SilentProgress())[0]


@pytest.mark.parametrize("approach", [name for name in names() if not get_approach(name).reads_labels])
def test_every_approach_leaves_the_group_out(grouped: SyntheticBank, approach: str) -> None:
    found = coefficients(grouped.bank, options_of(approach))
    same = same_unit(units_of(GROUPS, "group"))
    assert (found.values[same] == 0).all()
    assert (found.values >= 0).all() or get_approach(approach).signed
    assert_allclose(found.values.sum(axis=1), 1.0)
    plain = coefficients(grouped.bank, options_of(approach, "adapter"))
    assert_array_equal(np.diag(plain.values), 0.0)
    # Something of the group is used when adapters are left out.
    if approach not in ("matching", "nearest", "oracle"):
        assert plain.values[same].any()
    assert (found.fitted is not None) == (approach in ("tuned", "ridge", "ridge-signed"))


@pytest.mark.parametrize("approach", ["uniform", "normalized", "tuned", "ridge", "matching"])
def test_a_group_that_is_the_whole_bank_names_the_target(grouped: SyntheticBank, approach: str) -> None:
    for record in grouped.bank.adapters():
        grouped.bank.catalog.set_group(record.name, "all", None)
    with pytest.raises(ParameterError, match=r"s000.*'all'"):
        coefficients(grouped.bank, options_of(approach))
    coefficients(grouped.bank, options_of(approach, "adapter"))


def draw_matrices(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(number, 3))
    return ((place[:, None] - place) ** 2).sum(axis=2), place @ rng.normal(size=(3, 8)) + rng.normal(
        size=(number, 8)
    )


@pytest.mark.parametrize("row", [0, 3, 11])
def test_a_network_that_predicts_a_row_has_seen_nothing_of_its_group(row: int) -> None:
    distances, theta = draw_matrices(0, 12)
    units = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 5])
    groups, excluded = [str(unit) for unit in units], same_unit(units)
    options = NeuralOptions(folds=4, held_out=0.2, **NEURAL)  # type: ignore[arg-type]

    def predicted(adapters: np.ndarray) -> np.ndarray:
        gram = adapters @ adapters.T
        return neural_leave_one_out(distances, gram, 8, options, groups, excluded=excluded)[0]

    before, same = predicted(theta), excluded[row]
    assert (before[excluded] == 0).all()
    assert_allclose(before.sum(axis=1), 1.0)
    fold = fold_of_rows(12, options, groups)
    assert len(set(fold[same].tolist())) == 1
    changed = theta.copy()
    changed[same] += 100.0 * np.random.default_rng(1).normal(size=changed[same].shape)
    after = predicted(changed)
    assert_array_equal(after[same], before[same])
    assert not np.allclose(after[fold != fold[row]], before[fold != fold[row]])


def test_a_network_is_kept_for_each_way_to_leave_out(grouped: SyntheticBank) -> None:
    bank = grouped.bank
    plain = coefficients(bank, options_of("neural", "adapter"))
    with pytest.raises(BankNotFoundError, match="no network"):
        stored_model(
            bank, plain.metric, options_of("neural").neural, tuple(bank.adapters()), SilentProgress(), "group"
        )
    coefficients(bank, options_of("neural"))
    runs = bank.runs.all("neural")
    assert [json.loads(run.parameters).get("leave_out", "adapter") for run in runs] == ["adapter", "group"]
    assert_array_equal(coefficients(bank, options_of("neural", "adapter")).values, plain.values)
    # Another grouping is another training.
    bank.catalog.set_group("s003", "b", None)
    coefficients(bank, options_of("neural"))
    assert len(bank.runs.all("neural")) == 3


def test_stored_predictions_of_both_are_kept_apart(grouped: SyntheticBank) -> None:
    plain, by_group = (
        predict_all_stored(grouped.bank, options_of("uniform", one)) for one in ("adapter", "group")
    )
    assert plain.path != by_group.path
    assert plain.run.id != by_group.run.id
    assert json.loads(by_group.run.parameters)["leave_out"] == "group"
    assert "leave_out" not in json.loads(plain.run.parameters)
    again = predict_all_stored(grouped.bank, options_of("uniform", "adapter"))
    assert (again.run.id, again.path) == (plain.run.id, plain.path)
    # Also where the coefficients are equal, as without groups.
    for record in grouped.bank.adapters():
        grouped.bank.catalog.set_group(record.name, record.name, None)
    assert predict_all_stored(grouped.bank, options_of("uniform", "group")).path != plain.path


def test_tf_idf_follows_the_bank(grouped: SyntheticBank) -> None:
    before = bank_matrices(grouped.bank, PredictionOptions(metric="tf-idf"))
    grouped.add("new", draw_tokens(77), draw_vector(77, grouped.layout.size))
    after = bank_matrices(grouped.bank, PredictionOptions(metric="tf-idf"))
    assert before.metric != after.metric
    assert before.distances is not None
    assert after.distances is not None
    assert not np.array_equal(before.distances, after.distances[:9, :9])
    tokens = grouped.token_lists
    frequency = np.log(11 / (1 + sum(np.isin(np.arange(202), t) for t in tokens))) + 1
    vectors = np.stack([np.bincount(t, minlength=202) * frequency for t in tokens])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert_allclose(after.distances, 1 - vectors @ vectors.T, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("approach", ["tuned", "ridge", "matching", "normalized"])
@pytest.mark.parametrize("metric", ["js", "tf-idf", "kl"])
def test_a_new_dataset_is_predicted_by_what_the_whole_bank_fits(
    bank_template: Path, tmp_path: Path, approach: str, metric: str
) -> None:
    import shutil

    from bankdb.bank import AdapterBank
    from compute.prediction.predict import predict
    from tests.support.banks.small_bank import write_dataset

    shutil.copytree(bank_template, tmp_path / "bank")
    options = PredictionOptions(metric=metric, approach=approach)
    with AdapterBank.open(tmp_path / "bank") as bank:
        found = predict(bank, write_dataset(tmp_path / "new", 99), options)
        matrices = bank_matrices(bank, options)
        rows, fitted = new_coefficients(
            options, found.distances[None], matrices.distances, matrices.gram, matrices.units
        )
        assert_allclose(found.coefficients, rows[0])
        assert found.coefficients.sum() == pytest.approx(1.0)
        assert found.fitted == fitted
        theta = np.stack([bank.store.read(record.row) for record in bank.adapters()])
        assert_allclose(found.vector, found.coefficients @ theta, atol=1e-6)
        folder = found.save(tmp_path / "out")
        # One of the bank's own datasets is left out of its own prediction, and of what is fitted.
        again = predict(bank, bank.adapters()[2].dataset_source, options)
        assert again.coefficients[2] == 0.0
        assert again.coefficients.sum() == pytest.approx(1.0)
    record = json.loads((folder / "provenance.json").read_text())
    assert record["approach"] == approach
    assert record.get("fitted") == fitted


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ParameterError, match="adapter or group"):
        PredictionOptions(leave_out="family")
    for approach in ("tuned", "ridge", "matching"):
        with pytest.raises(ParameterError, match="own weights"):
            PredictionOptions(approach=approach, temperature=2.0)
    assert PredictionOptions(approach="matching", metric="js").metric == "mmd"


# -- the table of weight-space errors -------------------------------------------------------------------


def test_the_table_is_of_explicit_errors(grouped: SyntheticBank) -> None:
    ways = [PredictionOptions(approach=a) for a in ("normalized", "uniform", "ridge", "oracle")]
    table = weight_space_table(grouped.bank, ways)
    theta = grouped.theta
    assert [row.options.leave_out for row in table.rows] == ["adapter"] * 4 + ["group"] * 4
    for row in table.rows:
        c = coefficients(grouped.bank, row.options).values
        difference = c @ theta - theta
        assert_allclose(row.errors.mse, (difference**2).mean(axis=1), rtol=1e-4)
        relative = np.linalg.norm(difference, axis=1) / np.linalg.norm(theta, axis=1)
        assert_allclose(row.errors.relative, relative, rtol=1e-4)
    by_way = {(s.system.approach, s.system.leave_out): s for s in table.summaries(draws=200)}
    for leave_out in ("adapter", "group"):
        bound = by_way["oracle", leave_out].relative_error
        assert all(s.relative_error >= bound for s in by_way.values() if s.system.leave_out == leave_out)
        reference, uniform = by_way["normalized", leave_out], by_way["uniform", leave_out]
        assert reference.to_paper is uniform.to_uniform is None
        (row,) = (row for row in summary_rows(table, draws=200) if row[1:3] == ("normalized", leave_out))
        assert row[-3:] == (0.0, 0.0, 0.0)
        assert uniform.to_paper is not None
        assert reference.to_uniform is not None
        assert uniform.to_paper.estimate == pytest.approx(uniform.relative_error - reference.relative_error)
        assert uniform.to_paper.low <= uniform.to_paper.estimate <= uniform.to_paper.high
        assert reference.to_uniform.estimate == pytest.approx(-uniform.to_paper.estimate)


def test_the_table_as_text_csv_and_json(grouped: SyntheticBank) -> None:
    ways = [PredictionOptions(approach=a) for a in ("normalized", "uniform")]
    table = weight_space_table(grouped.bank, ways)
    rows = summary_rows(table, draws=100)
    assert len(rows) == 4
    lines = as_csv(table, draws=100).splitlines()
    assert lines[0] == ",".join(HEADINGS)
    assert float(lines[1].split(",")[5]) == rows[0][5]
    record = json.loads(json.dumps(as_record(table, draws=100), allow_nan=False))
    assert record["groups"] == GROUPS
    assert len(record["targets"]) == 4
    assert record["targets"][0]["relative_error"] == table.rows[0].errors.relative.tolist()
    alone = weight_space_table(grouped.bank, ways[1:], leave_out=["adapter"])
    assert summary_rows(alone)[0][-3:] == (None, None, None)
    with pytest.raises(ParameterError, match="found none"):
        weight_space_table(grouped.bank, [])


def test_an_adapter_of_zeros_is_left_out_of_relative_errors() -> None:
    """It has no relative error; the others' means and intervals are as if it were not there."""
    rng = np.random.default_rng(3)
    theta = rng.normal(size=(7, 40))
    theta[4] = 0.0
    records = tuple(adapter_record(f"a{row}", row, group) for row, group in enumerate("aabbccc"))
    ways = [PredictionOptions(approach=approach, leave_out="group") for approach in ("normalized", "oracle")]
    made = []
    for way in ways:
        values = rng.dirichlet(np.ones(7), 7)
        made.append(Coefficients(records, values, np.ones(7), "jensen-shannon", way))
    table = table_of(made, theta @ theta.T, 40)
    bound = table.summaries(draws=300, seed=2)[1]
    kept = [0, 1, 2, 3, 5, 6]
    errors = [
        np.linalg.norm(m.values @ theta - theta, axis=1)[kept] / np.linalg.norm(theta[kept], axis=1)
        for m in made
    ]
    assert bound.relative_error == pytest.approx(errors[1].mean())
    weights = task_weights(6, units=np.array([0, 0, 1, 1, 2, 2]), resamples=300, seed=2)
    expected = mean_difference(weights, errors[1], errors[0])
    assert bound.to_paper is not None
    assert dataclasses.astuple(bound.to_paper) == pytest.approx(dataclasses.astuple(expected))


# -- commands ------------------------------------------------------------------------------------------


def test_commands_leave_groups_out(grouped: SyntheticBank) -> None:
    path = ["--bank", str(grouped.bank.path), "--workers", "1", "--json"]
    chosen = [part for a in ("uniform", "tuned", "ridge", "matching") for part in ("--approach", a)]
    done = CliRunner().invoke(
        cli, ["coefficients", *path, *chosen, "--metric", "tf-idf", "--leave-out", "group"]
    )
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["leave_out"] == "group"
    same = same_unit(units_of(GROUPS, "group"))
    for matrix in shown["matrices"]:
        values = np.array(matrix["values"])
        assert (values[same] == 0).all()
        assert_allclose(values.sum(axis=1), 1.0)
    assert [(m["metric"], m["approach"]) for m in shown["matrices"]] == [
        ("tf-idf", "uniform"),
        ("tf-idf", "tuned"),
        ("tf-idf", "ridge"),
        ("mmd", "matching"),
    ]
    done = CliRunner().invoke(cli, ["predict", "--all", *path, "--approach", "ridge", "--leave-out", "group"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["predictions"][0]["leave_out"] == "group"
