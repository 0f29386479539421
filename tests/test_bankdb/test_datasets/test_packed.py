"""Compressed files and folders of `save_to_disk`: read as what they hold, and no further than they may."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bankdb.datasets.forms.rules import Reading
from bankdb.datasets.held_out import read_held_out
from bankdb.datasets.held_out import test_files as files_of_test
from bankdb.datasets.read import read_dataset, training_files
from bankdb.errors import BankError, DatasetError, PlanError

ROWS = [{"input": f"question {k}", "output": f"answer {k % 7}"} for k in range(300)]
MIB = 1 << 20


def zstandard(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


PACK = {".gz": gzip.compress, ".zst": zstandard}
TEXTS = {
    ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    ".json": json.dumps(ROWS),
    ".csv": "input,output\n" + "".join(f"{row['input']},{row['output']}\n" for row in ROWS),
}


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("extension", TEXTS)
def test_compressed_files_are_what_they_hold(tmp_path: Path, extension: str, compression: str) -> None:
    plain = tmp_path / f"train{extension}"
    plain.write_text(TEXTS[extension])
    packed = tmp_path / "other" / f"train{extension}{compression}"
    packed.parent.mkdir()
    packed.write_bytes(PACK[compression](plain.read_bytes()))
    assert read_dataset(training_files(packed.parent)) == read_dataset([plain])
    packed.rename(packed.with_name(f"test{extension}{compression}"))
    assert read_held_out(files_of_test(packed.parent)).inputs == read_dataset([plain]).inputs
    with pytest.raises(DatasetError, match="no training split"):
        training_files(packed.parent)


@pytest.mark.parametrize("compression", PACK)
def test_parts_that_were_put_together_are_all_read(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"t.jsonl{compression}"
    whole = TEXTS[".jsonl"].encode()
    path.write_bytes(PACK[compression](whole[:5000]) + PACK[compression](whole[5000:]))
    assert len(read_dataset([path])) == len(ROWS)


@pytest.mark.faults
@pytest.mark.parametrize("compression", PACK)
def test_truncated_files_are_never_accepted(tmp_path: Path, compression: str) -> None:
    data = PACK[compression](TEXTS[".jsonl"].encode())
    path = tmp_path / f"t.jsonl{compression}"
    for end in range(5, len(data), max(1, len(data) // 15)):
        path.write_bytes(data[:end])
        with pytest.raises(DatasetError):
            read_dataset([path])


BOMBS = [(".jsonl", b"\n"), (".json", b" "), (".csv", b"\n"), (".jsonl", b"x")]


@pytest.mark.parametrize(("extension", "filling"), BOMBS)
@pytest.mark.parametrize("compression", PACK)
def test_a_small_file_does_not_become_a_large_one(
    tmp_path: Path, extension: str, filling: bytes, compression: str
) -> None:
    path = tmp_path / f"t{extension}{compression}"
    path.write_bytes(PACK[compression](filling * (200 * MIB)))
    assert path.stat().st_size < MIB
    with pytest.raises(PlanError, match=r"unpacks to more than|more than .* bytes|has unpacked more"):
        read_dataset([path], memory=64 * MIB)


# -- Dataset.save_to_disk -------------------------------------------------------------------------------


def saved(folder: Path, tables: list[Any], split: str | None = "train", **state: Any) -> Path:
    """What `datasets` writes, after its documented layout; `datasets` itself is held against it elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{number:05d}-of-{len(tables):05d}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    described = {
        "_data_files": [{"filename": name} for name in names],
        "_split": split,
        "_fingerprint": "0",
        **state,
    }
    (folder / "state.json").write_text(json.dumps(described))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))
    return folder


