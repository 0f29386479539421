"""Memory that a process has freed and not given back to the system."""

from __future__ import annotations

import ctypes
import platform


def give_back() -> None:
    """Give back what earlier tasks of this process freed; milliseconds.

    The C library keeps freed pieces below the last that is in use. Small ones of one stage would add to the
    large arrays of the next, which are planned to fill the budget. Other libraries than glibc are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
