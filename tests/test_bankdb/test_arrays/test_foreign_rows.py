"""Rows that are whole, and not the catalogue's: of another adapter, of another hour, of another copy of the bank."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.remote import RemotePath, located, objects_below, put, read_ranges
from bankdb.bank import AdapterBank, ready_adapters
from bankdb.errors import BankFormatError, ConflictError
from bankdb.scaled_rows import Sources, read_scaled, sources_of
from bankdb.verify import verify
from cli.main import cli
from compute.approaches.options import PredictionOptions
from compute.prediction.coefficients import coefficients
from compute.prediction.predict import predict
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.recorded_progress import RecordedProgress
from tests.support.banks.small_bank import ingest_folder, write_dataset, write_pairs
from tests.support.banks.stored_rows import predict_all_stored
from tests.support.banks.synthetic_bank import create_synthetic, draw_tokens, layout_of
from tests.support.servers.backends import execute

UNIFORM = PredictionOptions(approach="uniform")
FOREIGN = "is whole, but not the one that the bank stored"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def arrays(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for the arrays that is not the bank's folder."""
    return str(tmp_path / "arrays") if request.param == "folder" else f"{request.getfixturevalue('s3')}/a"


@pytest.fixture
def apart(tmp_path: Path, arrays: str, tokenizer_folder: Path, pairs_folder: Path) -> Iterator[AdapterBank]:
    """The six pairs, the arrays apart from the folder."""
    with AdapterBank.create(
        tmp_path / "apart", base_model=BASE_MODEL, tokenizer=tokenizer_folder, arrays=arrays
    ) as made:
        assert len(ingest_folder(made, pairs_folder).added) == 6
        yield made


def run(bank: Path, command: str, *arguments: object) -> Result:
    return CliRunner().invoke(cli, [command, "--bank", str(bank), *map(str, arguments)])


def content(file: object) -> bytes:
    if isinstance(file, RemotePath):
        (data,) = read_ranges([(file, 0, None)])
        assert data is not None
        return data
    assert isinstance(file, Path)
    return file.read_bytes()


def replace(file: object, data: bytes) -> None:
    if isinstance(file, RemotePath):
        put({file: data})
    else:
        assert isinstance(file, Path)
        file.write_bytes(data)


def exchange(store: AdapterStore, first: int, second: int) -> None:
    """Give each of two rows the other's file."""
    files = store.file(first), store.file(second)
    one, other = map(content, files)
    replace(files[0], other)
    replace(files[1], one)


def stored(place: str) -> dict[str, bytes]:
    """All rows of the adapters' array."""
    rows = located(place) / "adapters.zarr" / "c"
    if isinstance(rows, RemotePath):
        return {name: content(rows / name) for name in objects_below(rows)}
    return {
        file.relative_to(rows).as_posix(): file.read_bytes() for file in rows.rglob("*") if file.is_file()
    }


# -- rows and chunks exchanged -------------------------------------------------------------------------


@pytest.mark.faults
def test_two_rows_exchanged_are_an_error_wherever_they_are_read(apart: AdapterBank, tmp_path: Path) -> None:
    new = write_dataset(tmp_path / "new", 99)
    before = predict(apart, new, UNIFORM)
    exchange(apart.store, 1, 4)
    readings: dict[str, Callable[[], object]] = {
        "one": lambda: predict(apart, new, UNIFORM),
        "delta": lambda: predict(apart, new, PredictionOptions(approach="uniform", space="delta")),
        "all": lambda: predict_all_stored(apart, PredictionOptions(metric="js", approach="normalized")),
        "gram": lambda: predict_all_stored(apart, UNIFORM, weight_errors=True),
        "coefficients by the Gram matrix": lambda: coefficients(apart, PredictionOptions(approach="tuned")),
        "export": lambda: apart.export("task001", tmp_path / "task001"),
    }
    for name, read in readings.items():
        with pytest.raises(BankFormatError, match=r"adapters\.zarr.*bank verify --repair") as caught:
            read()
        assert "row 1" in str(caught.value) or "row 4" in str(caught.value) or name == "export"
    for arguments in (("--out", tmp_path / "out"), ("--out", tmp_path / "out", "--space", "delta")):
        result = run(apart.path, "predict", new, "--approach", "uniform", *arguments)
        assert result.exit_code == 1, result.output
        assert "adapters.zarr" in result.output
        assert not (tmp_path / "out").exists()
    assert len(verify(apart).damage) == 2
    assert verify(apart, repair=True).clean
    after = predict(apart, new, UNIFORM)
    assert after.vector.tobytes() == before.vector.tobytes()


