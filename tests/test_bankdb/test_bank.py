"""Making, opening, exporting and removing: a bank, or an error that says what is in the way."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.errors import (
    AdapterError,
    BankError,
    BankFormatError,
    BankNotFoundError,
    ConflictError,
    TokenizerError,
)
from bankdb.verify import verify
from tests.support.banks.bank_content import assert_nothing_else
from tests.support.banks.malformed_adapters import BASE_MODEL, CONFIG, WEIGHTS, write_good_adapter
from tests.support.banks.small_bank import create_bank, ingest_folder, write_pairs

EVERY_BACKEND = True


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def without_override() -> Iterator[None]:
    """Permissions of files bind this thread, as they bind everybody who is not root.

    Root's capabilities to pass over them are lowered and raised again (capset, see capabilities(7)).
    """
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice, for 64 bits
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] = effective & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0


@contextmanager
def mode(path: Path, permissions: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(permissions)
    try:
        with without_override():
            yield
    finally:
        path.chmod(before)


# -- making -----------------------------------------------------------------------------------------


def test_a_new_bank(tmp_path: Path, tokenizer_folder: Path) -> None:
    path = tmp_path / "deep" / "er" / "bank"
    with AdapterBank.create(
        path, base_model=BASE_MODEL, tokenizer=tokenizer_folder, aliases=["other", "other/name"]
    ) as bank:
        made = bank.record
        assert (len(bank), bank.adapters()) == (0, [])
        with pytest.raises(BankNotFoundError, match="bank ingest"):
            _ = bank.layout
    with AdapterBank.open(path) as bank:
        assert bank.record == made
        assert bank.tokenizer.fingerprint == made.tokenizer_fingerprint
    assert made.base_model_aliases == ("other", "other/name")
    assert made.vocabulary == 202
    assert {item.name for item in path.iterdir()} == {"bank.db", "tokenizer", ".ingest.lock"}


def test_an_empty_folder_will_do(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "bank").mkdir()
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    AdapterBank.open(tmp_path / "bank").close()


@pytest.mark.parametrize("name", ["a?b=c", "a#b", "100%41", "a::b", "file:", "ä ö", "-x", "bank.db"])
def test_a_bank_may_have_any_name(
    tmp_path: Path, tokenizer_folder: Path, pairs_folder: Path, name: str
) -> None:
    with create_bank(tmp_path / name, tokenizer_folder) as bank:
        ingest_folder(bank, pairs_folder)
    with AdapterBank.open(tmp_path / name) as bank:
        assert verify(bank).checked == 6
        assert verify(bank).clean
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_bank_that_is_there_is_not_made_again(bank: AdapterBank, tokenizer_folder: Path) -> None:
    before = bank.record
    with pytest.raises(ConflictError, match="a bank with adapters"):
        create_bank(bank.path, tokenizer_folder)
    shutil.rmtree(bank.store.path)
    shutil.rmtree(bank.path / "initialisation.zarr")
    with pytest.raises(ConflictError, match="a bank is already here"):
        create_bank(bank.path, tokenizer_folder)
    assert bank.record == before


def test_what_is_in_the_way_is_named(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ConflictError, match="file: a file is in the way"):
        create_bank(tmp_path / "file", tokenizer_folder)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_bytes(b"mine")
    with pytest.raises(ConflictError, match=r"folder: not empty, holds 'thesis\.tex'"):
        create_bank(tmp_path / "folder", tokenizer_folder)
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder", "thesis.tex"}
    with pytest.raises(OSError, match="Not a directory"):
        create_bank(tmp_path / "file" / "bank", tokenizer_folder)


def test_without_a_tokenizer_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError):
        create_bank(tmp_path / "bank", tmp_path / "empty")
    assert not (tmp_path / "bank").exists()


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    "point",
    [
        "bankdb.datasets.tokenizer.BankTokenizer.save",
        "bankdb.bank.Database",
        "bankdb.catalog.catalog.Catalog.create_bank",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_init_is_finished_by_running_it_again(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, point: str, when: str
) -> None:
    import bankdb.bank
    import bankdb.catalog.catalog
    import bankdb.datasets.tokenizer

    owner = {
        "save": bankdb.datasets.tokenizer.BankTokenizer,
        "Database": bankdb.bank,
        "create_bank": bankdb.catalog.catalog.Catalog,
    }
    name = point.rsplit(".", 1)[1]
    original = getattr(owner[name], name)

    def interrupted(*args: object, **options: object) -> object:
        if when == "after":
            original(*args, **options)
        raise Killed

    monkeypatch.setattr(owner[name], name, interrupted)
    with pytest.raises(Killed):
        create_bank(tmp_path / "bank", tokenizer_folder)
    monkeypatch.undo()
    if (name, when) == ("create_bank", "after"):
        AdapterBank.open(tmp_path / "bank").close()
        return
    with pytest.raises(BankNotFoundError, match="bank init"):
        AdapterBank.open(tmp_path / "bank")
    # Again, and this time with another tokenizer: nothing of the first may stay.
    tokenizer = Path(shutil.copytree(tokenizer_folder, tmp_path / "other"))
    file = tokenizer / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b'"w10"', b'"x10"'))
    (tmp_path / "bank" / "tokenizer").mkdir(exist_ok=True)
    (tmp_path / "bank" / "tokenizer" / "added_tokens.json").write_text('{"<old>": 202}')
    create_bank(tmp_path / "bank", tokenizer).close()
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert bank.tokenizer.vocabulary == 202
        assert bank.tokenizer.count(["x10"], "data").ids.tolist() == [0, 12]


@pytest.mark.parametrize("left", ["", "bank.db", "bank.db-journal", "bank.db-wal", ".ingest.lock"])
def test_what_a_killed_init_left_is_not_in_the_way(tmp_path: Path, tokenizer_folder: Path, left: str) -> None:
    (tmp_path / "bank" / "tokenizer").mkdir(parents=True)
    (tmp_path / "bank" / "tokenizer" / "tokenizer.json").write_bytes(b"half")
    if left:
        (tmp_path / "bank" / left).write_bytes(b"")
    with pytest.raises(BankNotFoundError, match="bank init"):
        AdapterBank.open(tmp_path / "bank")
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    AdapterBank.open(tmp_path / "bank").close()


# -- opening ----------------------------------------------------------------------------------------


def test_no_bank(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "strange" / "bank.db").mkdir(parents=True)
    for name in ("nowhere", "empty", "file", "strange"):
        with pytest.raises(BankNotFoundError, match="no bank here; make one with `bank init`"):
            AdapterBank.open(tmp_path / name)
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.sqlite
@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at", b"SQL", bytes(8192)])
def test_a_file_that_is_no_database(bank: AdapterBank, content: bytes) -> None:
    bank.close()
    (bank.path / "bank.db").write_bytes(content)
    with pytest.raises(BankFormatError, match=r"bank\.db: expected a SQLite database"):
        AdapterBank.open(bank.path)
    assert (bank.path / "bank.db").read_bytes() == content


@pytest.mark.sqlite
def test_the_head_of_a_database_with_rubbish_behind_it(bank: AdapterBank) -> None:
    bank.close()
    (bank.path / "bank.db").write_bytes(b"SQLite format 3\0" + b"rubbish" * 1000)
    with pytest.raises(BankFormatError, match=r"bank\.db: .*; restore it from a copy"):
        AdapterBank.open(bank.path)


def test_a_database_of_something_else(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "bank.db")) as connection, connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(BankNotFoundError, match="holds no bank"):
        AdapterBank.open(tmp_path)
    with closing(sqlite3.connect(tmp_path / "bank.db")) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("recipes",)]


def test_the_array_of_another_bank(bank: AdapterBank, tmp_path: Path, tokenizer_folder: Path) -> None:
    with create_bank(tmp_path / "other", tokenizer_folder) as other:
        ingest_folder(other, write_pairs(tmp_path / "pairs", 1))
        shutil.rmtree(bank.store.path)
        shutil.copytree(other.store.path, bank.store.path)
    with pytest.raises(BankFormatError, match=r"adapters\.zarr: belongs to bank .* put the bank's own"):
        AdapterBank.open(bank.path)


def test_an_array_of_another_width(bank: AdapterBank) -> None:
    metadata = bank.store.path / "zarr.json"
    found = json.loads(metadata.read_text())
    found["shape"][1] = 100
    metadata.write_text(json.dumps(found))
    with pytest.raises(BankFormatError, match="rows of 512 parameters expected, 100 found"):
        AdapterBank.open(bank.path)


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_an_array_without_metadata(bank: AdapterBank, content: bytes | None) -> None:
    metadata = bank.store.path / "zarr.json"
    metadata.unlink()
    if content is not None:
        metadata.write_bytes(content)
    with pytest.raises(BankError, match=r"adapters\.zarr"):
        AdapterBank.open(bank.path)


@pytest.mark.sqlite
def test_a_bank_that_may_not_be_written(bank: AdapterBank, tmp_path: Path) -> None:
    bank.close()
    with mode(bank.path, 0o555), AdapterBank.open(bank.path) as opened:
        assert len(opened) == 6
        with pytest.raises(BankFormatError, match="read-only"):
            opened.catalog.remove("task000")
    refused = pytest.raises(BankFormatError, match="make it writable")
    with mode(bank.path / "bank.db", 0o444), AdapterBank.open(bank.path) as opened, refused:
        opened.catalog.remove("task000")
    AdapterBank.open(bank.path).close()


def test_a_folder_that_may_not_be_written(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "bank").mkdir()
    with mode(tmp_path / "bank", 0o555), pytest.raises(PermissionError, match="bank"):
        create_bank(tmp_path / "bank", tokenizer_folder)
    with mode(tmp_path, 0o555), pytest.raises(PermissionError, match="new"):
        create_bank(tmp_path / "new", tokenizer_folder)


def test_rows_that_may_not_be_read(bank: AdapterBank) -> None:
    with mode(bank.store.file(2), 0o000), pytest.raises(BankFormatError, match="row 2"):
        bank.store.read(2)


def test_a_lock_that_is_held_too_long_is_an_error(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bankdb.catalog.sqlite.BUSY_SECONDS", 0.1)
    monkeypatch.setattr("bankdb.catalog.postgresql.LOCK_SECONDS", 0.1)
    with AdapterBank.open(bank.path) as impatient, closing(Database(bank.location.database_url)) as other:
        with other.write():
            with pytest.raises(BankError, match=r"another (process|client) held the lock"):
                impatient.catalog.remove("task000")
            assert len(impatient) == 6  # readers do not wait
        assert impatient.catalog.remove("task000") == 0


def test_a_full_disk_is_an_error(tmp_path: Path, tokenizer_folder: Path, pairs_folder: Path) -> None:
    """SQLite's own limit of pages stands for it: the same error of the same statement."""
    create_bank(tmp_path / "bank", tokenizer_folder).close()

    def limit(connection: sqlite3.Connection, _record: object) -> None:
        ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(Engine, "connect", limit)
    try:
        with AdapterBank.open(tmp_path / "bank") as bank:
            report = ingest_folder(bank, pairs_folder)
            assert len(report.added) < 6
            for item in report.refused:
                assert "database or disk is full: free some space" in item.reason
            assert_nothing_else(bank)
    finally:
        event.remove(Engine, "connect", limit)
    with AdapterBank.open(tmp_path / "bank") as bank:
        assert ingest_folder(bank, pairs_folder).refused == []
        assert verify(bank).checked == 6


