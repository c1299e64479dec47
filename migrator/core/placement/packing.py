"""The book-keeping of :mod:`migrator.core.placement`: who goes where, what is left, what fits best. Pure.

What is placed is an :class:`Item`: one guest, or a group that shall stay together. An
:class:`Allocation` holds who is where
and what is left. Hosts are numbers here: places in :attr:`Fleet.hosts`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from migrator.core.placement.fleet import Candidates, Constraint, Fleet, PlacementRequest
from migrator.core.process import listening
from migrator.core.process.listening import ListeningPort
from migrator.core.process.ports_taken import PortsTaken


@dataclass(kw_only=True, eq=False)
class Item:
    """One guest or one group, and what it needs."""

    requests: Sequence[PlacementRequest]
    #: Its place among those asked for.
    order: int
    memory_bytes: int
    vcpus: int
    words: frozenset[str]
    group: str
    candidates: Candidates
    #: Somebody of it listens at a port.
    listens: bool
    #: Hosts it must not go to, its own among them.
    banned: frozenset[int]
    prefer: int | None = None
    #: It, or what was there before it, was rearranged; for the reason.
    moved: bool = False
    members: list[Item] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Key of its first guest."""
        return self.requests[0].guest.key

    def collides(self, other: Item) -> bool:
        """Tell whether both listen at a port that one host has once."""
        return bool(self.listens and other.listens) and any(
            listening.collides(mine, theirs) and not (mine.last or theirs.last)
            for one in self.requests
            for two in other.requests
            for mine in one.guest.listens
            for theirs in two.guest.listens
        )

    @classmethod
    def of(cls, fleet: Fleet, requests: Sequence[PlacementRequest], order: int) -> Item:
        """Return the item of one request, or of several that shall stay together."""
        guests = [request.guest for request in requests]
        requires: dict[str, str] = {}
        banned: set[int] = set()
        for request in requests:
            requires.update(request.guest.requires)
            names = (request.guest.host, *request.excluded)
            banned.update(fleet.index[name] for name in names if name in fleet.index)
        prefer = next((request.prefer for request in requests if request.prefer), "")
        return cls(
            requests=requests,
            order=order,
            memory_bytes=sum(guest.memory_bytes for guest in guests),
            vcpus=sum(guest.vcpus for guest in guests),
            words=frozenset(guest.anti_affinity for guest in guests if guest.anti_affinity),
            group=guests[0].group,
            listens=any(guest.listens for guest in guests),
            candidates=fleet.candidates(requires, any(map(fleet.needs_kvm, requests)), requests[0].only),
            banned=frozenset(banned),
            prefer=fleet.index.get(prefer),
        )


class Sorted:
    """Hosts in the order of a number that changes as they fill."""

    def __init__(self, places: Sequence[int], number: Callable[[int], float]) -> None:
        self._number = number
        self._key = {place: number(place) for place in places}
        self._sorted = sorted((key, place) for place, key in self._key.items())

    def update(self, place: int) -> None:
        """Sort a host anew after something went there or away."""
        before = self._key.get(place)
        if before is None:
            return
        now = self._number(place)
        if now != before:
            del self._sorted[bisect_left(self._sorted, (before, place))]
            insort(self._sorted, (now, place))
            self._key[place] = now

    def __len__(self) -> int:
        return len(self._sorted)

    def below(self, number: float) -> int:
        """Return how many hosts are below that number."""
        return bisect_left(self._sorted, (number, -1))

    def entries(self, start: int = 0, *, backwards: bool = False) -> Iterator[tuple[float, int]]:
        """Yield hosts from `start` on, or from the one before it downwards. Nothing may change before the generator
        is left.
        """
        for at in range(start - 1, -1, -1) if backwards else range(start, len(self._sorted)):
            yield self._sorted[at]


class Ranking:
    """The hosts of one set of candidates, by rank and by memory left."""

    def __init__(self, places: Sequence[int], allocation: Allocation) -> None:
        self.by_memory = Sorted(places, allocation.memory_left.__getitem__)
        self.by_rank = self.by_memory if allocation.pack else Sorted(places, allocation.rank)

    def update(self, place: int) -> None:
        """Rank a host anew after something went there or away."""
        self.by_memory.update(place)
        if self.by_rank is not self.by_memory:
            self.by_rank.update(place)

    def best_first(self, item: Item, allocation: Allocation) -> Iterator[int]:
        """Yield at least those hosts that have memory for it, the best first."""
        first = self.by_memory.below(item.memory_bytes)
        roomy = self.by_memory.entries(first)
        if allocation.pack:
            return (place for _, place in roomy)
        if 4 * (len(self.by_memory) - first) < len(self.by_memory):
            # Few have so much: rather through these than through all that are less used.
            return iter(
                sorted((place for _, place in roomy), key=lambda place: (allocation.rank(place), place))
            )
        return (place for _, place in self.by_rank.entries())


