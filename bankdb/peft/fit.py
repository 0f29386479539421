"""Whether an adapter fits the bank that it is to go into."""

from __future__ import annotations

from bankdb.errors import AdapterError
from bankdb.peft.layout import AdapterLayout
from bankdb.peft.weights import SourceAdapter
from bankdb.records import BankRecord


def check_fits(record: BankRecord, layout: str, name: str, adapter: SourceAdapter) -> None:
    """Raise AdapterError unless an adapter is of the bank's layout and revision of the base model."""
    found = AdapterLayout.from_json(layout).differences(adapter.layout)
    if found:
        raise AdapterError(f"{name}: not of the bank's layout: {'; '.join(found)}")
    if adapter.config.revision != record.base_model_revision:
        raise AdapterError(other_revision(name, record.base_model_revision, adapter.config.revision))


def other_revision(what: str, expected: str | None, found: str | None) -> str:
    """Return the message for an adapter of another revision of the base model."""
    return (
        f"{what}: trained on revision {found!r} of the base model, the bank's adapters on {expected!r}; "
        "keep them in separate banks"
    )
