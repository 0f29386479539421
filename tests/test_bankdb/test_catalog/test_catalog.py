"""Contract of the catalogue and the run book; holds for every database that `database_url` names."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, text, update

from bankdb.catalog.catalog import Catalog
from bankdb.catalog.database import Database
from bankdb.catalog.runs import RunBook, inputs_hash
from bankdb.catalog.schema import (
    AdapterRow,
    BankRow,
    BlobRow,
    DatasetRow,
    PieceRow,
    PredictionRow,
    TokenDistributionRow,
)
from bankdb.errors import BankError, BankFormatError, BankNotFoundError, ConflictError
from bankdb.records import AdapterRecord, BankRecord, NewAdapter, PredictionRecord
from tests.support.servers.backends import seal_again

EVERY_BACKEND = True


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, create=True)
    yield database
    database.close()


@pytest.fixture
def catalog(database: Database) -> Catalog:
    catalog = Catalog(database)
    create(catalog)
    return catalog


@pytest.fixture
def runs(database: Database) -> RunBook:
    return RunBook(database)


def create(catalog: Catalog) -> BankRecord:
    return catalog.create_bank(
        base_model="example/tiny",
        base_model_aliases=("tiny", "Zwerg ä"),
        tokenizer_name="somewhere",
        tokenizer_fingerprint="f" * 64,
        vocabulary=100,
        text_rule="input + output[0]",
    )


def reserve(database: Database, catalog: Catalog, name: str) -> int:
    with database.write() as session:
        return catalog.reserve(session, name)


def new_adapter(name: str, row: int, **changes: object) -> NewAdapter:
    ids, counts = np.array([3, 5, 9], "<u4"), np.array([1, 2, 3], "<u4")
    new = NewAdapter(
        name=name,
        row=row,
        rank=4,
        alpha=8.0,
        use_rslora=False,
        scaling=2.0,
        dtype="bfloat16",
        source=f"/sources/{name}",
        revision=None,
        source_sha256=hashlib.sha256(name.encode()).hexdigest(),
        header=b'{"tensors": []}',
        config='{"r": 4}',
        row_sha256="b" * 64,
        licence="mit",
        group="group",
        dataset_source=f"/data/{name}",
        dataset_revision="0" * 40,
        content_sha256=hashlib.sha256(f"content of {name}".encode()).hexdigest(),
        examples=2,
        ids=ids.tobytes(),
        counts=counts.tobytes(),
        tokens=6,
    )
    return dataclasses.replace(new, **changes)  # type: ignore[arg-type]


def add(database: Database, catalog: Catalog, name: str, **changes: object) -> int:
    row = reserve(database, catalog, name)
    assert catalog.make_ready(new_adapter(name, row, **changes)) == (True, [])
    return row


def number_of(database: Database, table: type) -> int:
    with database.read() as session:
        return int(session.scalar(select(func.count()).select_from(table)) or 0)


# -- the bank ---------------------------------------------------------------------------------------


def test_a_bank_is_created_once(database: Database) -> None:
    catalog = Catalog(database)
    with pytest.raises(BankNotFoundError, match="bank init"):
        catalog.bank()
    made = create(catalog)
    assert catalog.bank() == made
    assert made.base_model_aliases == ("tiny", "Zwerg ä")
    assert (made.next_row, made.layout, made.parameters, made.scaling) == (0, None, None, None)
    assert len(made.identity) == 32
    with pytest.raises(ConflictError, match="already holds a bank"):
        create(catalog)
    assert catalog.bank() == made


def test_the_layout_is_set_in_the_callers_transaction(database: Database, catalog: Catalog) -> None:
    values = {
        "layout": "{}",
        "parameters": 10,
        "alpha": 8.0,
        "use_rslora": True,
        "scaling": 4.0,
        "dtype": "float16",
        "task_type": "CAUSAL_LM",
        "base_model_revision": None,
    }
    with contextlib.suppress(KeyError), database.write() as session:
        catalog.set_layout(session, **values)
        assert catalog.bank_in(session).layout == "{}"
        raise KeyError
    assert catalog.bank().layout is None
    with database.write() as session:
        catalog.set_layout(session, **values)
    assert {name: getattr(catalog.bank(), name) for name in values} == values


def test_a_newer_format_is_refused(database: Database, catalog: Catalog) -> None:
    with database.write() as session:
        session.execute(update(BankRow).values(format_version=99))
    with pytest.raises(BankFormatError, match=r"format version 99.*upgrade"):
        catalog.bank()


# -- reserving, and making ready --------------------------------------------------------------------


def test_a_reserved_row_is_nobodys_adapter(database: Database, catalog: Catalog) -> None:
    assert reserve(database, catalog, "a") == 0
    assert [(item.name, item.row) for item in catalog.reserved()] == [("a", 0)]
    assert (catalog.adapters(), catalog.find("a"), catalog.count()) == ([], None, 0)
    with pytest.raises(BankNotFoundError, match="a: no such adapter"):
        catalog.adapter("a")
    with pytest.raises(BankNotFoundError, match="a: no such adapter"):
        catalog.remove("a")
    with pytest.raises(BankFormatError, match="no token counts"):
        catalog.token_counts([0])


def test_a_ready_adapter_is_what_was_given(database: Database, catalog: Catalog) -> None:
    row = add(database, catalog, "ä name", use_rslora=True)
    new, record = new_adapter("ä name", row, use_rslora=True), catalog.adapter("ä name")
    assert catalog.find("ä name") == record
    assert (catalog.adapters(), catalog.count(), catalog.reserved()) == ([record], 1, [])
    same = {field.name for field in dataclasses.fields(AdapterRecord)} & {
        field.name for field in dataclasses.fields(NewAdapter)
    }
    assert {name: getattr(record, name) for name in same} == {name: getattr(new, name) for name in same}
    assert catalog.blob(record.header_sha256) == new.header
    assert catalog.blob(record.config_sha256) == new.config.encode()
    ((ids, counts),) = catalog.token_counts([row])
    assert (ids.tolist(), counts.tolist()) == ([3, 5, 9], [1, 2, 3])
    assert ids.dtype == counts.dtype == np.uint32


def test_records_are_frozen(database: Database, catalog: Catalog) -> None:
    add(database, catalog, "a")
    for record in (catalog.bank(), catalog.adapter("a")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.created = "now"
        assert not hasattr(record, "_sa_instance_state")


def test_rows_are_never_used_twice(database: Database, catalog: Catalog) -> None:
    first = add(database, catalog, "a")
    assert catalog.remove("a") == first
    second = reserve(database, catalog, "a")
    assert catalog.abandon(second)
    third = reserve(database, catalog, "a")
    catalog.clear_reserved([third])
    assert (first, second, third, add(database, catalog, "a")) == (0, 1, 2, 3)
    assert catalog.bank().next_row == 4


def test_a_rolled_back_reservation_takes_no_row(database: Database, catalog: Catalog) -> None:
    with contextlib.suppress(KeyError), database.write() as session:
        assert catalog.reserve(session, "a") == 0
        raise KeyError
    assert (catalog.bank().next_row, catalog.reserved()) == (0, [])
    assert reserve(database, catalog, "b") == 0


def test_only_one_ready_adapter_of_a_name(database: Database, catalog: Catalog) -> None:
    """By the database itself, whatever the code above it does."""
    add(database, catalog, "a")
    row = reserve(database, catalog, "a")
    with pytest.raises(BankError), database.write() as session:
        session.execute(update(AdapterRow).where(AdapterRow.row == row).values(state="ready"))
    with pytest.raises(BankError), database.write() as session:
        session.execute(update(AdapterRow).where(AdapterRow.row == row).values(state="lost"))
    with pytest.raises(BankError), database.write() as session:
        session.execute(update(AdapterRow).where(AdapterRow.row == row).values(row=0))
    assert [item.row for item in catalog.reserved()] == [row]


def test_the_same_pair_twice_is_kept_once(database: Database, catalog: Catalog) -> None:
    first, second = reserve(database, catalog, "a"), reserve(database, catalog, "a")
    assert catalog.make_ready(new_adapter("a", second)) == (True, [])
    assert catalog.make_ready(new_adapter("a", first)) == (False, [first])
    assert catalog.adapter("a").row == second
    assert catalog.reserved() == []
    third = reserve(database, catalog, "a")
    assert catalog.make_ready(new_adapter("a", third), replace=True) == (False, [third])
    assert catalog.adapter("a").row == second


CHANGES: dict[str, dict[str, object]] = {
    "weights": {"source_sha256": "9" * 64},
    "dataset": {"content_sha256": "9" * 64},
    "configuration": {"config": '{"r": 4, "lora_alpha": 16}', "alpha": 16.0, "scaling": 4.0},
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_content_is_a_conflict_unless_it_replaces(
    database: Database, catalog: Catalog, what: str
) -> None:
    old = add(database, catalog, "a")
    other = add(database, catalog, "b")
    before = catalog.adapters()
    row = reserve(database, catalog, "a")
    with pytest.raises(ConflictError, match=r"^a: already in the bank.*--replace"):
        catalog.make_ready(new_adapter("a", row, **CHANGES[what]))
    assert (catalog.adapters(), catalog.reserved()) == (before, [])

    row = reserve(database, catalog, "a")
    assert catalog.make_ready(new_adapter("a", row, **CHANGES[what]), replace=True) == (True, [old])
    assert [record.row for record in catalog.adapters()] == [other, row]
    for table in (DatasetRow, TokenDistributionRow):  # nothing of the old one stays
        assert number_of(database, table) == 2


def test_a_row_that_is_not_reserved_cannot_become_ready(database: Database, catalog: Catalog) -> None:
    row = reserve(database, catalog, "a")
    catalog.clear_reserved([row])
    with pytest.raises(ConflictError, match="ingest it again"):
        catalog.make_ready(new_adapter("a", row))
    ready = add(database, catalog, "b")
    with pytest.raises(ConflictError, match="ingest it again"):
        catalog.make_ready(new_adapter("b", ready))
    assert [record.name for record in catalog.adapters()] == ["b"]


def test_a_ready_row_is_neither_abandoned_nor_cleared(database: Database, catalog: Catalog) -> None:
    row = add(database, catalog, "a")
    assert not catalog.abandon(row)
    catalog.clear_reserved([row])
    assert catalog.adapter("a").row == row


def test_make_ready_is_one_transaction(database: Database, catalog: Catalog) -> None:
    """The last statement fails (no counts): nothing of the pair is there, the old one is."""
    add(database, catalog, "a")
    before = catalog.adapters()
    row = reserve(database, catalog, "a")
    bad = new_adapter("a", row, source_sha256="9" * 64, header=b"other", tokens=None)
    with pytest.raises(BankError):
        catalog.make_ready(bad, replace=True)
    assert catalog.adapters() == before
    assert [item.row for item in catalog.reserved()] == [row]
    assert number_of(database, BlobRow) == 2


# -- removing, labels, blobs ------------------------------------------------------------------------


def test_removal_takes_the_dataset_along(database: Database, catalog: Catalog) -> None:
    row = add(database, catalog, "a")
    kept = add(database, catalog, "b")
    assert catalog.remove("a") == row
    assert [record.row for record in catalog.adapters()] == [kept]
    assert number_of(database, DatasetRow) == number_of(database, TokenDistributionRow) == 1
    with pytest.raises(BankFormatError, match=rf"rows \[{row}\]"):
        catalog.token_counts([kept, row])
    with pytest.raises(BankNotFoundError):
        catalog.remove("a")


def test_labels_can_change(database: Database, catalog: Catalog) -> None:
    add(database, catalog, "a")
    before = add(database, catalog, "b")
    catalog.set_group("a", "other", None)
    record = catalog.adapter("a")
    assert (record.group, record.licence) == ("other", None)
    assert catalog.adapter("b") == catalog.adapters()[before]
    assert catalog.adapter("b").group == "group"
    with pytest.raises(BankNotFoundError):
        catalog.set_group("c", None, None)


def test_blobs_are_shared_checked_and_healed(database: Database, catalog: Catalog) -> None:
    add(database, catalog, "a")
    add(database, catalog, "b")
    assert number_of(database, BlobRow) == 2
    digest = catalog.adapter("a").header_sha256
    with database.write() as session:
        session.execute(update(BlobRow).where(BlobRow.sha256 == digest).values(data=b"rubbish"))
    with pytest.raises(BankFormatError, match=f"{digest[:12]} are damaged"):
        catalog.blob(digest)
    add(database, catalog, "c")  # brings the same bytes again
    assert catalog.blob(digest) == b'{"tensors": []}'
    with pytest.raises(BankFormatError, match="are missing"):
        catalog.blob("0" * 64)


# -- token counts -----------------------------------------------------------------------------------


def test_counts_come_in_the_order_asked_for(database: Database, catalog: Catalog) -> None:
    rows = [
        add(database, catalog, f"n{index}", counts=np.array([1, 2, index + 1], "<u4").tobytes())
        for index in range(5)
    ]
    asked = [rows[3], rows[0], rows[4], rows[3]]
    assert [int(counts[2]) for _, counts in catalog.token_counts(asked)] == [4, 1, 5, 4]
    assert catalog.token_counts([]) == []


@pytest.mark.parametrize("column", ["ids", "counts"])
def test_changed_counts_are_an_error(database: Database, catalog: Catalog, column: str) -> None:
    """Also a change that leaves a valid histogram: other ids, or other counts of the same sum."""
    row = add(database, catalog, "a")
    changed = {"ids": np.array([3, 6, 9], "<u4"), "counts": np.array([2, 1, 3], "<u4")}[column]
    with database.write() as session:
        session.execute(update(TokenDistributionRow).values({column: changed.tobytes()}))
    with pytest.raises(BankFormatError, match=f"row {row} do not match their checksum"):
        catalog.token_counts([row])


def test_counts_under_another_tokenizer_do_not_count(database: Database, catalog: Catalog) -> None:
    row = add(database, catalog, "a")
    with database.write() as session:
        session.execute(update(BankRow).values(tokenizer_fingerprint="e" * 64))
    seal_again(database)
    with pytest.raises(BankFormatError, match="no token counts under the bank's tokenizer"):
        catalog.token_counts([row])


def test_more_rows_than_one_statement_takes(
    database: Database, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [add(database, catalog, f"n{index}") for index in range(7)]
    monkeypatch.setattr("bankdb.catalog.catalog._BATCH", 3)
    assert len(catalog.token_counts(rows)) == 7


# -- several clients --------------------------------------------------------------------------------


def test_clients_reserving_at_once_get_rows_of_their_own(database_url: str, database: Database) -> None:
    create(Catalog(database))
    rows: list[int] = []
    start = threading.Barrier(4)

    def client(number: int) -> None:
        other = Database(database_url)
        start.wait()
        rows.extend(reserve(other, Catalog(other), f"n{number}") for _ in range(10))
        other.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(rows) == list(range(40))
    assert Catalog(database).bank().next_row == 40


def test_a_reader_sees_only_what_is_committed(database_url: str, database: Database) -> None:
    catalog = Catalog(database)
    create(catalog)
    other = Database(database_url)
    with database.write() as session:
        catalog.reserve(session, "a")
        session.flush()
        assert Catalog(other).reserved() == []
    assert [item.name for item in Catalog(other).reserved()] == ["a"]
    other.close()


def test_reading_keeps_nothing(database: Database, catalog: Catalog) -> None:
    add(database, catalog, "a")
    with database.read() as session:
        session.execute(delete(AdapterRow))
    assert catalog.count() == 1


def test_errors_of_the_database_are_one_line(database: Database, catalog: Catalog) -> None:
    with pytest.raises(BankError) as caught, database.write() as session:
        session.execute(text("SELECT * FROM nowhere"))
    assert "\n" not in str(caught.value)
    assert "nowhere" in str(caught.value)
    assert catalog.count() == 0  # and the connection is still good


# -- runs -------------------------------------------------------------------------------------------

PARAMETERS = {"metric": "wasserstein", "rows": [1, 2], "array": "distances.zarr"}


def test_a_run_is_found_again_by_its_inputs(runs: RunBook) -> None:
    first = runs.begin("distances", PARAMETERS)
    assert first.state == "open"
    assert runs.begin("distances", dict(reversed(PARAMETERS.items()))) == first
    others = [
        runs.begin("gram", PARAMETERS),
        runs.begin("distances", PARAMETERS | {"rows": [2, 1]}),
        runs.begin("distances", PARAMETERS, seed=0),
        runs.begin("distances", PARAMETERS, seed=1),
    ]
    assert len({first.id, *(other.id for other in others)}) == 5
    assert runs.begin("distances", PARAMETERS, seed=1) == others[-1]
    assert runs.get(first.id) == first
    assert runs.all() == [first, *others]
    assert runs.all("gram") == [others[0]]
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.state = "done"
    with pytest.raises(BankNotFoundError, match="run 99"):
        runs.get(99)


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=5))
def test_the_hash_of_inputs_does_not_depend_on_their_order(values: dict[str, object]) -> None:
    assert inputs_hash("kind", values) == inputs_hash("kind", dict(reversed(values.items())))


def test_a_seed_may_be_large(runs: RunBook) -> None:
    run = runs.begin("neural", PARAMETERS, seed=2**62)
    assert runs.get(run.id).seed == 2**62


def test_not_a_number_is_no_input() -> None:
    with pytest.raises(ValueError, match=r"[Oo]ut of range|JSON"):
        inputs_hash("kind", {"sigma": float("nan")})


def test_pieces(runs: RunBook) -> None:
    run, other = runs.begin("gram", {"a": 1}), runs.begin("gram", {"a": 2})
    assert runs.done_pieces(run.id) == {}
    runs.mark_done(run.id, {"0,0": "x", "0,1": "y"})
    runs.mark_done(run.id, {"0,1": "z", "1,1": "z"})
    runs.mark_done(other.id, {"0,0": "other"})
    assert runs.done_pieces(run.id) == {"0,0": "x", "0,1": "z", "1,1": "z"}
    runs.forget_pieces(run.id, ["0,0", "nonesuch"])
    assert runs.done_pieces(run.id) == {"0,1": "z", "1,1": "z"}
    runs.finish(run.id)
    done = runs.get(run.id)
    assert done.state == "done"
    assert done.finished is not None
    runs.reopen(run.id)
    assert (runs.get(run.id).state, runs.get(run.id).finished) == ("open", None)
    assert runs.done_pieces(run.id) == {}
    assert runs.done_pieces(other.id) == {"0,0": "other"}


def test_pieces_are_marked_all_or_none(runs: RunBook) -> None:
    run = runs.begin("gram", {})
    with pytest.raises(BankError):
        runs.mark_done(run.id, {"good": "x", "bad": None})
    assert runs.done_pieces(run.id) == {}
    with pytest.raises(BankError):
        runs.mark_done(999, {"piece": "of no run"})


def prediction(run: int, target: str, **changes: object) -> PredictionRecord:
    record = PredictionRecord(
        run, target, 1.2195121951219512, None, sources=(4, 2**32 - 1), weights=(0.1, 0.9)
    )
    return dataclasses.replace(record, **changes)


def test_predictions(database: Database, runs: RunBook) -> None:
    run = runs.begin("predictions", {})
    first, second = prediction(run.id, "a"), prediction(run.id, "b", relative_error=0.5)
    runs.store_predictions([first, second])
    assert runs.predictions(run.id) == [first, second]
    changed = prediction(run.id, "a", sources=(), weights=())
    runs.store_predictions([changed])
    assert runs.predictions(run.id) == [second, changed]
    runs.set_exported(run.id, {"b": ("/out/b", "float16"), "none": ("/out/none", "float16")})
    exported = dataclasses.replace(second, exported_to="/out/b", export_dtype="float16")
    assert runs.predictions(run.id) == [exported, changed]
    runs.mark_done(run.id, {"0": "x"})
    runs.delete(run.id)
    assert number_of(database, PredictionRow) == number_of(database, PieceRow) == 0
    with pytest.raises(BankError):
        runs.store_predictions([first])


def test_coefficients_survive_bit_for_bit(runs: RunBook) -> None:
    weights = (*np.random.default_rng(0).random(500).tolist(), 0.0, -0.0, 5e-324, 1.0, 1 / 3)
    sources = tuple(2**32 - 1 - index for index in range(len(weights)))
    run = runs.begin("predictions", {})
    runs.store_predictions([prediction(run.id, "a", sources=sources, weights=weights)])
    (found,) = runs.predictions(run.id)
    assert found.sources == sources
    assert np.array(found.weights).tobytes() == np.array(weights).tobytes()
