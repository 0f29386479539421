"""Generated answers, kept by what they were generated from."""

from __future__ import annotations

import json
from dataclasses import replace

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from bankdb.catalog.database import Database, every, found
from bankdb.catalog.schema import GenerationRow
from bankdb.errors import BankFormatError
from bankdb.records import GenerationKey, GenerationRecord, now


class GenerationStore:
    """Keeps generated answers and finds them again.

    Parameters
    ----------
    database
        An open database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, key: GenerationKey) -> GenerationRecord | None:
        """Return the answers kept under a key, or None.

        Raises
        ------
        BankFormatError
            They are damaged.
        """
        with self._database.read() as session:
            row = _row(session, key)
            return None if row is None else _record(row)

    def keep(self, record: GenerationRecord) -> None:
        """Store answers, at once and durably; those that are there under the same key stay."""
        with self._database.write() as session:
            _keep(session, record)

    def adopt(self, earlier: str, settings: str) -> int:
        """Keep all answers of some settings under others too, those that are there already left alone.

        Returns
        -------
        How many there were.
        """
        with self._database.write() as session:
            rows = every(session, GenerationRow, settings_sha256=earlier)
            # Each is read and written as a record: it has a checksum of its own.
            for row in rows:
                record = _record(row)
                _keep(session, replace(record, key=replace(record.key, settings_sha256=settings)))
        return len(rows)

    def count(self) -> int:
        """Return how many are kept."""
        with self._database.read() as session:
            return int(session.scalar(select(func.count()).select_from(GenerationRow)) or 0)

    def space(self) -> tuple[int, int]:
        """Return how many are kept, and the bytes of their texts, which are stored as ASCII."""
        with self._database.read() as session:
            return _space(session)

    def forget(self) -> tuple[int, int]:
        """Delete all in one transaction; return what `space` returned before."""
        with self._database.write() as session:
            before = _space(session)
            session.execute(delete(GenerationRow))
        return before


def _space(session: Session) -> tuple[int, int]:
    number, size = session.execute(
        select(func.count(), func.sum(func.length(GenerationRow.texts))).select_from(GenerationRow)
    ).one()
    return int(number), int(size or 0)


def _keep(session: Session, record: GenerationRecord) -> None:
    if _row(session, record.key) is not None:
        return
    session.add(
        GenerationRow(
            adapter_sha256=record.key.adapter_sha256,
            test_sha256=record.key.test_sha256,
            settings_sha256=record.key.settings_sha256,
            texts=json.dumps(record.texts),
            new_tokens=record.new_tokens,
            seconds=record.seconds,
            created=record.created or now(),
        )
    )


def _row(session: Session, key: GenerationKey) -> GenerationRow | None:
    return found(
        session,
        GenerationRow,
        adapter_sha256=key.adapter_sha256,
        test_sha256=key.test_sha256,
        settings_sha256=key.settings_sha256,
    )


def _record(row: GenerationRow) -> GenerationRecord:
    try:
        texts = json.loads(row.texts)
    except (ValueError, TypeError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BankFormatError(
            f"generation {row.id}: expected a JSON list of texts, found {str(row.texts)[:40]!r}; "
            "restore the database from a copy"
        )
    key = GenerationKey(row.adapter_sha256, row.test_sha256, row.settings_sha256)
    return GenerationRecord(key, tuple(texts), row.new_tokens, row.seconds, row.created)
