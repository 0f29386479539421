"""Columns as people call them: recognised, said in one line, stored, and never without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.datasets.forms.rules import TEXT_RULE, Reading, Rule
from bankdb.datasets.held_out import read_held_out
from bankdb.datasets.read import Dataset, read_dataset
from bankdb.errors import BankFormatError, DatasetError
from tests.support.data_files import FORMATS, Row, write


def pairs(found: Dataset) -> list[tuple[str, str]]:
    return list(zip(found.inputs, found.outputs, strict=True))


@pytest.mark.parametrize("extension", FORMATS)
def test_alpaca_is_an_instruction_a_line_and_the_input(tmp_path: Path, extension: str) -> None:
    rows = [
        {"instruction": "Write the plural.", "input": "cat", "output": "cats"},
        {"instruction": "Name a color. ", "input": "", "output": "red"},
        {"instruction": " ", "input": "as it\nwas", "output": "b"},
    ]
    found = read_dataset([write(tmp_path / f"t{extension}", rows)])
    assert pairs(found) == [
        ("Write the plural.\ncat", "cats"),
        ("Name a color. ", "red"),
        ("as it\nwas", "b"),
    ]
    assert found.notes == ("read as Alpaca: 'instruction', a new line and 'input', then 'output'",)
    assert found.rule == Rule("alpaca", ("instruction", "input", "output"))
    # A row has the same texts, and the dataset the same content, as who joins them by hand.
    plain = [{"input": text, "output": output} for text, output in pairs(found)]
    assert read_dataset([write(tmp_path / f"p{extension}", plain)]).sha256 == found.sha256
    test = read_held_out([tmp_path / f"t{extension}"])
    assert (test.inputs, test.references) == (found.inputs, tuple((output,) for output in found.outputs))


@pytest.mark.parametrize("rows", [
    [{"instruction": "a", "output": "b"}],
    [{"instruction": "a", "input": None, "output": "b"}],
    [{"instruction": "a", "input": "", "output": ["b", "c"]}],
])  # fmt: skip
@pytest.mark.parametrize("extension", [".jsonl", ".parquet"])
def test_alpaca_without_an_input(tmp_path: Path, extension: str, rows: list[Row]) -> None:
    assert pairs(read_dataset([write(tmp_path / f"t{extension}", rows)])) == [("a", "b")]


def test_an_instruction_in_a_later_row_is_not_left_out(tmp_path: Path) -> None:
    rows = [{"input": "a", "output": "b"}, {"instruction": "Write.", "input": "c", "output": "d"}]
    with pytest.raises(DatasetError, match="line 2: has text in 'instruction', which would be left out"):
        read_dataset([write(tmp_path / "t.jsonl", rows)])


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize(("first", "second"), [("prompt", "completion"), ("question", "answer")])
def test_pairs_by_their_names(tmp_path: Path, extension: str, first: str, second: str) -> None:
    path = write(tmp_path / f"t{extension}", [{"id": "1", first: "a", second: "b"}])
    found = read_dataset([path])
    assert pairs(found) == [("a", "b")]
    assert found.notes == (f"read as '{first}' then '{second}'",)
    assert found.rule == Rule("columns", (first, second))
    assert read_held_out([path]).references == (("b",),)
    # Names are of no matter for what is read.
    usual = read_dataset([write(tmp_path / f"u{extension}", [{"input": "a", "output": "b"}])])
    assert (usual.sha256, usual.notes, usual.rule) == (found.sha256, (), Rule("columns", ("input", "output")))


@pytest.mark.parametrize("extension", FORMATS)
def test_input_and_output_go_before_others_which_are_named(tmp_path: Path, extension: str) -> None:
    row = {"input": "a", "output": "b", "question": "what is it", "answer": "it is c"}
    found = read_dataset([write(tmp_path / f"t{extension}", [row])])
    assert pairs(found) == [("a", "b")]
    (note,) = found.notes
    assert "text in 'question', 'answer' is not used, only 'input' and 'output' are read" in note
    chosen = read_dataset([tmp_path / f"t{extension}"], Reading("question", "answer"))
    assert pairs(chosen) == [("what is it", "it is c")]


@pytest.mark.parametrize("extension", FORMATS)
def test_one_column_alone(tmp_path: Path, extension: str) -> None:
    path = write(tmp_path / f"t{extension}", [{"text": "a b", "more": "c d"}, {"text": "e f", "more": "g"}])
    found = read_dataset([path], Reading(text_column="text"))
    assert found.texts() == ["a b", "e f"]
    assert "text in 'more' is not used, only 'text' is read" in found.notes[0]
    assert found.rule is not None
    assert (found.rule.kind, str(found.rule)) == ("one text", "one text, 'text'")
    with pytest.raises(DatasetError, match=r"no column 'body'; .*--text-column"):
        read_dataset([path], Reading(text_column="body"))
    with pytest.raises(DatasetError, match="leave out --input-column and --output-column"):
        read_dataset([path], Reading("text", text_column="text"))


def test_all_files_of_a_split_are_read_by_one_rule(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])
    second = write(tmp_path / "b.jsonl", [{"input": "c", "output": "d"}])
    with pytest.raises(DatasetError, match=r"b\.jsonl, line 1: no column 'question' and no column 'answer'"):
        read_dataset([first, second])


# -- numbers and booleans ---------------------------------------------------------------------------

NUMBERS: list[tuple[Any, str]] = [
    (5, "5"), (-3, "-3"), (0.1, "0.1"), (1.0, "1.0"), (True, "true"), (False, "false"), (2**60, str(2**60)),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), NUMBERS)
@pytest.mark.parametrize("extension", [".jsonl", ".json", ".parquet"])
def test_numbers_and_booleans_are_their_text(tmp_path: Path, extension: str, value: Any, text: str) -> None:
    found = read_dataset([write(tmp_path / f"t{extension}", [{"input": "a", "output": value}] * 2)])
    assert found.outputs == (text, text)
    (note,) = found.notes
    assert f"2 values are numbers or booleans, read as their text, such as {text}" in note
    several = write(tmp_path / f"l{extension}", [{"input": value, "output": [value, value]}])
    assert read_held_out([several]).references == ((text, text),)
    assert read_dataset([several]).inputs == (text,)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16(), pa.int8(), pa.uint64()])
def test_numbers_of_few_bits_are_as_short_as_they_were(tmp_path: Path, kind: Any) -> None:
    whole = pa.types.is_integer(kind)
    values = pa.array([1, 7] if whole else [0.1, 0.2], pa.float64() if not whole else kind).cast(kind)
    pq.write_table(pa.table({"input": ["a", "b"], "output": values}), tmp_path / "t.parquet")
    assert read_dataset([tmp_path / "t.parquet"]).outputs == (("1", "7") if whole else ("0.1", "0.2"))


# -- rows that are no examples ----------------------------------------------------------------------

BAD = [
    '{"input": "a", "output": null}',
    '{"input": null, "output": "b"}', '{"input": "", "output": ""}', '{"output": "b"}',
    "[1]", "{", '{"input": "a\\u0000", "output": "b"}', '{"input": "a", "output": []}', '{"input": "a", "output": {}}',
]  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_rows_are_refused_or_skipped_and_counted(tmp_path: Path, line: str) -> None:
    good = '{"input": "x", "output": "y"}'
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([good, line, good, line]) + "\n")
    with pytest.raises(DatasetError, match="line 2: "):
        read_dataset([path])
    found = read_dataset([path], Reading(skip_bad_rows=True))
    assert pairs(found) == [("x", "y")] * 2
    (note,) = found.notes
    assert note.startswith("2 of 4 rows are skipped, the first: ")
    assert "line 2: " in note
    assert found.rule is not None
    assert found.rule.skips
    assert read_held_out([path], None, Reading(skip_bad_rows=True)).inputs == ("x", "x")
    # With the number of rows it is another dataset, whose hash is that of what is left.
    path.write_text(f"{good}\n{good}\n")
    assert read_dataset([path]).sha256 == found.sha256


def test_bad_rows_of_tables(tmp_path: Path) -> None:
    rows = [{"input": "a", "output": "b"}, {"input": None, "output": "b"}, {"input": "c", "output": "d"}]
    path = write(tmp_path / "t.parquet", rows)
    with pytest.raises(DatasetError, match="row 2: 'input' is null"):
        read_dataset([path])
    assert pairs(read_dataset([path], Reading(skip_bad_rows=True))) == [("a", "b"), ("c", "d")]
    (tmp_path / "t.csv").write_text("input,output\na,b\n1,2,3\n,\nc,d\n")
    found = read_dataset([tmp_path / "t.csv"], Reading(skip_bad_rows=True))
    assert pairs(found) == [("a", "b"), ("c", "d")]
    assert "2 of 4 rows are skipped" in found.notes[0]


@pytest.mark.parametrize("extension", [*FORMATS, ".arrow"])
def test_completions_that_are_rated_bad_are_no_examples(tmp_path: Path, extension: str) -> None:
    """TRL's unpaired preferences: their completions are not all to be learnt."""
    rows = [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "completion": "c", "label": False},
        {"prompt": "d", "completion": "e", "label": True},
    ]
    if extension == ".arrow":
        path = tmp_path / "train"
        path.mkdir()
        files = [path / "data-00000-of-00001.arrow"]
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(files[0]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    else:
        files = [write(tmp_path / f"t{extension}", rows)]
    with pytest.raises(DatasetError, match=r"(line|row|item|example) [23]: 'label' is false"):
        read_dataset(files)
    found = read_dataset(files, Reading(skip_bad_rows=True))
    assert pairs(found) == [("a", "b"), ("d", "e")]
    assert [note for note in found.notes if note.startswith("1 of 3 rows are skipped")]
    # Who names the columns means them, and a label beside other columns is not TRL's.
    assert len(read_dataset(files, Reading("prompt", "completion"))) == 3
    other = [{"input": row["prompt"], "output": row["completion"], "label": row["label"]} for row in rows]
    assert len(read_dataset([write(tmp_path / "o.jsonl", other)])) == 3


def test_a_dataset_of_bad_rows_alone_names_the_first(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"input": "a", "output": None}] * 3)
    for read in (lambda: read_dataset([path], Reading(skip_bad_rows=True)),
                 lambda: read_held_out([path], None, Reading(skip_bad_rows=True))):  # fmt: skip
        with pytest.raises(DatasetError, match="line 1: 'output' is null"):
            read()


