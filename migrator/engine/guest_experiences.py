"""Experience with guests, in memory and in the journal: a small document for each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from migrator.core.guest_experience import GuestExperience, LastMove
from migrator.engine import clock
from migrator.engine.journal_writer import JournalWriter

#: Of its documents in the journal, one for each guest.
KIND = "guest-experience"
#: Guests that are kept, those of whom something was learned last, ...
_MOST_GUESTS = 5000
#: ...and for so long after that.
_KEPT_SECONDS = 180 * 24 * 3600.0


class GuestExperiences:
    """All guests. Implements :class:`migrator.engine.migration.quiet_wait.GuestHistory`."""

    def __init__(self, *, journal_writer: JournalWriter) -> None:
        self._journal_writer = journal_writer
        #: By the guest's key, those of whom something was learned last at the end.
        self._known: dict[str, GuestExperience] = {}

    def of(self, guest: str) -> GuestExperience | None:
        """See the protocol."""
        return self._known.get(guest)

    def note_rate(self, guest: str, bytes_per_second: float) -> None:
        """See the protocol."""
        before = self._known.get(guest, GuestExperience())
        self._keep(guest, before.after_rate(bytes_per_second, at=clock.wall()))

    def note_move(
        self,
        guest: str,
        move: LastMove,
        *,
        working_set_bytes: float,
        first_pass_ratio: float | None,
        watched_seconds: float,
        changes: int,
    ) -> None:
        """Learn from a migration that arrived."""
        before = self._known.get(guest, GuestExperience())
        after = before.after_move(
            move,
            working_set_bytes=working_set_bytes,
            first_pass_ratio=first_pass_ratio,
            watched_seconds=watched_seconds,
            changes=changes,
        )
        self._keep(guest, after)

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Take in what was learned before, as the journal has it.

        :raise ValueError: it cannot be read; likewise KeyError, TypeError and AttributeError.
        """
        guest, found = str(saved["id"]), GuestExperience.from_fields(saved)
        if guest not in self._known:
            self._known[guest] = found
        self._known = dict(sorted(self._known.items(), key=lambda each: each[1].learned_at))
        self._forget()

    def _keep(self, guest: str, learned: GuestExperience) -> None:
        self._known.pop(guest, None)
        self._known[guest] = learned
        self._write(guest)
        self._forget()

    def _write(self, guest: str) -> None:
        self._journal_writer.schedule_latest(KIND, guest, lambda: self._document(guest))

    def _forget(self) -> None:
        """Let those go of whom nothing was learned for long, and those that are too many; the journal prunes them."""
        oldest = clock.wall() - _KEPT_SECONDS
        while self._known:
            guest, known = next(iter(self._known.items()))
            if len(self._known) <= _MOST_GUESTS and known.learned_at >= oldest:
                return
            del self._known[guest]
            self._write(guest)

    def _document(self, guest: str) -> dict[str, Any]:
        known = self._known.get(guest)
        if known is None:
            ended = datetime.fromtimestamp(clock.wall(), UTC).isoformat()
            return {"id": guest, **GuestExperience().fields(), "ended_at": ended}
        return {"id": guest, **known.fields()}
