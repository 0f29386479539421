"""Freeing and showing a bank whose catalogue is in either database."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bankdb.bank import AdapterBank
from bankdb.errors import ConflictError
from bankdb.progress import SilentProgress
from bankdb.records import GenerationKey, GenerationRecord
from bankdb.space.freed import free, freeable
from bankdb.space.kinds import FREEABLE
from cli.main import cli
from compute.cluster.options import ClusterOptions
from compute.prediction.predict_all import predict_all

EVERY_BACKEND = True
ALL = [kind.name for kind in FREEABLE]


def test_all_is_freed_unless_another_client_computes(bank: AdapterBank) -> None:
    workers = ClusterOptions(workers=1, processes=False)
    first = predict_all(bank, store="float32", cluster=workers)
    bank.generations.keep(GenerationRecord(GenerationKey("a" * 64, "b" * 64, "c" * 64), ("yes",), 1, 1.0))
    found = freeable(bank, ALL)
    with (
        AdapterBank.open(bank.path) as other,
        other.computing(SilentProgress()),
        pytest.raises(ConflictError, match="another run computes"),
    ):
        free(bank, ALL)
    assert freeable(bank, ALL) == found
    assert free(bank, ALL) == found
    assert freeable(bank, ALL).size == 0
    assert all(run.state == "open" and not bank.runs.done_pieces(run.id) for run in bank.runs.all())
    again = predict_all(bank, store="float32", cluster=workers)
    assert again.run.id == first.run.id
    assert freeable(bank, ["stored", "predictions"]).size > 0


def test_where_the_catalogue_is(bank: AdapterBank, backend: str) -> None:
    result = CliRunner().invoke(cli, ["show", "--bank", str(bank.path), "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["database"] == bank.database_shown
    assert shown["database"].startswith("postgresql://") == (backend != "sqlite")
    assert ("database" in shown["disk"]) == (backend == "sqlite")
    url = bank.location.database
    assert url is None or url.password is None or str(url.password) not in result.output
