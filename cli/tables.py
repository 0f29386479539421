"""Tables as text, of any number of rows: numbers to the right, text to the left, a line below the headings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from bankdb.errors import printable
from bankdb.shown import shown

# So many rows are folded into a terminal's width; of more, a line is a row all the same.
_MOST_FOLDED = 500


def table_lines(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    width: int | None = None,
    bold: bool = False,
    ascii_only: bool = False,
) -> Iterator[str]:
    """Yield the lines of a table.

    Parameters
    ----------
    width
        Columns of the terminal: a smaller table is folded into them. None does not fold.
    bold
        Print the headings so.
    ascii_only
        Escape other letters, and draw the line below the headings with hyphens.
    """
    body = [list(row) for row in rows]
    numeric = [
        bool(body) and all(isinstance(row[column], int | float) for row in body)
        for column in range(len(headings))
    ]
    cells = [[shown(value) for value in row] for row in body]
    head, rule = [printable(heading) for heading in headings], "─"
    if ascii_only:
        cells, rule = [[_escaped(cell) for cell in row] for row in cells], "-"
    columns = list(zip(head, *cells, strict=True))
    widths = [max(1, *map(columns_of, column)) for column in columns]
    needed = sum(widths) + 3 * len(widths) - 1
    if width is not None and needed > width and len(body) <= _MOST_FOLDED:
        yield from _folded(head, cells, numeric, title, width)
        return
    if title is not None:
        yield _padded(printable(title), needed)
    yield " " * needed
    yield _line(head, widths, numeric, bold)
    yield f" {rule * (needed - 2)} "
    for row in cells:
        yield _line(row, widths, numeric)
    yield " " * needed


def without_same(
    headings: Sequence[str], rows: Sequence[Sequence[object]], width: int | None
) -> tuple[list[str], list[list[object]], str]:
    """Leave out of a table that is too wide the columns, but the first, that say the same in each of several rows.

    Returns
    -------
    Headings, rows, and what those columns say, such as `rank 8, no licence`; empty where none is left out.
    """
    whole = list(headings), [list(row) for row in rows], ""
    if width is None:  # nothing is too wide: no cell is looked at
        return whole
    columns = [[shown(row[number]) for row in rows] for number in range(len(headings))]
    sizes = [
        max(map(columns_of, [printable(heading), *column]))
        for heading, column in zip(headings, columns, strict=True)
    ]
    alike = [number > 0 and len(set(column)) == 1 < len(column) for number, column in enumerate(columns)]
    if sum(sizes) + 3 * len(sizes) - 1 <= width or not any(alike):
        return whole
    said = [
        f"{heading} {column[0]}" if column[0] else f"no {heading}"
        for heading, column, same in zip(headings, columns, alike, strict=True)
        if same
    ]
    kept = [number for number, same in enumerate(alike) if not same]
    return [headings[n] for n in kept], [[row[n] for n in kept] for row in rows], ", ".join(said)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool], bold: bool = False) -> str:
    parts = [
        " " * (width - columns_of(cell.rstrip())) + cell.rstrip() if right else _padded(cell, width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    if bold:
        parts = [f"\x1b[1m{part}\x1b[0m" for part in parts]
    return f" {'   '.join(parts)} "


def _padded(text: str, width: int) -> str:
    return text + " " * (width - columns_of(text))


def _escaped(text: str) -> str:
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode()


def columns_of(text: str) -> int:
    """Return the columns of a terminal that a text takes: some letters take two, and marks on letters none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _folded(
    head: Sequence[str],
    cells: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    title: str | None,
    width: int,
) -> Iterator[str]:
    """Leave to rich, which takes longer to import than this takes, what has to be broken into lines.

    Words stay whole where there is room for the longest of each column, and columns stand nearer to each other.
    """
    import io

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=None if title is None else Text(printable(title)),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    longest = [
        max(columns_of(word) for cell in column for word in cell.split(" "))
        for column in zip(head, *cells, strict=True)
    ]
    room = sum(longest) + 2 * len(longest) <= width
    for heading, right, least in zip(head, numeric, longest, strict=True):
        justify: Literal["left", "right"] = "right" if right else "left"
        table.add_column(Text(heading), justify=justify, overflow="fold", min_width=least if room else None)
    for row in cells:
        table.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    yield from text.getvalue().splitlines()
