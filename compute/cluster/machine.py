"""What this machine, or the container that it looks like, has: memory and cores."""

from __future__ import annotations

from bankdb.errors import ParameterError


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
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)


def core_count() -> int:
    """Return the cores that this process may use: its affinity's, or its control group's."""
    from dask.system import CPU_COUNT

    return int(CPU_COUNT)


def memory_budget(asked: int | None) -> int:
    """Return the bytes that may be used: what was asked for, or half of the machine's memory."""
    if asked is None:
        return machine_memory() // 2
    if asked < 1:
        raise ParameterError(f"memory: expected at least 1 byte, found {asked}; give a size such as 4GiB")
    return asked
