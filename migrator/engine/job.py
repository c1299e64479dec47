"""One migration from its request to its end: opens the source, has a destination started, drives, clears away.

A :class:`Job` is what the service keeps of a migration. Its document is journalled before anything is begun and at
every state; the steps in between are in a record of their own (:class:`migrator.ports.Record`), as with ``direct``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from migrator import logs
from migrator.core import trace_context
from migrator.core.findings import Objected
from migrator.core.inventory import Guest
from migrator.core.model import Decision, Finding, Mode, State, View
from migrator.core.policy import Policy, from_fields
from migrator.core.situation import Intent, Milestone
from migrator.core.thinning import Point
from migrator.core.trace_context import TraceContext
from migrator.engine import clock, job_document, judging, recordless
from migrator.engine.documents import (
    MigrationDocument,
)
from migrator.engine.job_means import Means, Place
from migrator.engine.ledger import OUTCOME
from migrator.engine.migration import Migration
from migrator.engine.network import Network
from migrator.engine.quiet import Quiet
from migrator.engine.result import Result, Status
from migrator.errors import Fault, HostError, JournalError, MigratorError, QemuError, RecordError, RecordInUse
from migrator.faults import contained
from migrator.ports import Qemu, Record, Waiting

#: A destination that was checked so long ago is compared with its source again.
_STALE_SECONDS = 2.0


#: It is held only because a host, or a QEMU, could not be asked when it was to be taken up.
NOT_REACHABLE = "not-reachable"
_ORPHANED = (
    "the journal does not know this migration, but {path} is the record of its steps, and it had not ended: journal "
    "and records were not restored together; nothing was done to either end"
)
_WILL_GO = "bring that host back, or wait: it is ended and removed by itself once its host answers again"


class Job:
    """One migration.

    :param guest: as the inventory knew it when it was asked for.
    :param key: of the command that began it; empty for one that an evacuation began.
    :param changed: called whenever its state changed or a decision fell; must return at once.
    """

    def __init__(
        self,
        *,
        identifier: str,
        guest: Guest,
        target: str,
        policy: Policy,
        means: Means,
        accepted: Sequence[str] = (),
        evacuation: str | None = None,
        requested_by: str = "",
        key: str = "",
        trace: TraceContext | None = None,
        created_at: datetime | None = None,
        on_state: Callable[[Job], None] = lambda job: None,
        on_progress: Callable[[Job], None] = lambda job: None,
        on_decision: Callable[[Job, Decision], None] = lambda job, decision: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.id = identifier
        self.guest = guest
        self.target = target
        self.policy = policy
        self.evacuation = evacuation
        self.state = State.QUEUED
        self.result = Result(
            id=identifier, state=State.QUEUED, max_downtime_seconds=policy.max_downtime_seconds
        )
        self.created_at = created_at or datetime.now(UTC)
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        self.status: Status | None = None
        #: Its stream's share of the links, as last given.
        self.share: int | None = None
        #: Preflight refused it; nothing was changed.
        self.refused = False
        #: ... only because something could not be asked, which may pass; else trying again without a change is no use.
        self.may_pass = False
        #: ... nor is trying another target.
        self.refused_everywhere = False
        #: It is held, and may be taken up again once the host that could not be asked answers.
        self.unreachable = False
        #: What both ends showed when it was held; ``None`` where they could not be looked at together.
        self.shown: tuple[View, View] | None = None
        #: Something of it is left at its target, which could not be asked.
        self.left_over = False
        self._means = means
        self.accepted = list(accepted)
        self.requested_by = requested_by
        #: Of the command that began it.
        self.key = key
        #: What it was asked for as part of.
        self.trace = trace
        #: With ``waiting``: what has to end first.
        self.waiting_for = ""
        #: Both ends are set up; it waits for :meth:`admit`.
        self.ready = False
        #: Its turn has come: the links are its own from now on, though it may be looked at and written down first.
        self.admitted = False
        self._turn = asyncio.Event()
        self._on_state, self._on_progress, self._on_decision = on_state, on_progress, on_decision
        self._on_ready = on_ready
        self._network = Network(means.site, source=guest.host, target=target)
        self._source: Qemu | None = None
        self._waiting: Waiting | None = None
        self._destination: Qemu | None = None
        self._migration: Migration | None = None
        self._record: Record | None = None
        self._places: dict[str, Place] = {"source": Place(host=guest.host, socket=guest.socket)}
        self._cancelled = self._parked = self._went_without = False
        #: How often it was begun from the start: one that a controller had to leave before anything was sent is
        #: begun anew under the same id.
        self.attempt = 1
        #: The record of this attempt is there, or was: a missing one does not mean that nothing was done.
        self.recorded = False
        self._log = logs.logger(migration=identifier, guest=guest.key, host=guest.host)

    # --- what others may ask of it ---------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Nothing more will happen to it; one that is held has not ended."""
        return self.ended_at is not None

    @property
    def preparing(self) -> bool:
        """Holds no transfer slot yet."""
        return self.state in (State.QUEUED, State.WAITING, State.PREPARING)

    @property
    def copies(self) -> bool:
        """Its stream takes part of a link."""
        return self.state in (State.PRECOPY, State.SWITCHOVER, State.POSTCOPY, State.RECOVERING)

    @property
    def cancelled(self) -> bool:
        """Somebody wants the guest to stay where it is, and it was not too late then."""
        return self._cancelled

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
        self._cancelled = True
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
        """The controller stops: see :meth:`migrator.engine.migration.Migration.park`."""
        self._parked = True
        self._turn.set()
        if self._migration is not None:
            self._migration.park()

    @property
    def arrived_socket(self) -> str:
        """Where the guest is found at its destination."""
        return self._places["destination"].socket

    @property
    def arrived_pid(self) -> int | None:
        """Its process there, where that is known."""
        pid = self._places["destination"].identity.get("pid")
        return int(pid) if pid is not None else None

    @property
    def places(self) -> Mapping[str, Place]:
        """Both ends, as far as they are known."""
        return self._places

    @property
    def means(self) -> Means:
        """What it works with."""
        return self._means

    # --- its way -----------------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        """From being queued to its end; waits between preparation and transfer for :meth:`admit`."""
        if not await self.prepare():
            return
        self.ready, since = True, clock.now()
        self._on_ready()
        try:
            await self._turn.wait()
        finally:
            self.ready = False
        try:
            waited = await self._come_to_rest()
            if self._unwanted():
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
        quiet = Quiet(self._source, self.policy, unwanted=self._unwanted, tell=self._tell_waiting)
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
        places = (self._places["source"], self._places["destination"])
        return [
            *await self._migration.check(),
            *await self._network.look(*(place.identity for place in places)),
        ]

    async def check_only(self) -> tuple[Finding, ...]:
        """What speaks against it, as far as it shows before a destination is started; changes nothing."""
        found = await judging.look(self._means, self.guest, self.target, self.policy)
        return tuple(self._means.accept(found, self.accepted))

    def break_off(self, error: str) -> None:
        """The controller itself failed: a person must look."""
        if not self.ended:
            self.unreachable = False
            self._hold("controller-failed", error)

    def resolved(self, state: State, error: str | None) -> None:
        """A person, or a look, has said how it ended."""
        self.result.state, self.result.error, self.result.held_code = state, error, None
        self._end(state)

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
                findings = await judging.seen(self._means, self.guest, self._source, self.target, self.policy)
                if await self._refuse(findings):
                    return False
            await self._source.claim(self.id)  # before anything is started for it
            if self._unwanted():
                return await self._fall_back(State.CANCELLED, "cancelled before it began")
            self._waiting = await self._means.site.start_destination(
                self.guest, self._source, self.target, migration=self.id, accepted=self.accepted
            )
            self._destination = self._waiting.qemu
            self._places["destination"] = Place(
                host=self.target,
                socket=self._waiting.socket,
                identity=dict(self._destination.identity),
            )
            findings = judging.started(findings, self._waiting.notes)
            self._record = self._means.records.create(self.id)
            self._migration = self._make(self._source, self._destination, self._record, self._waiting.listen)
            if await self._refuse([*findings, *await self._compare()]):
                return False
            if self.guest.uuid and self._migration.uuid not in ("", self.guest.uuid):
                # What is known of it may be as old as the backup of a journal.
                where = f"at {self.guest.socket} on {self.guest.host}"
                error = f"another guest ({self._migration.uuid}) is {where} by now; see: migrator guests"
                return await self._fall_back(State.FAILED, error)
        except Objected as error:
            await self._refuse([*findings, *error.findings])
            return False
        except MigratorError as error:
            return await self._fall_back(State.FAILED, str(error))
        if self._unwanted():
            return await self._fall_back(State.CANCELLED, "cancelled before it began")
        return True

    async def _look(self) -> Sequence[Finding]:
        """Open the source, and ask what is against it before anything is started; the same as a check asks."""
        try:
            self._source = await self._means.site.open(self.guest.host, self.guest.socket, role="source")
        except MigratorError as error:
            return [judging.unchecked(error)]
        self._places["source"] = Place(
            host=self.guest.host, socket=self.guest.socket, identity=dict(self._source.identity)
        )
        return await judging.seen(self._means, self.guest, self._source, self.target, self.policy)

    async def transfer(self) -> None:
        """Move the guest; afterwards the job has ended, is held, or is parked."""
        if self._migration is None:
            raise RuntimeError("prepare() comes before transfer()")
        self.started_at = datetime.now(UTC)
        try:
            await self._means.site.hold_off(self.guest)
            self.result = await self._migration.run(begun=self._note_record)
        except (RecordError, JournalError, QemuError, HostError) as error:
            self.recorded = False
            await self._fall_back(State.FAILED, str(error))
            return
        await self._close()

    async def _note_record(self) -> None:
        """The journal knows that the record is there, and where the destination is, before either end is touched."""
        self.recorded = True
        await self._means.keep(self)

    async def take_up(self) -> None:
        """Go on with what another controller left, from what both QEMUs say.

        Its record says how far it got. Without one it begins anew where the journal says that there never was one, and
        is held where there was: nothing is done to either end then.
        """
        if self.result.held_code == recordless.ORPHANED:
            return  # only a person knows what it was
        try:
            left = self._means.records.take_up(self.id)
        except RecordInUse as error:
            self.unreachable = True
            self._hold(NOT_REACHABLE, str(error))
            return
        except RecordError as error:
            await self._hold_without_record(recordless.DAMAGED, str(error))
            return
        if left is None:
            await self._take_up_without_record()
            return
        self._record, facts, intent = left
        self.recorded = True
        for side, place in facts.get("places", {}).items():
            self._places.setdefault(side, Place(**place))
        if "destination" not in self._places:
            await self.let_go()
            await self._hold_without_record(
                recordless.DAMAGED, "neither the journal nor the record says where the destination is"
            )
            return
        if (ends := await self._open_both(facts, intent)) is None:
            self._means.records.release(self._record)
            self._record = None
            return
        await self.go_on(self._record, facts, intent, *ends, anew=True)

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
        """Drive it with these, which it lets go in the end: until it has ended, is held, or is parked.

        :param facts: what the record began with.
        :param intent: the last it noted.
        :param anew: see :meth:`migrator.engine.migration.Migration.take_up`.
        """
        self._record, self._source, self._destination = record, source, destination
        self.recorded, self.unreachable = True, False
        self.started_at = self.started_at or self.created_at
        before = self.result
        self._migration = self._make(source, destination, record, "")
        self.result.decisions[:0], self.result.findings[:0] = before.decisions, before.findings
        if self._parked:
            self._migration.park()
        if self._cancelled:
            self._migration.cancel()
        self.result = await self._migration.take_up(
            facts, intent, began_ago_seconds=self._began_ago(), anew=anew
        )
        await self._close()

    async def _open_both(self, facts: Mapping[str, Any], intent: Intent) -> tuple[Qemu, Qemu] | None:
        """``None``: one of them cannot be asked, and it is held."""
        ends = {}
        for side in ("source", "destination"):
            try:
                try:
                    ends[side] = await self._open(side, facts)
                except (HostError, QemuError):
                    if side != "destination" or "source" not in ends or not self._may_go_without(intent):
                        raise
                    ends[side] = await self._open(side, facts, absent=True)
            except (HostError, QemuError) as error:
                self.unreachable = True
                self._hold(NOT_REACHABLE, str(error))
        if len(ends) == 2:
            return ends["source"], ends["destination"]
        for end in ends.values():
            await end.close()
        return None

    async def _take_up_without_record(self) -> None:
        records = self._means.records
        outcome = records.outcome(self.id)
        if outcome is not None and outcome.attempt >= self.attempt:
            self.attempt = outcome.attempt
            if not outcome.postponed:  # it ended, and the controller did before the journal knew
                self._know(outcome.fields)
                await self._close()
                return
        elif self.recorded:
            await self._hold_without_record(
                recordless.MISSING,
                "the journal says that the record of its steps was begun, and it is not there",
            )
            return
        elif not records.whole:
            views = await recordless.look(self._means.site, {"source": self._places["source"]})
            if not recordless.untouched(views["source"]):
                await self._hold_without_record(
                    recordless.MISSING,
                    "the records of steps are not those of this journal, and it has none there",
                )
                return
        await self._abandon()
        self._begin_anew()

    def orphan(self, facts: Mapping[str, Any], path: str) -> None:
        """It is held: the journal does not know it, and this record says what it was begun with.

        :raise KeyError, TypeError: it does not say enough.
        """
        self._places = {
            side: Place(**place | {"identity": facts[side]["identity"]})
            for side, place in facts["places"].items()
        }
        self.attempt, self.recorded = int(facts["attempt"]), True
        self._hold(recordless.ORPHANED, _ORPHANED.format(path=path))

    async def look_at_orphan(self) -> None:
        """Add what both ends show."""
        views = await recordless.look(self._means.site, self._places)
        self._hold(recordless.ORPHANED, f"{self.result.error}; {recordless.told(views)}. {self._say_where()}")
        self._on_state(self)

    def _say_where(self) -> str:
        return (
            "Look at both, then say where the guest is: "
            f"migrator resolve {self.id} --guest-at source|destination|lost"
        )

    async def _hold_without_record(self, code: str, error: str) -> None:
        views = await recordless.look(self._means.site, self._places)
        self.unreachable = recordless.unknown(views)
        self._hold(
            code,
            f"{error}; nothing was done to either end; {recordless.told(views)}. {self._say_where()}",
        )

    def _begin_anew(self) -> None:
        """Nothing was changed, or all was put back: it is queued as if it had never been begun."""
        self.attempt += 1
        self.recorded = self.ready = self.admitted = self.refused = self.unreachable = False
        self.started_at, self.status, self._record = None, None, None
        self._places = {"source": Place(host=self.guest.host, socket=self.guest.socket)}
        self.result = Result(
            id=self.id, state=State.QUEUED, max_downtime_seconds=self.policy.max_downtime_seconds
        )
        if not self._unwanted():
            self._turn.clear()
        self._enter(State.QUEUED)

    async def _open(self, side: str, facts: Mapping[str, Any], *, absent: bool = False) -> Qemu:
        place = self._places[side]
        return await self._means.site.open(
            place.host, place.socket, role=side, identity=facts[side]["identity"], absent=absent
        )

    def _may_go_without(self, intent: Intent) -> bool:
        """Before the switch the guest is the source's alone, and the target may be gone for good; tried once."""
        may = intent.milestone < Milestone.SWITCHING and not self._went_without
        self._went_without = self._went_without or may
        return may

    def _began_ago(self) -> float:
        """By the clock on the wall; never before what was decided, should somebody have set it back."""
        began = self.started_at or self.created_at
        decided = [each.at_seconds for each in self.result.decisions]
        return max(0.0, (datetime.now(UTC) - began).total_seconds(), *decided)

    def _know(self, outcome: Mapping[str, Any]) -> None:
        for name in OUTCOME:
            if name not in outcome:
                continue
            value = outcome[name]
            kind = {"state": State, "mode": Mode}.get(name)
            setattr(self.result, name, kind(value) if kind is not None else value)
        self.started_at = self.started_at or self.created_at

    def _make(self, source: Qemu, destination: Qemu, record: Record, listen: str) -> Migration:
        migration = Migration(
            name=self.id,
            source=source,
            destination=destination,
            policy=self.policy,
            listen=listen,
            record=record,
            experience=self._means.experience,
            about=self.about(),
            on_status=self._show,
            on_decision=lambda decision: self._on_decision(self, decision),
        )
        migration.set_bandwidth(self.share)
        self.result = migration.result
        return migration

    def about(self) -> dict[str, Any]:
        """What its record says for whoever finds it without anything else."""
        return {
            "attempt": self.attempt,
            "guest_fields": self.guest.fields(),
            "target": self.target,
            "places": {side: asdict(place) for side, place in self._places.items()},
        }

    def _unwanted(self) -> bool:
        return self._cancelled or self._parked

    async def _refuse(self, findings: Sequence[Finding]) -> bool:
        found = list({(each.code, each.message): each for each in findings}.values())
        self.result.findings = list(self._means.accept(found, self.accepted))
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
            await self._let_be()
        if self._parked and state is State.CANCELLED and not self._cancelled:
            await self._let_go()
            self._begin_anew()  # by the next controller
            return False
        if self._cancelled and state is State.FAILED:
            state, error = State.CANCELLED, f"cancelled before it began; besides: {error}"
        await self._let_go()
        self._end_as(state, error)
        return False

    async def _close(self) -> None:
        state = self.result.state
        if not state.final:
            if self._record is not None:
                self._means.records.release(self._record)
            await self._let_go(discard=False)
            return  # parked
        if state is State.HELD:
            self.unreachable = self._migration is not None and self._migration.unreachable
            self.shown = self._migration.views if self._migration is not None else None
            await self.let_go()
            self._enter(State.HELD)
            return
        started_here = self._waiting is not None
        anew = self._migration is not None and self._migration.postponed and not self._cancelled
        if not started_here and state is not State.COMPLETED:
            await self._let_go()
            await self._abandon()  # another controller started it
        else:
            await self._let_go(discard=state is not State.COMPLETED)
        if state in (State.FAILED, State.CANCELLED):
            await self._let_be()
        if state is State.COMPLETED:
            await self._network.arrive(self._places["destination"].identity, self.result)
        if anew and state is State.CANCELLED:
            self._begin_anew()
            return
        if state in (State.COMPLETED, State.GUEST_ENDED):
            try:
                await self._means.site.clear(self.guest)
                if state is State.COMPLETED:
                    await self._settle()
            except MigratorError as error:
                self.result.warn("left-over", str(error), "remove what it names by hand")
        self._end(state)

    async def _let_be(self) -> None:
        """The guest stays where it is: who manages it there may do as before."""
        try:
            await self._means.site.let_be(self.guest)
        except MigratorError as error:
            self.result.warn("left-over", str(error), "remove what it names by hand")

    async def _settle(self) -> None:
        """Where the operator finds the guest's process from now on."""
        there = replace(self.guest, host=self.target, socket=self.arrived_socket, pid=self.arrived_pid)
        if lacking := await self._means.site.settle(there):
            self.result.warn(
                "path-moved",
                "; ".join(lacking),
                "free that path there, or make its directory; until then use the one that is named",
            )

    async def let_go(self) -> None:
        """While it is held: nothing is kept open or locked, so that a person's look finds both ends and its record."""
        record, self._record = self._record, None
        if record is not None:
            self._means.records.release(record)
        await self._let_go(discard=False)

    async def _let_go(self, *, discard: bool = True) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and discard:
            try:
                await waiting.discard()
            except MigratorError as error:
                self._leave(error)
        for end in (self._source, self._destination):
            if end is not None:
                await end.close()
        self._source = self._destination = self._migration = None

    async def _abandon(self) -> None:
        try:
            await self._means.site.abandon(self.target, migration=self.id)
        except MigratorError as error:
            self._leave(error)

    def _leave(self, error: MigratorError) -> None:
        self.left_over = True
        self.result.warn("left-over", str(error), _WILL_GO)

    # --- what it shows -----------------------------------------------------------------------------------------------

    def _show(self, status: Status) -> None:
        self.status = status
        if status.sample is not None and self._means.samples is not None:
            sample = replace(status.sample, at_seconds=round(status.at_seconds, 6))
            point = Point(sample=sample, state=status.state, limit_seconds=status.limit_seconds)
            self._means.samples.add(self.id, point)
        if status.state is not self.state and not status.state.final:
            self._enter(status.state)
        else:
            self._on_progress(self)

    def _enter(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._on_state(self)

    def judged_again(self, code: str, error: str, until: str, shown: tuple[View, View]) -> None:
        """It stays held, for what both ends show now."""
        self.shown = shown
        told = code, error, until
        if told != (self.result.held_code, self.result.error, self.result.held_until):
            self.result.held_code, self.result.error, self.result.held_until = told
            self._on_state(self)

    def _hold(self, code: str, error: str) -> None:
        self.shown = None
        self.result.held_until = "its host to answer" if self.unreachable else "a person's word"
        self.result.state, self.result.held_code, self.result.error = State.HELD, code, error
        self._enter(State.HELD)

    def _end_as(self, state: State, error: str) -> None:
        self.result.state, self.result.error = state, error.replace("\n", " ")
        self._end(state)

    def _end(self, state: State) -> None:
        self.ended_at = datetime.now(UTC)
        self.state = state
        self._on_state(self)

    def document(self) -> MigrationDocument:
        """As it is now."""
        return job_document.document(self)

    def journalled(self) -> dict[str, Any]:
        """The document with what another controller needs to go on."""
        return job_document.journalled(self)

    def as_if_cancelled(self) -> dict[str, Any]:
        """As :meth:`journalled` will be once :meth:`cancel` is done."""
        return job_document.journalled(self, cancelled=True)

    @classmethod
    def from_journal(cls, saved: Mapping[str, Any], *, means: Means, **callbacks: Any) -> Job:
        """A job that another controller left; :meth:`take_up`, or :meth:`prepare` for one that is queued, goes on."""
        private = saved["_private"]
        document = MigrationDocument.model_validate(
            {key: each for key, each in saved.items() if key != "_private"}
        )
        job = cls(
            identifier=document.id,
            guest=Guest.from_fields(private["guest"]),
            target=document.destination,
            policy=from_fields(private["policy"]),
            means=means,
            accepted=document.accepted,
            evacuation=document.evacuation,
            requested_by=document.requested_by,
            key=private["command"],
            trace=trace_context.of(document.traceparent, document.tracestate),
            created_at=document.created_at,
            **callbacks,
        )
        job.state, job.refused = document.state, document.refused
        job.started_at = document.started_at if job.state is not State.QUEUED else None
        # Of an older version: where the destination is was written down just before the record was begun, and one that
        # is queued again has the outcome of what was undone for it.
        queued = job.state is State.QUEUED
        job.attempt = private.get("attempt", 2 if queued and document.started_at else 1)
        job._cancelled = private.get("cancelled", False)
        job.recorded = private.get("recorded", "destination" in private["places"] and not queued)
        job.result.held_code, job.result.error = document.held_code, document.error
        job.result.held_until = document.held_until
        job.result.decisions = [Decision(**each.model_dump()) for each in document.decisions]
        job.result.findings = [Finding(**each.model_dump()) for each in document.findings]
        job._places = {side: Place(**place) for side, place in private["places"].items()}
        return job
