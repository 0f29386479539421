"""All adapters of a bank as plain rows: mapped objects take several times as long, seconds of tens of thousands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from bankdb.catalog.migrations.checksums import record_checksum
from bankdb.catalog.schema import AdapterRow, DatasetRow, Sealed, kinds_of
from bankdb.records import AdapterRecord

_OF_DATASET = {
    "group": "group_name",
    "dataset_source": "source",
    "dataset_revision": "revision",
    "content_sha256": "content_sha256",
    "examples": "examples",
    "tokens": "tokens",
}
_OF_ADAPTER = tuple(name for name in AdapterRecord.__dataclass_fields__ if name not in _OF_DATASET)


def quick_records(session: Session) -> list[AdapterRecord] | None:
    """Return every ready adapter, by row, each record held against its checksum; None if anything is wrong with one.

    Both tables are read as they lie, by no index: one that is damaged would leave out an adapter without a word.
    """
    adapters, datasets = (_whole_rows(session, model) for model in (AdapterRow, DatasetRow))
    if adapters is None or datasets is None:
        return None
    of_adapter = {row["adapter_id"]: row for row in datasets}
    ready = sorted((row for row in adapters if row["state"] == "ready"), key=lambda row: int(row["row"]))
    if len(of_adapter) != len(datasets) or {row["id"] for row in ready} != of_adapter.keys():
        return None
    return [_record(row, of_adapter[row["id"]]) for row in ready]


def _whole_rows(session: Session, model: type[Sealed]) -> list[dict[str, Any]] | None:
    """Return the rows of a table, None if one is not what was written."""
    table, kinds = model.__table__, kinds_of(model)
    names = [column.name for column in table.columns]
    rows = [dict(zip(names, values, strict=True)) for values in session.execute(select(table))]
    whole = all(
        row["id"] is not None and row["checksum"] == record_checksum(model.__tablename__, kinds, row)
        for row in rows
    )
    return rows if whole else None


def _record(adapter: Mapping[str, Any], dataset: Mapping[str, Any]) -> AdapterRecord:
    values = {name: adapter[name] for name in _OF_ADAPTER}
    values["use_rslora"] = bool(values["use_rslora"])
    return AdapterRecord(**values, **{name: dataset[column] for name, column in _OF_DATASET.items()})
