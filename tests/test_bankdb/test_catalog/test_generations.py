"""Kept answers, the test splits they answer, and the migration that made room for them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.catalog.generations import GenerationStore
from bankdb.catalog.migrations.apply import HEAD, current_revision
from bankdb.datasets.held_out import HeldOut, held_out_files, read_held_out
from bankdb.errors import BankFormatError, DatasetError
from bankdb.records import GenerationKey, GenerationRecord
from tests.support.servers.backends import seal_again

KEY = GenerationKey("a" * 64, "b" * 64, "c" * 64)


EVERY_BACKEND = True


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, create=True)
    yield database
    database.close()


# -- answers -------------------------------------------------------------------------------------------


def test_what_is_kept_is_found(database: Database) -> None:
    store = GenerationStore(database)
    assert store.find(KEY) is None
    record = GenerationRecord(KEY, ("yes", "", "汉字\n\0 🙂"), 12, 1.5, "2026-01-01T00:00:00Z")
    store.keep(record)
    assert store.find(KEY) == record
    for name in dataclasses.asdict(KEY):
        assert store.find(dataclasses.replace(KEY, **{name: "d" * 64})) is None


def test_the_first_is_kept(database: Database) -> None:
    store = GenerationStore(database)
    store.keep(GenerationRecord(KEY, ("first",), 1, 1.0))
    store.keep(GenerationRecord(KEY, ("second",), 1, 1.0))
    found = store.find(KEY)
    assert found is not None
    assert found.texts == ("first",)
    assert found.created
    assert store.count() == 1


def test_all_are_forgotten_and_their_bytes_are_told(database: Database) -> None:
    store = GenerationStore(database)
    assert store.space() == store.forget() == (0, 0)
    texts = (("yes", "汉字\n🙂"), ("",), ("x" * 9000,))
    for number, some in enumerate(texts):
        store.keep(GenerationRecord(dataclasses.replace(KEY, test_sha256=f"{number}" * 64), some, 1, 1.0))
    size = sum(len(json.dumps(some).encode()) for some in texts)
    assert store.space() == (3, size)
    assert store.forget() == (3, size)
    assert (store.count(), store.space(), store.find(KEY)) == (0, (0, 0), None)


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '["a"'])
def test_damaged_answers_are_named(database: Database, damage: str) -> None:
    store = GenerationStore(database)
    store.keep(GenerationRecord(KEY, ("yes",), 1, 1.0))
    with database.write() as session:
        session.execute(text("UPDATE generation SET texts = :damage"), {"damage": damage})
    seal_again(database)
    with pytest.raises(BankFormatError, match="generation 1: expected a JSON list of texts"):
        store.find(KEY)


# -- migration -----------------------------------------------------------------------------------------


def test_a_bank_of_the_first_schema_is_brought_up_whole(bank: AdapterBank) -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    from bankdb.catalog.migrations.versions import r0003_checksums

    adapters, path = bank.adapters(), bank.path
    url = bank.location.database_url
    bank.close()
    old = Database(url)
    with old.write() as session:
        with Operations.context(MigrationContext.configure(session.connection())):
            r0003_checksums.downgrade()
        session.execute(text("DROP TABLE generation"))
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    old.close()
    with AdapterBank.open(path) as opened:
        assert opened.adapters() == adapters
        opened.generations.keep(GenerationRecord(KEY, ("yes",), 1, 1.0))
        assert opened.database_problems() == []
    database = Database(url)
    with database.read() as session:
        assert current_revision(session.connection()) == HEAD
    database.close()


def test_the_table_can_be_taken_back(database: Database) -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    from bankdb.catalog.migrations.versions import r0002_generations

    with database.write() as session:
        connection = session.connection()
        with Operations.context(MigrationContext.configure(connection)):
            r0002_generations.downgrade()
            assert "generation" not in inspect(connection).get_table_names()
            r0002_generations.upgrade()
            assert "generation" in inspect(connection).get_table_names()


# -- test splits ---------------------------------------------------------------------------------------


def write_lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = ({"input": "a ", "output": ["b", "c"]}, {"input": "d", "output": "e"}, {"input": "f", "output": ["g"]})


def test_every_reference_is_read(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "test.jsonl", *ROWS)
    found = read_held_out([file])
    assert (found.inputs, found.references) == (("a ", "d", "f"), (("b", "c"), ("e",), ("g",)))
    assert read_held_out([file], 2) == HeldOut.of(["a ", "d"], [["b", "c"], ["e"]])
    assert read_held_out([file], 50) == found


def test_the_hash_tells_splits_apart() -> None:
    splits = [
        HeldOut.of(["ab", "c"], [["d"], ["e"]]),
        HeldOut.of(["a", "bc"], [["d"], ["e"]]),
        HeldOut.of(["c", "ab"], [["e"], ["d"]]),
        HeldOut.of(["ab", "c"], [["d", "x"], ["e"]]),
        HeldOut.of(["ab", "c"], [["d"], ["e", "x"]]),
        HeldOut.of(["ab"], [["d"]]),
    ]
    assert len({split.sha256 for split in splits}) == len(splits)


def test_csv_has_one_reference(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("input,output\na,b\n")
    assert read_held_out([tmp_path / "test.csv"]).references == (("b",),)


@pytest.mark.parametrize(
    "row",
    [
        {"input": "a"},
        {"input": None, "output": "b"},
        {"input": ["a"], "output": "b"},
        {"input": "a", "output": [{}]},
    ],
)
def test_what_is_no_example_is_refused(tmp_path: Path, row: object) -> None:
    with pytest.raises(DatasetError, match=r"test\.jsonl, line 2"):
        read_held_out([write_lines(tmp_path / "test.jsonl", ROWS[0], row)])


def test_numbers_and_booleans_are_read_as_their_text(tmp_path: Path) -> None:
    rows = [{"input": 1, "output": True}, {"input": "a", "output": [1.5, "b"]}]
    found = read_held_out([write_lines(tmp_path / "test.jsonl", *rows)])
    assert (found.inputs, found.references) == (("1", "a"), (("true",), ("1.5", "b")))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="no examples"):
        read_held_out([tmp_path / "test.jsonl"])


@pytest.mark.sqlite
def test_the_split_is_beside_the_training_split(bank: AdapterBank, tmp_path: Path) -> None:
    adapter = bank.adapters()[0]
    folder = tmp_path / "source"
    record = dataclasses.replace(adapter, dataset_source=str(folder))
    with pytest.raises(
        DatasetError, match=f"{adapter.name}: expected its test split in .*pass --data FOLDER"
    ):
        held_out_files(record)
    write_lines(folder / "train.jsonl", *ROWS)
    write_lines(folder / "validation.jsonl", *ROWS)
    with pytest.raises(DatasetError, match=r"no test split in .*found train\.jsonl, validation\.jsonl; pass"):
        held_out_files(record)
    test = write_lines(folder / "data" / "test-00000-of-00001.jsonl", *ROWS)
    assert held_out_files(record) == (test,)
    single = dataclasses.replace(adapter, dataset_source=str(folder / "train.jsonl"))
    assert held_out_files(single) == (test,)
    write_lines(folder / "test.jsonl", *ROWS)
    with pytest.raises(DatasetError, match="more than one test split"):
        held_out_files(record)


@pytest.mark.sqlite
def test_the_split_of_a_single_file_is_not_guessed(bank: AdapterBank, tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", *ROWS)
    file = write_lines(tmp_path / "one.jsonl", *ROWS)
    record = dataclasses.replace(bank.adapters()[0], dataset_source=str(file))
    with pytest.raises(DatasetError, match=r"single file .*whose test split is not known; pass --data"):
        held_out_files(record)


@pytest.mark.sqlite
def test_the_split_of_a_hub_dataset_must_be_given(bank: AdapterBank, tmp_path: Path) -> None:
    record = dataclasses.replace(bank.adapters()[0], dataset_source="hub:owner/data")
    with pytest.raises(DatasetError, match="hub:owner/data; download its test split and pass --data FOLDER"):
        held_out_files(record)
    file = write_lines(tmp_path / record.name / "test.jsonl", *ROWS)
    assert held_out_files(record, tmp_path) == (file,)
