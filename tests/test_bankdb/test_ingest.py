"""Ingest: what is stored, what is skipped, what is refused; and that nothing of the refused stays."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bankdb.bank import AdapterBank
from bankdb.datasets.read import read_dataset
from bankdb.errors import BankNotFoundError, TokenizerError
from bankdb.ingest import IngestReport, clear_leftovers, ingest
from bankdb.records import AdapterRecord, Pair, PairReference
from bankdb.sources.pairs import find_references, resolve
from tests.support.banks.bank_content import assert_nothing_else, content
from tests.support.banks.malformed_adapters import (
    BASE_MODEL,
    CONFIG,
    MALFORMED,
    WEIGHTS,
    encode,
    read_weights,
    write_good_adapter,
    write_weights,
)
from tests.support.banks.small_bank import create_bank, ingest_folder, write_dataset, write_pairs

EVERY_BACKEND = True


def reasons(report: IngestReport) -> dict[str, str]:
    found = {item.name: item.reason for item in report.refused}
    assert len(found) == len(report.refused)
    assert all("\n" not in reason for reason in found.values())
    return found


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.fixture
def pairs(tmp_path: Path, pairs_folder: Path) -> Path:
    """The six pairs, to be changed."""
    return Path(shutil.copytree(pairs_folder, tmp_path / "pairs"))


# -- what is stored ---------------------------------------------------------------------------------


def test_what_is_stored_is_what_is_in_the_files(empty_bank: AdapterBank, pairs_folder: Path) -> None:
    report = ingest_folder(empty_bank, pairs_folder)
    names = [f"task{index:03d}" for index in range(6)]
    assert (report.added, report.skipped, report.replaced, report.refused) == (names, [], [], [])
    records = empty_bank.adapters()
    assert [record.name for record in records] == names
    for record, dtype in zip(records, ["float32", "float16", "bfloat16"] * 2, strict=True):
        adapter, data = pairs_folder / "adapters" / record.name, pairs_folder / "datasets" / record.name
        assert (record.source, record.dataset_source) == (str(adapter), str(data))
        assert (record.dtype, record.rank, record.alpha, record.scaling) == (dtype, 4, 8.0, 2.0)
        for name, stored in ((WEIGHTS, record.source_sha256), (CONFIG, record.config_sha256)):
            assert hashlib.sha256((adapter / name).read_bytes()).hexdigest() == stored
        dataset = read_dataset([data / "train.jsonl"])
        assert (record.content_sha256, record.examples) == (dataset.sha256, 12)
        histogram = empty_bank.tokenizer.count(dataset.texts(), "data")
        ((ids, counts),) = empty_bank.catalog.token_counts([record.row])
        assert ids.tolist() == histogram.ids.tolist()
        assert counts.tolist() == histogram.counts.tolist()
        assert record.tokens == sum(len(text.split()) + 1 for text in dataset.texts())
        assert empty_bank.store.read(record.row).tobytes() == flat(adapter, empty_bank).tobytes()
    bank = empty_bank.record
    assert (bank.parameters, bank.scaling, bank.dtype) == (records_width(pairs_folder), 2.0, "float32")
    assert_nothing_else(empty_bank)


def flat(folder: Path, bank: AdapterBank) -> np.ndarray:
    """An adapter's values in the bank's order, decoded here."""
    header, data = read_weights(folder)
    pieces = []
    for spec in bank.layout.tensors:
        start, stop = header[spec.name]["data_offsets"]
        raw = data[start:stop]
        if header[spec.name]["dtype"] == "BF16":
            pieces.append((np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32))
        else:
            dtype = {"F32": "<f4", "F16": "<f2"}[header[spec.name]["dtype"]]
            pieces.append(np.frombuffer(raw, dtype).astype(np.float32))
    return np.concatenate(pieces)


def records_width(folder: Path) -> int:
    header, _ = read_weights(folder / "adapters" / "task000")
    return sum(int(np.prod(spec["shape"])) for name, spec in header.items() if name != "__metadata__")


def test_tensors_of_several_dtypes_in_one_file(empty_bank: AdapterBank, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 1)
    folder = tmp_path / "pairs" / "adapters" / "task000"
    header, data = read_weights(folder)
    mixed, pieces = {"__metadata__": header["__metadata__"]}, b""
    for index, (name, spec) in enumerate(item for item in header.items() if item[0] != "__metadata__"):
        dtype = ("F32", "F16", "BF16")[index % 3]
        start, stop = spec["data_offsets"]
        piece = encode(np.frombuffer(data[start:stop], "<f4"), dtype)
        mixed[name] = spec | {"dtype": dtype, "data_offsets": [len(pieces), len(pieces) + len(piece)]}
        pieces += piece
    write_weights(folder, mixed, pieces)
    assert ingest_folder(empty_bank, tmp_path / "pairs").added == ["task000"]
    record = empty_bank.catalog.adapter("task000")
    assert record.dtype == "mixed"
    assert empty_bank.store.read(record.row).tobytes() == flat(folder, empty_bank).tobytes()
    exported = empty_bank.export("task000", tmp_path / "out")
    assert (exported / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


# -- again ------------------------------------------------------------------------------------------


def test_ingest_is_idempotent(bank: AdapterBank, pairs_folder: Path) -> None:
    before, records = content(bank), bank.adapters()
    report = ingest_folder(bank, pairs_folder)
    assert (report.added, report.replaced, report.refused) == ([], [], [])
    assert report.skipped == list(before)
    report = ingest_folder(bank, pairs_folder, replace=True)
    assert report.skipped == list(before)
    assert bank.adapters() == records
    assert bank.record.next_row == 6
    assert_nothing_else(bank)


def test_order_and_format_of_a_dataset_are_no_change(bank: AdapterBank, pairs: Path) -> None:
    file = pairs / "datasets" / "task000" / "train.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.unlink()
    (file.parent / "train.json").write_text(json.dumps(lines[::-1]))
    assert "task000" in ingest_folder(bank, pairs).skipped


def change_weights(folder: Path) -> None:
    write_changed_adapter(folder / "adapters" / "task001", dtype="F16")


def write_changed_adapter(folder: Path, **options: Any) -> None:
    shutil.rmtree(folder)
    write_good_adapter(folder, seed=99, **options)


def change_dataset(folder: Path) -> None:
    with (folder / "datasets" / "task001" / "train.jsonl").open("a") as file:
        file.write('{"input": "one more", "output": "example"}\n')


def change_scaling(folder: Path) -> None:
    edit_config(folder / "adapters" / "task001", lora_alpha=16)


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": change_weights,
    "dataset": change_dataset,
    "scaling": change_scaling,
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_content_is_refused_and_the_old_stays(
    bank: AdapterBank, pairs: Path, tmp_path: Path, what: str
) -> None:
    before, records = content(bank), bank.adapters()
    CHANGES[what](pairs)
    report = ingest_folder(bank, pairs)
    assert list(reasons(report)) == ["task001"]
    assert "--replace" in reasons(report)["task001"]
    assert len(report.skipped) == 5
    assert content(bank) == before
    assert bank.adapters() == records
    assert_nothing_else(bank)


@pytest.mark.parametrize("what", CHANGES)
def test_replacing_stores_the_new_in_a_new_row(
    bank: AdapterBank, pairs: Path, tmp_path: Path, tokenizer_folder: Path, what: str
) -> None:
    before = content(bank)
    old = bank.catalog.adapter("task001")
    CHANGES[what](pairs)
    report = ingest_folder(bank, pairs, replace=True)
    assert (report.replaced, report.refused, len(report.skipped)) == (["task001"], [], 5)
    assert bank.catalog.adapter("task001").row == 6 != old.row
    with create_bank(tmp_path / "fresh", tokenizer_folder) as fresh:
        ingest_folder(fresh, pairs)
        expected = content(fresh)
    found = content(bank)
    assert found["task001"] == expected["task001"] != before["task001"]
    # The others were not read again: they are what they were, with the sources they came from.
    assert {name: found[name] for name in before if name != "task001"} == {
        name: before[name] for name in before if name != "task001"
    }
    assert_nothing_else(bank)


def test_a_changed_pair_that_is_malformed_replaces_nothing(bank: AdapterBank, pairs: Path) -> None:
    before = content(bank)
    (pairs / "adapters" / "task001" / WEIGHTS).write_bytes(b"rubbish")
    (pairs / "datasets" / "task002" / "train.jsonl").write_text("rubbish")
    (pairs / "adapters" / "task003" / WEIGHTS).unlink()
    (pairs / "adapters" / "task003" / WEIGHTS).mkdir()
    (pairs / "adapters" / "task004" / CONFIG).unlink()
    report = ingest_folder(bank, pairs, replace=True)
    assert sorted(reasons(report)) == ["task001", "task002", "task003", "task004"]
    assert content(bank) == before
    assert_nothing_else(bank)


def test_labels_are_refreshed(bank: AdapterBank, pairs_folder: Path) -> None:
    before = bank.catalog.adapter("task000")
    references, _ = find_references(pairs_folder)
    labelled = [dataclasses.replace(item, group="g", licence="mit") for item in references[:1]]
    report = ingest(bank, labelled, resolve=resolve)
    assert report.skipped == ["task000"]
    assert bank.catalog.adapter("task000") == dataclasses.replace(before, group="g", licence="mit")
    # A source that says nothing takes nothing away.
    ingest(bank, references[:1], resolve=resolve)
    assert bank.catalog.adapter("task000").group == "g"
    ingest(bank, [dataclasses.replace(labelled[0], group="h")], resolve=resolve)
    assert (bank.catalog.adapter("task000").group, bank.catalog.adapter("task000").licence) == ("h", "mit")


def test_the_same_reference_twice(empty_bank: AdapterBank, pairs_folder: Path) -> None:
    references, _ = find_references(pairs_folder)
    report = ingest(empty_bank, [*references, *references], resolve=resolve)
    assert sorted(report.added) == sorted(report.skipped) == [item.name for item in references]
    assert_nothing_else(empty_bank)


def test_one_name_for_two_pairs_in_one_run(empty_bank: AdapterBank, pairs_folder: Path) -> None:
    first, second, *_ = find_references(pairs_folder)[0]
    report = ingest(empty_bank, [first, dataclasses.replace(second, name=first.name)], resolve=resolve)
    assert report.added == [first.name]
    assert "--replace" in reasons(report)[first.name]
    assert empty_bank.catalog.adapter(first.name).source == first.adapter
    assert_nothing_else(empty_bank)


def test_the_same_dataset_under_two_names(empty_bank: AdapterBank, pairs: Path) -> None:
    for part in ("datasets", "adapters"):
        shutil.copytree(pairs / part / "task000", pairs / part / "twin")
    report = ingest_folder(empty_bank, pairs)
    assert len(report.added) == 7
    one, other = (empty_bank.catalog.adapter(name) for name in ("task000", "twin"))
    assert one.content_sha256 == other.content_sha256
    assert one.row != other.row
    assert_nothing_else(empty_bank)


def test_a_removed_pair_is_stored_again_in_a_new_row(bank: AdapterBank, pairs_folder: Path) -> None:
    before = content(bank)
    bank.remove("task002")
    assert bank.store.rows_on_disk() == [0, 1, 3, 4, 5]
    with pytest.raises(BankNotFoundError):
        bank.remove("task002")
    report = ingest_folder(bank, pairs_folder)
    assert (report.added, len(report.skipped)) == (["task002"], 5)
    assert bank.catalog.adapter("task002").row == 6
    assert content(bank) == before
    assert_nothing_else(bank)


# -- what kind of adapter the bank is for -----------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "changes", "message"),
    [
        ("task000", {"r": 8}, "rank 4 expected, 8 found"),
        ("task001", {"target_modules": ["q_proj"]}, "target modules q_proj, v_proj expected, q_proj found"),
        ("task005", {"r": 8}, "rank 4 expected, 8 found"),
    ],
)
def test_the_majority_decides_in_an_empty_bank(
    empty_bank: AdapterBank, pairs: Path, odd: str, changes: dict[str, Any], message: str
) -> None:
    write_changed_adapter(pairs / "adapters" / odd, **changes)
    report = ingest_folder(empty_bank, pairs)
    assert list(reasons(report)) == [odd]
    assert message in reasons(report)[odd]
    assert len(report.added) == 5
    assert_nothing_else(empty_bank)


@pytest.mark.parametrize("odd", ["task000", "task001", "task005"])
def test_the_majority_decides_on_the_revision_of_the_base_model(
    empty_bank: AdapterBank, pairs: Path, odd: str
) -> None:
    for folder in (pairs / "adapters").iterdir():
        edit_config(folder, revision="0a1b")
    edit_config(pairs / "adapters" / odd, revision=None)
    report = ingest_folder(empty_bank, pairs)
    assert list(reasons(report)) == [odd]
    assert "revision None of the base model, the bank's adapters on '0a1b'" in reasons(report)[odd]
    assert empty_bank.record.base_model_revision == "0a1b"
    assert_nothing_else(empty_bank)


def test_adapters_of_another_base_model_have_no_vote(empty_bank: AdapterBank, pairs: Path) -> None:
    others = ["task000", "task001", "task002", "task003"]
    for name in others:
        write_changed_adapter(pairs / "adapters" / name, r=8, base_model_name_or_path="example/other")
    report = ingest_folder(empty_bank, pairs)
    assert report.added == ["task004", "task005"]
    assert sorted(reasons(report)) == others
    for reason in reasons(report).values():
        assert "'example/tiny-llama' was expected, 'example/other' found" in reason
    assert_nothing_else(empty_bank)


def test_a_layout_that_came_meanwhile_is_kept_to(
    empty_bank: AdapterBank, pairs_folder: Path, tmp_path: Path
) -> None:
    """Another client, of another mind, stores its first adapter after this one looked at the empty bank."""
    write_pairs(tmp_path / "other", 1, prefix="other")
    write_changed_adapter(tmp_path / "other" / "adapters" / "other000", r=8)
    other = find_references(tmp_path / "other")[0]
    references, _ = find_references(pairs_folder)

    def resolve_late(reference: PairReference) -> Pair | None:
        return resolve(reference)

    class Meanwhile:
        """Lets the other client in just before the first pair of this one is stored."""

        def begin(self, stage: str, total: int) -> None:
            if stage == "ingest":
                with AdapterBank.open(empty_bank.path) as client:
                    assert ingest(client, other, resolve=resolve).added == ["other000"]

        def advance(self, steps: int = 1) -> None: ...
        def end(self) -> None: ...
        def received(self, count: int, expected: int) -> None: ...
        def note(self, text: str) -> None: ...

    report = ingest(empty_bank, references, resolve=resolve_late, progress=Meanwhile())
    assert report.added == []
    assert len(reasons(report)) == 6
    assert all("rank 8 expected, 4 found" in reason for reason in reasons(report).values())
    assert [record.name for record in empty_bank.adapters()] == ["other000"]
    assert_nothing_else(empty_bank)


def test_aliases_of_the_base_model(tmp_path: Path, tokenizer_folder: Path, pairs: Path) -> None:
    edit_config(pairs / "adapters" / "task001", base_model_name_or_path="/models/tiny")
    edit_config(pairs / "adapters" / "task002", base_model_name_or_path="/models/other")
    with AdapterBank.create(
        tmp_path / "bank", base_model=BASE_MODEL, tokenizer=tokenizer_folder, aliases=["/models/tiny"]
    ) as bank:
        report = ingest_folder(bank, pairs)
        assert list(reasons(report)) == ["task002"]
        assert "'example/tiny-llama' or '/models/tiny' was expected" in reasons(report)["task002"]
        assert len(report.added) == 5
        assert_nothing_else(bank)


def test_adapters_of_another_scaling_are_stored_with_theirs(empty_bank: AdapterBank, pairs: Path) -> None:
    edit_config(pairs / "adapters" / "task001", lora_alpha=16)
    edit_config(pairs / "adapters" / "task002", use_rslora=True)
    assert len(ingest_folder(empty_bank, pairs).added) == 6
    scalings = {record.name: record.scaling for record in empty_bank.adapters()}
    assert (scalings["task000"], scalings["task001"], scalings["task002"]) == (2.0, 4.0, 4.0)
    assert empty_bank.record.scaling == 2.0


# -- the tokenizer, and columns ---------------------------------------------------------------------


def test_another_tokenizer_is_refused_before_anything_is_stored(
    empty_bank: AdapterBank, pairs_folder: Path
) -> None:
    file = empty_bank.path / "tokenizer" / "tokenizer.json"
    original = file.read_bytes()
    file.write_bytes(original.replace(b'"w10"', b'"x10"'))
    with pytest.raises(TokenizerError, match="put the original files back"):
        ingest_folder(empty_bank, pairs_folder)
    assert (len(empty_bank), empty_bank.record.next_row) == (0, 0)
    file.write_bytes(original)
    assert len(ingest_folder(empty_bank, pairs_folder).added) == 6


def test_a_missing_tokenizer_is_refused(empty_bank: AdapterBank, pairs_folder: Path) -> None:
    shutil.rmtree(empty_bank.path / "tokenizer")
    with pytest.raises(TokenizerError, match="is missing"):
        ingest_folder(empty_bank, pairs_folder)


def test_columns_of_other_names(empty_bank: AdapterBank, pairs: Path) -> None:
    for file in (pairs / "datasets").glob("*/train.jsonl"):
        text = file.read_text().replace('"input"', '"ask"').replace('"output"', '"tell"')
        file.write_text(text)
    report = ingest_folder(empty_bank, pairs)
    assert report.added == []
    assert all("--input-column" in reason for reason in reasons(report).values())
    columns = {"input_column": "ask", "output_column": "tell"}
    assert len(ingest_folder(empty_bank, pairs, **columns).added) == 6
    assert_nothing_else(empty_bank)


# -- what is refused --------------------------------------------------------------------------------

BAD_DATASETS: dict[str, bytes] = {
    "empty": b"",
    "blank lines": b"\n\n",
    "not JSON": b"{input: 1}\n",
    "cut off": b'{"input": "a", "output": "b"}\n{"input": "a", "outp',
    "no output": b'{"input": "a"}\n',
    "null input": b'{"input": null, "output": "b"}\n',
    "object": b'{"input": {}, "output": "b"}\n',
    "no outputs": b'{"input": "a", "output": []}\n',
    "array": b'["a", "b"]\n',
    "UTF-16": '{"input": "a", "output": "b"}\n'.encode("utf-16"),
    "Latin-1": '{"input": "\xe4", "output": "b"}\n'.encode("latin-1"),
    "NUL": b'{"input": "a\\u0000", "output": "b"}\n',
    "surrogate": b'{"input": "\\ud800", "output": "b"}\n',
    "gzip": b"\x1f\x8b\x08\x00rubbish",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
}


@pytest.fixture(scope="module")
def folder_with_bad_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good pairs before, between and after one of each malformed kind."""
    folder = write_pairs(tmp_path_factory.mktemp("mixed"), 3, prefix="good")
    for index, case in enumerate(MALFORMED):
        name = f"{'fh'[index % 2]}-adapter{index:03d}"
        write_dataset(folder / "datasets" / name, index, examples=2)
        case.damage(write_good_adapter(folder / "adapters" / name, seed=index))
    for index, raw in enumerate(BAD_DATASETS.values()):
        name = f"{'fh'[index % 2]}-dataset{index:03d}"
        (folder / "datasets" / name).mkdir()
        (folder / "datasets" / name / "train.jsonl").write_bytes(raw)
        write_good_adapter(folder / "adapters" / name, seed=index)
    (folder / "datasets" / "g-no-files").mkdir()
    write_good_adapter(folder / "adapters" / "g-no-files")
    write_good_adapter(folder / "adapters" / "g-no-dataset")
    write_dataset(folder / "datasets" / "g-no-adapter", 0)
    return folder


