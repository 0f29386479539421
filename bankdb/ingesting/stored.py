"""A prepared pair stored, whole or not at all, and the report told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bankdb.arrays.adapter_store import StoredRow, Vector
from bankdb.errors import ArrayStoreUnavailableError, BankError, ComputeError, DatabaseUnavailableError
from bankdb.ingesting.prepared import Prepared
from bankdb.ingesting.report import IngestOptions, IngestReport
from bankdb.peft.opened import FreedVectors
from bankdb.records import NewAdapter, Pair, RefusedPair
from bankdb.storage.stored_bank import StoredBank
from bankdb.storage.storing import Storing

# Bytes of a row from which on it is worth to write it beside others.
_LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class BegunPair:
    """A pair whose row is reserved, and still to be written."""

    prepared: Prepared
    storing: Storing

    def write(self) -> None:
        """Write its row, while the bank is used by others."""
        self.storing.write(beside=True)


@dataclass(frozen=True, slots=True)
class PairStore:
    """Stores pairs that were prepared, or reports why it does not; all but writing rows is done by one thread.

    `stored` is called with the row and the vector of each that was stored.
    """

    bank: StoredBank
    options: IngestOptions
    report: IngestReport
    freed: FreedVectors
    stored: Callable[[int, Vector], None]

    def begin(self, pair: Pair, outcome: Future[Prepared | None]) -> BegunPair | None:
        """Reserve a row. None where no more is to be done: of a small one all is done at once.

        Raises
        ------
        ArrayStoreUnavailableError, ComputeError, DatabaseUnavailableError
            The store, who counts, or the database failed.
        """
        with self._reporting(pair):
            prepared = outcome.result()
            if prepared is None:
                _refresh_labels(self.bank, pair)
                self.report.skipped.append(pair.name)
                return None
            begun = BegunPair(prepared, Storing(self.bank, pair.name, prepared.adapter))
            if prepared.adapter.vector.nbytes >= _LARGE:
                return begun
            begun.storing.write()
            self._finish(begun)
        return None

    def end(self, begun: BegunPair) -> None:
        """Make a pair ready whose row is written. Raises as `begin` does."""
        with self._reporting(begun.prepared.pair):
            self._finish(begun)

    @contextmanager
    def _reporting(self, pair: Pair) -> Iterator[None]:
        """Report what refuses a pair."""
        try:
            yield
        except (ArrayStoreUnavailableError, ComputeError, DatabaseUnavailableError):
            raise  # no fault of the pair's, and the others would fare no better
        except BankError as error:
            self.report.refused.append(RefusedPair(pair.name, str(error)))

    def _finish(self, begun: BegunPair) -> None:
        prepared, report = begun.prepared, self.report
        name, new = prepared.pair.name, partial(_new_adapter, prepared)
        added, replaced = begun.storing.finish(new, replace=self.options.replace)
        if added:
            self.stored(begun.storing.row, prepared.adapter.vector)
        self.freed.give(prepared.adapter.vector)
        if not added:
            report.skipped.append(name)
            return
        (report.replaced if replaced else report.added).append(name)
        for note in (*prepared.adapter.notes, *prepared.counted.notes):
            report.notes.setdefault(note, []).append(name)


def _refresh_labels(bank: StoredBank, pair: Pair) -> None:
    """Take over a group or licence that the source states now and the bank does not have."""
    present = bank.catalog.adapter(pair.name)
    group, licence = pair.group or present.group, pair.licence or present.licence
    if (group, licence) != (present.group, present.licence):
        bank.catalog.set_group(pair.name, group, licence)


def _new_adapter(prepared: Prepared, row: int, stored: StoredRow) -> NewAdapter:
    pair, adapter = prepared.pair, prepared.adapter
    return NewAdapter(
        name=pair.name,
        row=row,
        rank=adapter.config.rank,
        alpha=adapter.config.alpha,
        use_rslora=adapter.config.use_rslora,
        scaling=adapter.config.scaling,
        dtype=adapter.dtype,
        source=pair.adapter_source,
        revision=pair.adapter_revision,
        source_sha256=adapter.sha256,
        header=adapter.header,
        config=adapter.config.text,
        row_sha256=stored.sha256,
        checksums=stored.checksums.tobytes(),
        licence=pair.licence,
        group=pair.group,
        dataset_source=pair.dataset_source,
        dataset_revision=pair.dataset_revision,
        content_sha256=prepared.counted.content_sha256,
        examples=prepared.counted.examples,
        ids=prepared.counted.histogram.ids.astype("<u4").tobytes(),
        counts=prepared.counted.histogram.counts.astype("<u4").tobytes(),
        tokens=prepared.counted.histogram.tokens,
        text_rule=prepared.counted.rule.as_text,
    )
