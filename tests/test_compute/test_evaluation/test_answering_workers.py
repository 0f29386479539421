"""Answers by workers are those of the client: on local processes, on a scheduler's, and where one of them is killed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from bankdb.bank import AdapterBank
from bankdb.errors import ComputeError, PlanError
from compute.approaches.options import PredictionOptions
from compute.cluster.options import ClusterOptions
from compute.evaluation.evaluate import EvaluationOptions, evaluate
from compute.evaluation.records import Evaluation
from compute.generation.machine import Machine
from compute.generation.model_size import model_size
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.tiny_bank import BASE, NAMES, copy_pairs, make_bank
from tests.support.servers.dask_processes import DaskProcesses

pytestmark = pytest.mark.torch

OPTIONS = EvaluationOptions(
    model=str(BASE), max_examples=6, resamples=20, targets=NAMES[:3], machine=Machine(device="cpu")
)
WAYS = [PredictionOptions(metric="js", approach="normalized", space=space) for space in ("factors", "delta")]
# Per target: the base model, its own adapter, and of either space uniform, nearest and normalized.
JOBS = 3 * 8


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


def answered(bank: AdapterBank, evaluation: Evaluation) -> dict[tuple[str, str], Any]:
    """Every score of every example, and the first answers as they are."""
    return {
        (one.system, one.target): (
            one.adapter_sha256,
            one.rouge_by_example,
            one.exact_unstripped_by_example,
            [sample.answer for sample in one.samples],
        )
        for one in evaluation.outcomes
    }


def texts(bank: AdapterBank) -> dict[Any, tuple[str, ...]]:
    """All that is kept, by what it is kept under."""
    return {(one.key.adapter_sha256, one.key.test_sha256): one.texts for one in kept(bank)}


def kept(bank: AdapterBank) -> list[Any]:
    return list(bank.generations.all())


@pytest.fixture(scope="module")
def by_client(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, tuple[str, ...]]:
    """What the client itself answers."""
    path = shutil.copytree(template, tmp_path_factory.mktemp("client") / "bank")
    with AdapterBank.open(path) as bank:
        evaluate(bank, WAYS, OPTIONS, cluster=ClusterOptions())
        return texts(bank)


class Killing(RecordedProgress):
    """Does something once, when so many answers have come."""

    def __init__(self, after: int, what: Callable[[], None]) -> None:
        super().__init__()
        self._left, self._what = after, what

    def advance(self, steps: int = 1) -> None:
        super().advance(steps)
        if self.stage == "generate":
            self._left -= 1
            if self._left == 0:
                self._what()
