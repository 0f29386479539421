"""Preloaded by workers of `dask_processes`: the functions of each stage look for an order before they begin.

An order is a file of the folder in `FAULTS`, named after the stage: `begin`, `flush` or `end` kills the
worker there, by SIGKILL, once in the whole cluster; `always` kills every worker that begins the stage;
`hold` waits for as long as the file is there, but for one piece if there is a file STAGE-pass. `flush` is when
the piece is written and not yet on the disk.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

# Stage: module and name of the task's function, and of what it flushes by.
STAGES = {
    "distances": ("compute.pairwise.tile", "compute_tile", "bankdb.arrays.chunks", "fsync_written"),
    "gram": ("compute.gram.slices", "gram_slice", "bankdb.arrays.chunks", "fsync_written"),
    "combine": ("compute.combination.panel", "combine_panel", "compute.combination.panel", "fsync_folders"),
}
# The stage whose task runs; workers have one thread.
_running: list[str] = []


def _order(stage: str) -> str:
    try:
        return Path(os.environ["FAULTS"], stage).read_text().strip()
    except FileNotFoundError:
        return ""


def _claim(stage: str, mark: str = "killed") -> bool:
    """Whether this worker is the one that the order is for."""
    path = Path(os.environ["FAULTS"], stage)
    try:
        path.rename(path.with_name(f"{stage}-{mark}-{os.getpid()}"))
    except FileNotFoundError:
        return False
    return True


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _arm(stage: str, module_name: str, task: str, flush_module: str, flush: str) -> None:
    module, flusher = importlib.import_module(module_name), importlib.import_module(flush_module)
    function, flushing = getattr(module, task), getattr(flusher, flush)

    @functools.wraps(function)
    def armed(*args: Any, **options: Any) -> Any:
        order = _order(stage)
        if order == "always" or (order == "begin" and _claim(stage)):
            _die()
        while _order(stage) == "hold" and not _claim(f"{stage}-pass", "used"):
            time.sleep(0.02)
        _running[:] = [stage]
        result = function(*args, **options)
        if _order(stage) == "end" and _claim(stage):
            _die()
        return result

    @functools.wraps(flushing)
    def flush_armed(*args: Any, **options: Any) -> Any:
        if _running == [stage] and _order(stage) == "flush" and _claim(stage):
            _die()
        return flushing(*args, **options)

    setattr(module, task, armed)
    setattr(flusher, flush, flush_armed)


def dask_setup(worker: Any) -> None:
    for stage, names in STAGES.items():
        _arm(stage, *names)
