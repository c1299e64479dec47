"""There is no room for the record any more in the middle of a migration."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.core.migration.situation import Intent, Milestone
from migrator.core.model import State
from migrator.errors import RecordError
from migrator.store.records import FileRecord
from migrator.testing.lab import GuestMachine, Habit, Lab
from tests.driven import MIB, PLAIN, SLOW, driven
from tests.invariants import witness

BUSY = GuestMachine(habit=Habit(region_bytes=16 * MIB, bytes_per_second=4 * MIB), image_locking="off")


class Cramped(FileRecord):
    """Has no room for what is noted from a milestone on, or for an undo."""

    def __init__(self, limit: Milestone | None) -> None:
        super().__init__("under-test")
        self._limit = limit

    def note_behind(self, intent: Intent) -> None:
        if intent.milestone >= self._limit if self._limit is not None else intent.undo is not None:
            raise RecordError("no space left")
        super().note_behind(intent)


@pytest.mark.parametrize(
    ("limit", "state"),
    [
        (Milestone.MIGRATING, State.FAILED),
        (Milestone.SWITCHING, State.FAILED),
        # A guest that stands still is not left so for the sake of a file.
        (Milestone.HANDED_OVER, State.COMPLETED),
        (Milestone.RETIRING, State.COMPLETED),
        (None, State.FAILED),
    ],
    ids=lambda value: value.name.lower() if isinstance(value, Milestone) else None,
)
async def test_undoes_before_the_switch_and_finishes_after_it(
    lab: Lab, one_version: Path, limit: Milestone | None, state: State
) -> None:
    pair = await lab.pair(BUSY, source=one_version, destination=one_version)
    policy = SLOW.but(max_duration_seconds=0.3) if limit is None else PLAIN
    async with witness(lab, pair) as seen:
        async with driven(pair, policy=policy) as drive:
            result = await drive.run(record=Cramped(limit))
        assert result.state is state
        assert "record-lost" in [finding.code for finding in result.findings]
        await seen.verify(state)
