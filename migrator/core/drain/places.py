"""A target for every guest of an evacuation that wants one. Pure.

Placing everybody takes time that grows with them, and most changes at a site move nobody's target. So places hold for a
while: they are asked again when something is different and enough time has passed, when somebody has none yet, or when
one that is about to be used does not fit any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from operator import is_

from migrator.core.drain.entry import FAILED_THERE, Entry
from migrator.core.drain.evacuation import Evacuation
from migrator.core.drain.snapshot import SiteSnapshot
from migrator.core.drain.states import GuestStanding
from migrator.core.drain.transfers import Transfers
from migrator.core.drain.wanting import PlacementRequests, Wanting
from migrator.core.inventory import Guest
from migrator.core.placement import Fleet, NoHost, Placement, PlacementRequest, check, place
from migrator.core.schedule.transfers import LinkTable, Move

#: Places hold for so long for each guest that has one.
_HOLD_SECONDS_A_GUEST = 0.1
_WAITING = GuestStanding.WAITING
#: What placement asks of a guest.
_ASKED_OF_A_GUEST = (
    "host", "memory_bytes", "vcpus", "policy", "priority", "group", "anti_affinity", "requires", "listens", "ports",
    "accept",
)  # fmt: skip
#: Code of the finding that a port is taken: who accepts it has the guest listen at another.
SPARES_PORTS = "port-in-use"


@dataclass(frozen=True, kw_only=True)
class Places:
    """The answers of placement at one moment, and the moves of the guests that have a place."""

    clock: float
    #: Deadlines of :attr:`moves` are given as seconds from then.
    made_at: datetime
    #: What was known of hosts and guests, and who was on the way.
    world: tuple[object, ...]
    asked: Mapping[str, Wanting]
    answers: Mapping[str, Placement | NoHost]
    #: In the order of turn.
    moves: Mapping[str, Move]
    network: LinkTable

    def hold(self, found: PlacementRequests, snapshot: SiteSnapshot) -> bool:
        """Tell whether the answers are still good enough; they are for guests of which nothing has changed."""
        wanting = found.wanting
        asked = wanting.keys() if found.changed is None else wanting.keys() & found.changed
        if not all(self._knows(wanting[key]) for key in asked):
            return False
        due = snapshot.clock >= self.clock + _HOLD_SECONDS_A_GUEST * len(wanting)
        return not due or _same(self.world, _world(snapshot))

    def _knows(self, wanting: Wanting) -> bool:
        asked = self.asked.get(wanting.entry.guest.key)
        if asked is None or asked.policy != wanting.policy or asked.run.id != wanting.run.id:
            return False
        if asked.entry is wanting.entry:
            return True
        return asked.entry.excluded == wanting.entry.excluded and _alike(
            asked.entry.guest, wanting.entry.guest
        )

    def fits(self, wanting: Wanting, fleet: Fleet) -> bool:
        """Tell whether a guest still has room at its place, as things are now."""
        answer = self.answers[wanting.entry.guest.key]
        if isinstance(answer, NoHost) or answer.host not in fleet.index:
            return False
        return all(each.fits for each in check(fleet, request_of(wanting.run, wanting.entry), answer.host))


def ask(found: PlacementRequests, snapshot: SiteSnapshot, before: Places | None = None) -> Places:
    """Ask for everybody's place, of all evacuations at once.

    :param before: those of the last plan, whose links are kept where they are as they were.
    """
    wanting = _in_order(found)
    requests = [request_of(each.run, each.entry) for each in wanting]
    answers = place(fleet_of(snapshot), requests, snapshot.placement) if requests else {}
    transfers = Transfers(snapshot, deadlines_from=snapshot.now)
    links = snapshot.limits.links
    network = LinkTable(snapshot.hosts, links) if before is None else before.network.of(snapshot.hosts, links)
    moves = {}
    for each in wanting:
        answer = answers[each.entry.guest.key]
        if isinstance(answer, Placement):
            transfer = transfers.waiting(each.entry.guest, answer.host, each.policy, each.run)
            moves[each.entry.guest.key] = Move(transfer, network, links)
    return Places(
        clock=snapshot.clock,
        made_at=snapshot.now,
        world=_world(snapshot),
        asked={each.entry.guest.key: each for each in wanting},
        answers=answers,
        moves=dict(sorted(moves.items(), key=lambda one: one[1].key)),
        network=network,
    )


def _in_order(found: PlacementRequests) -> list[Wanting]:
    """Return them in the order in which they joined their evacuations: the same question has the same answer."""
    return [
        found.wanting[key]
        for run in found.evacuations.values()
        for key in run.entries
        if key in found.wanting and found.wanting[key].run.id == run.id
    ]


def fleet_of(snapshot: SiteSnapshot) -> Fleet:
    """Return the hosts, with guests on their way counted; those that are emptied take nobody."""
    return Fleet(
        hosts=snapshot.hosts.values(),
        guests=chain.from_iterable(snapshot.guests.values()),
        reserved={
            **snapshot.coming,
            **{each.guest.key: each.target for each in snapshot.migrations if not each.ended},
        },
        leaving=_leaving(snapshot),
    )


def fleet_of_targets(snapshot: SiteSnapshot, targets: Collection[str], guests: Iterable[Guest]) -> Fleet:
    """Return the fleet as far as it is needed to check these guests against these hosts; see :func:`fleet_of`."""
    on_the_way = {each.guest.key: each for each in snapshot.migrations if not each.ended}
    coming = {key: target for key, target in snapshot.coming.items() if target in targets}
    here = {guest.key: guest for name in targets for guest in snapshot.guests.get(name, ())}
    arriving = {
        key: each.guest for key, each in on_the_way.items() if each.target in targets and key not in here
    }
    if coming:
        arriving |= {key: snapshot.everybody[key] for key in coming if key in snapshot.everybody}
    names = [*targets, *dict.fromkeys(guest.host for guest in guests if guest.host not in targets)]
    return Fleet(
        hosts=(snapshot.hosts[name] for name in names if name in snapshot.hosts),
        guests=({**arriving, **here}).values(),
        reserved={**coming, **{key: each.target for key, each in on_the_way.items()}},
        leaving=_leaving(snapshot),
    )


def _leaving(snapshot: SiteSnapshot) -> set[str]:
    return {run.host for run in snapshot.evacuations if not run.ended and run.kind == "evacuate"}


def request_of(run: Evacuation, entry: Entry) -> PlacementRequest:
    """Return what placement is asked for a guest of an evacuation."""
    return PlacementRequest(
        guest=entry.guest,
        excluded=dict(entry.excluded),
        spare_ports=SPARES_PORTS in (*run.accept, *entry.guest.accept),
        prefer=entry.target or "",
        only=run.home,
    )


def marked(entry: Entry, answer: Placement | NoHost) -> Entry:
    """Return the entry with what placement said of it; the same where that changes nothing."""
    if isinstance(answer, NoHost):
        # Where it failed is better than nowhere.
        excluded = {host: why for host, why in entry.excluded.items() if not why.startswith(FAILED_THERE)}
        if len(excluded) < len(entry.excluded):
            return replace(entry, excluded=excluded)
        if (entry.standing, entry.reason) == (GuestStanding.NO_TARGET, answer.reason):
            return entry
        return replace(entry, standing=GuestStanding.NO_TARGET, reason=answer.reason, target=None)
    if entry.target == answer.host and entry.reason and not entry.attempts and entry.standing is _WAITING:
        return entry
    standing, target, reason = _WAITING, entry.target, entry.reason
    if target != answer.host or not reason or entry.attempts:
        target, reason = answer.host, answer.reason
        if entry.planned not in ("", answer.host):
            why = entry.excluded.get(entry.planned, "it has no room for it any more")
            reason += f"; the plan said {entry.planned}: {why}"
    if (standing, target, reason) == (entry.standing, entry.target, entry.reason):
        return entry
    return replace(entry, standing=standing, target=target, reason=reason)


def _alike(one: Guest, other: Guest) -> bool:
    """Tell whether placement would treat both alike."""
    return one is other or all(getattr(one, name) == getattr(other, name) for name in _ASKED_OF_A_GUEST)


def _world(snapshot: SiteSnapshot) -> tuple[object, ...]:
    on_the_way = {each.guest.key: each.target for each in snapshot.migrations if not each.ended}
    return ({**snapshot.coming, **on_the_way}, snapshot.limits, *snapshot.world)


def _same(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    """Tell whether nothing differs but for guests that went where they were to go."""
    if len(before) != len(now) or before[0] != now[0]:
        return False
    return all(map(is_, before[1:], now[1:]))
