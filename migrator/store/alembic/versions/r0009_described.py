"""Controllers say how long their leases hold, and which hosts they are configured for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrator.store.schema import Number

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two columns, which older controllers leave empty."""
    op.add_column("controllers", sa.Column("lease_length", Number))
    op.add_column("controllers", sa.Column("hosts", sa.Text))
