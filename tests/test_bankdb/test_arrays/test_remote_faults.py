"""Stores that fail now and then, and stores that die: nothing is lost, and the same command goes on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bankdb.arrays.remote import filesystem
from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.errors import ArrayStoreUnavailableError, ComputeError
from bankdb.progress import SilentProgress
from bankdb.verify import verify
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.cluster.client import open_cluster
from compute.cluster.options import ClusterOptions
from compute.prediction.matrices import distances
from compute.prediction.predict_all import PredictedBank
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import ingest_folder
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.clusters.dask_processes import DaskProcesses
from tests.support.servers.object_store import MortalServer, Proxy, reached_at

pytestmark = pytest.mark.faults

EVERY = 20


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def make(path: Path, url: str, tokenizer: Path) -> AdapterBank:
    return AdapterBank.create(path, base_model=BASE_MODEL, tokenizer=tokenizer, arrays=f"{url}/a")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# -- now and then --------------------------------------------------------------------------------------


def test_every_twentieth_request_fails(
    tmp_path: Path,
    object_server: str,
    s3: str,
    tokenizer_folder: Path,
    pairs_folder: Path,
    bank: AdapterBank,
) -> None:
    """By 503, by 500, or by a connection that is closed without an answer, in turn: nobody notices."""
    failures = (503, 500, -1)
    proxy = Proxy(object_server, lambda number, *_: 0 if number % EVERY else failures[number // EVERY % 3])
    there, out = ("--bank", tmp_path / "there"), tmp_path / "out"
    with reached_at(proxy.address):
        make(there[1], s3, tokenizer_folder).close()
        for command in (
            ("ingest", pairs_folder),
            ("predict", "--all", "--export", out, "--weight-error", "--workers", 2),
            ("verify",),
        ):
            result = run(command[0], *there, *command[1:])
            assert result.exit_code == 0, result.output
    proxy.die()
    assert proxy.failed == len(proxy.seen) // EVERY > 10
    predict_all_stored(bank).save(tmp_path / "expected")
    assert files(out) == files(tmp_path / "expected")


# -- dead ----------------------------------------------------------------------------------------------


@pytest.fixture
def mortal(object_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[MortalServer]:
    """Asked in this process, which gives up sooner than it would."""
    monkeypatch.setattr("bankdb.arrays.remote._ATTEMPTS", 2)
    monkeypatch.setattr("bankdb.arrays.remote._BODY_ATTEMPTS", 1)
    server = MortalServer(object_server)
    server.start()
    with reached_at(server.address):
        yield server
    server.stop()


@dataclass(frozen=True)
class Death:
    """At which request of its kind, and whether it was done."""

    method: str
    pattern: str
    count: int
    moment: str

    def __str__(self) -> str:
        return f"{self.moment} {self.method} {self.pattern} {self.count}"


def kill(mortal: MortalServer, death: Death) -> None:
    mortal.stop()
    mortal.start(death.method, death.pattern, death.count, death.moment)


@pytest.mark.parametrize(
    ("death", "ready"),
    [
        (Death("PUT", r"adapters\.zarr/zarr\.json", 1, "after"), 0),  # the array is made
        (Death("PUT", r"adapters\.zarr/zarr\.json", 4, "before"), 2),  # it grows
        (Death("PUT", r"adapters\.zarr/c/3/0", 1, "after"), 3),  # whole, and nobody knows
    ],
    ids=str,
)
def test_the_store_dies_in_an_ingest(
    tmp_path: Path,
    s3: str,
    mortal: MortalServer,
    tokenizer_folder: Path,
    pairs_folder: Path,
    bank: AdapterBank,
    death: Death,
    ready: int,
) -> None:
    with make(tmp_path / "there", s3, tokenizer_folder) as there:
        kill(mortal, death)
        with pytest.raises(ArrayStoreUnavailableError, match=f"{s3}/a/.*run the same command again"):
            ingest_folder(there, pairs_folder)
        assert mortal.died()
        assert len(there) == ready
        # Nor does anything else end otherwise than by saying so; what was stored is not called damaged.
        for attempt in (lambda: verify(there), lambda: ingest_folder(there, pairs_folder)):
            if ready:
                with pytest.raises(ArrayStoreUnavailableError):
                    attempt()
        mortal.start()
        report = ingest_folder(there, pairs_folder)
        assert (len(report.skipped), len(report.added), report.refused) == (ready, 6 - ready, [])
        found = verify(there)
        assert (found.checked, found.damage, found.leftovers) == (6, [], [])
        stored = {record.name: record.row_sha256 for record in there.adapters()}
        assert stored == {record.name: record.row_sha256 for record in bank.adapters()}


@pytest.fixture(scope="module")
def ingested(
    tmp_path_factory: pytest.TempPathFactory, object_server: str, tokenizer_folder: Path, pairs_folder: Path
) -> tuple[Path, str]:
    """A bank with the six pairs, and its place on the server, to be copied."""
    path = tmp_path_factory.mktemp("ingested") / "bank"
    url = "s3://banks/ingested"
    with reached_at(object_server), make(path, url, tokenizer_folder) as bank:
        ingest_folder(bank, pairs_folder)
    return path, url


@pytest.fixture
def there(tmp_path: Path, s3: str, ingested: tuple[Path, str]) -> Path:
    template, url = ingested
    shutil.copytree(template, tmp_path / "there")
    filesystem(url).copy(f"{url}/a", f"{s3}/a", recursive=True)
    file = tmp_path / "there" / "bank.json"
    file.write_text(file.read_text().replace(url, s3))
    return tmp_path / "there"


Expected = tuple[bytes, ...]


def _content(bank: AdapterBank, predicted: PredictedBank) -> Expected:
    arrays = [np.asarray(open_array(predicted.path / name)[:, :]) for name in ("adapters", "coefficients")]
    assert predicted.relative_error is not None
    arrays += [predicted.relative_error, distances(bank).values]
    return tuple(array.tobytes() for array in arrays)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Expected:
    """What a bank in a folder gives."""
    folder = tmp_path_factory.mktemp("expected") / "bank"
    shutil.copytree(bank_template, folder)
    with AdapterBank.open(folder) as bank:
        return _content(bank, predict_all_stored(bank, weight_errors=True))


@pytest.mark.parametrize(
    "death",
    [
        Death("PUT", r"distances\.zarr/[^/]+/c/0/0", 1, "before"),
        Death("GET", r"adapters\.zarr/c/", 3, "before"),
        Death("PUT", r"gram\.zarr/part-\w+/c/", 1, "after"),
        Death("PUT", r"predictions\.zarr/\w+/adapters/c", 1, "after"),
    ],
    ids=str,
)
def test_the_store_dies_in_a_prediction(
    there: Path, mortal: MortalServer, expected: Expected, death: Death
) -> None:
    """In each stage; the same call goes on, and gives the same to the last bit."""
    with AdapterBank.open(there) as opened:
        kill(mortal, death)
        with pytest.raises(ArrayStoreUnavailableError, match="run the same command again"):
            predict_all_stored(opened, weight_errors=True)
        assert mortal.died()
        mortal.start()
        predicted = predict_all_stored(opened, weight_errors=True)
        assert _content(opened, predicted) == expected
        assert verify(opened).clean


def test_what_was_done_before_the_death_is_not_done_again(
    there: Path, object_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bankdb.arrays.remote._ATTEMPTS", 1)
    proxy = Proxy(object_server, lambda number, method, path: 503 if "/gram/c/" in path else 0)
    with reached_at(proxy.address), AdapterBank.open(there) as opened:
        with pytest.raises(ArrayStoreUnavailableError):
            predict_all_stored(opened, PredictionOptions(approach="ridge"))
        proxy.answer = lambda *_: 0
        proxy.seen.clear()
        predict_all_stored(opened, PredictionOptions(approach="ridge"))
    proxy.die()
    written = Counter(path.split("/a/")[1].split("/")[0] for method, path in proxy.seen if method == "PUT")
    assert written["distances.zarr"] == written["distributions.zarr"] == written["adapters.zarr"] == 0
    assert written["predictions.zarr"] > 0
    assert not any("/part-" in path and "/c/" in path for method, path in proxy.seen if method == "PUT")


def test_a_command_says_what_to_do(there: Path, mortal: MortalServer) -> None:
    mortal.stop()
    for command in (("verify",), ("distances",), ("export", "task001", "--out", there / "out")):
        result = run(command[0], "--bank", there, *command[1:])
        assert result.exit_code == 1
        assert "the array store cannot be reached" in result.stderr
        assert "AWS_ENDPOINT_URL" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert not (there / "out").exists()


# -- workers elsewhere ---------------------------------------------------------------------------------


def test_workers_on_other_hosts_need_the_url_and_their_environment(
    there: Path, bank: AdapterBank, object_server: str, tmp_path: Path
) -> None:
    """They are not on the client's machine: nothing of the bank's folder is there while they work."""
    with DaskProcesses(tmp_path / "cluster") as cluster, AdapterBank.open(there) as opened:
        cluster.start_scheduler()
        cluster.start_worker("good")
        options = ClusterOptions(scheduler_file=cluster.file, wait_workers=1)
        shutil.move(there, tmp_path / "moved")  # the client has the database open
        with open_cluster(options, SilentProgress(), opened.store.path) as used:
            (tmp_path / "there").mkdir()
            found = distances(opened, cluster=used)
            assert [item.name for item in (tmp_path / "there").iterdir()] == [".compute.lock"]
        assert found.to_xarray().equals(distances(bank).to_xarray())
        elsewhere = Proxy(object_server, lambda *_: 404)
        cluster.start_worker("bad", AWS_ENDPOINT_URL=elsewhere.address)
        with (
            pytest.raises(ComputeError, match=r"finds nothing.*same address and credentials"),
            open_cluster(replace(options, wait_workers=2), SilentProgress(), opened.store.path),
        ):
            pass
        elsewhere.die()
