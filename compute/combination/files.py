"""The task of one panel of predictions that are written into the files of their adapters, each at its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import naming
from bankdb.arrays.remote import Location, located
from bankdb.scaled_rows import Sources
from compute.combination.merged.panels import PanelMerge
from compute.combination.panel import combine_into, narrowed, writing
from compute.combination.plan import Panel
from compute.combination.products import Float32
from compute.combination.staged_files import StagedFile, read_staged


def combine_into_files(
    adapters_path: str,
    group_path: str,
    folder: str,
    sources: Sources,
    panel: Panel,
    following: tuple[int, int] = (0, 0),
    flush: bool = False,
    merge: PanelMerge | None = None,
) -> int:
    """Compute a panel of the predictions of one run, and write it into their files; runs in a worker.

    One file is open at a time. Rows are written while the next block is multiplied, and the disk begins at once with
    what the kernel has, while sources are read.

    Parameters
    ----------
    adapters_path
        The adapters' array, its folder or URL.
    group_path
        Place with the array `coefficients` (N, N) of the run.
    folder
        Of the files that are being filled: see `compute.combination.staged_files`. Targets without a file are left out.
    flush
        Whether what is written is durable at the end. Else whoever waits for the panel flushes, in this machine.
    merge
        How the sources are merged; None for the weighted sum.

    Returns
    -------
    Bytes written.

    Raises
    ------
    BankFormatError, ComputeError, ArrayStoreUnavailableError
        See `combine_panel`.
    """
    files = {file.index: file for file in read_staged(Path(folder))}
    wanted = np.zeros(len(sources.rows), dtype=np.bool_)
    wanted[list(files)] = True
    written = 0

    def to_files(_: Location, start: int, rows: Float32) -> Callable[[], None]:
        chosen = [files[index] for index in range(start, start + len(rows)) if index in files]

        def write() -> None:
            nonlocal written
            written += _write_rows(Path(folder), chosen, start, rows, panel.start, flush)

        return write

    combine_into(to_files, adapters_path, [located(group_path)], sources, panel, following, wanted, merge)
    return written


def _write_rows(
    folder: Path, files: Sequence[StagedFile], start: int, rows: Float32, column: int, flush: bool
) -> int:
    """Write rows of targets from `start` on at their columns; return the bytes."""
    total = 0
    for file in files:
        values = narrowed(rows[file.index - start], file.dtype)
        place = folder / file.name
        with writing(folder), naming(place):
            descriptor = os.open(place, os.O_WRONLY)
            try:
                _write_at(descriptor, values, file.data + column * values.itemsize)
                if flush:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        total += values.nbytes
    return total


def _write_at(descriptor: int, values: NDArray[np.generic], offset: int) -> None:
    data = np.ascontiguousarray(values).view(np.uint8).data
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)
    if hasattr(os, "posix_fadvise"):
        # From the beginning on: the disk begins with these now, not when all is flushed; and of what was written
        # before, and is on the disk by now, the memory is used again, instead of memory that holds the bank.
        os.posix_fadvise(descriptor, 0, offset + len(data), os.POSIX_FADV_DONTNEED)
