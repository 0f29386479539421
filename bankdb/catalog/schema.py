"""The database of a bank, as SQLAlchemy 2 typed models.

Types are chosen to compile on SQLite and on PostgreSQL alike; times are ISO 8601 text in UTC.
The tables are made by the migrations in `bankdb.catalog.migrations`; a test holds that both agree.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Connection,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    or_,
    select,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, QueryContext, Session, mapped_column

from bankdb.catalog.migrations.checksums import record_checksum, sealed_columns
from bankdb.errors import BankFormatError, BankNotFoundError, printable
from bankdb.records import AdapterRecord, BankRecord

FORMAT_VERSION = 1
# Of a session's `info`: how messages name its database; and where damaged records go, which are errors without.
SHOWN, DAMAGED, _BANK = "shown", "damaged", "bank"

_NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

# SQLite's INTEGER holds 64 bits, PostgreSQL's 32.
_WIDE = Integer().with_variant(BigInteger(), "postgresql")


class Base(DeclarativeBase):
    """Declarative base; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(naming_convention=_NAMING)


class Stored(LargeBinary):
    """Bytes as the driver returns them; SQLAlchemy would make bytes of a number that a damaged file has there."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Return no processor."""


class Sealed(Base):
    """A record with a checksum of its values, made when it is written and compared when it is loaded.

    Statements that do not go through loaded records leave it behind: there are none for these tables but deletions,
    and insertions that bring it along.
    """

    __abstract__ = True

    checksum: Mapped[str | None] = mapped_column(String(64))

    @classmethod
    def checksum_of(cls, values: Mapping[str, Any]) -> str:
        """Return the checksum of a record's values."""
        return record_checksum(cls.__tablename__, kinds_of(cls), values)

    def is_whole(self) -> bool:
        """Whether its values are those that were written."""
        return self.checksum == self.checksum_of(_values(self))


@functools.cache
def kinds_of(model: type[Sealed]) -> dict[str, str]:
    """Return the columns that a record's checksum covers, with their kinds."""
    columns = model.__table__.columns
    return sealed_columns(
        model.__tablename__, {item.name: "real" if isinstance(item.type, Float) else "" for item in columns}
    )


def _values(row: Sealed) -> dict[str, Any]:
    return {name: getattr(row, name) for name in kinds_of(type(row))}


@event.listens_for(Sealed, "before_insert", propagate=True)
@event.listens_for(Sealed, "before_update", propagate=True)
def _seal(_mapper: object, _connection: object, target: Sealed) -> None:
    target.checksum = target.checksum_of(_values(target))


@event.listens_for(Sealed, "load", propagate=True)
def _check_loaded(target: Sealed, context: QueryContext) -> None:
    if isinstance(target, BankRow) and target.format_version != FORMAT_VERSION:
        return  # whoever reads it says so; another version may have another checksum
    if target.is_whole():
        return
    damaged = context.session.info.get(DAMAGED)
    if damaged is None:
        raise BankFormatError(f"{context.session.info[SHOWN]}: {damage_of(target)}")
    damaged.append(target)


def damage_of(row: Sealed) -> str:
    """Return what to say of a record that is not what was written."""
    names = (getattr(row, key, None) for key in ("name", "target", "kind", "dataset_id"))
    name = next((printable(str(value))[:60] for value in names if value is not None), "")
    what = f"{row.__tablename__.replace('_', ' ')} {name}".strip()
    advice = {
        "bank": "restore it from a copy",
        "adapter": f"restore it from a copy, or `bank remove {name}` and ingest it again",
        "dataset": f"restore it from a copy, or `bank remove {name}` and ingest it again",
        "token_distribution": "restore it from a copy, or remove and ingest that adapter again",
    }
    again = "`bank verify --repair` deletes it, and what it was of is computed again"
    return (
        f"the record of {what} does not match its checksum, the file is damaged: "
        f"{advice.get(row.__tablename__, again)}"
    )


