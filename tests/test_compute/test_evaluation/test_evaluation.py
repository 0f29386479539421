"""The workflow of an evaluation: what answers, what is kept, what is generated once, and its record."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.bank import AdapterBank
from bankdb.errors import BankError, BankFormatError, BankNotFoundError, ConflictError, ParameterError
from compute.approaches.options import PredictionOptions
from compute.evaluation import systems
from compute.evaluation.adapters import adapter_tensors
from compute.evaluation.correlation import weight_correlations
from compute.evaluation.evaluate import EvaluationOptions, evaluate
from compute.evaluation.records import Evaluation, store_evaluation, stored_evaluation, stored_evaluations
from compute.evaluation.scores import Failure, Outcome, Target
from compute.evaluation.systems import (
    EvaluatedAdapter,
    EvaluatedSystem,
    System,
    default_ways,
    register,
    system_of,
)
from compute.evaluation.tables import (
    best_predictions,
    summaries,
    summary_csv,
    table1,
    table3,
    target_csv,
)
from compute.generation.machine import Machine
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank

OPTIONS = EvaluationOptions(model=str(BASE), max_examples=4, resamples=50)
NORMALIZED = PredictionOptions(metric="js", approach="normalized")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root


@pytest.fixture
def tiny(template: Path, tmp_path: Path) -> Iterator[AdapterBank]:
    """A bank of five pairs, whose datasets are `template / "pairs"`."""
    shutil.copytree(template / "bank", tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as opened:
        yield opened


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each time that a model answers: whether it had an adapter."""
    from compute.generation.generate import Generator

    found: list[bool] = []
    answer = Generator.answer

    def counted(self: Any, prompts: Any, tensors: Any = None, scaling: float = 1.0) -> Any:
        found.append(tensors is not None)
        return answer(self, prompts, tensors, scaling)

    monkeypatch.setattr(Generator, "answer", counted)
    return found


# -- what is compared ----------------------------------------------------------------------------------


def test_names_of_systems_tell_them_apart() -> None:
    ways = default_ways(
        [
            NORMALIZED,
            PredictionOptions(metric="wd", approach="attentional", temperature=0.5, top_k=3),
            PredictionOptions(approach="neural", protocol="published"),
        ],
        ["adapter", "group"],
    )
    ways += [dataclasses.replace(NORMALIZED, space="delta", rank=rank) for rank in (None, 4, "full")]
    names = [system_of(way).name for way in ways]
    assert names == [
        "uniform",
        "jensen-shannon nearest",
        "jensen-shannon normalized",
        "wasserstein attentional (temperature 0.5, top-k 3)",
        "jensen-shannon neural (protocol published)",
        "uniform (group left out)",
        "jensen-shannon nearest (group left out)",
        "jensen-shannon normalized (group left out)",
        "wasserstein attentional (temperature 0.5, top-k 3, group left out)",
        "jensen-shannon neural (protocol published, group left out)",
        "jensen-shannon normalized (delta space)",
        "jensen-shannon normalized (delta space of rank 4)",
        "jensen-shannon normalized (delta space of rank full)",
    ]


def test_the_hash_is_of_what_an_adapter_is_made_of(tiny: AdapterBank) -> None:
    first, second, *_ = tiny.adapters()

    def adapter(*sources: Any, weights: tuple[float, ...] = (0.25, 0.75), **options: Any) -> EvaluatedAdapter:
        return EvaluatedAdapter(sources, np.asarray(weights, dtype=np.float32), 1.0, **options)

    same = adapter(first, second).sha256(2.0)
    assert adapter(second, first, weights=(0.75, 0.25)).sha256(2.0) == same
    assert adapter(dataclasses.replace(first, name="other", row=77), second).sha256(2.0) == same
    others = {
        adapter(first, second).sha256(1.0),
        adapter(second, first).sha256(2.0),
        adapter(first, second, weights=(0.25, float(np.nextafter(np.float32(0.75), np.float32(1))))).sha256(
            2.0
        ),
        adapter(first, second, space="delta").sha256(2.0),
        adapter(first, second, space="delta", rank=4).sha256(2.0),
        adapter(dataclasses.replace(first, scaling=1.0), second).sha256(2.0),
        adapter(dataclasses.replace(first, row_sha256="0" * 64), second).sha256(2.0),
    }
    assert len(others | {same}) == 8


