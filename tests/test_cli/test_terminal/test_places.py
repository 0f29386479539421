"""Where a result is to go is looked at before anything is read or computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import cli


@pytest.mark.parametrize("what", ["a folder with something", "a file", "below a file"])
def test_a_place_that_cannot_be_written_is_refused_before_the_data_is_read(
    bank_template: Path, tmp_path: Path, what: str
) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("no JSON, which nobody comes to read")
    if what == "a folder with something":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        out.write_text("mine")
    place = out / "deeper" if what == "below a file" else out
    done = CliRunner().invoke(cli, ["predict", "--bank", str(bank_template), str(data), "--out", str(place)])
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"bank: error: {place}: ")
    assert "choose another" in line
