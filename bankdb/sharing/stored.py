"""An adapter that came from elsewhere and was checked, into a bank: its row, its dataset's counts, its records."""

from __future__ import annotations

from functools import partial

from bankdb.arrays.adapter_store import StoredRow
from bankdb.records import NewAdapter
from bankdb.sharing.form import About
from bankdb.sharing.received import ReceivedAdapter
from bankdb.storage.stored_bank import StoredBank
from bankdb.storage.storing import store_adapter

# What a bank's record has of its layout.
_OF_LAYOUT = (
    *("layout", "parameters", "alpha", "use_rslora", "scaling", "dtype", "task_type", "base_model_revision"),
)


def store_received(bank: StoredBank, about: About, received: ReceivedAdapter, replace: bool) -> None:
    """Write a row and make it ready, as an ingest does; the first of a bank sets its layout to the shared one's.

    Raises
    ------
    AdapterError, ConflictError
        It does not fit the bank, or other content is there under its name and `replace` is false; nothing is left
        of it.
    """
    one = received.record
    first = {key: getattr(about, key) for key in _OF_LAYOUT}
    new = partial(_new, received)
    store_adapter(bank, one.name, received.adapter, new, replace=replace, first=first)


def _new(received: ReceivedAdapter, row: int, stored: StoredRow) -> NewAdapter:
    one, adapter = received.record, received.adapter
    return NewAdapter(
        name=one.name,
        row=row,
        rank=adapter.config.rank,
        alpha=adapter.config.alpha,
        use_rslora=adapter.config.use_rslora,
        scaling=adapter.config.scaling,
        dtype=adapter.dtype,
        source=one.source,
        revision=one.revision,
        source_sha256=one.source_sha256,
        header=adapter.header,
        config=adapter.config.text,
        row_sha256=stored.sha256,
        checksums=stored.checksums.tobytes(),
        licence=one.licence,
        group=one.group,
        dataset_source=one.dataset_source,
        dataset_revision=one.dataset_revision,
        content_sha256=one.content_sha256,
        examples=one.examples,
        ids=received.ids.astype("<u4").tobytes(),
        counts=received.counts.astype("<u4").tobytes(),
        tokens=one.tokens,
        text_rule=one.text_rule,
    )
