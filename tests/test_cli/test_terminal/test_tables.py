"""Tables are those that rich would print, without its import and in time that goes with their rows."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bankdb.errors import printable
from bankdb.shown import shown
from cli.tables import table_lines

VALUES = (
    st.none()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text("abc 漢é\x1b", max_size=12)
)


def by_rich(
    headings: list[str], rows: list[list[object]], title: str | None, width: int, bold: bool
) -> list[str]:
    table = Table(
        title=None if title is None else Text(printable(title)),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, heading in enumerate(headings):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(Text(printable(heading)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(value)) for value in row))
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=bold, color_system=None).print(table)
    return text.getvalue().splitlines()


@settings(max_examples=80)
@given(st.data(), st.integers(1, 5))
def test_a_table_is_the_one_that_rich_prints(data: st.DataObject, columns: int) -> None:
    headings = data.draw(
        st.lists(st.text("abc 漢é\x1b", min_size=1, max_size=8), min_size=columns, max_size=columns)
    )
    rows = data.draw(st.lists(st.lists(VALUES, min_size=columns, max_size=columns), max_size=6))
    title = data.draw(st.none() | st.just("a"))
    found = list(table_lines(headings, rows, title=title))
    expected = by_rich(headings, rows, title, 1000, bold=False)
    assert [line.rstrip() for line in found] == [line.rstrip() for line in expected]


def test_what_is_too_wide_for_a_terminal_is_folded() -> None:
    rows: list[list[object]] = [["a" * 50, 1], ["b", 22]]
    assert list(table_lines(["x", "n"], rows, width=40)) == by_rich(["x", "n"], rows, None, 40, bold=False)
    assert max(map(len, table_lines(["x", "n"], rows, width=40))) <= 40
    assert list(table_lines(["x", "n"], rows, width=60)) == list(table_lines(["x", "n"], rows))


def test_headings_are_bold_where_they_are_asked_to_be_and_nothing_else_is() -> None:
    lines = list(table_lines(["x", "n"], [["a", 1]], bold=True))
    assert lines[1] == " \x1b[1mx\x1b[0m   \x1b[1mn\x1b[0m "
    assert [line for line in lines if "\x1b" in line] == [lines[1]]


@pytest.mark.parametrize("width", [None, 40])
def test_twenty_thousand_rows_take_no_time(width: int | None) -> None:
    """rich takes a millisecond a row."""
    rows = [
        [f"a name of some length {index}", "group", index, 2 * index, 8, "float16", None]
        for index in range(20_000)
    ]
    begin = time.process_time()
    lines = list(table_lines(list("abcdefg"), rows, width=width))
    assert len(lines) == 20_004
    assert time.process_time() - begin < 4
