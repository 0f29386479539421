"""What `bank clean` frees: told to the byte, made again to the bit, and nothing but what can be."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from safetensors.numpy import load

from bankdb.arrays.durable import sizes_below
from bankdb.arrays.metadata import ArrayLayout, write_array
from bankdb.bank import AdapterBank
from bankdb.errors import ConflictError
from bankdb.initialisation.compare import compare
from bankdb.progress import SilentProgress
from bankdb.records import DERIVED_KINDS, GenerationKey, GenerationRecord
from bankdb.space.freed import free, freeable
from bankdb.space.kinds import FREEABLE, UNNAMED
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import Cluster, ClusterOptions
from compute.labels.kept_losses import KeptLosses
from compute.prediction.predict_all import predict_all
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import ingest_folder

ROOT = Path(__file__).resolve().parents[3]
ALL = tuple(kind.name for kind in FREEABLE)
TEXTS = ("seven", "acht", "ни́ne")
WAYS = [
    PredictionOptions(metric="js", approach="normalized"),
    PredictionOptions(metric="wd", approach="attentional"),
    PredictionOptions(metric="js", approach="ridge"),
    PredictionOptions(metric="js", approach="neural", width=4, epochs=2, knots=16),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(ClusterOptions(workers=1, processes=False), SilentProgress()) as opened:
        yield opened


def fill(bank: AdapterBank, cluster: Cluster) -> None:
    """Have a bank hold something of every kind."""
    predict_all(bank, WAYS, store="float32", cluster=cluster)
    silent = SilentProgress()
    compare(bank, silent)
    with bank.computing(silent):
        KeptLosses(bank, "5" * 64, silent).keep("a", 1.5)
    bank.generations.keep(GenerationRecord(GenerationKey("a" * 64, "b" * 64, "c" * 64), TEXTS, 9, 1.0))
    root = bank.array_path("distances")
    if isinstance(root, Path):
        chunk = next(file for file in sorted(root.rglob("0")) if file.is_file())
        chunk.with_name(f"0.{'7' * 32}.partial").write_bytes(b"half")
        part = bank.array_path("gram") / f"part-{'a' * 16}"
        write_array(
            part, ArrayLayout((1,), (1,), "float64"), {"bank": bank.record.identity, "made_from": "x"}
        )


@pytest.fixture(scope="module")
def template(bank_template: Path, tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Path:
    path = tmp_path_factory.mktemp("filled") / "bank"
    shutil.copytree(bank_template, path)
    with AdapterBank.open(path) as bank:
        fill(bank, cluster)
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "bank"))


def run(path: Path, command: str, *arguments: object, status: int = 0, text: str = "") -> Result:
    words = [command, "--bank", str(path), *map(str, arguments)]
    result = CliRunner().invoke(cli, words, input=text)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def contents(path: Path) -> dict[str, bytes]:
    """All files of a bank but its database, by name."""
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("bank.db"))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def numbers(path: Path) -> dict[str, bytes]:
    """The chunks of all arrays that runs made, by name."""
    kinds = ("distances", "predictions", "neural")
    return {
        name: data
        for name, data in contents(path).items()
        if name.split(".")[0] in kinds and "/c/" in name and not name.endswith(".partial")
    }


# -- how much ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [UNNAMED, ALL, *((name,) for name in ALL)], ids=str)
def test_what_is_told_is_what_the_disk_has_less(path: Path, kinds: tuple[str, ...]) -> None:
    before = sum(map(len, contents(path).values()))
    only = [word for kind in kinds for word in ("--only", kind)] if kinds != UNNAMED else []
    told = json.loads(run(path, "clean", "--dry-run", "--json", *only).stdout)
    assert sum(map(len, contents(path).values())) == before
    freed = json.loads(run(path, "clean", "--yes", "--json", *only).stdout)
    assert told == freed | {"freed": False}
    assert list(freed["kinds"]) == [name for name in ALL if name in kinds]
    assert all(
        amount["files"] for kind, amount in freed["kinds"].items() if kind != "unfinished" or kinds == (kind,)
    )
    answers = freed["kinds"].get("answers", {"size": 0})["size"]
    assert answers == (len(json.dumps(TEXTS)) if "answers" in kinds else 0)
    assert before - sum(map(len, contents(path).values())) == freed["bytes"] - answers
    again = json.loads(run(path, "clean", "--yes", "--json", *only).stdout)
    assert (again["bytes"], again["kept"]) == (0, [])
    run(path, "verify")


def test_adapters_tokenizer_and_what_was_not_named_stay(path: Path) -> None:
    before = contents(path)
    records = run(path, "list", "--json").stdout
    run(path, "clean", "--yes")
    after = contents(path)
    assert set(before) - set(after)
    assert all(before[name] == data for name, data in after.items())
    lost = {name.split("/")[0] for name in set(before) - set(after)}
    assert lost == {
        f"{kind}.zarr" for kind in ("distributions", "distances", "gram", "neural", "predictions")
    }
    assert {name for name in set(before) - set(after) if name.startswith("predictions.zarr")} == {
        name for name in before if name.startswith("predictions.zarr") and "/adapters/" in name
    }
    assert run(path, "list", "--json").stdout == records
    with AdapterBank.open(path) as bank:
        assert bank.generations.count() == 1
    run(path, "clean", "--yes", *(word for name in ALL for word in ("--only", name)))
    assert {name.split("/")[0] for name in contents(path)} - {f"{kind}.zarr" for kind in DERIVED_KINDS} == {
        name.split("/")[0] for name in before
    } - {f"{kind}.zarr" for kind in DERIVED_KINDS}
    assert all(
        name.endswith(".zarr/zarr.json") for name in contents(path) if name.split(".")[0] in DERIVED_KINDS
    )
    with AdapterBank.open(path) as bank:
        assert bank.generations.count() == 0


# -- made again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [UNNAMED, ALL], ids=["unnamed", "all"])
def test_predictions_are_made_again_to_the_bit(path: Path, kinds: tuple[str, ...], cluster: Cluster) -> None:
    expected = numbers(path)
    with AdapterBank.open(path) as bank:
        runs = {run.inputs_sha256: run.id for run in bank.runs.all("predictions")}
        free(bank, kinds)
        assert numbers(path) != expected
        predict_all(bank, WAYS, store="float32", cluster=cluster)
        assert {run.inputs_sha256: run.id for run in bank.runs.all("predictions")} == runs
    assert numbers(path) == expected
    assert run(path, "verify").output.count("leftover") == 0


def test_a_stored_run_is_read_until_it_is_named(path: Path, tmp_path: Path) -> None:
    with AdapterBank.open(path) as bank:
        number = bank.runs.all("predictions")[0].id

    def exported(name: str, status: int = 0) -> bytes:
        out = tmp_path / name
        result = run(path, "export", "task003", "--prediction", number, "--out", out, status=status)
        return result.output.encode() if status else (out / "adapter_model.safetensors").read_bytes()

    def values(weights: bytes) -> NDArray[np.float32]:
        tensors = load(weights)
        return np.concatenate([tensors[name].astype(np.float32).ravel() for name in sorted(tensors)])

    before = values(exported("before"))
    run(path, "clean", "--yes")
    after = exported("after")
    # Combined now, which sums in another order than all at once.
    np.testing.assert_allclose(values(after), before, rtol=0, atol=1e-6 * np.abs(before).max())
    run(path, "clean", "--yes", "--only", "predictions")
    assert b"run the same `bank predict --all` again" in exported("gone", status=1)
    run(path, "predict", "--all", "--metric", "js", "--approach", "normalized", "--workers", 1)
    assert exported("again") == after


# -- killed --------------------------------------------------------------------------------------------

KILLED = """
import os, pathlib, signal, sys
left, unlink = int(sys.argv[2]), pathlib.Path.unlink
def counted(self, *arguments, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    unlink(self, *arguments, **options)
from bankdb.bank import AdapterBank
from bankdb.catalog.runs import RunBook
from bankdb.space.freed import free
from bankdb.space.kinds import FREEABLE
with AdapterBank.open(sys.argv[1]) as bank:
    pathlib.Path.unlink = counted
    RunBook.reopen = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    free(bank, [kind.name for kind in FREEABLE])
"""


@pytest.mark.faults
@pytest.mark.parametrize("share", [0.03, 0.2, 0.45, 0.7, 0.9, 1])
def test_killed_in_the_middle_it_leaves_a_bank_that_works(
    path: Path, tmp_path: Path, share: float, cluster: Cluster
) -> None:
    """At a file, or between the last file and what is recorded of the runs."""
    expected = numbers(path)
    with AdapterBank.open(path) as bank:
        files = sum(amount.files for kind, amount in freeable(bank, ALL).amounts.items() if kind != "answers")
    before = len(contents(path))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(int(share * files))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert before - len(contents(path)) == int(share * files)
    run(path, "verify")
    again = Path(shutil.copytree(path, tmp_path / "again"))
    with AdapterBank.open(path) as bank:
        predict_all(bank, WAYS, store="float32", cluster=cluster)
    assert numbers(path) == expected
    run(path, "verify")
    left = sum(map(len, contents(again).values()))
    freed = json.loads(
        run(again, "clean", "--yes", "--json", *(w for name in ALL for w in ("--only", name))).stdout
    )
    assert (
        left - sum(map(len, contents(again).values())) == freed["bytes"] - freed["kinds"]["answers"]["size"]
    )
    assert "leftover" not in run(again, "verify").output


# -- what is in doubt, and who else is there --------------------------------------------------------------


def test_nothing_is_deleted_while_another_run_computes(path: Path) -> None:
    before = contents(path)
    with AdapterBank.open(path) as bank, AdapterBank.open(path) as other:
        with other.computing(SilentProgress()), pytest.raises(ConflictError, match="another run computes"):
            free(bank, ALL)
        assert contents(path) == before
        assert free(bank, ALL).size > 0


def test_what_is_not_the_banks_stays_and_is_told(path: Path, tmp_path: Path) -> None:
    foreign = path / "gram.zarr" / "mine"
    write_array(foreign, ArrayLayout((1,), (1,), "float64"), {"bank": "another", "made_from": "x"})
    notes = path / "distances.zarr" / "notes.txt"
    notes.write_text("of somebody")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(path / "neural.zarr", elsewhere)
    (path / "neural.zarr").symlink_to(elsewhere)
    kept = sizes_below(elsewhere)
    result = run(path, "clean", "--yes")
    assert [line for line in result.stderr.splitlines() if line.startswith("kept: ")]
    assert "mine/zarr.json" in result.stderr
    assert "behind a symbolic link" in result.stderr
    assert (foreign / "zarr.json").is_file()
    assert notes.read_text() == "of somebody"
    assert sizes_below(elsewhere) == kept
    assert not (path / "gram.zarr" / "gram").exists()


# -- asking --------------------------------------------------------------------------------------------


def test_it_shows_and_asks_before(path: Path) -> None:
    before = contents(path)
    refused = run(path, "clean", status=1, text="n\n")
    assert "numbers of predictions (--store)" in refused.stdout
    assert "Free it? [y/N]" in refused.stderr
    run(path, "clean", status=1)  # nobody answers
    assert "--json: asks nothing" in run(path, "clean", "--json", status=2).stderr
    assert contents(path) == before
    agreed = run(path, "clean", text="y\n")
    assert agreed.stdout.splitlines()[-1].endswith(" freed")
    assert contents(path) != before
    assert "nothing to be freed" in run(path, "clean").stdout


@pytest.mark.parametrize(
    "words", [["--dry-run"], ["--dry-run", *(w for name in ALL for w in ("--only", name))]]
)
def test_tables_fit_eighty_columns(path: Path, words: list[str]) -> None:
    lines = run(path, "clean", *words).output.splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 80


# -- under a URL ---------------------------------------------------------------------------------------


def test_under_a_url(
    tmp_path: Path, s3: str, tokenizer_folder: Path, pairs_folder: Path, cluster: Cluster
) -> None:
    made = AdapterBank.create(
        tmp_path / "remote", base_model=BASE_MODEL, tokenizer=tokenizer_folder, arrays=f"{s3}/a"
    )
    with made as bank:
        ingest_folder(bank, pairs_folder)
        rows = sizes_below(bank.store.path)
        fill(bank, cluster)
        before = sizes_below(bank.arrays)
        found = freeable(bank, UNNAMED)
        assert found == free(bank, UNNAMED)
        assert sum(before.values()) - sum(sizes_below(bank.arrays).values()) == found.size > 0
        free(bank, ALL)
        left = sizes_below(bank.arrays)
        assert {
            name.split("/", 1)[1] for name in left if not name.startswith("adapters.zarr/") and "/" in name
        } == {"zarr.json"}
        assert sizes_below(bank.store.path) == rows
        predict_all(bank, WAYS, store="float32", cluster=cluster)
        again = {name: size for name, size in sizes_below(bank.arrays).items() if "predictions.zarr" in name}
        assert again == {name: size for name, size in before.items() if "predictions.zarr" in name}
