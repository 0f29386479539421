"""What strangers wrote into names, groups, licences and answers reaches no terminal, table or page as it is."""

from __future__ import annotations

import ast
import contextlib
import csv
import dataclasses
import html
import json
import re
import shutil
import sqlite3
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import cli
from bankdb.bank import AdapterBank
from bankdb.catalog.database import Database
from bankdb.errors import printable
from bankdb.progress import Progress
from bankdb.storage.location import BankLocation
from cli.display import BarProgress, LineProgress, print_json
from cli.main import cli as program
from compute.reporting.page.page import render
from tests.support.banks.small_report import small_report
from tests.support.servers.backends import seal_again

# A title, a cleared screen, a bell, C1's CSI, DEL, a line that pretends, and text that reads backwards.
EVIL = "a\x1b]0;gone\x07\x1b[2J\x9b31m\x7f\r\nbank: error: \u202egnp.\u2066\u2028é東"
# What stays: letters with marks, joined emoji, a script that needs joiners, spaces of other widths.
GOOD = "naïve 東京 e\u0301 👩\u200d💻 نامه\u200cای a\u00a0b"


def hidden(text: str) -> list[str]:
    """Characters that a terminal obeys or does not show; joiners belong to scripts."""
    kinds = {"Cc", "Cs", "Zl", "Zp", "Cf"}
    return [c for c in text if unicodedata.category(c) in kinds and c not in "\n\u200c\u200d"]


@given(text=st.text(st.characters(exclude_categories=[])))
def test_nothing_hidden_is_left(text: str) -> None:
    shown = printable(text)
    assert not hidden(shown)
    assert "\n" not in shown
    assert printable(shown) == shown
    kept = printable(text, keep="\n")
    assert kept.count("\n") == text.count("\n")


def test_text_of_any_script_stays() -> None:
    assert printable(GOOD) == GOOD
    assert printable("é\x1b東") == "é\\x1b東"
    assert printable("\ud800\u202e") == "\\ud800\\u202e"


def test_what_is_printed_goes_through_one_place() -> None:
    """No command prints by itself."""
    folder = Path(cli.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name in {"display.py", "document.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                shown = path.name == "main.py" and "printable" in ast.unparse(node)
                assert shown or called not in {"click.echo", "print", "click.secho", "sys.stdout.write"}, path


@pytest.fixture(scope="module")
def bank_path(tmp_path_factory: pytest.TempPathFactory, bank_template: Path) -> Path:
    """A bank whose first adapter has such a name, group and licence, as a stranger's database can have."""
    path = tmp_path_factory.mktemp("printing") / "bank"
    shutil.copytree(bank_template, path)
    with AdapterBank.open(path) as bank:
        bank.catalog.set_group("task001", EVIL, EVIL)
        bank.catalog.set_group("task002", GOOD, GOOD)
    with contextlib.closing(sqlite3.connect(path / "bank.db")) as connection:
        connection.execute("UPDATE adapter SET name = ? WHERE name = 'task001'", (EVIL,))
        connection.commit()
    with contextlib.closing(Database(BankLocation.of(path).database_url)) as database:
        seal_again(database)  # as whoever made it has
    return path


def run(bank: Path, *arguments: str | Path, status: int = 0) -> Result:
    first, *rest = map(str, arguments)
    result = CliRunner().invoke(program, [first, "--bank", str(bank), *rest])
    assert result.exit_code == status, (result.output, result.exception)
    assert not hidden(result.stdout)
    assert not hidden(result.stderr)
    return result


def test_tables_and_messages(bank_path: Path) -> None:
    listed = run(bank_path, "list").stdout
    assert "\\x1b]0;gone\\x07" in listed
    assert GOOD in listed
    assert listed.count("bank: error: ") == 3  # in a cell of three columns, and at the start of no line
    assert not re.search(r"^bank: error", listed, re.MULTILINE)
    run(bank_path, "show", EVIL)
    assert run(bank_path, "show", f"{EVIL}?", status=1).stderr.count("\n") == 1
    run(bank_path, "verify")
    run(bank_path, "list", f"--{EVIL}", status=2)
    run(bank_path, "export", EVIL, "--out", bank_path / "there", status=0)
    run(bank_path, "predict", "--all", "--approach", "uniform", "--weight-error", "--workers", "1")


def test_json_stays_json_with_the_very_text(bank_path: Path) -> None:
    found = json.loads(run(bank_path, "list", "--json").stdout)
    assert [(one["name"], one["group"]) for one in found[1:3]] == [(EVIL, EVIL), ("task002", GOOD)]


@given(value=st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner) | st.lists(inner)))
def test_any_json(value: object) -> None:
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_json(value)
    assert json.loads(out.getvalue()) == value
    assert not hidden(out.getvalue())


@pytest.mark.parametrize("place", ["-", "file.csv"])
def test_cells_of_csv(bank_path: Path, tmp_path: Path, place: str) -> None:
    where = place if place == "-" else str(tmp_path / place)
    printed = run(bank_path, "distances", "--metric", "js", "--workers", "1", "--csv", where).stdout
    text = printed if place == "-" else (tmp_path / place).read_text()
    assert not hidden(text)
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 7


@pytest.mark.parametrize("kind", [LineProgress, BarProgress])
def test_progress(kind: type[Progress], capsys: pytest.CaptureFixture[str]) -> None:
    progress = kind()
    progress.begin("a\x07[bold]\u202e", 2)
    progress.advance()
    progress.note(EVIL)
    progress.end()
    shown = capsys.readouterr().err
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "\x9b" not in shown
    assert "\x1b]0" not in shown
    assert "[bold]" in shown


def test_a_bar_of_a_stage_that_ended_is_full(capsys: pytest.CaptureFixture[str]) -> None:
    bars = BarProgress()
    bars.begin("steps that nobody counts", 1)
    bars.end()
    bars.begin("broken off", 3)
    bars.advance()
    bars.stop()
    shown = capsys.readouterr().err
    assert "1/1" in shown
    assert "1/3" in shown
    assert "3/3" not in shown


def test_the_report(bank_path: Path, tmp_path: Path) -> None:
    run(bank_path, "report", "--out", tmp_path / "page.html", "--metric", "js", "--approach", "uniform",
        "--title", EVIL)  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    head, _, rest = page.partition("<script")
    assert html.escape(printable(EVIL, keep="\n\t")) in head
    assert not [c for c in hidden(page) if c not in "\t\u00ad\ufeff"], "in names, groups, or the title"
    assert "\\u001b" not in rest  # which the page's script would make an escape character again


def test_answers_in_the_report() -> None:
    report = small_report(names=[f"n{index}" for index in range(9)])
    reported = report.evaluations[0]
    outcomes = tuple(
        dataclasses.replace(
            outcome,
            samples=tuple(
                dataclasses.replace(one, input=EVIL, references=(EVIL,), answer=EVIL)
                for one in outcome.samples
            ),
        )
        for outcome in reported.evaluation.outcomes
    )
    assert any(outcome.samples for outcome in outcomes)
    evaluation = dataclasses.replace(reported.evaluation, outcomes=outcomes)
    page = render(
        dataclasses.replace(report, evaluations=(dataclasses.replace(reported, evaluation=evaluation),))
    )
    assert "\\\\x1b]0;gone" in page
    for character in "\x1b\x9b\u202e\u2066":
        assert character not in page
        # Nor as an escape that the page's script would read as the character.
        assert not re.search(rf"(?<!\\)(\\\\)*\\u{ord(character):04x}", page)
