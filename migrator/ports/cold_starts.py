"""The interface to guests that are shut down at one host and started anew at another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from migrator.ports.qemu import SourceQemu
from migrator.ports.site import IncomingDestination

if TYPE_CHECKING:
    from migrator.core.inventory import Guest
    from migrator.core.policy import Policy


class ColdSourceEnd(SourceQemu, Protocol):
    """The source of such a move: shows the shutdown of its guest as a migration that copies until the guest is off."""

    @property
    def end(self) -> SourceQemu:
        """The QEMU itself."""


class ColdStarts(Protocol):
    """Ends of such moves.

    They are opened again by :meth:`migrator.ports.Site.open`, by their identities.
    """

    async def source(
        self, guest: Guest, source: SourceQemu, *, migration: str, policy: Policy, by_force: bool
    ) -> ColdSourceEnd:
        """Return a source as one whose guest will be shut down; nothing is done to it yet.

        :param by_force: its QEMU is ended where the guest does not shut down in time.
        :raise PreflightRefused: it could not be started again if it had to be.
        :raise HostError: its host cannot be asked.
        :raise QemuError: it cannot.
        """

    def incoming(self, incoming: IncomingDestination, source: ColdSourceEnd) -> IncomingDestination:
        """Return a QEMU that was started at the target, and so can be, as one that is started anew when the source has
        ended."""
