"""Takes the steps that the lifecycle table names, each with its intent on record first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from migrator import logs
from migrator.core.migration.lifecycle import Next, Step
from migrator.core.migration.situation import Milestone
from migrator.core.model import ProcessState, State
from migrator.engine.migration.block_job_wait import too_late
from migrator.engine.migration.disk_mirrors import DiskMirrors
from migrator.engine.migration.guarding import Guarding
from migrator.engine.migration.intent_log import IntentLog
from migrator.engine.migration.observer import Observer
from migrator.engine.migration.outcome import MigrationOutcome
from migrator.engine.migration.postcopy_steering import PostcopySteering
from migrator.engine.migration.prepare import together
from migrator.engine.migration.runtime_settings import RuntimeSettings
from migrator.engine.migration.stream_recovery import StreamRecovery
from migrator.engine.migration.stream_security import StreamSecurity
from migrator.engine.migration.stream_shaper import StreamShaper
from migrator.errors import CommandFailed, Driven, QemuError
from migrator.ports import MigrationSettings, Qemu

#: So long putting the source's settings back is tried.
_PUT_BACK_SECONDS = 5.0
#: How often, and how many seconds apart, a silent destination is looked at before it is dismissed.
_ENDING_LOOKS, _ENDING_PAUSE_SECONDS = 10, 0.05
_WORTH_TELLING = (Step.HAND_OVER, Step.FENCE_DESTINATION, Step.FENCE_SOURCE, Step.REVIVE, Step.RESUME)


class Steps:
    """The steps of one migration.

    :ivar settings: the source's, as they were; :attr:`~migrator.core.migration.lifecycle.Step.RESTORE` puts them back.
    """

    def __init__(
        self,
        source: Qemu,
        destination: Qemu,
        *,
        intent_log: IntentLog,
        observer: Observer,
        shaper: StreamShaper,
        guarding: Guarding,
        mirrors: DiskMirrors,
        result: MigrationOutcome,
        recovery: StreamRecovery,
        postcopy_steering: PostcopySteering,
        security: StreamSecurity,
    ) -> None:
        self._source, self._destination = source, destination
        self._postcopy_steering = postcopy_steering
        self._intent_log = intent_log
        self._observer = observer
        self._shaper = shaper
        self._guarding = guarding
        self._mirrors = mirrors
        self._result = result
        self._log = logs.logger(migration=result.id)
        self.settings: MigrationSettings | None = None
        self.recovery = recovery
        self._security = security
        self.runtime_settings = RuntimeSettings(source, destination, result=result)

    async def take(self, answer: Next) -> bool:
        """Take one step. What QEMU answers is only a hint: the next look shows what became of it.

        :raise Driven: another controller has taken an end over; nothing was done to it.
        :return: True when the migration is complete though the source could not be seen to end.
        """
        if answer.step in (Step.CANCEL, Step.FENCE_DESTINATION, Step.REVIVE, Step.RESUME, Step.RESTORE):
            self._intent_log.undo(State.FAILED, answer.why)
        steps: dict[Step, Callable[[], Coroutine[Any, Any, None]]] = {
            Step.SWITCH: self._switch,
            Step.HAND_OVER: self._hand_over,
            Step.PAUSE_STREAM: self.recovery.pause,
            Step.RECOVER: self.recovery.recover,
            Step.CANCEL: self._cancel,
            Step.FENCE_DESTINATION: self._fence_destination,
            Step.FENCE_SOURCE: self._fence_source,
            Step.REVIVE: self._revive,
            Step.RESUME: self._resume,
            Step.RESTORE: self._restore,
            Step.DISMISS: self._dismiss,
        }
        try:
            if answer.step is Step.RETIRE:
                return not await self._retire(answer)
            if answer.step in _WORTH_TELLING and not answer.again:
                self._intent_log.decide(answer.step, answer.why)
            await steps[answer.step]()
        except Driven:
            raise
        except QemuError as error:
            self._log.warning("step failed", step=answer.step, row=answer.row, error=str(error))
            self._observer.complain(str(error))
            await self._observer.pause(0.05)
        return False

    async def _switch(self) -> None:
        # The last look: from here on QEMU makes the images the destination's, and a job that still has one is lost, or
        # takes the source along.
        switching = self._intent_log.intent.milestone is Milestone.SWITCHING
        intent = self._intent_log.intent
        rests = not intent.guest_runs or (intent.stopped_by_us and not intent.postcopy)
        ceiling = None if rests else self._result.max_downtime_seconds
        users = await self._observer.disk_users()
        ending = self._mirrors.end(users, ceiling_seconds=ceiling, ended_before=switching)
        (not_copied, busy), _ = await together(ending, self._shaper.before_switch())
        if not_copied or busy or busy.mirrors_at_work:
            held = ", ".join(str(job) for job in busy.mirrors_at_work)
            why = not_copied or (too_late(busy) if busy else f"{held} still holds a disk of the guest")
            self._intent_log.undo(State.FAILED, why)
            await self._observer.pause(0.02)
            return
        self._intent_log.note(milestone=Milestone.SWITCHING)
        if self._intent_log.intent.milestone is Milestone.SWITCHING:
            await self._source.switch()
            self._guarding.end()

    async def _hand_over(self) -> None:
        self._intent_log.note(milestone=Milestone.HANDED_OVER)
        if self._intent_log.intent.postcopy:
            await together(self._destination.cont(), self._postcopy_steering.begin())
        else:
            await self._destination.cont()

    async def _retire(self, answer: Next) -> bool:
        if self._result.duration_seconds is None:
            self._result.duration_seconds = self._intent_log.elapsed
        self._intent_log.note(milestone=Milestone.RETIRING)
        if answer.announce and self._intent_log.intent.guest_runs:
            await self._announce(self._destination)
        if answer.outcome is State.COMPLETED and (await self._source.observe()).answers:
            await self.runtime_settings.after(self.settings)
        gone = await self._source.quit()
        if not gone:
            self._result.warn(
                "source-left-over",
                f"{self._source.name} could not be seen to end; it cannot run the guest by itself",
                "end that process; do not send cont to it",
            )
        return gone

    async def _cancel(self) -> None:
        await self._source.cancel()
        await self._observer.pause(0.1)

    async def _fence_destination(self) -> None:
        self._observer.destination_fenced = True
        if not await self._destination.fence():
            self._intent_log.note(fence_failed=True)

    async def _fence_source(self) -> None:
        if not await self._source.fence():
            self._intent_log.note(fence_failed=True)

    async def _revive(self) -> None:
        self._intent_log.note()
        if self._intent_log.intent.guest_runs:
            await self._source.cont()
        else:
            # A guest left in postmigrate cannot migrate again until it was continued: for the blink of an eye.
            await together(self._source.cont(), self._source.stop())

    async def _resume(self) -> None:
        await self._source.cont()
        self._intent_log.note(stopped_by_us=False)

    async def _restore(self) -> None:
        await self._mirrors.give_up()
        if self._intent_log.intent.stopped_by_us and self._intent_log.intent.guest_runs:
            await self._source.cont()
        if self.settings is not None:
            await self._put_back(self.settings)
        await self._security.end(self._source)
        if self._observer.stopped and self._intent_log.intent.guest_runs:
            await self._announce(self._source)
        self._intent_log.note(restored=True, stopped_by_us=False)

    async def _put_back(self, settings: MigrationSettings) -> None:
        """Put the source's settings back; tried again, as QEMU may refuse it for a moment after a failed migration."""
        give_up_at = self._intent_log.elapsed + _PUT_BACK_SECONDS
        while True:
            try:
                await self._source.restore(settings)
                return
            except CommandFailed as error:
                if self._intent_log.elapsed > give_up_at:
                    self._result.warn(
                        "not-restored",
                        f"not all of the source's migration settings could be put back: {error}",
                        "compare query-migrate-parameters and query-migrate-capabilities with what you expect",
                    )
                    return
                await asyncio.sleep(0.02)  # not for an event: the last ones may still be unread

    async def _dismiss(self) -> None:
        if await self._ends_by_itself():
            return  # the next look says so
        gone = await self._destination.quit()
        self._intent_log.note(dismissed=True)
        if not gone:
            self._result.warn(
                "destination-left-over",
                f"{self._destination.name} could not be seen to end; it holds nothing and does not run",
                "end that process",
            )

    async def _ends_by_itself(self) -> bool:
        """Tell whether a silent destination ends: it closes its connections a moment before its process is gone."""
        for _ in range(_ENDING_LOOKS):
            view = await self._destination.observe(timeout=_ENDING_PAUSE_SECONDS)
            if view.answers or view.process is ProcessState.UNKNOWN:
                return False
            if view.process is ProcessState.DEAD:
                return True
            await asyncio.sleep(_ENDING_PAUSE_SECONDS)
        return False

    async def _announce(self, end: Qemu) -> None:
        try:
            await end.announce()
        except QemuError as error:
            self._result.warn(
                "not-announced",
                f"the guest's network addresses could not be announced: {error}",
                "send a packet from the guest, so that switches learn where it is",
            )
