"""Shared banks that strangers made: whatever a record or a file says, it is refused in a line and nothing is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bankdb.bank import AdapterBank
from bankdb.errors import BankError, BankFormatError
from bankdb.sharing.form import ABOUT, CATALOGUE, COUNTS, MOST_BYTES, SUMS, WEIGHTS
from bankdb.sharing.pull import pull
from tests.support.banks.bank_content import assert_nothing_else, content
from tests.support.shared_bank import changed, edit_about, edit_adapter

SQL = "x'); DROP TABLE adapter; --"


def refused(place: Path, bank: Path) -> str:
    """The one line by which a pull into a bank that was there is refused; the bank is as before."""
    before = kept(bank)
    with pytest.raises(BankError) as caught:
        pull(str(place), bank)
    assert kept(bank) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept(bank: Path) -> tuple[Any, ...]:
    """All that a bank holds, and what is reserved in it."""
    with AdapterBank.open(bank) as opened:
        return content(opened), opened.store.rows_on_disk(), opened.catalog.reserved(), opened.record


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Path:
    """A bank with all but one of the adapters, so that there is something to add; nothing here ever is."""
    path = tmp_path_factory.mktemp("target") / "bank"
    shutil.copytree(bank_template, path)
    with AdapterBank.open(path) as bank:
        bank.remove("task003")
    return path


NAMES = ["../x", "a/b", "/etc/passwd", "a\\b", ".hidden", "-rf", "a\0b", "a\nb", "\x1b[31mred", "", " x", "x" * 300,
         "\u202ex", "TASK001", "task001", "e\u0301", 7, None, ["x"], {"a": 1}]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names(shared: Path, target: Path, tmp_path: Path, name: Any) -> None:
    def change(folder: Path) -> None:
        edit_adapter(folder, 3, name=name)
        if isinstance(name, str) and name.isprintable() and name and "/" not in name and len(name) < 100:
            shutil.copytree(folder / "adapters" / "task003", folder / "adapters" / name, dirs_exist_ok=True)

    said = refused(changed(shared, tmp_path / "changed", change), target)
    assert f"{CATALOGUE}, line 4: " in said


def test_sql_is_a_name_like_others(shared: Path, target: Path, tmp_path: Path) -> None:
    target = shutil.copytree(target, tmp_path / "bank")

    def change(folder: Path) -> None:
        edit_adapter(folder, 3, name=SQL, group=SQL, licence=SQL)
        (folder / "adapters" / "task003").rename(folder / "adapters" / SQL)

    report = pull(str(changed(shared, tmp_path / "changed", change)), target)
    assert report.added == [SQL]
    with AdapterBank.open(target) as bank:
        assert (bank.catalog.adapter(SQL).group, len(bank)) == (SQL, 6)
        assert_nothing_else(bank)


VALUES: dict[str, list[Any]] = {
    "examples": [0, -1, 1.5, True, "12", 2**40, 10**400],
    "tokens": [0, 10**30, None],
    "rank": [0, 2**31, "8"],
    "alpha": [0, -1, "16", 1e300, None],
    "use_rslora": [1, "false"],
    "scaling": [3.0, 0],
    "dtype": ["float64", "F32", 3],
    "group": ["a\nb", "x" * 5000, 3],
    "licence": ["\x1b[2J", []],
    "source": ["/home/ada/x", "../x", "~/x", 5],
    "dataset_source": ["/etc/passwd"],
    "revision": ["main", "x" * 40],
    "row_sha256": ["0", "Z" * 64, None],
    "content_sha256": [""],
    "text_rule": ["something else", "input + output[0]; [", "input + output[0]; {\"form\": \"x\"}"],
    "surprise": [1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in VALUES.items() for value in values], ids=repr
)
def test_values(shared: Path, target: Path, tmp_path: Path, key: str, value: Any) -> None:
    place = changed(shared, tmp_path / "changed", lambda folder: edit_adapter(folder, 3, **{key: value}))
    assert f"{CATALOGUE}, line 4: " in refused(place, target)


ABOUTS: dict[str, list[Any]] = {
    "format": ["other", None],
    "version": [2, "1"],
    "base_model": ["/models/x", "", 3, "a\nb"],
    "base_model_aliases": ["x", [3], ["/models/x"]],
    "tokenizer_fingerprint": ["0" * 64, "x"],
    "vocabulary": [0, 10**9],
    "layout": [
        None,
        {},
        {"rank": 10**9, "target_modules": [], "fan_in_fan_out": False, "tensors": [["a", [10**9]]]},
    ],
    "parameters": [1, 10**15],
    "scaling": [7.0],
    "text_rule": ["x"],
    "adapters": [5, 7, 10**9],
    "dtype": ["int8"],
    "surprise": [1],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in ABOUTS.items() for value in values], ids=repr
)
def test_values_of_the_bank(shared: Path, target: Path, tmp_path: Path, key: str, value: Any) -> None:
    place = changed(shared, tmp_path / "changed", lambda folder: edit_about(folder, **{key: value}))
    said = refused(place, target)
    assert ABOUT in said or CATALOGUE in said or "not of the kind" in said
    with pytest.raises(BankError):
        pull(str(place), tmp_path / "new")
    assert not (tmp_path / "new" / "bank.db").exists()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


TEXTS = {
    "nested": b"[" * 100_000,
    "no utf-8": b"\xff\xfe{}",
    "twice": b'{"format": "lora-bank", "format": "lora-bank"}',
    "nan": b'{"format": "lora-bank", "version": NaN}',
    "half a pair": b'{"format": "\\ud800"}',
    "many values": b'{"format": [' + b"0," * 3_000_000 + b"0]}",
    "empty": b"",
    "a list": b"[]",
}


@pytest.mark.parametrize("name", [ABOUT, CATALOGUE])
@pytest.mark.parametrize("text", TEXTS)
def test_json_that_is_none(shared: Path, target: Path, tmp_path: Path, name: str, text: str) -> None:
    said = refused(changed(shared, tmp_path / "changed", write(name, TEXTS[text])), target)
    assert name in said
    assert len(said) < 600


@pytest.mark.parametrize("name", [ABOUT, CATALOGUE, SUMS])
def test_files_that_are_far_too_large_are_not_read(
    shared: Path, target: Path, tmp_path: Path, name: str
) -> None:
    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(MOST_BYTES[name] + 1)  # a hole: nothing is written

    said = refused(changed(shared, tmp_path / "changed", change, sealed=False), target)
    assert f"{name}: at most" in said


@pytest.mark.parametrize(
    "sums", ["x", "0" * 64 + " one space", "0" * 64 + "  a\n" + "1" * 64 + "  a", "0" * 64 + "  a\0b"]
)
def test_sums_that_are_none(shared: Path, target: Path, tmp_path: Path, sums: str) -> None:
    place = changed(shared, tmp_path / "changed", write(SUMS, sums.encode()), sealed=False)
    assert f"{SUMS}: line" in refused(place, target)


# -- files of an adapter -------------------------------------------------------------------------------


def edit_counts(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapters" / "task003" / COUNTS
        save_file(load_file(path) | values, path)

    return change


def edit_weights(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapters" / "task003" / WEIGHTS
        save_file(edit(load_file(path)), path, metadata={"format": "pt"})

    return change


def first(tensors: dict[str, Any], value: Any) -> dict[str, Any]:
    name = min(tensors)
    return tensors | {name: value(tensors[name])}


def poisoned(value: float) -> Callable[[Any], Any]:
    def edit(tensor: Any) -> Any:
        tensor = tensor.copy()
        tensor.flat[0] = value
        return tensor

    return edit


def edit_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapters" / "task003" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


U32 = np.uint32
PAYLOADS: dict[str, Callable[[Path], None]] = {
    "counts of another length": edit_counts(counts=np.ones(3, U32)),
    "ids beyond the vocabulary": edit_counts(ids=np.array([2**31], U32), counts=np.array([1], U32)),
    "ids that fall": edit_counts(ids=np.array([5, 4], U32), counts=np.array([1, 1], U32)),
    "counts of zero": edit_counts(ids=np.array([4, 5], U32), counts=np.array([0, 1], U32)),
    "counts of 64 bits": edit_counts(counts=np.ones(3, np.uint64)),
    "counts and more": edit_counts(more=np.ones(3, U32)),
    "counts that sum to something else": edit_counts(
        ids=np.array([4], U32), counts=np.array([2**32 - 1], U32)
    ),
    "counts that are none": write(f"adapters/task003/{COUNTS}", b"x" * 100),
    "counts far too large": write(f"adapters/task003/{COUNTS}", b"\0" * 100_000),
    "NaN": edit_weights(lambda tensors: first(tensors, poisoned(np.nan))),
    "infinite": edit_weights(lambda tensors: first(tensors, poisoned(np.inf))),
    "another value": edit_weights(lambda tensors: first(tensors, poisoned(0.5))),
    "another shape": edit_weights(lambda tensors: first(tensors, lambda tensor: tensor[:1])),
    "a tensor less": edit_weights(lambda tensors: dict(sorted(tensors.items())[1:])),
    "a pickle": write(f"adapters/task003/{WEIGHTS}", b"\x80\x02c" + b"x" * 50),
    "another scaling": edit_config(lora_alpha=999),
    "another base model": edit_config(base_model_name_or_path="other/model"),
    "another revision": edit_config(revision="v2"),
    "code": edit_config(auto_map={"AutoModel": "evil.py"}),
}


@pytest.mark.parametrize("what", PAYLOADS)
def test_files_of_an_adapter(shared: Path, target: Path, tmp_path: Path, what: str) -> None:
    before = kept(target)
    report = pull(str(changed(shared, tmp_path / "changed", PAYLOADS[what])), target)
    assert [one.name for one in report.refused] == ["task003"]
    assert "\n" not in report.refused[0].reason
    assert ".bank.pull" not in report.refused[0].reason
    assert (report.added, len(report.skipped)) == ([], 5)
    assert kept(target) == before


def test_a_tokenizer_that_is_another_one_makes_no_bank(shared: Path, tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        path = folder / "tokenizer" / "tokenizer.json"
        path.write_text(path.read_text().replace('"w7"', '"w7x"'))

    with pytest.raises(BankError, match="tokenizer/: expected the one with fingerprint"):
        pull(str(changed(shared, tmp_path / "changed", change)), tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


def test_what_is_no_shared_bank(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BankFormatError, match="no shared bank is there"):
        pull(str(tmp_path / "empty"), tmp_path / "bank")
    with pytest.raises(BankError, match="no such folder"):
        pull(str(tmp_path / "none"), tmp_path / "bank")
    assert not list(tmp_path.glob(".*"))