@pytest.mark.parametrize("start", ["empty", "filled"])
def test_bad_pairs_are_refused_by_name_and_leave_nothing(
    request: pytest.FixtureRequest, folder_with_bad_pairs: Path, start: str
) -> None:
    bank: AdapterBank = request.getfixturevalue("empty_bank" if start == "empty" else "bank")
    before, blobs = content(bank), number_of_blobs(bank)
    report = ingest_folder(bank, folder_with_bad_pairs)
    assert report.added == ["good000", "good001", "good002"]
    assert_nothing_else(bank)
    refused = reasons(report)
    names = {
        path.name for part in ("adapters", "datasets") for path in (folder_with_bad_pairs / part).iterdir()
    }
    assert refused.keys() == names - {"good000", "good001", "good002"}
    for index, case in enumerate(MALFORMED):
        name = f"{'fh'[index % 2]}-adapter{index:03d}"
        # That a file is missing is found when pairs are located, in other words than those of the reader.
        assert (
            case.message in refused[name]
            or "expected an adapter that PEFT has saved" in refused[name]
            or ("safetensors only" in refused[name])
        ), (case.name, refused[name])
        assert name in refused[name]
    for index, kind in enumerate(BAD_DATASETS):
        name = f"{'fh'[index % 2]}-dataset{index:03d}"
        assert str(folder_with_bad_pairs / "datasets" / name) in refused[name], kind
    after = content(bank)
    assert {name: after[name] for name in before} == before
    assert number_of_blobs(bank) == blobs + (2 if start == "empty" else 0)
    report = ingest_folder(bank, folder_with_bad_pairs)
    assert (report.added, report.skipped) == ([], ["good000", "good001", "good002"])
    assert reasons(report) == refused


