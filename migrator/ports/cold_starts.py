"""The interface to guests that are shut down at one host and started anew at another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

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


@runtime_checkable
class ColdArrival(Protocol):
    """A destination of such a move at which something is set once the guest has arrived."""

    async def settle(self) -> str:
        """Have the guest start with its host as it did before; return why that cannot be, empty where it is so."""


class ColdStarts(Protocol):
    """Ends of such moves.

    They are opened again by :meth:`migrator.ports.Site.open`, by their identities.
    """

    async def source(
        self,
        guest: Guest,
        source: SourceQemu,
        *,
        target: str,
        migration: str,
        policy: Policy,
        by_force: bool,
    ) -> ColdSourceEnd:
        """Return a source as one whose guest will be shut down; nothing is done to it yet.

        :param target: the host where it will be started anew.
        :param by_force: its QEMU is ended where the guest does not shut down in time.
        :raise PreflightRefused: it could not be started again if it had to be, or at the target.
        :raise HostError: its host cannot be asked.
        :raise QemuError: it cannot.
        """

    def incoming(self, incoming: IncomingDestination, source: ColdSourceEnd) -> IncomingDestination:
        """Return a QEMU that was started at the target, and so can be, as one that is started anew when the source has
        ended."""
