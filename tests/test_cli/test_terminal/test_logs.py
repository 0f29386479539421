"""Logs: off unless asked for, a JSON object a line, with progress, warnings and errors, and without secrets."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.logs.json_lines import JsonLines, LoggedProgress, logging_to, logs_progress, without_secrets
from cli.main import cli
from tests.support.banks.recorded_progress import RecordedProgress


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_command_logs_what_it_does(bank_template: Path, tmp_path: Path) -> None:
    file = tmp_path / "log"
    words = ["--log-file", str(file), "verify", "--bank", str(bank_template)]
    plain, logged = (CliRunner().invoke(cli, one) for one in (words[2:], words))
    assert (plain.exit_code, logged.exit_code) == (0, 0), logged.output
    assert logged.stdout == plain.stdout
    found = lines(file.read_text())
    assert {"time", "level", "logger", "message"} <= found[0].keys()
    stages = [(line["event"], line["stage"]) for line in found if line["logger"] == "bank.progress"]
    assert stages[:2] == [("begin", "verify"), ("end", "verify")]
    (end,) = [line for line in found if (line.get("event"), line.get("stage")) == ("end", "verify")]
    assert (end["steps"], end["total"]) == (6, 6)
    assert not logs_progress()


def test_an_error_is_logged_and_said_once(tmp_path: Path) -> None:
    words = ["--log-level", "error", "list", "--bank", str(tmp_path / "absent")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 1
    logged, said = done.stderr.splitlines()
    assert json.loads(logged)["level"] == "error"
    assert "no bank here" in json.loads(logged)["message"]
    assert said.startswith("bank: error: ")
    assert CliRunner().invoke(cli, words[2:]).stderr.splitlines() == [said]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["--log-file", str(tmp_path / "absent" / "log"), "list"])
    assert done.exit_code == 1
    assert "choose another file" in done.stderr


def test_it_is_added_to(tmp_path: Path) -> None:
    for _ in range(2):
        with logging_to("info", tmp_path / "log"):
            logging.getLogger("somebody").info("here")
    assert [line["message"] for line in lines((tmp_path / "log").read_text())] == ["here", "here"]


def test_warnings_of_libraries_and_steps(tmp_path: Path) -> None:
    with logging_to("debug", tmp_path / "log"):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        progress = LoggedProgress(RecordedProgress())
        progress.begin("stage", 2)
        progress.advance()
        progress.note("a line\nand \x1b[31manother")
        progress.end()
    found = lines((tmp_path / "log").read_text())
    assert "old" in next(line["message"] for line in found if line["logger"] == "py.warnings")
    assert [line["event"] for line in found if "event" in line] == ["begin", "advance", "note", "end"]
    assert len((tmp_path / "log").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    "text",
    [
        "connect postgresql+psycopg://ada:geheim@db.example/adapters",
        "Authorization: Bearer geheim",
        "{'authorization': b'AWS4-HMAC-SHA256 Credential=x, Signature=geheim'}",
        "password='geheim'",
        "aws_secret_access_key = geheim",
        "X-Amz-Security-Token: geheim",
        "token hf_geheim12345 sent",
        "what PGPASSWORD holds: geheim",
    ],
)
def test_secrets_are_left_out(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "PGPASSWORD" in text:
        monkeypatch.setenv("PGPASSWORD", "geheim")
    shown = without_secrets(text)
    assert "geheim" not in shown
    assert "***" in shown
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (text,), None)
    assert "geheim" not in JsonLines().format(record)


def test_what_is_no_secret_stays() -> None:
    text = "verify: 6 of 6 tokens; postgresql://ada@db.example:5432/adapters"
    assert without_secrets(text) == text
