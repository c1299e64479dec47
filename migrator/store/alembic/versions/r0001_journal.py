"""The journal as it was first: documents, events, commands, tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrator.store.schema import Number

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "documents",
        sa.Column("number", Number, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("state", sa.Text),
        sa.Column("guest", sa.Text),
        sa.Column("source", sa.Text),
        sa.Column("destination", sa.Text),
        sa.Column("evacuation", sa.Text),
        sa.Column("command", sa.Text),
        sa.Column("created_at", Number),
        sa.Column("ended_at", Number),
        sa.Column("body", sa.Text, nullable=False),
        sa.UniqueConstraint("kind", "id"),
        sqlite_autoincrement=True,
    )
    op.create_index("documents_ended", "documents", ["kind", "ended_at"])
    op.create_index("documents_state", "documents", ["kind", "state"])
    for column in ("guest", "source", "destination", "evacuation", "command"):
        op.create_index(f"documents_{column}", "documents", [column])
    op.create_table(
        "events",
        sa.Column("event_id", Number, primary_key=True),
        sa.Column("sequence", Number, nullable=False),
        sa.Column("time", Number, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("subject_id", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_index("events_subject", "events", ["subject", "subject_id", "event_id"])
    op.create_table(
        "commands",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("body_hash", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("claimed_at", Number, nullable=False),
        sa.Column("answered_at", Number),
        sa.Column("settled", sa.Integer, nullable=False),
        sa.Column("reply", sa.Text),
    )
    op.create_index("commands_claimed", "commands", ["claimed_at"])
    op.create_index("commands_settled", "commands", ["settled"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("created_at", Number, nullable=False),
        sa.Column("expires_at", Number),
        sa.Column("revoked_at", Number),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
