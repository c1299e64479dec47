"""Orders of one migration to its source's guard, and what it finds of what a guard has done."""

from __future__ import annotations

from migrator.core.migration.situation import Milestone, SourceIs, source_is
from migrator.core.model import MigrationStatus, State, View
from migrator.engine.migration.intent_log import IntentLog
from migrator.errors import QemuError
from migrator.ports import Qemu

#: A migration that was cancelled, or is about to be; or whose stream the guard broke off, as QEMU answered no cancel.
_CANCELLED = (MigrationStatus.CANCELLING, MigrationStatus.CANCELLED, MigrationStatus.FAILED)
#: The action of the decision that a guard has ended a migration.
GUARD = "guard"
#: One that was near its switch is not taken to be far from it before it goes on for so long.
_SURELY_FAR_SECONDS = 2.0
ENDED = "the guest came to its switch while nobody could steer it, and the guard had it go on at the source"


class Guarding:
    """The guard of one migration's source, from before it copies until it is switched.

    Not of a postcopy: whatever cancels one after its switch destroys the guest, so nobody but the controller may.
    """

    def __init__(self, source: Qemu, *, migration: str, intent_log: IntentLog) -> None:
        self._source, self._migration = source, migration
        self._intent_log = intent_log
        #: What the guard was told last: whether we have stopped the guest; ``None``: it guards nothing.
        self._told: bool | None = None
        #: It may cancel: the source has the mark without which it does not.
        self._armed = False
        self._near = False
        #: The source did not answer when it was looked at last before the migration was undone.
        self._undone_unseen = False
        self._sessions = source.guard.sessions

    async def begin(self) -> None:
        """Have it guarded, or guarded as it is now: a guest that rests by itself can stand still.

        :raise QemuError: the source did not take its mark; it is tried again when this is called again.
        """
        intent = self._intent_log.intent
        wanted = intent.undo is None and not intent.postcopy and intent.milestone <= Milestone.MIGRATING
        changed = self._told is not intent.stopped_by_us
        if wanted and intent.guest_runs and (changed or not self._armed):
            if self._told is None:
                self._sessions = self._source.guard.sessions  # in those before it guarded nothing
            self._told, self._armed = intent.stopped_by_us, False
            await self._source.guard.begin(self._migration, stopped=intent.stopped_by_us)
            self._armed = True

    def note_distance(self, far_seconds: float) -> None:
        """Note for how many seconds the guest certainly does not come to its switch; 0 where it may be near."""
        if self._told is not None:
            self._near = far_seconds <= 0.0 or (self._near and far_seconds < _SURELY_FAR_SECONDS)
            self._source.guard.near(self._near)

    def end(self) -> None:
        """Have it guarded no more: it is switched, or over."""
        if self._told is not None:
            self._told = None
            self._source.guard.end()

    async def release(self) -> bool:
        """Have it guarded no more, for certain: what follows is past a cancel. False where that cannot be had now."""
        if self._told is None:
            return True
        released = await self._source.guard.release()
        self._told = None if released else self._told
        return released

    async def leave(self) -> bool:
        """Leave it to the guard, which holds the stream back; False where there is none."""
        return self._told is not None and await self._source.guard.leave()

    def acted_meanwhile(self) -> bool:
        """Return whether a guard may have changed parameters since this was asked last: we were away for a moment."""
        before, self._sessions = self._sessions, self._source.guard.sessions
        return before != self._sessions

    async def note_end(self, source: View) -> bool:
        """Note in the intent that a guard has ended the migration, where it has: it may begin anew.

        What was concluded while the source did not answer gives way to it: a destination whose stream the guard has
        ended dies, and may be heard of before the source is.

        :return: False where that cannot be told now: look again before anything is decided.
        """
        intent = self._intent_log.intent
        if intent.undo is None:
            self._undone_unseen = not source.answers
        elif not self._undone_unseen or intent.undo is not State.FAILED:
            return True
        settled = source_is(source) in (
            SourceIs.RUNS,
            SourceIs.RESTS,
            SourceIs.FAILING,
            SourceIs.LEFT_STOPPED,
        )
        began = intent.milestone in (Milestone.MIGRATING, Milestone.SWITCHING)
        if not began or not settled or source.status not in _CANCELLED:
            return True
        try:
            if await self._source.guard.has_ended(self._migration):
                self._intent_log.decide(GUARD, ENDED)
                self._intent_log.undo(State.CANCELLED, ENDED, by_choice=True, postponed=True, first=False)
        except QemuError:
            return False
        return True
