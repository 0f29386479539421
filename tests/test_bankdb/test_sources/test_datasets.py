import csv
import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bankdb.datasets.read import TEXT_RULE, Reading, read_dataset, training_files
from bankdb.errors import DatasetError

ROWS = [
    {"id": "1", "input": "Is it so?\n", "output": "Yes"},
    {"id": "2", "input": 'He said "a, b"; then\r\nleft.', "output": "a\u2028b"},
    {"id": "3", "input": "  naïve 🎈  ", "output": ""},
]


def write(path, rows):
    """Write rows in the format of the file's extension, independently of the reader."""
    if path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8", newline=""
        )
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def content(examples):
    """The content hash as documented, written a second time."""
    digests = []
    for text, output in examples:
        parts = b""
        for part in (text, output):
            raw = part.encode("utf-8")
            parts += len(raw).to_bytes(8, "little") + raw
        digests.append(hashlib.sha256(parts).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


@pytest.mark.parametrize("extension", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples_and_hash(tmp_path, extension):
    dataset = read_dataset([write(tmp_path / f"train{extension}", ROWS)])
    assert dataset.inputs == tuple(row["input"] for row in ROWS)
    assert dataset.outputs == tuple(row["output"] for row in ROWS)
    assert dataset.sha256 == content([(row["input"], row["output"]) for row in ROWS])
    assert dataset.texts() == [row["input"] + row["output"] for row in ROWS]
    assert len(dataset) == 3
    assert TEXT_RULE == "input + output[0]"


@pytest.mark.parametrize("extension", [".jsonl", ".json", ".parquet"])
def test_the_first_of_several_outputs_is_used(tmp_path, extension):
    path = write(
        tmp_path / f"t{extension}", [{"input": "a", "output": ["b", "c"]}, {"input": "d", "output": ["e"]}]
    )
    assert read_dataset([path]).outputs == ("b", "e")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (pa.large_string(), pa.large_string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.string())),
        (pa.string(), pa.list_(pa.string())),
        (pa.string(), pa.large_list(pa.large_string())),
        (pa.string(), pa.list_(pa.string(), 1)),
    ],
)
def test_parquet_string_types(tmp_path, inputs, outputs):
    nested = pa.types.is_nested(outputs)
    table = pa.table(
        {
            "output": pa.array([["x"], ["y"]] if nested else ["x", "y"], outputs),
            "input": pa.array(["a", "b"], inputs),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = read_dataset([tmp_path / "t.parquet"])
    assert (dataset.inputs, dataset.outputs) == (("a", "b"), ("x", "y"))


def test_a_csv_cell_is_a_string_even_if_it_looks_like_json(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('output,input\n"[""a""]",x\n1,2\n')
    dataset = read_dataset([path])
    assert (dataset.inputs, dataset.outputs) == (("x", "2"), ('["a"]', "1"))


def test_a_csv_cell_may_be_large(tmp_path):
    large = "word, " * 100_000
    before = csv.field_size_limit()
    dataset = read_dataset([write(tmp_path / "t.csv", [{"input": large, "output": "y"}])])
    assert dataset.inputs == (large,)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv"])
def test_a_byte_order_mark_is_no_content(tmp_path, name):
    path = write(tmp_path / name, ROWS)
    plain = read_dataset([path]).sha256
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_dataset([path]).sha256 == plain


@pytest.mark.parametrize(
    "text",
    [
        '{"input": "a", "output": "b"}\n{"input": "c", "output": ["d"]}\n',
        '\r\n{"input": "a", "output": "b"}\r\n\r\n{"input": "c", "output": "d"}',
        '{"data": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}], "version": "1"}',
    ],
)
def test_json_files_as_the_hub_has_them(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    assert read_dataset([tmp_path / "t.json"]).texts() == ["ab", "cd"]


def test_one_object_in_a_json_file_is_one_example(tmp_path):
    (tmp_path / "t.json").write_text('{"input": "a",\n "output": "b"}\n')
    assert read_dataset([tmp_path / "t.json"]).texts() == ["ab"]


def test_columns_can_be_named(tmp_path):
    path = write(tmp_path / "t.csv", [{"asked": "a", "answered": "b"}])
    found = read_dataset([path], Reading(input_column="asked", output_column="answered"))
    assert (found.texts(), found.notes) == (["ab"], ())


def test_shards_are_one_dataset(tmp_path):
    files = [write(tmp_path / f"{k}.jsonl", ROWS[k:][:1]) for k in range(3)]
    whole = read_dataset([write(tmp_path / "all.csv", ROWS)])
    assert read_dataset(files) == whole
    assert read_dataset(files[::-1]).sha256 == whole.sha256


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
examples = st.lists(st.tuples(text, text).filter(any), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples, st.randoms())
def test_any_text_comes_back_from_every_format(tmp_path, found, random):
    rows = [{"input": a, "output": b} for a, b in found]
    expected = content(found)
    for extension in (".jsonl", ".json", ".csv", ".parquet"):
        dataset = read_dataset([write(tmp_path / f"t{extension}", rows)])
        assert list(zip(dataset.inputs, dataset.outputs, strict=True)) == found
        assert dataset.sha256 == expected
    random.shuffle(rows)
    assert read_dataset([write(tmp_path / "s.jsonl", rows)]).sha256 == expected


def test_the_hash_tells_input_from_output_and_one_example_from_two(tmp_path):
    cases = [
        [("ab", "c")],
        [("a", "bc")],
        [("", "abc")],
        [("a", "b"), ("c", "d")],
        [("a", "b")] * 2,
        [("a", "b")],
    ]
    hashes = {
        read_dataset([write(tmp_path / "t.jsonl", [{"input": a, "output": b} for a, b in case])]).sha256
        for case in cases
    }
    assert len(hashes) == len(cases)


GOOD = '{"input": "a", "output": "b"}\n'
LINES = [
    ('{"input": "a", "output": "b"', "line 2: invalid JSON at column"),
    ("[1]", "line 2: a list; expected an object with 'input' and 'output'"),
    ("null", "line 2: null; expected an object"),
    (
        '{"input": "a", "target": "b"}',
        "line 2: no column 'output'; the columns are 'input', 'target'.*--output-column",
    ),
    ('{"text": "a", "output": "b"}', "line 2: no column 'input'.*--input-column"),
    ('{"input": null, "output": "b"}', "line 2: 'input' is null; expected a string"),
    ('{"input": NaN, "output": "b"}', "line 2: 'input' is a number"),
    ('{"input": ["a"], "output": "b"}', "line 2: 'input' is a list"),
    ('{"input": "a", "output": null}', "line 2: 'output' is null; expected a string or a list of strings"),
    ('{"input": "a", "output": Infinity}', "line 2: 'output' is a number"),
    ('{"input": "a", "output": {"a": "b"}}', "line 2: 'output' is an object"),
    ('{"input": "a", "output": []}', "line 2: 'output' is an empty list"),
    ('{"input": "a", "output": [["b"]]}', "line 2: 'output' has a list in its list"),
    ('{"input": "a", "output": ["b", null]}', "line 2: 'output' has null in its list"),
    ('{"input": "", "output": [""]}', "line 2: input and output are both empty"),
    ('{"input": "\\ud800", "output": "b"}', "line 2: 'input' has half of a surrogate pair"),
    ('{"input": "a", "output": "b\\u0000"}', "line 2: 'output' has a NUL character"),
    ('{"input": "a", "input": "z", "output": "b"}', "line 2: .*key 'input' appears twice"),
    ('{"input": "a", "output": ' + "[" * 100_000, "line 2: JSON that is not read"),
    ('{"n": ' + "9" * 5000 + ', "input": "a", "output": "b"}', "line 2: JSON that is not read"),
    (GOOD + GOOD.strip() + GOOD, "line 3: invalid JSON at column"),
]


@pytest.mark.parametrize(("line", "message"), LINES, ids=range(len(LINES)))
def test_a_bad_line_is_named(tmp_path, line, message):
    refused(tmp_path / "t.jsonl", (GOOD + line + "\n" + GOOD).encode(), message)


def refused(path, data, message):
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=message) as error:
        read_dataset([path])
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.jsonl", b"", "empty file"),
        ("t.jsonl", b"\xef\xbb\xbf", "no examples"),
        ("t.jsonl", b"\n \n", "no examples"),
        ("t.jsonl", GOOD.encode() * 2 + b'{"input": "\xe9"}', "line 3: not UTF-8"),
        ("t.jsonl", GOOD.encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("t.jsonl", b"\x1f\x8b\x08rest", r"compressed with gzip; let its name end in \.gz"),
        ("t.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("t.jsonl.gz", b"\x1f\x8b\x08rest", "not a whole file of gzip"),
        ("t.jsonl.gz", GOOD.encode(), r"is not compressed with gzip; rename it without \.gz"),
        ("t.parquet.gz", b"\x1f\x8b\x08rest", r"unknown format '\.parquet\.gz'"),
        ("t.tsv", b"input\toutput\n", r"unknown format '\.tsv'; expected one of \.jsonl"),
        ("t", b"x", "unknown format ''"),
        ("t.json", b" \n", "no examples"),
        ("t.json", b"[]", "no examples"),
        ("t.json", b"3", "a number; expected a list of objects"),
        ("t.json", b'[{"input": "a", "output": "b"},\n {"input": "a"', "invalid JSON at line 2"),
        ("t.json", b'[{"input": "a", "output": "b"}, {"input": "a"}]', "example 2: no column 'output'"),
        ("t.json", b'[{"input": "a", "output": "b"}, 3]', "example 2: a number; expected an object"),
        ("t.json", b'{"Definition": ["d"], "Instances": [{"input": "a"}]}', "an object with 'Definition', 'Instances'"),
        ("t.json", b'{"input": [["a"]], "output": ["b"]}', "example 1: 'input' is a list"),
        ("t.json", b'{"data": [{"input": "a", "output": "b"}], "more": []}', "an object with 'data', 'more'"),
        ("t.csv", b"\n\n", "no examples"),
        ("t.csv", b"input,output\n", "no examples"),
        ("t.csv", b"input,target\na,b\n", "no column 'output'; the columns are 'input', 'target'"),
        ("t.csv", b"input;output\na;b\n", "the columns are 'input;output'"),
        ("t.csv", b"input,output,input\na,b,c\n", "'input' appears twice in the header"),
        ("t.csv", b"input,output\na,b\nc,d,e\n", "line 3: 3 cells where the header has 2"),
        ("t.csv", b'input,output\n"a\nb",c\nd\n', "line 4: 1 cells where the header has 2"),
        ("t.csv", b'input,output\na,"b\n', "invalid CSV: unexpected end of data"),
        ("t.csv", b'input,output\n"a"b,c\n', "line 2: invalid CSV"),
        ("t.csv", b"input,output\na,b\n\xff,b\n", "line 3: not UTF-8"),
        ("t.csv", b"input,output\na\0,b\n", "line 2: 'input' has a NUL"),
        ("t.csv", b"input,output\n,\n", "line 2: input and output are both empty"),
        ("t.parquet", b"PAR1", "not a whole Parquet file"),
        ("t.parquet", b"input,output\na,b\n", "not a whole Parquet file"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused(tmp_path, name, data, message):
    refused(tmp_path / name, data, message)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"input": ["a", None], "output": ["b", "c"]}, "row 2: 'input' is null"),
        ({"input": ["a", "b"], "output": ["b", None]}, "row 2: 'output' is null"),
        ({"input": ["a"], "output": [[]]}, "'output' is of type list<.*null"),
        ({"input": ["a", "b"], "output": [["x"], []]}, "row 2: 'output' is an empty list"),
        ({"input": ["a"], "output": [["b", None]]}, "row 1: 'output' has null in its list"),
        (
            {"input": pa.array([1], pa.date32()), "output": ["b"]},
            "'input' is of type date32.*; expected string",
        ),
        ({"input": [["a"]], "output": ["b"]}, "'input' is of type list<"),
        ({"input": ["a"], "output": [[["b"]]]}, "'output' is of type list<.*list<"),
        ({"input": [b"a"], "output": ["b"]}, "'input' is of type binary"),
        ({"input": ["a"], "label": ["b"]}, "no column 'output'; the columns are 'input', 'label'"),
        ({"input": pa.array([], pa.string()), "output": pa.array([], pa.string())}, "no examples"),
    ],
)
def test_a_bad_parquet_table_is_refused(tmp_path, columns, message):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    refused(path, path.read_bytes(), message)


def test_parquet_that_is_not_utf8_is_refused(tmp_path):
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"input": column, "output": ["b"]}), path)
    refused(path, path.read_bytes(), "not a whole Parquet file.*utf-8")


