"""Migrations that another controller than the planner drives. Older controllers would drive them a second time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrator.store.schema import Number

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of assignments, and how many migrations each controller drives."""
    op.create_table(
        "assignments",
        sa.Column("migration", sa.Text, primary_key=True),
        sa.Column("driver", sa.Text, nullable=False),
        sa.Column("driver_token", Number, nullable=False),
        sa.Column("number", Number, nullable=False),
        sa.Column("given", sa.Text, nullable=False),
        sa.Column("requests", sa.Text, nullable=False),
        sa.Column("report", sa.Text),
        sa.Column("released", sa.Integer, nullable=False),
    )
    op.create_index("assignments_driver", "assignments", ["driver"])
    op.add_column("controllers", sa.Column("migrations", Number))
