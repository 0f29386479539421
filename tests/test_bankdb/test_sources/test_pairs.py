import csv
import json
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bankdb.errors import AdapterError, DatasetError, ParameterError, SourceError
from bankdb.records import PairReference, RefusedPair
from bankdb.sources.pairs import check_name, find_references, resolve, uses_hub

EXAMPLE = '{"input": "a", "output": "b"}\n'


def add_dataset(folder, name):
    path = folder / "datasets" / name
    if path.suffix in (".jsonl", ".tsv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(EXAMPLE)
    else:
        path.mkdir(parents=True)
        (path / "train.jsonl").write_text(EXAMPLE)


def add_adapter(folder, name):
    path = folder / "adapters" / name
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"weights")


def bank(folder, *names):
    for name in names:
        add_dataset(folder, name)
        add_adapter(folder, name)
    return folder


def test_a_folder_gives_its_pairs_sorted_by_name(tmp_path):
    bank(tmp_path, "b", "a.1", "c")
    add_dataset(tmp_path, "d.x.jsonl")
    add_adapter(tmp_path, "d.x")
    (tmp_path / "datasets" / "README.md").write_text("hello")
    (tmp_path / "adapters" / ".cache").mkdir()
    references, refused = find_references(tmp_path)
    assert refused == []
    assert references == [
        PairReference(name, str(tmp_path / "adapters" / name), str(tmp_path / "datasets" / dataset))
        for name, dataset in [("a.1", "a.1"), ("b", "b"), ("c", "c"), ("d.x", "d.x.jsonl")]
    ]


def test_one_incomplete_pair_does_not_stop_the_others(tmp_path):
    bank(tmp_path, "good")
    add_dataset(tmp_path, "alone")
    add_adapter(tmp_path, "lonely")
    add_adapter(tmp_path, "tabs")
    add_dataset(tmp_path, "tabs.tsv")
    bank(tmp_path, "double")
    add_dataset(tmp_path, "double.jsonl")
    references, refused = find_references(tmp_path)
    assert [reference.name for reference in references] == ["good"]
    reasons = {pair.name: pair.reason for pair in refused}
    assert sorted(reasons) == ["alone", "double", "lonely", "tabs"]
    assert reasons["alone"].startswith("no adapter: expected a folder adapters/alone/")
    assert reasons["lonely"].startswith("no dataset: expected a folder lonely/ or a file lonely.jsonl")
    assert reasons["tabs"].endswith("found tabs.tsv, which is of no format that is read")
    assert "more than one dataset: double, double.jsonl" in reasons["double"]


def test_a_folder_may_hold_links(tmp_path):
    real = bank(tmp_path / "real", "a")
    source = tmp_path / "source"
    (source / "adapters").mkdir(parents=True)
    os.symlink(real / "datasets", source / "datasets")
    os.symlink(real / "adapters" / "a", source / "adapters" / "a")
    ((reference,), refused) = find_references(source)
    assert refused == []
    assert resolve(reference).dataset == (source / "datasets" / "a" / "train.jsonl",)


def test_a_bad_name_in_a_folder_is_refused_alone(tmp_path):
    bank(tmp_path, "good", "-bad", "new\nline", " space", "Ångström", "e\u0301")
    references, refused = find_references(tmp_path)
    assert {reference.name for reference in references} == {"good", "Ångström"}
    assert [pair.name for pair in refused] == [" space", "-bad", "e\u0301", "new\\nline"]
    for pair in refused:
        assert "\n" not in pair.name + pair.reason
        assert "give the pair another name" in pair.reason


def test_names_that_differ_in_case_alone_are_refused_on_the_second(tmp_path):
    bank(tmp_path, "Task", "task", "other")
    references, refused = find_references(tmp_path)
    assert [reference.name for reference in references] == ["Task", "other"]
    assert refused == [
        RefusedPair("task", "the name differs from 'Task' only in case; give the second another name")
    ]


@pytest.mark.parametrize("missing", ["datasets", "adapters"])
def test_a_folder_of_another_layout_is_an_error_that_shows_the_layout(tmp_path, missing):
    bank(tmp_path, "a")
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(
        SourceError, match=rf"has no folder {missing}/; expected a folder with datasets/NAME/"
    ):
        find_references(tmp_path)


def test_a_source_with_nothing_in_it_is_an_error(tmp_path):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "adapters").mkdir()
    with pytest.raises(SourceError, match="no pairs in it; expected a folder with"):
        find_references(tmp_path)
    with pytest.raises(SourceError, match="not found; expected a folder with"):
        find_references(tmp_path / "nothing")


