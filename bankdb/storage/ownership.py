"""Which catalogue writes a bank's rows: a mark that it and the arrays both have, so that a copy of it is noticed.

A copied folder, or a database that was restored, has the bank's identity and gives row numbers again that the other
gave before. Who writes first after the copy was made changes the mark; the other one finds a mark that it never gave.
Reading needs no mark: each row is held against the catalogue's checksums.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from bankdb.catalog.database import Database
from bankdb.catalog.schema import AdapterRow, BankRow, the_bank
from bankdb.errors import ConflictError

# Bound values of one statement.
_BATCH = 10_000


class MarkedArrays(Protocol):
    """What holds the rows, with a mark."""

    def owner(self) -> str | None:
        """Return the mark as it is now; None if there is none."""

    def set_owner(self, mark: str) -> None:
        """Put another mark there, durably; nothing happens if there are no arrays yet."""


class Ownership:
    """The mark in the catalogue, and what is known there of the rows as they are stored.

    Parameters
    ----------
    database
        An open database.
    arrays
        Where the rows are; messages name it as `where`.
    """

    def __init__(self, database: Database, arrays: MarkedArrays, where: object) -> None:
        self._database = database
        self._arrays = arrays
        self._where = where

    def is_ours(self) -> bool:
        """Whether this catalogue was the last to write rows."""
        with self._database.read() as session:
            return self._is_ours(the_bank(session))

    def check(self, session: Session) -> None:
        """Raise ConflictError if another catalogue has written rows; the caller is about to write one."""
        if not self._is_ours(the_bank(session)):
            raise ConflictError(
                f"{self._where}: the rows were last written through another copy of this bank than "
                f"{self._database.shown} (a copied folder, or a database that was restored), so nothing is written; go "
                "on with that copy, or, if it is no longer used, make the rows this one's by `bank verify --repair`, "
                "which moves those that it does not know into orphans/"
            )

    def check_now(self) -> None:
        """Do as `check`, in a transaction of its own."""
        with self._database.read() as session:
            self.check(session)

    def _is_ours(self, bank: BankRow) -> bool:
        return self._arrays.owner() in {None, bank.owner, bank.owner_before}

    def renew(self, *, take: bool = False) -> None:
        """Change the mark: whoever has a copy of the catalogue as it is now does not know it.

        The caller holds the ingest lock alone. Killed after the new mark was recorded, before it was put there, the
        one that is there stays valid.

        Parameters
        ----------
        take
            Take the rows over, whoever wrote them.

        Raises
        ------
        ConflictError
            Another catalogue has written rows.
        """
        with self._database.write() as session:
            if not take:
                self.check(session)
            bank = the_bank(session)
            mark = uuid.uuid4().hex
            bank.owner, bank.owner_before = mark, self._arrays.owner()
        self._arrays.set_owner(mark)

    def mark_now(self) -> str | None:
        """Do as `mark`, in a transaction of its own."""
        with self._database.read() as session:
            return self.mark(session)

    def mark(self, session: Session) -> str | None:
        """Return the mark for arrays that are made now."""
        return the_bank(session).owner

    def set_checksums(self, rows: Mapping[int, tuple[str, bytes]]) -> None:
        """Record the checksums of rows' chunks, each with the row's sha256, where that is still the catalogue's.

        Nothing happens where the catalogue may only be read: they are made again the next time.
        """
        if self._database.read_only:
            return
        numbers = list(rows)
        with self._database.write() as session:
            for start in range(0, len(numbers), _BATCH):
                part = numbers[start : start + _BATCH]
                query = select(AdapterRow).where(AdapterRow.state == "ready", AdapterRow.row.in_(part))
                for adapter in session.scalars(query):
                    sha256, checksums = rows[adapter.row]
                    if adapter.row_sha256 == sha256:
                        adapter.checksums = checksums