def test_a_failed_opening_leaves_no_connection(bank: AdapterBank) -> None:
    """It would hold the database's files, and on a later Python warn."""
    bank.close()
    (bank.store.path / "zarr.json").unlink()
    with pytest.raises(BankError):
        AdapterBank.open(bank.path)
    assert not (bank.path / "bank.db-wal").exists()
    descriptors = [
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if name.isdigit() and os.path.islink(f"/proc/self/fd/{name}")
    ]
    assert str(bank.path / "bank.db") not in descriptors


def test_two_banks_at_once(bank: AdapterBank) -> None:
    """One client sees at once what another has stored."""
    with AdapterBank.open(bank.path) as other:
        other.remove("task000")
        assert len(bank) == len(other) == 5


# -- reserving --------------------------------------------------------------------------------------


def test_what_does_not_fit_takes_no_row(bank: AdapterBank, tmp_path: Path) -> None:
    from bankdb.peft.weights import load_adapter

    write_good_adapter(tmp_path / "rank", r=8)
    write_good_adapter(tmp_path / "revision", revision="0a1b")
    for name, message in (("rank", "rank 4 expected, 8 found"), ("revision", "revision '0a1b'")):
        with pytest.raises(AdapterError, match=message):
            bank.reserve(name, load_adapter(tmp_path / name))
    assert bank.record.next_row == 6
    assert bank.catalog.reserved() == []


