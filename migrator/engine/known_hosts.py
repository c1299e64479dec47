"""The known hosts, and which guests are on which, by the last looks and what was heard since."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from migrator.core.inventory import Guest, Host


@dataclass
class KnownHost:
    """One host; its guests are changed by :class:`KnownHosts`."""

    host: Host
    #: The guests as the last look showed them, by their keys, before anything was added to them.
    shown: Mapping[str, Guest] = field(default_factory=dict)
    looked_at: datetime | None = None
    #: On the loop's clock: when the last look ended, and how long it took.
    ended: float = -math.inf
    took: float = 0.0
    #: When the last look that showed its guests began.
    began: float = -math.inf
    #: By their keys; the same guest may run there twice.
    by_key: dict[str, tuple[Guest, ...]] = field(default_factory=dict)
    _tuple: tuple[Guest, ...] | None = ()

    @property
    def guests(self) -> tuple[Guest, ...]:
        """Return its guests: the same object as before, where nothing of them is different."""
        if self._tuple is None:
            self._tuple = tuple(guest for guests in self.by_key.values() for guest in guests)
        return self._tuple

    def set_guests(self, guests: tuple[Guest, ...]) -> None:
        """Have these guests there, and no others."""
        self.by_key, self._tuple = {}, guests
        for guest in guests:
            self.by_key[guest.key] = (*self.by_key.get(guest.key, ()), guest)

    def set_guest(self, key: str, guests: tuple[Guest, ...]) -> None:
        """Have these there in the place of all of that key."""
        self._tuple = None
        if guests:
            self.by_key[key] = guests
        else:
            self.by_key.pop(key, None)


class KnownHosts:
    """All hosts by their names, in the order of the configuration, and where each guest is."""

    def __init__(self, hosts: Iterable[Host] = ()) -> None:
        self._hosts = {host.name: KnownHost(host) for host in hosts}
        #: By the guests' keys, the names of the hosts that each is on.
        self._places: dict[str, set[str]] = {}
        #: By uuids and names of guests, the keys of those that have them, with how many do.
        self._called: dict[str, Counter[str]] = {}
        #: Hosts whose guests have changed since :meth:`take_changed` was called.
        self._changed = set(self._hosts)

    def __getitem__(self, name: str) -> KnownHost:
        return self._hosts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._hosts

    def __iter__(self) -> Iterator[str]:
        return iter(self._hosts)

    def get(self, name: str) -> KnownHost | None:
        """Return one, or ``None``."""
        return self._hosts.get(name)

    def items(self) -> list[tuple[str, KnownHost]]:
        """Return all with their names; others may come and go meanwhile."""
        return list(self._hosts.items())

    def values(self) -> list[KnownHost]:
        """Return all; others may come and go meanwhile."""
        return list(self._hosts.values())

    def holding(self, key: str) -> list[KnownHost]:
        """Return the hosts that this guest is on."""
        return [self._hosts[name] for name in self._places.get(key, ())]

    def take_changed(self) -> dict[str, tuple[Guest, ...]]:
        """Return the guests of each host where they have changed since the last call; of one that is gone none."""
        changed, self._changed = self._changed, set()
        return {name: known.guests if (known := self.get(name)) else () for name in changed}

    def called(self, *words: str) -> list[Guest]:
        """Return every guest of such a key, uuid or name."""
        keys = {key for word in words for key in (word, *self._called.get(word, ()))}
        return [guest for key in keys for known in self.holding(key) for guest in known.by_key[key]]

    def configure(self, hosts: Mapping[str, KnownHost]) -> None:
        """Have these hosts in the place of all that there were."""
        self._changed |= self._hosts.keys() | hosts.keys()
        self._hosts = dict(hosts)
        self._places, self._called = {}, {}
        for name, known in self._hosts.items():
            for key in known.by_key:
                self._places.setdefault(key, set()).add(name)
            for guest in known.guests:
                self._call(guest, 1)

    def put(self, name: str, key: str, *guests: Guest) -> None:
        """Have these on that host in the place of all of that key; none: it is not there any more."""
        before = self._hosts[name].by_key.get(key, ())
        if not guests and not before:
            return
        self._rename(before, guests)
        self._changed.add(name)
        self._hosts[name].set_guest(key, guests)
        if guests:
            self._places.setdefault(key, set()).add(name)
        else:
            self._left(name, key)

    def replace(self, known: KnownHost, guests: tuple[Guest, ...]) -> None:
        """Have these guests on that host, and no others; it may not be among these hosts any more."""
        name, before, were = known.host.name, known.by_key.keys(), known.guests
        known.set_guests(guests)
        if self._hosts.get(name) is not known:
            return
        self._rename(were, guests)
        self._changed.add(name)
        for key in before - known.by_key.keys():
            self._left(name, key)
        for key in known.by_key.keys() - before:
            self._places.setdefault(key, set()).add(name)

    def _rename(self, before: Iterable[Guest], now: Iterable[Guest]) -> None:
        were, are = ({id(guest): guest for guest in guests} for guests in (before, now))
        for place, guest in are.items():
            if place not in were:
                self._call(guest, 1)
        for place, guest in were.items():
            if place not in are:
                self._call(guest, -1)

    def _call(self, guest: Guest, change: int) -> None:
        for word in {guest.uuid, guest.name} - {""}:
            keys = self._called.setdefault(word, Counter())
            keys[guest.key] += change
            if not keys[guest.key]:
                del keys[guest.key]
            if not keys:
                del self._called[word]

    def _left(self, name: str, key: str) -> None:
        places = self._places[key]
        places.discard(name)
        if not places:
            del self._places[key]
