"""`bank generate`: what is streamed, what is written, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest

import compute
from cli.main import cli
from tests.support.banks.tiny_bank import BASE, TINY

ADAPTER = TINY / "bank" / "adapters" / "records_city"
TEST = TINY / "bank" / "datasets" / "records_city" / "test.jsonl"
WITH = ("--adapter", ADAPTER, "--model", BASE, "--device", "cpu", "--max-tokens", "12")


def run(*arguments: str | Path, stdin: str | None = None) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, ["generate", *map(str, arguments)], input=stdin)


def first_prompt() -> str:
    found: str = json.loads(TEST.read_text().splitlines()[0])["input"]
    return found


@pytest.mark.torch
def test_a_prompt_and_standard_input_are_answered_alike() -> None:
    prompt = first_prompt()
    (expected,) = compute.generate(prompt, ADAPTER, BASE, most_tokens=12, device="cpu")
    asked = run(*WITH, "--prompt", prompt)
    assert asked.exit_code == 0, asked.output
    assert asked.stdout == expected + "\n"
    piped = run(*WITH, stdin=prompt + "\n")
    assert piped.stdout == asked.stdout
    base = run("--model", BASE, "--device", "cpu", "--max-tokens", "12", "--prompt", prompt)
    assert (base.exit_code, base.stdout != asked.stdout) == (0, True)


@pytest.mark.torch
def test_a_file_is_answered_a_line_of_json_each(tmp_path: Path) -> None:
    lines = TEST.read_text().splitlines()[:5]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = run(*WITH, "--input", tmp_path / "in.jsonl")
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines()]
    prompts = [json.loads(line)["input"] for line in lines]
    assert [one["input"] for one in found] == prompts
    answers = compute.generate(prompts, ADAPTER, BASE, most_tokens=12, device="cpu")
    assert [one["output"] for one in found] == answers
    out = tmp_path / "answers.jsonl"
    written = run(*WITH, "--input", tmp_path / "in.jsonl", "--out", out)
    assert written.exit_code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == found
    assert f"wrote {out}" in written.stderr


class Fake:
    """In place of a model: what it says, and whether it is interrupted."""

    def __init__(self, pieces: list[str], interrupted: bool = False) -> None:
        self.pieces, self.interrupted = pieces, interrupted
        self.prompts: list[str] = []

    def __call__(self, *arguments: Any, **options: Any) -> Fake:
        return self

    def stream(self, prompt: str, *arguments: Any) -> Iterator[str]:
        self.prompts.append(prompt)
        yield from self.pieces
        if self.interrupted:
            raise KeyboardInterrupt

    def answers(self, prompts: list[str], *arguments: Any) -> Iterator[str]:
        yield from self.pieces


@pytest.mark.torch
def test_a_terminal_is_not_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("compute.generation.text.TextGenerator", Fake(["a\x1b[31m", "b\n\tc\r"]))
    done = run("--prompt", "x", "--model", "y")
    assert done.stdout == "a\\x1b[31mb\n\tc\\r\n"
    (tmp_path / "in.csv").write_text("input\nx\ny\n")
    done = run("--input", tmp_path / "in.csv", "--model", "y")
    assert "\x1b" not in done.stdout
    assert json.loads(done.stdout.splitlines()[0])["output"] == "a\x1b[31m"


@pytest.mark.torch
def test_an_interrupt_ends_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.generation.text.TextGenerator", Fake(["half an"], interrupted=True))
    done = run("--prompt", "x", "--model", "y")
    assert done.exit_code == 130
    assert done.stdout == "half an\n"
    assert done.stderr == "stopped\n"


@pytest.mark.torch
def test_a_person_types_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(["yes"])
    monkeypatch.setattr("compute.generation.text.TextGenerator", fake)
    monkeypatch.setattr("cli.commands.generate._at_a_terminal", lambda: True)
    done = run("--model", "y", stdin="one\n\ntwo\n")
    assert done.exit_code == 0, done.output
    assert fake.prompts == ["one", "two"]
    assert done.stdout.count("yes\n") == 2
    assert "Ctrl-D ends" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--prompt", "a", "--input", "b"), 2, "give --prompt or --input"),
        (("--prompt", ""), 2, "expected a prompt, found an empty one"),
        (("--input", "nothing.jsonl"), 1, "nothing.jsonl: not found; expected a dataset file"),
        (("--prompt", "a", "--out", "x"), 2, "--out: would do nothing here; goes with --input FILE"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], status: int, message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == status
    assert message in done.stderr


@pytest.mark.torch
def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    for words, message in (
        (("--prompt", "a"), "pass --model"),
        (("--prompt", "a", "--adapter", tmp_path), "adapter_config.json: no such file"),
        (("--prompt", "a", "--model", tmp_path), "expected a base model with config.json"),
        (("--prompt", "a", "--adapter", ADAPTER, "--model", BASE, "--chat"), "has no chat template"),
    ):
        done = run(*words)
        assert done.exit_code in (1, 2), done.output
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    not_text = click.testing.CliRunner().invoke(cli, ["generate", "--model", str(BASE)], input=b"\xff\xfe")
    assert (not_text.exit_code, "expected UTF-8 text" in not_text.stderr) == (1, True)
