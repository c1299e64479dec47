"""Environment of every alembic command: the connection it is given, and the one transaction that is open there."""

from __future__ import annotations

from alembic import context

from migrator.store.schema import metadata

# SQLite's data definition is transactional, whatever alembic believes of it: a revision is there whole or not at all.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
