"""An index by which documents that have not ended are found, however many have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add that index."""
    unfinished = sa.text("ended_at IS NULL")
    op.create_index(
        "documents_unfinished",
        "documents",
        ["kind", "number"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
