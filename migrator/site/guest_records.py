"""Records of the guests in QEMUs that were seen on a host; those that look alike get different keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from migrator.core.inventory import Guest
from migrator.core.migration import unfinished
from migrator.core.migration.drivers import Driver
from migrator.core.model import RunState
from migrator.hosts.sockets import FoundSocket
from migrator.machine import is_gone_as_seen_here
from migrator.qemu.identify import GuestIdentity

#: Run states of an end of a migration in which the guest is not, or not yet.
ELSEWHERE = frozenset({RunState.INMIGRATE, RunState.FINISH_MIGRATE, RunState.POSTMIGRATE})


def guest_record(host: str, found: FoundSocket, identity: GuestIdentity, *, first: str = "") -> Guest:
    """The guest behind a socket, or in a process without one.

    :param first: what it is called if this is the process that it was started in, and it has no uuid.
    """
    name = "" if identity.uuid else identity.carried or first
    place = f"{host}/{identity.name}" if identity.name else _place(host, found.path, found.pid)
    return Guest(
        key=identity.uuid or name or place,
        host=host,
        uuid=identity.uuid,
        identity=name,
        name=identity.name,
        socket=found.path,
        pid=found.pid,
        memory_bytes=identity.memory_bytes,
        vcpus=identity.vcpus,
        run=identity.run,
    )


def standing(guest: Guest, identity: GuestIdentity, mine: Driver | None, *, ours: bool = False) -> Guest:
    """Return the guest with its obstacle where it stands in a migration.

    :param mine: this controller, as it marks what it drives.
    :param ours: this controller drives it, whoever the mark still names; without, the mark says whether it does.
    """
    other = identity.driver
    ours = ours or (mine is not None and other is not None and mine.controller == other.controller)
    gone = is_gone_as_seen_here(other.process) if other is not None else None
    found = unfinished.unfinished_migration(identity.run, identity.status, other, ours=ours, gone=gone)
    if found is None:
        return guest
    driven, text = found
    return replace(
        guest, obstacle_code="driven-elsewhere" if driven else "unfinished-migration", obstacle=text
    )


def _place(host: str, socket: str, pid: int | None) -> str:
    return f"{host}:{socket or f'pid-{pid}'}"


def with_distinct_keys(guests: list[Guest]) -> Iterable[Guest]:
    """No key twice on a host: by their sockets where names are equal; equal uuids are for a person to mend."""
    # The two ends of a migration within a host have one uuid: the guest is the end that it has not left.
    count = Counter(guest.key for guest in guests if guest.run not in ELSEWHERE)
    left = Counter(guest.key for guest in guests if guest.run in ELSEWHERE - {RunState.INMIGRATE})
    for guest in guests:
        waits = guest.run is RunState.INMIGRATE and left[guest.key]
        comes = guest.run is RunState.INMIGRATE and guest.obstacle  # until then it is where it comes from
        if comes or count[guest.key] > 1 or (guest.run in ELSEWHERE and (count[guest.key] or waits)):
            other = replace(guest, key=_place(guest.host, guest.socket, guest.pid))
            if guest.uuid and guest.run not in ELSEWHERE and not guest.obstacle:
                text = f"another QEMU on host {guest.host} has the same uuid {guest.uuid}: give one of them another"
                other = replace(other, obstacle=text, obstacle_code="not-movable")
            yield other
        else:
            yield guest
