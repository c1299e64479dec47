"""Carries commands out: each verb checked against what is known, journalled, and begun."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from migrator.api.commands import (
    Activate,
    Answer,
    Caller,
    Cancel,
    Check,
    Command,
    Evacuate,
    Migrate,
    Plan,
    Postcopy,
    Refusal,
    Resolve,
    Restore,
)
from migrator.api.documents import (
    CheckDocument,
    EvacuationDocument,
    FindingDocument,
    HostDocument,
    MigrationDocument,
    PlanDocument,
    ResolutionDocument,
)
from migrator.core.drain.entry import Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import EvacuationState, GuestStanding
from migrator.core.findings import errors_first
from migrator.core.inventory import Guest, Host, HostState
from migrator.core.migration.situation import OperatorAnswer
from migrator.core.model import Finding, State
from migrator.core.placement import NoHost, place
from migrator.core.policy import Policy
from migrator.engine import evacuation_documents, judging
from migrator.engine.controller import Engine, host_document, host_saved, new_id
from migrator.engine.journal_writer import DocumentToSave
from migrator.engine.migration import preflight
from migrator.engine.migration.held_migrations import NotHeld
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.resolution import Said
from migrator.engine.others import here_or_coming
from migrator.engine.queries import one_guest, saved_evacuation, saved_migration
from migrator.errors import JournalError, MigratorError, UsageError

#: For guests that nobody knows the hosts are looked at so often at most.
_LOOK_AGAIN_SECONDS = 5.0
#: A command that needs to know every host waits so long for the first look at them after a start.
_FIRST_LOOK_SECONDS = 15.0


class CommandHandlers:
    """See :class:`migrator.engine.commands.dispatcher.Controller`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._looked = -math.inf

    async def carry_out(self, command: Command, caller: Caller, *, key: str) -> Answer:
        if key and (begun := await self._begun_by(key)) is not None:
            return begun
        if isinstance(command, Migrate | Restore | Plan | Check):
            await self._engine.inventory.first_look(_FIRST_LOOK_SECONDS)
        match command:
            case Plan():
                return await self._plan(command)
            case Check():
                return await self._check(command)
        if self._engine.stopping:
            raise Refusal("unavailable", "the service is stopping; ask again once it runs")
        if complaint := self._engine.journal_writer.journal.complaint:
            raise Refusal("unavailable", f"no new work is taken: {complaint}")
        return await self._change(command, caller, key)

    async def _change(self, command: Command, caller: Caller, key: str) -> Answer:
        match command:
            case Migrate():
                return await self._migrate(command, caller, key)
            case Evacuate():
                return await self._evacuate(command, caller, key)
            case Restore():
                return await self._restore(command, caller, key)
            case Activate():
                return await self._activate(command)
            case Cancel():
                return await self._cancel(command)
            case Postcopy():
                return self._postcopy(command)
            case Resolve():
                return await self._resolve(command)
        raise Refusal("invalid", f"there is no command {command.verb}")

    async def _begun_by(self, key: str) -> Answer | None:
        for job in self._engine.jobs.values():
            if job.key == key:
                return job.document()
        for run in self._engine.runs.values():
            if run.key == key:
                return evacuation_documents.evacuation_document(run)
        for kind in ("migration", "evacuation"):
            for saved in await self._engine.journal_writer.journal.page(
                kind, limit=1, where={"command": key}
            ):
                return saved_migration(saved) if kind == "migration" else saved_evacuation(saved)
        return None

    async def _migrate(self, command: Migrate, caller: Caller, key: str) -> MigrationDocument:
        guest = await self._guest(command.guest)
        policy = self._policy_of(guest, command.policy)
        self._known_codes(command.accept)
        async with self._engine.reserved.hold(("guest", guest.key)):
            guest = self._again(guest, command.guest)
            if found := preflight.obstacle(guest):
                raise _refusal(f"{guest.label} cannot be moved: {guest.obstacle}", found)
            self._not_under_way(guest)
            while True:
                target = self._target(guest, command.to, command.accept)
                async with self._engine.reserved.hold(("host", target)):
                    if self._target(guest, command.to, command.accept) != target:
                        continue  # a command that was waited for has taken that host
                    job = self._engine.make_job(
                        guest,
                        target,
                        policy,
                        accept=command.accept,
                        by=caller.user,
                        key=key,
                        trace=caller.trace,
                    )
                    try:
                        await self._engine.journal_job(job)
                    except JournalError as error:
                        raise _not_begun(error) from error
                    return job.document()

    def _again(self, guest: Guest, which: str) -> Guest:
        """It, as it is now: it may have moved while a command about it was waited for."""
        there = [each for each in self._engine.inventory.guests() if each.key == guest.key]
        same = [each for each in there if each.host == guest.host]
        return same[0] if same else one_guest(self._engine, there[0].key if there else which)

    def _target(self, guest: Guest, to: str | None, accept: Sequence[str]) -> str:
        if to is not None and self._host(to).name == guest.host:
            raise Refusal("conflict", f"{guest.label} is on {to} already")
        fleet, wanted = self._engine.fleet(), judging.request(guest, accept, only=to or "")
        if to is not None and (found := judging.known(fleet, wanted, to)):
            raise _refusal(f"{guest.label} cannot move to {to}: {found[0].message}", found)
        answer = place(fleet, [wanted], self._engine.rules.placement)[guest.key]
        if isinstance(answer, NoHost):
            raise _refusal(f"no host can take {guest.label}: {answer.reason}", judging.nowhere(answer))
        return answer.host

    async def _evacuate(self, command: Evacuate, caller: Caller, key: str) -> EvacuationDocument:
        async with self._engine.reserved.hold(("host", self._host(command.host).name)):
            return await self._evacuate_alone(command, caller, key)

    async def _evacuate_alone(self, command: Evacuate, caller: Caller, key: str) -> EvacuationDocument:
        host = self._host(command.host)
        self._unoccupied(host)
        self._known_codes(command.accept)
        if command.policy is not None:
            self._policy(command.policy)
        if command.deadline is not None and command.deadline <= datetime.now(UTC):
            raise Refusal("invalid", f"the deadline {command.deadline.isoformat()} has passed")
        host = await self._engine.inventory.look(host.name)
        if not host.up:
            raise Refusal("not-now", f"it cannot be emptied: {host.error}")
        run = Evacuation(
            identifier=new_id(),
            host=host.name,
            policy=command.policy or "",
            accept=command.accept,
            deadline=command.deadline,
            on_deadline=command.on_deadline,
            requested_by=caller.user,
            key=key,
            traceparent=caller.trace.parent if caller.trace else None,
            tracestate=(caller.trace.state or None) if caller.trace else None,
        )
        run.take(here_or_coming(self._engine, host.name))
        run.hold_to(self._engine.preview.planned(host.name))
        await self._begin(run, HostState.DRAINING)
        return evacuation_documents.evacuation_document(run)

    async def _begin(self, run: Evacuation, state: HostState) -> None:
        def begun() -> None:
            self._engine.set_host(run.host, state)
            self._engine.begin_run(run)

        await self._journal(
            ("evacuation", lambda: evacuation_documents.journalled(run)),
            ("host", host_saved(run.host, state)),
            then=begun,
        )

    async def _restore(self, command: Restore, caller: Caller, key: str) -> EvacuationDocument:
        async with self._engine.reserved.hold(("host", self._host(command.host).name)):
            return await self._restore_alone(command, caller, key)

    async def _restore_alone(self, command: Restore, caller: Caller, key: str) -> EvacuationDocument:
        host = self._host(command.host)
        self._unoccupied(host)
        if command.policy is not None:
            self._policy(command.policy)
        if not host.up:
            raise Refusal("not-now", f"guests cannot come home: {host.error}")
        guests = await self._guests_of_last_evacuation(host.name)
        if not guests and host.state is HostState.ACTIVE:
            raise Refusal(
                "conflict",
                f"{host.name} is active and there is nobody to bring home: no guest that an evacuation moved away from "
                "it is known to run elsewhere",
            )
        run = Evacuation(
            identifier=new_id(),
            host=host.name,
            kind="restore",
            policy=command.policy or "",
            requested_by=caller.user,
            key=key,
            traceparent=caller.trace.parent if caller.trace else None,
            tracestate=(caller.trace.state or None) if caller.trace else None,
        )
        for guest in guests:
            run.entries[guest.key] = Entry(guest=guest)
        await self._begin(run, HostState.ACTIVE)
        return evacuation_documents.evacuation_document(run)

    async def _guests_of_last_evacuation(self, host: str) -> list[Guest]:
        """Those that left it, or an evacuation that was gone on with, and still exist elsewhere.

        Where a restore came last: those that it did not bring home.
        """
        moved: dict[str, Guest] = {}
        for saved in await self._engine.journal_writer.journal.page(
            "evacuation", limit=100, where={"host": host}
        ):
            # What has just ended may not have reached the journal yet.
            run = self._engine.runs.get(saved["id"]) or evacuation_documents.from_journal(saved)
            if run.ended_at is None:
                break
            if run.kind == "restore":
                if not moved:
                    moved = {entry.guest.key: entry.guest for entry in run.left}
                break
            for key, entry in run.entries.items():
                if entry.standing is GuestStanding.MOVED:
                    moved.setdefault(key, entry.guest)
        now = {guest.key: guest for guest in self._engine.inventory.guests()}
        return [now[key] for key in moved if key in now and now[key].host != host]

    async def _activate(self, command: Activate) -> HostDocument:
        host = self._host(command.host)
        async with self._engine.reserved.hold(("host", host.name)):
            self._unoccupied(host)
            await self._journal(
                ("host", host_saved(host.name, HostState.ACTIVE)),
                then=lambda: self._engine.set_host(host.name, HostState.ACTIVE),
            )
        return host_document(self._engine, self._host(host.name))

    async def _cancel(self, command: Cancel) -> Answer:
        if (job := self._engine.jobs.get(command.target)) is not None:
            async with self._engine.reserved.hold(("migration", job.id)):
                return await self._cancel_job(job)
        run = self._engine.runs.get(command.target)
        if run is None or run.ended:
            raise Refusal("not-found", f"no migration or evacuation {command.target} is under way")
        async with self._engine.reserved.hold(("evacuation", run.id)):
            return await self._cancel_run(run)

    async def _cancel_job(self, job: JournalledSession) -> MigrationDocument:
        if not job.can_cancel:
            raise _too_late(job)
        done: list[bool] = []
        await self._journal(
            ("migration", job.as_if_cancelled), then=lambda: done.append(self._engine.cancel_job(job))
        )
        if not all(done):  # it came to its switch meanwhile
            self._engine.journal_writer.schedule_latest("migration", job.id, job.journalled)
            raise _too_late(job)
        return job.document()

    async def _cancel_run(self, run: Evacuation) -> EvacuationDocument:
        def closes() -> None:
            if not run.ended:
                run.closing = EvacuationState.CANCELLED
                self._engine.stop_jobs(run)

        await self._journal(
            (
                "evacuation",
                lambda: evacuation_documents.journalled(run.as_if_closing(EvacuationState.CANCELLED)),
            ),
            then=closes,
        )
        if run.ended and run.closing is not EvacuationState.CANCELLED:
            self._engine.journal_writer.schedule_latest(
                "evacuation", run.id, lambda: evacuation_documents.journalled(run)
            )
            raise Refusal("not-found", f"{run.kind} {run.id} has just ended")
        self._engine.planner.wake()
        return evacuation_documents.evacuation_document(run)

    def _postcopy(self, command: Postcopy) -> MigrationDocument:
        job = self._job(command.migration)
        if not job.postcopy():
            raise Refusal(
                "not-now",
                f"migration {job.id} cannot go to postcopy: it is {job.state}, or its policy {job.policy.name} or one "
                "of the QEMUs does not allow it",
            )
        return job.document()

    async def _resolve(self, command: Resolve) -> MigrationDocument | ResolutionDocument:
        job = self._job(command.migration)
        if job.state is not State.HELD:
            raise Refusal("not-now", f"migration {job.id} is {job.state}: only a held one takes a word")
        said = Said(
            word=OperatorAnswer(command.guest_at), off=command.unreachable_is_off, agreed=command.agreed
        )
        try:
            if command.dry_run:
                return await self._engine.held.weigh(job, said)
            await self._engine.held.resolve(job, said)
        except NotHeld as error:
            raise Refusal("not-now", str(error)) from error
        except MigratorError as error:
            raise Refusal("conflict", str(error)) from error
        return job.document()

    def _not_under_way(self, guest: Guest) -> None:
        for job in self._engine.jobs.values():
            if job.guest.key == guest.key and not job.ended:
                raise Refusal("conflict", f"{guest.label} is {job.state} already: migration {job.id}")

    async def _check(self, command: Check) -> CheckDocument:
        guest, host = await self._guest(command.guest), self._host(command.to)
        policy = self._policy_of(guest, command.policy)
        # Its monitor would be in use by that: who asks then is told that a stranger holds it.
        self._not_under_way(guest)
        self._known_codes(command.accept)
        known = judging.known(self._engine.fleet(), judging.request(guest, command.accept), host.name)
        job = self._engine.make_job(guest, host.name, policy, accept=command.accept, announce=False)
        found = errors_first([*known, *(await job.check_only() if host.up else ())])
        return CheckDocument(
            guest=guest.key,
            host=host.name,
            possible=not preflight.errors(found),
            findings=[FindingDocument(**asdict(each)) for each in found],
        )

    async def _plan(self, command: Plan) -> PlanDocument:
        host = self._host(command.host)
        self._known_codes(command.accept)
        if command.policy is not None:
            self._policy(command.policy)
        host = await self._engine.inventory.look(host.name)
        if not host.up:
            raise Refusal("not-now", f"it cannot be emptied: {host.error}")
        return await self._engine.preview.plan(host.name, command.policy, command.accept)

    # --- what commands need -------------------------------------------------------------------------------------------

    def _host(self, name: str) -> Host:
        host = self._engine.inventory.host(name)
        if host is None:
            names = ", ".join(each.name for each in self._engine.inventory.hosts()[:20])
            raise Refusal("not-found", f"there is no host {name}; there are {names}")
        return host

    async def _guest(self, which: str) -> Guest:
        """One that is not known yet may have been started since the hosts were looked at."""
        now = self._engine.planner.clock()
        if not self._engine.inventory.find(which) and now - self._looked >= _LOOK_AGAIN_SECONDS:
            self._looked = now
            await self._engine.inventory.look_at_all(only_up=True)
        return one_guest(self._engine, which)

    def _job(self, identifier: str) -> JournalledSession:
        job = self._engine.jobs.get(identifier)
        if job is None or job.ended:
            raise Refusal("not-found", f"no migration {identifier} is under way")
        return job

    def _unoccupied(self, host: Host) -> None:
        for run in self._engine.runs.values():
            if run.host == host.name and not run.ended:
                verb = "emptied by evacuation" if run.kind == "evacuate" else "filled again by restore"
                raise Refusal("conflict", f"{host.name} is being {verb} {run.id}; cancel that first")

    def _policy(self, name: str) -> Policy:
        try:
            return self._engine.rules.policy(name)
        except UsageError as error:
            raise Refusal("invalid", str(error)) from error

    def _known_codes(self, codes: Sequence[str]) -> None:
        try:
            self._engine.means.accept((), codes)
        except UsageError as error:
            raise Refusal("invalid", str(error)) from error

    def _policy_of(self, guest: Guest, name: str | None) -> Policy:
        try:
            return self._engine.policy_of(guest, name)
        except UsageError as error:
            raise Refusal("invalid", str(error)) from error

    async def _journal(self, *documents: tuple[str, DocumentToSave], then: Callable[[], None]) -> None:
        try:
            await self._engine.journal_writer.commit(*documents, then=then)
        except JournalError as error:
            raise _not_begun(error) from error


def _too_late(job: JournalledSession) -> Refusal:
    return Refusal("not-now", f"migration {job.id} is {job.state}: too late to cancel")


def _not_begun(error: JournalError) -> Refusal:
    return Refusal("unavailable", f"it was not begun: {error}")


def _refusal(message: str, findings: Sequence[Finding]) -> Refusal:
    """Of preflight, at once."""
    return Refusal("preflight", message, findings=[asdict(each) for each in findings])
