"""The steps of the service's migrations: one append-only file each, beside the journal.

The journal says which migrations there are; how far one got is noted here, because a step must be on record before it
is taken and may not wait for a database's commit while a guest stands still.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from migrator.core.situation import Intent
from migrator.errors import RecordError
from migrator.ports import Record
from migrator.store.records import FileRecord, Unfinished


def controller_id(directory: Path) -> str:
    """What stays the same for as long as the journal in that directory is used: by it QEMUs are marked.

    :raise RecordError: it cannot be read or written.
    """
    path = directory / "controller"
    try:
        if not path.exists():
            beginning = path.with_suffix(".new")
            beginning.write_text(os.urandom(8).hex(), encoding="ascii")
            beginning.replace(path)
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged: delete it"
        raise RecordError(f"the controller's id {path} cannot be had: {why}") from error


class StepRecords:
    """See :class:`migrator.engine.job.Records`.

    :param directory: made when the first record begins.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, migration: str) -> Record:
        return FileRecord(migration, directory=self._directory)

    def take_up(self, migration: str) -> tuple[Record, Mapping[str, Any], Intent] | None:
        path = self._directory / f"{migration}.jsonl"
        if not path.exists():
            return None  # it never began, or has ended: see outcome()
        left = Unfinished(path)
        left.claim()
        return left.record, left.facts, left.intent

    def outcome(self, migration: str) -> Mapping[str, Any] | None:
        path = self._directory / "ended" / f"{migration}.jsonl"
        try:
            last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        except (OSError, ValueError, IndexError):
            return None
        ended = last.get("end") if isinstance(last, dict) else None
        return ended if isinstance(ended, dict) and "state" in ended else None

    def release(self, record: Record) -> None:
        if isinstance(record, FileRecord):
            record.close()

    async def put_away(self, migration: str, outcome: Mapping[str, Any]) -> None:
        path = self._directory / f"{migration}.jsonl"
        if path.exists():
            await asyncio.to_thread(lambda: Unfinished(path).claim().put_away(outcome))
