"""What a bank ingests through its door: folders, manifests, two paths, references, alone and many."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import bankdb
from bankdb.bank import AdapterBank
from bankdb.sources.find import references_of
from tests.support.banks.small_bank import write_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", 3)


def sides(pairs: Path, name: str) -> tuple[Path, Path]:
    return pairs / "adapters" / name, pairs / "datasets" / name


def test_a_folder_as_text_or_path(empty_bank: AdapterBank, pairs: Path) -> None:
    assert empty_bank.ingest(str(pairs)).added == ["task000", "task001", "task002"]
    again = empty_bank.ingest(pairs)
    assert again.skipped == ["task000", "task001", "task002"]
    assert empty_bank.verify().clean


def test_a_pair_of_paths_is_called_as_the_adapter_is(empty_bank: AdapterBank, pairs: Path) -> None:
    adapter, dataset = sides(pairs, "task001")
    assert empty_bank.ingest((adapter, str(dataset))).added == ["task001"]
    (record,) = empty_bank.adapters()
    assert (record.source, record.dataset_source) == (str(adapter), str(dataset))


def test_many_of_several_kinds_at_once(empty_bank: AdapterBank, pairs: Path, tmp_path: Path) -> None:
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "adapter", "dataset"])
        writer.writerow(["of-manifest", *sides(pairs, "task001")])
    adapter, dataset = map(str, sides(pairs, "task002"))
    sources = [
        sides(pairs, "task000"),
        tmp_path / "manifest.csv",
        bankdb.PairReference("mine", adapter, dataset, group="g"),
    ]
    report = empty_bank.ingest(iter(sources), group_pattern=r"(\d)\d$")
    assert report.added == ["task000", "of-manifest", "mine"]
    groups = {record.name: record.group for record in empty_bank.adapters()}
    assert groups == {"task000": "0", "of-manifest": None, "mine": "g"}


def test_one_bad_pair_is_named_and_the_others_are_stored(empty_bank: AdapterBank, pairs: Path) -> None:
    good = sides(pairs, "task000")
    report = empty_bank.ingest([good, (pairs / "nowhere", good[1]), good])
    assert report.added == ["task000"]
    assert [item.name for item in report.refused] == ["task000", "nowhere"]
    assert "there twice" in report.refused[0].reason
    assert "1 added, 0 there already, 0 replaced, 2 refused" in repr(report)
    assert "nowhere" in repr(report)
    assert "<table>" in report._repr_html_()


def test_nothing_is_nothing(empty_bank: AdapterBank) -> None:
    report = empty_bank.ingest([])
    assert (report.added, report.skipped, report.refused) == ([], [], [])


@pytest.mark.parametrize(
    "wrong", [None, 3, [None], ("a",), ("a", "b", "c"), ("a", 3), [["a", "b"]], {"a": 1}.keys]
)
def test_what_is_no_source_is_refused_before_anything_is_read(empty_bank: AdapterBank, wrong: object) -> None:
    with pytest.raises(bankdb.ParameterError, match=r"sources: expected a folder"):
        empty_bank.ingest(wrong)  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_is_an_error(empty_bank: AdapterBank, tmp_path: Path) -> None:
    with pytest.raises(bankdb.SourceError, match="not found"):
        empty_bank.ingest(tmp_path / "nowhere")


def test_repositories_of_the_hub() -> None:
    found, refused = references_of(["me/one@v1=me/data", "me/two"], True, None)
    assert refused == []
    assert [(pair.name, pair.adapter, pair.dataset) for pair in found] == [
        ("one", "hub:me/one@v1", "hub:me/data"),
        ("two", "hub:me/two", ""),
    ]
    pairs = [("me/one@v1", "me/data"), ("hub:me/two", "hub:me/data@main")]
    for hub, sources in ((True, pairs), (False, [tuple(f"hub:{x}" for x in pairs[0]), pairs[1]])):
        found, _ = references_of(sources, hub, None)  # type: ignore[arg-type]
        assert [(pair.name, pair.adapter, pair.dataset) for pair in found] == [
            ("one", "hub:me/one@v1", "hub:me/data"),
            ("two", "hub:me/two", "hub:me/data@main"),
        ]


def test_a_bank_shows_itself_in_a_few_lines(bank: AdapterBank, empty_bank_html: str) -> None:
    text = repr(bank)
    assert text.splitlines()[0] == f"AdapterBank {bank.path}"
    assert "adapters: 6" in text
    assert len(text) < 500
    html = bank._repr_html_()
    assert "task000" in html
    assert len(html) < 5000
    assert "adapters: 0" in empty_bank_html


def test_a_bank_that_is_gone_is_shown_all_the_same(bank: AdapterBank) -> None:
    bank.close()
    for file in bank.path.glob("bank.db*"):
        file.write_bytes(b"nothing" * 1000)
    assert "cannot be read" in repr(bank)
    assert "cannot be read" in bank._repr_html_()


@pytest.fixture
def empty_bank_html(tmp_path: Path, tokenizer_folder: Path) -> str:
    with bankdb.create(tmp_path / "new <bank>", base_model="b", tokenizer=tokenizer_folder) as made:
        html = made._repr_html_()
    assert "new &lt;bank&gt;" in html
    with bankdb.open(tmp_path / "new <bank>") as opened:
        assert opened._repr_html_() == html
    return html
