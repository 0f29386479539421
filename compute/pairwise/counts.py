"""Token counts of a bank's datasets as zarr arrays, for workers, who never open the database.

They are kept in blocks of rows, so that an adapter more makes one block anew, and a tile reads those that it needs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.chunks import read_chunks
from bankdb.arrays.remote import Location, located
from bankdb.derived import delete_others, digest_of, find_group, texts_of, write_group
from bankdb.progress import Progress
from bankdb.records import AdapterRecord
from compute.metrics.distributions import TokenCounts

if TYPE_CHECKING:
    # Workers need no database, whose import takes as long as a tile.
    from bankdb.bank import AdapterBank

BLOCK_ROWS = 1024
"""Row numbers of the bank whose datasets are in one block, whole chunks of the distance matrix."""


@dataclass(frozen=True, slots=True)
class StoredCounts:
    """Where the counts of a bank's datasets are.

    Attributes
    ----------
    folders
        Of each block, by its number: row numbers divided by `BLOCK_ROWS`. Folders, or URLs.
    """

    folders: dict[int, str]

    def blocks(self, start: int, stop: int) -> list[Location]:
        """Return the places of the blocks that hold rows in [start, stop)."""
        numbers = range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS))
        return [located(self.folders[number]) for number in numbers if number in self.folders]


def write_distributions(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], progress: Progress
) -> tuple[StoredCounts, int]:
    """Write the counts of all adapters' datasets as zarr arrays; return their places and the largest support.

    A block is named by what it holds and appears whole or not at all; older ones are deleted.
    """
    root = bank.array_path("distributions").absolute()
    folders: dict[int, str] = {}
    largest = 0
    for number, records in groupby(adapters, key=lambda record: record.row // BLOCK_ROWS):
        block = list(records)
        made_from = digest_of(kind="distributions", **texts_of(bank, block))
        path = root / made_from[:16]
        if not find_group(bank, path, progress, made_from):
            _write_block(bank, block, path, made_from)
        folders[number] = str(path)
        largest = max(largest, int(np.diff(_read(path, "indptr", None, None)).max()))
    delete_others(bank, root, keep=[located(folder).name for folder in folders.values()])
    return StoredCounts(folders), largest


def _write_block(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], path: Location, made_from: str
) -> None:
    counts = token_counts(bank, adapters)
    arrays: dict[str, NDArray[Any]] = {
        "rows": np.asarray([record.row for record in adapters], dtype=np.int64),
        "indptr": counts.indptr,
        "ids": counts.ids,
        "counts": counts.counts,
        "vocabulary": np.asarray([counts.vocabulary], dtype=np.int64),
    }
    write_group(bank, path, made_from, arrays)


def token_counts(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> TokenCounts:
    """Return the cached counts of the adapters' datasets, in their order."""
    rows = bank.catalog.token_counts([record.row for record in adapters])
    return TokenCounts.stack(rows, bank.record.vocabulary)


def read_counts(stored: StoredCounts, start: int, stop: int) -> tuple[NDArray[np.int64], TokenCounts]:
    """Read the counts of the datasets whose row is in [start, stop), and those rows."""
    parts = [_read_block(path, start, stop) for path in stored.blocks(start, stop)]
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([rows for rows, _ in parts])
    ends = np.cumsum([0, *(len(counts.ids) for _, counts in parts)])
    pointers = [counts.indptr[:-1] + end for (_, counts), end in zip(parts, ends[:-1], strict=True)]
    return rows, TokenCounts(
        np.concatenate([*pointers, ends[-1:]]),
        np.concatenate([counts.ids for _, counts in parts]),
        np.concatenate([counts.counts for _, counts in parts]),
        parts[0][1].vocabulary,
    )


def _read_block(path: Location, start: int, stop: int) -> tuple[NDArray[np.int64], TokenCounts]:
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
