"""What of a dataset would be left out or misread is refused or said; and what a refusal advises works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bankdb.datasets.held_out import read_held_out
from bankdb.datasets.read import Reading, read_dataset, training_files
from bankdb.errors import DatasetError
from tests.support.data_files import FORMATS, write


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("name", ["Instruction", "instructions"])
def test_an_instruction_is_not_left_out(tmp_path: Path, extension: str, name: str) -> None:
    rows = [
        {name: "", "input": "a", "output": "b"},
        {name: "Write the plural.", "input": "cat", "output": "cats"},
    ]
    path = write(tmp_path / f"train{extension}", rows)
    with pytest.raises(DatasetError, match=rf"(line|row|example) \d: has text in '{name}'.*into one column"):
        read_dataset([path])
    with pytest.raises(DatasetError, match="has text in"):
        read_held_out([path])
    # The advice.
    joined = [{"input": row[name] + "\n" + row["input"], "output": row["output"]} for row in rows]
    found = read_dataset([write(path, joined)])
    assert found.texts() == ["\nab", "Write the plural.\ncatcats"]
    assert found.notes == ()


@pytest.mark.parametrize("extension", FORMATS)
def test_who_names_the_columns_leaves_out_the_others_and_is_told(tmp_path: Path, extension: str) -> None:
    rows = [{"instruction": "Write the plural.", "input": "one cat", "output": "cats"}]
    path = write(tmp_path / f"train{extension}", rows)
    for named, text, left in (
        (Reading(input_column="instruction"), "Write the plural.cats", "input"),
        (Reading(input_column="input"), "one catcats", "instruction"),
        (Reading(output_column="output"), "one catcats", "instruction"),
    ):
        found = read_dataset([path], named)
        assert found.texts() == [text]
        (note,) = found.notes
        assert f"text in '{left}' is not used" in note


@pytest.mark.parametrize("extension", FORMATS)
def test_other_text_that_is_not_used_is_named(tmp_path: Path, extension: str) -> None:
    row = {
        "id": "task1-7",
        "url": "https://a.b/c",
        "n": 3,
        "system": "You are kind.",
        "input": "a",
        "output": "b",
    }
    found = read_dataset([write(tmp_path / f"t{extension}", [row, row])])
    (note,) = found.notes
    assert note.startswith(str(tmp_path))
    assert "text in 'system' is not used" in note
    plain = write(
        tmp_path / f"p{extension}", [{key: row[key] for key in ("id", "url", "n", "input", "output")}]
    )
    assert read_dataset([plain]).notes == ()


@pytest.mark.parametrize("cell", ["['a']", '["a", "b"]', "['a' 'b']", " [ 'it''s' ] ", "['a\nb']"])
def test_a_column_of_lists_written_as_text_is_refused(tmp_path: Path, cell: str) -> None:
    rows = [{"input": f"x{k}", "output": cell} for k in range(3)]
    with pytest.raises(DatasetError, match=r"each cell of 'output' is a list.*\.parquet or \.jsonl"):
        read_dataset([write(tmp_path / "t.csv", rows)])
    as_list = [{**row, "output": ["a", "b"]} for row in rows]
    for extension in (".parquet", ".jsonl"):
        assert read_dataset([write(tmp_path / f"t{extension}", as_list)]).outputs == ("a",) * 3
    some = read_dataset([write(tmp_path / "some.csv", [*rows, {"input": "y", "output": "plain"}])])
    assert some.outputs[0] == cell
    assert "3 of 4 cells of 'output' look like lists" in some.notes[0]


@pytest.mark.parametrize("cell", ["[a]", "[1, 2]", "['a'", "a ['b']", "[]", "it's [so]"])
def test_other_cells_with_brackets_are_text(tmp_path: Path, cell: str) -> None:
    found = read_dataset([write(tmp_path / "t.csv", [{"input": "x", "output": cell}])])
    assert (found.outputs, found.notes) == ((cell,), ())


def layout(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        write(folder / name, [{"input": name, "output": "b"}])
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("train_sft.jsonl", "train_gen.jsonl"),
        ("train-small.csv", "train-large.csv"),
        ("train.en.jsonl", "train.de.jsonl"),
        ("train_1.jsonl", "train_2.jsonl", "train_all.jsonl"),
    ],
)
def test_alternative_training_files_are_not_added_up(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = layout(tmp_path / "d", *names)
    with pytest.raises(
        DatasetError, match=r"more than one training split: .*; keep one of them, or name the file"
    ):
        training_files(folder)
    assert read_dataset(training_files(folder / names[0])).inputs == (names[0],)
    for name in names[1:]:
        (folder / name).unlink()
    assert read_dataset(training_files(folder)).inputs == (names[0],)


@pytest.mark.parametrize("names", [("train_1.jsonl", "train_2.jsonl"), ("train-a.csv", "train-b.csv"),
                                   ("train.part1.jsonl", "train.part2.jsonl")])  # fmt: skip
def test_parts_are_added_up_and_that_is_said(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = read_dataset(training_files(layout(tmp_path / "d", *names)))
    assert found.inputs == names
    assert f"{names[0]}, {names[1]} are read as parts of one dataset" in found.notes[0]
    shards = layout(tmp_path / "s", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl")
    assert read_dataset(training_files(shards)).notes == ()


@pytest.mark.parametrize(("name", "what"), [("dialogue", "chat data"), ("chosen", "preferences")])
def test_chat_data_is_called_so(tmp_path: Path, name: str, what: str) -> None:
    rows = [{name: [{"role": "user", "content": "hi there"}]}]
    with pytest.raises(
        DatasetError, match=f"no column 'input' and no column 'output', but {what} in '{name}'"
    ):
        read_dataset([write(tmp_path / "t.jsonl", rows)])


def test_one_column_of_text_can_be_read_as_the_advice_says(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [{"text": "a b"}])
    with pytest.raises(DatasetError, match=r"for a single text, --text-column text$"):
        read_dataset([path])
    assert read_dataset([path], Reading(text_column="text")).texts() == ["a b"]


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["train.jsonl.bz2"], "decompress the file first"),
        (["train.csv.xz", "README.md"], "decompress the file first"),
        (["data-00000-of-00001.arrow"], "load_from_disk"),
    ],
)
def test_folders_of_formats_that_are_not_read_say_what_to_do(
    tmp_path: Path, names: list[str], advice: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match=f"no training split.*{advice}"):
        training_files(tmp_path)


def test_all_columns_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [{"asked": "a", "answered": "b"}])
    with pytest.raises(DatasetError) as caught:
        read_dataset([path])
    for part in ("'input'", "'output'", "--input-column", "--output-column", "'asked', 'answered'"):
        assert part in str(caught.value)
    assert read_dataset([path], Reading("asked", "answered")).texts() == ["ab"]


@pytest.mark.parametrize("make", [
    lambda name: json.dumps({name: "a", "output": "b"}),
    lambda name: json.dumps({"input": "a", name: "b c"}),
    lambda name: json.dumps({"input": "a", "output": "b"})[:-1] + f', "{name}": 1, "{name}": 2' + "}",
])  # fmt: skip
def test_names_of_megabytes_do_not_fill_the_screen(tmp_path: Path, make: Callable[[str], str]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(make("n" * 2_000_000) + "\n")
    with pytest.raises(DatasetError) as caught:
        read_dataset([path])
    assert len(str(caught.value)) < 1000
