"""The search behind :mod:`migrator.core.placement`: best fit decreasing, then rearranging. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from migrator.core.placement.fleet import Fleet
from migrator.core.placement.packing import Allocation, Item

#: Hosts tried for a guest that is left out, the likeliest first; sets of guests that may give way on each; and how
#: many times those that gave way may make others give way in turn.
_HOSTS_TRIED = 24
_SETS_TRIED = 6
_CHAIN = 3
#: The largest part of a plan that is solved exactly.
_EXACT_ITEMS = 18
_EXACT_HOSTS = 24
#: Looking at so many hosts is as much work as one try.
_LOOKS_A_TRY = 20


def choose_all(allocation: Allocation, items: Sequence[Item]) -> None:
    """Put as many of the items, one guest each, as can be found a place for; groups together where that goes."""
    units = _units(allocation.fleet, items)
    _best_fit(allocation, units)
    left_out = [unit for unit in units if allocation.place_of(unit) is None]
    _help(allocation, left_out)
    # Whoever still has no place as a group may have some as single guests.
    _break_up(allocation, [unit for unit in left_out if unit.members])
    kept = {member for unit in units if allocation.place_of(unit) is not None for member in unit.members}
    left_out = [item for item in items if allocation.place_of(item) is None and item not in kept]
    if left_out:
        _break_up(allocation, units)
        _help(allocation, left_out)
        _try_smallest_first(allocation, items)
        _solve(allocation, items)
    _break_up(allocation, units)
    _prefer_urgent(allocation, items)


def _units(fleet: Fleet, items: Sequence[Item]) -> list[Item]:
    """Guests of one group become one item, but for those that cannot be on one host or were planned apart."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.group:
            groups.setdefault(item.group, []).append(item)
    units = [item for item in items if not item.group]
    for members in groups.values():
        unit = _unit(fleet, members) if len(members) > 1 else None
        units.extend(members if unit is None else [unit])
    return units


def _unit(fleet: Fleet, members: Sequence[Item]) -> Item | None:
    words = [word for member in members for word in member.words]
    prefer = {member.prefer for member in members} - {None}
    only = {member.requests[0].only for member in members}
    requires: dict[str, str] = {}
    for member in members:
        for key, value in member.requests[0].guest.requires.items():
            if requires.setdefault(key, value) != value:
                return None
    if len(set(words)) != len(words) or len(prefer) > 1 or len(only) > 1:
        return None
    if any(one.collides(other) for one, other in combinations(members, 2)):
        return None
    unit = Item.of(fleet, [member.requests[0] for member in members], members[0].order)
    unit.members = list(members)
    return unit


def _break_up(allocation: Allocation, units: Iterable[Item]) -> None:
    """The members take the place of their group; those of one without a place look for one each."""
    for unit in units:
        if not unit.members:
            continue
        if allocation.place_of(unit) is not None:
            place = allocation.take(unit)
            for member in unit.members:
                member.moved = unit.moved
                allocation.put(member, place)
        elif all(allocation.place_of(member) is None for member in unit.members):
            _best_fit(allocation, unit.members)


def _hardest_first(item: Item) -> tuple[int, int, int, int]:
    # Who has few hosts to choose from comes before those that fit anywhere; powers of two, so that size still counts.
    return len(item.candidates.places).bit_length(), -item.memory_bytes, -item.vcpus, item.order


def _best_fit(allocation: Allocation, items: Iterable[Item]) -> None:
    items = sorted(items, key=_hardest_first)
    for item in items:
        prefer = item.prefer
        if prefer is not None and prefer in item.candidates.allowed and allocation.fits(item, prefer):
            allocation.put(item, prefer)
    for item in items:
        if allocation.place_of(item) is None:
            place = allocation.choose(item)
            if place is not None:
                allocation.put(item, place)


def _try_smallest_first(allocation: Allocation, items: Sequence[Item]) -> None:
    """Where there is not room enough for all, more find a place if the small ones come first."""
    before = {item: allocation.place_of(item) for item in items}
    left_out = sum(place is None for place in before.values())
    if not left_out:
        return
    mark = allocation.checkpoint()
    for item, place in before.items():
        if place is not None:
            allocation.take(item)
    for item in sorted(items, key=lambda one: (one.memory_bytes, one.vcpus, one.order)):
        place = allocation.choose(item)
        if place is not None:
            allocation.put(item, place)
    if sum(allocation.place_of(item) is None for item in items) >= left_out:
        allocation.roll_back(mark)
        return
    for item, place in before.items():
        item.moved = item.moved or allocation.place_of(item) != place