@pytest.mark.faults
def test_truncated_parquet_is_never_accepted(tmp_path):
    rows = [{"input": f"question {k}", "output": [f"answer {k % 7}"]} for k in range(300)]
    data = write(tmp_path / "whole.parquet", rows).read_bytes()
    for end in range(1, len(data), max(1, len(data) // 40)):
        refused(tmp_path / "t.parquet", data[:end], "not a whole Parquet file")


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="not found; expected a dataset file"):
        read_dataset([tmp_path / "no.jsonl"])
    with pytest.raises(DatasetError, match="a folder; expected a file"):
        read_dataset([tmp_path])
    with pytest.raises(DatasetError, match="no dataset file was given"):
        read_dataset([])
    path = write(tmp_path / "t.jsonl", ROWS)
    with pytest.raises(DatasetError, match="both read from column 'input'"):
        read_dataset([path], Reading(output_column="input"))
    empty = tmp_path / "shard.jsonl"
    empty.write_text("\n")
    with pytest.raises(DatasetError, match=r"shard\.jsonl: no examples"):
        read_dataset([path, empty])


def layout(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.jsonl", "test.jsonl", "valid.jsonl"], ["train.jsonl"]),
        (["train.csv", "README.md", "dataset_infos.json", ".train.jsonl"], ["train.csv"]),
        (["train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "test-00000-of-00001.parquet"],
         ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
        (["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", "data/test-00000-of-00001-b0.parquet"],
         ["data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"]),
        (["train_b.json", "train_a.json"], ["train_a.json", "train_b.json"]),
        (["Train.JSONL", "test.jsonl"], ["Train.JSONL"]),
        (["data/train.jsonl", "other.csv"], ["data/train.jsonl"]),
        (["tasks.jsonl", "readme.txt"], ["tasks.jsonl"]),
        (["tasks.jsonl", "test.jsonl", "dev.jsonl"], ["tasks.jsonl"]),
        (["training.jsonl"], ["training.jsonl"]),
        (["train.jsonl.gz", "test.jsonl.gz"], ["train.jsonl.gz"]),
        (["train.jsonl", "train.jsonl.gz"], ["train.jsonl"]),
        (["train-00000-of-00002.json.zst", "train-00001-of-00002.json.zst"],
         ["train-00000-of-00002.json.zst", "train-00001-of-00002.json.zst"]),
    ],
)  # fmt: skip
def test_the_training_split_is_found(tmp_path, names, expected):
    found = training_files(layout(tmp_path, *names))
    assert found == tuple(tmp_path / name for name in expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no training split; .* found nothing"),
        (["test.jsonl"], r"no training split; .* found test\.jsonl"),
        (["test.jsonl", "validation-00000-of-00001.parquet", "eval_1.csv"], "no training split"),
        (["a.jsonl", "b.jsonl"], r"no training split; .* found a\.jsonl, b\.jsonl"),
        (["train.jsonl.bz2"], r"no training split; .* found train\.jsonl\.bz2"),
        (["train.jsonl.gz", "train.csv"], "more than one training split"),
        (["deep/er/train.jsonl"], "no training split"),
        (["train.jsonl", "train.csv"], "more than one training split"),
        (["train.jsonl", "data/train.jsonl"], "more than one training split"),
        (["train.jsonl", "train-00000-of-00001.jsonl"], "more than one training split"),
        (["train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"], "more than one training split"),
        (["train-00000-of-00001.jsonl", "train-extra.jsonl"], "more than one training split"),
        (
            ["train-00000-of-00001-ab.parquet", "train-00000-of-00001-cd.parquet"],
            "more than one training split",
        ),
        (["train-00000-of-00002.jsonl"], "1 shards of train are there and 2 are expected"),
        (["train-00001-of-00003.jsonl", "train-00002-of-00003.jsonl"], "2 shards .* 3 are expected"),
        (["train-00001-of-00001.jsonl"], "1 shards .* 1 are expected, numbered from 0 to 0"),
        (["train-0-of-99999999999999.jsonl"], "99999999999999 are expected"),
    ],
)
def test_a_doubtful_training_split_is_refused(tmp_path, names, message):
    with pytest.raises(DatasetError, match=message) as error:
        training_files(layout(tmp_path, *names))
    assert str(error.value).startswith(str(tmp_path))


def test_a_file_is_its_own_training_split(tmp_path):
    layout(tmp_path, "test.jsonl")
    assert training_files(tmp_path / "test.jsonl") == (tmp_path / "test.jsonl",)
    with pytest.raises(DatasetError, match="not found"):
        training_files(tmp_path / "nothing")


def test_a_folder_may_be_a_link(tmp_path):
    real = layout(tmp_path / "real", "train.jsonl")
    os.symlink(real, tmp_path / "link")
    assert training_files(tmp_path / "link") == (tmp_path / "link" / "train.jsonl",)


def test_both_columns_that_are_wrong_are_named_at_once(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "train.jsonl"
    file.write_text('{"input": {}, "output": null}\n')
    with pytest.raises(DatasetError, match="'input' is an object; expected a string, and 'output' is null"):
        read_dataset([file])
    days = pa.array([3], pa.date32())
    pq.write_table(pa.table({"input": days, "output": days}), tmp_path / "train.parquet")
    with pytest.raises(
        DatasetError,
        match=r"'input' is of type date32.*; expected string, and column 'output' is of type date32",
    ):
        read_dataset([tmp_path / "train.parquet"])