class BankRow(Sealed):
    """The bank itself: exactly one row, id 1. Layout columns are null until the first adapter.

    `owner` is the mark on its arrays by which the catalogue that writes there is known, and `owner_before` the one that
    it takes the place of: a client may be killed before it has put the new one there.
    """

    __tablename__ = "bank"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    format_version: Mapped[int] = mapped_column(Integer)
    identity: Mapped[str] = mapped_column(String(32))
    base_model: Mapped[str] = mapped_column(Text)
    base_model_aliases: Mapped[str] = mapped_column(Text)
    base_model_revision: Mapped[str | None] = mapped_column(Text)
    tokenizer_name: Mapped[str] = mapped_column(Text)
    tokenizer_fingerprint: Mapped[str] = mapped_column(String(64))
    vocabulary: Mapped[int] = mapped_column(Integer)
    text_rule: Mapped[str] = mapped_column(Text)
    next_row: Mapped[int] = mapped_column(Integer)
    layout: Mapped[str | None] = mapped_column(Text)
    parameters: Mapped[int | None] = mapped_column(_WIDE)
    alpha: Mapped[float | None] = mapped_column(Float)
    use_rslora: Mapped[int | None] = mapped_column(Integer)
    scaling: Mapped[float | None] = mapped_column(Float)
    dtype: Mapped[str | None] = mapped_column(String(16))
    task_type: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str | None] = mapped_column(String(32))
    owner_before: Mapped[str | None] = mapped_column(String(32))
    created: Mapped[str] = mapped_column(String(32))

    __table_args__ = (CheckConstraint("id = 1", name="single"),)


class BlobRow(Base):
    """Bytes kept once however many adapters share them: safetensors headers, configurations."""

    __tablename__ = "blob"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    data: Mapped[bytes] = mapped_column(Stored)


class AdapterRow(Sealed):
    """An adapter. `reserved`: its array row may hold anything. `ready`: the row exists, whole."""

    __tablename__ = "adapter"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    row: Mapped[int] = mapped_column(Integer, unique=True)
    state: Mapped[str] = mapped_column(String(8))
    rank: Mapped[int | None] = mapped_column(Integer)
    alpha: Mapped[float | None] = mapped_column(Float)
    use_rslora: Mapped[int | None] = mapped_column(Integer)
    scaling: Mapped[float | None] = mapped_column(Float)
    dtype: Mapped[str | None] = mapped_column(String(16))
    source: Mapped[str | None] = mapped_column(Text)
    revision: Mapped[str | None] = mapped_column(Text)
    source_sha256: Mapped[str | None] = mapped_column(String(64))
    header_sha256: Mapped[str | None] = mapped_column(ForeignKey("blob.sha256"))
    config_sha256: Mapped[str | None] = mapped_column(ForeignKey("blob.sha256"))
    row_sha256: Mapped[str | None] = mapped_column(String(64))
    checksums: Mapped[bytes | None] = mapped_column(Stored)
    licence: Mapped[str | None] = mapped_column(Text)
    created: Mapped[str] = mapped_column(String(32))

    __table_args__ = (
        CheckConstraint("state IN ('reserved', 'ready')", name="state"),
        # Two clients may both have reserved a row for one name; only one of them becomes ready.
        Index(
            "uq_adapter_ready_name",
            "name",
            unique=True,
            sqlite_where=text("state = 'ready'"),
        ),
    )


@event.listens_for(AdapterRow.__table__, "before_create")
def _ready_names_on_postgresql(table: Table, connection: Connection, **_: object) -> None:
    """Give the index its condition there too. Stated above, it would import that dialect, its drivers and all."""
    (index,) = (index for index in table.indexes if index.name == "uq_adapter_ready_name")
    if connection.dialect.name == "postgresql":
        index.dialect_kwargs["postgresql_where"] = text("state = 'ready'")


class DatasetRow(Sealed):
    """The dataset that an adapter was trained on."""

    __tablename__ = "dataset"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapter.id", ondelete="CASCADE"), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    group_name: Mapped[str | None] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    revision: Mapped[str | None] = mapped_column(Text)
    content_sha256: Mapped[str] = mapped_column(String(64), index=True)
    examples: Mapped[int] = mapped_column(Integer)
    tokens: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(8))
    created: Mapped[str] = mapped_column(String(32))


class TokenDistributionRow(Sealed):
    """Sparse token counts of a dataset: little-endian uint32, ids ascending; `sha256` of both together."""

    __tablename__ = "token_distribution"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"))
    tokenizer_fingerprint: Mapped[str] = mapped_column(String(64))
    text_rule: Mapped[str] = mapped_column(Text)
    ids: Mapped[bytes] = mapped_column(Stored)
    counts: Mapped[bytes] = mapped_column(Stored)
    sha256: Mapped[str] = mapped_column(String(64))

    __table_args__ = (
        UniqueConstraint("dataset_id", "tokenizer_fingerprint", "text_rule", name="uq_distribution_of"),
    )

    @classmethod
    def by_rule(cls, rule: str) -> ColumnElement[bool]:
        """Counts by the bank's rule, or by one that says more of how rows became input and output."""
        return or_(cls.text_rule == rule, cls.text_rule.startswith(f"{rule}; ", autoescape=True))


