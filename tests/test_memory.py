"""Freed memory is given back to the system."""

from __future__ import annotations

import os
import platform

import numpy as np
import psutil

from compute.memory import give_back

ONE, NUMBER = 100_000, 2000


def resident() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)


def fragmented() -> list[np.ndarray]:
    """Use 200 MB in pieces that the C library takes from its heap, and free all but the last."""
    pieces = [np.ones(ONE, dtype=np.uint8) for _ in range(NUMBER)]
    return pieces[-1:]


def test_what_was_freed_is_given_back() -> None:
    kept = fragmented()
    before = resident()
    give_back()
    given = before - resident()
    assert kept[0].sum() == ONE
    if platform.libc_ver()[0] == "glibc":
        assert given > 0.8 * ONE * NUMBER
    else:
        assert given < ONE * NUMBER
