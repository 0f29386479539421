"""Reads mutated adapters under limits on time and memory; a line of JSON for each. Arguments: folder, first, number."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from bankdb.errors import AdapterError
from bankdb.peft.checks import check_range
from bankdb.peft.weights import WEIGHTS_NAME, load_adapter, source_file
from tests.support.banks.mutated_adapters import write_mutated

# Seconds of processor time, of this process and those it starts; so many more by the clock say that it hangs.
MEMORY, SECONDS, HANGS, LONGEST = 2**30, 10, 100, 2500


def outcome(folder: Path) -> str:
    """Read an adapter; say what came of it: 'stored', 'refused', or what is wrong with that."""
    try:
        adapter = load_adapter(folder)
        check_range(adapter, folder)
    except AdapterError as error:
        text = str(error)
        named = str(folder) in text
        return (
            "refused"
            if named and text.isprintable() and len(text) <= LONGEST
            else f"bad message {text[:300]!r}"
        )
    raw = (folder / WEIGHTS_NAME).read_bytes()
    if not adapter.notes and source_file(adapter.vector, adapter.layout, adapter.header) != raw:
        return "not bit for bit"
    # The library's own reading, by the file's own names: the same numbers in the same order of modules.
    try:
        oracle: dict[str, Any] = load_file(folder / WEIGHTS_NAME)
    except TypeError:  # it knows no bfloat16
        return "stored"
    found = adapter.layout.unflatten(adapter.vector)
    same = sorted((a.shape, a.astype(np.float32).tobytes()) for a in oracle.values())
    return "stored" if same == sorted((a.shape, a.tobytes()) for a in found.values()) else "read otherwise"


class TooLongError(BaseException):
    """No error of the program's, so that nothing in it takes it for one."""


def too_long(*_: object) -> None:
    raise TooLongError


def used() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    folder, first, number = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGALRM, too_long)
    for seed in range(first, first + number):
        one = write_mutated(folder / str(seed), seed)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
        signal.alarm(HANGS)
        start = used()
        try:
            what = outcome(one)
        except BaseException as error:
            what = f"{type(error).__name__}: {error}"[:300]
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(json.dumps([seed, what, round(used() - start, 2)]), flush=True)
        shutil.rmtree(one)


if __name__ == "__main__":
    main()
