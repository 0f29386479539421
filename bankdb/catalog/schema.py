"""The database of a bank, as SQLAlchemy 2 typed models.

Types are chosen to compile on SQLite and on PostgreSQL alike; times are ISO 8601 text in UTC.
The tables are made by the migrations in `bankdb.catalog.migrations`; a test holds that both agree.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

FORMAT_VERSION = 1

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


class BankRow(Base):
    """The bank itself: exactly one row, id 1. Layout columns are null until the first adapter."""

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
    created: Mapped[str] = mapped_column(String(32))

    __table_args__ = (CheckConstraint("id = 1", name="single"),)


class BlobRow(Base):
    """Bytes kept once however many adapters share them: safetensors headers, configurations."""

    __tablename__ = "blob"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class AdapterRow(Base):
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
            postgresql_where=text("state = 'ready'"),
        ),
    )


class DatasetRow(Base):
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


class TokenDistributionRow(Base):
    """Sparse token counts of a dataset: little-endian uint32, ids ascending; `sha256` of both together."""

    __tablename__ = "token_distribution"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("dataset.id", ondelete="CASCADE"))
    tokenizer_fingerprint: Mapped[str] = mapped_column(String(64))
    text_rule: Mapped[str] = mapped_column(Text)
    ids: Mapped[bytes] = mapped_column(LargeBinary)
    counts: Mapped[bytes] = mapped_column(LargeBinary)
    sha256: Mapped[str] = mapped_column(String(64))

    __table_args__ = (
        UniqueConstraint("dataset_id", "tokenizer_fingerprint", "text_rule", name="uq_distribution_of"),
    )


class RunRow(Base):
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


class PieceRow(Base):
    """A tile, panel or export of a run that is done; `content` is what it was computed from."""

    __tablename__ = "piece"

    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    content: Mapped[str] = mapped_column(String(64))
    done: Mapped[str] = mapped_column(String(32))


class PredictionRow(Base):
    """A predicted adapter: the coefficients actually used, and where it was exported."""

    __tablename__ = "prediction"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"))
    target: Mapped[str] = mapped_column(Text)
    sources: Mapped[bytes] = mapped_column(LargeBinary)
    weights: Mapped[bytes] = mapped_column(LargeBinary)
    effective_sources: Mapped[float] = mapped_column(Float)
    relative_error: Mapped[float | None] = mapped_column(Float)
    exported_to: Mapped[str | None] = mapped_column(Text)
    export_dtype: Mapped[str | None] = mapped_column(String(16))

    __table_args__ = (UniqueConstraint("run_id", "target", name="uq_prediction_target"),)


class GenerationRow(Base):
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
