"""No value of the database changes without a word: every column, by every kind of value, and single bits anywhere."""

from __future__ import annotations

import math
import random
import re
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import inspect, text

from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.catalog.migrations.checksums import UNSEALED, record_checksum, sealed_columns
from bankdb.catalog.migrations.versions import r0003_checksums
from bankdb.catalog.schema import Base, Sealed
from bankdb.errors import BankFormatError
from bankdb.records import GenerationKey, GenerationRecord
from bankdb.verify import verify
from compute.approaches.options import PredictionOptions
from compute.prediction.predict_all import predict_all
from tests.support.banks.small_bank import ingest_folder
from tests.support.faults.database_flips import Flipped, flips
from tests.support.servers.backends import execute

EVERY_BACKEND = True
KEY = GenerationKey("a" * 64, "b" * 64, "c" * 64)
MODELS = Sealed.__subclasses__()


def columns_of(table: str) -> list[str]:
    """Those that a checksum covers, but those that find a record."""
    (model,) = (model for model in MODELS if model.__tablename__ == table)
    found = {column.name: "" for column in model.__table__.columns if not column.primary_key}
    return sorted(sealed_columns(table, found))


# -- columns -------------------------------------------------------------------------------------------


def test_every_table_has_checksums() -> None:
    """But that of bytes which are named by their hash."""
    assert {model.__tablename__ for model in MODELS} == set(Base.metadata.tables) - {"blob"}
    assert r0003_checksums.KEYS.keys() == {model.__tablename__ for model in MODELS}
    assert UNSEALED.keys() <= r0003_checksums.KEYS.keys()
    for model in MODELS:
        assert r0003_checksums.KEYS[model.__tablename__] == tuple(
            column.name for column in inspect(model).primary_key
        )


def changed(table: str, column: str) -> str:
    """Another value of the column's type, also where it is NULL."""
    (model,) = (model for model in MODELS if model.__tablename__ == table)
    kind = model.__table__.columns[column].type.python_type
    if kind is str:
        return f"coalesce('z' || substr({column}, 2), 'z')"
    # Another number than any other record has.
    return "x'0102030405'" if kind is bytes else f"coalesce({column}, 0) + 1000"


@pytest.mark.faults
@pytest.mark.sqlite
@pytest.mark.parametrize("table", [model.__tablename__ for model in MODELS])
def test_a_changed_value_of_any_column_is_found(filled_template: Path, tmp_path: Path, table: str) -> None:
    path = Path(shutil.copytree(filled_template, tmp_path / "bank"))
    original = (path / "bank.db").read_bytes()
    for column in columns_of(table):
        with closing(sqlite3.connect(path / "bank.db")) as connection, connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            first = f"rowid = (SELECT min(rowid) FROM {table})"
            done = connection.execute(f"UPDATE {table} SET {column} = {changed(table, column)} WHERE {first}")
            assert done.rowcount == 1
        wanted = (
            "has format version" if column == "format_version" else f"record of {table.replace('_', ' ')}"
        )
        damage = problems(path)
        assert any(wanted in line and "bank.db" in line for line in damage), (column, damage)
        for name in ("bank.db-wal", "bank.db-shm"):
            (path / name).unlink(missing_ok=True)
        (path / "bank.db").write_bytes(original)
    assert problems(path) == []


def problems(path: Path) -> list[str]:
    try:
        with AdapterBank.open(path) as bank:
            return verify(bank).damage
    except BankFormatError as error:
        return [str(error)]


