"""Looks up what commands name, or refuses it: hosts, guests, migrations, policies, findings that are accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

from migrator.api import field_errors
from migrator.api.replies import Refusal
from migrator.api.requests import Caller
from migrator.core.drain.evacuation import Evacuation
from migrator.core.inventory import Guest, Host
from migrator.core.model import Finding
from migrator.core.placement import Fleet
from migrator.core.policy import Policy
from migrator.engine import clock
from migrator.engine.inventory import Inventory, one_guest
from migrator.engine.journal_writer import DocumentToSave, JournalWriter
from migrator.engine.migration.journalled_session import JournalledSession
from migrator.engine.migration.services import SessionServices
from migrator.engine.registry import Registry
from migrator.engine.rules import Rules
from migrator.errors import JournalError, UsageError

#: For guests that nobody knows the hosts are looked at so often at most.
_LOOK_AGAIN_SECONDS = 5.0


class Lookups:
    """Finds what a command names, as things are now; each function raises :class:`Refusal` where it is not so.

    :param rules: as they are now.
    """

    def __init__(
        self,
        *,
        inventory: Inventory,
        registry: Registry,
        services: SessionServices,
        journal_writer: JournalWriter,
        rules: Callable[[], Rules],
    ) -> None:
        self._inventory, self._registry, self._services = inventory, registry, services
        self._journal_writer, self._rules = journal_writer, rules
        self._looked = -math.inf

    def host(self, name: str) -> Host:
        """Return the host of that name."""
        host = self._inventory.host(name)
        if host is None:
            known = (each.name for each in self._inventory.hosts())
            raise Refusal("not-found", field_errors.no_such_host(name, known))
        return host

    async def guest(self, which: str, caller: Caller) -> Guest:
        """Return that guest; one that is not known yet may have been started since the hosts were looked at.

        :raise Refusal: there is none, or more than one; or it is on a host that the caller's rights do not reach.
        """
        now = clock.now()
        if not self._inventory.find(which) and now - self._looked >= _LOOK_AGAIN_SECONDS:
            self._looked = now
            await self._inventory.look_at_all(only_up=True)
        return self._one_guest(which, caller)

    def _one_guest(self, which: str, caller: Caller) -> Guest:
        if not caller.covers(*(each.host for each in self._inventory.find(which))):
            raise caller.outside(
                f"{which} is no guest there, or not only there: see migrator guests, and name its uuid"
            )
        return one_guest(self._inventory, which)

    def guest_again(self, guest: Guest, which: str, caller: Caller) -> Guest:
        """Return a guest as it is now: it may have moved while a command about it was waited for.

        :raise Refusal: as :meth:`guest`.
        """
        there = self._inventory.guests_of(guest.key)
        same = [each for each in there if each.host == guest.host]
        return same[0] if same else self._one_guest(there[0].key if there else which, caller)

    async def judged_again(self, guest: Guest, which: str, caller: Caller) -> Guest:
        """Return a guest as it is now; where something speaks against moving it, its host is looked at anew: what
        somebody has mended, or ended, since the last look is no reason to refuse.
        """
        host = self._inventory.host(guest.host)
        if guest.obstacle and host is not None and host.up:
            await self._inventory.refresh(guest.host)
            return self.guest_again(guest, which, caller)
        return guest

    def session(self, identifier: str, caller: Caller, *, ended: bool = False) -> JournalledSession:
        """Return the migration of that id that is under way.

        :param ended: or that was until a moment ago.
        :raise Refusal: there is none, or its source is a host that the caller's rights do not reach.
        """
        session = self._registry.migrations.get(identifier)
        if not caller.covers(*([] if session is None else [session.guest.host])):
            raise caller.outside(f"nothing of the id {identifier} is under way there")
        if session is None or (session.ended and not ended):
            raise Refusal("not-found", f"no migration {identifier} is under way")
        return session

    def evacuation(self, identifier: str, caller: Caller) -> Evacuation:
        """Return the evacuation, restore, roll or move of a group of that id that is under way.

        :raise Refusal: there is none, or it is about a host that the caller's rights do not reach.
        """
        run = self._registry.evacuations.get(identifier)
        if not caller.covers(*([] if run is None else run.concerned)):
            raise caller.outside(f"nothing of the id {identifier} is under way there")
        if run is None or run.ended:
            raise Refusal("not-found", f"no migration or evacuation {identifier} is under way")
        return run

    def not_under_way(self, guest: Guest) -> None:
        """Refuse a guest that is being migrated."""
        if (session := self._registry.of_guest(guest.key)) is not None:
            raise Refusal("conflict", f"{guest.label} is {session.state} already: migration {session.id}")

    def not_to_be_moved(self, guest: Guest) -> None:
        """Refuse a guest that an evacuation, or a group that moves, has on its list already."""
        for run in self._registry.running():
            entry = run.entries.get(guest.key)
            if entry is not None and entry.going:
                raise Refusal(
                    "conflict", f"{guest.label} is moved by {run.id} already: migrator cancel {run.id} first"
                )

    def unoccupied(self, host: Host) -> None:
        """Refuse a host that is being emptied or filled again."""
        for run in self._registry.running():
            if run.host == host.name:
                verb = "emptied by evacuation" if run.kind == "evacuate" else "filled again by restore"
                raise Refusal(
                    "conflict", f"{host.name} is being {verb} {run.id}: migrator cancel {run.id} first"
                )

    def takes_guests(self, host: Host) -> None:
        """Refuse a host that somebody wants no new guests on."""
        if host.cordoned:
            raise Refusal(
                "conflict",
                f"{host.name} is cordoned, so no guest comes there: migrator uncordon {host.name} first",
            )

    def policy(self, name: str) -> Policy:
        """Return the policy of that name."""
        try:
            return self._rules().policy(name)
        except UsageError as error:
            raise Refusal("invalid", str(error)) from error

    def policy_of(self, guest: Guest, name: str | None) -> Policy:
        """Return the policy asked for, else the guest's, else the site's."""
        try:
            return self._rules().policy_of(guest, name)
        except UsageError as error:
            raise Refusal("invalid", str(error)) from error

    def known_codes(self, codes: Sequence[str]) -> None:
        """Refuse codes of findings that there are not, or that cannot be accepted."""
        try:
            self._services.accept((), codes)
        except UsageError as error:
            raise Refusal("invalid", str(error)) from error

    def fleet(self) -> Fleet:
        """Return the hosts, with guests on their way counted; those that are being emptied take nobody."""
        return Fleet(
            hosts=self._inventory.hosts(),
            guests=self._inventory.guests(),
            reserved=self._registry.reserved_targets,
            leaving=self._registry.leaving(),
        )

    def fleet_at(self, host: str, guest: Guest) -> Fleet:
        """Return that host, and the one that the guest is on: enough for one that shall go there and has no group."""
        reserved, inventory = self._registry.reserved_targets, self._inventory
        home = self._inventory.host(guest.host)
        coming = [key for key, target in reserved.items() if target == host]
        others = [guest for key in coming for guest in inventory.guests_of(key) if guest.host != host]
        return Fleet(
            hosts=[self.host(host), *([home] if home is not None else [])],
            guests=[*inventory.guests_at(host), *others],
            reserved=reserved,
            leaving=self._registry.leaving(),
        )

    async def commit(self, *documents: tuple[str, DocumentToSave], then: Callable[[], None]) -> None:
        """Write these documents; memory takes them over by `then` once they are on disk, and not at all else."""
        try:
            await self._journal_writer.commit(*documents, then=then)
        except JournalError as error:
            raise not_begun(error) from error


def not_begun(error: JournalError) -> Refusal:
    """Return the refusal of what the journal could not take."""
    return Refusal("unavailable", f"it was not begun: {error}")


def refused_by_preflight(message: str, findings: Sequence[Finding]) -> Refusal:
    """Return the refusal of what preflight speaks against."""
    return Refusal("preflight", message, findings=[asdict(each) for each in findings])