def test_tensors_are_the_weighted_sum_at_the_banks_scaling(tiny: AdapterBank) -> None:
    first, second, *_ = tiny.adapters()
    sources = (first, dataclasses.replace(second, alpha=8.0, scaling=1.0))
    weights = np.asarray([0.25, 0.75], dtype=np.float32)
    found, scaling = adapter_tensors(tiny, EvaluatedAdapter(sources, weights, 1.0))
    assert scaling == tiny.record.scaling == 2.0
    one, two = (tiny.layout.unflatten(tiny.store.read(record.row)) for record in sources)
    for name, value in found.items():
        ratio = 0.5 if "lora_B" in name else 1.0
        np.testing.assert_allclose(value, 0.25 * one[name] + 0.75 * ratio * two[name], atol=1e-6)


def test_delta_space_is_the_sum_of_products(tiny: AdapterBank) -> None:
    sources = tuple(tiny.adapters()[:2])
    weights = np.asarray([0.25, 0.75], dtype=np.float32)
    found, scaling = adapter_tensors(tiny, EvaluatedAdapter(sources, weights, 1.0, "delta", "full"))
    parts = [tiny.layout.unflatten(tiny.store.read(record.row)) for record in sources]
    for name in (name for name in found if "lora_A" in name):
        b = name.replace("lora_A", "lora_B")
        expected = sum(w * 2.0 * part[b] @ part[name] for w, part in zip(weights, parts, strict=True))
        np.testing.assert_allclose(scaling * found[b] @ found[name], expected, atol=1e-5)


@given(
    approach=st.sampled_from(["attentional", "normalized", "nearest", "uniform", "tuned", "neural"]),
    metric=st.sampled_from(["wasserstein", "kullback-leibler", "jensen-shannon", "mmd", "tf-idf"]),
    leave_out=st.sampled_from(["adapter", "group"]),
    space=st.sampled_from([("factors", None), ("delta", None), ("delta", 3), ("delta", "full")]),
)
def test_a_key_is_of_all_but_what_is_left_out(
    approach: str, metric: str, leave_out: str, space: tuple[str, Any]
) -> None:
    way = PredictionOptions(
        metric=metric, approach=approach, leave_out=leave_out, space=space[0], rank=space[1]
    )
    system = system_of(way)
    other = "group" if leave_out == "adapter" else "adapter"
    assert system_of(dataclasses.replace(way, leave_out=other)).key == system.key
    assert system_of(dataclasses.replace(way, leave_out=other)).name != system.name
    if approach != "neural":
        assert system_of(dataclasses.replace(way, compatible="published")).key != system.key
    assert system.is_candidate
    assert system.is_papers_best == (
        (approach, metric, space) == ("normalized", "jensen-shannon", ("factors", None))
    )


def test_only_what_changes_it_makes_it_another_than_the_papers_best() -> None:
    assert system_of(PredictionOptions(seed=3, width=9, epochs=2, kernel="gaussian")).is_papers_best
    for changed in ({"temperature": 2.0}, {"top_k": 3}, {"compatible": "published"}, {"metric": "mmd"}):
        assert not system_of(PredictionOptions(**changed)).is_papers_best


def test_a_name_is_registered_once() -> None:
    for name in ("base", "uniform"):

        class Taken(systems.BaseModel):
            system = System("another", name)

        with pytest.raises(ParameterError, match=f"system '{name}': expected a new name"):
            register(Taken())


# -- evaluating ----------------------------------------------------------------------------------------