def test_a_source_that_is_not_used_is_not_looked_at(apart: AdapterBank, pairs_folder: Path) -> None:
    """A prediction from one source reads one row."""
    exchange(apart.store, 1, 4)
    weights = PredictionOptions(metric="js", approach="nearest")
    found = predict(apart, pairs_folder / "datasets" / "task000", weights, include_same=True)
    assert found.vector.tobytes() == apart.store.read(0).tobytes()


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_chunk_of_another_row_is_an_error(tmp_path: Path, tokenizer_folder: Path, chunk: int) -> None:
    """Written as this project writes rows: every checksum in the file is right."""
    made = create_synthetic(tmp_path / "bank", tokenizer_folder, layout_of(hidden=10_000, rank=4, layers=4))
    bank = made.bank
    for seed in range(3):
        made.add(f"s{seed}", draw_tokens(seed), noise(made.layout.size, seed))
    size, width = made.layout.size, bank.store.chunk
    assert -(-size // width) == 3
    mixed = bank.store.read(1)
    part = slice(chunk * width, (chunk + 1) * width)
    mixed[part] = bank.store.read(2)[part]
    bank.store.write(1, mixed)
    bank.store.read(1)
    sources = sources_of(bank, bank.adapters())
    for start in range(0, size, 50_000):
        stop = min(start + 50_000, size)
        inside = start < (chunk + 1) * width and stop > chunk * width
        if inside:
            with pytest.raises(BankFormatError, match=rf"c/1/0: row 1: chunk {chunk} {FOREIGN}"):
                read_scaled(bank.store, sources, [0, 1, 2], start, stop)
        elif start // width != chunk and (stop - 1) // width != chunk:
            read_scaled(bank.store, sources, [0, 1, 2], start, stop)
        read_scaled(bank.store, sources, [0, 2], start, stop)
    with pytest.raises(BankFormatError, match=f"row 1: chunk {chunk}"):
        predict_all_stored(bank, UNIFORM)
    with pytest.raises(BankFormatError, match="the stored row of s1 does not match"):
        bank.export("s1", tmp_path / "s1")
    bank.close()


def noise(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def test_a_panel_carries_its_own_checksums_alone(tmp_path: Path, tokenizer_folder: Path) -> None:
    made = create_synthetic(tmp_path / "bank", tokenizer_folder, layout_of(hidden=10_000, rank=4, layers=4))
    for seed in range(3):
        made.add(f"s{seed}", draw_tokens(seed), noise(made.layout.size, seed))
    bank, size = made.bank, made.layout.size
    sources, chunk = sources_of(bank, bank.adapters()), bank.store.chunk
    for start, stop in ((0, chunk), (chunk, 2 * chunk), (2 * chunk, size), (chunk, size), (0, size)):
        own: Sources = pickle.loads(pickle.dumps(sources.within(start, stop, chunk)))
        assert own.checksums is not None
        assert own.checksums.shape == (3, -(-(stop - start) // chunk))
        middle = (start + stop) // 2
        for first, last in ((start, stop), (middle, stop), (start, middle), (middle, middle + 7)):
            expected = np.stack([bank.store.read(row)[first:last] for row in range(3)])
            assert read_scaled(bank.store, own, range(3), first, last).tobytes() == expected.tobytes()
    bank.close()


# -- checksums that are not there yet ------------------------------------------------------------------


def test_a_bank_without_checksums_gets_them_once(apart: AdapterBank, tmp_path: Path) -> None:
    new, expected = write_dataset(tmp_path / "new", 99), [row.checksums for row in apart.adapters()]
    before = predict(apart, new, UNIFORM).vector.tobytes()
    execute(apart, "UPDATE adapter SET checksums = NULL")
    seen = RecordedProgress()
    assert predict(apart, new, UNIFORM, progress=seen).vector.tobytes() == before
    assert sum("reading 6 rows once" in note for note in seen.notes) == 1
    assert [row.checksums for row in apart.adapters()] == expected
    again = RecordedProgress()
    assert predict(apart, new, UNIFORM, progress=again).vector.tobytes() == before
    assert again.notes == []
    assert verify(apart).clean


def test_they_are_made_from_the_right_rows_alone(apart: AdapterBank, tmp_path: Path) -> None:
    execute(apart, "UPDATE adapter SET checksums = NULL")
    exchange(apart.store, 1, 4)
    with pytest.raises(BankFormatError, match="the stored row of task001 does not match its checksum"):
        predict(apart, write_dataset(tmp_path / "new", 99), UNIFORM)
    assert [row.checksums for row in apart.adapters()] == [None] * 6
    assert len(verify(apart).damage) == 2


def test_a_row_that_another_program_stored_anew_is_said_and_mended(
    bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values, other bytes: as by a tool that compresses otherwise."""
    with monkeypatch.context() as patch:
        patch.setattr("bankdb.arrays.shard_format._WORTH", 0.0)  # nothing is compressed
        bank.store.write(2, bank.store.read(2))
    with pytest.raises(BankFormatError, match=f"row 2: chunk 0 {FOREIGN}"):
        predict_all_stored(bank, UNIFORM)
    (line,) = verify(bank).damage
    assert "row 2 was stored anew" in line
    report = verify(bank, repair=True)
    assert report.clean
    assert report.repaired == ["task002: row 2 is whole, its checksums were made anew"]
    predict_all_stored(bank, UNIFORM)


# -- two copies of one bank ----------------------------------------------------------------------------


def copied(bank: AdapterBank, path: Path) -> Path:
    """The folder as `cp -r` copies it, with nothing left in the write-ahead log."""
    path.mkdir()
    for item in bank.path.iterdir():
        if item.name.startswith("bank.db"):
            continue
        (shutil.copytree if item.is_dir() else shutil.copy)(item, path / item.name)
    with (
        closing(sqlite3.connect(bank.path / "bank.db")) as source,
        closing(sqlite3.connect(path / "bank.db")) as to,
    ):
        source.backup(to)
    return path


def test_of_two_copies_the_second_to_ingest_is_refused(
    apart: AdapterBank, arrays: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    copy = copied(apart, tmp_path / "copy")
    ours = write_pairs(tmp_path / "ours", 1, start=10)
    theirs = write_pairs(tmp_path / "theirs", 1, start=20)
    new = write_dataset(tmp_path / "new", 99)
    before = predict(apart, new, UNIFORM).vector.tobytes()

    assert run(apart.path, "ingest", ours).exit_code == 0
    rows = stored(arrays)
    refused = run(copy, "ingest", theirs)
    assert refused.exit_code == 1, refused.output
    assert "another copy of this bank" in refused.output
    assert "bank verify --repair" in refused.output
    assert run(copy, "remove", "task000").exit_code == 1
    assert stored(arrays) == rows  # and nothing was cleared
    # Reading goes on, on both sides, as long as what they know is there.
    assert run(copy, "predict", new, "--approach", "uniform", "--out", tmp_path / "out").exit_code == 0
    with AdapterBank.open(copy) as other:
        assert predict(other, new, UNIFORM).vector.tobytes() == before
        assert any("another copy" in line for line in verify(other).leftovers)
    assert run(apart.path, "ingest", write_pairs(tmp_path / "more", 1, start=11)).exit_code == 0

    # What it says to do: the copy takes the rows over, and loses none.
    taken = run(copy, "verify", "--repair")
    assert taken.exit_code == 0, taken.output
    assert "orphans" in taken.output
    assert run(copy, "ingest", theirs).exit_code == 0
    assert run(copy, "verify").exit_code == 0
    assert len(ingest_error(apart, ours)) > 0
    result = run(apart.path, "predict", new, "--approach", "uniform", "--out", tmp_path / "no")
    assert result.exit_code == 1  # row 6 is the other's now
    assert "row 6" in result.output or "row 7" in result.output


def ingest_error(bank: AdapterBank, folder: Path) -> str:
    with pytest.raises(ConflictError) as caught:
        ingest_folder(bank, folder)
    return str(caught.value)


def test_copies_of_an_empty_bank(tmp_path: Path, arrays: str, tokenizer_folder: Path) -> None:
    """The second would make the array anew, over the rows of the first."""
    with AdapterBank.create(
        tmp_path / "bank", base_model=BASE_MODEL, tokenizer=tokenizer_folder, arrays=arrays
    ) as bank:
        copy = copied(bank, tmp_path / "copy")
        assert len(ingest_folder(bank, write_pairs(tmp_path / "ours", 2)).added) == 2
        rows = stored(arrays)
        refused = run(copy, "ingest", write_pairs(tmp_path / "theirs", 2, start=5))
        assert (refused.exit_code, "another copy" in refused.output) == (1, True)
        assert stored(arrays) == rows
        assert verify(bank).clean


def test_a_copy_made_while_an_ingest_runs(apart: AdapterBank, tmp_path: Path) -> None:
    """Whoever is second notices at the next row."""
    pairs = write_pairs(tmp_path / "pairs", 2, start=10)
    with apart.ingesting():
        copy = copied(apart, tmp_path / "copy")
        assert run(copy, "ingest", pairs).exit_code == 0
        with (
            pytest.raises(ConflictError, match="another copy of this bank"),
            apart._database.write() as session,
        ):
            apart.ownership.check(session)
    with pytest.raises(ConflictError):
        ingest_folder(apart, write_pairs(tmp_path / "others", 1, start=20))


def test_a_client_killed_between_the_two_marks_goes_on(
    apart: AdapterBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: AdapterStore, mark: str) -> None:
        raise KeyboardInterrupt

    for number in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(AdapterStore, "set_owner", killed)
            with pytest.raises(KeyboardInterrupt):
                ingest_folder(apart, write_pairs(tmp_path / f"a{number}", 1, start=10 + number))
        assert apart.ownership.is_ours()
    assert len(ingest_folder(apart, tmp_path / "a0").added) == 1
    assert verify(apart).clean


def test_clients_of_one_catalogue_do_not_refuse_each_other(apart: AdapterBank, tmp_path: Path) -> None:
    folders = [write_pairs(tmp_path / f"a{number}", 1, start=10 + number) for number in range(4)]
    with AdapterBank.open(apart.path) as other:
        for client, folder in zip((apart, other, other, apart), folders, strict=True):
            assert len(ingest_folder(client, folder).added) == 1
        with apart.ingesting(), other.ingesting():
            adapter = write_pairs(tmp_path / "more", 1, start=20)
            assert len(ingest_folder(other, adapter).added) == 1
        other.remove("task010")
        apart.remove("task011")
    assert len(apart) == 9
    assert verify(apart, repair=True).clean


# -- a database of another hour ------------------------------------------------------------------------


def test_a_restored_database_gives_row_numbers_again(
    apart: AdapterBank, tmp_path: Path, tokenizer_folder: Path
) -> None:
    earlier = copied(apart, tmp_path / "earlier")
    ingest_folder(apart, write_pairs(tmp_path / "lost", 1, start=10))
    path = apart.path
    apart.close()
    for name in ("bank.db", "bank.db-wal", "bank.db-shm"):
        (path / name).unlink(missing_ok=True)
    shutil.copy(earlier / "bank.db", path / "bank.db")
    later = write_pairs(tmp_path / "later", 1, start=20)
    refused = run(path, "ingest", later)
    assert (refused.exit_code, "a database that was restored" in refused.output) == (1, True)
    assert run(path, "verify", "--repair").exit_code == 0
    assert run(path, "ingest", later).exit_code == 0
    with AdapterBank.open(path) as bank:
        assert verify(bank).clean
        record = bank.catalog.adapter("task020")
        assert record.row == 6
        # The row of the hour that is forgotten, put back in its place.
        orphan = next(iter(orphans(bank)))
        replace(bank.store.file(6), content(orphan))
        new = write_dataset(tmp_path / "new", 99)
        with pytest.raises(BankFormatError, match=f"row 6: chunk 0 {FOREIGN}"):
            predict(bank, new, UNIFORM)


def orphans(bank: AdapterBank) -> Iterator[object]:
    place = bank.arrays / "orphans" / "adapters.zarr" / "c"
    if isinstance(place, RemotePath):
        yield from (place / name for name in objects_below(place))
    else:
        yield from (file for file in place.rglob("*") if file.is_file())


@pytest.mark.faults
def test_a_command_in_processes_says_it_too(apart: AdapterBank, tmp_path: Path) -> None:
    """The workers have the checksums from the client, and no database."""
    exchange(apart.store, 0, 5)
    result = run(apart.path, "predict", "--all", "--approach", "uniform", "--store", "--workers", 2, "--json")
    assert result.exit_code == 1
    assert "adapters.zarr" in result.output
    assert "row 0" in result.output or "row 5" in result.output
    execute(apart, "UPDATE adapter SET licence = 'x' WHERE row = 1", seal=False)
    listed = run(apart.path, "list", "--json")
    assert (listed.exit_code, "bank.db" in listed.output) == (1, True)
    with pytest.raises(json.JSONDecodeError):
        json.loads(listed.output)


def test_every_adapter_of_a_new_bank_has_checksums(apart: AdapterBank) -> None:
    for record in ready_adapters(apart):
        found = apart.store.read_stored(record.row)[1]
        assert record.checksums == found.checksums.tobytes()
        assert found.sha256 == record.row_sha256


def test_checksums_are_no_part_of_what_is_shown(apart: AdapterBank) -> None:
    listed, shown = run(apart.path, "list", "--json"), run(apart.path, "show", "task001", "--json")
    assert (listed.exit_code, shown.exit_code) == (0, 0), listed.output + shown.output
    for record in (*json.loads(listed.stdout), json.loads(shown.stdout)):
        assert "checksums" not in record
        assert len(record["row_sha256"]) == 64