# -- export and removal -----------------------------------------------------------------------------


def test_export_is_bit_for_bit(bank: AdapterBank, pairs_folder: Path, tmp_path: Path) -> None:
    dtypes = set()
    for record in bank.adapters():
        folder = bank.export(record.name, tmp_path / "out" / record.name)
        source = pairs_folder / "adapters" / record.name
        assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
        for name in (CONFIG, WEIGHTS):
            assert sha256(folder / name) == sha256(source / name)
        assert sha256(folder / WEIGHTS) == record.source_sha256
        dtypes.add(record.dtype)
    assert dtypes == {"float32", "float16", "bfloat16"}


def test_export_keeps_odd_files_as_they_are(empty_bank: AdapterBank, tmp_path: Path) -> None:
    """Order of tensors, metadata, padding and spacing are the source's."""
    from tests.support.banks.malformed_adapters import read_weights, write_weights

    write_pairs(tmp_path / "pairs", 1)
    folder = tmp_path / "pairs" / "adapters" / "task000"
    header, data = read_weights(folder)
    text = json.dumps({"__metadata__": {"made by": "ä \u2028", "format": "pt"}} | header, indent=1) + "   "
    write_weights(folder, text.encode(), data)
    (folder / CONFIG).write_text("\n" + (folder / CONFIG).read_text() + "\n\n")
    assert ingest_folder(empty_bank, tmp_path / "pairs").added == ["task000"]
    out = empty_bank.export("task000", tmp_path / "out")
    for name in (CONFIG, WEIGHTS):
        assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_export_does_not_overwrite_unless_asked(bank: AdapterBank, tmp_path: Path) -> None:
    out = bank.export("task000", tmp_path / "out")
    with pytest.raises(ConflictError, match="already there"):
        bank.export("task001", out)
    assert sha256(out / WEIGHTS) == bank.catalog.adapter("task000").source_sha256
    bank.export("task001", out, overwrite=True)
    assert sha256(out / WEIGHTS) == bank.catalog.adapter("task001").source_sha256
    with pytest.raises(BankNotFoundError, match="no such adapter"):
        bank.export("nobody", tmp_path / "nobody")
    assert not (tmp_path / "nobody").exists()


