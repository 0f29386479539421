"""What the documentation says is what the program does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
import pytest

from cli.main import cli
from tests.support.banks.small_bank import write_dataset

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"bank {name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documentation_exist(page: Path) -> None:
    """Each `bank ...` line in a code block names a command and options that the program has."""
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in re.findall(r"^\$? ?bank (.+)$", block, re.MULTILINE):
            words = line.split()
            command = cli.commands[words[0]]
            known = {
                name for option in command.params if isinstance(option, click.Option) for name in option.opts
            }
            used = {word.split("=")[0] for word in words if word.startswith("--")}
            assert used <= known | {"--help"}, line


def test_the_python_example_runs(
    tmp_path: Path, bank_template: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shutil.copytree(bank_template, tmp_path / "my-bank")
    shutil.copy(write_dataset(tmp_path / "d", 50) / "train.jsonl", tmp_path / "my-data.jsonl")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("task1391", "task001"), "README.md", "exec"), {})
    assert "task001" in capsys.readouterr().out
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
