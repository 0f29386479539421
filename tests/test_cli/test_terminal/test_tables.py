"""Tables are those that rich would print, without its import and in time that goes with their rows."""

from __future__ import annotations

import io
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bankdb.errors import printable
from bankdb.shown import shown
from cli.tables import columns_of, table_lines, without_same

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
    lines = list(table_lines(["x", "n"], rows, width=40))
    assert "".join(lines).count("a") == 50
    assert max(map(len, lines)) <= 40
    assert list(table_lines(["x", "n"], rows, width=60)) == list(table_lines(["x", "n"], rows))


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.text("abcdef", min_size=1, max_size=9), min_size=1, max_size=6), min_size=3, max_size=5
    )
)
def test_words_stay_whole_where_each_columns_longest_fits(cells: list[list[str]]) -> None:
    headings = [f"heading{n}" for n in range(len(cells))]
    row: list[object] = [" ".join(words) for words in cells]
    width = sum(max(9, *map(len, words)) for words in cells) + 2 * len(cells) + 2
    lines = list(table_lines(headings, [row], width=width))
    assert max(map(len, lines)) <= width
    shown_words = Counter(word for line in lines[3:] for word in line.split())
    assert shown_words == Counter(word for words in cells for word in words)


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


@settings(max_examples=80)
@given(st.data(), st.integers(1, 5), st.integers(0, 4), st.none() | st.integers(4, 60))
def test_what_each_row_says_alike_is_said_once(
    data: st.DataObject, columns: int, number: int, width: int | None
) -> None:
    headings = [f"h{n}" for n in range(columns)]
    values = data.draw(st.lists(VALUES, min_size=1, max_size=2))
    row = st.lists(st.sampled_from(values), min_size=columns, max_size=columns)
    rows: list[list[object]] = data.draw(st.lists(row, min_size=number, max_size=number))
    kept, cells, said = without_same(headings, rows, width)
    whole = list(table_lines(headings, rows))
    assert (kept, cells, said) == (headings, rows, "") or (
        width is not None and columns_of(whole[-1]) > width
    )
    assert kept[:1] == headings[:1]
    places = [headings.index(one) for one in kept]
    assert cells == [[one[place] for place in places] for one in rows]
    for place in set(range(columns)) - set(places):
        assert len(rows) > 1
        (only,) = {shown(one[place]) for one in rows}
        assert (f"h{place} {only}" if only else f"no h{place}") in said


def test_names_of_a_usual_bank_are_whole_in_80_columns() -> None:
    headings = ("name", "group", "examples", "tokens", "rank", "dtype", "licence")
    names = [f"blimp_regular_plural_subject_verb_agreement_{n}" for n in range(3)]
    rows = [[name, "blimp", 200, 8_000 + n, 8, "float16", None] for n, name in enumerate(names)]
    kept, cells, said = without_same(headings, rows, 80)
    lines = list(table_lines(kept, cells, width=80))
    assert all(any(name in line for line in lines) for name in names)
    assert max(map(len, lines)) <= 80
    assert said.endswith("rank 8, dtype float16, no licence")
