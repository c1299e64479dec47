"""The journal's entry of a file that a guest is saved into: there from before it is saved until it has gone on."""

from __future__ import annotations

from typing import Any

from migrator.core.model import State
from migrator.core.saved_guest import SavedSummary
from migrator.engine.migration.journalled_session import JournalledSession

#: Kind of these entries.
SAVED_ENTRY = "saved"


def saved_entry(session: JournalledSession) -> dict[str, Any]:
    """Return the entry of what a migration saves; it has ended where the guest was not saved."""
    over = session.ended and session.state is not State.COMPLETED
    return {
        "id": session.id,
        "guest": session.guest.key,
        "guest_name": session.guest.name,
        "host": session.guest.host,
        "file": session.file.path if session.file is not None else "",
        "state": str(session.state),
        "created_at": session.created_at.isoformat(),
        "ended_at": session.ended_at.isoformat() if over and session.ended_at is not None else None,
        **(saved_details(session.saved_as) if session.saved_as is not None else {}),
    }


def saved_details(saved: SavedSummary) -> dict[str, Any]:
    """Return what an entry keeps of what its file says."""
    return {
        "saved_at": saved.saved_at,
        "size_bytes": saved.bytes,
        "qemu": saved.binary,
        "qemu_version": saved.version,
        "machine": saved.machine,
    }
