"""A prepared pair stored, whole or not at all, and the report told of it."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

from bankdb.arrays.adapter_store import StoredRow
from bankdb.errors import ArrayStoreUnavailableError, BankError, ComputeError, DatabaseUnavailableError
from bankdb.ingesting.prepared import Prepared
from bankdb.ingesting.report import IngestOptions, IngestReport
from bankdb.records import NewAdapter, Pair, RefusedPair
from bankdb.storage.stored_bank import StoredBank


def store_outcome(
    bank: StoredBank,
    pair: Pair,
    outcome: Future[Prepared | None],
    options: IngestOptions,
    report: IngestReport,
) -> None:
    """Store a pair that was prepared, or report why it was not.

    Raises
    ------
    ArrayStoreUnavailableError, ComputeError, DatabaseUnavailableError
        The store, who counts, or the database failed.
    """
    try:
        prepared = outcome.result()
        if prepared is None:
            _refresh_labels(bank, pair)
            report.skipped.append(pair.name)
            return
        new = partial(_new_adapter, prepared)
        added, replaced = bank.store_adapter(pair.name, prepared.adapter, new, replace=options.replace)
    except (ArrayStoreUnavailableError, ComputeError, DatabaseUnavailableError):
        raise  # no fault of the pair's, and the others would fare no better
    except BankError as error:
        report.refused.append(RefusedPair(pair.name, str(error)))
        return
    if not added:
        report.skipped.append(pair.name)
    else:
        (report.replaced if replaced else report.added).append(pair.name)
        for note in (*prepared.adapter.notes, *prepared.counted.notes):
            report.notes.setdefault(note, []).append(pair.name)


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
