"""Token counts of a bank's datasets as zarr arrays, for workers, who never open the database."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.durable import delete_tree, folders_in
from bankdb.arrays.remote import Location
from bankdb.arrays.zarr_arrays import (
    appearing_group,
    array_store,
    ensure_group,
    is_whole,
    open_array,
    read_region,
)
from bankdb.records import AdapterRecord
from compute.metrics.distributions import TokenCounts

if TYPE_CHECKING:
    # Workers need no database, whose import takes as long as a tile.
    from bankdb.bank import AdapterBank

AGAIN = "run the same command again: it is computed again"
_COUNTS_CHUNK = 1 << 20
_COUNTS = ("rows", "indptr", "ids", "counts", "vocabulary")


def write_distributions(bank: AdapterBank, adapters: Sequence[AdapterRecord]) -> tuple[Location, int]:
    """Write the counts of all adapters' datasets as zarr arrays; return their place and the largest support.

    The place is named by what it holds and appears whole or not at all; older ones are deleted.
    """
    text = " ".join(f"{record.row}:{record.content_sha256}" for record in adapters)
    digest = hashlib.sha256(f"{bank.record.tokenizer_fingerprint} {text}".encode()).hexdigest()
    root = bank.array_path("distributions").absolute()
    ensure_group(root)
    path = root / digest[:16]
    if is_whole(path) and all((path / name / "zarr.json").is_file() for name in _COUNTS):
        indptr = _read(path, "indptr", None, None)
        return path, int(np.diff(indptr).max())
    counts = token_counts(bank, adapters)
    for old in folders_in(root):
        delete_tree(old)
    values: tuple[NDArray[Any], ...] = (
        np.asarray([record.row for record in adapters], dtype=np.int64),
        counts.indptr,
        counts.ids,
        counts.counts,
        np.asarray([counts.vocabulary], dtype=np.int64),
    )
    with appearing_group(path) as unfinished:
        for name, array in zip(_COUNTS, values, strict=True):
            _write_plain(unfinished / name, array)
    return path, int(np.diff(counts.indptr).max())


def _write_plain(path: Location, values: NDArray[Any]) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    array = zarr.create_array(
        array_store(path),
        shape=values.shape,
        chunks=(min(len(values), _COUNTS_CHUNK),),
        dtype=values.dtype,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        zarr_format=3,
    )
    array[:] = values


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
    return read_region(open_array(path / name), slice(first, last), f"delete {path}; {AGAIN}")


def contiguous(values: Sequence[int], start: int, stop: int) -> tuple[int, int]:
    """Return the positions in ascending `values` that lie in [start, stop), half-open."""
    return bisect_left(values, start), bisect_left(values, stop)
