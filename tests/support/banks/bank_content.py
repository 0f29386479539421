"""What a bank holds, in a form that two banks can be compared by."""

from __future__ import annotations

import dataclasses
from typing import Any

from bankdb.arrays.adapter_store import row_sha256
from bankdb.bank import AdapterBank
from bankdb.verify import verify


def content(bank: AdapterBank) -> dict[str, tuple[Any, ...]]:
    """Everything that is stored of each adapter, by name; rows and times may differ between banks."""
    found: dict[str, tuple[Any, ...]] = {}
    for record in bank.adapters():
        ((ids, counts),) = bank.catalog.token_counts([record.row])
        values = dataclasses.replace(record, row=0, created="")
        vector = bank.store.read(record.row)
        assert row_sha256(vector) == record.row_sha256
        found[record.name] = (values, vector.tobytes(), ids.tobytes(), counts.tobytes())
    return found


def assert_nothing_else(bank: AdapterBank) -> None:
    """No row, no file, no reservation beyond the ready adapters; and all of them are whole."""
    rows = [record.row for record in bank.adapters()]
    assert bank.store.rows_on_disk() == rows
    files = [path for path in bank.store.path.rglob("*") if path.is_file()]
    assert sorted(files) == sorted([*map(bank.store.file, rows), *bank.store.path.glob("zarr.json")])
    assert bank.catalog.reserved() == []
    report = verify(bank)
    assert (report.checked, report.damage, report.leftovers) == (len(rows), [], [])
