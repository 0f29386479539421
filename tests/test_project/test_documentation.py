"""What the documentation says is what the program does."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
import pytest

from cli.main import cli
from tests.support.banks.small_bank import create_bank, write_dataset, write_pairs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


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
    of_all = {name for option in cli.params if not getattr(option, "is_flag", False) for name in option.opts}
    for kind, block in re.findall(r"```(sh|bash|console)\n(.*?)```", page.read_text(), re.DOTALL):
        # What a console prints is no command.
        prompt = r"\$ " if kind == "console" else r"(?:\$ )?"
        for line in re.findall(rf"^{prompt}bank (.+)$", block, re.MULTILINE):
            words = line.split()
            while words[0] in of_all:  # of `bank` itself, each with a value
                words = words[2:]
            command = cli.commands[words[0]]
            known = {
                name for option in command.params if isinstance(option, click.Option) for name in option.opts
            }
            used = {word.split("=")[0] for word in words if word.startswith("--")}
            assert used <= known | {"--help"}, line


def test_the_python_example_runs(
    tmp_path: Path,
    tokenizer_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it stands, where there are a bank, pairs and a dataset of the names in it."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = code.splitlines()
    assert len(lines) <= 8
    assert [line for line in lines if "import" in line] == ["import bankdb, compute"]
    create_bank(tmp_path / "my-bank", tokenizer_folder).close()
    write_pairs(write_pairs(tmp_path / "pairs", 3), 1, start=1391, prefix="task")
    shutil.copy(write_dataset(tmp_path / "d", 50) / "train.jsonl", tmp_path / "my-data.jsonl")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "4 added" in printed
    assert "Prediction for my-data" in printed
    assert "task1391" in printed
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()