TABLE = pa.Table.from_pylist(ROWS)


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    plain = tmp_path / "t.jsonl"
    plain.write_text(TEXTS[".jsonl"])
    expected = read_dataset([plain])
    assert read_dataset(training_files(saved(tmp_path / "one", [TABLE]))) == expected
    parts = saved(tmp_path / "parts", [TABLE.slice(0, 120), TABLE.slice(120)])
    assert read_dataset(training_files(parts)) == expected
    several = tmp_path / "several"
    for name in ("train", "test"):
        saved(several / name, [TABLE if name == "train" else TABLE.slice(0, 2)], name)
    (several / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert read_dataset(training_files(several)) == expected
    assert len(read_held_out(files_of_test(several))) == 2
    assert read_dataset(training_files(several / "train")) == expected


@pytest.mark.parametrize("values", [
    ["x", "y"], [["x"], ["y", "z"]], [1, 2], [0.5, 1.5], [True, False],
    [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 2,
])  # fmt: skip
def test_columns_of_a_saved_dataset_are_those_of_json(tmp_path: Path, values: list[Any]) -> None:
    chats = isinstance(values[0], list) and isinstance(values[0][0], dict)
    columns = {"messages": values} if chats else {"input": ["a", "b"], "output": values}
    rows = pa.table(columns).to_pylist()
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = saved(tmp_path / "saved", [pa.table(columns)])
    assert read_dataset(training_files(folder)) == read_dataset([tmp_path / "t.jsonl"])


def test_text_that_is_not_used_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", [pa.table({"input": ["a"], "output": ["b"], "system": ["Be kind."]})])
    assert "text in 'system' is not used" in read_dataset(training_files(folder)).notes[0]
    odd = saved(tmp_path / "e", [pa.table({"input": ["a"], "output": ["b"], "Instruction": ["Do."]})])
    with pytest.raises(DatasetError, match="row 1: has text in 'Instruction'"):
        read_dataset(training_files(odd))
    nothing = saved(tmp_path / "f", [pa.table({"input": ["a", None], "output": ["b", "c"]})])
    with pytest.raises(DatasetError, match="row 2: 'input' is null"):
        read_dataset(training_files(nothing))
    assert len(read_dataset(training_files(nothing), Reading(skip_bad_rows=True))) == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": []}, "names no files"),
        (
            {"_data_files": [{"filename": "../x.arrow"}]},
            "names the file '../x.arrow', expected an .arrow file of this",
        ),
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "expected an .arrow file of this folder"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow is missing"),
        ({"_data_files": [3]}, "names the file None"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "only some of its rows are meant"),
        ({"_split": "test"}, "is the split 'test'; expected the training split"),
    ],
)
def test_a_saved_folder_in_doubt_is_refused(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        training_files(saved(tmp_path / "d", [TABLE], **{"split": state.pop("_split", "train"), **state}))


def test_splits_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["validation"]}))
    with pytest.raises(DatasetError, match="no split 'train', only validation"):
        training_files(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        training_files(tmp_path)


# As many as a batch may have, in no bytes; what makes them by number sets bytes aside for each.
NULLS = pa.Array.from_buffers(pa.null(), (1 << 31) - 1, [None])


def stream(path: Path, table: Any, **options: Any) -> Path:
    how = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=how) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, {"compression": "zstd"}, "its buffers are compressed"),
        (TABLE, {"compression": "lz4"}, "its buffers are compressed"),
        (pa.table({"input": pa.array(["a"]).dictionary_encode(), "output": ["b"]}), {}, "holds dictionaries"),
        (pa.table({"input": pa.array(["a"], pa.string_view()), "output": ["b"]}), {}, "holds string_view"),
        (
            pa.table({"input": NULLS, "output": NULLS}),
            {},
            "is of type null; expected string",
        ),
        (pa.table({"messages": pa.array([[]], pa.list_(pa.struct([])))}), {}, "holds struct"),
    ],
)
def test_what_may_be_more_than_the_file_is_refused(
    tmp_path: Path, table: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_dataset([stream(tmp_path / "t.arrow", table, **options)])


@pytest.mark.faults
def test_damaged_files_are_errors_and_nothing_else(tmp_path: Path) -> None:
    """Bits flipped and ends cut: another dataset or an error, no crash and no other exception."""
    import random

    whole = stream(tmp_path / "whole.arrow", TABLE.slice(0, 40)).read_bytes()
    path, random = tmp_path / "t.arrow", random.Random(0)
    for number in range(120):
        data = bytearray(whole)
        if number % 4:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        else:
            del data[random.randrange(len(data)) :]
        path.write_bytes(bytes(data))
        with contextlib.suppress(BankError):
            read_dataset([path], memory=256 * MIB)


def test_an_empty_or_foreign_file_is_refused(tmp_path: Path) -> None:
    for data in (b"x", b"ARROW1\0\0rest", os.urandom(64)):
        (tmp_path / "t.arrow").write_bytes(data)
        with pytest.raises(DatasetError):
            read_dataset([tmp_path / "t.arrow"])