def test_groups_come_from_the_name(tmp_path):
    bank(tmp_path, "bbh_dates", "rg_sums", "42", "_x")
    references, _ = find_references(tmp_path, group_pattern="^([a-z]*)_")
    assert {reference.name: reference.group for reference in references} == {
        "42": None,
        "_x": None,
        "bbh_dates": "bbh",
        "rg_sums": "rg",
    }


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("([a-z", "no regular expression"),
        ("^a", "no parentheses"),
        ("(a){99999999999999999999}", "OverflowError"),
        ("(a+)+$", "took more than"),
    ],
)
def test_a_bad_group_pattern_is_refused(tmp_path, pattern, message):
    with pytest.raises(ParameterError, match=message) as caught:
        find_references(bank(tmp_path, "a" * 60 + "!"), group_pattern=pattern)
    # As the message says.
    assert "give another one, such as '^([^_]+)_'" in str(caught.value)
    assert find_references(tmp_path, group_pattern="^([^_]+)_")[0]


def manifest(path, rows):
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_manifest_gives_its_pairs_in_order(tmp_path, name):
    rows = [
        {"name": "z", "adapter": "adapters/z", "dataset": "../z.csv", "group": "g", "licence": "mit"},
        {"name": "a_b", "adapter": "/abs/a", "dataset": "hub:o/d@v1", "group": "", "licence": ""},
        {"name": "c_d", "adapter": "hub:o/c", "dataset": "", "group": "", "licence": ""},
    ]
    folder = tmp_path / "sub"
    folder.mkdir()
    references, refused = find_references(manifest(folder / name, rows), group_pattern="^(.)_")
    assert refused == []
    assert references == [
        PairReference("z", str(folder / "adapters" / "z"), str(tmp_path / "z.csv"), "g", "mit"),
        PairReference("a_b", "/abs/a", "hub:o/d@v1", "a", None),
        PairReference("c_d", "hub:o/c", "", "c", None),
    ]
    assert [uses_hub(reference) for reference in references] == [False, True, True]


def test_paths_in_a_manifest_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    manifest(tmp_path / "m.csv", [{"name": "a", "adapter": "x", "dataset": "y"}])
    monkeypatch.chdir(tmp_path)
    ((reference,), _) = find_references("m.csv")
    assert reference.adapter == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "b", "adapter": "x", "dataset": ""}, "'dataset' is missing"),
        ({"name": "b", "adapter": "", "dataset": "y"}, "'adapter' is missing"),
        ({"name": "", "adapter": "x", "dataset": "y"}, "'name' is missing"),
        ({"name": "a", "adapter": "x", "dataset": "y"}, "is there twice"),
        ({"name": "A", "adapter": "x", "dataset": "y"}, "differs from 'a' only in case"),
        ({"name": "..", "adapter": "x", "dataset": "y"}, "begins with '.'"),
        ({"name": "b/c", "adapter": "x", "dataset": "y"}, "slash"),
        (
            {"name": "b", "adapter": "x", "dataset": "y", "licence": "mit", "license": "gpl"},
            "differ; keep one",
        ),
    ],
)
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_bad_row_is_refused_alone(tmp_path, name, row, message):
    good = [{"name": "a", "adapter": "x", "dataset": "y"}, {"name": "d", "adapter": "x", "dataset": "y"}]
    path = manifest(tmp_path / name, [good[0], row, good[1]])
    references, refused = find_references(path)
    assert [reference.name for reference in references] == ["a", "d"]
    assert len(refused) == 1
    assert message in refused[0].reason
    assert refused[0].name in (row["name"], "line 3", "line 2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"name": "b", "adapter": "x"', "line 2: invalid JSON"),
        ("[]", "line 2: not an object"),
        ('{"name": 1, "adapter": "x", "dataset": "y"}', "'name' is 1; expected a string"),
        ('{"name": "b", "adapter": ["x"], "dataset": "y"}', "expected a string"),
        ('{"name": "b", "adapter": "x", "dataset": "y", "group": 3}', "'group' is 3"),
        ('{"name": "b", "adapter": "x\\u0000", "dataset": "y"}', "NUL"),
        ('{"name": "b", "dataset": "y"}', "'adapter' is missing"),
    ],
)
def test_a_bad_line_is_refused_alone(tmp_path, line, message):
    good = '{"name": "%s", "adapter": "x", "dataset": "y", "group": null}\n'
    (tmp_path / "m.jsonl").write_text(good % "a" + line + "\n\n" + good % "d")
    references, refused = find_references(tmp_path / "m.jsonl")
    assert [reference.name for reference in references] == ["a", "d"]
    assert len(refused) == 1
    assert message in refused[0].reason
    assert "\n" not in refused[0].reason


def test_a_csv_row_of_another_length_is_refused_alone(tmp_path):
    (tmp_path / "m.csv").write_text("name,adapter,dataset\na,x,y\nb,x\n\nc,x,y,z\nd,x,y\n")
    references, refused = find_references(tmp_path / "m.csv")
    assert [reference.name for reference in references] == ["a", "d"]
    assert [pair.name for pair in refused] == ["line 3", "line 5"]


