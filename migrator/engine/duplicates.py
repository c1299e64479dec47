"""Uuids that run twice: seen by looks that cannot be of one moment, so that every suspicion is looked at again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from migrator.core.inventory import Guest
from migrator.core.model import RUNNING_STATES

#: Code of the obstacle that it is.
DUPLICATE = "duplicate"


class Duplicates:
    """Which uuids run in more than one QEMU, whoever started them."""

    def __init__(self) -> None:
        #: When each was first seen at more than one host, on the clock of the looks, and by a look at which.
        self._suspected: dict[str, tuple[float, str]] = {}
        self._confirmed: dict[str, tuple[str, ...]] = {}

    @property
    def found(self) -> Mapping[str, tuple[str, ...]]:
        """Hosts on which each duplicate uuid runs, a host as often as it runs there."""
        return self._confirmed

    def judge(
        self, guests: Iterable[Guest], *, looked_at: str, began: Callable[[str], float], now: float
    ) -> set[str]:
        """Take in what the last looks showed; the hosts that have to be looked at again before more can be said.

        :param looked_at: the host that was looked at last, until now.
        :param began: when the last look at a host began.
        """
        places: dict[str, list[str]] = defaultdict(list)
        for guest in guests:
            if guest.uuid and guest.run in RUNNING_STATES:
                places[guest.uuid].append(guest.host)
        twice = {uuid: sorted(hosts) for uuid, hosts in places.items() if len(hosts) > 1}
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

    def marked(self, guest: Guest) -> Guest:
        """The guest; one that runs twice with that in its way."""
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