# -- rearranging


def _help(allocation: Allocation, left_out: Iterable[Item]) -> None:
    for item in sorted(left_out, key=_hardest_first):
        if allocation.place_of(item) is None:
            _make_room(allocation, item, _CHAIN, frozenset())


def _make_room(allocation: Allocation, item: Item, chain: int, closed: frozenset[int]) -> bool:
    """Put it somewhere, moving others of the plan on where need be; changes nothing if that fails."""
    allocation.tries -= 1
    place = allocation.choose(item, closed)
    if place is not None:
        allocation.put(item, place)
        return True
    if chain == 0 or allocation.tries <= 0:
        return False
    for place in _likely(allocation, item, closed)[:_HOSTS_TRIED]:
        for giving_way in _giving_way(allocation, item, place):
            if allocation.tries <= 0:
                return False
            mark = allocation.checkpoint()
            for other in giving_way:
                allocation.take(other)
            if not allocation.fits(item, place):
                allocation.roll_back(mark)
                continue
            allocation.put(item, place)
            if all(_make_room(allocation, other, chain - 1, closed | {place}) for other in giving_way):
                for one in (item, *giving_way):
                    one.moved = True
                return True
            allocation.roll_back(mark)
    return False


def _likely(allocation: Allocation, item: Item, closed: frozenset[int]) -> list[int]:
    """Hosts that could take it if what this plan sends there went elsewhere; the least lack first."""
    found = []
    allocation.tries -= len(allocation.planned) // _LOOKS_A_TRY
    for place, others in allocation.planned.items():
        if not others or place in closed or place in item.banned or place not in item.candidates.allowed:
            continue
        lack = item.memory_bytes - allocation.memory_left[place]
        lack_cpus = item.vcpus - allocation.cpus_left[place]
        if (
            lack <= sum(other.memory_bytes for other in others)
            and lack_cpus <= sum(other.vcpus for other in others)
            and all(
                allocation.words(word)[place] == sum(word in other.words for other in others)
                for word in item.words
            )
            and (not item.listens or allocation.ports_for(item, place, allocation.fleet.ports) is None)
        ):
            found.append((lack, place))
    return [place for _, place in sorted(found)]


def _giving_way(allocation: Allocation, item: Item, place: int) -> Iterator[tuple[Item, ...]]:
    """Sets of items on a host of which each, gone, leaves room for `item`: few and small ones first."""
    others = sorted(allocation.on(place), key=lambda other: (other.memory_bytes, other.vcpus, other.order))
    must = tuple(other for other in others if other.words & item.words or item.collides(other))
    may = [other for other in others if other not in must]
    lack = item.memory_bytes - allocation.memory_left[place] - sum(other.memory_bytes for other in must)
    lack_cpus = item.vcpus - allocation.cpus_left[place] - sum(other.vcpus for other in must)
    found = 0
    for size in range(min(2, len(may)) + 1):
        for more in combinations(may[: 12 if size == 2 else None], size):
            enough = lack <= sum(other.memory_bytes for other in more)
            if enough and lack_cpus <= sum(other.vcpus for other in more):
                yield (*more, *must)[::-1]
                found += 1
                if found == _SETS_TRIED:
                    return
        if found and size < 2:
            return
    if not found:
        yield tuple(reversed(others))


# -- solving a part exactly


def _solve(allocation: Allocation, items: Sequence[Item]) -> None:
    """Try to leave fewer out by going through all ways of placing a part of the plan: all of it, if it is small."""
    tried: set[frozenset[Item]] = set()
    for item in sorted(items, key=_hardest_first):
        if allocation.place_of(item) is not None or allocation.tries <= 0:
            continue
        part, hosts = _part(allocation, item, items)
        if frozenset(part) not in tried and hosts:
            tried.add(frozenset(part))
            while _solve_part(allocation, part, hosts):
                if all(allocation.place_of(one) is not None for one in part):
                    break


