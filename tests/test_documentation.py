"""What the documentation says is what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from cli.document import reference
from cli.main import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_reference_of_commands_is_up_to_date() -> None:
    assert (ROOT / "docs" / "commands.md").read_text() == reference()


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
