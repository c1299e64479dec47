"""The pair of QEMUs that ``migrator direct`` is given, as the session of a migration uses hosts and records."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from migrator.cli.direct_network import DirectGuestNetworks
from migrator.cli.direct_site import UnattendedSite
from migrator.cli.direct_tls import DirectTls
from migrator.core.model import Finding, RunState
from migrator.core.policy import Policy
from migrator.core.preflight.stream_tls import TlsChoice
from migrator.engine.migration.services import EndLocation, MovedGuest
from migrator.errors import NobodyListens, QemuError, UsageError
from migrator.ports import Qemu, StreamPath, StreamTunnel
from migrator.qemu.endpoint import Endpoint

if TYPE_CHECKING:
    from migrator.core.process.guest_network import GuestTaps

#: Between two looks whether a destination listens.
_LISTENS_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class GivenGuest:
    """The guest that is to be moved; all that is known of it before it is asked is where its monitor is."""

    host: str
    socket: str
    uuid: str = ""
    pid: int | None = None
    run: RunState | None = None


@dataclass(frozen=True, kw_only=True)
class GivenDestination:
    """Implements :class:`migrator.ports.IncomingDestination` for a QEMU that a person has started."""

    qemu: Endpoint
    listen: str
    socket: str
    notes: tuple[Finding, ...] = ()
    new_images: tuple[str, ...] = ()

    async def discard(self, *, images: bool = False) -> None:
        """Do nothing: whether its process shall stay is for the person who started it to say."""


class GivenPair(UnattendedSite):
    """Implements :class:`migrator.engine.migration.services.MigrationSite` for two QEMUs named by their addresses.

    :param networks: reads what their networks hang on.
    :param tls: decides whether the stream is encrypted.
    :param listen: where the destination takes the stream: ``tcp:ADDR:0``.
    :param tell: is told in a line what a person should know.
    :param wait_seconds: for so long the destination is waited for where nobody listens there yet.
    """

    def __init__(
        self,
        source: Endpoint,
        destination: Endpoint,
        *,
        networks: DirectGuestNetworks,
        tls: DirectTls,
        listen: str,
        tell: Callable[[str], None],
        wait_seconds: float = 0.0,
    ) -> None:
        self._wait_seconds = wait_seconds
        self.source, self.destination = source, destination
        self._networks, self._tls, self._listen, self._tell = networks, tls, listen, tell

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> Qemu:
        """Connect to both, as both are there already, and return the one that is asked for.

        :raise QemuError: one of them cannot be reached.
        :raise UsageError: they are the same.
        """
        connecting = self.source.connect(), self._until_listens(self.destination)
        outcomes = await asyncio.gather(*connecting, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        if self.source.identity and self.source.identity == self.destination.identity:
            raise UsageError(f"{self.source.name} and {self.destination.name} are monitors of the same QEMU")
        return self.source if role == "source" else self.destination

    async def _until_listens(self, end: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait_seconds
        while True:
            try:
                await end.connect()
            except NobodyListens:
                if loop.time() >= until:
                    raise
                await asyncio.sleep(_LISTENS_SECONDS)
            else:
                return

    async def reopen(self, facts: Mapping[str, Any]) -> dict[str, EndLocation]:
        """Connect to the processes that a record speaks of, as far as they can be reached; return where they are.

        :raise QemuError: another process is in the place of one.
        """
        for end, side in ((self.source, "source"), (self.destination, "destination")):
            try:
                await end.connect()
            except QemuError as error:
                self._tell(str(error))
            await end.expect_remote_process(facts[side]["identity"])
        return {
            side: EndLocation(host=end.address_text, socket=end.address_text, identity=dict(end.identity))
            for side, end in (("source", self.source), ("destination", self.destination))
        }

    async def check(
        self, guest: GivenGuest, source: Qemu, target: str, policy: Policy
    ) -> tuple[Finding, ...]:
        """Return nothing: there are no hosts to compare, and the QEMUs are compared by whoever moves the guest."""
        return ()

    async def stream_tls(self, source: str, target: str, policy: Policy) -> TlsChoice:
        """See :meth:`migrator.ports.Site.stream_tls`."""
        return await self._tls.choose(policy)

    async def spare_cpus(self, source: str, target: str) -> float | None:
        """See :meth:`migrator.ports.Site.spare_cpus`: known where both QEMUs are on this machine."""
        if self.source.address.kind != "unix" or self.destination.address.kind != "unix":
            return None
        return (os.cpu_count() or 1) - os.getloadavg()[0]

    async def start_destination(
        self,
        guest: GivenGuest,
        source: Qemu,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> GivenDestination:
        """Return the destination: a person has started it."""
        return GivenDestination(
            qemu=self.destination, listen=self._listen, socket=self.destination.address_text
        )

    async def mend_clock(self, host: str, end: Any, *, stood_seconds: float) -> str:
        """Set the clock of a guest that stood still, where its destination's sockets are on this machine."""
        if self.destination.address.kind != "unix" or not self.destination.shares_clock:
            return ""

        async def here(path: str) -> str:
            return path

        return await self.destination.mend_clock(here, stood_seconds=stood_seconds)

    async def suppress_restart(self, guest: MovedGuest) -> None:
        """Give the destination the name of a guest that has no uuid: nobody else is to be told.

        :raise QemuError: one of both does not answer, or refuses it.
        """
        await self.source.pass_on_name(self.destination)

    async def guest_taps(self, host: str, pid: int, *, taps: Sequence[str] = ()) -> GuestTaps:
        """See :class:`migrator.ports.GuestNetworks`."""
        return await self._networks.guest_taps(host, pid, taps=taps)

    def stream_path(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamPath:
        """See :meth:`migrator.ports.Site.stream_path`."""
        return self._networks.path(source, target, pids=processes, listen=self._listen)

    def stream_tunnel(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamTunnel:
        """See :meth:`migrator.ports.Site.stream_tunnel`."""
        return self._networks.tunnel(source, target, pids=processes, listen=self._listen)

    async def close(self) -> None:
        """Let both go."""
        await asyncio.gather(self.source.close(), self.destination.close())
