"""Entries of stored matrices. Loads little: processes that read bands of one import this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import read_chunks
from bankdb.arrays.remote import Location, located


@dataclass(frozen=True, slots=True)
class StoredRows:
    """What another process needs to read a matrix.

    Attributes
    ----------
    path
        The array, as text that any process understands.
    rows
        Those of the N adapters within the array; they are its columns too.
    """

    path: str
    rows: list[int]

    def band(self, start: int, stop: int) -> NDArray[np.float64]:
        """See `read_band`."""
        return read_band(located(self.path), self.rows, start, stop)


def read_entries(path: Location, selection: tuple[slice, slice] | None = None) -> NDArray[np.float64]:
    """Read entries of the matrix, all if None; those of chunks that are not there are NaN."""
    return read_chunks(path, selection, missing=True)


def read_band(path: Location, rows: Sequence[int], start: int, stop: int) -> NDArray[np.float64]:
    """Read the entries of targets in [start, stop) of N adapters, shape (stop - start, N).

    Raises
    ------
    BankFormatError
        A chunk is damaged.
    """
    some = np.asarray(rows[start:stop])
    values = read_entries(path, (slice(some[0], some[-1] + 1), slice(None)))
    if len(some) < len(values) or len(rows) < values.shape[1]:
        values = values[np.ix_(some - some[0], np.asarray(rows))]
    return values
