"""Freed memory is given back to the system."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import numpy as np
import psutil
import pytest

from compute.cluster.memory import give_back, keep_freed

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


LARGE = 100 * 2**20


def use_large_arrays() -> None:
    """Print what is resident before, after, and after that is given back; and page faults of the second time."""

    def use() -> int:
        before = page_faults()
        for size in (LARGE, LARGE // 2):
            np.ones(size, np.uint8)
        return page_faults() - before

    keep_freed(2 * LARGE)
    before = resident()
    use()
    again, kept = use(), resident() - before
    keep_freed(0)
    print(json.dumps({"again": again, "kept": kept, "given": kept - (resident() - before)}))


def page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.parametrize("started", [True, False])
def test_freed_memory_is_kept_where_the_process_was_started_for_it(started: bool) -> None:
    """As much as the largest array that was freed, and given back when none is to be kept."""
    if platform.libc_ver()[0] != "glibc":
        started = False
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    if started:
        environment["MALLOC_ARENA_MAX"] = "1"
    program = f"from {__name__} import use_large_arrays; use_large_arrays()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    if started:
        assert 0.9 * LARGE < found["kept"] < 1.2 * LARGE
        assert found["given"] > 0.9 * LARGE
        assert found["again"] < 10
    else:
        assert found["kept"] < 0.2 * LARGE


def test_a_variable_that_is_set_later_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask sets a client's environment to that of its workers."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    keep_freed(LARGE)
    kept = fragmented()
    before = resident()
    give_back()
    assert kept[0].sum() == ONE
    if platform.libc_ver()[0] == "glibc":
        assert before - resident() > 0.8 * ONE * NUMBER
