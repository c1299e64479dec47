"""The steps of the service's migrations: one append-only file each, beside the journal.

The journal says which migrations there are; how far one got is noted here, because a step must be on record before it
is taken and may not wait for a database's commit while a guest stands still.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from migrator.core.migration.situation import Intent
from migrator.core.model import State
from migrator.errors import RecordError
from migrator.ports import EndedRecord, Record, StrayRecord
from migrator.store.records import FileRecord, Unfinished


def controller_id(directory: Path) -> str:
    """Return the id that stays the same for as long as the journal in that directory is used: QEMUs are marked by it.

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
    """See :class:`migrator.engine.migration.services.StepRecordStore`.

    :param directory: made when the first record begins.
    :param whole: see :attr:`migrator.engine.migration.services.StepRecordStore.whole`.
    """

    def __init__(self, directory: Path, *, whole: bool = True) -> None:
        self._directory = directory
        self.whole = whole

    def create(self, migration: str) -> Record:
        return FileRecord(migration, directory=self._directory)

    async def take_up(self, migration: str) -> tuple[Record, Mapping[str, Any], Intent] | None:
        path = self._directory / f"{migration}.jsonl"
        if not path.exists():
            return None  # it never began, or has ended: see outcome()
        left = Unfinished(path)
        left.claim()
        return left.record, left.facts, left.intent

    async def outcome(self, migration: str) -> EndedRecord | None:
        path = self._directory / "ended" / f"{migration}.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            ended = json.loads(lines[-1])["end"]
            State(ended["state"])
            attempt = json.loads(lines[0])["facts"].get("attempt", 1) if len(lines) > 1 else 1
            return EndedRecord(attempt=int(attempt), postponed=bool(ended.get("postponed")), fields={**ended})
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    async def strays(self, known: Container[str]) -> Sequence[StrayRecord]:
        found = []
        for path in sorted(self._directory.glob("*.jsonl")):
            if path.stem in known:
                continue
            facts: Mapping[str, Any] | None = None
            try:
                facts = Unfinished(path).facts
            except RecordError:
                if not path.exists():
                    continue
            found.append(StrayRecord(migration=path.stem, path=str(path), facts=facts))
        return found

    def release(self, record: Record) -> None:
        if isinstance(record, FileRecord):
            record.close()

    async def put_away(self, migration: str, outcome: Mapping[str, Any]) -> None:
        record = FileRecord(
            migration, directory=self._directory
        )  # one that cannot be read can be put away all the same
        if record.path.exists():
            await asyncio.to_thread(lambda: record.reopen().put_away(outcome))
