"""The interface to a tunnel that carries a migration's stream where the QEMUs do not encrypt it themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from migrator.core.migration.tunnel_queue import TunnelCounters
from migrator.core.model import Finding
from migrator.ports.stream_path import StreamPath


class StreamTunnel(StreamPath, Protocol):
    """A tunnel from the source's host to the destination's; as a path it is where the destination listens."""

    @property
    def route(self) -> str:
        """Return which way it goes, for a person; empty before :meth:`check`."""

    async def check(self) -> Sequence[Finding]:
        """Return what speaks against it, or is to be known of it; changes nothing, and leaves nothing open.

        :raise HostError: a host cannot be asked.
        """

    async def can_be_shaped(self) -> bool:
        """Return whether :meth:`keep_short` will reach its sockets, as far as that can be told before; never raises."""

    async def lead(self, uri: str) -> str:
        """Return the address at the source's host that leads to this one at the destination's.

        It is good until nothing goes through it any more after :meth:`close`, or until the network is cut.

        :param uri: ``tcp:127.0.0.1:PORT``.
        :raise HostError: the tunnel cannot be made.
        """

    async def keep_short(self, unsent_bytes: int) -> TunnelCounters | None:
        """Have no more than so many bytes wait unsent in its sockets; return what they have counted.

        Never raises: ``None`` where they cannot be reached, and then as much waits as SSH allows.
        """

    def close(self) -> None:
        """Take no new connections; each tunnel ends by itself once none goes through it. May be called again."""
