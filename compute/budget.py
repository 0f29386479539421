"""Shares of a memory budget, in whole bytes."""

from __future__ import annotations


def roomy(budget: int) -> int:
    """Return the bytes of a budget that tasks use at the most where workers keep what these free for the next.

    The rest is for arrays that do not fit where others were.
    """
    return budget * 3 // 4


def mebibytes(size: int) -> str:
    """Return a size as messages show it."""
    return f"{size / 2**20:.0f} MiB"