def number_of_blobs(bank: AdapterBank) -> int:
    import sqlite3

    with sqlite3.connect(bank.path / "bank.db") as connection:
        ((number,),) = connection.execute("SELECT count(*) FROM blob").fetchall()
    connection.close()
    return int(number)


def test_bad_pairs_alone_leave_the_bank_empty(empty_bank: AdapterBank, folder_with_bad_pairs: Path) -> None:
    references = [item for item in find_references(folder_with_bad_pairs)[0] if "good" not in item.name]
    # An adapter that is good is refused for its dataset: it must not make the bank's layout.
    report = ingest(empty_bank, references, resolve=resolve)
    assert report.added == []
    assert len(reasons(report)) == len(references) > 100
    record = empty_bank.record
    assert (record.layout, record.parameters, record.base_model_revision) == (None, None, None)
    assert not empty_bank.store.path.exists()
    assert_nothing_else(empty_bank)


@pytest.mark.parametrize("field", ["group", "licence"])
@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
def test_labels_that_are_no_text_are_refused(
    empty_bank: AdapterBank, pairs_folder: Path, field: str, text: str
) -> None:
    references, _ = find_references(pairs_folder)
    references[1] = dataclasses.replace(references[1], **{field: text})
    report = ingest(empty_bank, references, resolve=resolve)
    assert list(reasons(report)) == ["task001"]
    assert "not valid Unicode" in reasons(report)["task001"]
    assert len(report.added) == 5
    assert_nothing_else(empty_bank)


