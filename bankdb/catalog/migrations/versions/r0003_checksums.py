"""Every record has a checksum, every row those of its chunks, and the arrays the mark of who writes them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from bankdb.catalog.migrations.checksums import record_checksum, sealed_columns

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# With the columns that find a record; what their records hold is read from the database.
KEYS = {
    "bank": ("id",),
    "adapter": ("id",),
    "dataset": ("id",),
    "token_distribution": ("id",),
    "run": ("id",),
    "piece": ("run_id", "name"),
    "prediction": ("id",),
    "generation": ("id",),
}
_AT_ONCE = 500


def upgrade() -> None:
    """Add the columns, and a checksum to every record that is there."""
    for table in KEYS:
        op.add_column(table, sa.Column("checksum", sa.String(length=64), nullable=True))
    op.add_column("bank", sa.Column("owner", sa.String(length=32), nullable=True))
    op.add_column("bank", sa.Column("owner_before", sa.String(length=32), nullable=True))
    op.add_column("adapter", sa.Column("checksums", sa.LargeBinary(), nullable=True))
    connection = op.get_bind()
    for name, keys in KEYS.items():
        _seal(connection, sa.Table(name, sa.MetaData(), autoload_with=connection), keys)


def _seal(connection: sa.Connection, table: sa.Table, keys: tuple[str, ...]) -> None:
    kinds = sealed_columns(
        table.name, {item.name: "real" if isinstance(item.type, sa.Float) else "" for item in table.columns}
    )
    finders = [table.c[key] for key in keys]
    wanted = [table.c[name] for name in dict.fromkeys((*keys, *kinds))]
    change = (
        table.update()
        .where(*(column == sa.bindparam(f"of_{column.name}") for column in finders))
        .values(checksum=sa.bindparam("made"))
    )
    last: tuple[object, ...] | None = None
    while True:
        query = sa.select(*wanted).order_by(*finders).limit(_AT_ONCE)
        if last is not None:
            query = query.where(sa.tuple_(*finders) > sa.tuple_(*map(sa.literal, last)))
        found = [row._asdict() for row in connection.execute(query)]
        if not found:
            return
        connection.execute(
            change,
            [
                {"made": record_checksum(table.name, kinds, row)} | {f"of_{key}": row[key] for key in keys}
                for row in found
            ],
        )
        last = tuple(found[-1][key] for key in keys)


def downgrade() -> None:
    """Forget the checksums; they can be made again."""
    for table in KEYS:
        op.drop_column(table, "checksum")
    op.drop_column("bank", "owner")
    op.drop_column("bank", "owner_before")
    op.drop_column("adapter", "checksums")
