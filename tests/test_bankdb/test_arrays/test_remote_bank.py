"""A bank whose arrays are under a URL does what one in a folder does, to the last bit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from bankdb.arrays.remote import RemotePath, delete, filesystem, located, objects_below, put
from bankdb.arrays.zarr_arrays import open_array
from bankdb.bank import AdapterBank
from bankdb.errors import BankError, BankFormatError, ConflictError, ParameterError
from bankdb.peft.weights import load_adapter
from bankdb.progress import SilentProgress
from bankdb.storage.location import BankLocation
from bankdb.verify import verify
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.prediction.coefficients import coefficients
from compute.prediction.export import export_delta
from compute.prediction.matrices import compute_gram, distances
from compute.prediction.predict import predict
from compute.prediction.predict_all import predict_all
from compute.prediction.session import computing
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import create_bank, ingest_folder, write_dataset, write_pairs
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.servers.object_store import Proxy, reached_at

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def remote(tmp_path: Path, s3: str, tokenizer_folder: Path, pairs_folder: Path) -> Iterator[AdapterBank]:
    """The six pairs, with the arrays on the server."""
    made = AdapterBank.create(
        tmp_path / "remote", base_model=BASE_MODEL, tokenizer=tokenizer_folder, arrays=f"{s3}/a"
    )
    with made:
        assert len(ingest_folder(made, pairs_folder).added) == 6
        yield made


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# -- the commands --------------------------------------------------------------------------------------


def test_the_commands_give_what_a_bank_in_a_folder_gives(
    tmp_path: Path, s3: str, tokenizer_folder: Path, pairs_folder: Path, bank: AdapterBank
) -> None:
    """On processes that are given the URL, and nothing else."""
    there = tmp_path / "there"
    made = ("--bank", there, "--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    assert run("init", *made, "--arrays", f"{s3}/a").exit_code == 0
    new = write_dataset(tmp_path / "new", 99)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for command in (
        ("ingest", pairs_folder),
        ("verify",),
        ("predict", "--all", "--export", ours / "all", "--weight-error", "--workers", 2),
        ("predict", new, "--out", ours / "one"),
        ("export", "task003", "--out", ours / "task003"),
    ):
        result = run(command[0], "--bank", there, *command[1:])
        assert result.exit_code == 0, result.output
    predict_all(bank).save(theirs / "all")
    predict(bank, new).save(theirs / "one")
    bank.export("task003", theirs / "task003")
    expected = files(theirs)
    assert len(expected) == 7 * 4 + 2
    assert files(ours) == expected
    with AdapterBank.open(there) as remote:
        assert distances(remote).to_xarray().equals(distances(bank).to_xarray())
    assert not list(there.glob("*.zarr"))
    kept = {name.split("/")[0] for name in objects_below(located(f"{s3}/a"))}
    assert kept == {
        f"{kind}.zarr"
        for kind in ("adapters", "distances", "distributions", "gram", "initialisation", "predictions")
    } | {"zarr.json"}


def test_what_is_there_is_not_computed_again(remote: AdapterBank) -> None:
    first = predict_all_stored(remote, weight_errors=True)
    place = remote.array_path("predictions")
    assert isinstance(place, RemotePath)
    made = filesystem(place.url)
    changed = {name: info["LastModified"] for name, info in made.find(remote.arrays.url, detail=True).items()}
    second = predict_all_stored(remote, weight_errors=True)
    assert second.run.id == first.run.id
    again = {name: info["LastModified"] for name, info in made.find(remote.arrays.url, detail=True).items()}
    assert again == changed
    # A shard that somebody deleted is made again.
    values = np.asarray(open_array(first.path / "adapters")[:, :])
    (lost,) = [name for name in objects_below(first.path) if name.startswith("adapters/c/")][:1]
    delete(first.path.joinpath(*lost.split("/")))
    predict_all_stored(remote)
    assert np.asarray(open_array(first.path / "adapters")[:, :]).tobytes() == values.tobytes()


def gram_of(bank: AdapterBank) -> NDArray[np.float64]:
    with computing(bank, None, SilentProgress()) as cluster:
        return compute_gram(bank, cluster, SilentProgress())


def test_adapters_that_are_added_later(remote: AdapterBank, bank: AdapterBank, tmp_path: Path) -> None:
    more = write_pairs(tmp_path / "more", 3, start=6)
    for each in (remote, bank):
        gram_of(each)
        distances(each)
        ingest_folder(each, more)
    assert gram_of(remote).tobytes() == gram_of(bank).tobytes()
    assert distances(remote).to_xarray().equals(distances(bank).to_xarray())
    assert {name.split("/")[0] for name in objects_below(remote.array_path("gram"))} == {"gram", "zarr.json"}


def test_other_approaches_and_spaces(remote: AdapterBank, bank: AdapterBank, tmp_path: Path) -> None:
    neural = PredictionOptions(approach="neural", protocol="published", epochs=2, width=8)
    ways = [neural, PredictionOptions(approach="ridge")]
    delta = PredictionOptions(space="delta", rank=4)
    for each in (remote, bank):
        out = tmp_path / each.path.name
        for index, predicted in enumerate(predict_all(each, ways)):
            predicted.save(out / f"{index}")
        export_delta(each, coefficients(each, delta), out / "delta")
        for index, options in enumerate((neural, delta)):  # the network was kept
            made = predict(each, write_dataset(tmp_path / f"{each.path.name} new {index}", 99), options)
            made.save(out / f"new {index}")
    theirs, ours = (
        {
            name: data
            for name, data in files(tmp_path / each.path.name).items()
            if name.endswith(".safetensors")
        }
        for each in (bank, remote)
    )
    assert len(theirs) == 2 * 6 + 6 + 2
    assert ours == theirs


# -- whose place it is ---------------------------------------------------------------------------------


def test_measured_rates_are_the_stores(
    remote: AdapterBank, object_server: str, s3: str, tmp_path: Path
) -> None:
    """Of one that takes 200 requests a second at most, by its own rows and by objects that are deleted again."""
    before = objects_below(RemotePath(s3))
    remote.close()

    def slowly(*_: object) -> int:
        time.sleep(0.005)  # one request after another
        return 0

    proxy = Proxy(object_server, slowly)
    with reached_at(proxy.address):
        result = run("plan", "--bank", tmp_path / "remote", "--measure", "--json")
    proxy.die()
    assert result.exit_code == 0, result.output
    rates = json.loads(result.stdout)["rates"]
    # Workers measure for themselves, perhaps one after the other, and their rates are added up.
    workers = rates["cores"]
    assert 0 < 1 / rates["flush"] <= 200 * workers
    row = max(filesystem(s3).size(f"{s3}/{name}") for name in before)
    assert 0 < rates["read"] <= 200 * row * workers
    assert rates["chunk"] >= 2 * 0.005 / workers  # a shard's index, and the chunk
    asked = Counter((method, re.sub(r".*/a/|\?.*", "", path)) for method, path in proxy.seen)
    assert all(asked["GET", f"adapters.zarr/c/{number}/0"] for number in range(6))
    assert any(method == "PUT" and "/small/c/" in path for method, path in proxy.seen)
    assert objects_below(RemotePath(s3)) == before


def test_a_place_that_is_not_empty_is_refused(
    remote: AdapterBank, s3: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    made = ("--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    result = run("init", "--bank", tmp_path / "second", *made, "--arrays", f"{s3}/a")
    assert result.exit_code == 1
    assert f"holds the arrays of bank {remote.record.identity}; choose another one" in result.stderr
    put({RemotePath(f"{s3}/notes/mine.txt"): b"mine"})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_bytes(b"mine")
    for place in (f"{s3}/notes", tmp_path / "notes"):
        result = run("init", "--bank", tmp_path / "second", *made, "--arrays", place)
        assert result.exit_code == 1
        assert "expected an empty place for the bank's arrays" in result.stderr
    assert not (tmp_path / "second").exists()
    assert verify(remote).clean
    assert objects_below(RemotePath(f"{s3}/notes")) == ["mine.txt"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://", "expected a URL of a bucket and a name in it"),
        ("s3://banks/", "expected a URL of a bucket and a name in it"),
        ("memory://x", "only lasts as long as the process"),
        ("nonsense://x/y", "no such kind of URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(
    tmp_path: Path, tokenizer_folder: Path, url: str, reason: str
) -> None:
    made = ("--base-model", BASE_MODEL, "--tokenizer", tokenizer_folder)
    result = run("init", "--bank", tmp_path / "bank", *made, "--arrays", url)
    assert (result.exit_code, reason in result.stderr) == (2, True), result.output
    assert not (tmp_path / "bank").exists()


def test_arrays_of_another_bank_are_told(remote: AdapterBank, s3: str, tmp_path: Path) -> None:
    """As after bank.json was changed by hand, to where another bank's arrays are."""
    shutil.copytree(remote.path, tmp_path / "copy")
    other = RemotePath(f"{s3}/b")
    filesystem(s3).copy(f"{s3}/a", other.url, recursive=True)
    text = filesystem(s3).cat_file(f"{other}/adapters.zarr/zarr.json").decode()
    put({other / "adapters.zarr" / "zarr.json": text.replace(remote.record.identity, "f" * 32).encode()})
    file = tmp_path / "copy" / "bank.json"
    file.write_text(file.read_text().replace(f"{s3}/a", other.url))
    with pytest.raises(BankFormatError, match=f"belongs to bank {'f' * 32}, not to this one"):
        AdapterBank.open(tmp_path / "copy")


