"""The guests that come home with a restore of a host, each by which policy: the one that it left by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migrator.api.commands import Restore
from migrator.api.plan_documents import HomecomingPolicy, RestorePlanDocument
from migrator.api.replies import Refusal
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.states import GuestStanding
from migrator.core.inventory import Guest, HostState
from migrator.core.policy_words import allowed
from migrator.engine.commands.lookups import Lookups
from migrator.engine.evacuation_documents import from_journal
from migrator.engine.inventory import Inventory
from migrator.engine.registry import Registry
from migrator.ports import Journal

#: Of the last evacuations and restores of a host so many are looked through for guests that are not at home.
_LOOKED_THROUGH = 100


@dataclass(frozen=True, kw_only=True)
class GuestAway:
    """A guest that comes home."""

    guest: Guest
    #: That its evacuation was asked for with; empty where it was asked for with none: the guest's own.
    policy: str


class Homecoming:
    """Finds out who would come home to a host."""

    def __init__(
        self, *, lookups: Lookups, registry: Registry, inventory: Inventory, journal: Journal
    ) -> None:
        self._lookups, self._registry, self._inventory = lookups, registry, inventory
        self._journal = journal

    async def guests(self, command: Restore) -> Sequence[GuestAway]:
        """Return whom a restore would bring home, with the policy that each left by.

        :raise Refusal: it cannot be begun: the host takes no guests now, or there is nobody to bring home.
        """
        host = self._lookups.host(command.host)
        self._lookups.unoccupied(host)
        if command.policy is not None:
            self._lookups.policy(command.policy)
        self._lookups.takes_guests(host)
        if not host.up:
            raise Refusal("not-now", f"guests cannot come home: {host.error}")
        moved = await self._moved_away(host.name, command.evacuation)
        now = {guest.key: guest for guest in self._inventory.guests()}
        guests = [
            GuestAway(guest=now[key], policy=policy)
            for key, policy in moved.items()
            if key in now and now[key].host != host.name
        ]
        if not guests and host.state is HostState.ACTIVE:
            raise Refusal(
                "conflict",
                f"{host.name} is active and there is nobody to bring home: no guest that an evacuation moved "
                "away from it is known to run elsewhere",
            )
        for name in sorted({each.policy for each in guests} - {""}):
            if command.policy is None:
                self._refuse_lost_policy(name, host.name)
        return guests

    async def plan(self, command: Restore) -> RestorePlanDocument:
        """Say who would come home, by which policies, and what each of them allows.

        :raise Refusal: as :meth:`guests`.
        """
        guests = await self.guests(command)
        by = [each.policy if command.policy is None else command.policy for each in guests]
        return RestorePlanDocument(
            host=command.host,
            guests=len(guests),
            policies=[
                HomecomingPolicy(
                    policy=name,
                    guests=by.count(name),
                    allows=allowed(self._lookups.policy(name)) if name else [],
                )
                for name in sorted(set(by))
            ],
        )

    def _refuse_lost_policy(self, policy: str, host: str) -> None:
        """Refuse to bring guests home that left a host by a policy which is not there any more."""
        try:
            self._lookups.policy(policy)
        except Refusal as refusal:
            raise Refusal(
                refusal.code,
                f"guests left {host} by the policy {policy}, and go home by it: {refusal}; or say by which: "
                f"migrator restore {host} --policy NAME",
            ) from None

    async def _moved_away(self, host: str, evacuation: str | None) -> Mapping[str, str]:
        """Return whom its evacuations moved away since its last restore, each with the policy that was asked for.

        Where a restore came last: those that it did not bring home.

        :param evacuation: only those that this one moved; ``None``: all.
        """
        if evacuation is not None:
            saved = await self._journal.find("evacuation", evacuation)
            run = self._registry.evacuations.get(evacuation) or (from_journal(saved) if saved else None)
            if run is None or run.kind != "evacuate" or run.host != host:
                raise Refusal("not-found", f"there is no evacuation {evacuation} of {host}")
            return _moved_by(run)
        moved: dict[str, str] = {}
        for saved in await self._journal.page("evacuation", limit=_LOOKED_THROUGH, where={"host": host}):
            # What has just ended may not have reached the journal yet.
            run = self._registry.evacuations.get(saved["id"]) or from_journal(saved)
            if run.scheduled:
                continue
            if run.ended_at is None:
                break
            if run.kind == "restore":
                if not moved:
                    moved = {entry.guest.key: run.policy_of(entry.guest.key) for entry in run.left}
                break
            for key, policy in _moved_by(run).items():
                moved.setdefault(key, policy)
        return moved


def _moved_by(run: Evacuation) -> dict[str, str]:
    """Return the policy that was asked for of each guest that an evacuation moved."""
    return {
        key: run.policy_of(key) for key, entry in run.entries.items() if entry.standing is GuestStanding.MOVED
    }
