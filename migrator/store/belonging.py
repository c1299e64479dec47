"""The journal and the records of steps belong together: each start of the service marks both, and looks at the marks.

A journal from a backup beside newer records, or records without their journal, say less than what happened: what is
missing then is no proof that nothing was done.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from migrator import logs
from migrator.errors import JournalError
from migrator.store.journal import SqlJournal

#: Of the journal's table ``meta``: the mark of the last start.
KEY = "life"
#: In the directory of the records: the same, and while it is being changed the one before.
FILE = "belongs.json"
#: Seconds after which journal and records that did not belong together do so: all has been looked at by then.
_DOUBT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Marks that the last start left."""

    #: In the journal; ``None``: it has none yet.
    journal: str | None
    #: Beside the records; empty: none yet, or it cannot be read.
    records: frozenset[str]

    def doubt(self, directory: Path) -> str:
        """Return why the two do not belong together, in one line; empty where they do."""
        if self.journal is None and not self.records:
            return ""  # both are new, or of a version that did not mark them
        if self.journal in self.records:
            return ""
        if not self.records:
            what = f"the journal's records of steps are not in {directory}"
        elif self.journal is None:
            what = f"the records of steps in {directory} belong to another journal"
        else:
            what = f"the journal and the records of steps in {directory} are not of the same time"
        return (
            f"{what}: one was restored or moved without the other. What was under way is held where that matters: see "
            "docs/backup.md"
        )


def read(directory: Path) -> frozenset[str]:
    """Return the marks beside the records; none where they cannot be read."""
    try:
        found = json.loads((directory / FILE).read_text(encoding="utf-8"))
        return frozenset(str(each) for each in (found["now"], found.get("before")) if each)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return frozenset()


async def marks(journal: SqlJournal, directory: Path) -> Marks:
    """Return the marks as they are.

    :raise JournalError: the journal cannot be read.
    """
    return Marks(journal=await journal.meta(KEY), records=await asyncio.to_thread(read, directory))


async def mark(journal: SqlJournal, directory: Path) -> None:
    """Mark both anew; killed in between they still belong together.

    What cannot be written now stays as it was: the marks of the start before are as good.
    """
    before, now = await journal.meta(KEY), secrets.token_hex(8)
    try:
        await asyncio.to_thread(_write, directory, now, before)
        await journal.keep_meta(KEY, now)
        await asyncio.to_thread(_write, directory, now, None)
    except (JournalError, OSError) as error:
        logs.logger().warning("journal and records not marked", error=str(error))


async def mark_later(journal: SqlJournal, directory: Path) -> None:
    """Mark both once what was under way has been looked at.

    A service that is killed before shall doubt at its next start as at this one.
    """
    await asyncio.sleep(_DOUBT_SECONDS)
    await mark(journal, directory)


def _write(directory: Path, now: str, before: str | None) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    beginning = directory / f"{FILE}.beginning"
    with beginning.open("w", encoding="utf-8") as file:
        json.dump({"now": now, "before": before}, file)
        file.flush()
        os.fsync(file.fileno())
    beginning.replace(directory / FILE)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
