from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
from click.testing import CliRunner

from bankdb.bank import AdapterBank
from bankdb.errors import PlanError
from cli.main import cli
from compute.approaches.options import PredictionOptions
from tests.support.banks.stored_rows import predict_all_stored

Usage = namedtuple("Usage", "total used free")
WAYS = [PredictionOptions(approach=approach) for approach in ("uniform", "normalized", "nearest")]


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2 * free, free, free))


def test_predictions_that_the_disk_cannot_hold_are_refused_before_any_is_computed(
    bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = 4 * len(bank) * bank.layout.size
    with_free(monkeypatch, 3 * each - 1)
    with pytest.raises(PlanError, match="free for the predictions, found"):
        predict_all_stored(bank, WAYS)
    assert not list(bank.array_path("predictions").glob("*/adapters/c/*/*"))
    with_free(monkeypatch, 3 * each)
    assert len(predict_all_stored(bank, WAYS)) == 3


def test_what_is_stored_already_needs_no_space(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    predict_all_stored(bank, WAYS[0])
    with_free(monkeypatch, 0)
    predict_all_stored(bank, WAYS[0])
    with pytest.raises(PlanError):
        predict_all_stored(bank, WAYS[1])


def test_the_command_says_so(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 0)
    result = CliRunner().invoke(
        cli, ["predict", "--bank", str(bank.path), "--all", "--approach", "uniform", "--workers", "1"]
    )
    assert result.exit_code == 1
    assert "expected" in result.stderr
    assert "predict fewer combinations at once" in result.stderr
