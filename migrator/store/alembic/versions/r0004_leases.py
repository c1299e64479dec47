"""Leases, and by what a transaction is found again whose end nobody heard of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrator.store.schema import Number

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables of leases and of commits."""
    op.create_table(
        "writers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("batch", Number, nullable=False),
        sa.Column("written_at", Number, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("token", Number, nullable=False),
        sa.Column("taken_at", Number, nullable=False),
        sa.Column("ends_at", Number, nullable=False),
    )
