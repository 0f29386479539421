"""Ingest: pairs of adapter and dataset into the bank, atomic and idempotent, one by one.

Order of events for a pair: reserve a row in the database; write the row and flush it to the disk; make
it ready with its checksum, dataset and counts in one transaction. Killed anywhere, every ready row is
whole, and the next ingest clears what was left and goes on. Pairs on the hub are downloaded beside that, and each is
stored when it is there and its turn has come: see `bankdb.ingesting.pipeline`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bankdb.errors import BankError, FileSystemError
from bankdb.ingesting.counted import Counter
from bankdb.ingesting.leftovers import clear_leftovers, clear_leftovers_locked
from bankdb.ingesting.pipeline import OF_NO_PAIR, Incoming, Outcome, Pipeline
from bankdb.ingesting.prepared import AHEAD, Prepared, prepare
from bankdb.ingesting.report import IngestOptions, IngestReport
from bankdb.ingesting.stored import PairStore
from bankdb.ingesting.survey import surveyed
from bankdb.peft.opened import FreedVectors
from bankdb.progress import Progress, SilentProgress
from bankdb.records import Pair, PairReference, RefusedPair
from bankdb.sources.located import Located
from bankdb.sources.pairs import check_case
from bankdb.storage.expected import Expected
from bankdb.storage.stored_bank import StoredBank

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bankdb.initialisation.compare import TakenSamples

__all__ = ["Counter", "IngestOptions", "IngestReport", "clear_leftovers", "clear_leftovers_locked", "ingest"]


def ingest(
    bank: StoredBank,
    references: Sequence[PairReference],
    *,
    resolve: Callable[[PairReference], Pair | None] | Located,
    options: IngestOptions | None = None,
    refused: Iterable[RefusedPair] = (),
    progress: Progress | None = None,
) -> IngestReport:
    """Store every pair that can be stored; a pair that cannot is reported and leaves nothing behind.

    Parameters
    ----------
    bank
        An open bank.
    references
        The pairs, by name.
    resolve
        Turns a reference into files on this machine. None says that the bank has that very revision already. A
        `Located` downloads too, beside what is stored.
    refused
        Pairs refused before, to be part of the report.

    Raises
    ------
    ArrayStoreUnavailableError, DatabaseUnavailableError, FileSystemError, ComputeError
        The store of a bank on a URL, or its database, failed, or the disk is full, or who counts does not find the
        datasets; what was stored before is kept.

    Returns
    -------
    IngestReport
        The caller decides what refusals mean for its exit status.
    """
    work = _Ingest(
        bank,
        resolve if isinstance(resolve, Located) else Located(bank.catalog.find, local=resolve),
        options or IngestOptions(),
        IngestReport(refused=list(refused)),
        progress or SilentProgress(),
    )
    clear_leftovers(bank)
    with bank.ingesting():
        work.run(references)
    if work.taken is not None:
        from bankdb.initialisation.compare import compared_advice

        work.report.initialisations = compared_advice(bank, work.progress, work.taken)
    return work.report


@dataclass(slots=True)
class _Ingest:
    bank: StoredBank
    located: Located
    options: IngestOptions
    report: IngestReport
    progress: Progress
    taken: TakenSamples | None = None

    def run(self, references: Sequence[PairReference]) -> None:
        present = [name for (name,) in self.bank.catalog.glance("name")]
        references, refused = check_case(references, present)
        self.located.names = frozenset(present)
        self.report.refused += refused
        session = self.located.session
        session.tell(self.progress.note, self.progress.received)
        try:
            incoming = self._incoming(references)
            # Loaded once, here, before threads share it.
            self.report.notes |= {note: [] for note in self.bank.tokenizer.notes}
            self._store(incoming, self._expected(incoming))
        except FileSystemError as error:
            raise FileSystemError(f"{error}; {self._stored()}") from error
        finally:
            self.report.downloaded = session.bytes_received

    def _incoming(self, references: Sequence[PairReference]) -> list[Incoming]:
        """Find the pairs on this machine; those on the hub are found when their turn to be downloaded comes."""
        incoming: list[Incoming] = []
        self.progress.begin("find pairs", len(references))
        for reference in references:
            if self.located.is_remote(reference):
                incoming.append(Incoming(reference))
            else:
                incoming += self._found(reference)
            self.progress.advance()
        self.progress.end()
        return incoming

    def _found(self, reference: PairReference) -> list[Incoming]:
        try:
            pair = self.located.pair(reference)
        except OF_NO_PAIR:
            raise
        except BankError as error:
            self._refuse(reference, error)
            return []
        if pair is None:
            self.report.skipped.append(reference.name)
            return []
        return [Incoming(reference, pair)]

    def _expected(self, incoming: Sequence[Incoming]) -> Expected:
        """Return what adapters have to be; with progress where configurations are downloaded to know."""
        remote = sum(one.pair is None for one in incoming)
        shown = remote > 0 and self.bank.record.layout is None
        if shown:
            self.progress.begin("read configurations", remote)
        advance = self.progress.advance
        options = self.options
        expected = surveyed(self.bank, incoming, self.located, options.taking, options.downloads, advance)
        if shown:
            self.progress.end()
        return expected

    def _store(self, incoming: Sequence[Incoming], expected: Expected) -> None:
        freed = FreedVectors()

        def prepare_one(pair: Pair) -> Prepared | None:
            return prepare(self.bank, pair, expected, self.options, freed)

        def screen(folder: Path) -> None:
            expected.check_configuration(folder, self.options.taking)

        self.located.screen = screen
        pipeline = Pipeline(
            incoming,
            self.located.pair,
            prepare_one,
            PairStore(self.bank, self.options, self.report, freed, self._take),
            downloads=self.options.downloads,
            stop=self.located.stop,
            ahead=AHEAD if self.options.counter is None else self.options.counter.at_once,
        )
        self.progress.begin("ingest", len(incoming))
        with contextlib.closing(
            pipeline.outcomes()
        ) as outcomes:  # threads end with it, whatever is raised here
            for outcome in outcomes:
                self._settle(outcome)
                self.located.done(outcome.reference)
                self.progress.advance()
        self.progress.end()

    def _take(self, row: int, vector: NDArray[np.float32]) -> None:
        """Take a sample of what was stored, before its memory is used again."""
        if self.taken is None:
            from bankdb.initialisation.compare import TakenSamples

            self.taken = TakenSamples(self.bank)
        self.taken.take(row, vector)

    def _settle(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._refuse(outcome.reference, outcome.error)
        elif outcome.pair is None:
            self.report.skipped.append(outcome.reference.name)

    def _refuse(self, reference: PairReference, error: BankError) -> None:
        self.report.refused.append(RefusedPair(reference.name, str(error)))

    def _stored(self) -> str:
        stored = len(self.report.added) + len(self.report.replaced)
        return f"{stored} pairs were stored before, and stay"
