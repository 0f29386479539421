"""Memory that a process has freed and not given back to the system."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from pathlib import Path

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
# glibc's own: bytes at the end of the heap that stay, and arrays that are mapped one by one.
_USUAL_TRIM, _USUAL_MAPPED = 128 * 2**10, 65_536

_kept = 0


def keep_freed(size: int) -> None:
    """Let this process keep so many bytes that a task frees for the arrays of the next, or none.

    The C library maps each large array by itself and gives it back when it is freed: tasks of seconds then spend a
    fifth of their time on memory that the kernel clears for them again and again. What is kept is given back with
    the first task that may keep none.

    Only where the process was started for it, as workers of a local cluster are: with one heap for all of its
    threads (`MALLOC_ARENA_MAX=1`), the only one that can grow to any size. Other libraries than glibc are left alone.
    """
    global _kept
    if size == _kept or not _can_keep():
        return
    library = ctypes.CDLL(None)
    usual = int(os.environ.get("MALLOC_TRIM_THRESHOLD_", _USUAL_TRIM))
    library.mallopt(_MMAP_MAX, 0 if size else _USUAL_MAPPED)
    library.mallopt(_TRIM_THRESHOLD, min(size, 2**31 - 1) if size else usual)
    _kept = size
    give_back()


def give_back() -> None:
    """Give back what earlier tasks of this process freed, but what it is to keep; milliseconds.

    The C library keeps freed pieces below the last that is in use. Small ones of one stage would add to the
    large arrays of the next, which are planned to fill the budget. Other libraries than glibc are left alone.
    """
    if not _kept and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _can_keep() -> bool:
    """Whether this process was started with one heap; what its environment says by now tells nothing."""
    started = Path("/proc/self/environ")
    return (
        platform.libc_ver()[0] == "glibc"
        and started.is_file()
        and b"MALLOC_ARENA_MAX=1" in started.read_bytes().split(b"\0")
    )
