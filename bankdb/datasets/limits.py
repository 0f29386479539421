"""How much memory reading and tokenizing may take."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from bankdb.errors import ParameterError

_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_budget(asked: int | None) -> int:
    """Return the bytes that may be used: what was asked for, or half of what this process may have.

    Raises
    ------
    ParameterError
        Less than a byte was asked for.
    """
    if asked is not None:
        if asked < 1:
            raise ParameterError(f"memory: expected at least 1 byte, found {asked}; give a size such as 4GiB")
        return asked
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    stated = (Path(group).read_text().strip() for group in _GROUPS if os.path.isfile(group))
    limits += [int(text) for text in stated if text.isdecimal()]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min(limits) // 2