class Allocation:
    """The allocation of guests to hosts in this plan, and what is left of each host."""

    def __init__(self, fleet: Fleet, *, pack: bool, tries: int) -> None:
        self.fleet = fleet
        self.pack = pack
        #: How often something may still be put somewhere while rearranging.
        self.tries = tries
        self.memory_left = fleet.memory_left.copy()
        self.cpus_left = fleet.cpus_left.copy()
        self.ports = fleet.ports.copy()
        self._words: dict[str, Counter[int]] = {}
        self._groups: dict[str, Counter[int]] = {}
        self._place: dict[Item, int] = {}
        self._on: dict[int, list[Item]] = {}
        self._rankings: dict[Candidates, Ranking] = {}
        self._lacking: dict[Candidates, Counter[tuple[Constraint, str]]] = {}
        self._done: list[tuple[Item, int, bool]] = []

    # -- what is where

    def place_of(self, item: Item) -> int | None:
        """Return the host that the item goes to, if it has one."""
        return self._place.get(item)

    @property
    def planned(self) -> Mapping[int, Sequence[Item]]:
        """Items that this plan sends to each host."""
        return self._on

    def on(self, place: int) -> Sequence[Item]:
        """Return the items that this plan sends to a host."""
        return self._on.get(place, ())

    def put(self, item: Item, place: int) -> None:
        """Send the item to a host; it must fit."""
        self._done.append((item, place, True))
        self._place[item] = place
        self._on.setdefault(place, []).append(item)
        self._shift(item, place, 1)

    def take(self, item: Item) -> int:
        """Take the item away again; return where it was."""
        place = self._place.pop(item)
        self._done.append((item, place, False))
        self._on[place].remove(item)
        self._shift(item, place, -1)
        return place

    def checkpoint(self) -> int:
        """Return a point that :meth:`roll_back` can come back to."""
        return len(self._done)

    def roll_back(self, mark: int) -> None:
        """Undo everything since `mark`."""
        while len(self._done) > mark:
            item, place, was_put = self._done[-1]
            if was_put:
                self.take(item)
            else:
                self.put(item, place)
            del self._done[-2:]

    def _shift(self, item: Item, place: int, sign: int) -> None:
        self.memory_left[place] -= sign * item.memory_bytes
        self.cpus_left[place] -= sign * item.vcpus
        for request in item.requests:
            self.ports.shift(request.guest.listens, place, sign)
        for word in item.words:
            self.words(word)[place] += sign
        if item.group:
            self.group(item.group)[place] += sign * len(item.requests)
        for ranking in self._rankings.values():
            ranking.update(place)

    def words(self, word: str) -> Counter[int]:
        """Return how many guests of an anti-affinity word each host has or gets."""
        if word not in self._words:
            self._words[word] = Counter(self.fleet.words.get(word, {}))
        return self._words[word]

    def group(self, name: str) -> Counter[int]:
        """Return how many guests of a group each host has or gets."""
        if name not in self._groups:
            self._groups[name] = Counter(self.fleet.groups.get(name, {}))
        return self._groups[name]

    # -- what fits

    def fits(self, item: Item, place: int) -> bool:
        """Tell whether one of its candidates can take the item now."""
        return (
            self.memory_left[place] >= item.memory_bytes
            and self.cpus_left[place] >= item.vcpus
            and place not in item.banned
            and not (item.words and any(self.words(word)[place] for word in item.words))
            and self.ports_for(item, place) is None
        )

    def ports_for(self, item: Item, place: int, taken: PortsTaken | None = None) -> ListeningPort | None:
        """Return the first of the ports that it has to keep that is taken there.

        :param taken: as things were at another time; else as they are now.
        """
        for request in item.requests if item.listens else ():
            port = (taken or self.ports).first_conflict(self.fleet.kept_ports(request, place), place)
            if port is not None:
                return port
        return None

    def rank(self, place: int) -> float:
        """Return how much of a host is used: the greater share of memory and CPUs."""
        fleet = self.fleet
        memory = 1 - self.memory_left[place] / max(1, fleet.capacity_bytes[place])
        cpus = fleet.capacity_cpus[place]
        return max(memory, 1 - self.cpus_left[place] / cpus) if cpus not in (0, float("inf")) else memory

    def ranking(self, item: Item) -> Ranking:
        """Return the ranking of the item's candidates."""
        ranking = self._rankings.get(item.candidates)
        if ranking is None:
            ranking = self._rankings[item.candidates] = Ranking(item.candidates.places, self)
        return ranking

    def lacking(
        self, item: Item, why: Callable[[int], tuple[Constraint, str] | None]
    ) -> Counter[tuple[Constraint, str]]:
        """Count the open hosts that are none of its candidates, by `why`; the same for all items of its kind."""
        if item.candidates not in self._lacking:
            others = (place for place in self.fleet.open if place not in item.candidates.allowed)
            self._lacking[item.candidates] = Counter(filter(None, map(why, others)))
        return self._lacking[item.candidates]

    def choose(self, item: Item, closed: Container[int] = ()) -> int | None:
        """Return the best host that can take it now, none of `closed`: with its group, else by rank."""
        if item.group:
            there = self.group(item.group)
            for place, count in sorted(there.items(), key=lambda entry: (-entry[1], entry[0])):
                allowed = place in item.candidates.allowed and place not in closed
                if count > 0 and allowed and self.fits(item, place):
                    return place
        for place in self.ranking(item).best_first(item, self):
            if self.fits(item, place) and place not in closed:
                return place
        return None
