"""What this machine, or the container that it looks like, has: memory and cores.

Counted as Dask counts for its workers, and tests hold that; but Dask's own modules take longer to import than one
new dataset takes to be predicted for.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
from pathlib import Path

from bankdb.errors import ParameterError

_GROUPS = Path("/sys/fs/cgroup")
# Of control groups of the first and the second version.
_MEMORY_LIMITS = (
    "memory/memory.limit_in_bytes",
    "memory/memory.soft_limit_in_bytes",
    "memory.max",
    "memory.high",
    "memory.low",
)
_QUOTAS = ("cpuacct,cpu", "cpu,cpuacct")


def parse_memory(text: str) -> int:
    """Return bytes from text such as `4GiB`, `500MB` or `1073741824`.

    Raises
    ------
    ParameterError
        The text is not a positive size.
    """
    from dask.utils import parse_bytes

    compact = text.replace(" ", "")
    try:
        # `4G` is 4GiB here, as users of memory mean it; to the library it is 4GB.
        size = parse_bytes(compact + "iB" if compact[-1:].upper() in tuple("KMGT") else compact)
    except (ValueError, OverflowError):
        size = 0
    # A unit without a number is one of it to the library.
    if not compact or compact[0].isalpha() or not 1 <= size < 2**60:
        raise ParameterError(f"memory: expected a size such as 4GiB or 500MB, found {text!r}")
    return int(size)


def machine_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its control group's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [int(text) for text in map(_stated, _MEMORY_LIMITS) if text.isdecimal()]
    limits.append(resource.getrlimit(resource.RLIMIT_RSS)[1])
    return min(limit for limit in limits if limit > 0)  # without a limit, that of a process is -1


def core_count() -> int:
    """Return the cores that this process may use: its affinity's, or its control group's."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = os.cpu_count() or 1 if affinity is None else len(affinity(0))
    quota = _quota()
    return cores if quota is None else min(cores, quota)


def _quota() -> int | None:
    """Return the cores that a control group allows, rounded up; None if it does not limit them."""
    found = [[_stated(f"{name}/cpu.cfs_{what}_us") for what in ("quota", "period")] for name in _QUOTAS]
    with contextlib.suppress(OSError):
        group = Path("/proc/self/cgroup").read_text().strip().split(":")[-1].strip("/")
        found.append(_stated(f"{group}/cpu.max").split())
    for pair in found:
        if len(pair) == 2 and all(text.isdecimal() and int(text) for text in pair):
            return math.ceil(int(pair[0]) / int(pair[1]))
    return None


def _stated(name: str) -> str:
    """Return what a file of this process's control group says; empty if there is none."""
    try:
        return (_GROUPS / name).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def memory_budget(asked: int | None) -> int:
    """Return the bytes that may be used: what was asked for, or half of the machine's memory."""
    if asked is None:
        return machine_memory() // 2
    if asked < 1:
        raise ParameterError(f"memory: expected at least 1 byte, found {asked}; give a size such as 4GiB")
    return asked
