"""Why no host can take a guest, counted over all of them and put in words. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from migrator.core.fleet import Constraint
from migrator.core.packing import Book, Item
from migrator.units import show_bytes

#: For one host, and for several.
_WORDS: Mapping[Constraint, tuple[str, str]] = {
    Constraint.DOWN: ("does not answer", "do not answer"),
    Constraint.DRAINING: ("drains", "drain"),
    Constraint.MAINTENANCE: ("is in maintenance", "are in maintenance"),
    Constraint.LEAVING: ("is emptied in the same plan", "are emptied in the same plan"),
    Constraint.EXCLUDED: ("is ruled out", "are ruled out"),
    Constraint.KVM: ("has no KVM", "have no KVM"),
    Constraint.LABEL: ("lacks label", "lack label"),
    Constraint.ANTI_AFFINITY: ("has a guest with anti-affinity", "have a guest with anti-affinity"),
    Constraint.MEMORY: ("has too little memory", "have too little memory"),
    Constraint.CPU: ("has too few vCPUs left", "have too few vCPUs left"),
}


def count_obstacles(book: Book, item: Item) -> tuple[dict[Constraint, int], str]:
    """Hosts by the first constraint that keeps the guest from each, and the same in words.

    The host it is on does not count. Room is what is left after everybody else of the plan has his place.
    """
    fleet, request = book.fleet, item.requests[0]
    if request.only and request.only not in fleet.index:
        return {Constraint.NOT_ASKED_FOR: len(fleet.hosts)}, f"there is no host {request.only!r}"
    if request.only and request.only == request.guest.host:
        return {Constraint.SAME_HOST: 1}, f"it is on {request.only} already"
    home = fleet.index.get(request.guest.host)
    if request.only:
        places = [fleet.index[request.only]]
    else:
        places = [place for place in range(len(fleet.hosts)) if place != home]
    if not places:
        return {}, "there is no other host"
    found: Counter[tuple[Constraint, str]] = Counter()
    best_memory, best_cpus = 0, 0.0
    for place in places:
        constraint, detail = _first(book, item, place)
        found[constraint, detail] += 1
        if constraint is Constraint.MEMORY:
            best_memory = max(best_memory, book.memory_left[place])
        elif constraint is Constraint.CPU:
            best_cpus = max(best_cpus, book.cpus_left[place])
    best = {
        Constraint.MEMORY: f"{show_bytes(best_memory)} of {show_bytes(item.memory_bytes)}",
        Constraint.CPU: f"{int(best_cpus)} of {item.vcpus}",
    }
    counted: Counter[Constraint] = Counter()
    parts = []
    for (constraint, detail), count in sorted(found.items(), key=lambda entry: (-entry[1], entry[0])):
        counted[constraint] += count
        words = f"{count} {_WORDS[constraint][count > 1]}{detail}"
        if constraint in best:
            words += f" ({'best has ' if count > 1 else ''}{best[constraint]})"
        parts.append(words)
    whole = (
        f"only {request.only} was asked for"
        if request.only
        else f"{len(places)} other host{'s' * (len(places) > 1)}"
    )
    gave_up = "; there are more ways to rearrange the plan than were tried" if book.tries <= 0 else ""
    return dict(counted), f"{whole}: {', '.join(parts)}{gave_up}"


def _first(book: Book, item: Item, place: int) -> tuple[Constraint, str]:
    fleet, request = book.fleet, item.requests[0]
    bar = fleet.barred[place]
    if bar is not None:
        return bar, ""
    host = fleet.hosts[place]
    if host.name in request.excluded:
        return Constraint.EXCLUDED, f" ({host.name}: {request.excluded[host.name]})"
    if place not in item.candidates.allowed:
        for key, value in request.guest.requires.items():
            if host.labels.get(key) != value:
                return Constraint.LABEL, f" {key}={value}"
        return Constraint.KVM, ""
    for word in item.words:
        if book.words(word)[place]:
            return Constraint.ANTI_AFFINITY, f" {word!r}"
    if book.memory_left[place] < item.memory_bytes:
        return Constraint.MEMORY, ""
    return Constraint.CPU, ""