def _part(allocation: Allocation, item: Item, items: Sequence[Item]) -> tuple[list[Item], list[int]]:
    allowed = set().union(*(one.candidates.allowed for one in items))
    if len(items) <= _EXACT_ITEMS and len(allowed) <= _EXACT_HOSTS:
        return list(items), sorted(allowed)
    part, hosts = [item], list[int]()
    for place in _likely(allocation, item, frozenset()):
        others = allocation.on(place)
        if len(part) + len(others) <= _EXACT_ITEMS and len(hosts) < _EXACT_HOSTS // 2:
            part.extend(others)
            hosts.append(place)
    for one in part:
        another = allocation.choose(one, hosts)
        if another is not None and len(hosts) < _EXACT_HOSTS:
            hosts.append(another)
    return part, hosts


def _solve_part(allocation: Allocation, part: Sequence[Item], hosts: Sequence[int]) -> bool:
    """Find a way that leaves fewer of `part` out than now; changes nothing if there is none."""
    mark = allocation.checkpoint()
    before = {one: allocation.place_of(one) for one in part}
    may_stay_out = sum(place is None for place in before.values()) - 1
    for one, place in before.items():
        if place is not None:
            allocation.take(one)
    part = sorted(part, key=_hardest_first)
    kinds = [
        tuple(place in one.candidates.allowed and place not in one.banned for one in part) for place in hosts
    ]
    if may_stay_out >= 0 and _assign(allocation, part, 0, list(zip(hosts, kinds, strict=True)), may_stay_out):
        for one in part:
            one.moved = one.moved or allocation.place_of(one) != before[one]
        return True
    allocation.roll_back(mark)
    return False


def _assign(
    allocation: Allocation,
    part: Sequence[Item],
    at: int,
    hosts: Sequence[tuple[int, tuple[bool, ...]]],
    may_stay_out: int,
) -> bool:
    if at == len(part):
        return True
    if may_stay_out == 0:
        room = sum(max(0, allocation.memory_left[place]) for place, _ in hosts)
        if room < sum(one.memory_bytes for one in part[at:]):
            return False
    item = part[at]
    seen = set()
    for place, kind in hosts:
        if not kind[at] or not allocation.fits(item, place):
            continue
        # Hosts that are alike to all that is still to come: one stands for them.
        alike = (
            allocation.memory_left[place],
            allocation.cpus_left[place],
            kind[at:],
            tuple(sorted({word for one in part[at:] for word in one.words if allocation.words(word)[place]})),
            tuple(not one.listens or allocation.ports_for(one, place) is None for one in part[at:]),
        )
        if alike in seen:
            continue
        seen.add(alike)
        if allocation.tries <= 0:
            return False
        allocation.tries -= 1
        mark = allocation.checkpoint()
        allocation.put(item, place)
        if _assign(allocation, part, at + 1, hosts, may_stay_out):
            return True
        allocation.roll_back(mark)
    return may_stay_out > 0 and _assign(allocation, part, at + 1, hosts, may_stay_out - 1)


def _prefer_urgent(allocation: Allocation, items: Sequence[Item]) -> None:
    """Let no item stay out that has a higher priority than one that took its room."""
    placed = [item.requests[0].guest.priority for item in items if allocation.place_of(item) is not None]
    least = min(placed, default=0)
    urgent = [
        item
        for item in items
        if allocation.place_of(item) is None and item.requests[0].guest.priority > least
    ]
    for item in sorted(urgent, key=lambda one: -one.requests[0].guest.priority):
        swap = _less_urgent(allocation, item)
        if swap is not None:
            place = allocation.take(swap)
            allocation.put(item, place)
            item.moved = True


def _less_urgent(allocation: Allocation, item: Item) -> Item | None:
    priority = item.requests[0].guest.priority
    for place in _likely(allocation, item, frozenset()):
        below = [other for other in allocation.on(place) if other.requests[0].guest.priority < priority]
        for other in sorted(below, key=lambda one: (one.requests[0].guest.priority, -one.memory_bytes)):
            mark = allocation.checkpoint()
            allocation.take(other)
            fits = allocation.fits(item, place)
            allocation.roll_back(mark)
            if fits:
                return other
    return None