def test_a_licence_may_be_spelt_either_way(tmp_path):
    (tmp_path / "m.csv").write_text("\ufeffname,adapter,dataset,license\na,x,y,mit\n", encoding="utf-8")
    ((reference,), _) = find_references(tmp_path / "m.csv")
    assert reference.licence == "mit"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.csv", b"", "empty manifest"),
        ("m.csv", b"name,adapter,dataset\n", "no pairs in it"),
        ("m.csv", b"name,adapter\na,x\n", "no column 'dataset' in the header; .*found 'name', 'adapter'"),
        ("m.csv", b"name,adapter,dataset,name\na,x,y,b\n", "'name' appears twice"),
        ("m.csv", b'name,adapter,dataset\na,"x,y\n', "invalid CSV"),
        ("m.csv", b"name,adapter,dataset\n\xff,x,y\n", "not UTF-8"),
        ("m.jsonl", b"\n", "no pairs in it"),
        ("m.txt", b"a", r"unknown kind of manifest '\.txt'"),
    ],
)
def test_a_bad_manifest_is_an_error(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message) as error:
        find_references(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))


def test_a_pair_resolves_to_absolute_paths(tmp_path, monkeypatch):
    bank(tmp_path, "a")
    monkeypatch.chdir(tmp_path)
    pair = resolve(PairReference("a", "adapters/a", "datasets/a", "g", "mit"))
    assert pair.adapter == tmp_path / "adapters" / "a"
    assert pair.dataset == (tmp_path / "datasets" / "a" / "train.jsonl",)
    assert (pair.adapter_source, pair.dataset_source) == (str(pair.adapter), str(tmp_path / "datasets" / "a"))
    assert (pair.adapter_revision, pair.dataset_revision) == (None, None)
    assert (pair.group, pair.licence) == ("g", "mit")


def test_a_pair_without_its_files_does_not_resolve(tmp_path):
    bank(tmp_path, "a")
    adapter, dataset = str(tmp_path / "adapters" / "a"), str(tmp_path / "datasets" / "a")
    with pytest.raises(AdapterError, match=r"nothing: expected an adapter folder .* found nothing"):
        resolve(PairReference("a", str(tmp_path / "nothing"), dataset))
    with pytest.raises(AdapterError, match="found a file"):
        resolve(PairReference("a", adapter + "/adapter_config.json", dataset))
    with pytest.raises(DatasetError, match="not found"):
        resolve(PairReference("a", adapter, str(tmp_path / "nothing")))
    with pytest.raises(DatasetError, match="no dataset is given"):
        resolve(PairReference("a", adapter, ""))
    with pytest.raises(SourceError, match="a: is on the hub"):
        resolve(PairReference("a", adapter, "hub:o/d"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["adapter_model.safetensors"], r"no adapter_config\.json"),
        (["adapter_config.json"], r"no adapter_model\.safetensors"),
        (["adapter_config.json", "adapter_model.bin"], r"adapter_model\.bin is not read, safetensors only"),
        (["adapter_config.json", "adapter_model.pt"], r"adapter_model\.pt is not read, safetensors only"),
    ],
)
def test_an_adapter_without_its_files_is_refused(tmp_path, files, message):
    add_dataset(tmp_path, "a")
    folder = tmp_path / "adapters" / "a"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).touch()
    with pytest.raises(AdapterError, match=message) as error:
        resolve(PairReference("a", str(folder), str(tmp_path / "datasets" / "a")))
    assert str(error.value).startswith(str(folder))


@pytest.mark.parametrize(
    "name", ["a", "task039_find", "v1.0", "Ångström", "数据", "two words", "a-b+c=d", "x" * 200]
)
def test_good_names(name):
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-option", "a/b", "a\\b", "a\0b", "a\nb", "a\u202eb", "a\u200bb", " a", "a ", "a\u00a0",
     "x" * 201, "数" * 67, "e\u0301", "\udcff"],
)  # fmt: skip
def test_bad_names(name):
    with pytest.raises(SourceError, match="the name ") as error:
        check_name(name)
    assert str(error.value).isprintable()


# Mostly accepted, and anything at all.
names = st.one_of(st.from_regex(r"\A\w[\w .\-]{0,20}\w\Z"), st.text(max_size=30))


@given(names)
def test_a_name_is_refused_or_can_be_a_folder(tmp_path_factory, name):
    try:
        check_name(name)
    except SourceError:
        return
    folder = tmp_path_factory.mktemp("names", numbered=True)
    (folder / name).mkdir()
    assert os.listdir(folder) == [name]
    assert name == unicodedata.normalize("NFC", name)
    assert not name.startswith((".", "-"))
