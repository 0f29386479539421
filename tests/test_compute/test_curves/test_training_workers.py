"""Curves by workers are those of the client: on threads and on local processes, one of them killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError, PlanError
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterLike, ClusterOptions
from compute.curves.curve import CurveOptions, learning_curves
from compute.curves.records import LearningCurves
from compute.evaluation.answering.workers import naming_worker
from compute.evaluation.evaluate import EvaluationOptions
from compute.finetuning.kept_trainer import TrainerToKeep, lent_trainer
from compute.finetuning.start import bank_form
from compute.generation.base_model import model_fingerprint
from compute.generation.kept_model import ModelNotFoundError, ModelToKeep
from compute.generation.machine import Machine
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank
from tests.support.clusters.killing_progress import KillingProgress
from tests.support.clusters.thread_workers import thread_workers

pytestmark = pytest.mark.torch

TARGETS = NAMES[:2]
EVALUATION = EvaluationOptions(
    model=str(BASE), max_examples=3, resamples=20, targets=TARGETS, machine=Machine(device="cpu", threads=1)
)
OPTIONS = CurveOptions(steps=(0, 1, 3), examples=6, batch_size=3, evaluation=EVALUATION)
WAYS = PredictionOptions(metric="js", approach="normalized")
# Two targets from the prediction, from uniform and from zero.
RUNS = 6


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    make_bank(root / "bank", copy_pairs(root / "pairs")).close()
    return root / "bank"


@pytest.fixture
def tiny(template: Path, tmp_path: Path) -> Iterator[AdapterBank]:
    shutil.copytree(template, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as opened:
        yield opened


def numbers(curves: LearningCurves) -> object:
    """All that was measured, but the time."""
    starts = [replace(start, seconds=()) for start in curves.starts]
    return curves.targets, curves.base, curves.own, starts, curves.failures


@pytest.fixture(scope="module")
def by_client(template: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    path = shutil.copytree(template, tmp_path_factory.mktemp("client") / "bank")
    progress = RecordedProgress()
    with AdapterBank.open(path) as bank:
        found = learning_curves(bank, WAYS, OPTIONS, cluster=ClusterOptions(), progress=progress)
    assert progress.stages["train and answer, runs"] == RUNS
    return numbers(found)


@pytest.mark.faults
def test_two_processes_train_as_the_client_does_though_one_is_killed(
    tiny: AdapterBank, by_client: object
) -> None:
    progress = KillingProgress("train and answer", 2)
    with open_cluster(ClusterOptions(workers=2), progress, tiny.store.path) as cluster:
        progress.client = cluster.client
        curves = learning_curves(tiny, WAYS, OPTIONS, cluster=cluster, progress=progress)
        assert progress.another_came()
    assert numbers(curves) == by_client
    assert "trained and answered by 2 workers, 1 thread of torch each" in progress.notes
    assert not any(stage.startswith("load the base model") for stage in progress.stages)  # not in the client


def test_an_interrupted_run_goes_on_with_what_is_not_kept(tiny: AdapterBank, by_client: object) -> None:
    """On workers that state a GPU each: tasks name it; without one for torch, `auto` computes on the CPU."""
    options = replace(OPTIONS, evaluation=replace(EVALUATION, machine=Machine(threads=1)))
    done: list[str] = []

    def interrupt(stage: str) -> None:
        done.append(stage)
        if done.count("train and answer") == 2:
            raise KeyboardInterrupt

    with thread_workers(2, threads_per_worker=3, resources={"GPU": 1}) as client:

        def measured(cluster: ClusterLike, progress: RecordedProgress) -> LearningCurves:
            return learning_curves(tiny, WAYS, options, cluster=cluster, progress=progress)

        with pytest.raises(KeyboardInterrupt):
            measured(client, RecordedProgress(interrupt))
        kept = len(list((tiny.path / "curves").iterdir()))
        assert kept >= 2
        progress = RecordedProgress()
        assert numbers(measured(client, progress)) == by_client
        assert progress.stages["train and answer"] + kept == RUNS
        assert "trained and answered by 2 GPUs of the workers" in progress.notes
        again = RecordedProgress()
        assert numbers(measured(client, again)) == by_client
        assert "train and answer" not in again.stages


def test_examples_that_the_model_has_no_room_for_are_named(template: Path, tmp_path: Path) -> None:
    manifest = copy_pairs(tmp_path / "pairs")
    (file,) = (tmp_path / "pairs").rglob(f"{TARGETS[0]}/train.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [{**row, "input": "a b c " * 200} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with make_bank(tmp_path / "bank", manifest) as bank, thread_workers(1) as client:
        curves = learning_curves(bank, WAYS, OPTIONS, baseline=False, cluster=client)
    assert curves.targets == TARGETS[1:]
    assert "the base model has 256 positions" in curves.failures[TARGETS[0]]


@pytest.mark.slow
def test_a_model_without_room_twice_is_refused(tiny: AdapterBank) -> None:
    """Answers fit the share of a worker, to train beside them does not."""
    with pytest.raises(PlanError, match=r"train and answer: .* GiB .* share .* GiB; .* --train-batch-size"):
        learning_curves(
            tiny,
            WAYS,
            replace(OPTIONS, batch_size=6),
            baseline=False,
            cluster=ClusterOptions(workers=1, memory=1300 << 20),
        )


def test_a_worker_that_finds_another_model_is_named(tiny: AdapterBank, tmp_path: Path) -> None:
    other = Path(shutil.copytree(BASE, tmp_path / "base"))
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    asked = _asked(tiny, replace(EVALUATION, model=str(other)))
    with thread_workers(1) as client:
        (address,) = client.scheduler_info()["workers"]
        with pytest.raises(ComputeError, match="found other files") as error:
            client.submit(_lend, asked).result()
    assert address in str(error.value)
    assert str(other) in str(error.value)


def _asked(bank: AdapterBank, evaluation: EvaluationOptions) -> TrainerToKeep:
    folder = str(evaluation.model)
    model = ModelToKeep(folder, model_fingerprint(BASE), bank.layout, frozenset({2}), "cpu")
    return TrainerToKeep(model, "float32", bank_form(bank), bank.record.task_type, 1e-3)


def _lend(asked: TrainerToKeep) -> None:
    with naming_worker(), lent_trainer(asked):
        pass


def test_a_process_loads_a_trainer_once_and_lends_each_thread_its_own(
    tiny: AdapterBank, tmp_path: Path
) -> None:
    asked = _asked(tiny, EVALUATION)
    with lent_trainer(asked) as first, lent_trainer(asked) as second:
        assert first is not second
    with lent_trainer(asked) as third:
        assert third in (first, second)
    with lent_trainer(replace(asked, learning_rate=1e-2)) as other:
        assert other not in (first, second)
    gone = replace(asked, model=replace(asked.model, folder=str(tmp_path / "gone")))
    with pytest.raises(ModelNotFoundError), lent_trainer(gone):
        pass
