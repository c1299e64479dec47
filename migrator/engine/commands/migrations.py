"""Commands about one guest or one migration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict

from migrator.api.commands import Check, Migrate, Postcopy, Resolve
from migrator.api.documents import CheckDocument, FindingDocument, MigrationDocument, ResolutionDocument
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.core.findings import errors_first
from migrator.core.inventory import Guest
from migrator.core.migration.situation import OperatorAnswer
from migrator.core.model import State
from migrator.core.placement import NoHost, place
from migrator.engine import placement_findings
from migrator.engine.commands.lookups import Lookups, not_begun, refused_by_preflight
from migrator.engine.journal_writer import JournalWriter
from migrator.engine.migration import preflight
from migrator.engine.migration.held_migrations import HeldMigrations, NotHeld
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.resolution import ResolutionRequest
from migrator.engine.reservations import Reservations
from migrator.engine.rules import Rules
from migrator.engine.sessions import Sessions
from migrator.errors import JournalError, MigratorError


class MigrationCommands:
    """Carries them out.

    :param rules: as they are now.
    """

    def __init__(
        self,
        *,
        lookups: Lookups,
        sessions: Sessions,
        reservations: Reservations,
        held: HeldMigrations,
        journal_writer: JournalWriter,
        rules: Callable[[], Rules],
    ) -> None:
        self._lookups, self._sessions, self._reservations = lookups, sessions, reservations
        self._held, self._journal_writer, self._rules = held, journal_writer, rules

    async def migrate(self, command: Migrate, caller: Caller, key: str) -> MigrationDocument:
        """Begin a migration of one guest."""
        which = command.guest or ""
        guest = await self._lookups.guest(which, caller)
        policy = self._lookups.policy_of(guest, command.policy)
        self._lookups.known_codes(command.accept)
        async with self._reservations.hold(("guest", guest.key)):
            guest = self._lookups.guest_again(guest, which, caller)
            guest = await self._lookups.judged_again(guest, which, caller)
            if found := preflight.obstacle(guest):
                raise refused_by_preflight(f"{guest.label} cannot be moved: {guest.obstacle}", found)
            self._lookups.not_under_way(guest)
            while True:
                target = self._target(guest, command.to, command.accept)
                async with self._reservations.hold(("host", target)):
                    if self._target(guest, command.to, command.accept) != target:
                        continue  # a command that was waited for has taken that host
                    session = self._sessions.make(
                        guest,
                        target,
                        policy,
                        accept=command.accept,
                        by=caller.user,
                        key=key,
                        trace=caller.trace,
                    )
                    try:
                        await self._sessions.journal(session)
                    except JournalError as error:
                        raise not_begun(error) from error
                    return session.document()

    def _target(self, guest: Guest, to: str | None, accept: Sequence[str]) -> str:
        if to is not None and self._lookups.host(to).name == guest.host:
            raise Refusal("conflict", f"{guest.label} is on {to} already")
        wanted = placement_findings.request(guest, accept, only=to or "")
        fleet = self._lookups.fleet() if to is None or guest.group else self._lookups.fleet_at(to, guest)
        if to is not None and (found := placement_findings.known(fleet, wanted, to)):
            raise refused_by_preflight(f"{guest.label} cannot move to {to}: {found[0].message}", found)
        answer = place(fleet, [wanted], self._rules().placement)[guest.key]
        if isinstance(answer, NoHost):
            message = f"no host can take {guest.label}: {answer.reason}"
            raise refused_by_preflight(message, placement_findings.nowhere(answer))
        return answer.host

    async def check(self, command: Check, caller: Caller) -> CheckDocument:
        """Say what speaks against a migration; nothing is begun."""
        guest, host = await self._lookups.guest(command.guest, caller), self._lookups.host(command.to)
        policy = self._lookups.policy_of(guest, command.policy)
        # Its monitor would be in use by that: who asks then is told that a stranger holds it.
        self._lookups.not_under_way(guest)
        self._lookups.known_codes(command.accept)
        guest = await self._lookups.judged_again(guest, command.guest, caller)
        known = placement_findings.known(
            self._lookups.fleet(), placement_findings.request(guest, command.accept), host.name
        )
        session = self._sessions.make(guest, host.name, policy, accept=command.accept, announce=False)
        found = errors_first([*known, *(await session.check_only() if host.up else ())])
        return CheckDocument(
            guest=guest.key,
            host=host.name,
            possible=not preflight.errors(found),
            findings=[FindingDocument(**asdict(each)) for each in found],
        )

    async def cancel(self, identifier: str, caller: Caller) -> MigrationDocument:
        """Have the guest stay where it is."""
        session = self._lookups.session(identifier, caller, ended=True)
        async with self._reservations.hold(("migration", session.id)):
            # Another may have taken its place, here and wherever the journal was waited for.
            present = functools.partial(self._sessions.present, session)
            if not present().can_cancel:
                raise _too_late(present())
            done: list[bool] = []
            await self._lookups.commit(
                ("migration", lambda: present().as_if_cancelled()),
                then=lambda: done.append(self._sessions.cancel(session)),
            )
            if not all(done):  # it came to its switch meanwhile
                self._journal_writer.schedule_latest("migration", session.id, lambda: present().journalled())
                raise _too_late(present())
            return present().document()

    async def postcopy(self, command: Postcopy, caller: Caller) -> MigrationDocument:
        """Switch a migration to postcopy now."""
        session = self._lookups.session(command.migration, caller)
        async with self._reservations.hold(("migration", session.id)):
            # As for a cancel.
            present = functools.partial(self._sessions.present, session)
            if not present().can_postcopy:
                raise _no_postcopy(present())
            done: list[bool] = []
            await self._lookups.commit(
                ("migration", lambda: present().as_if_asked_for_postcopy()),
                then=lambda: done.append(present().postcopy()),
            )
            if not all(done):
                self._journal_writer.schedule_latest("migration", session.id, lambda: present().journalled())
                raise _no_postcopy(present())
            return present().document()

    async def resolve(self, command: Resolve, caller: Caller) -> MigrationDocument | ResolutionDocument:
        """Do what a person says of a held migration, or say what that would come to."""
        session = self._lookups.session(command.migration, caller)
        if session.state is not State.HELD:
            raise Refusal(
                "not-now",
                f"migration {session.id} is {session.state}: only a held one takes a word{_recovers(session)}",
            )
        answer = ResolutionRequest(
            word=OperatorAnswer(command.guest_at), off=command.unreachable_is_off, agreed=command.agreed
        )
        try:
            if command.dry_run:
                return await self._held.review(session, answer)
            await self._held.resolve(session, answer)
        except NotHeld as error:
            raise Refusal("not-now", str(error)) from error
        except MigratorError as error:
            raise Refusal("conflict", str(error)) from error
        return session.document()


def _no_postcopy(session: JournalledSession) -> Refusal:
    return Refusal(
        "not-now",
        f"migration {session.id} cannot go to postcopy: it is {session.state}, or its policy "
        f"{session.policy.name} or one of the QEMUs does not allow it",
    )


def _too_late(session: JournalledSession) -> Refusal:
    return Refusal(
        "not-now", f"migration {session.id} is {session.state}: too late to cancel{_recovers(session)}"
    )


def _recovers(session: JournalledSession) -> str:
    """Say what becomes of a migration whose stream broke: there is nothing for a person to do with it."""
    if session.state is not State.RECOVERING:
        return ""
    return (
        "; neither end has the whole guest, and its stream is being recovered: it goes on by itself once the network "
        "between both hosts carries it (migrator status says what is waited for)"
    )
