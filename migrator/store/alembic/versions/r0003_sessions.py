"""Sessions of the page."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrator.store.schema import Number

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of the page's sessions."""
    op.create_table(
        "sessions",
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("token", sa.Text, nullable=False),
        sa.Column("created_at", Number, nullable=False),
        sa.Column("ends_at", Number, nullable=False),
        sa.Column("ended_at", Number),
    )
