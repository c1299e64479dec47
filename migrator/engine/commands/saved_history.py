"""The history of a saved guest by the journal: whether its file is the last of it, and whether it ran since."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from migrator.core.model import State
from migrator.ports import Journal

#: Migrations of a guest that are looked through for one with which it went on.
_LATER = 200


async def save_completed(journal: Journal, migration: str) -> bool:
    """Return whether the journal says that the migration which saved a guest has completed."""
    found = await journal.find("migration", migration)
    return found is not None and str(found.get("state")) == State.COMPLETED


async def ran_since(
    journal: Journal, *, guest: str, migration: str, saved_at: float
) -> Mapping[str, Any] | None:
    """Return a migration with which a guest has gone on since it was saved: its file may have been copied.

    :param migration: the one that saved it.
    :param saved_at: seconds since the epoch.
    """
    for found in await journal.page("migration", limit=_LATER, where={"guest": guest}):
        if found["id"] == migration:
            break
        begun = datetime.fromisoformat(str(found["created_at"])).timestamp()
        if begun > saved_at and str(found["state"]) == State.COMPLETED:
            return found
    return None
