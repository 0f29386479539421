"""Help of every command: in 80 columns, every option in one section, no name broken."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from cli.help_sections import OTHER, SECTIONS
from cli.main import cli

# Options that fit on a screen or two without sections.
MOST_ALONE = 16


def help_of(command: str, columns: int = 80) -> str:
    result = CliRunner().invoke(cli, [*([command] if command else []), "--help"], terminal_width=columns)
    assert result.exit_code == 0, result.output
    return result.output


def options(command: str) -> dict[str, click.Option]:
    found = (param for param in cli.commands[command].params if isinstance(param, click.Option))
    return {str(param.name): param for param in found}


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_option_of_a_long_command_has_one_place(command: str) -> None:
    """A new one has to be put into a section."""
    known = options(command)
    if command not in SECTIONS:
        assert len(known) <= MOST_ALONE
        return
    placed = [name for names in SECTIONS[command].values() for name in names]
    assert sorted(placed) == sorted(known)
    assert OTHER not in SECTIONS[command]


@pytest.mark.parametrize("command", ["", *sorted(cli.commands)])
def test_help_fits_eighty_columns(command: str) -> None:
    assert [line for line in help_of(command).splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", sorted(cli.commands))
def test_no_name_is_broken(command: str, columns: int) -> None:
    """Every word of what is to be said is a word of the help; options are shown once, and in their order."""
    shown = help_of(command, columns)
    words = set(shown.split())
    listed = shown[shown.index("\nOptions:") :]
    about = cli.commands[command].help or ""
    assert set(about.split()) <= words
    for option in options(command).values():
        assert set((option.help or "").rstrip(".").split()) <= words | {word.rstrip(".") for word in words}
        assert len(re.findall(rf"^  (?:-\w, )?{option.opts[-1]}(?: |$)", listed, re.MULTILINE)) == 1


@pytest.mark.parametrize("command", sorted(SECTIONS))
def test_sections_are_shown_in_their_order(command: str) -> None:
    shown = help_of(command)
    titles = [line.removesuffix(":") for line in re.findall(r"^\S.*:$", shown, re.MULTILINE)]
    assert titles == [*SECTIONS[command], OTHER]
    found = [line.split()[0] for line in shown.splitlines() if re.match(r"  --", line)]
    expected = [options(command)[name].opts[-1] for names in SECTIONS[command].values() for name in names]
    assert found == expected
    assert shown.index(f"\n{OTHER}:") < shown.index("--help")


def test_names_that_may_be_given_are_told() -> None:
    shown = help_of("predict")
    for name in (
        "wasserstein",
        "kullback-leibler",
        "jensen-shannon",
        "mmd",
        "tf-idf",
        "normalized",
        "ridge",
        "all",
    ):
        assert re.search(rf"\b{name}\b", shown)