@pytest.mark.parametrize("how", ["flipped", "swapped"])
def test_a_damaged_row_is_not_exported(bank: AdapterBank, tmp_path: Path, how: str) -> None:
    file = bank.store.file(0)
    if how == "flipped":
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    else:
        shutil.copy(bank.store.file(3), file)
    with pytest.raises(BankFormatError, match=r"row .*bank verify --repair"):
        bank.export("task000", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_removed_adapter_is_gone_and_comes_back_in_a_new_row(
    bank: AdapterBank, pairs_folder: Path, tmp_path: Path
) -> None:
    row = bank.catalog.adapter("task003").row
    bank.remove("task003")
    assert not bank.store.file(row).exists()
    with pytest.raises(BankNotFoundError):
        bank.export("task003", tmp_path / "out")
    with pytest.raises(BankNotFoundError, match="task003: no such adapter"):
        bank.remove("task003")
    assert len(bank) == 5
    ingest_folder(bank, pairs_folder)
    assert bank.catalog.adapter("task003").row == 6
    assert not bank.store.file(row).exists()
    out = bank.export("task003", tmp_path / "out")
    assert sha256(out / WEIGHTS) == sha256(pairs_folder / "adapters" / "task003" / WEIGHTS)


def test_a_removal_that_is_interrupted_leaves_a_whole_bank(
    bank: AdapterBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank.store, "delete", lambda row: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        bank.remove("task003")
    monkeypatch.undo()
    report = verify(bank)
    assert (report.checked, report.damage) == (5, [])
    assert report.leftovers == ["row 3 belongs to no adapter any more"]


def test_a_bank_without_adapters_left_takes_its_own_kind_again(bank: AdapterBank, pairs_folder: Path) -> None:
    for record in bank.adapters():
        bank.remove(record.name)
    with AdapterBank.open(bank.path) as emptied:
        assert len(emptied) == 0
        assert verify(emptied).clean
        assert len(ingest_folder(emptied, pairs_folder).added) == 6
        assert [record.row for record in emptied.adapters()] == list(range(6, 12))


def test_the_database_of_another_bank(bank: AdapterBank) -> None:
    own = bank.record.identity
    bank.close()
    for identity, fits in ((own, True), ("0" * 32, False)):
        dataclasses.replace(bank.location, identity=identity).record()
        if fits:
            AdapterBank.open(bank.path).close()
            continue
        with pytest.raises(BankFormatError, match=r"bank\.json: expected bank 0{32}, but its database holds"):
            AdapterBank.open(bank.path)