class RunRow(Sealed):
    """A computation over the bank, found again by the hash of all that determines its result."""

    __tablename__ = "run"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    inputs_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    parameters: Mapped[str] = mapped_column(Text)
    versions: Mapped[str] = mapped_column(Text)
    seed: Mapped[int | None] = mapped_column(_WIDE)
    state: Mapped[str] = mapped_column(String(8))
    created: Mapped[str] = mapped_column(String(32))
    finished: Mapped[str | None] = mapped_column(String(32))

    __table_args__ = (CheckConstraint("state IN ('open', 'done')", name="state"),)


class PieceRow(Sealed):
    """A tile, panel or export of a run that is done; `content` is what it was computed from."""

    __tablename__ = "piece"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    content: Mapped[str] = mapped_column(String(64))
    done: Mapped[str] = mapped_column(String(32))


class PredictionRow(Sealed):
    """A predicted adapter: the coefficients actually used, and where it was exported."""

    __tablename__ = "prediction"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    target: Mapped[str] = mapped_column(Text)
    sources: Mapped[bytes] = mapped_column(Stored)
    weights: Mapped[bytes] = mapped_column(Stored)
    effective_sources: Mapped[float] = mapped_column(Float)
    relative_error: Mapped[float | None] = mapped_column(Float)
    exported_to: Mapped[str | None] = mapped_column(Text)
    export_dtype: Mapped[str | None] = mapped_column(String(16))

    __table_args__ = (UniqueConstraint("run_id", "target", name="uq_prediction_target"),)


class GenerationRow(Sealed):
    """What one adapter answered to the test examples of one dataset, found again by three hashes."""

    __tablename__ = "generation"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    adapter_sha256: Mapped[str] = mapped_column(String(64))
    test_sha256: Mapped[str] = mapped_column(String(64))
    settings_sha256: Mapped[str] = mapped_column(String(64))
    texts: Mapped[str] = mapped_column(Text)
    new_tokens: Mapped[int] = mapped_column(Integer)
    seconds: Mapped[float] = mapped_column(Float)
    created: Mapped[str] = mapped_column(String(32))

    __table_args__ = (
        UniqueConstraint("adapter_sha256", "test_sha256", "settings_sha256", name="uq_generation_of"),
    )


def the_bank(session: Session) -> BankRow:
    """Return the bank that a database holds.

    Raises
    ------
    BankNotFoundError
        It holds none.
    BankFormatError
        It is of a newer version, or damaged.
    """
    known: BankRow | None = session.info.get(_BANK)  # a session is one transaction
    if known is not None:
        return known
    rows = session.scalars(select(BankRow).limit(1)).all()
    row = rows[0] if rows else None
    if rows and row is None:  # so SQLAlchemy gives a record whose primary key reads NULL
        raise BankFormatError(
            f"{session.info[SHOWN]}: the record of the bank has no number: the file is damaged; restore it from a copy"
        )
    if row is None:
        raise BankNotFoundError(
            f"{session.info[SHOWN]}: the database holds no bank; make one with `bank init`"
        )
    if row.format_version != FORMAT_VERSION:
        raise BankFormatError(
            f"{session.info[SHOWN]}: the bank has format version {row.format_version}, this version reads "
            f"{FORMAT_VERSION}: upgrade lora-bank"
        )
    session.info[_BANK] = row
    return row


def bank_record(row: BankRow) -> BankRecord:
    """Return what leaves the catalogue of the bank."""
    values: dict[str, Any] = {name: getattr(row, name) for name in BankRecord.__dataclass_fields__}
    values["base_model_aliases"] = tuple(json.loads(row.base_model_aliases))
    values["use_rslora"] = None if row.use_rslora is None else bool(row.use_rslora)
    return BankRecord(**values)


def adapter_record(adapter: AdapterRow, dataset: DatasetRow) -> AdapterRecord:
    """Return what leaves the catalogue of an adapter and its dataset."""
    of_dataset: dict[str, Any] = {
        "group": dataset.group_name,
        "dataset_source": dataset.source,
        "dataset_revision": dataset.revision,
        "content_sha256": dataset.content_sha256,
        "examples": dataset.examples,
        "tokens": dataset.tokens,
    }
    names = [name for name in AdapterRecord.__dataclass_fields__ if name not in of_dataset]
    of_adapter: dict[str, Any] = {name: getattr(adapter, name) for name in names}
    of_adapter["use_rslora"] = bool(of_adapter["use_rslora"])
    return AdapterRecord(**of_adapter, **of_dataset)