# -- what is stored -----------------------------------------------------------------------------------

names = st.text(min_size=1, max_size=9)
rules = st.one_of(
    st.builds(Rule, st.just("columns"), st.tuples(names, names), st.none(), st.booleans()),
    st.builds(Rule, st.just("text"), st.tuples(names), st.none(), st.booleans()),
    st.builds(
        Rule, st.just("chat"), st.tuples(names), st.one_of(st.none(), st.just("ab" * 32)), st.booleans()
    ),
)


@given(rules)
def test_a_rule_comes_back_from_what_is_stored(rule: Rule) -> None:
    text = rule.as_text
    assert Rule.of_text(text) == rule
    assert text == TEXT_RULE or text.startswith(TEXT_RULE + "; ")
    assert "\n" not in text


def test_the_usual_rule_is_stored_as_it_ever_was() -> None:
    assert Rule("columns", ("input", "output")).as_text == TEXT_RULE == "input + output[0]"


@pytest.mark.parametrize(
    "text", ["", "else", TEXT_RULE + "; ", TEXT_RULE + "; []", TEXT_RULE + '; {"form": "x"}']
)
def test_a_rule_that_is_not_known_is_an_error(text: str) -> None:
    with pytest.raises(BankFormatError, match="upgrade lora-bank"):
        Rule.of_text(text)


def test_the_old_rule_reads_what_versions_read_that_stored_no_other(tmp_path: Path) -> None:
    """They stored it whatever columns they were told to read."""
    path = write(tmp_path / "t.jsonl", [{"question": "a", "answer": "b"}])
    again = Reading.again(Rule.of_text(TEXT_RULE), lambda: None)
    assert pairs(read_dataset([path], again)) == [("a", "b")]
    both = write(tmp_path / "b.jsonl", [{"input": "a", "output": "b", "question": "c"}])
    assert pairs(read_dataset([both], again)) == [("a", "b")]
    named = Reading.again(Rule("columns", ("asked", "answer")), lambda: None)
    with pytest.raises(DatasetError, match="no column 'asked'"):
        read_dataset([path], named)
    assert pairs(read_dataset([path], named.elsewhere)) == [("a", "b")]
    odd = write(tmp_path / "o.jsonl", [{"asked": "a", "answer": "b"}])
    assert pairs(read_dataset([odd], named.elsewhere)) == [("a", "b")]
