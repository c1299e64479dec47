"""The way of one migration's stream, and of its disks: from QEMU to QEMU, or through a tunnel."""

from __future__ import annotations

from collections.abc import Callable

from migrator.errors import HostError, Refused
from migrator.ports import StreamTunnel


class StreamRouting:
    """Leads addresses at the destination's host to the source's.

    :param tunnel: ``None``: the source reaches them by itself.
    :param tell: is told an action and its reason.
    """

    def __init__(self, tunnel: StreamTunnel | None, *, tell: Callable[[str, str], None]) -> None:
        self._tunnel, self._tell = tunnel, tell
        self._told = ""

    @property
    def tunnelled(self) -> bool:
        """Return whether there is a tunnel."""
        return self._tunnel is not None

    async def lead(self, uri: str) -> str:
        """Return the address that the source is given for this one at the destination's host.

        :raise Refused: there is a tunnel, and it cannot be made; nothing was sent.
        """
        if self._tunnel is None:
            return uri
        try:
            led = await self._tunnel.lead(uri)
        except HostError as error:
            raise Refused(str(error)) from error
        if self._tunnel.route != self._told:
            self._told = self._tunnel.route
            self._tell("tunnel", f"what goes between the hosts goes through {self._told}")
        return led

    async def lead_anew(self, uri: str) -> str:
        """Do the same for a stream that broke: what led to it before takes no new connections.

        :raise Refused: see :meth:`lead`.
        """
        if self._tunnel is not None:
            self._tunnel.close()
        return await self.lead(uri)