@pytest.fixture(scope="module")
def filled_template(bank_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six pairs, with a record in every table; to be copied."""
    path = Path(shutil.copytree(bank_template, tmp_path_factory.mktemp("filled") / "bank"))
    with AdapterBank.open(path) as bank:
        fill(bank)
    with closing(sqlite3.connect(path / "bank.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def fill(bank: AdapterBank) -> None:
    predict_all(bank, PredictionOptions(approach="uniform"), weight_errors=True, store="float32")
    bank.generations.keep(GenerationRecord(KEY, ("yes", "no"), 4, 1.5))


def test_reading_a_changed_record_is_an_error_that_names_it(bank: AdapterBank) -> None:
    execute(bank, "UPDATE adapter SET scaling = scaling * 2 WHERE name = 'task003'", seal=False)
    for read in (bank.adapters, lambda: bank.catalog.find("task003"), lambda: predict_all(bank)):
        with pytest.raises(
            BankFormatError, match="record of adapter task003 does not match its checksum"
        ) as found:
            read()
        assert bank.database_shown in str(found.value)
        assert "bank remove task003" in str(found.value)
    assert bank.catalog.find("task002") is not None


def test_what_the_message_says_to_do_works(bank: AdapterBank, pairs_folder: Path) -> None:
    before = bank.adapters()
    execute(bank, "UPDATE adapter SET row = 77 WHERE name = 'task003'", seal=False)
    execute(bank, "UPDATE dataset SET tokens = 1 WHERE name = 'task004'", seal=False)
    files = set(bank.store.rows_on_disk())
    for name in ("task003", "task004"):
        bank.remove(name)
    assert set(bank.store.rows_on_disk()) == files - {4}  # nobody knows which row was task003's
    assert ingest_folder(bank, pairs_folder).added == ["task003", "task004"]
    assert verify(bank).clean
    assert [record.name for record in bank.adapters()] != [record.name for record in before]
    assert sorted(bank.store.rows_on_disk()) == [0, 1, 2, 5, 6, 7]


def test_damaged_records_of_what_was_computed_are_deleted_and_made_again(bank: AdapterBank) -> None:
    options = PredictionOptions(approach="uniform")
    fill(bank)
    expected = predict_all(bank, options, weight_errors=True)
    for statement in (
        "UPDATE run SET state = 'open' WHERE kind = 'predictions'",
        "UPDATE prediction SET effective_sources = 3 WHERE target = 'task001'",
        "UPDATE generation SET new_tokens = 5",
    ):
        execute(bank, statement, seal=False)
    with pytest.raises(BankFormatError, match="bank verify --repair"):
        predict_all(bank, options)
    report = verify(bank, repair=True)
    assert report.clean, report.damage
    assert sum("deleted the record of" in line for line in report.repaired) >= 3
    again = predict_all(bank, options, weight_errors=True)
    assert again.relative_error is not None
    assert expected.relative_error is not None
    assert again.relative_error.tolist() == expected.relative_error.tolist()
    assert bank.generations.find(KEY) is None


def test_adapters_do_not_vanish_with_their_datasets(bank: AdapterBank) -> None:
    execute(bank, "DELETE FROM dataset WHERE name = 'task002'", seal=False)
    with pytest.raises(BankFormatError, match="6 adapters and 5 datasets found"):
        bank.adapters()


# -- what a checksum is of -----------------------------------------------------------------------------

VALUES = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=5), st.binary(max_size=5))


@given(st.lists(VALUES, min_size=3, max_size=3), st.lists(VALUES, min_size=3, max_size=3))
def test_other_values_have_another_checksum(some: list[object], others: list[object]) -> None:
    kinds = dict.fromkeys("abc", "")
    one, other = (
        record_checksum("t", kinds, dict(zip("abc", values, strict=True))) for values in (some, others)
    )
    same = [(type(value), value) for value in some] == [(type(value), value) for value in others]
    assert (one == other) == same
    assert record_checksum("u", kinds, dict(zip("abc", some, strict=True))) != one


@given(st.floats())
def test_numbers_have_the_checksum_of_what_a_database_gives_back(value: float) -> None:
    kinds = {"x": "real"}
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (x FLOAT)")
        connection.execute("INSERT INTO t VALUES (?)", (value,))
        ((back,),) = connection.execute("SELECT x FROM t").fetchall()
    assert record_checksum("t", kinds, {"x": value}) == record_checksum("t", kinds, {"x": back})
    if math.isfinite(value):
        other = math.nextafter(value, math.inf)
        assert (record_checksum("t", kinds, {"x": other}) == record_checksum("t", kinds, {"x": value})) == (
            other == value
        )


# -- bits ----------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.sqlite
def test_no_flipped_bit_of_the_database_gives_another_value(filled_template: Path, tmp_path: Path) -> None:
    """Everywhere in the file, the schema and the indexes among it."""
    flipped = Flipped(Path(shutil.copytree(filled_template, tmp_path / "bank")))
    outcomes = Counter(
        flipped.outcome(offset, bit) for offset, bit in flips(len(flipped.original), 150, seed=20)
    )
    assert outcomes["error"] > 20
    assert outcomes["unchanged"] > 20  # in no use
    assert outcomes["found"] == 0  # nothing else is given before a verification
    assert flipped.outcome(50, 0) == "unchanged"  # the bank is as it was


@pytest.mark.sqlite
def test_no_flipped_bit_of_a_stored_value_is_taken(filled_template: Path, tmp_path: Path) -> None:
    """Aimed at the values: where names, hashes, the layout and checksums lie in the file."""
    flipped = Flipped(Path(shutil.copytree(filled_template, tmp_path / "bank")))
    with AdapterBank.open(filled_template) as bank:
        record, about = bank.adapters()[2], bank.record
    assert record.checksums is not None
    assert about.layout is not None
    rng = random.Random(3)
    for value in (
        record.row_sha256,
        record.content_sha256,
        about.layout,
        about.tokenizer_fingerprint,
        record.checksums,
    ):
        data = value if isinstance(value, bytes) else value[:40].encode()
        at = flipped.original.index(data)
        for _ in range(3):
            assert flipped.outcome(at + rng.randrange(len(data)), 1 << rng.randrange(8)) == "error"


@pytest.mark.faults
@pytest.mark.sqlite
def test_a_damaged_index_leads_to_an_error(filled_template: Path, tmp_path: Path) -> None:
    """Wherever a key lies in the file, in a record or in an index: nothing is found under another, or not found."""
    flipped = Flipped(Path(shutil.copytree(filled_template, tmp_path / "bank")))
    with AdapterBank.open(filled_template) as bank:
        digest = bank.runs.all()[-1].inputs_sha256
    rng = random.Random(4)
    for key in (KEY.adapter_sha256, KEY.settings_sha256, digest, "task004"):
        places = [found.start() for found in re.finditer(key.encode(), flipped.original)]
        assert len(places) >= 2
        for at in places:
            assert flipped.outcome(at + rng.randrange(len(key)), 1 << rng.randrange(3)) in {
                "error",
                "unchanged",
            }
    # SQLite reads what is in an index from there: where the record itself is damaged, the right value is given.
    places = [found.start() for found in re.finditer(KEY.test_sha256.encode(), flipped.original)]
    outcomes = Counter(flipped.outcome(at, 1) for at in places)
    assert outcomes["error"] >= 1
    assert outcomes["found"] == 0


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "table", ["bank", "adapter", "dataset", "token_distribution", "run", "prediction", "generation"]
)
def test_a_record_that_lost_its_number_is_an_error(filled_template: Path, tmp_path: Path, table: str) -> None:
    """As where a byte of the schema changed: the number is then no longer the database's own, and reads NULL."""
    flipped = Flipped(Path(shutil.copytree(filled_template, tmp_path / "bank")))
    found = re.search(rf"CREATE TABLE {table} \(\s+id INTEGE".encode(), flipped.original)
    assert found is not None
    assert flipped.outcome(found.end(), 1) == "error"
    assert flipped.outcome(found.end(), 0) == "unchanged"


# -- banks of before -----------------------------------------------------------------------------------


def test_a_bank_of_before_gets_checksums(bank: AdapterBank) -> None:
    fill(bank)
    before, url, path = bank.adapters(), bank.location.database_url, bank.path
    runs, key = bank.runs.all(), bank.generations.find(KEY)
    bank.close()
    old = Database(url)
    with old.write() as session, Operations.context(MigrationContext.configure(session.connection())):
        r0003_checksums.downgrade()
        session.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    old.close()
    with AdapterBank.open(path) as opened:
        assert (opened.adapters(), opened.runs.all(), opened.generations.find(KEY)) == (before, runs, key)
        assert [record.checksums for record in opened.adapters()] == [None] * 6
        assert opened.database_problems() == []
        predict_all(opened, PredictionOptions(metric="js", approach="normalized"), store="float32")
        assert [record.checksums for record in opened.adapters()] == [record.checksums for record in before]
        assert verify(opened).clean


def test_plain_rows_are_the_records_that_mapped_objects_give(bank_template: Path, tmp_path: Path) -> None:
    """And where one is not what was written, mapped objects are asked, which say what it is."""
    import sqlite3

    from bankdb.bank import AdapterBank
    from bankdb.catalog.plain.records import quick_records
    from bankdb.errors import BankFormatError

    shutil.copytree(bank_template, tmp_path / "bank")
    with AdapterBank.open(tmp_path / "bank") as bank:
        expected = bank.catalog._adapters(None)
        with bank._database.read() as session:
            found = quick_records(session)
        assert found == expected
        assert [record.checksums for record in found or ()] == [record.checksums for record in expected]
        assert [type(value) for record in found or () for value in (record.alpha, record.use_rslora)] == [
            type(value) for record in expected for value in (record.alpha, record.use_rslora)
        ]
    for change in (
        "UPDATE adapter SET rank = rank + 1 WHERE name = 'task001'",
        "UPDATE dataset SET examples = 7 WHERE name = 'task002'",
        "DELETE FROM dataset WHERE name = 'task003'",
    ):
        folder = tmp_path / str(abs(hash(change)))
        shutil.copytree(bank_template, folder)
        connection = sqlite3.connect(folder / "bank.db")
        connection.execute(change)
        connection.commit()
        connection.close()
        with AdapterBank.open(folder) as bank:
            with bank._database.read() as session:
                assert quick_records(session) is None
            with pytest.raises(BankFormatError):
                bank.adapters()
