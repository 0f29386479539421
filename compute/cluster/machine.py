"""What this machine, or the container that it looks like, has: memory and cores."""

from __future__ import annotations

from bankdb.errors import ParameterError

_SIZES = {"": 1, "B": 1, "K": 1024, "KB": 1000, "KIB": 1024, "M": 2**20, "MB": 10**6, "MIB": 2**20,
          "G": 2**30, "GB": 10**9, "GIB": 2**30, "T": 2**40, "TB": 10**12, "TIB": 2**40}  # fmt: skip


def parse_memory(text: str) -> int:
    """Return bytes from text such as `4GiB`, `500MB` or `1073741824`.

    Raises
    ------
    ParameterError
        The text is not a positive size.
    """
    compact = text.strip().replace(" ", "").upper()
    number = compact.rstrip("BKMGTI")
    factor = _SIZES.get(compact[len(number) :])
    try:
        size = float(number) * (factor or 0)
    except ValueError:
        size = 0.0
    if not 1 <= size < 2**60:
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
