"""What is in a bank: queries and transactions, in frozen records and plain values."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from bankdb.catalog.database import Database, counted, every, found, some
from bankdb.catalog.origins import Blobs
from bankdb.catalog.plain.records import quick_records
from bankdb.catalog.schema import (
    DAMAGED,
    FORMAT_VERSION,
    AdapterRow,
    BankRow,
    DatasetRow,
    Sealed,
    TokenDistributionRow,
    adapter_record,
    bank_record,
    the_bank,
)
from bankdb.errors import BankFormatError, BankNotFoundError, ConflictError
from bankdb.records import AdapterRecord, BankRecord, NewAdapter, ReservedRow, now

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# SQLite takes 32,766 bound values in one statement; PostgreSQL 65,535.
_BATCH = 10_000


class Catalog:
    """The bank's metadata. Only the client process opens it, never a worker.

    Parameters
    ----------
    database
        An open database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._blobs = Blobs(database)
        # By which tokenizer and rule: of a bank always the same.
        self._tokenized: tuple[str, str] | None = None

    # -- the bank itself ------------------------------------------------------------------------

    def create_bank(
        self,
        *,
        base_model: str,
        base_model_aliases: Sequence[str],
        tokenizer_name: str,
        tokenizer_fingerprint: str,
        vocabulary: int,
        text_rule: str,
        identity: str | None = None,
    ) -> BankRecord:
        """Store what the bank is. Raises ConflictError if the database already holds one."""
        with self._database.write() as session:
            if session.get(BankRow, 1) is not None:
                raise ConflictError(
                    f"{self._database.shown}: the database already holds a bank; open it, or choose another place"
                )
            row = BankRow(
                id=1,
                format_version=FORMAT_VERSION,
                identity=identity or uuid.uuid4().hex,
                base_model=base_model,
                base_model_aliases=json.dumps(list(base_model_aliases)),
                tokenizer_name=tokenizer_name,
                tokenizer_fingerprint=tokenizer_fingerprint,
                vocabulary=vocabulary,
                text_rule=text_rule,
                next_row=0,
                created=now(),
            )
            session.add(row)
            session.flush()
            return bank_record(row)

    def bank(self) -> BankRecord:
        """Return what the bank is. Raises BankNotFoundError if it was never initialised."""
        with self._database.read() as session:
            return bank_record(the_bank(session))

    # -- adding and removing --------------------------------------------------------------------

    def set_layout(
        self,
        session: Session,
        *,
        layout: str,
        parameters: int,
        alpha: float,
        use_rslora: bool,
        scaling: float,
        dtype: str,
        task_type: str | None,
        base_model_revision: str | None,
    ) -> None:
        """Record, in the caller's transaction, the layout that the first adapter brings."""
        row = the_bank(session)
        row.layout, row.parameters, row.alpha = layout, parameters, alpha
        row.use_rslora, row.scaling, row.dtype = int(use_rslora), scaling, dtype
        row.task_type, row.base_model_revision = task_type, base_model_revision

    def bank_in(self, session: Session) -> BankRecord:
        """Return what the bank is, as the caller's transaction sees it."""
        return bank_record(the_bank(session))

    def reserve(self, session: Session, name: str) -> int:
        """Reserve the next row for `name` in the caller's transaction; a row number is never used twice."""
        bank = the_bank(session)
        row = bank.next_row
        bank.next_row = row + 1
        session.add(AdapterRow(name=name, row=row, state="reserved", created=now()))
        return row

    def make_ready(self, new: NewAdapter, *, replace: bool = False) -> tuple[bool, list[int]]:
        """Make a reserved row ready, with its dataset and counts, in one transaction.

        Returns
        -------
        added, freed
            Whether the pair is now in the bank by this call (False: another client stored the very same
            pair first), and the rows that no record names any more: their files can go.

        Raises
        ------
        ConflictError
            The name is there with other content, and `replace` is false; or the row is not reserved.
        """
        with self._database.write() as session:
            reserved = found(session, AdapterRow, row=new.row, state="reserved")
            if reserved is None:
                raise ConflictError(
                    f"{new.name}: its reserved row {new.row} was cleared meanwhile by "
                    "`bank verify --repair`; ingest it again"
                )
            freed: list[int] = []
            # Mostly there is none, of which the index's word is not enough.
            present = next(iter(some(session, AdapterRow, name=new.name, state="ready")), None)
            if present is not None:
                same = _same_content(session, present, new)
                if same or not replace:
                    session.delete(reserved)
                    if same:
                        return False, [new.row]
                    session.commit()
                    raise changed_pair(new.name)
                freed.append(present.row)
                session.delete(present)
                session.flush()
            blobs = self._fill(session, reserved, new)
        self._blobs.committed(blobs)
        return True, freed

    def _fill(self, session: Session, row: AdapterRow, new: NewAdapter) -> set[str]:
        """Fill a reserved row; return the hashes of the bytes that it refers to."""
        stamp = now()
        row.state, row.created = "ready", stamp
        row.rank, row.alpha, row.use_rslora = new.rank, new.alpha, int(new.use_rslora)
        row.scaling, row.dtype = new.scaling, new.dtype
        row.source, row.revision, row.source_sha256 = new.source, new.revision, new.source_sha256
        row.header_sha256 = self._blobs.keep(session, new.header)
        row.config_sha256 = self._blobs.keep(session, new.config.encode())
        row.row_sha256, row.checksums, row.licence = new.row_sha256, new.checksums, new.licence
        dataset = DatasetRow(
            adapter_id=row.id,
            name=new.name,
            group_name=new.group,
            source=new.dataset_source,
            revision=new.dataset_revision,
            content_sha256=new.content_sha256,
            examples=new.examples,
            tokens=new.tokens,
            state="ready",
            created=stamp,
        )
        session.add(dataset)
        session.flush()
        if self._tokenized is None:
            bank = the_bank(session)
            self._tokenized = bank.tokenizer_fingerprint, bank.text_rule
        fingerprint, rule = self._tokenized
        session.add(
            TokenDistributionRow(
                dataset_id=dataset.id,
                tokenizer_fingerprint=fingerprint,
                text_rule=new.text_rule or rule,
                ids=new.ids,
                counts=new.counts,
                sha256=_counts_sha256(new.ids, new.counts),
            )
        )
        return {row.header_sha256, row.config_sha256}

    def abandon(self, row: int) -> bool:
        """Forget a reserved row after its pair was refused; return whether its file can go.

        It cannot if the row is ready after all: an interrupt may come just after the commit.
        """
        with self._database.write() as session:
            _forget(session, row)
            return found(session, AdapterRow, row=row) is None

    def remove(self, name: str) -> int | None:
        """Remove a ready adapter with its dataset; return its row, whose file can go.

        None if the record is damaged: then nobody knows which row it was, and the next ingest finds out.
        """
        with self._database.write() as session:
            session.info[DAMAGED] = damaged = list[Sealed]()
            # By no index: one that is damaged would remove another one.
            rows = some(session, AdapterRow, name=name, state="ready")
            if not rows:
                raise BankNotFoundError(f"{name}: no such adapter in the bank; `bank list` shows the names")
            number = rows[0].row
            session.delete(rows[0])
            return None if damaged else number

    def clear_reserved(self, rows: Iterable[int]) -> None:
        """Forget reserved rows that no ingest is working on any more."""
        with self._database.write() as session:
            for row in rows:
                _forget(session, row)

    def set_group(self, name: str, group: str | None, licence: str | None) -> None:
        """Record another group or licence for a dataset that is already there."""
        with self._database.write() as session:
            adapter = found(session, AdapterRow, name=name, state="ready")
            if adapter is None:
                raise BankNotFoundError(f"{name}: no such adapter in the bank; `bank list` shows the names")
            adapter.licence, self._dataset(session, adapter).group_name = licence, group

    def adapters(self) -> list[AdapterRecord]:
        """Return every ready adapter, by row."""
        with self._database.read() as session:
            found = quick_records(session)
        return self._adapters(None) if found is None else found

    def whole_adapters(self) -> list[AdapterRecord]:
        """Return every ready adapter, by row, but those whose records are not what was written."""
        return self._adapters([])

    def _adapters(self, damaged: list[Sealed] | None) -> list[AdapterRecord]:
        # Both tables as they lie, by no index: one that is damaged would leave out an adapter without a word.
        with self._database.read() as session:
            session.info[DAMAGED] = damaged
            rows, datasets = some(session, AdapterRow), some(session, DatasetRow)
            bad = {id(row) for row in damaged or ()}
            of_adapter = {row.adapter_id: row for row in datasets if id(row) not in bad}
            ready = [row for row in rows if row.state == "ready" and id(row) not in bad]
            found = [row for row in sorted(ready, key=lambda row: row.row) if row.id in of_adapter]
            if damaged is None and not len(ready) == len(found) == len(of_adapter):
                raise BankFormatError(
                    f"{self._database.shown}: {len(ready)} adapters and {len(of_adapter)} datasets found, each of one: "
                    "the file is damaged, restore it from a copy"
                )
            return [adapter_record(row, of_adapter[row.id]) for row in found]

    def adapter(self, name: str) -> AdapterRecord:
        """Return one ready adapter. Raises BankNotFoundError if there is none of that name."""
        record = self.find(name)
        if record is None:
            raise BankNotFoundError(f"{name}: no such adapter in the bank; `bank list` shows the names")
        return record

    def find(self, name: str) -> AdapterRecord | None:
        """Return one ready adapter, or None."""
        with self._database.read() as session:
            row = found(session, AdapterRow, name=name, state="ready")
            return None if row is None else adapter_record(row, self._dataset(session, row))

    def _dataset(self, session: Session, adapter: AdapterRow) -> DatasetRow:
        row = found(session, DatasetRow, adapter_id=adapter.id)
        if row is None:
            raise BankFormatError(
                f"{self._database.shown}: no dataset is there of adapter {adapter.name}: the file is damaged, restore "
                "it from a copy"
            )
        return row

    def glance(self, *columns: str) -> list[tuple[Any, ...]]:
        """Return columns of all ready adapters, in no order, their records unchecked."""
        query = select(*(getattr(AdapterRow, name) for name in columns)).where(AdapterRow.state == "ready")
        with self._database.read() as session:
            return [tuple(row) for row in session.execute(query)]

    def count(self) -> int:
        """Return the number of ready adapters."""
        with self._database.read() as session:
            return counted(session, AdapterRow, state="ready")

    def reserved(self) -> list[ReservedRow]:
        """Return the rows that are reserved and not ready, by row."""
        with self._database.read() as session:
            rows = sorted(every(session, AdapterRow, state="reserved"), key=lambda row: row.row)
            return [ReservedRow(row.name, row.row, row.created) for row in rows]

    def blob(self, sha256: str) -> bytes:
        """Return stored bytes by their hash. Raises BankFormatError if they are missing or damaged."""
        return self._blobs.read(sha256)

    def token_counts(self, rows: Sequence[int]) -> list[tuple[NDArray[np.uint32], NDArray[np.uint32]]]:
        """Return (ids, counts) for each of `rows`, in that order; arrays of uint32, ids ascending.

        Raises
        ------
        BankFormatError
            A row has no counts under the bank's tokenizer and text rule, or they are damaged.
        """
        counts_by_row: dict[int, tuple[NDArray[np.uint32], NDArray[np.uint32]]] = {}
        with self._database.read() as session:
            bank = the_bank(session)
            for start in range(0, len(rows), _BATCH):
                part = list(rows[start : start + _BATCH])
                query = (
                    # All three as records, whose checksums hold what finds them: an index may lead elsewhere.
                    select(AdapterRow, DatasetRow, TokenDistributionRow)
                    .join(DatasetRow, DatasetRow.adapter_id == AdapterRow.id)
                    .join(TokenDistributionRow, TokenDistributionRow.dataset_id == DatasetRow.id)
                    .where(
                        AdapterRow.row.in_(part),
                        AdapterRow.state == "ready",
                        TokenDistributionRow.tokenizer_fingerprint == bank.tokenizer_fingerprint,
                        TokenDistributionRow.by_rule(bank.text_rule),
                    )
                )
                for adapter, dataset, stored in session.execute(query):
                    if (dataset.adapter_id, stored.dataset_id) != (adapter.id, dataset.id):
                        continue  # missing below
                    row, ids, counts = adapter.row, stored.ids, stored.counts
                    whole = isinstance(ids, bytes) and isinstance(counts, bytes) and len(ids) == len(counts)
                    if not whole or len(ids) % 4 or _counts_sha256(ids, counts) != stored.sha256:
                        raise BankFormatError(
                            f"{self._database.shown}: token counts of row {row} do not match their checksum: restore "
                            "the database from a copy, or remove and ingest that adapter again"
                        )
                    counts_by_row[row] = (_uint32(ids), _uint32(counts))
        missing = [row for row in rows if row not in counts_by_row]
        if missing:
            raise BankFormatError(
                f"{self._database.shown}: rows {missing[:5]} have no token counts under the bank's tokenizer; "
                "remove and ingest those adapters again"
            )
        return [counts_by_row[row] for row in rows]


def changed_pair(name: str) -> ConflictError:
    """Return the error for a pair whose name is taken by other content."""
    return ConflictError(
        f"{name}: already in the bank with another adapter or dataset; pass --replace to store the new one"
    )


def _forget(session: Session, row: int) -> None:
    reserved = found(session, AdapterRow, row=row, state="reserved")
    if reserved is not None:
        session.delete(reserved)
        session.flush()


def _same_content(session: Session, present: AdapterRow, new: NewAdapter) -> bool:
    dataset = found(session, DatasetRow, adapter_id=present.id)
    content = None if dataset is None else dataset.content_sha256
    return (present.source_sha256, present.config_sha256, content) == (
        new.source_sha256,
        hashlib.sha256(new.config.encode()).hexdigest(),
        new.content_sha256,
    )


def _counts_sha256(ids: bytes, counts: bytes) -> str:
    return hashlib.sha256(ids + counts).hexdigest()


def _uint32(blob: bytes) -> NDArray[np.uint32]:
    import numpy as np

    return np.frombuffer(blob, dtype="<u4").astype(np.uint32, copy=False)
