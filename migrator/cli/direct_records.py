"""The record of the one migration that ``migrator direct`` drives."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from migrator.core.migration.situation import Intent
from migrator.ports import EndedRecord, Record, StrayRecord
from migrator.store.records import FileRecord, Unfinished


class PairRecords:
    """Implements :class:`migrator.engine.migration.services.StepRecordStore` for one pair.

    :param left: the record that another run left of it, if any.
    """

    whole = True

    def __init__(self, left: Unfinished | None) -> None:
        self._left = left
        self._made: list[FileRecord] = []

    def create(self, migration: str) -> FileRecord:
        """Return a new record; nothing is written yet."""
        self._made.append(FileRecord(migration))
        return self._made[-1]

    async def take_up(self, migration: str) -> tuple[FileRecord, Mapping[str, Any], Intent] | None:
        """Return the record that was left, locked, with its facts and its last intent.

        :raise RecordError: a living migrator drives this migration, or the record cannot be read.
        """
        if self._left is None:
            return None
        record = self._left.claim()
        self._made.append(record)
        return record, self._left.facts, self._left.intent

    async def outcome(self, migration: str) -> EndedRecord | None:
        """Return nothing: records that were put away are not looked at again."""
        return None

    async def strays(self, known: Container[str]) -> Sequence[StrayRecord]:
        """Return nothing: records of other pairs are none of this one's business."""
        return ()

    def release(self, record: Record) -> None:
        """Let go of a record that has not ended."""
        self.close()

    async def put_away(self, migration: str, outcome: Mapping[str, Any]) -> None:
        """Do nothing: the driver puts its own record away."""

    def close(self) -> None:
        """Let go of every record."""
        for record in self._made:
            record.close()
