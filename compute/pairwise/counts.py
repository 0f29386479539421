"""Token counts of a bank's datasets as zarr arrays, for workers, who never open the database."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import read_chunks
from bankdb.arrays.remote import Location
from bankdb.derived import delete_others, digest_of, find_group, texts_of, write_group
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from compute.metrics.distributions import TokenCounts

if TYPE_CHECKING:
    # Workers need no database, whose import takes as long as a tile.
    from bankdb.bank import AdapterBank


def write_distributions(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], progress: Progress
) -> tuple[Location, int]:
    """Write the counts of all adapters' datasets as zarr arrays; return their place and the largest support.

    The place is named by what it holds and appears whole or not at all; older ones are deleted.
    """
    made_from = digest_of(kind="distributions", **texts_of(bank, adapters))
    root = bank.array_path("distributions").absolute()
    path = root / made_from[:16]
    if find_group(bank, path, progress, made_from):
        return path, int(np.diff(_read(path, "indptr", None, None)).max())
    counts = token_counts(bank, adapters)
    delete_others(bank, root)
    arrays: dict[str, NDArray[Any]] = {
        "rows": np.asarray([record.row for record in adapters], dtype=np.int64),
        "indptr": counts.indptr,
        "ids": counts.ids,
        "counts": counts.counts,
        "vocabulary": np.asarray([counts.vocabulary], dtype=np.int64),
    }
    write_group(bank, path, made_from, arrays)
    return path, int(np.diff(counts.indptr).max())


def token_counts(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> TokenCounts:
    """Return the cached counts of the adapters' datasets, in their order."""
    rows = bank.catalog.token_counts([record.row for record in adapters])
    return TokenCounts.stack(rows, bank.record.vocabulary)


def read_counts(path: Location, start: int, stop: int) -> tuple[NDArray[np.int64], TokenCounts]:
    """Read the counts of the datasets whose row is in [start, stop), and those rows."""
    rows: NDArray[np.int64] = _read(path, "rows", None, None)
    first, last = contiguous(rows.tolist(), start, stop)
    indptr: NDArray[np.int64] = _read(path, "indptr", first, last + 1)
    ids = _read(path, "ids", int(indptr[0]), int(indptr[-1]))
    counts = _read(path, "counts", int(indptr[0]), int(indptr[-1]))
    vocabulary = int(_read(path, "vocabulary", 0, 1)[0])
    return rows[first:last], TokenCounts(indptr - indptr[0], ids, counts, vocabulary)


def _read(path: Location, name: str, first: int | None, last: int | None) -> NDArray[Any]:
    return read_chunks(path / name, [slice(first, last)], delete=path)


def contiguous(values: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """Return the positions in ascending `values` that lie in [start, stop), half-open."""
    return bisect_left(values, start), bisect_left(values, stop)
