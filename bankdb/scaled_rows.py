"""Rows of a bank as they are combined: each brought to the bank's scaling when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bankdb.arrays.adapter_store import AdapterStore
from bankdb.arrays.shard_format import Checksums, Float32
from bankdb.arrays.uncached import UncachedReader
from bankdb.bank import AdapterBank
from bankdb.errors import BankFormatError
from bankdb.peft.checks import check_scalings
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AdapterRecord


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The rows that are combined.

    Attributes
    ----------
    rows
        Rows of the adapters' array, shape (N,).
    ratios
        float32, shape (N,): each source's scaling over the bank's; 1 leaves it as it is.
    b_segments
        Half-open column ranges of the B factors.
    checksums
        uint32, shape (N, chunks): what the catalogue says that the rows' chunks end with, from `first_chunk` on. None
        compares nothing, for rows that no catalogue knows.
    first_chunk
        Number of the first of those chunks.
    """

    rows: NDArray[np.int64]
    ratios: Float32
    b_segments: tuple[tuple[int, int], ...]
    checksums: Checksums | None = None
    first_chunk: int = 0

    def within(self, start: int, stop: int, chunk: int) -> Sources:
        """Return the same rows for whoever reads columns `start` to `stop` alone: with fewer checksums to carry."""
        return replace(self, checksums=self._expected(start, stop, chunk), first_chunk=start // chunk)

    def _expected(self, start: int, stop: int, chunk: int) -> Checksums | None:
        if self.checksums is None:
            return None
        return self.checksums[:, start // chunk - self.first_chunk : -(-stop // chunk) - self.first_chunk]

    def read_into(
        self,
        panel: Float32,
        store: AdapterStore,
        which: Sequence[int],
        start: int,
        stop: int,
        uncached: UncachedReader | None = None,
    ) -> None:
        """Read columns of some sources as they are stored, into rows of `panel`; a foreign row is an error."""
        some = list(which)
        expected = self._expected(start, stop, store.chunk)
        store.read_into(
            self.rows[some].tolist(),
            start,
            stop,
            panel,
            uncached,
            None if expected is None else expected[some],
        )


def read_scaled(
    store: AdapterStore, sources: Sources, which: Sequence[int], start: int, stop: int
) -> Float32:
    """Read columns of some sources at the bank's scaling, shape (len(which), stop - start)."""
    panel = np.empty((len(which), stop - start), dtype=np.float32)
    read_scaled_into(panel, store, sources, which, start, stop)
    return panel


def read_scaled_into(
    panel: Float32,
    store: AdapterStore,
    sources: Sources,
    which: Sequence[int],
    start: int,
    stop: int,
    uncached: UncachedReader | None = None,
) -> None:
    """Read as `read_scaled` does, into rows of `panel` that are there already."""
    sources.read_into(panel, store, which, start, stop, uncached)
    ratios = sources.ratios[list(which)]
    scaled = np.flatnonzero(ratios != 1).tolist()
    if not scaled:
        return
    inside = [
        slice(max(first, start) - start, min(last, stop) - start)
        for first, last in sources.b_segments
        if first < stop and last > start
    ]
    with np.errstate(over="ignore"):  # whoever combines it looks at the result
        for position in scaled:
            for columns in inside:
                panel[position, columns] *= ratios[position]


def sources_of(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], progress: Progress | None = None
) -> Sources:
    """Return the rows to combine, with what brings each to the bank's scaling, and what each is known by.

    Raises
    ------
    BankFormatError
        Layout or scalings in the database are damaged, or a row of a bank that has no checksums yet is.
    """
    layout, scaling = bank.layout, bank.record.scaling
    check_scalings(adapters, layout.rank)
    assert scaling is not None, "a bank with adapters has a scaling"
    return Sources(
        rows=np.asarray([record.row for record in adapters], dtype=np.int64),
        ratios=np.asarray([record.scaling / scaling for record in adapters], dtype=np.float32),
        b_segments=layout.b_segments(),
        checksums=row_checksums(bank, adapters, progress),
    )


def row_checksums(
    bank: AdapterBank, adapters: Sequence[AdapterRecord], progress: Progress | None = None
) -> Checksums:
    """Return what the chunks of some rows end with, by the catalogue, shape (N, chunks).

    Of a bank of a version that kept none, they are made once, from rows whose sha256 is right.

    Raises
    ------
    BankFormatError
        Such a row is damaged, or the catalogue's checksums are not of this array.
    """
    lacking = [record for record in adapters if record.checksums is None]
    made: dict[int, bytes] = {}
    if lacking:
        progress = progress or SilentProgress()
        progress.note(
            f"the bank has no checksums of its chunks yet: reading {len(lacking)} rows once to make them"
        )
        progress.begin("checksums", len(lacking))
        for record in lacking:
            made[record.row] = bank.checked_row(record)[1].checksums.tobytes()
            progress.advance()
        progress.end()
        bank.ownership.set_checksums(
            {record.row: (record.row_sha256, made[record.row]) for record in lacking}
        )
    chunks = -(-bank.layout.size // bank.store.chunk)
    found = np.empty((len(adapters), chunks), dtype=np.uint32)
    for position, record in enumerate(adapters):
        stored = np.frombuffer(record.checksums or made[record.row], dtype="<u4")
        if len(stored) != chunks:
            raise BankFormatError(
                f"{bank.database_shown}: {record.name}: checksums of {chunks} chunks expected, {len(stored)} found; "
                "`bank verify --repair` makes them again"
            )
        found[position] = stored
    return found
