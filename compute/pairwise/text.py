"""Matrices as text, CSV or JSON, a band of rows at a time: of thousands of datasets the text is gigabytes."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bankdb.errors import printable
from compute.cluster.machine import core_count
from compute.pairwise.plan import CHUNK_ROWS

# Entries of a band: 8 MiB of numbers, and some 20 MB of text, of which a few are there at once.
_BAND_ENTRIES = 2**20


class Banded(Protocol):
    """What of a matrix is needed here."""

    @property
    def names(self) -> list[str]:
        """Names of the N targets, and of the N sources."""

    def band(self, start: int, stop: int) -> NDArray[np.float64]:
        """Return the rows of some targets, shape (stop - start, N)."""


def matrices_csv(matrices: Sequence[Banded], labels: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield matrices below each other as CSV; where there are several, leading columns say which is which.

    All digits of a number are there, and no more than tell it from others. What a terminal would obey is escaped in
    names; in numbers nobody has to look for it.
    """
    keys = list(labels[0]) if len(matrices) > 1 else []
    yield _line([*keys, "target", *matrices[0].names]) + "\n"
    for matrix, label in zip(matrices, labels, strict=True):
        before = [label[key] for key in keys]
        for names, rows in _rows(matrix):
            # A row at a time: of a band, the text would be copied once more.
            for name, row in zip(names, rows, strict=True):
                yield f"{_line([*before, name])},{row}\n"


def values_json(matrix: Banded) -> Iterator[str]:
    """Yield the values of a matrix as JSON: a list of lists, a row a line."""
    separator = "[\n"
    for _, rows in _rows(matrix):
        yield separator + ",\n".join([f"[{row}]" for row in rows])
        separator = ",\n"
    yield "[]" if separator == "[\n" else "\n]"


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    # Cells with the line's end in them are quoted.
    csv.writer(text, lineterminator="\n").writerow(cells)
    return printable(text.getvalue().removesuffix("\n"), keep="\n\t")


def _rows(matrix: Banded) -> Iterator[tuple[Sequence[str], list[str]]]:
    """Yield the names of some targets, and their rows with commas between; the next are made meanwhile."""
    names = matrix.names
    height = band_rows(len(names))
    workers = core_count()

    def made(start: int) -> tuple[Sequence[str], list[str]]:
        stop = min(start + height, len(names))
        return names[start:stop], joined(matrix.band(start, stop))

    waiting: deque[Future[tuple[Sequence[str], list[str]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="text") as pool:
        try:
            for start in range(0, len(names), height):
                waiting.append(pool.submit(made, start))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def band_rows(columns: int) -> int:
    """Return how many rows of a matrix are handled at once: whole chunks, as they are stored."""
    return max(1, _BAND_ENTRIES // max(1, columns) // CHUNK_ROWS) * CHUNK_ROWS


def joined(values: NDArray[np.float64]) -> list[str]:
    """Return the numbers of each row, shape (rows, columns), with commas between: the shortest text of each."""
    import orjson

    if not np.isfinite(values).all():
        return [",".join(map(repr, row)) for row in values.tolist()]  # JSON has no text for these
    # Some 30 ns a number: twice as quick as by Arrow on two cores, though under the interpreter's lock.
    return [
        str(memoryview(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))[1:-1], "ascii")
        for row in np.ascontiguousarray(values)
    ]