def test_a_path_that_is_not_utf8_is_refused(empty_bank: AdapterBank, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "caf\udce9", 2)
    report = ingest_folder(empty_bank, folder)
    assert sorted(reasons(report)) == ["task000", "task001"]
    assert all("not valid Unicode" in reason for reason in reasons(report).values())
    assert_nothing_else(empty_bank)


def test_a_source_that_cannot_be_resolved_is_refused(empty_bank: AdapterBank, pairs_folder: Path) -> None:
    references, _ = find_references(pairs_folder)
    references[2] = dataclasses.replace(references[2], adapter=str(pairs_folder / "nowhere"))
    report = ingest(
        empty_bank, references, resolve=lambda item: resolve(item) if item.name != "task003" else None
    )
    assert list(reasons(report)) == ["task002"]
    assert report.skipped == ["task003"]
    assert report.added == ["task000", "task001", "task004", "task005"]


def test_a_source_that_vanishes_meanwhile_is_refused(empty_bank: AdapterBank, pairs: Path) -> None:
    def resolve_and_delete(reference: PairReference) -> Pair | None:
        pair = resolve(reference)
        if reference.name == "task001":
            shutil.rmtree(pair.adapter)
        if reference.name == "task002":
            shutil.rmtree(pair.dataset[0].parent)
        return pair

    report = ingest(empty_bank, find_references(pairs)[0], resolve=resolve_and_delete)
    assert sorted(reasons(report)) == ["task001", "task002"]
    assert len(report.added) == 4
    assert_nothing_else(empty_bank)


