"""The steps of migrations, where they are not in files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrator.store.schema import Number

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of records of steps."""
    op.create_table(
        "step_records",
        sa.Column("migration", sa.Text, primary_key=True),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("intent", sa.Text, nullable=False),
        sa.Column("begun_at", Number, nullable=False),
        sa.Column("noted_at", Number, nullable=False),
        sa.Column("exact", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("ended_at", Number),
    )
    op.create_index("step_records_ended", "step_records", ["ended_at"])
