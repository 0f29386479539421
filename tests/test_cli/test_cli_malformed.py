"""A folder in which nearly everything is bad: each pair is named with one line, and the good ones are stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from bankdb.bank import AdapterBank
from cli.main import cli
from tests.support.banks.malformed_adapters import MALFORMED, write_good_adapter
from tests.support.banks.small_bank import create_bank, write_dataset

GOOD = ("aaa-good", "zzz-good")


def _lines(*lines: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "train.jsonl").write_text("\n".join(lines) + "\n") and None


def _instead(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "train.jsonl").unlink()
        (folder / name).write_bytes(content)

    return damage


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


# What is done to a good dataset folder, and what the refusal must say.
DATASETS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty-file": (_instead("train.jsonl", b""), "empty"),
    "no-examples": (_lines(""), "example"),
    "not-json": (_lines('{"input": "a", "output": "b"}', "{nonsense"), "line 2"),
    "a-list-line": (_lines('["a", "b"]'), "example 1: a string"),
    "no-input": (_lines('{"text": "a", "output": ["b"]}'), "--input-column"),
    "no-output": (_lines('{"input": "a"}'), "--text-column"),
    "null-input": (_lines('{"input": null, "output": ["b"]}'), "null"),
    "object-output": (_lines('{"input": "a", "output": {"b": 3}}'), "object"),
    "no-outputs": (_lines('{"input": "a", "output": []}'), "empty"),
    "nested-output": (_lines('{"input": "a", "output": [["b"]]}'), "output"),
    "both-empty": (_lines('{"input": "", "output": [""]}'), "empty"),
    "bad-utf8": (_instead("train.jsonl", b'{"input": "\xff\xfe", "output": ["b"]}\n'), "UTF-8"),
    "lone-surrogate": (_lines('{"input": "\\ud800", "output": ["b"]}'), "surrogate"),
    "broken-csv": (_instead("train.csv", b"input,output\na,b,c\n"), "line 2"),
    "csv-no-header": (_instead("train.csv", b"a,b\nc,d\n"), "column"),
    "truncated-parquet": (_instead("train.parquet", b"PAR1\x00\x00"), "parquet"),
    "only-a-test-split": (_instead("test.jsonl", b'{"input": "a", "output": ["b"]}\n'), "training"),
    "unknown-format": (_instead("train.txt", b"a b c\n"), "train"),
    "not-there": (_gone, "dataset"),
}


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    for seed, name in enumerate(GOOD):
        write_dataset(root / "datasets" / name, seed)
        write_good_adapter(root / "adapters" / name, seed=seed)
    for index, case in enumerate(MALFORMED):
        name = f"adapter-{index:03d}"
        write_dataset(root / "datasets" / name, 5, examples=2)
        case.damage(write_good_adapter(root / "adapters" / name, seed=5))
    for kind, (damage, _) in DATASETS.items():
        name = f"dataset-{kind}"
        write_good_adapter(root / "adapters" / name, seed=6)
        damage(write_dataset(root / "datasets" / name, 6, examples=2))
    return root


def test_there_are_kinds_enough() -> None:
    assert len(MALFORMED) + len(DATASETS) >= 40


def test_everything_bad_is_refused_by_name_and_nothing_of_it_stored(
    bad_folder: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    where = ("--bank", str(tmp_path / "bank"))
    result = CliRunner().invoke(cli, ["ingest", *where, str(bad_folder)])
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("refused ")]
    reasons = {line.split(": ", 1)[0].removeprefix("refused "): line.split(": ", 1)[1] for line in lines}
    assert len(reasons) == len(lines)
    for kind, (_, message) in DATASETS.items():
        assert message.lower() in reasons[f"dataset-{kind}"].lower(), (kind, reasons[f"dataset-{kind}"])
    named = {name.name for name in (bad_folder / "adapters").iterdir()} - set(GOOD)
    assert set(reasons) == named
    for index, case in enumerate(MALFORMED):
        reason = reasons[f"adapter-{index:03d}"]
        # A missing file is missed already when the pair is located, in other words.
        located = any(text in reason for text in (": no adapter_", "is not read, safetensors only"))
        assert case.message in reason or located, (case.name, reason)

    with AdapterBank.open(tmp_path / "bank") as bank:
        records = bank.adapters()
        assert [record.name for record in records] == list(GOOD)
        assert bank.store.rows_on_disk() == [record.row for record in records]
        assert bank.catalog.reserved() == []
    verified = CliRunner().invoke(cli, ["verify", *where, "--json"])
    assert verified.exit_code == 0
    report = json.loads(verified.stdout)
    assert (report["checked"], report["leftovers"], report["damage"]) == (2, [], [])


def test_messages_name_the_file(bad_folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    create_bank(tmp_path / "bank", tokenizer_folder).close()
    result = CliRunner().invoke(cli, ["ingest", "--bank", str(tmp_path / "bank"), str(bad_folder), "--json"])
    refused = json.loads(result.stdout)["refused"]
    for item in refused:
        assert "\n" not in item["reason"], item
        assert item["name"] in item["reason"], item  # as part of the path, or as the name


@pytest.mark.parametrize("kind", sorted(DATASETS))
def test_predict_refuses_the_same_datasets(
    bad_folder: Path, bank_template: Path, tmp_path: Path, kind: str
) -> None:
    data = bad_folder / "datasets" / f"dataset-{kind}"
    arguments = ["predict", "--bank", str(bank_template), str(data), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("bank: error: ")]
    assert f"dataset-{kind}" in line
    assert not (tmp_path / "out").exists()
