"""Reasons why no host can take a guest, counted over all of them and put in words. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from migrator.core.placement.fleet import Constraint
from migrator.core.placement.packing import Allocation, Item
from migrator.units import show_bytes

#: For one host, and for several.
_WORDS: Mapping[Constraint, tuple[str, str]] = {
    Constraint.DOWN: ("does not answer", "do not answer"),
    Constraint.DRAINING: ("drains", "drain"),
    Constraint.MAINTENANCE: ("is in maintenance", "are in maintenance"),
    Constraint.CORDONED: ("is cordoned", "are cordoned"),
    Constraint.LEAVING: ("is emptied in the same plan", "are emptied in the same plan"),
    Constraint.EXCLUDED: ("is ruled out", "are ruled out"),
    Constraint.KVM: ("has no KVM", "have no KVM"),
    Constraint.LABEL: ("lacks label", "lack label"),
    Constraint.ANTI_AFFINITY: ("has a guest with anti-affinity", "have a guest with anti-affinity"),
    Constraint.PORT: ("has no room for port", "have no room for port"),
    Constraint.MEMORY: ("has too little memory", "have too little memory"),
    Constraint.CPU: ("has too few vCPUs left", "have too few vCPUs left"),
}


def count_obstacles(allocation: Allocation, item: Item) -> tuple[dict[Constraint, int], str]:
    """Count hosts by the first constraint that keeps the guest from each, and put the same in words.

    The host it is on does not count. Room is what is left after everybody else of the plan has his place.
    """
    fleet, request = allocation.fleet, item.requests[0]
    if request.only and request.only not in fleet.index:
        return {Constraint.NOT_ASKED_FOR: len(fleet.hosts)}, f"there is no host {request.only!r}"
    if request.only and request.only == request.guest.host:
        return {Constraint.SAME_HOST: 1}, f"it is on {request.only} already"
    if request.only:
        whole = f"only {request.only} was asked for"
        found = _ObstacleCounts()
        found.add(allocation, item, fleet.index[request.only])
    else:
        others = len(fleet.hosts) - (request.guest.host in fleet.index)
        if not others:
            return {}, "there is no other host"
        whole = f"{others} other host{'s' * (others > 1)}"
        found = _everywhere(allocation, item)
    kept = ", without memory_reserve" if any(host.memory_reserve_bytes for host in fleet.hosts) else ""
    best = {
        Constraint.MEMORY: f"{show_bytes(max(0, found.memory))} of {show_bytes(item.memory_bytes)}{kept}",
        Constraint.CPU: f"{max(0, int(found.cpus))} of {item.vcpus}, by cpu_overcommit",
    }
    counted: Counter[Constraint] = Counter()
    parts = []
    for (constraint, detail), count in sorted(found.hosts.items(), key=lambda entry: (-entry[1], entry[0])):
        if count <= 0:
            continue
        counted[constraint] += count
        words = f"{count} {_WORDS[constraint][count > 1]}{detail}"
        if constraint in best:
            words += f" ({'best has ' if count > 1 else ''}{best[constraint]})"
        parts.append(words)
    gave_up = "; there are more ways to rearrange the plan than were tried" if allocation.tries <= 0 else ""
    return dict(counted), f"{whole}: {', '.join(parts)}{gave_up}"


@dataclass
class _ObstacleCounts:
    """Counts of hosts by the first constraint that each does not meet and the words for it."""

    hosts: Counter[tuple[Constraint, str]] = field(default_factory=Counter)
    #: The most that any has of what it has too little of.
    memory: float = 0
    cpus: float = 0.0

    def add(self, allocation: Allocation, item: Item, place: int) -> None:
        """Count one host."""
        constraint, detail = _static(allocation, item, place) or _dynamic(allocation, item, place)
        self.hosts[constraint, detail] += 1
        if constraint is Constraint.MEMORY:
            self.memory = max(self.memory, allocation.memory_left[place])
        elif constraint is Constraint.CPU:
            self.cpus = max(self.cpus, allocation.cpus_left[place])


def _everywhere(allocation: Allocation, item: Item) -> _ObstacleCounts:
    """Count over all hosts but its own, without a look at each of them: there may be many, and many such guests."""
    fleet, found = allocation.fleet, _ObstacleCounts()
    found.hosts.update({(constraint, ""): count for constraint, count in fleet.barred_for.items()})
    found.hosts.update(allocation.lacking(item, lambda place: _static(allocation, item, place)))
    home = fleet.index.get(item.requests[0].guest.host)
    apart = item.banned & item.candidates.allowed
    if home is not None and home not in apart:
        why = _static(allocation, item, home)
        if why is not None:
            found.hosts[why] -= 1
    for place in apart - {home}:
        found.add(allocation, item, place)
    by_memory = allocation.ranking(item).by_memory
    first = by_memory.below(item.memory_bytes)
    small = sum(allocation.memory_left[place] < item.memory_bytes for place in apart)
    if first > small:
        found.hosts[Constraint.MEMORY, ""] += first - small
        best = (left for left, place in by_memory.entries(first, backwards=True) if place not in apart)
        found.memory = max(found.memory, next(best))
    for _, place in by_memory.entries(first):
        if place not in apart:
            found.add(allocation, item, place)
    return found


def _static(allocation: Allocation, item: Item, place: int) -> tuple[Constraint, str] | None:
    """Return the obstacle that is the same for every guest of its kind, whoever else is there."""
    fleet, guest = allocation.fleet, item.requests[0].guest
    bar = fleet.barred[place]
    if bar is not None:
        return bar, ""
    host = fleet.hosts[place]
    for key, value in guest.requires.items():
        if host.labels.get(key) != value:
            return Constraint.LABEL, f" {key}={value}"
    if fleet.needs_kvm(item.requests[0]) and not host.facts.kvm:
        return Constraint.KVM, ""
    return None


def _dynamic(allocation: Allocation, item: Item, place: int) -> tuple[Constraint, str]:
    name, excluded = allocation.fleet.hosts[place].name, item.requests[0].excluded
    if name in excluded:
        return Constraint.EXCLUDED, f" ({name}: {excluded[name]})"
    if allocation.memory_left[place] < item.memory_bytes:
        return Constraint.MEMORY, ""
    if allocation.cpus_left[place] < item.vcpus:
        return Constraint.CPU, ""
    if any(allocation.words(word)[place] for word in item.words):
        return Constraint.ANTI_AFFINITY, f" {item.requests[0].guest.anti_affinity!r}"
    port = allocation.ports_for(item, place)
    return Constraint.PORT, "" if port is None else f" {port}"
