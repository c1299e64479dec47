"""The figures of migrations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrator.store.schema import Number

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of samples."""
    op.create_table(
        "samples",
        sa.Column("migration", sa.Text, primary_key=True),
        sa.Column("at", Number, primary_key=True, autoincrement=False),
        sa.Column("body", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
