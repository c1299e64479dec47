"""Guests of libvirt in the demo: a libvirtd of its own on each host, and guests beside those that are QEMUs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from migrator.errors import UsageError
from migrator.libvirt import binding
from migrator.testing.guest import Habit
from migrator.testing.libvirtd import LibvirtDaemon, why_not
from migrator.testing.site import LabSite

_MIB = 1 << 20
_MEMORY_BYTES = 128 * _MIB


@dataclass(frozen=True, kw_only=True)
class LibvirtGuest:
    """A guest of libvirt in the demo."""

    name: str
    what: str
    habit: Habit
    autostart: bool = False
    policy: str = "default"


GUESTS = (
    LibvirtGuest(
        name="shop",
        what="libvirt's; starts with its host",
        habit=Habit(region_bytes=32 * _MIB, bytes_per_second=4 * _MIB),
        autostart=True,
    ),
    LibvirtGuest(
        name="wiki",
        what="libvirt's; rewrites 64 MiB slowly",
        habit=Habit(region_bytes=64 * _MIB, bytes_per_second=8 * _MIB),
    ),
)
#: Their disks are files that all hosts see, on a file system that libvirt does not know to be shared.
CONFIG = "".join(
    f'[[guests]]\nmatch = "{guest.name}"\naccept = ["libvirt-unsafe-cache"]\n' for guest in GUESTS
)


def check_possible() -> None:
    """Check that guests of libvirt can be shown on this machine.

    :raise UsageError: they cannot; says what to install.
    """
    if (reason := why_not()) is None and binding.is_installed():
        return
    raise UsageError(f"the demo with libvirt cannot be shown here: {reason or binding.MISSING}")


class LibvirtFleet:
    """The libvirtd of each host, and their guests.

    :param names: of the hosts; the guests start on the first.
    """

    def __init__(self, site: LabSite, names: tuple[str, ...]) -> None:
        self._names = names
        self._images = site.directory / "libvirt"
        self._daemons = {name: LibvirtDaemon(site.host(name), self._images / name) for name in names}
        self._definitions: dict[str, str] = {}

    @property
    def host_lines(self) -> dict[str, str]:
        """Return lines of the configuration, by host."""
        return {
            name: f'libvirt = "qemu:///system?socket={daemon.socket}"\nlibvirt_peer_uri = "{daemon.uri}"\n'
            "cpu_overcommit = 16\n"  # more guests than this machine may have CPUs for
            for name, daemon in self._daemons.items()
        }

    async def start(self) -> str:
        """Start the daemons and the guests; return libvirt's version.

        :raise LibvirtUnavailable: they do not come up.
        """
        self._images.mkdir()
        await asyncio.gather(*(daemon.__aenter__() for daemon in self._daemons.values()))
        first = self._daemons[self._names[0]]
        for guest in GUESTS:
            image = self._images / f"{guest.name}.img"
            await first.start_guest(
                guest.name,
                image,
                habit=guest.habit,
                autostart=guest.autostart,
                memory_bytes=_MEMORY_BYTES,
            )
            self._definitions[guest.name] = await self._definition(first, guest.name)
        said = await first.virsh("version", "--daemon")
        return next((line.split()[-1] for line in said.splitlines() if "daemon" in line), "")

    async def _definition(self, daemon: LibvirtDaemon, name: str) -> str:
        return " ".join((await daemon.virsh("dumpxml", "--inactive", name)).split())

    async def inspect(self) -> dict[str, str]:
        """Return for each guest the host it is on, its state, and whether it is as it was."""
        found = {}
        for guest in GUESTS if self._daemons else ():
            shown = []
            for name, daemon in self._daemons.items():
                if not (state := await daemon.state(guest.name)):
                    continue
                if state == "running":
                    await daemon.wait_beating(guest.name)
                same = await self._definition(daemon, guest.name) == self._definitions[guest.name]
                how = "definition intact" if same else "another definition"
                shown.append(f"{name}: {state}, {how}")
            found[guest.name] = " and ".join(shown) or "nowhere"
        return found

    def close(self) -> None:
        """End the guests and the daemons."""
        for daemon in self._daemons.values():
            daemon.close()


@contextlib.contextmanager
def libvirt_fleet(site: LabSite, names: tuple[str, ...]) -> Iterator[LibvirtFleet]:
    """Give hosts of a site a libvirtd each, before its service is configured; nothing is started yet."""
    fleet = LibvirtFleet(site, names)
    try:
        yield fleet
    finally:
        fleet.close()
