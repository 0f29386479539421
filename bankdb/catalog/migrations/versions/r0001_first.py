"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_WIDE = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    """Make every table of the first schema."""

    op.create_table(
        "bank",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("format_version", sa.Integer(), nullable=False),
        sa.Column("identity", sa.String(length=32), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("base_model_aliases", sa.Text(), nullable=False),
        sa.Column("base_model_revision", sa.Text(), nullable=True),
        sa.Column("tokenizer_name", sa.Text(), nullable=False),
        sa.Column("tokenizer_fingerprint", sa.String(length=64), nullable=False),
        sa.Column("vocabulary", sa.Integer(), nullable=False),
        sa.Column("text_rule", sa.Text(), nullable=False),
        sa.Column("next_row", sa.Integer(), nullable=False),
        sa.Column("layout", sa.Text(), nullable=True),
        sa.Column("parameters", _WIDE, nullable=True),
        sa.Column("alpha", sa.Float(), nullable=True),
        sa.Column("use_rslora", sa.Integer(), nullable=True),
        sa.Column("scaling", sa.Float(), nullable=True),
        sa.Column("dtype", sa.String(length=16), nullable=True),
        sa.Column("task_type", sa.Text(), nullable=True),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_bank_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bank")),
    )
    op.create_table(
        "blob",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blob")),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("inputs_sha256", sa.String(length=64), nullable=False),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("seed", _WIDE, nullable=True),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.Column("finished", sa.String(length=32), nullable=True),
        sa.CheckConstraint("state IN ('open', 'done')", name=op.f("ck_run_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
        sa.UniqueConstraint("inputs_sha256", name=op.f("uq_run_inputs_sha256")),
    )
    op.create_table(
        "adapter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("row", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("alpha", sa.Float(), nullable=True),
        sa.Column("use_rslora", sa.Integer(), nullable=True),
        sa.Column("scaling", sa.Float(), nullable=True),
        sa.Column("dtype", sa.String(length=16), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("source_sha256", sa.String(length=64), nullable=True),
        sa.Column("header_sha256", sa.String(length=64), nullable=True),
        sa.Column("config_sha256", sa.String(length=64), nullable=True),
        sa.Column("row_sha256", sa.String(length=64), nullable=True),
        sa.Column("licence", sa.Text(), nullable=True),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.CheckConstraint("state IN ('reserved', 'ready')", name=op.f("ck_adapter_state")),
        sa.ForeignKeyConstraint(
            ["config_sha256"], ["blob.sha256"], name=op.f("fk_adapter_config_sha256_blob")
        ),
        sa.ForeignKeyConstraint(
            ["header_sha256"], ["blob.sha256"], name=op.f("fk_adapter_header_sha256_blob")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter")),
        sa.UniqueConstraint("row", name=op.f("uq_adapter_row")),
    )
    op.create_index(
        "uq_adapter_ready_name",
        "adapter",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state = 'ready'"),
        postgresql_where=sa.text("state = 'ready'"),
    )
    op.create_table(
        "piece",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("done", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_piece_run_id_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name", name=op.f("pk_piece")),
    )
    op.create_table(
        "prediction",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("sources", sa.LargeBinary(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("effective_sources", sa.Float(), nullable=False),
        sa.Column("relative_error", sa.Float(), nullable=True),
        sa.Column("exported_to", sa.Text(), nullable=True),
        sa.Column("export_dtype", sa.String(length=16), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["run.id"], name=op.f("fk_prediction_run_id_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prediction")),
        sa.UniqueConstraint("run_id", "target", name="uq_prediction_target"),
    )
    op.create_table(
        "dataset",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("group_name", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("examples", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("created", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name=op.f("fk_dataset_adapter_id_adapter"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
        sa.UniqueConstraint("adapter_id", name=op.f("uq_dataset_adapter_id")),
    )
    op.create_index(op.f("ix_dataset_content_sha256"), "dataset", ["content_sha256"], unique=False)
    op.create_table(
        "token_distribution",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("tokenizer_fingerprint", sa.String(length=64), nullable=False),
        sa.Column("text_rule", sa.Text(), nullable=False),
        sa.Column("ids", sa.LargeBinary(), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["dataset.id"],
            name=op.f("fk_token_distribution_dataset_id_dataset"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token_distribution")),
        sa.UniqueConstraint("dataset_id", "tokenizer_fingerprint", "text_rule", name="uq_distribution_of"),
    )


def downgrade() -> None:
    """Refuse: dropping the first schema would drop the bank."""
    raise NotImplementedError("the first schema cannot be taken back; delete the bank's folder instead")