# -- interrupted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "error"), [("before", KeyboardInterrupt), ("after", KeyboardInterrupt), ("after", OSError)]
)
def test_an_interrupt_around_the_commit_loses_nothing(
    empty_bank: AdapterBank,
    pairs_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: type[BaseException],
) -> None:
    """Before the commit nothing of the pair is there; after it the row is, and must not be cleaned up."""
    make_ready = empty_bank.catalog.make_ready
    calls = 0

    def interrupted(*args: Any, **options: Any) -> tuple[bool, list[int]]:
        nonlocal calls
        calls += 1
        if calls == 3 and where == "before":
            raise error
        result = make_ready(*args, **options)
        if calls == 3:
            raise error
        return result

    monkeypatch.setattr(empty_bank.catalog, "make_ready", interrupted)
    with pytest.raises(error):
        ingest_folder(empty_bank, pairs_folder)
    assert len(empty_bank) == (2 if where == "before" else 3)
    assert_nothing_else(empty_bank)
    monkeypatch.undo()
    report = ingest_folder(empty_bank, pairs_folder)
    assert len(report.added) + len(report.skipped) == 6
    assert_nothing_else(empty_bank)


def leave_reserved(bank: AdapterBank, pairs_folder: Path) -> AdapterRecord:
    """What an ingest leaves that was killed after it wrote a row; the record of a ready one."""
    from bankdb.peft.weights import load_adapter

    adapter = load_adapter(pairs_folder / "adapters" / "task000")
    row = bank.reserve("killed", adapter)
    bank.store.write(row, adapter.vector)
    (bank.store.file(row).parent / f"0.{'ab' * 16}.partial").write_bytes(b"half")
    return bank.adapters()[0]


def test_the_next_ingest_clears_what_a_killed_one_left(bank: AdapterBank, pairs_folder: Path) -> None:
    before = content(bank)
    leave_reserved(bank, pairs_folder)
    ingest_folder(bank, pairs_folder)
    assert content(bank) == before
    assert_nothing_else(bank)


def test_nothing_is_cleared_while_another_ingest_runs(bank: AdapterBank, pairs_folder: Path) -> None:
    leave_reserved(bank, pairs_folder)
    with AdapterBank.open(bank.path) as other, other.ingesting():
        assert clear_leftovers(bank) == []
        ingest_folder(bank, pairs_folder)
        assert [item.name for item in bank.catalog.reserved()] == ["killed"]
        assert bank.store.file(6).is_file()
    cleared = clear_leftovers(bank)
    assert any("row 6, reserved for killed" in line for line in cleared)
    assert_nothing_else(bank)
