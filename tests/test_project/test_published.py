"""What is given away tells nothing of the machine that it was made on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from bankdb.records import published, without_folders
from cli.main import cli
from tests.support.banks.malformed_adapters import BASE_MODEL
from tests.support.banks.small_bank import write_dataset, write_pairs, write_tokenizer

SECRET = "ada-lovelace"


@pytest.fixture(scope="module")
def given_away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that commands write for others, of a bank, data and pairs below a folder whose name is a secret."""
    home = tmp_path_factory.mktemp("machine") / SECRET
    out, bank = home / "out", str(home / "bank")
    pairs = write_pairs(home / "pairs", 4)
    new = write_dataset(home / "new", 50)
    for arguments in (
        ["init", "--bank", bank, "--base-model", BASE_MODEL, "--tokenizer", str(write_tokenizer(home / "tokens"))],
        ["ingest", "--bank", bank, str(pairs)],
        ["predict", "--bank", bank, str(new), "--out", str(out / "new")],
        ["predict", "--bank", bank, "--all", "--export", str(out / "all"), "--workers", "1"],
        ["predict", "--bank", bank, "--all", "--space", "delta", "--export", str(out / "delta"), "--workers", "1"],
        ["distances", "--bank", bank, "--metric", "js", "--csv", str(out / "distances.csv"), "--workers", "1"],
        ["evaluate", "--bank", bank, "--weights-only", "--approach", "uniform", "--out", str(out / "weights"),
         "--workers", "1"],
        ["report", "--bank", bank, "--out", str(out / "report.html"), "--metric", "js", "--approach", "uniform"],
        ["push", "--bank", bank, str(out / "folder"), "--include-unlicensed"],
        ["push", "--bank", bank, str(out / "shared.tar"), "--include-unlicensed"],
    ):  # fmt: skip
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, (result.output, result.exception)
    return out


def test_no_published_byte_tells_of_the_machine(given_away: Path) -> None:
    files = [path for path in given_away.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"README.md", "provenance.json", "report.html", "distances.csv"}
    assert len(files) >= 9 * 4
    for path in files:
        content = path.read_bytes()
        for word in (SECRET, str(Path.home()), os.getcwd(), socket.gethostname()):
            assert word.encode() not in content, (path, word)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/ada/pairs/adapters/task1", "task1"),
        ("../pairs/task1/", "task1"),
        ("./smollm2", "smollm2"),
        ("~/models/smollm2", "smollm2"),
        ("a/b/c", "c"),
        ("hub:owner/adapter", "hub:owner/adapter"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("gpt2", "gpt2"),
    ],
)
def test_where_something_came_from(source: str, shown: str) -> None:
    assert published(source) == shown


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/home/ada/data/test.jsonl: no such file", "test.jsonl: no such file"),
        ("looked in ~/data/x and ../y/z.csv; and/or elsewhere", "looked in x and z.csv; and/or elsewhere"),
        ("s3://bucket/prefix stays, 3/4 stays", "s3://bucket/prefix stays, 3/4 stays"),
        ("'/home/ada/a b/c'", "'a b/c'"),
    ],
)
def test_paths_in_messages(message: str, shown: str) -> None:
    assert without_folders(message) == shown
