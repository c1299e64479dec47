"""What is known of each host, and which guests are on which: as the last looks and what was heard since have it."""

from __future__ import annotations

import math
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
        """Its guests: the same object as before, where nothing of them is different."""
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

    def configure(self, hosts: Mapping[str, KnownHost]) -> None:
        """Have these hosts in the place of all that there were."""
        self._hosts = dict(hosts)
        self._places = {}
        for name, known in self._hosts.items():
            for key in known.by_key:
                self._places.setdefault(key, set()).add(name)

    def put(self, name: str, key: str, *guests: Guest) -> None:
        """Have these on that host in the place of all of that key; none: it is not there any more."""
        if not guests and key not in self._hosts[name].by_key:
            return
        self._hosts[name].set_guest(key, guests)
        if guests:
            self._places.setdefault(key, set()).add(name)
        else:
            self._left(name, key)

    def replace(self, known: KnownHost, guests: tuple[Guest, ...]) -> None:
        """Have these guests on that host, and no others; it may not be among these hosts any more."""
        name, before = known.host.name, known.by_key.keys()
        known.set_guests(guests)
        if self._hosts.get(name) is not known:
            return
        for key in before - known.by_key.keys():
            self._left(name, key)
        for key in known.by_key.keys() - before:
            self._places.setdefault(key, set()).add(name)

    def _left(self, name: str, key: str) -> None:
        places = self._places[key]
        places.discard(name)
        if not places:
            del self._places[key]
