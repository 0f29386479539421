"""All predictions as folders in one pass: the same bytes as from stored predictions, and what a broken run leaves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bankdb.bank import AdapterBank
from bankdb.errors import AdapterError, ComputeError, PlanError
from bankdb.progress import SilentProgress
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.combination import files
from compute.combination.plan import SHARD_ROWS, panel_bytes
from compute.combination.staged_files import StagedFiles
from compute.prediction.folders import one_pass
from compute.prediction.predict_all import predict_all
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.stored_files import digests
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import (
    SyntheticBank,
    create_synthetic,
    draw_tokens,
    draw_vector,
    layout_of,
)

# Two panels of columns, two blocks of targets where little memory is there.
LAYOUT = layout_of(hidden=20_000, rank=2, layers=2)
N = SHARD_ROWS + 3
WAY = PredictionOptions(metric="js", approach="normalized")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> SyntheticBank:
    made = create_synthetic(tmp_path_factory.mktemp("template") / "bank", tokenizer_folder, LAYOUT)
    made.add_many(range(N))
    predict_all(made.bank, WAY)
    made.bank.close()
    return made


@pytest.fixture
def bank(template: SyntheticBank, tmp_path: Path) -> Iterator[AdapterBank]:
    shutil.copytree(template.bank.path, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as opened:
        yield opened


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=2, processes=False), SilentProgress()) as opened:
        yield opened


def hidden(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.name.startswith(".")]


# -- bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "budget"),
    [
        ("source", 1 << 30),
        ("float16", 1 << 30),
        ("bfloat16", panel_bytes(SHARD_ROWS, N, N, 131_072)),
        ("float32", panel_bytes(SHARD_ROWS, 1, N, 131_072, blocks=1)),
    ],
)
def test_the_bytes_are_those_of_the_way_before(
    bank: AdapterBank, cluster: Cluster, tmp_path: Path, dtype: str, budget: int
) -> None:
    """Sources that are held, in one block and in two; and that pass in batches."""
    used = replace(cluster, task_budget=budget)
    predict_all(bank, WAY, cluster=used).save(tmp_path / "ours", dtype=dtype, cluster=used)
    assert hidden(tmp_path / "ours") == []
    predict_all_stored(bank, WAY, cluster=used).save(tmp_path / "theirs", dtype=dtype)
    assert digests(tmp_path / "ours") == digests(tmp_path / "theirs")
    assert len(digests(tmp_path / "ours")) == 4 * N


def test_few_sources_for_each_target(bank: AdapterBank, cluster: Cluster, tmp_path: Path) -> None:
    """Where one of them is computed again, it is with the sources of all."""
    for number, way in enumerate((replace(WAY, top_k=2), replace(WAY, approach="nearest"))):
        ours, theirs = tmp_path / f"ours{number}", tmp_path / f"theirs{number}"
        predicted = predict_all(bank, way, cluster=cluster)
        predicted.save(ours, cluster=cluster)
        shutil.rmtree(ours / "s003")
        predicted.save(ours, cluster=cluster)
        predict_all_stored(bank, way, cluster=cluster).save(theirs)
        assert digests(ours) == digests(theirs)


# -- broken runs -----------------------------------------------------------------------------------------


def interrupted(*arguments: Any, **named: Any) -> Iterator[Any]:
    from compute.cluster.tasks import run_tasks

    yield next(run_tasks(*arguments, **named))
    raise KeyboardInterrupt


@pytest.fixture
def half(
    bank: AdapterBank, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, str]]:
    """A folder in which a run ended after the first of two panels, and what is to be there in the end."""
    predicted = predict_all(bank, WAY, cluster=cluster)
    predicted.save(tmp_path / "whole", cluster=cluster)
    with monkeypatch.context() as patched:
        patched.setattr(one_pass, "run_tasks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predicted.save(tmp_path / "out", cluster=cluster)
    return tmp_path / "out", digests(tmp_path / "whole")


def save(bank: AdapterBank, out: Path, cluster: Cluster, **named: Any) -> dict[str, int]:
    progress = RecordedProgress()
    predict_all(bank, WAY, cluster=cluster).save(out, cluster=cluster, progress=progress, **named)
    assert hidden(out) == []
    return progress.stages


def test_it_goes_on_with_the_panels_that_are_missing(
    bank: AdapterBank, cluster: Cluster, half: tuple[Path, dict[str, str]]
) -> None:
    out, whole = half
    assert len(hidden(out)) == 1
    assert [item for item in out.iterdir() if not item.name.startswith(".")] == []
    assert save(bank, out, cluster) == {"export": 1, "folders": N}
    assert digests(out) == whole
    assert save(bank, out, cluster) == {}


def test_after_a_restart_of_the_machine_nothing_is_believed(
    bank: AdapterBank,
    cluster: Cluster,
    half: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, whole = half
    for file in (out / hidden(out)[0]).glob("*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))  # as a power failure may leave it
    monkeypatch.setattr("compute.combination.staged_files._boot", lambda: "another start")
    assert save(bank, out, cluster)["export"] == 2
    assert digests(out) == whole


@pytest.mark.parametrize("what", ["a file", "journal", "list", "dtype", "plan"])
def test_what_is_not_all_there_is_begun_again(
    bank: AdapterBank, cluster: Cluster, half: tuple[Path, dict[str, str]], what: str
) -> None:
    out, whole = half
    staged = out / hidden(out)[0]
    if what in {"dtype", "plan"}:
        budget = panel_bytes(SHARD_ROWS, N, N, 131_072)
        used = replace(cluster, task_budget=budget) if what == "plan" else cluster
        assert save(bank, out, used, **({"dtype": "float16"} if what == "dtype" else {}))["export"] == 2
        assert digests(out).keys() == whole.keys()
        return
    {"a file": staged / "3.safetensors", "journal": staged / "done", "list": staged / "files.json"}[
        what
    ].unlink()
    assert save(bank, out, cluster)["export"] == 2
    assert digests(out) == whole


def test_a_run_that_ended_between_two_folders(
    bank: AdapterBank, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def some(*arguments: Any, **named: Any) -> None:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(*arguments, **named)

    out, write = tmp_path / "out", one_pass.write_prediction
    with monkeypatch.context() as patched:
        patched.setattr(one_pass, "write_prediction", some)
        with pytest.raises(KeyboardInterrupt):
            save(bank, out, cluster)
    there = {name: text for name, text in digests(out).items() if not name.startswith(".")}
    assert len(there) % 4 == 0
    stages = save(bank, out, cluster)
    assert stages.keys() == {"folders"}
    assert there.items() <= digests(out).items()
    assert len(digests(out)) == 4 * N


def test_a_value_too_large_leaves_no_folder(tokenizer_folder: Path, tmp_path: Path, cluster: Cluster) -> None:
    made = create_synthetic(tmp_path / "large", tokenizer_folder)
    for seed in range(3):
        vector = draw_vector(seed, made.layout.size)
        vector[3] = 3e5
        made.add(f"s{seed}", draw_tokens(seed), vector)
    predicted = predict_all(made.bank, PredictionOptions(approach="uniform"), cluster=cluster)
    with pytest.raises(AdapterError, match="too large for float16; use --dtype float32"):
        predicted.save(tmp_path / "out", dtype="float16", cluster=cluster)
    assert list((tmp_path / "out").iterdir()) == []
    made.bank.close()


# -- disks and workers -----------------------------------------------------------------------------------


def test_a_disk_that_cannot_hold_the_folders(
    bank: AdapterBank, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_pass, "free_space", lambda path: 4 * N * LAYOUT.size // 2)
    with pytest.raises(PlanError, match=r"GiB free for the folders, found .*`bank export --prediction`"):
        save(bank, tmp_path / "out", cluster)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_cannot_be_written_is_named(
    bank: AdapterBank, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("compute.combination.files._write_at", full)
        with pytest.raises(ComputeError, match=r"\d+\.safetensors: cannot be written \(No space left"):
            save(bank, tmp_path / "out", cluster)
    assert save(bank, tmp_path / "out", cluster)["export"] == 2


@pytest.mark.parametrize("seen", [True, False])
def test_workers_of_a_scheduler_write_if_they_see_the_folder(
    bank: AdapterBank, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """Else this process does it, and says so; the budget, and with it every byte, may be another."""
    flushed: set[bool] = set()
    write_rows = files._write_rows

    def rows(*arguments: Any) -> int:
        flushed.add(arguments[-1])
        return write_rows(*arguments)

    monkeypatch.setattr(files, "_write_rows", rows)
    if not seen:
        monkeypatch.setattr(one_pass, "_read_probe", lambda path: None)
    # What a run left that was killed while it asked.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".{bank.record.identity[:16]}.seen").write_text("old")
    remote = replace(cluster, blas={})
    progress = RecordedProgress()
    folders = predict_all(bank, WAY, cluster=cluster).save(
        tmp_path / "out", cluster=remote, progress=progress
    )
    assert len(folders) == N
    assert hidden(tmp_path / "out") == []
    assert flushed == {seen}
    assert [note for note in progress.notes if "do not see this folder" in note] == (
        []
        if seen
        else [
            f"{tmp_path / 'out'}: some workers do not see this folder, so that this process combines and writes"
        ]
    )


def test_one_run_deletes_what_another_of_the_same_bank_left(tmp_path: Path) -> None:
    first = StagedFiles(tmp_path, "bank", "a" * 64)
    first.begin({0: ("float32", b"start")}, {"float32": 8})
    stranger = StagedFiles(tmp_path, "other bank", "b" * 64)
    stranger.begin({0: ("float32", b"start")}, {"float32": 8})
    second = StagedFiles(tmp_path, "bank", "c" * 64)
    assert not first.folder.exists()
    assert stranger.folder.exists()
    assert not second.folder.exists()
    assert (stranger.folder / "0.safetensors").read_bytes() == b"start" + bytes(8)
