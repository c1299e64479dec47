"""Takes one migration from its request to its end: opens both ends, checks, records, drives, and clears away.

The same for the service (:class:`migrator.engine.migration.journalled_session.JournalledSession`) and for ``migrator
direct``. How far it is, is its :class:`~migrator.engine.migration.session_phase.Phase`; what others want of it are
its :class:`~migrator.engine.migration.requests.MigrationRequests`. The steps that it takes at both ends are in a
record of their own (:class:`migrator.ports.Record`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from migrator.core.findings import PreflightRefused
from migrator.core.hooks import HookPoint
from migrator.core.migration.convergence_state import Abilities
from migrator.core.migration.disk_copies import DiskCopy, from_fields
from migrator.core.migration.situation import Intent, OperatorAnswer
from migrator.core.model import Finding, State
from migrator.engine import clock
from migrator.engine.migration import cleanup, preflight
from migrator.engine.migration.session_ends import SessionEnds
from migrator.engine.migration.session_phase import Hold, Phase, PreflightRefusal
from migrator.errors import Fault, HostError, JournalError, MigratorError, QemuError, RecordError
from migrator.faults import contained
from migrator.ports import Qemu, Record

#: A destination that was checked so long ago is compared with its source again.
_STALE_SECONDS = 2.0
_CANCELLED = "cancelled before it began"


class MigrationSession(SessionEnds):
    """Takes one migration to its end: :meth:`drive` from its request, :meth:`go_on` from its record."""

    # --- what others may ask of it ---------------------------------------------------------------------------------

    @property
    def can_cancel(self) -> bool:
        """Return whether it is not too late for :meth:`cancel`."""
        if self.ended or self.state is State.HELD:
            return False
        return self._driver is None or self._driver.can_cancel

    @property
    def can_postcopy(self) -> bool:
        """Return whether :meth:`postcopy` would do something."""
        return self._driver is not None and not self.ended and self._driver.can_postcopy

    @property
    def abilities(self) -> Abilities:
        """Return what both ends support, as far as they have been checked."""
        return (
            self._driver.abilities if self._driver is not None else Abilities(postcopy=False, throttle=False)
        )

    def call_off(self) -> None:
        """End it, cancelled, before anything drove it."""
        self._end_as(State.CANCELLED, _CANCELLED)

    def cancel(self) -> bool:
        """Ask for the guest to stay where it is; False when it is too late, and then nothing changes."""
        if not self.can_cancel:
            return False
        self.requests.cancel = True
        self._heed()
        return True

    def admit(self) -> None:
        """Say that its turn has come: the links are given to it."""
        self.requests.admit = True
        self._turn.set()

    def postcopy(self, reason: str = "") -> bool:
        """Ask for postcopy now; False where that is not possible.

        :param reason: why; empty: a person wants it.
        """
        if self._driver is None:
            return False
        if reason and not self.requests.postcopy:
            self.requests.postcopy_reason = reason
        return self._driver.postcopy()

    def set_share(self, bytes_per_second: int | None) -> None:
        """Set its stream's share of the links from now on."""
        if bytes_per_second != self.requests.share:
            self.requests.share = bytes_per_second
            if self._driver is not None:
                self._driver.wake()

    def park(self) -> None:
        """Ask to be left to the next controller: see :meth:`migrator.engine.migration.driver.MigrationDriver.park`."""
        self.requests.park = True
        self._heed()

    def resume(self) -> None:
        """Take back what :meth:`park` asked for, once nothing drives it; one that was left is to be taken up."""
        self.requests.park = False
        if not self.requests.unwanted() and self.phase is Phase.QUEUED:
            self._turn.clear()

    def _heed(self) -> None:
        self._turn.set()
        if self._driver is not None:
            self._driver.wake()

    # --- its way -----------------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        """Take it from being queued to its end; waits between preparation and transfer for :meth:`admit`.

        Afterwards it has ended, is held, is left to the next controller, or is queued to begin anew. Where nothing was
        changed because of an error, that is :attr:`failure`.
        """
        if not await self.prepare():
            return
        since = clock.now()
        self.preparation_seconds = since - self.preparing_since
        waits = not self._turn.is_set()
        self._go(Phase.READY)
        self._on_ready(self)
        await self._turn.wait()
        self._go(Phase.BEGINNING)
        try:
            rested = waits and await self._come_to_rest()
            hindrances = () if self.requests.unwanted() else await self._ask_hooks(HookPoint.BEFORE)
            if self.requests.unwanted():
                await self._fall_back(State.CANCELLED, _CANCELLED)
                return
            if hindrances:
                await self._refuse([*self._found, *hindrances])
                return
            stale = rested or clock.now() - since > _STALE_SECONDS
            if stale and await self._refuse(await self._compare()):
                return
        except MigratorError as error:
            await self._fail(error)
            return
        await self.transfer()

    async def prepare(self) -> bool:
        """Open the source, check, have a destination started; True when :meth:`transfer` may follow.

        The guest notices nothing of it. After False the session has ended and nothing is left behind.
        """
        try:
            with contained(f"migration {self.id}"):
                return await self._prepare()
        except Fault as fault:
            return await self._fail(fault)

    async def _prepare(self) -> bool:
        self._go(Phase.PREPARING)
        self._enter(State.PREPARING)
        with self._slow_step.step(f"{self.guest.host} and {self.target} to answer what a move depends on"):
            self._found = await self._open_source()
        if await self._refuse(self._found) or self._source is None:
            return False
        if not self.requests.unwanted() and (hindrances := await self._ask_hooks(HookPoint.BEFORE_PLAN)):
            await self._refuse([*self._found, *hindrances])
            return False
        try:
            quiet = await self._await_quiet()
            if await self._come_to_rest() or quiet:
                self._found = await self._check(self._source)
                if await self._refuse(self._found):
                    return False
            if self.services.claims_before_start:
                await self._source.claim(self.id)
            if self.requests.unwanted():
                return await self._fall_back(State.CANCELLED, _CANCELLED)
            with self._slow_step.step(f"its QEMU on {self.target} to start", self._at_source):
                await self._start_destination(self._source)
            with self._slow_step.step("both QEMUs to be compared", self._at_source, self._at_destination):
                found = await self._compare()
            if await self._refuse(found):
                return False
            if (other := self._other_guest()) is not None:
                return await self._fall_back(State.FAILED, other)
        except PreflightRefused as error:
            await self._refuse([*self._found, *error.findings])
            return False
        except MigratorError as error:
            return await self._fail(error)
        if self.requests.unwanted():
            return await self._fall_back(State.CANCELLED, _CANCELLED)
        return True

    async def transfer(self) -> None:
        """Move the guest; afterwards the session has ended, is held, or is left to the next controller."""
        if self._driver is None:
            raise RuntimeError("prepare() comes before transfer()")
        self.started_at = datetime.now(UTC)
        try:
            await self.services.site.suppress_restart(self.guest)
            self.result = await self._driver.run(begun=self._note_record)
        except (RecordError, JournalError, QemuError, HostError) as error:
            self.attempt = replace(self.attempt, recorded=False)
            await self._fail(error)
            return
        await self.close()

    async def _note_record(self) -> None:
        """Journal that the record is there, and where the destination is, before either end is touched."""
        self.attempt = replace(self.attempt, recorded=True)
        await self.services.keep(self)
        self._go(Phase.DRIVEN)

    async def go_on(
        self,
        record: Record,
        facts: Mapping[str, Any],
        intent: Intent,
        source: Qemu,
        destination: Qemu,
        *,
        anew: bool = False,
    ) -> None:
        """Drive it with these, which it lets go in the end: until it has ended, is held, or is left again.

        :param facts: what the record began with.
        :param intent: the last it noted.
        :param anew: see :meth:`migrator.engine.migration.driver.MigrationDriver.take_up`.
        """
        self._go(Phase.DRIVEN)
        self.record, self._source, self._destination = record, source, destination
        self.attempt, self.holding = replace(self.attempt, recorded=True), None
        self.started_at = self.started_at or self.created_at
        before, self.result = self.result, self._no_outcome()
        self.result.decisions, self.result.findings = before.decisions, before.findings
        self._driver = self._make_driver(source, destination, record, "")
        self.result = await self._driver.take_up(facts, intent, began_ago_seconds=self.began_ago(), anew=anew)
        await self.close(lost=intent.said is OperatorAnswer.LOST)

    # --- its end -----------------------------------------------------------------------------------------------------

    async def _refuse(self, findings: Sequence[Finding]) -> bool:
        found = list({(each.code, each.message): each for each in findings}.values())
        self.result.findings = list(self.services.accept(found, self.accepted))
        errors = preflight.errors(self.result.findings)
        if not errors:
            return False
        self.refusal = PreflightRefusal(
            may_pass={each.code for each in errors} <= preflight.MAY_PASS,
            everywhere=preflight.hopeless(errors),
        )
        await self._fall_back(State.FAILED, preflight.in_one_line(errors))
        return True

    async def _fail(self, error: MigratorError) -> bool:
        self.failure = error
        return await self._fall_back(State.FAILED, str(error))

    async def _fall_back(self, state: State, error: str) -> bool:
        """End it before anything was changed; always False."""
        if self._source is not None:
            await self._source.release()
            await cleanup.allow_restart(self)
        if self.requests.park and state is State.CANCELLED and not self.requests.cancel:
            await self._let_go()
            self.begin_anew()  # by the next controller
            return False
        if self.requests.cancel and state is State.FAILED:
            state, error = State.CANCELLED, f"{_CANCELLED}; besides: {error}"
        await self._let_go()
        self.result.state, self.result.error = state, error.replace("\n", " ")
        await self._tell_end(state)
        self._end(state)
        return False

    def _become_of_images(self, ended: Mapping[str, Any] | None) -> tuple[bool, Sequence[DiskCopy]]:
        """Return whether the images made for it hold nothing, the guest never having run there, and what was copied."""
        if self._driver is not None:
            return not self._driver.handed_over, self._driver.new_copies
        if ended is None:
            return True, ()  # nothing was begun
        return ended.get("handed_over") is False, from_fields(ended.get("disks", ()))

    async def close(self, *, lost: bool = False, ended: Mapping[str, Any] | None = None) -> None:
        """Let both ends go and clear away what they need no more, as :attr:`result` says.

        :param lost: a person has said that the guest is nowhere any more: what its target has of its disks may be all.
        :param ended: the end of its record, where another controller has driven it to its end.
        """
        state, driver = self.result.state, self._driver
        if not state.final:
            if self.record is not None:
                self.services.records.release(self.record)
            await self._let_go(discard=False)
            self.leave()
            return
        if state is State.HELD:
            hold = Hold(unreachable=driver.unreachable, shown=driver.views) if driver is not None else Hold()
            await self.let_go()
            self._go(Phase.HELD)
            self.holding = hold
            self._enter(State.HELD)
            return
        if state is State.COMPLETED:
            await self._mend_clock()
            await self._note_network()
        started_here = self._incoming is not None
        never_ran_there, copied = self._become_of_images(ended)
        anew = (
            driver is not None and driver.postponed and not self.requests.cancel and self.services.begins_anew
        )
        if not started_here and state is not State.COMPLETED:
            await self._let_go()
            # Another controller started it.
            await cleanup.abandon(self, images=never_ran_there and not lost)
        else:
            await self._let_go(discard=state is not State.COMPLETED)
        if state in (State.FAILED, State.CANCELLED):
            await cleanup.allow_restart(self)
        if anew and state is State.CANCELLED:
            self.begin_anew()
            return
        if state in (State.COMPLETED, State.GUEST_ENDED) or lost:
            await cleanup.clear(self, arrived=state is State.COMPLETED)
        if state is State.COMPLETED or (state is State.GUEST_ENDED and not never_ran_there):
            await cleanup.put_aside(self, copied, arrived=state is State.COMPLETED)
        if state is State.COMPLETED:
            await self._settle_file()
        await self._tell_end(state)
        self._end(state)
