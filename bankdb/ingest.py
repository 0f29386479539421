"""Ingest: pairs of adapter and dataset into the bank, atomic and idempotent, one by one.

Order of events for a pair: reserve a row in the database; write the row and flush it to the disk; make
it ready with its checksum, dataset and counts in one transaction. Killed anywhere, every ready row is
whole, and the next ingest clears what was left and goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bankdb.arrays.adapter_store import StoredRow
from bankdb.arrays.durable import partial_files
from bankdb.catalog.catalog import changed_pair
from bankdb.datasets.limits import memory_budget
from bankdb.datasets.read import Examples, Reading
from bankdb.errors import (
    ArrayStoreUnavailableError,
    BankError,
    DatabaseUnavailableError,
    SourceError,
    one_line,
    printable,
)
from bankdb.progress import Progress, SilentProgress
from bankdb.records import AS_IT_COMES, NewAdapter, Pair, PairReference, RefusedPair, Taking
from bankdb.shown import html_summary, text_summary
from bankdb.sources.pairs import check_case
from bankdb.storage.expected import Expected, expected_of, is_unchanged
from bankdb.storage.stored_bank import StoredBank

if TYPE_CHECKING:
    from bankdb.datasets.forms.rules import Rule
    from bankdb.datasets.tokenizer import TokenHistogram
    from bankdb.peft.weights import SourceAdapter

# Pairs prepared ahead of the one being written: reading and tokenizing overlap with writing.
_AHEAD = 2
# Refused pairs that a report shows of itself.
_LISTED = 10


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How datasets are read, what happens to a pair whose name is taken by other content, and the bytes of memory.

    `taking` is what may be assumed of adapters, or done to them.
    """

    reading: Reading = field(default_factory=Reading)
    replace: bool = False
    memory: int | None = None
    taking: Taking = AS_IT_COMES


@dataclass(slots=True)
class IngestReport:
    """What an ingest did, by name; `notes` are lines about what was not read, or taken for what it is not."""

    added: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    refused: list[RefusedPair] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    """What was left out or assumed of stored adapters, with the names of those."""
    initialisations: str = ""
    """Where the bank's A factors are of several initialisations: how many share one, and what that means."""

    def __repr__(self) -> str:
        """Return how many of each, and the first that were refused."""
        return text_summary(self._title(), {one.name: one.reason for one in self.refused[:_LISTED]})

    def _repr_html_(self) -> str:
        rows = [(one.name, one.reason) for one in self.refused[:_LISTED]]
        return html_summary(self._title(), {}, ("refused", "why"), rows, len(self.refused) - len(rows))

    def _title(self) -> str:
        counts = f"{len(self.added)} added, {len(self.skipped)} there already, {len(self.replaced)} replaced"
        return f"IngestReport: {counts}, {len(self.refused)} refused"


@dataclass(frozen=True, slots=True)
class _Prepared:
    pair: Pair
    adapter: SourceAdapter
    content_sha256: str
    examples: int
    notes: tuple[str, ...]
    rule: Rule
    histogram: TokenHistogram