def test_a_bank_that_was_made_and_could_not_claim_its_place(
    tmp_path: Path, s3: str, tokenizer_folder: Path, pairs_folder: Path
) -> None:
    """Killed between its record and the mark: the first row makes up for it, unless somebody came first."""
    for name, foreign in (("free", False), ("taken", True)):
        with AdapterBank.create(
            tmp_path / name, base_model=BASE_MODEL, tokenizer=tokenizer_folder, arrays=f"{s3}/{name}"
        ) as bank:
            assert bank.location == BankLocation.of(tmp_path / name)
            assert bank.location.identity == bank.record.identity
            delete(RemotePath(f"{s3}/{name}/zarr.json"))
            if foreign:
                put({RemotePath(f"{s3}/{name}/adapters.zarr/c/0/0"): b"mine"})
            report = ingest_folder(bank, pairs_folder)
            if foreign:
                assert (len(report.refused), len(bank)) == (6, 0)
                assert "expected an empty place" in report.refused[0].reason
                assert objects_below(RemotePath(f"{s3}/{name}")) == ["adapters.zarr/c/0/0"]
            else:
                assert len(report.added) == 6
                assert verify(bank).clean


def test_arrays_in_another_folder(tmp_path: Path, tokenizer_folder: Path, pairs_folder: Path) -> None:
    place = tmp_path / "large disk" / "arrays"
    with AdapterBank.create(
        tmp_path / "bank", base_model=BASE_MODEL, tokenizer=tokenizer_folder, arrays=f"file://{place}"
    ) as bank:
        ingest_folder(bank, pairs_folder)
        predict_all(bank)
        (place / "adapters.zarr" / "notes.txt").write_text("mine")
        assert len(verify(bank, repair=True).repaired) == 1
        assert (place / "orphans" / "adapters.zarr" / "notes.txt").read_text() == "mine"
    assert {item.name for item in place.iterdir()} >= {"adapters.zarr", "distances.zarr", "predictions.zarr"}
    assert not list((tmp_path / "bank").glob("*.zarr"))
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert verify(bank).checked == 6
    for stray in ("database", "here"):
        with pytest.raises(ConflictError, match="holds the arrays of bank"):
            AdapterBank.create(
                tmp_path / stray, base_model=BASE_MODEL, tokenizer=tokenizer_folder, arrays=str(place)
            )


