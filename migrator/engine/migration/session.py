"""One migration from its request to its end: opens the source, has a destination started, drives, clears away.

A :class:`Job` is what the service keeps of a migration. Its document is journalled before anything is begun and at
every state; the steps in between are in a record of their own (:class:`migrator.ports.Record`), as with ``direct``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from migrator.api.documents import MigrationDocument
from migrator.core.findings import PreflightRefused
from migrator.core.migration.situation import Intent, OperatorAnswer
from migrator.core.model import Finding, State
from migrator.engine import clock, judging
from migrator.engine.migration import cleanup, session_document, take_over
from migrator.engine.migration.block_job_wait import BlockJobWait
from migrator.engine.migration.driver import MigrationDriver
from migrator.engine.migration.guest_network import GuestNetwork
from migrator.engine.migration.services import EndLocation, SessionServices
from migrator.engine.migration.session_state import SessionState
from migrator.errors import Fault, HostError, JournalError, MigratorError, QemuError, RecordError
from migrator.faults import contained
from migrator.ports import IncomingDestination, Qemu, Record, SourceQemu

#: A destination that was checked so long ago is compared with its source again.
_STALE_SECONDS = 2.0


class MigrationSession(SessionState):
    """One migration: what is known of it, and its way."""

    _source: SourceQemu | None = None
    _destination: Qemu | None = None
    #: What was started at the target and has not got its guest yet.
    _waiting: IncomingDestination | None = None
    _migration: MigrationDriver | None = None
    #: A person has said that it is nowhere any more.
    _lost = False

    @cached_property
    def _network(self) -> GuestNetwork:
        return GuestNetwork(self.means.site, source=self.guest.host, target=self.target)

    # --- what others may ask of it ---------------------------------------------------------------------------------

    @property
    def can_cancel(self) -> bool:
        """It is not too late for :meth:`cancel` now."""
        if self.ended or self.state is State.HELD:
            return False
        return self._migration is None or self._migration.can_cancel

    @property
    def can_postcopy(self) -> bool:
        """:meth:`postcopy` would do something."""
        return self._migration is not None and not self.ended and self._migration.can_postcopy

    def call_off(self) -> None:
        """It ends, cancelled, before anything drove it."""
        self._end_as(State.CANCELLED, "cancelled before it began")

    def cancel(self) -> bool:
        """The guest shall stay where it is; False when it is too late, and then nothing changes."""
        if self.ended or self.state is State.HELD:
            return False
        if self._migration is not None and not self._migration.cancel():
            return False
        self.cancelled = True
        self._turn.set()
        return True

    def admit(self) -> None:
        """Its turn has come: the links are given to it."""
        self.admitted = True
        self._turn.set()

    def postcopy(self) -> bool:
        """Switch to postcopy now; False where that is not possible."""
        return self._migration is not None and self._migration.postcopy()

    def set_share(self, bytes_per_second: int | None) -> None:
        """Its stream's share of the links from now on."""
        self.share = bytes_per_second
        if self._migration is not None:
            self._migration.set_bandwidth(bytes_per_second)

    def park(self) -> None:
        """The controller stops: see :meth:`migrator.engine.migration.driver.MigrationDriver.park`."""
        self._parked = True
        self._turn.set()
        if self._migration is not None:
            self._migration.park()

    # --- its way -----------------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        """From being queued to its end; waits between preparation and transfer for :meth:`admit`."""
        if not await self.prepare():
            return
        self.ready, since = True, clock.now()
        self.preparation_seconds = since - self.preparing_since
        self._on_ready(self)
        try:
            await self._turn.wait()
        finally:
            self.ready = False
        try:
            waited = await self._come_to_rest()
            if self.unwanted():
                await self._fall_back(State.CANCELLED, "cancelled before it began")
                return
            if (waited or clock.now() - since > _STALE_SECONDS) and await self._refuse(
                await self._look_again()
            ):
                return
        except MigratorError as error:
            await self._fall_back(State.FAILED, str(error))
            return
        await self.transfer()

    async def _come_to_rest(self) -> bool:
        """Wait for jobs and exports on the guest's disks as the policy says; whether there was something to wait for.

        :raise Refused: they do not end in time.
        """
        if self._source is None:
            return False
        quiet = BlockJobWait(self._source, self.policy, unwanted=self.unwanted, tell=self._tell_waiting)
        try:
            await quiet.come()
        finally:
            self.policy = self.policy.after(quiet.waited_seconds)
            if self._migration is not None:
                self._migration.govern(self.policy)
        return quiet.waited_seconds > 0

    def _tell_waiting(self, what: str) -> None:
        self.waiting_for = what
        self._enter(State.WAITING if what else State.PREPARING)

    async def _look_again(self) -> list[Finding]:
        again = await self._compare() if self._migration is not None else ()
        return [*self.result.findings, *again]

    async def _compare(self) -> list[Finding]:
        """Both QEMUs, and what carries their networks; the destination's start is over."""
        if self._migration is None:
            raise RuntimeError("there is nothing to compare yet")
        places = (self.places["source"], self.places["destination"])
        return [
            *await self._migration.check(),
            *await self._network.look(*(place.identity for place in places)),
        ]

    async def check_only(self) -> tuple[Finding, ...]:
        """What speaks against it, as far as it shows before a destination is started; changes nothing."""
        found = await judging.look(self.means, self.guest, self.target, self.policy)
        return tuple(self.means.accept(found, self.accepted))

    async def prepare(self) -> bool:
        """Open the source, check, have a destination started; True when :meth:`transfer` may follow.

        The guest notices nothing of it. After False the job has ended and nothing is left behind.
        """
        try:
            with contained(f"migration {self.id}"):
                return await self._prepare()
        except Fault as fault:
            return await self._fall_back(State.FAILED, str(fault))

    async def _prepare(self) -> bool:
        self._enter(State.PREPARING)
        findings = await self._look()
        if await self._refuse(findings) or self._source is None:
            return False
        try:
            if await self._come_to_rest():
                findings = await judging.seen(self.means, self.guest, self._source, self.target, self.policy)
                if await self._refuse(findings):
                    return False
            await self._source.claim(self.id)  # before anything is started for it
            if self.unwanted():
                return await self._fall_back(State.CANCELLED, "cancelled before it began")
            self._waiting = await self.means.site.start_destination(
                self.guest, self._source, self.target, migration=self.id, accepted=self.accepted
            )
            self._destination = self._waiting.qemu
            self.places["destination"] = EndLocation(
                host=self.target,
                socket=self._waiting.socket,
                identity=dict(self._destination.identity),
            )
            findings = judging.started(findings, self._waiting.notes)
            self.record = self.means.records.create(self.id)
            self._migration = self._make(self._source, self._destination, self.record, self._waiting.listen)
            if await self._refuse([*findings, *await self._compare()]):
                return False
            if self.guest.uuid and self._migration.uuid not in ("", self.guest.uuid):
                # What is known of it may be as old as the backup of a journal.
                where = f"at {self.guest.socket} on {self.guest.host}"
                error = f"another guest ({self._migration.uuid}) is {where} by now; see: migrator guests"
                return await self._fall_back(State.FAILED, error)
        except PreflightRefused as error:
            await self._refuse([*findings, *error.findings])
            return False
        except MigratorError as error:
            return await self._fall_back(State.FAILED, str(error))
        if self.unwanted():
            return await self._fall_back(State.CANCELLED, "cancelled before it began")
        return True

    async def _look(self) -> Sequence[Finding]:
        """Open the source, and ask what is against it before anything is started; the same as a check asks."""
        try:
            self._source = await self.means.site.open(self.guest.host, self.guest.socket, role="source")
        except MigratorError as error:
            return [judging.unchecked(error)]
        self.places["source"] = EndLocation(
            host=self.guest.host, socket=self.guest.socket, identity=dict(self._source.identity)
        )
        return await judging.seen(self.means, self.guest, self._source, self.target, self.policy)

    async def transfer(self) -> None:
        """Move the guest; afterwards the job has ended, is held, or is parked."""
        if self._migration is None:
            raise RuntimeError("prepare() comes before transfer()")
        self.started_at = datetime.now(UTC)
        try:
            await self.means.site.hold_off(self.guest)
            self.result = await self._migration.run(begun=self._note_record)
        except (RecordError, JournalError, QemuError, HostError) as error:
            self.recorded = False
            await self._fall_back(State.FAILED, str(error))
            return
        await self.close()

    async def _note_record(self) -> None:
        """The journal knows that the record is there, and where the destination is, before either end is touched."""
        self.recorded = True
        await self.means.keep(self)

    async def take_up(self) -> None:
        """See :func:`migrator.engine.migration.take_over.take_up`."""
        await take_over.take_up(self)

    async def go_on(
        self,
        record: Record,
        facts: Mapping[str, Any],
        intent: Intent,
        source: SourceQemu,
        destination: Qemu,
        *,
        anew: bool = False,
    ) -> None:
        """Drive it with these, which it lets go in the end: until it has ended, is held, or is parked.

        :param facts: what the record began with.
        :param intent: the last it noted.
        :param anew: see :meth:`migrator.engine.migration.driver.MigrationDriver.take_up`.
        """
        self.record, self._source, self._destination = record, source, destination
        self.recorded, self.unreachable = True, False
        self._lost = intent.said is OperatorAnswer.LOST
        self.started_at = self.started_at or self.created_at
        before = self.result
        self._migration = self._make(source, destination, record, "")
        self.result.decisions[:0], self.result.findings[:0] = before.decisions, before.findings
        if self._parked:
            self._migration.park()
        if self.cancelled:
            self._migration.cancel()
        self.result = await self._migration.take_up(
            facts, intent, began_ago_seconds=self.began_ago(), anew=anew
        )
        await self.close()

    def _make(self, source: Qemu, destination: Qemu, record: Record, listen: str) -> MigrationDriver:
        migration = MigrationDriver(
            name=self.id,
            source=source,
            destination=destination,
            policy=self.policy,
            listen=listen,
            record=record,
            experience=self.means.experience,
            about=self.about(),
            on_status=self._show,
            on_decision=lambda decision: self._on_decision(self, decision),
        )
        migration.set_bandwidth(self.share)
        self.result = migration.result
        return migration

    async def _refuse(self, findings: Sequence[Finding]) -> bool:
        found = list({(each.code, each.message): each for each in findings}.values())
        self.result.findings = list(self.means.accept(found, self.accepted))
        errors = judging.errors(self.result.findings)
        if not errors:
            return False
        self.refused = True
        self.may_pass = {each.code for each in errors} == {judging.UNCHECKED}
        self.refused_everywhere = judging.hopeless(errors)
        await self._fall_back(State.FAILED, judging.in_one_line(errors))
        return True

    async def _fall_back(self, state: State, error: str) -> bool:
        """It ends before anything was changed; always False."""
        if self._source is not None:
            await self._source.release()
            await cleanup.let_be(self)
        if self._parked and state is State.CANCELLED and not self.cancelled:
            await self._let_go()
            self.begin_anew()  # by the next controller
            return False
        if self.cancelled and state is State.FAILED:
            state, error = State.CANCELLED, f"cancelled before it began; besides: {error}"
        await self._let_go()
        self._end_as(state, error)
        return False

    async def close(self) -> None:
        state = self.result.state
        if not state.final:
            if self.record is not None:
                self.means.records.release(self.record)
            await self._let_go(discard=False)
            return  # parked
        if state is State.HELD:
            self.unreachable = self._migration is not None and self._migration.unreachable
            self.shown = self._migration.views if self._migration is not None else None
            await self.let_go()
            self._enter(State.HELD)
            return
        started_here = self._waiting is not None
        anew = self._migration is not None and self._migration.postponed and not self.cancelled
        if not started_here and state is not State.COMPLETED:
            await self._let_go()
            await cleanup.abandon(self)  # another controller started it
        else:
            await self._let_go(discard=state is not State.COMPLETED)
        if state in (State.FAILED, State.CANCELLED):
            await cleanup.let_be(self)
        if state is State.COMPLETED:
            await self._network.arrive(self.places["destination"].identity, self.result)
        if anew and state is State.CANCELLED:
            self.begin_anew()
            return
        if state in (State.COMPLETED, State.GUEST_ENDED) or self._lost:
            await cleanup.clear(self, arrived=state is State.COMPLETED)
        self._end(state)

    async def let_go(self) -> None:
        """While it is held: nothing is kept open or locked, so that a person's look finds both ends and its record."""
        record, self.record = self.record, None
        if record is not None:
            self.means.records.release(record)
        await self._let_go(discard=False)

    async def _let_go(self, *, discard: bool = True) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and discard:
            try:
                await waiting.discard()
            except MigratorError as error:
                cleanup.leave(self, error)
        for end in (self._source, self._destination):
            if end is not None:
                await end.close()
        self._source = self._destination = self._migration = None

    # --- what it shows -----------------------------------------------------------------------------------------------

    def document(self, *, decisions: bool = True) -> MigrationDocument:
        """The migration as it is now, with its decisions or without."""
        return session_document.document(self, decisions=decisions)

    def journalled(self) -> dict[str, Any]:
        """The document with what another controller needs to go on."""
        return session_document.journalled(self)

    def as_if_cancelled(self) -> dict[str, Any]:
        """As :meth:`journalled` will be once :meth:`cancel` is done."""
        return session_document.journalled(self, cancelled=True)

    @classmethod
    def from_journal(
        cls, saved: Mapping[str, Any], *, means: SessionServices, **callbacks: Any
    ) -> MigrationSession:
        """A job that another controller left; :meth:`take_up`, or :meth:`prepare` for one that is queued, goes on."""
        document, private = session_document.read(saved)
        job = cls(means=means, **session_document.asked_for(document, private), **callbacks)
        session_document.put_back(job, document, private)
        return job