def ingest(
    bank: StoredBank,
    references: Sequence[PairReference],
    *,
    resolve: Callable[[PairReference], Pair | None],
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
        Turns a reference into files on this machine; downloads where it has to. None says that the bank
        has that very revision already.
    refused
        Pairs refused before, to be part of the report.

    Raises
    ------
    ArrayStoreUnavailableError
        The store of a bank on a URL failed; what was stored before is kept.

    Returns
    -------
    IngestReport
        The caller decides what refusals mean for its exit status.
    """
    options = options or IngestOptions()
    progress = progress or SilentProgress()
    report = IngestReport(refused=list(refused))
    clear_leftovers(bank)
    with bank.ingesting():
        references, other = check_case(references, [name for (name,) in bank.catalog.glance("name")])
        report.refused += other
        resolved = _resolved(references, resolve, report, progress)
        expected = expected_of(bank, resolved, options.taking)
        # Loaded once, here, before threads share it.
        report.notes |= {note: [] for note in bank.tokenizer.notes}

        def prepare(pair: Pair) -> _Prepared | None:
            return _prepare(bank, pair, expected, options)

        progress.begin("ingest", len(resolved))
        for pair, outcome in _ahead(resolved, prepare):
            _store_outcome(bank, pair, outcome, options, report)
            progress.advance()
        progress.end()
    if report.added or report.replaced:
        report.initialisations = _compared(bank, progress)
    return report


def _compared(bank: StoredBank, progress: Progress) -> str:
    from bankdb.initialisation.compare import compare
    from bankdb.initialisation.shared import advice_of

    try:
        found = compare(bank, progress)
        return advice_of(bank, bank.adapters()) if found is None else found.advice()
    except (BankError, OSError) as error:  # what was stored is stored
        return f"not compared: {one_line(error)}"


def clear_leftovers(bank: StoredBank) -> list[str]:
    """Clear what killed processes left, unless some process is ingesting now; return what was cleared."""
    with bank.nobody_ingesting() as alone:
        return clear_leftovers_locked(bank) if alone else []


def clear_leftovers_locked(bank: StoredBank, *, everywhere: bool = False) -> list[str]:
    """Clear what killed processes left; the caller is inside `nobody_ingesting`.

    Parameters
    ----------
    everywhere
        Whether to look for unfinished files in the folders of whole rows too, where no ingest writes.
    """
    bank.ownership.check_now()  # what is left over here, another copy of the bank may call ready
    cleared: list[str] = []
    for reserved in bank.catalog.reserved():
        bank.store.delete(reserved.row)
        bank.catalog.clear_reserved([reserved.row])
        cleared.append(f"row {reserved.row}, reserved for {reserved.name}")
    for file in partial_files(bank.store.path, below=everywhere):
        file.unlink(missing_ok=True)
        cleared.append(f"unfinished file {file.name}")
    ready = {record.row for record in bank.adapters()}
    limit = bank.record.next_row
    for row in bank.store.rows_on_disk():
        if row not in ready and row < limit:
            bank.store.delete(row)
            cleared.append(f"row {row} of a removed adapter")
    return cleared


def _resolved(
    references: Sequence[PairReference],
    resolve: Callable[[PairReference], Pair | None],
    report: IngestReport,
    progress: Progress,
) -> list[Pair]:
    pairs: list[Pair] = []
    progress.begin("find pairs", len(references))
    for reference in references:
        try:
            pair = resolve(reference)
        except DatabaseUnavailableError:
            raise
        except BankError as error:
            report.refused.append(RefusedPair(reference.name, str(error)))
        else:
            if pair is None:
                report.skipped.append(reference.name)
            else:
                pairs.append(pair)
        progress.advance()
    progress.end()
    return pairs


def _prepare(
    bank: StoredBank,
    pair: Pair,
    expected: Expected,
    options: IngestOptions,
) -> _Prepared | None:
    """Read, check and tokenize a pair; None if the bank has the very same already."""
    from bankdb.peft.checks import notes_on

    _check_text(pair)
    present = bank.catalog.find(pair.name)
    if present is not None:
        stored = _read(pair, options)
        stored.pass_over()
        if is_unchanged(bank, present, pair, stored.sha256):
            return None
        if not options.replace:
            raise changed_pair(pair.name)
    adapter = expected.load(pair.adapter, options.taking)
    adapter = replace(adapter, notes=(*pair.notes, *notes_on(adapter, pair.adapter)))
    dataset = _read(pair, options)
    histogram = bank.tokenizer.count(dataset.texts(), str(pair.dataset[0]), options.memory)
    return _Prepared(pair, adapter, dataset.sha256, len(dataset), dataset.notes, dataset.rule, histogram)


def _read(pair: Pair, options: IngestOptions) -> Examples:
    return Examples(
        pair.dataset,
        options.reading,
        memory=max(
            1, memory_budget(options.memory) // _AHEAD
        ),  # of one of the pairs that are prepared at a time
    )


def _check_text(pair: Pair) -> None:
    """Refuse what no database stores as text: a path that is not UTF-8, half of a surrogate pair, NUL."""
    for text in (pair.adapter_source, pair.dataset_source, pair.group or "", pair.licence or ""):
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise SourceError(f"{printable(text)}: not valid Unicode text; rename the folder, or correct it")


def _ahead(
    pairs: Sequence[Pair], prepare: Callable[[Pair], _Prepared | None]
) -> Iterator[tuple[Pair, Future[_Prepared | None]]]:
    with ThreadPoolExecutor(max_workers=_AHEAD, thread_name_prefix="prepare") as pool:
        waiting: deque[tuple[Pair, Future[_Prepared | None]]] = deque()
        remaining = iter(pairs)
        try:
            for pair in remaining:
                waiting.append((pair, pool.submit(prepare, pair)))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


def _store_outcome(
    bank: StoredBank,
    pair: Pair,
    outcome: Future[_Prepared | None],
    options: IngestOptions,
    report: IngestReport,
) -> None:
    try:
        prepared = outcome.result()
        if prepared is None:
            _refresh_labels(bank, pair)
            report.skipped.append(pair.name)
            return
        present = bank.catalog.find(pair.name) is not None
        added = _store(bank, prepared, options)
    except (ArrayStoreUnavailableError, DatabaseUnavailableError):
        raise  # no fault of the pair's, and the others would fare no better
    except BankError as error:
        report.refused.append(RefusedPair(pair.name, str(error)))
        return
    if not added:
        report.skipped.append(pair.name)
    else:
        (report.replaced if present else report.added).append(pair.name)
        for note in (*prepared.adapter.notes, *prepared.notes):
            report.notes.setdefault(note, []).append(pair.name)


def _refresh_labels(bank: StoredBank, pair: Pair) -> None:
    """Take over a group or licence that the source states now and the bank does not have."""
    present = bank.catalog.adapter(pair.name)
    group, licence = pair.group or present.group, pair.licence or present.licence
    if (group, licence) != (present.group, present.licence):
        bank.catalog.set_group(pair.name, group, licence)


def _store(bank: StoredBank, prepared: _Prepared, options: IngestOptions) -> bool:
    """Write a prepared pair; return False if another process stored the same meanwhile."""
    row = bank.reserve(prepared.pair.name, prepared.adapter)
    try:
        stored = bank.store.write_row(row, prepared.adapter.vector)
        added, freed = bank.catalog.make_ready(_new_adapter(prepared, row, stored), replace=options.replace)
    except ArrayStoreUnavailableError:
        raise  # what may be there of the row cannot be deleted now: it stays reserved, the next ingest clears it
    except BaseException:
        if bank.catalog.abandon(row):
            bank.store.delete(row)
        raise
    for unused in freed:
        bank.store.delete(unused)
    return added


def _new_adapter(prepared: _Prepared, row: int, stored: StoredRow) -> NewAdapter:
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
        content_sha256=prepared.content_sha256,
        examples=prepared.examples,
        ids=prepared.histogram.ids.astype("<u4").tobytes(),
        counts=prepared.histogram.counts.astype("<u4").tobytes(),
        tokens=prepared.histogram.tokens,
        text_rule=prepared.rule.as_text,
    )
