"""Interfaces of the parts of a site that check a target and start QEMUs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from migrator.core.inventory import Guest
from migrator.core.model import Finding
from migrator.core.policy import Policy
from migrator.hosts.launch import Launcher
from migrator.ports import IncomingDestination, SourceQemu


class TargetChecks(Protocol):
    """Checks of a target by what its host tells; see :meth:`migrator.ports.Site.check`."""

    async def check(
        self, guest: Guest, source: SourceQemu, target: str, policy: Policy
    ) -> tuple[Finding, ...]:
        """Changes nothing, starts nothing."""


class DestinationStarter(Protocol):
    """Starts and clears away QEMUs; see the calls of the same names of :class:`migrator.ports.Site`."""

    async def start_destination(
        self,
        guest: Guest,
        source: SourceQemu,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> IncomingDestination:
        """Start the QEMU that the guest moves into."""

    def launcher_of(self, host: str) -> Launcher:
        """Return what keeps the directories of guests on a host, whichever guest it is."""

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        """Remove what an earlier start has left."""

    async def keep_images(self, host: str, *, migration: str) -> None:
        """Have images that were made for a guest stay whatever comes."""

    async def put_aside(self, guest: Guest, paths: Sequence[str], *, migration: str) -> Mapping[str, str]:
        """Give images of a guest that has left another name."""

    async def settle(self, guest: Guest) -> Sequence[str]:
        """Have the paths that the operator knows lead to a guest that has arrived."""

    async def clear(self, guest: Guest) -> None:
        """Remove what is left of a source that has ended."""

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> list[str]:
        """Remove what guests left that have ended."""
