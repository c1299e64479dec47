"""Several controllers: which are there, what is not journalled but shown by all, commands that wait for who acts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrator.store.schema import Number

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two tables, and the columns that a command which another controller received needs."""
    op.create_table(
        "controllers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("instance", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("schema", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("started_at", Number, nullable=False),
        sa.Column("seen_at", Number, nullable=False),
    )
    op.create_table(
        "live_documents",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("writer", sa.Text, nullable=False),
        sa.Column("version", Number, nullable=False),
        sa.Column("sequence", Number, nullable=False),
        sa.Column("body", sa.Text),
    )
    op.create_index("live_documents_version", "live_documents", ["version"])
    op.add_column("commands", sa.Column("waiting", sa.Integer, nullable=False, server_default="0"))
    op.add_column("commands", sa.Column("envelope", sa.Text))
    op.add_column("commands", sa.Column("taken_by", sa.Text))
    waiting = sa.text("waiting = 1")
    op.create_index(
        "commands_waiting", "commands", ["claimed_at"], sqlite_where=waiting, postgresql_where=waiting
    )
    # Whoever held it under its former name finds that it has lost it.
    op.execute("UPDATE leases SET name = 'site' WHERE name = 'service'")
