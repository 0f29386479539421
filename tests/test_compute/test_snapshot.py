"""Others ingest while a command computes: what it tells is of the adapters that it began with."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bankdb.bank import AdapterBank, ready_adapters
from bankdb.errors import BankFormatError, ConflictError
from bankdb.progress import SilentProgress
from bankdb.snapshot import of_one_snapshot, one_snapshot
from compute.approaches.options import PredictionOptions
from compute.evaluation.weight_space import bank_size_curves, weight_space_table
from compute.prediction.coefficients import coefficients
from compute.prediction.predict import predict
from compute.reporting.gather import gather
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import ingest_folder, write_pairs
from tests.support.banks.stored_rows import predict_all_stored

TUNED = PredictionOptions(metric="js", approach="tuned")
WAYS = [PredictionOptions(metric="js"), TUNED]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A further pair; and another dataset and adapter under a name that is there."""
    root = tmp_path_factory.mktemp("others")
    further = write_pairs(root / "further", 1, start=9)
    write_pairs(root / "other", 1, start=9, prefix="x")
    for kind in ("adapters", "datasets"):
        (root / "replaced" / kind).mkdir(parents=True)
        shutil.move(root / "other" / kind / "x009", root / "replaced" / kind / "task002")
    return {"further": further, "replaced": root / "replaced"}


class Meanwhile(RecordedProgress):
    """Ingests a folder, as another process would, when a stage of that name begins."""

    def __init__(self, bank: AdapterBank, folder: Path, stage: str) -> None:
        super().__init__()
        self._path, self._folder, self._stage_of_it = bank.path, folder, stage
        self.done = False

    def begin(self, stage: str, total: int) -> None:
        super().begin(stage, total)
        if stage.startswith(self._stage_of_it) and not self.done:
            self.done = True
            with AdapterBank.open(self._path) as other:
                report = ingest_folder(other, self._folder, replace=True)
            assert len(report.added) + len(report.replaced) == 1


def table(bank: AdapterBank, progress: Any) -> list[Any]:
    return [
        row.errors.relative.tolist()
        for row in weight_space_table(bank, WAYS, leave_out=["adapter"], progress=progress).rows
    ]


def report(bank: AdapterBank, progress: Any) -> list[Any]:
    found = gather(bank, WAYS, progress=progress)
    return [
        *(row.relative_error for row in found.weight_space),
        len(found.adapters),
        found.distances[0].values.tolist(),
    ]


def curves(bank: AdapterBank, progress: Any) -> list[Any]:
    return [
        curve.relative.tolist() for curve in bank_size_curves(bank, WAYS, [3, 6], draws=2, progress=progress)
    ]


def weights(bank: AdapterBank, progress: Any) -> list[Any]:
    return list(coefficients(bank, TUNED, progress=progress).values.tolist())


def errors(bank: AdapterBank, progress: Any) -> list[Any]:
    made = predict_all_stored(bank, WAYS[0], weight_errors=True, progress=progress)
    assert made.relative_error is not None
    return list(made.relative_error.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["further", "replaced"])
@pytest.mark.parametrize(
    ("command", "stage"),
    [
        (table, "gram"),
        (table, "distances"),
        (report, "distances"),
        (report, "gram"),
        (curves, "distances"),
        (curves, "gram"),
        (weights, "distances"),
        (errors, "combine"),
        (errors, "gram"),
    ],
)
def test_figures_are_those_without_the_ingest_or_none(
    bank: AdapterBank,
    tmp_path: Path,
    others: dict[str, Path],
    command: Callable[[AdapterBank, Any], list[Any]],
    stage: str,
    what: str,
) -> None:
    shutil.copytree(bank.path, tmp_path / "alone")
    with AdapterBank.open(tmp_path / "alone") as alone:
        expected = command(alone, SilentProgress())
    progress = Meanwhile(bank, others[what], stage)
    try:
        found = command(bank, progress)
    except ConflictError as error:
        reason = str(error)
    else:
        reason = ""
    if reason:
        # Its row is deleted, and was still needed.
        assert what == "replaced"
        assert re.search(r"task002 was replaced by another process .* run the same command again", reason)
        assert command(bank, progress) != expected
        return
    assert progress.done
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    counts = "1 adapters stored, 0 replaced" if what == "further" else "1 adapters stored, 1 replaced"
    assert [note for note in progress.notes if "meanwhile" in note] == [
        f"the bank changed meanwhile ({counts}): what is told is of the 6 adapters that it had at the start"
    ]
    # The next command sees what there is now.
    assert len(ready_adapters(bank)) == (7 if what == "further" else 6)


def test_a_new_dataset(bank: AdapterBank, tmp_path: Path, others: dict[str, Path]) -> None:
    data = write_pairs(tmp_path / "new", 1, start=20) / "datasets" / "task020"
    shutil.copytree(bank.path, tmp_path / "alone")
    with AdapterBank.open(tmp_path / "alone") as alone:
        expected = predict(alone, data, TUNED)
    progress = Meanwhile(bank, others["further"], "distances")
    found = predict(bank, data, TUNED, progress=progress)
    assert progress.done
    np.testing.assert_allclose(found.coefficients, expected.coefficients, rtol=1e-12)
    assert [record.row_sha256 for record in found.adapters] == [one.row_sha256 for one in expected.adapters]


def test_what_cannot_be_read_any_more_says_why(bank: AdapterBank, others: dict[str, Path]) -> None:
    @of_one_snapshot
    def failing(bank: AdapterBank, change: bool, progress: Any = None) -> None:
        if change:
            with AdapterBank.open(bank.path) as other:
                ingest_folder(other, others["replaced"], replace=True)
        raise BankFormatError("adapter row 2: no counts")

    with pytest.raises(BankFormatError, match="no counts"):
        failing(bank, False)
    with pytest.raises(
        ConflictError, match=r"task002 was replaced by another process .*run the same command"
    ):
        failing(bank, True)
    assert len(ready_adapters(bank)) == 6


def test_a_snapshot_is_of_one_thread_and_one_bank(
    bank: AdapterBank, tmp_path: Path, others: dict[str, Path]
) -> None:
    shutil.copytree(bank.path, tmp_path / "other")
    seen: list[int] = []
    with AdapterBank.open(tmp_path / "other") as other, one_snapshot(bank, SilentProgress()):
        for one in (bank, other):
            ingest_folder(one, others["further"])
        thread = threading.Thread(target=lambda: seen.append(len(ready_adapters(bank))))
        thread.start()
        thread.join()
        with one_snapshot(bank, SilentProgress()):
            assert len(ready_adapters(bank)) == 6
        assert [len(ready_adapters(bank)), len(ready_adapters(other)), *seen] == [6, 7, 7]
    assert len(ready_adapters(bank)) == 7
