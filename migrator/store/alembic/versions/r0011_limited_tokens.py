"""Tokens that are limited to some hosts. Older controllers would take them for tokens of the whole site."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; the tokens that there are were made for all hosts."""
    op.add_column("tokens", sa.Column("hosts", sa.Text))
