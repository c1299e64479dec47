"""Where each guest shall go: best fit first, rearranged where that leaves somebody out. Pure.

::

    fleet = Fleet(hosts=hosts, guests=guests, reserved={"vm-9": "host-3"}, leaving={"host-1", "host-2"})
    requests = [Request(guest=guest) for guest in guests if guest.host in {"host-1", "host-2"}]
    for key, answer in place(fleet, requests).items():
        match answer:
            case Placement(host=host, reason=reason): ...   # go there, because
            case NoHost(reason=reason): ...                 # nowhere: what each host lacks, counted
    check(fleet, requests[0], "host-7")                     # one guest against one host, constraint by constraint

Everything that waits for a place goes into one call, of all evacuations at once, with `prefer` set to what was planned
before: then hosts that are emptied together neither send guests to each other nor take each other's last room. Guests
that are on their way already are `reserved`. Build the :class:`Fleet` anew when the inventory changes.

Promises: no host gets more than it has room for; none that is down, not ``active``, or leaving gets anybody; two guests
of one anti-affinity word never get one host. A group is kept together, and with its members elsewhere, where greedy
choice finds a way; it is broken up rather than that a guest stays behind. Where greedy choice leaves somebody out,
those that were placed are moved about, within a bound: with a few guests and hosts that finds the most that can be
placed. Where somebody must stay out, it is nobody of higher priority than one of the plan whose room would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from migrator.core.placement.fleet import Constraint, ConstraintCheck, Fleet, PlacementRequest, check
from migrator.core.placement.obstacles import count_obstacles
from migrator.core.placement.packing import Allocation, Item
from migrator.core.placement.rearranging import choose_all
from migrator.units import show_bytes, show_ratio

__all__ = [
    "Constraint",
    "ConstraintCheck",
    "Fleet",
    "NoHost",
    "Options",
    "Placement",
    "PlacementRequest",
    "Strategy",
    "check",
    "place",
]


class Strategy(StrEnum):
    """Rule for the choice among the hosts that can take a guest."""

    #: The least used one: guests keep the most room to breathe, and streams have the most links.
    SPREAD = "spread"
    #: The one that is left with the least memory: whole hosts stay empty for large guests.
    PACK = "pack"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the choice."""

    strategy: Strategy = Strategy.SPREAD
    #: How often a guest may be put somewhere while those left out are being helped; 20,000 take about 0.2 s.
    max_tries: int = 20_000


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A place for one guest."""

    guest: str
    host: str
    #: Why there, in a sentence a person understands.
    reason: str


@dataclass(frozen=True, kw_only=True)
class NoHost:
    """No host can take a guest as things are; ask again when the inventory has changed."""

    guest: str
    #: What keeps it from the hosts, counted: ``12 hosts: 7 have too little memory (…), 3 drain, 2 lack …``.
    reason: str
    #: Hosts by the first constraint that each does not meet.
    hosts: Mapping[Constraint, int] = field(default_factory=dict)


def place(
    fleet: Fleet, requests: Iterable[PlacementRequest], options: Options | None = None
) -> dict[str, Placement | NoHost]:
    """Return a place for every guest asked for, or why there is none, by the guest's key.

    As many as possible get one; among equals the order of `requests` and of the fleet's hosts decides, so that the
    same question has the same answer. Whether a guest can be moved at all (:attr:`Guest.obstacle`) is not asked here.
    """
    options = options or Options()
    wanted = list({request.guest.key: request for request in requests}.values())
    allocation = Allocation(fleet, pack=options.strategy is Strategy.PACK, tries=options.max_tries)
    items = [Item.of(fleet, [request], order) for order, request in enumerate(wanted)]
    choose_all(allocation, items)
    return {item.key: _answer(allocation, item) for item in items}


def _answer(allocation: Allocation, item: Item) -> Placement | NoHost:
    place = allocation.place_of(item)
    if place is None:
        counted, words = count_obstacles(allocation, item)
        return NoHost(guest=item.key, reason=words, hosts=counted)
    return Placement(
        guest=item.key, host=allocation.fleet.hosts[place].name, reason=_why(allocation, item, place)
    )


def _why(allocation: Allocation, item: Item, place: int) -> str:
    fleet, request = allocation.fleet, item.requests[0]
    host = fleet.hosts[place]
    left = max(0, allocation.memory_left[place])
    room = f"{show_bytes(left)} of {show_bytes(fleet.capacity_bytes[place])} stay free there"
    used = show_ratio(1 - left / max(1, fleet.capacity_bytes[place]))
    if request.only == host.name:
        return f"{host.name} was asked for and can take it; {room}"
    if request.prefer == host.name:
        return f"{host.name} as planned before: it can still take it; {room}"
    if item.moved:
        return f"{host.name}: guests of this plan were rearranged so that more of them find a place; {room}"
    if request.guest.group and allocation.group(request.guest.group)[place] > 1:
        return f"{host.name}: the others of its group {request.guest.group!r} are there too; {room}"
    if allocation.pack:
        return f"{host.name} is the one with the least room that can take it; {room}"
    return f"{host.name} is the least used one that can take it; {used} of its memory is used after this plan"
