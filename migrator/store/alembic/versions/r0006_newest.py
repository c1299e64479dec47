"""A page of documents is read by one index, the newest first, whatever is asked for."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace indices."""
    for column in ("state", "guest", "source", "destination", "evacuation", "command"):
        op.drop_index(f"documents_{column}", "documents", if_exists=True)
        op.create_index(f"documents_{column}", "documents", [column, "kind", "number"])
    op.create_index("documents_newest", "documents", ["kind", "number"])
