"""Commands about whole hosts: emptied, filled again, activated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from migrator.api.commands import Activate, Evacuate, Migrate, Plan, Restore
from migrator.api.evacuation_documents import EvacuationDocument
from migrator.api.inventory_documents import HostDocument
from migrator.api.plan_documents import PlanDocument, RestorePlanDocument
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.core.drain.entries import Entries
from migrator.core.drain.entry import Entry, entry_of
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import EvacuationState
from migrator.core.drain.window import MaintenanceWindow, understand
from migrator.core.inventory import HostState
from migrator.engine.announcer import Announcer, host_document
from migrator.engine.commands.homecoming import Homecoming
from migrator.engine.commands.lookups import Lookups
from migrator.engine.evacuation_documents import evacuation_document, journalled
from migrator.engine.evacuations import Evacuations
from migrator.engine.inventory import Inventory
from migrator.engine.preview import Preview
from migrator.engine.registry import Registry, new_id
from migrator.engine.reservations import Reservations
from migrator.engine.sessions import Sessions
from migrator.engine.snapshots import Snapshots
from migrator.errors import Unavailable, UsageError
from migrator.ports import Journal


class EvacuationCommands:
    """Carries them out.

    :param changed: called when there is something new to plan.
    :param waiting_changed: called when something of a window or a roll is different.
    """

    def __init__(
        self,
        *,
        lookups: Lookups,
        registry: Registry,
        inventory: Inventory,
        reservations: Reservations,
        sessions: Sessions,
        evacuations: Evacuations,
        announcer: Announcer,
        snapshots: Snapshots,
        preview: Preview,
        journal: Journal,
        changed: Callable[[], None],
        waiting_changed: Callable[[], None],
    ) -> None:
        self._lookups, self._registry, self._inventory = lookups, registry, inventory
        self._reservations, self._sessions, self._evacuations = reservations, sessions, evacuations
        self._announcer, self._snapshots, self._preview = announcer, snapshots, preview
        self._changed, self._waiting_changed = changed, waiting_changed
        self._homecoming = Homecoming(
            lookups=lookups, registry=registry, inventory=inventory, journal=journal
        )

    async def evacuate(self, command: Evacuate, caller: Caller, key: str) -> EvacuationDocument:
        """Begin to empty a host, or have that begin when its window does."""
        window = _window(command)
        if window.starts_at is not None:
            return await self._schedule(command, window, caller, key)
        async with self._reservations.hold(("host", self._lookups.host(command.host).name)):
            host = self._lookups.host(command.host)
            self._lookups.unoccupied(host)
            self._lookups.known_codes(command.accept)
            if command.policy is not None:
                self._lookups.policy(command.policy)
            if command.deadline is not None and command.deadline <= datetime.now(UTC):
                raise Refusal("invalid", f"the deadline {command.deadline.isoformat()} has passed")
            host = await self._inventory.look(host.name)
            if not host.up:
                raise Refusal("not-now", f"it cannot be emptied: {host.error}")
            run = _evacuation(command, window, caller, key)
            run = run.took_in(self._snapshots.take().here_or_coming(host.name))
            planned = self._preview.planned(host.name)
            run = run.holding_to(planned)
            begun = await self._begin(run, HostState.DRAINING)
            if run.deadline is not None and not planned:
                self._evacuations.beside(run.id, self._learn_disks(run))
            return begun

    async def _schedule(
        self, command: Evacuate, window: MaintenanceWindow, caller: Caller, key: str
    ) -> EvacuationDocument:
        """Have it begin when its window does; whoever plans then begins it."""
        async with self._reservations.hold(("host", self._lookups.host(command.host).name)):
            host = self._lookups.host(command.host)
            self._lookups.known_codes(command.accept)
            if command.policy is not None:
                self._lookups.policy(command.policy)
            if command.deadline is not None and window.starts_at and command.deadline <= window.starts_at:
                raise Refusal("invalid", "the deadline passes before its window begins")
            for other in self._registry.scheduled():
                if other.host == host.name and other.window.overlaps(window):
                    raise Refusal(
                        "conflict",
                        f"{host.name} has a window at that time already: migrator cancel {other.id} first",
                    )
            run = replace(
                _evacuation(command, window, caller, key), state=EvacuationState.SCHEDULED, host=host.name
            )
            await self._lookups.commit(
                ("evacuation", lambda: journalled(run)), then=lambda: self._evacuations.schedule(run)
            )
            self._waiting_changed()
            return evacuation_document(self._registry.evacuations[run.id])

    async def _learn_disks(self, run: Evacuation) -> None:
        with contextlib.suppress(Unavailable):  # each tells when it is prepared
            await self._preview.learn_disks(run)

    async def restore(
        self, command: Restore, caller: Caller, key: str
    ) -> EvacuationDocument | RestorePlanDocument:
        """Begin to bring home whom evacuations moved away from a host, or only say what that would do."""
        if command.dry_run:
            return await self._homecoming.plan(command)
        async with self._reservations.hold(("host", self._lookups.host(command.host).name)):
            guests = await self._homecoming.guests(command)
            run = Evacuation(
                id=new_id(),
                host=command.host,
                kind="restore",
                policy=command.policy or "",
                key=key,
                entries=Entries(
                    {each.guest.key: Entry(guest=each.guest, policy=each.policy) for each in guests}
                ),
                **_asked_by(caller),
            )
            return await self._begin(_with_common_policy(run), HostState.ACTIVE)

    async def move_group(self, group: str, command: Migrate, caller: Caller, key: str) -> EvacuationDocument:
        """Begin to move the guests of a group together."""
        self._lookups.known_codes(command.accept)
        if command.policy is not None:
            self._lookups.policy(command.policy)
        target = self._lookups.host(command.to).name if command.to is not None else ""
        guests = [guest for guest in self._inventory.guests() if guest.group == group]
        if not caller.covers(*(guest.host for guest in guests)):
            raise caller.outside(f"the guests of the group {group} are not all there")
        if not guests:
            raise Refusal("not-found", f"no guest that is known has the group {group}: see [[guests]] group")
        async with self._reservations.hold(("host", target), *(("guest", each.key) for each in guests)):
            now = {each.key: each for each in self._inventory.guests() if each.group == group}
            going = [each for each in now.values() if each.host != target]
            if not caller.covers(*(each.host for each in now.values())):  # one has moved meanwhile
                raise caller.outside(f"the guests of the group {group} are not all there")
            if not going:
                raise Refusal("conflict", f"all guests of the group {group} are on {target} already")
            for guest in going:
                self._lookups.not_under_way(guest)
                self._lookups.not_to_be_moved(guest)
            run = Evacuation(
                id=new_id(),
                host="",
                kind="group",
                group=group,
                target=target,
                policy=command.policy or "",
                accept=tuple(command.accept),
                key=key,
                entries=Entries({guest.key: entry_of(guest) for guest in going}),
                **_asked_by(caller),
            )
            return await self._begin(run)

    async def _begin(self, run: Evacuation, state: HostState | None = None) -> EvacuationDocument:
        host = (
            [] if state is None else [("host", lambda: self._evacuations.host_saved(run.host, state=state))]
        )
        await self._lookups.commit(
            ("evacuation", lambda: journalled(run)),
            *host,
            then=lambda: self._evacuations.begin(run, state),
        )
        return evacuation_document(self._registry.evacuations[run.id])

    async def activate(self, command: Activate) -> HostDocument:
        """Have a host take guests again."""
        host = self._lookups.host(command.host)
        async with self._reservations.hold(("host", host.name)):
            self._lookups.unoccupied(host)
            await self._lookups.commit(
                ("host", lambda: self._evacuations.host_saved(host.name, state=HostState.ACTIVE)),
                then=lambda: self._evacuations.set_host(host.name, HostState.ACTIVE),
            )
        host = self._lookups.host(command.host)
        return host_document(host, inventory=self._inventory, registry=self._registry)

    async def cordon(self, name: str, *, cordoned: bool) -> HostDocument:
        """Say whether new guests may come to a host; whatever else goes on there goes on."""
        host = self._lookups.host(name)
        async with self._reservations.hold(("host", host.name)):
            host = self._lookups.host(name)
            if host.cordoned is not cordoned:
                await self._lookups.commit(
                    ("host", lambda: self._evacuations.host_saved(host.name, cordoned=cordoned)),
                    then=lambda: self._evacuations.set_cordoned(host.name, cordoned),
                )
        host = self._lookups.host(name)
        return host_document(host, inventory=self._inventory, registry=self._registry)

    async def cancel(self, identifier: str, caller: Caller) -> EvacuationDocument:
        """Begin nothing more, and have every guest stay where it is, as far as that is safe."""
        async with self._reservations.hold(("evacuation", identifier)):
            before = self._lookups.evacuation(identifier, caller)
            if before.scheduled:
                return await self._cancel_scheduled(before)

            def closing() -> dict[str, Any]:
                return journalled(_cancelled(self._registry.evacuations.get(identifier, before)))

            def closes() -> None:
                now = self._registry.evacuations.get(identifier)
                if now is not None and not now.ended:
                    self._registry.change(identifier, _cancelled)
                    self._sessions.cancel_all(now)

            await self._lookups.commit(("evacuation", closing), then=closes)
            now = self._registry.evacuations.get(identifier, before)
            if now.ended and now.closing is not EvacuationState.CANCELLED:
                self._announcer.journal_evacuation(now)
                raise Refusal("not-found", f"{now.kind} {identifier} has just ended")
            self._changed()
            self._waiting_changed()
            return evacuation_document(now)

    async def _cancel_scheduled(self, run: Evacuation) -> EvacuationDocument:
        state = EvacuationState.CANCELLED
        await self._lookups.commit(
            ("evacuation", lambda: journalled(run.ended_as(state, datetime.now(UTC)))),
            then=lambda: self._evacuations.end(run.id, state),
        )
        return evacuation_document(self._registry.evacuations[run.id])

    async def plan(self, command: Plan) -> PlanDocument:
        """Say what emptying a host would do; nothing is begun."""
        host = self._lookups.host(command.host)
        self._lookups.known_codes(command.accept)
        if command.policy is not None:
            self._lookups.policy(command.policy)
        host = await self._inventory.look(host.name)
        if not host.up:
            raise Refusal("not-now", f"it cannot be emptied: {host.error}")
        try:
            return await self._preview.plan(host.name, command.policy, command.accept)
        except Unavailable as error:
            raise Refusal("unavailable", str(error)) from error


def _window(command: Evacuate) -> MaintenanceWindow:
    """Return the window that a command gives."""
    zone = None
    if command.time_zone is not None:
        try:
            zone = ZoneInfo(command.time_zone)
        except (KeyError, OSError, ValueError):  # not found; a directory; no key of a zone
            raise Refusal(
                "invalid", f"time_zone: there is no {command.time_zone} here; write Europe/Berlin"
            ) from None
    now = datetime.now(UTC)
    try:
        return understand(command.at, command.until, now=now, zone=zone, zone_name=command.time_zone or "")
    except UsageError as error:
        raise Refusal("invalid", str(error)) from None


def _evacuation(command: Evacuate, window: MaintenanceWindow, caller: Caller, key: str) -> Evacuation:
    return Evacuation(
        id=new_id(),
        host=command.host,
        policy=command.policy or "",
        accept=tuple(command.accept),
        deadline=command.deadline or window.ends_at,
        on_deadline=command.on_deadline,
        window=window,
        key=key,
        **_asked_by(caller),
    )


def _with_common_policy(run: Evacuation) -> Evacuation:
    """Return a restore with the policy that all of its guests came by, where that is one: it is shown then."""
    if run.policy or len({entry.policy for entry in run.entries.values()}) != 1:
        return run
    return replace(run, policy=next(entry.policy for entry in run.entries.values()))


def _cancelled(run: Evacuation) -> Evacuation:
    return replace(run, closing=EvacuationState.CANCELLED)


def _asked_by(caller: Caller) -> dict[str, Any]:
    trace = caller.trace
    return {
        "requested_by": caller.user,
        "traceparent": trace.parent if trace else None,
        "tracestate": (trace.state or None) if trace else None,
    }
