"""How a bank and what was computed from it show themselves: a few lines of text, or a small table in a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from bankdb.errors import printable

_HASH = re.compile(r"-[0-9a-f]{16}$")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def metric_text(key: str) -> str:
    """Return a metric's key as people read it, without the hash that keeps its other parameters apart."""
    return _HASH.sub("", key)


def text_summary(title: str, facts: Mapping[str, object]) -> str:
    """Return a title, and a line for each fact."""
    return "\n".join([title, *(f"  {name}: {shown(value)}" for name, value in facts.items())])


def html_summary(
    title: str,
    facts: Mapping[str, object],
    headings: Sequence[str] = (),
    rows: Iterable[Sequence[object]] = (),
    more: int = 0,
) -> str:
    """Return a title, facts and the first rows of a table as HTML; `more` is how many rows are not shown."""
    lines = "".join(f"<br>{escape(name)}: {escape(shown(value))}" for name, value in facts.items())
    table = ""
    body = "".join(_row("td", row) for row in rows)
    if body:
        rest = f"<p>and {more:,} more</p>" if more > 0 else ""
        table = f"<table><thead>{_row('th', headings)}</thead><tbody>{body}</tbody></table>{rest}"
    return f"<div><p><strong>{escape(title)}</strong>{lines}</p>{table}</div>"


def shown(value: object) -> str:
    """Return a value as people read it: four digits of a fraction, thousands apart, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def size_text(size: int) -> str:
    """Return bytes in the unit that suits them."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {_UNITS[unit]}" if value < 1000 else f"{value:.0f} {_UNITS[unit]}"


def _row(cell: str, values: Iterable[object]) -> str:
    return "<tr>" + "".join(f"<{cell}>{escape(shown(value))}</{cell}>" for value in values) + "</tr>"