def test_init_without_arrays_after_one_that_was_killed(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "bank").mkdir()
    BankLocation(tmp_path / "bank", arrays="s3://nowhere/x").record()
    with create_bank(tmp_path / "bank", tokenizer_folder) as bank:
        assert bank.arrays == tmp_path / "bank"
    assert not (tmp_path / "bank" / "bank.json").exists()


def test_a_process_ends_quietly(remote: AdapterBank) -> None:
    """Its open connections are closed, and nothing is said of them."""
    command = [sys.executable, "-m", "cli.main", "export", "--bank", str(remote.path), "task001"]
    done = subprocess.run(
        [*command, "--out", str(remote.path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- damage --------------------------------------------------------------------------------------------


def test_verify_finds_and_repairs(remote: AdapterBank, tmp_path: Path) -> None:
    expected = remote.store.read_rows(range(6)).tobytes()
    store = remote.store
    raw = filesystem("s3://x").cat_file(str(store.file(1)))
    put({store.file(1): raw[:100] + bytes([raw[100] ^ 1]) + raw[101:]})
    delete(store.file(2))
    put({store.file(3): raw[: len(raw) // 2]})
    foreign = {store.path / "notes.txt": b"mine", store.path.joinpath("c", "77", "0"): b"mine too"}
    put(foreign)
    adapter = load_adapter(Path(remote.catalog.adapter("task000").source))
    store.write(remote.reserve("only reserved", adapter), adapter.vector)
    report = verify(remote)
    assert len(report.damage) == 5
    for what in ("task001: ", "task002: ", "task003: ", "notes.txt: orphan", "c/77: orphan"):
        assert sum(what in line for line in report.damage) == 1, what
    assert sum("reserved for only reserved" in line for line in report.leftovers) == 1
    report = verify(remote, repair=True)
    assert report.clean, report.damage
    assert remote.store.read_rows(range(6)).tobytes() == expected
    assert verify(remote).damage == verify(remote).leftovers == []
    orphans = remote.arrays / "orphans" / "adapters.zarr"
    assert objects_below(orphans) == ["c/77/0", "notes.txt"]
    assert filesystem("s3://x").cat_file(f"{orphans}/notes.txt") == b"mine"


def test_a_removed_adapter_leaves_no_object(remote: AdapterBank) -> None:
    remote.remove("task004")
    assert remote.store.rows_on_disk() == [0, 1, 2, 3, 5]
    assert verify(remote).checked == 5


def test_damaged_predictions_are_told(remote: AdapterBank, tmp_path: Path) -> None:
    predicted = predict_all_stored(remote)
    (shard,) = [name for name in objects_below(predicted.path) if name.startswith("adapters/c/")][:1]
    file = predicted.path.joinpath(*shard.split("/"))
    raw = filesystem("s3://x").cat_file(str(file))
    put({file: raw[:50] + bytes([raw[50] ^ 1]) + raw[51:]})
    with pytest.raises(BankError, match=r"delete predictions\.zarr and run the same command again"):
        predicted.save(tmp_path / "out")


def test_what_bank_json_says(remote: AdapterBank, s3: str) -> None:
    found = json.loads((remote.path / "bank.json").read_text())
    assert (found["arrays"], found["identity"]) == (f"{s3}/a", remote.record.identity)
    with pytest.raises(ParameterError, match="expected a URL of a bucket"):
        AdapterBank.create(remote.path / "x", base_model="x", tokenizer="x", arrays="s3:///")
