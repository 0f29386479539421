"""Matrices as text, CSV or JSON, a band of rows at a time: of thousands of datasets the text is gigabytes."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import printable
from compute.cluster.machine import core_count
from compute.pairwise.plan import CHUNK_ROWS
from compute.pairwise.stored import StoredRows
from compute.pairwise.text_processes import MOST_PROCESSES, digits, started, text_rows

# Entries of a band: 8 MiB of numbers, and some 20 MB of text, of which a few are there at once.
_BAND_ENTRIES = 2**20


class Banded(Protocol):
    """What of a matrix is needed here."""

    @property
    def names(self) -> list[str]:
        """Names of the N targets, and of the N sources."""

    @property
    def stored(self) -> StoredRows | None:
        """Where other processes read it; None if it is in memory."""

    def band(self, start: int, stop: int) -> NDArray[np.float64]:
        """Return the rows of some targets, shape (stop - start, N)."""


def matrices_csv(matrices: Sequence[Banded], labels: Sequence[Mapping[str, str]]) -> Generator[str]:
    """Yield what `csv_bytes` does as text, for a terminal."""
    with closing(csv_bytes(matrices, labels)) as parts:
        for part in parts:
            yield str(part, "utf-8")


def csv_bytes(matrices: Sequence[Banded], labels: Sequence[Mapping[str, str]]) -> Generator[bytes]:
    """Yield matrices below each other as CSV; where there are several, leading columns say which is which.

    All digits of a number are there, and no more than tell it from others. What a terminal would obey is escaped in
    names; in numbers nobody has to look for it. Close it where not all is taken: processes may be at work.

    Raises
    ------
    BankFormatError, ComputeError
        A stored matrix is damaged, or a process that helps was killed.
    """
    keys = list(labels[0]) if len(matrices) > 1 else []
    yield (_line([*keys, "target", *matrices[0].names]) + "\n").encode()
    for matrix, label in zip(matrices, labels, strict=True):
        before = [label[key] for key in keys]
        with closing(_rows(matrix)) as rows:
            for name, row in zip(matrix.names, rows, strict=True):
                yield f"{_line([*before, name])},".encode()
                # By itself: of many datasets it is not worth a copy.
                yield row
                yield b"\n"


def values_json(matrix: Banded) -> Generator[str]:
    """Yield the values of a matrix as JSON: a list of lists, a row a line. Raises, and is closed, as `csv_bytes`."""
    separator = "[\n"
    with closing(_rows(matrix)) as rows:
        for row in rows:
            yield f"{separator}[{str(row, 'ascii')}]"
            separator = ",\n"
    yield "[]" if separator == "[\n" else "\n]"


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    # Cells with the line's end in them are quoted.
    csv.writer(text, lineterminator="\n").writerow(cells)
    return printable(text.getvalue().removesuffix("\n"), keep="\n\t")


def _rows(matrix: Banded) -> Generator[bytes]:
    """Yield the rows of a matrix with commas between numbers; the next are made meanwhile."""
    size, workers, stored = len(matrix.names), core_count(), matrix.stored
    height = band_rows(size)

    def made(start: int, stop: int) -> list[bytes]:
        return joined(matrix.band(start, stop))

    # What is held is not large enough for processes, and would have to be sent to them.
    count = min(workers, MOST_PROCESSES, -(-size // height))
    processes = started(stored, height, count) if stored is not None and count > 1 else []
    if processes:
        yield from text_rows(processes, size, height, made)
    else:
        yield from _threaded(made, size, height, workers)


def _threaded(
    made: Callable[[int, int], list[bytes]], size: int, height: int, workers: int
) -> Generator[bytes]:
    """Yield the rows of N = `size`, made a band of `height` at a time by threads, of which numbers keep one busy."""
    waiting: deque[Future[list[bytes]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="text") as pool:
        try:
            for start in range(0, size, height):
                waiting.append(pool.submit(made, start, min(start + height, size)))
                if len(waiting) > workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def band_rows(columns: int) -> int:
    """Return how many rows of a matrix are handled at once: whole chunks, as they are stored."""
    return max(1, _BAND_ENTRIES // max(1, columns) // CHUNK_ROWS) * CHUNK_ROWS


def joined(values: NDArray[np.float64]) -> list[bytes]:
    """Return the numbers of each row, shape (rows, columns), with commas between: the shortest text of each."""
    if not np.isfinite(values).all():
        # JSON has no text for these.
        return [",".join(map(repr, row)).encode() for row in values.tolist()]
    return [bytes(digits(row)) for row in np.ascontiguousarray(values)]