class Halved(EvaluatedSystem):
    """Half of what training gave."""

    system = System("halved", "halved", space="factors")
    label = "half of the own adapter"

    def adapters(self, records: Any, made: Any, errors: Any) -> list[EvaluatedAdapter | None]:
        return [
            EvaluatedAdapter((record,), np.full(1, 0.5, dtype=np.float32), 4.0, weight_error=0.5)
            for record in records
        ]


@pytest.mark.slow
@pytest.mark.torch
def test_a_class_and_a_line_make_a_system(
    tiny: AdapterBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from cli.main import cli

    monkeypatch.setattr(systems, "REGISTERED", dict(systems.REGISTERED))
    register(Halved())
    words = ["--bank", str(tiny.path), "--model", str(BASE), "--approach", "normalized", "--metric", "js"]
    words += ["--max-examples", "2", "--resamples", "50", "--workers", "1"]
    done = CliRunner().invoke(cli, ["evaluate", *words])
    assert done.exit_code == 0, done.output
    assert "halved" in done.stdout
    (evaluation,) = stored_evaluations(tiny)
    assert [system.name for system in evaluation.systems][:4] == ["base", "own", "halved", "uniform"]
    # It answers with half of the adapter, which is not what the adapter itself does.
    own, halved = (evaluation.outcome(name, NAMES[0]) for name in ("own", "halved"))
    assert halved.sources == ((NAMES[0], 0.5),)
    assert halved.adapter_sha256 != own.adapter_sha256
    found = {one.system.name: one for one in summaries(evaluation)}
    assert found["halved"].rouge_to_base is not None
    assert found["halved"].gap_share is not None
    assert found["halved"].rouge_to_uniform is None
    # No new dataset could have it.
    assert best_predictions(list(found.values()))["adapter"].system.approach != "halved"
    done = CliRunner().invoke(
        cli,
        ["report", "--bank", str(tiny.path), "--approach", "normalized", "--out", str(tmp_path / "r.html")],
    )
    assert done.exit_code == 0, done.output
    assert "half of the own adapter" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
@pytest.mark.torch
def test_both_commands_show_the_same_figures(tiny: AdapterBank, tmp_path: Path) -> None:
    """Mean and standard deviation over targets, with n - 1, on the screen and on the page."""
    import csv
    import io

    from click.testing import CliRunner

    from cli.main import cli

    words = ["--bank", str(tiny.path), "--model", str(BASE), "--approach", "normalized", "--metric", "js"]
    words += ["--max-examples", "4", "--resamples", "50", "--workers", "1", "--csv", "-"]
    done = CliRunner().invoke(cli, ["evaluate", *words])
    assert done.exit_code == 0, done.output
    rows = {row["system"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    page = tmp_path / "r.html"
    done = CliRunner().invoke(
        cli, ["report", "--bank", str(tiny.path), "--approach", "normalized", "--out", str(page)]
    )
    assert done.exit_code == 0, done.output
    (evaluation,) = stored_evaluations(tiny)
    label = {"base": "base model", "own": "own adapter"}
    table = (
        page.read_text()
        .split("<caption>Rouge-L, mean ± standard deviation over targets")[1]
        .split("</table>")[0]
    )
    shown = dict(_table_rows(table))
    deviations = []
    for name in ("base", "own", "uniform"):
        scores = [outcome.rouge for outcome in evaluation.outcomes if outcome.system == name]
        assert len(scores) == len(NAMES)
        deviation = float(np.std(scores, ddof=1))
        deviations.append(deviation)
        assert float(rows[name]["rouge_sd"]) == pytest.approx(deviation)
        assert f"{np.mean(scores):.3f} ± {deviation:.3f}" in shown[label.get(name, name)]
    assert max(deviations) > 0.01


def _table_rows(html: str) -> list[tuple[str, list[str]]]:
    cells = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    ]
    return [(row[0].strip(), [cell.strip() for cell in row[1:]]) for row in cells if row]


@pytest.mark.torch
def test_answers_are_scored_and_kept(tiny: AdapterBank, calls: list[bool]) -> None:
    from compute.evaluation.scores import exact_match, rouge_l

    ways = default_ways([NORMALIZED], ["adapter", "group"])
    first = evaluate(tiny, ways, OPTIONS, baselines=False)
    assert [system.name for system in first.systems[:4]] == [
        "base",
        "own",
        "uniform",
        "jensen-shannon nearest",
    ]
    assert [target.name for target in first.targets] == list(NAMES)
    assert not first.failures
    hashes = {(outcome.adapter_sha256, outcome.target) for outcome in first.outcomes}
    # Equal adapters, such as the nearest one and a one-hot prediction, answered once.
    assert len(calls) == len(hashes) == tiny.generations.count()
    assert calls.count(False) == len(NAMES)
    for outcome in first.outcomes:
        assert outcome.n == len(outcome.rouge_by_example) == 4
        assert outcome.rouge == pytest.approx(np.mean(outcome.rouge_by_example))
        for index, sample in enumerate(outcome.samples):
            assert outcome.rouge_by_example[index] == rouge_l(sample.answer, sample.references)
            assert outcome.exact_by_example[index] == exact_match(sample.answer, sample.references)
    own = [outcome.exact for outcome in first.outcomes if outcome.system == "own"]
    base = [outcome.exact for outcome in first.outcomes if outcome.system == "base"]
    assert np.mean(own) > np.mean(base) + 0.3
    # Again: nothing is generated, and the record is the same.
    calls.clear()
    again = evaluate(tiny, ways, OPTIONS, baselines=False)
    assert calls == []
    assert dataclasses.replace(again, created=first.created) == first
    assert stored_evaluations(tiny) == [again]


@pytest.mark.torch
def test_sources_of_a_prediction(tiny: AdapterBank) -> None:
    found = evaluate(
        tiny, default_ways([], ["adapter"]), dataclasses.replace(OPTIONS, targets=NAMES[:2]), baselines=False
    )
    own, base = found.outcome("own", NAMES[0]), found.outcome("base", NAMES[0])
    assert (own.sources, own.effective_sources) == (((NAMES[0], 1.0),), 1.0)
    assert (base.sources, base.effective_sources) == ((), None)
    uniform = found.outcome("uniform", NAMES[0])
    assert uniform.sources == tuple((name, 0.25) for name in NAMES[1:])
    assert uniform.effective_sources == pytest.approx(4)
    nearest = found.outcome("jensen-shannon nearest", NAMES[0])
    assert nearest.sources[0][1] == 1.0
    with pytest.raises(BankNotFoundError, match="no outcome of 'nobody'"):
        found.outcome("nobody", NAMES[0])


@pytest.mark.torch
def test_what_changes_answers_is_generated_anew_and_nothing_else(
    tiny: AdapterBank, calls: list[bool]
) -> None:
    ways: list[PredictionOptions] = []
    options = dataclasses.replace(OPTIONS, targets=NAMES[:1])
    evaluate(tiny, ways, options, baselines=False)
    expected = len(calls)
    for same in (
        dataclasses.replace(options, machine=Machine(device="cpu", batch_size=2, threads=1)),
        dataclasses.replace(options, resamples=7, seed=3),
    ):
        evaluate(tiny, ways, same, baselines=False)
        assert len(calls) == expected
    for other in (
        dataclasses.replace(options, max_examples=5),
        dataclasses.replace(options, machine=Machine(dtype="bfloat16")),
    ):
        evaluate(tiny, ways, other, baselines=False)
        expected += 2
        assert len(calls) == expected


@pytest.mark.torch
def test_threads_and_batches_answer_alike(tiny: AdapterBank, template: Path, tmp_path: Path) -> None:
    shutil.copytree(template / "bank", tmp_path / "other")
    ways = [NORMALIZED]
    machines = (Machine(threads=1, batch_size=1), Machine(threads=3))
    with AdapterBank.open(tmp_path / "other") as other:
        first, second = (
            evaluate(
                bank, ways, dataclasses.replace(OPTIONS, targets=NAMES[:2], machine=machine), baselines=False
            )
            for bank, machine in zip((tiny, other), machines, strict=True)
        )
    assert [outcome.samples for outcome in first.outcomes] == [outcome.samples for outcome in second.outcomes]


@pytest.mark.torch
def test_a_second_report_loads_neither_torch_nor_the_model(tiny: AdapterBank, template: Path) -> None:
    evaluate(tiny, [NORMALIZED], OPTIONS, baselines=False)
    program = (
        "import sys, bankdb, compute;"
        f"bank = bankdb.open({str(tiny.path)!r});"
        f"options = compute.EvaluationOptions(model={str(BASE)!r}, max_examples=4, resamples=50);"
        "compute.evaluate(bank, compute.PredictionOptions(), options, baselines=False);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.torch
def test_a_run_that_failed_goes_on_where_it_was(tiny: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    from compute.generation.generate import Generator

    answer = Generator.answer
    done: list[int] = []

    def failing(self: Any, *arguments: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return answer(self, *arguments)

    options = dataclasses.replace(OPTIONS, machine=Machine(threads=1))
    monkeypatch.setattr(Generator, "answer", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny, [], options, baselines=False)
    kept = tiny.generations.count()
    assert kept == 3
    assert stored_evaluations(tiny) == []
    monkeypatch.setattr(Generator, "answer", answer)
    evaluate(tiny, [], options, baselines=False)
    assert tiny.generations.count() == 2 * len(NAMES)


@pytest.mark.torch
def test_a_target_without_a_test_split_is_named_and_the_others_go_on(
    tiny: AdapterBank, template: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for name in NAMES[:2]:
        (data / name).mkdir(parents=True)
        shutil.copy(template / "pairs" / "datasets" / name / "test.jsonl", data / name / "test.jsonl")
    (data / NAMES[2]).mkdir()
    (data / NAMES[2] / "test.jsonl").write_text(json.dumps({"input": "a " * 300, "output": "b"}) + "\n")
    found = evaluate(tiny, [], dataclasses.replace(OPTIONS, data=data), baselines=False)
    assert [target.name for target in found.targets] == list(NAMES[:2])
    reasons = {failure.target: failure.reason for failure in found.failures}
    assert sorted(reasons) == sorted(NAMES[2:])
    assert "256 positions" in reasons[NAMES[2]]
    assert "pass --data FOLDER" in reasons[NAMES[3]]
    assert len(summaries(found)) == 2
    with pytest.raises(BankError, match=r"no target could be evaluated, of 5: .*pass --data"):
        evaluate(tiny, [], dataclasses.replace(OPTIONS, data=tmp_path / "nowhere"), baselines=False)


@pytest.mark.torch
def test_unknown_targets_and_options_are_refused(tiny: AdapterBank, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"targets: expected names .* found nobody"):
        evaluate(tiny, [], dataclasses.replace(OPTIONS, targets=("nobody",)), baselines=False)
    with pytest.raises(BankError, match="pass --model PATH"):
        evaluate(tiny, [], dataclasses.replace(OPTIONS, model=str(tmp_path)), baselines=False)
    for name in ("max_examples", "resamples"):
        with pytest.raises(ParameterError, match="expected at least 1, found 0"):
            dataclasses.replace(OPTIONS, **{name: 0})


# -- the record and its tables -------------------------------------------------------------------------


def outcome(system: str, target: str, rouge: float, exact: int) -> Outcome:
    return Outcome(
        system, target, 1, rouge, exact, exact, (rouge,), (exact,), (exact,), (), (), None, "0", 1.0
    )


def evaluation(**changes: Any) -> Evaluation:
    """Three tasks: base 0, 0.2, 0.1; own 1, 0.8, 0.9; uniform and a prediction between."""
    systems = (
        System("base", "base"),
        System("own", "own", space="factors"),
        System("uniform", "uniform", None, "adapter", "factors"),
        System("js normalized", "normalized", "jensen-shannon", "adapter", "factors", {"top_k": 3}),
    )
    scores = {
        "base": (0.0, 0.2, 0.1),
        "own": (1.0, 0.8, 0.9),
        "uniform": (0.3, 0.2, 0.1),
        "js normalized": (0.5, 0.1, 0.9),
    }
    targets = tuple(Target(name, None, 1, 9, name) for name in ("x", "y", "z"))
    values: dict[str, Any] = {
        "identity": "abc",
        "created": "2026-01-01T00:00:00Z",
        "settings": {"resamples": 200, "seed": 0},
        "bank": {"adapters": 3},
        "systems": systems,
        "targets": targets,
        "outcomes": tuple(
            outcome(system, target.name, rouge, int(rouge > 0.7))
            for system, values in scores.items()
            for target, rouge in zip(targets, values, strict=True)
        ),
        "failures": (Failure("w", "no test split"),),
        "seconds": 12.0,
    }
    return Evaluation(**(values | changes))


def test_an_evaluation_shows_and_saves_itself(tmp_path: Path) -> None:
    record = evaluation()
    text = repr(record)
    assert text.splitlines()[0] == "Evaluation abc: 3 tasks, 3 test examples"
    assert "own: Rouge-L 0.900, exact 1.000" in text
    assert "not evaluated: 1 tasks" in text
    many = tuple(System(f"s{i}", "uniform", None, "adapter", "factors") for i in range(300))
    large = evaluation(
        systems=many, outcomes=tuple(outcome(one.name, "x", 0.5, 0) for one in many for _ in range(20))
    )
    assert len(repr(large)) < 1000
    assert "further systems: 290" in repr(large)
    assert len(large._repr_html_()) < 5000
    folder = record.save(tmp_path / "out")
    assert Evaluation.from_json((folder / "evaluation.json").read_text()) == record
    assert (folder / "systems.csv").read_text() == summary_csv(record.summaries())
    assert (folder / "targets.csv").read_text().count("\n") == 1 + len(record.outcomes)
    with pytest.raises(ConflictError, match=r"systems\.csv: already there"):
        evaluation(identity="other").save(folder)
    assert Evaluation.from_json((folder / "evaluation.json").read_text()) == record
    evaluation(identity="other").save(folder, overwrite=True)
    assert pickle.loads(pickle.dumps(record)) == record


def test_the_record_comes_back_from_json() -> None:
    record = evaluation()
    assert Evaluation.from_json(record.to_json()) == record


STORED = Path(__file__).with_name("stored_evaluation.json")
"""Of two examples of two targets of the tiny bank, stored before systems were objects."""


def test_an_evaluation_of_the_version_before_is_read(bank: AdapterBank) -> None:
    text = STORED.read_text().rstrip("\n")
    record = Evaluation.from_json(text, str(STORED))
    assert record.to_json() == text  # to the last digit, and the same keys
    names = [system.name for system in record.systems]
    assert names[:2] == ["base", "own"]
    assert "jensen-shannon normalized (top-k 2, group left out)" in names
    # What it was asked for makes systems of the same names and parameters today.
    again = default_ways([PredictionOptions(), PredictionOptions(top_k=2)], ["adapter", "group"])
    again += [PredictionOptions(space="delta", rank=4)]
    assert record.systems == tuple(one.system for one in systems.compared_systems(again))
    store_evaluation(bank, record)
    assert stored_evaluations(bank) == [record]
    by_name = {one.system.name: one for one in summaries(record)}
    for name, one in by_name.items():
        rouge = [outcome.rouge for outcome in record.outcomes if outcome.system == name]
        assert one.rouge.mean == pytest.approx(np.mean(rouge))
        assert one.rouge.deviation == pytest.approx(np.std(rouge, ddof=1))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 99}', '{"format": 1, "x": 2}'])
def test_what_is_no_evaluation_is_refused(text: str) -> None:
    with pytest.raises(BankFormatError, match=r"x\.json: .*evaluate again"):
        Evaluation.from_json(text, "x.json")


def test_evaluations_are_stored_by_identity(bank: AdapterBank) -> None:
    assert stored_evaluations(bank) == []
    later = evaluation(identity="aaa", created="2026-02-01T00:00:00Z")
    for record in (later, evaluation(), later):
        store_evaluation(bank, record)
    assert [found.identity for found in stored_evaluations(bank)] == ["abc", "aaa"]
    assert stored_evaluation(bank, "abc") == evaluation()
    assert sorted(path.name for path in (bank.path / "evaluations").iterdir()) == ["aaa.json", "abc.json"]
    with pytest.raises(BankNotFoundError, match="no such evaluation, found aaa, abc"):
        stored_evaluation(bank, "zzz")


def test_summaries_are_over_tasks() -> None:
    base, own, uniform, ours = summaries(evaluation())
    assert (ours.rouge.mean, ours.rouge.deviation) == pytest.approx((0.5, 0.4))
    assert (ours.exact.mean, ours.exact.deviation) == pytest.approx((1 / 3, np.sqrt(1 / 3)))
    assert ours.rouge_to_base is not None
    assert ours.rouge_to_uniform is not None
    assert ours.gap_share is not None
    assert ours.rouge_to_base.estimate == pytest.approx(0.4)
    assert ours.rouge_to_uniform.estimate == pytest.approx(0.3)
    assert ours.gap_share.estimate == pytest.approx(0.4 / 0.8)
    assert (ours.better, ours.equal, ours.worse) == (2, 0, 1)
    assert (uniform.better, uniform.equal, uniform.worse) == (1, 2, 0)
    assert base.rouge_to_base is base.rouge_to_uniform is base.gap_share is None
    assert uniform.rouge_to_uniform is None
    assert own.rouge_to_uniform is None
    assert best_predictions([base, own, uniform, ours]) == {"adapter": ours}


def test_differences_to_the_papers_best_and_whole_groups_drawn() -> None:
    record = evaluation()
    targets = tuple(
        dataclasses.replace(target, group=g) for target, g in zip(record.targets, "aab", strict=True)
    )
    paper = System("paper", "normalized", "jensen-shannon", "group", "factors")
    ours = System("ours", "ridge", "jensen-shannon", "group", "factors")
    scores = {"paper": (0.1, 0.2, 0.3), "ours": (0.2, 0.4, 0.2)}
    more = [
        outcome(name, target.name, value, 0)
        for name, values in scores.items()
        for target, value in zip(targets, values, strict=True)
    ]
    record = dataclasses.replace(
        record,
        targets=targets,
        systems=(*record.systems, paper, ours),
        outcomes=(*record.outcomes, *more),
        settings={"resamples": 4000, "seed": 0},
    )
    found = {one.system.name: one for one in summaries(record)}
    assert found["paper"].rouge_to_paper is None
    # With groups left out, and with another parameter or adapters left out, there is no such system to compare with.
    assert found["js normalized"].rouge_to_paper is None
    interval = found["ours"].rouge_to_paper
    assert interval is not None
    assert interval.estimate == pytest.approx((0.1 + 0.2 - 0.1) / 3)
    # Two groups: both once, or one of them twice. The bounds are the means of one group alone.
    assert (interval.low, interval.high) == pytest.approx((-0.1, 0.15))


def test_weight_errors_are_correlated_with_rouge() -> None:
    """By hand: ranks of three systems, over their means and on each target."""
    names = ("one", "two", "three")
    systems = tuple(System(name, name, None, "adapter", "factors") for name in names)
    errors = {"one": (0.1, 0.4, 0.3), "two": (0.2, 0.5, 0.2), "three": (0.3, 0.6, 0.9)}
    scores = {"one": (0.9, 0.5, 0.1), "two": (0.5, 0.5, 0.9), "three": (0.1, 0.5, 0.5)}
    record = evaluation()
    outcomes = tuple(
        dataclasses.replace(
            outcome(name, target.name, scores[name][place], 0), weight_error=errors[name][place]
        )
        for name in names
        for place, target in enumerate(record.targets)
    )
    record = dataclasses.replace(
        record, systems=(*record.systems, *systems), outcomes=(*record.outcomes, *outcomes)
    )
    (found,) = weight_correlations(record)
    # Mean errors rank 1, 2, 3 (0.267, 0.3, 0.6); mean scores 0.5, 0.633, 0.367 rank 2, 3, 1: rho = 1 - 6*6/24.
    assert (found.leave_out, found.systems, found.targets) == ("adapter", 3, 2)
    assert found.across == pytest.approx(-0.5)
    # x: reversed, -1. y: all score alike, left out. z: errors rank 2, 1, 3, scores 1, 3, 2: rho = 1 - 6*6/24.
    assert found.within is not None
    assert found.within.estimate == pytest.approx((-1.0 - 0.5) / 2)
    assert (found.within.low, found.within.high) == pytest.approx((-1.0, -0.5))
    assert weight_correlations(evaluation()) == []


def test_uniform_is_that_of_the_same_left_out() -> None:
    grouped = System("uniform g", "uniform", None, "group", "factors")
    ours = System("ours g", "normalized", "js", "group", "factors")
    record = evaluation()
    more = [
        outcome(system.name, target.name, value, 0)
        for system, value in ((grouped, 0.1), (ours, 0.4))
        for target in record.targets
    ]
    record = dataclasses.replace(
        record, systems=(*record.systems, grouped, ours), outcomes=(*record.outcomes, *more)
    )
    found = summaries(record)[-1]
    assert found.rouge_to_uniform is not None
    assert found.rouge_to_uniform.estimate == pytest.approx(0.3)


def test_a_single_task_has_no_deviation() -> None:
    record = evaluation()
    record = dataclasses.replace(
        record,
        targets=record.targets[:1],
        outcomes=tuple(found for found in record.outcomes if found.target == "x"),
    )
    assert [one.rouge.deviation for one in summaries(record)] == [None] * 4


def test_a_lacking_outcome_is_named() -> None:
    record = evaluation()
    with pytest.raises(ParameterError, match="expected an outcome of js normalized on z, found none"):
        summaries(dataclasses.replace(record, outcomes=record.outcomes[:-1]))


def test_tables() -> None:
    found = summaries(evaluation())
    headings, rows = table1(found)
    assert [row[0] for row in rows] == ["base", "own", "uniform", "js normalized"]
    assert all(len(row) == len(headings) for row in rows)
    headings, rows = table3(found)
    assert [row[0] for row in rows] == ["own", "uniform", "js normalized"]
    assert all(len(row) == len(headings) for row in rows)
    # Three targets have no interval worth telling.
    assert str(rows[-1][1]) == "+0.400"
    assert str(rows[-1][headings.index("gap closed")]) == "50%"


def test_csv_has_all_digits() -> None:
    import csv
    import io

    record = evaluation()
    rows = list(csv.DictReader(io.StringIO(summary_csv(summaries(record)))))
    ours = rows[-1]
    assert (ours["system"], ours["metric"], ours["leave_out"]) == (
        "js normalized",
        "jensen-shannon",
        "adapter",
    )
    assert float(ours["exact_sd"]) == np.std([0, 0, 1], ddof=1)
    assert float(ours["gap_share"]) == pytest.approx(0.5)
    assert rows[0]["gap_share"] == ""
    by_target = list(csv.DictReader(io.StringIO(target_csv(record))))
    assert len(by_target) == 12
    assert by_target[-1]["rouge"] == "0.9"
