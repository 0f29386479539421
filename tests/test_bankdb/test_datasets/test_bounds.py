"""Time and memory of files from elsewhere: bounded by what may be used, whatever the file says of itself."""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bankdb.bank import AdapterBank
from bankdb.datasets.limits import memory_budget
from bankdb.datasets.read import read_dataset
from bankdb.datasets.tokenizer import BankTokenizer
from bankdb.errors import BankError, DatasetError, ParameterError, PlanError
from bankdb.strict_json import parse_object
from tests.support.banks.malformed_adapters import write_good_adapter

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20


def repeated(text: str, times: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array([text]))


def one_list(values: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


DELTA = {"use_dictionary": False, "column_encoding": {"input": "DELTA_BYTE_ARRAY", "output": "PLAIN"}}
DELTA_LIST = {
    "use_dictionary": False,
    "column_encoding": {"input": "PLAIN", "output.list.element": "DELTA_BYTE_ARRAY"},
}
# Tables of a few kilobytes that stand for gigabytes.
BOMBS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "a string a million times": (
        lambda: {"input": repeated("x" * 131_072, 1 << 20), "output": repeated("y", 1 << 20)}, {},
    ),
    "in one list": (lambda: {"input": ["a"], "output": one_list(repeated("x" * 131_072, 1 << 23))}, {}),
    "a page of zeros": (lambda: {"input": ["z" * 100_000_000], "output": ["a"]}, {"use_dictionary": False}),
    "prefixes": (lambda: {"input": ["q" * 20_000] * 20_000, "output": ["a"] * 20_000}, DELTA),
    "prefixes in a list": (lambda: {"input": ["a"], "output": [["q" * 20_000] * 10_000]}, DELTA_LIST),
    "nothing, very often": (lambda: {"input": pa.nulls(10**7, pa.string()), "output": ["a"] * 10**7}, {}),
}  # fmt: skip
CHILD = """
import sys
from pathlib import Path
from bankdb.datasets.read import read_dataset
from bankdb.errors import BankError
try:
    read_dataset([Path(sys.argv[1])], memory=int(sys.argv[2]))
except BankError as error:
    print(error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_parquet_file_does_not_become_a_large_one(tmp_path: Path, name: str) -> None:
    columns, options = BOMBS[name]
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(columns()), path, compression="zstd", **options)
    assert path.stat().st_size < 100_000
    arguments = [sys.executable, "-c", CHILD, str(path), str(512 * MIB)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    *message, peak = done.stdout.splitlines()
    assert len(message) == 1, done.stdout
    assert str(path) in message[0]
    assert int(peak) * 1024 < 700 * MIB  # the libraries' own memory is part of it


def test_parquet_of_many_kinds_still_reads(tmp_path: Path) -> None:
    rows = [{"input": f"question {k} " * 5, "output": [f"answer {k % 7}", "more"]} for k in range(5000)]
    expected = [(row["input"], row["output"][0]) for row in rows]
    for number, options in enumerate(
        [{}, {"compression": "gzip"}, {"compression": "none", "data_page_version": "2.0"}, {"row_group_size": 100},
         {"use_dictionary": False}, {"data_page_size": 200}, {"dictionary_pagesize_limit": 4000},
         {"write_statistics": False},
         {"use_dictionary": False, "column_encoding": {"input": "DELTA_LENGTH_BYTE_ARRAY"}}, DELTA_LIST, DELTA]
    ):  # fmt: skip
        flat = options is DELTA
        table = pa.Table.from_pylist([{**row, "output": row["output"][0]} for row in rows] if flat else rows)
        pq.write_table(table, tmp_path / f"{number}.parquet", **options)
        found = read_dataset([tmp_path / f"{number}.parquet"])
        assert list(zip(found.inputs, found.outputs, strict=True)) == expected


@pytest.mark.parametrize("twice", [False, True])
def test_an_object_of_many_keys_is_read_in_no_time(tmp_path: Path, twice: bool) -> None:
    keys = [f'"k{k}": 1' for k in range(100_000)] + ['"k99999": 2'] * twice
    text = '{"input": "a", "output": "b", ' + ", ".join(keys) + "}"
    (tmp_path / "t.jsonl").write_text(text)
    started = time.monotonic()
    if twice:
        with pytest.raises(DatasetError, match="'k99999' appears twice"):
            read_dataset([tmp_path / "t.jsonl"])
        with pytest.raises(ValueError, match="'k99999' is given twice"):
            parse_object(text)
    else:
        assert read_dataset([tmp_path / "t.jsonl"]).texts() == ["ab"]
    assert time.monotonic() - started < 10


def test_a_header_of_many_columns_is_read_in_no_time(tmp_path: Path) -> None:
    names = [f"c{k}" for k in range(100_000)]
    (tmp_path / "t.csv").write_text(",".join([*names, "input", "output", "c7"]) + "\n")
    started = time.monotonic()
    with pytest.raises(DatasetError, match="'c7' appears twice"):
        read_dataset([tmp_path / "t.csv"])
    assert time.monotonic() - started < 10


def test_files_side_by_side_do_not_share_the_limit_of_cells(tmp_path: Path) -> None:
    """The csv module has one limit for the whole process."""
    before = csv.field_size_limit()
    large = "word " * 40_000
    for number in range(4):
        with (tmp_path / f"{number}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["input", "output"], *([[large, "y"]] * 3)])
    (tmp_path / "bad.csv").write_text('input,output\n"a')
    problems: list[BaseException] = []

    def read(number: int) -> None:
        try:
            for _ in range(25):
                if number == 3:
                    with pytest.raises(DatasetError, match="invalid CSV"):
                        read_dataset([tmp_path / "bad.csv"])
                assert read_dataset([tmp_path / f"{number}.csv"]).inputs == (large,) * 3
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert csv.field_size_limit() == before


ROW = {"input": "some words " * 100, "output": ["y"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.jsonl", json.dumps({"input": "a" * 2 * MIB, "output": "b"}), "line 1: more than 1,048,576 bytes"),
        ("t.jsonl", (json.dumps(ROW) + "\n") * 10_000, "line [0-9]+: the examples up to here take more than 8 MiB"),
        ("t.json", json.dumps([ROW] * 3000), r"expected at most 2,796,202.*save it as \.jsonl"),
        ("t.json", json.dumps({"data": [ROW] * 1000}), r"expected at most 1,048,576.*save it as \.jsonl"),
        ("t.csv", "input,output\n" + f"{ROW['input']},y\n" * 3000, r"expected at most 2,097,152.*save it as \.jsonl"),
    ],
    ids=["a long line", "many lines", "a list", "an object", "csv"],
)  # fmt: skip
def test_what_takes_more_than_it_may_is_refused_and_read_with_more(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(PlanError, match=rf"{name}.*{message}.*--memory"):
        read_dataset([path], memory=32 * MIB)
    assert len(read_dataset([path], memory=1024 * MIB)) >= 1


@pytest.fixture
def words(tokenizer_folder: Path) -> BankTokenizer:
    return BankTokenizer(tokenizer_folder)


def test_batches_go_by_bytes(words: BankTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    encode = words._encoder.encode

    def watched(texts: Any) -> Any:
        sizes.append(sum(len(text.encode()) for text in texts))
        return encode(texts)

    monkeypatch.setattr(words._encoder, "encode", watched)
    long = ["w1 w2 w3 " * 3000] * 100 + ["é " * 30_000] * 20 + ["w4"] * 2000
    whole = words.count(long, "data", 1 << 36)
    assert max(sizes) <= MIB
    sizes.clear()
    small = words.count(iter(long), "data", 128 * MIB)
    assert max(sizes) <= 128 * MIB // 2 // words._encoder.workspace
    assert (whole.ids.tolist(), whole.counts.tolist()) == (small.ids.tolist(), small.counts.tolist())


def test_a_text_that_is_too_long_is_refused_with_the_limit(words: BankTokenizer) -> None:
    most = 64 * MIB // 2 // words._encoder.workspace * 3 // 2
    with pytest.raises(PlanError, match=rf"data, example 2: .* at most {most:,} .*--memory"):
        words.count(["w1", "w" * (most + 1)], "data", 64 * MIB)
    assert words.count(["w1", "w" * (most + 1)], "data", 128 * MIB).tokens == 4
    assert words.count(["w1", "w" * most], "data", 64 * MIB).tokens == 4


def test_the_budget_is_half_of_what_the_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_budget(5) == 5
    with pytest.raises(ParameterError, match="memory"):
        memory_budget(0)
    whole = memory_budget(None)
    assert whole > 1 << 20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 * MIB, 64 * MIB))
    assert memory_budget(None) == 32 * MIB


@pytest.mark.parametrize("length", [MIB // 2, 30 * MIB])
def test_a_predictions_memory_is_bounded(tmp_path: Path, length: int, tokenizer_folder: Path) -> None:
    """Reading and tokenizing many megabytes stays within what may be used."""
    path = tmp_path / "train.jsonl"
    with path.open("w") as stream:
        for _ in range(30 * MIB // length):
            stream.write(json.dumps({"input": "w1 w2 w3 " * (length // 9), "output": "y"}) + "\n")
    program = (
        "import sys; from pathlib import Path; from bankdb.datasets.read import read_dataset;"
        "from bankdb.datasets.tokenizer import BankTokenizer; from bankdb.errors import BankError\n"
        "tokenizer = BankTokenizer(sys.argv[1]); memory = 512 << 20\n"
        "try:\n data = read_dataset([Path(sys.argv[2])], memory=memory)\n"
        " print(tokenizer.count(data.each_text(), 'data', memory).tokens)\n"
        "except BankError as error:\n print(error)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tokenizer_folder), str(path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found, peak = done.stdout.splitlines()
    assert int(peak) * 1024 < 512 * MIB
    if length < MIB:
        assert int(found) == 60 * (length // 9 * 3 + 2)
    else:
        assert "--memory" in found


def test_one_bad_pair_does_not_end_the_others(tmp_path: Path) -> None:
    """Every refusal is of the kind that an ingest reports by name."""
    assert issubclass(PlanError, BankError)
    assert issubclass(DatasetError, BankError)


def test_an_ingest_keeps_no_texts(tmp_path: Path, empty_bank: AdapterBank) -> None:
    """So that a dataset may be larger than the memory; and a second ingest reads it for its hash alone."""
    rows = [f"w{number % 150} w{number % 7} " * 5000 for number in range(400)]
    folder = tmp_path / "datasets" / "large"
    folder.mkdir(parents=True)
    write_good_adapter(tmp_path / "adapters" / "large")
    (folder / "train.jsonl").write_text("".join(json.dumps({"input": r, "output": "y"}) + "\n" for r in rows))
    size = (folder / "train.jsonl").stat().st_size
    assert size > 12 * MIB  # where the texts of a pair may take 4 MiB
    peaks = []
    for _ in range(2):
        tracemalloc.start()
        report = empty_bank.ingest(tmp_path, memory=32 * MIB)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert report.skipped == ["large"]
    assert max(peaks) < size // 3
    record = empty_bank.catalog.adapter("large")
    assert (record.examples, record.tokens) == (400, 400 * (1 + 10_000 + 1))
    # The hash is that of all of them, as a prediction for the dataset finds it.
    whole = read_dataset([folder / "train.jsonl"], memory=256 * MIB)
    assert whole.sha256 == record.content_sha256
    with pytest.raises(PlanError, match="take more than 4 MiB; give more with --memory"):
        read_dataset([folder / "train.jsonl"], memory=16 * MIB)


def test_an_ingest_does_not_read_what_a_few_bytes_stand_for(tmp_path: Path, empty_bank: AdapterBank) -> None:
    folder = tmp_path / "datasets" / "bomb"
    folder.mkdir(parents=True)
    write_good_adapter(tmp_path / "adapters" / "bomb")
    table = pa.table({"input": repeated("w1 " * 3000, 1 << 20), "output": repeated("y", 1 << 20)})
    pq.write_table(table, folder / "train.parquet")
    assert (folder / "train.parquet").stat().st_size < MIB
    start = time.monotonic()
    (refused,) = empty_bank.ingest(tmp_path, memory=256 * MIB).refused
    assert "100 times what the files have; use fewer of them, or give more with --memory" in refused.reason
    assert time.monotonic() - start < 60


def test_threads_take_the_memory_in_turn(words: BankTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[int] = []
    inside = threading.Semaphore(1)
    encode = words._encoder.encode

    def watched(texts: Any) -> Any:
        at_once.append(int(inside.acquire(blocking=False)))
        time.sleep(0.005)
        inside.release()
        return encode(texts)

    monkeypatch.setattr(words._encoder, "encode", watched)
    with ThreadPoolExecutor(4) as pool:
        texts = ["w1 w2"] * 1500
        found = list(pool.map(lambda _: words.count(texts, "data").tokens, range(8)))
    assert found == [3 * 1500] * 8
    assert len(at_once) == 8 * 3
    assert all(at_once)
