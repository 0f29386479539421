"""Shapes what goes into error messages, so that each stays one readable line."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(found: object, most: int = 160) -> str:
    """What another library says, on one line of at most so many characters."""
    text = " ".join(str(found).split())
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(text: str) -> str:
    """The text with whatever cannot be shown, such as a line break, escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]
