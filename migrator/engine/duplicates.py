"""Uuids that run twice: seen by looks that cannot be of one moment, so that every suspicion is looked at again.

One process that two hosts show is no such thing: they are one machine, which the configuration has twice. Whoever was
told of an emergency there would stop the only one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from migrator.core.inventory import Guest
from migrator.core.model import RUNNING_STATES

#: Code of the obstacle that it is.
DUPLICATE = "duplicate"


class Duplicates:
    """Watch for uuids that run in more than one QEMU, whoever started them."""

    def __init__(self) -> None:
        #: When each was first seen at more than one host, on the clock of the looks, and by a look at which.
        self._suspected: dict[str, tuple[float, str]] = {}
        self._confirmed: dict[str, tuple[str, ...]] = {}
        #: The hosts of each of which several show one and the same process.
        self._shared: dict[str, tuple[str, ...]] = {}
        #: The guests that were taken in last, by their hosts; the hosts each uuid runs on, with its process there, and
        #: which have several.
        self._taken: dict[str, tuple[Guest, ...]] = {}
        self._places: dict[str, list[tuple[str, str]]] = {}
        self._several: set[str] = set()

    @property
    def found(self) -> Mapping[str, tuple[str, ...]]:
        """Return the hosts on which each duplicate uuid runs, a host as often as it runs there."""
        return self._confirmed

    @property
    def marks(self) -> tuple[Mapping[str, tuple[str, ...]], ...]:
        """Return whatever :meth:`marked` goes by; empty where it marks no guest."""
        return (self._confirmed, self._shared) if self._confirmed or self._shared else ()

    def judge(
        self,
        changed: Mapping[str, tuple[Guest, ...]],
        *,
        looked_at: str,
        began: Callable[[str], float],
        now: float,
    ) -> set[str]:
        """Take in what the last looks showed; return the hosts that have to be looked at again before more can be said.

        :param changed: the guests of each host where they are others than before; of a host that is gone none.
        :param looked_at: the host that was looked at last, until now.
        :param began: when the last look at a host began.
        """
        for host, guests in changed.items():
            self._take(host, guests)
        several = {uuid: sorted(host for host, _ in self._places[uuid]) for uuid in self._several}
        self._shared = {uuid: tuple(hosts) for uuid, hosts in several.items() if self._is_one_process(uuid)}
        twice = {uuid: hosts for uuid, hosts in several.items() if uuid not in self._shared}
        self._suspected = {uuid: self._suspected.get(uuid, (now, looked_at)) for uuid in twice}
        again: set[str] = set()
        confirmed = {}
        for uuid, hosts in twice.items():
            # A guest that moves between the looks at two hosts is seen at both.
            since, fresh = self._suspected[uuid]
            old = {host for host in hosts if host != fresh and began(host) < since}
            if uuid in self._confirmed or len(hosts) > len(set(hosts)) or not old:
                confirmed[uuid] = tuple(hosts)
            else:
                again |= old
        self._confirmed = confirmed
        return again

    def _take(self, host: str, guests: tuple[Guest, ...]) -> None:
        """Take in the guests of a host, as far as they are others than before."""
        before = self._taken.get(host, ())
        if before is guests:
            return
        was, now = set(map(id, before)), set(map(id, guests))
        for guest in before:
            if id(guest) not in now and _runs(guest):
                self._places[guest.uuid].remove((host, guest.process))
                self._count(guest.uuid)
        for guest in guests:
            if id(guest) not in was and _runs(guest):
                self._places.setdefault(guest.uuid, []).append((host, guest.process))
                self._count(guest.uuid)
        if guests:
            self._taken[host] = guests
        else:
            self._taken.pop(host, None)

    def _count(self, uuid: str) -> None:
        places = self._places[uuid]
        (self._several.add if len(places) > 1 else self._several.discard)(uuid)
        if not places:
            del self._places[uuid]

    def _is_one_process(self, uuid: str) -> bool:
        processes = {process for _, process in self._places[uuid]}
        return len(processes) == 1 and "" not in processes

    def marked(self, guest: Guest) -> Guest:
        """Return the guest; one that runs twice, or that two hosts show, has that as its obstacle."""
        if (hosts := self._shared.get(guest.uuid)) and not guest.obstacle:
            text = (
                f"its one process (pid {guest.pid}) is shown by hosts {' and '.join(hosts)}, which are one machine: "
                "leave one of them out of the configuration, or give each sockets of its own"
            )
            return replace(guest, obstacle=text, obstacle_code="not-movable")
        places = self._confirmed.get(guest.uuid)
        if not places:
            return guest
        others = list(places)
        if guest.host in others:
            others.remove(guest.host)
        text = (
            f"THE SAME UUID RUNS TWICE, here and on {', '.join(others)}: its disks are being destroyed; stop one at "
            "once, and whatever starts it again"
        )
        return replace(guest, obstacle=text, obstacle_code="duplicate")


def _runs(guest: Guest) -> bool:
    return bool(guest.uuid) and guest.run in RUNNING_STATES
