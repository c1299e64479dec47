"""The part of its loop that all migrations share: errors of this program, doubtful answers, requests to cancel."""

from __future__ import annotations

from typing import ClassVar

from migrator.core.migration.rules import Next, Step
from migrator.core.model import State
from migrator.engine.migration.driver_state import DriverState
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.errors import Driven, Fault
from migrator.faults import contained

#: Two ends are not looked at in one instant, so what needs a person must show so many times in a row.
_LOOKS_TO_HOLD = 3
#: After so many errors of our own in one migration its guest is left to a person.
_FAULTS_BORNE = 5


class ContainedLoop(DriverState):
    """Goes on with a migration until it has ended or is parked, whatever goes wrong in this program meanwhile."""

    #: Said of a cancel that comes too late.
    _too_late_reason: ClassVar[str]

    async def _go_on(self) -> MigrationOutcome:
        """Look and take steps until it has ended, or is parked."""
        raise NotImplementedError

    async def _end(self, answer: Next) -> MigrationOutcome:
        """End it as that row of its table says."""
        raise NotImplementedError

    async def _drive(self) -> MigrationOutcome:
        """Drive it to its end, or until it is parked; its stream is let go of whatever happens."""
        try:
            return await self._drive_on()
        finally:
            await self._shaper.close()

    async def _drive_on(self) -> MigrationOutcome:
        faults = 0
        while True:
            try:
                with contained(f"migration {self.result.id}"):
                    return await self._go_on()
            except Driven as error:
                self._observer.complain(str(error))
                why = "another controller has taken it over: what it does with the guest is its own"
                return await self._end(
                    Next(step=Step.END, row="driven-elsewhere", why=why, outcome=State.HELD)
                )
            except Fault as fault:
                faults += 1
                self._observer.complain(str(fault))
                if faults == _FAULTS_BORNE:
                    return await self._end(
                        Next(step=Step.END, row="controller-failed", why=str(fault), outcome=State.HELD)
                    )
                # The guest first: before the switch it stays where it is, after it what is begun is finished.
                if self.can_cancel and self._intent_log.intent.undo is None:
                    self._intent_log.undo(State.FAILED, str(fault))
            await self._observer.pause(0.1 * faults)

    def _confirmed(self, answer: Next) -> bool:
        """Tell whether the last looks, so many in a row, had the same answer."""
        row, times = self._suspect
        self._suspect = (answer.row, times + 1 if row == answer.row else 1)
        return self._suspect[1] >= _LOOKS_TO_HOLD

    def _heed_cancel(self) -> None:
        """Undo it where that was asked for and is still safe by the last look; say once where it is too late."""
        if not self.requests.cancel or self._too_late or self._intent_log.intent.undo is not None:
            return
        if self.can_cancel:
            self._intent_log.undo(State.CANCELLED, "cancelled", by_choice=True)
        else:
            self._too_late = True
            self._intent_log.decide("too-late", f"too late to cancel: {self._too_late_reason}")
