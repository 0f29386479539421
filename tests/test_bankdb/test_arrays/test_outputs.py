"""Where results go: files appear whole, links stay, and devices and pipes are written into."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bankdb.arrays.durable import write_whole
from cli.main import cli


@pytest.fixture
def bank_template(bank_template: Path, tmp_path: Path) -> Path:
    """A copy: commands compute in it."""
    return Path(shutil.copytree(bank_template, tmp_path / "template" / "bank"))


def test_a_file_keeps_its_permissions_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before, and longer")
    (tmp_path / "out").chmod(0o600)
    write_whole(tmp_path / "out", "é\n")
    assert (tmp_path / "out").read_bytes() == "é\n".encode()
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("target", ["../elsewhere/real", "second"])
def test_a_link_is_written_through(tmp_path: Path, target: str, there: bool) -> None:
    """Also one to a link, and one to a file that is not there yet."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    link, real = tmp_path / "here" / "link", tmp_path / "elsewhere" / "real"
    link.symlink_to(target)
    (tmp_path / "here" / "second").symlink_to(real)
    if there:
        real.write_text("before")
    write_whole(link, "after")
    assert os.readlink(link) == target
    assert (tmp_path / "here" / "second").is_symlink()
    assert not real.is_symlink()
    assert real.read_text() == "after"


def test_links_in_a_circle_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many") as raised:
        write_whole(tmp_path / "a", "x")
    assert raised.value.filename == str(tmp_path / "a")


def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "out", "after \ud800")
    assert (tmp_path / "out").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def read_pipe(path: Path, found: list[str]) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(path.read_text()))
    thread.start()
    return thread


def run(*arguments: str | Path, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def outputs(bank: Path, where: Path) -> list[list[str | Path]]:
    """Every command that writes one file."""
    here: list[str | Path] = ["--bank", bank]
    return [
        ["distances", *here, "--metric", "js", "--workers", "1", "--csv", where],
        ["coefficients", *here, "--workers", "1", "--csv", where],
        ["evaluate", *here, "--weights-only", "--approach", "uniform", "--workers", "1", "--csv", where],
        ["report", *here, "--metric", "js", "--approach", "uniform", "--out", where],
    ]


@pytest.mark.parametrize("number", range(4))
def test_commands_write_into_a_pipe(bank_template: Path, tmp_path: Path, number: int) -> None:
    pipe, found = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    thread = read_pipe(pipe, found)
    run(*outputs(bank_template, pipe)[number])
    thread.join(timeout=30)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    run(*outputs(bank_template, tmp_path / "file")[number])
    (text,) = found
    assert len(text) > 100
    if number < 3:  # the report tells its own command, with its name for the file
        assert text == (tmp_path / "file").read_text()


def test_rates_go_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compute.forecasting.rates import read_rates, write_rates

    found = read_rates(Path(__file__).parents[3] / "docs" / "scale-rates.json")
    (tmp_path / "link").symlink_to("real")
    write_rates(tmp_path / "link", found)
    assert (tmp_path / "link").is_symlink()
    assert read_rates(tmp_path / "real") == found


def test_a_device(bank_template: Path) -> None:
    before = os.stat(os.devnull)
    run(*outputs(bank_template, Path(os.devnull))[0])
    after = os.stat(os.devnull)
    assert stat.S_ISCHR(after.st_mode)
    assert (before.st_ino, before.st_rdev) == (after.st_ino, after.st_rdev)
    message = run(*outputs(bank_template, Path("/dev/full"))[0], status=1).stderr
    assert "/dev/full: No space left on device" in message


def test_what_a_shell_has_opened(tmp_path: Path) -> None:
    """`--csv /dev/stdout > file` writes into the file that the shell has opened."""
    with (tmp_path / "file").open("w+") as file:
        write_whole(Path(f"/dev/fd/{file.fileno()}"), "table\n")
        file.seek(0)
        assert file.read() == "table\n"
