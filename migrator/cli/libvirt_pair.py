"""Two ends of ``migrator direct`` that are a guest of libvirt: at its daemon, and at the one that it moves to.

What drives a migration is not loaded here: the daemons are asked while it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from migrator.addresses import host_port
from migrator.cli.direct_network import is_loopback
from migrator.cli.direct_site import UnattendedSite
from migrator.cli.libvirt_address import LibvirtAddress
from migrator.cli.over_ssh import OverSsh
from migrator.core.inventory import Guest
from migrator.core.managed_guest import LIBVIRT, place_of
from migrator.core.model import Finding
from migrator.core.policy import CopiedDisks, Policy
from migrator.core.preflight.stream_tls import TlsChoice
from migrator.core.process.guest_network import GuestTaps
from migrator.errors import CommandFailed, Refused, Unreachable, UsageError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_config import HostConfig
from migrator.hosts.local import LocalAccess
from migrator.libvirt.domains import NamedDomain, find_guest
from migrator.libvirt.end import DomainEnd
from migrator.libvirt.opening import close_unused
from migrator.ports import Qemu, StreamPath, StreamTunnel, UnprobedPath
from migrator.site.host_directory import FactsReader
from migrator.site.libvirt_connections import LibvirtConnections
from migrator.site.managed_checks import ManagedChecks
from migrator.site.managed_ends import ArrivingGuest, ManagedEnds

if TYPE_CHECKING:
    from migrator.cli.direct_tls import DirectTls
    from migrator.engine.migration.services import EndLocation

_Result = TypeVar("_Result")

#: Seconds to find the guest.
_FIND_SECONDS = 10.0


class _PairHosts:
    """Implements :class:`migrator.site.host_directory.ManagedHosts` for the hosts of one pair."""

    def __init__(self, hosts: Mapping[str, tuple[HostAccess, HostConfig]]) -> None:
        self._hosts = hosts
        self.held: dict[tuple[str, str], str] = {}

    def access(self, host: str) -> HostAccess:
        """Return the way to one of them."""
        return self._hosts[host][0]

    def config(self, host: str) -> HostConfig:
        """Return what is known of one of them."""
        return self._hosts[host][1]

    @cached_property
    def facts(self) -> FactsReader:
        """Return what reads their facts."""
        from migrator.site.recent_facts import RecentFacts  # noqa: PLC0415 - only of guests on bridges

        return RecentFacts(self)


class LibvirtPair(UnattendedSite):
    """Implements :class:`migrator.cli.direct_drive.DirectPair` for a guest of one libvirt that moves to another.

    :param tls: decides whether the stream is encrypted.
    :param listen: where the destination takes the stream: ``tcp:ADDR:0``.
    """

    def __init__(
        self, here: LibvirtAddress, there: LibvirtAddress, over_ssh: OverSsh, *, tls: DirectTls, listen: str
    ) -> None:
        self._here, self._there, self._tls = here, there, tls
        self._source_name, self._target_name = here.site_name, there.site_name
        self._address = host_port(listen.partition(":")[2], least=0)[0]
        hosts: dict[str, tuple[HostAccess, HostConfig]] = {}
        for each in (here, there):
            ssh = over_ssh.config(each.socket_address) if each.host else None
            access = over_ssh.access(each.socket_address) if each.host else LocalAccess(each.site_name)
            addresses = (self._address,) if each is there else HostConfig(name="").addresses
            config = HostConfig(name=each.site_name, addresses=addresses, libvirt=each.daemon, ssh=ssh)
            hosts[each.site_name] = access, config
        self._connections = _PairHosts(hosts)
        self._daemons = LibvirtConnections(self._connections)
        self._ends = ManagedEnds(self._connections, self._daemons)
        self._checks = ManagedChecks(self._connections, self._daemons)
        self._source: DomainEnd | None = None
        self._destination: DomainEnd | None = None
        #: What is asked before anybody needs it: who the guest is, and what speaks against its move.
        self._finding: asyncio.Task[Guest] | None = None
        self._checking: tuple[Guest, Policy, asyncio.Task[tuple[Finding, ...]]] | None = None
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def source(self) -> DomainEnd:
        """Return the end that the guest leaves."""
        return _opened(self._source)

    @property
    def destination(self) -> DomainEnd:
        """Return the end at which it arrives."""
        return _opened(self._destination)

    def look_ahead(self, policy: Policy) -> None:
        """Begin to ask both daemons, and their hosts, what :meth:`find` and :meth:`check` will want to know.

        What fails is told by those.
        """
        if (target := self._daemons.connection(self._target_name)) is not None:
            self._begin(target.open(), "open the target")
        self._finding = self._begin(self._find_ahead(policy), "find the guest")

    async def _find_ahead(self, policy: Policy) -> Guest:
        guest = await self._find_by_name()
        self._checking = guest, policy, self._begin(self._ask(guest, policy), "check the target")
        return guest

    def _begin(self, work: Coroutine[Any, Any, _Result], name: str) -> asyncio.Task[_Result]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may want to know
        self._tasks.append(task)
        return task

    async def find(self, facts: Mapping[str, Any] | None) -> Guest:
        """Return the guest that the source's address names.

        :param facts: a record of an earlier run: the guest is the one that it speaks of, wherever that is now.
        :raise HostError: a libvirt cannot be asked.
        :raise Unreachable: the source has no such guest.
        :raise Refused: it does not run.
        """
        if facts is not None:
            return self._guest(str(facts["source"]["identity"]["domain"]), str(facts.get("guest", "")))
        return await (self._finding if self._finding is not None else self._find_by_name())

    async def _find_by_name(self) -> Guest:
        found = await self._look_up(self._source_name)
        if not found.active:
            raise Refused(f"{found.name} does not run: {self._source_name} has it shut off")
        return self._guest(found.uuid, found.name)

    def _guest(self, uuid: str, name: str) -> Guest:
        return Guest(
            key=uuid,
            host=str(self._here),
            uuid=uuid,
            name=name,
            socket=place_of(uuid),
            managed_by=LIBVIRT,
        )

    async def arrived(self) -> bool:
        """Return whether the target has the guest now.

        :raise HostError: it cannot be asked.
        """
        with suppress(Unreachable):
            return (await self._look_up(self._target_name)).active
        return False

    async def _look_up(self, host: str) -> NamedDomain:
        connection, wanted = self._daemons.connection(host), self._here.guest
        if connection is None:
            raise RuntimeError("each has a libvirt")
        try:
            return await connection.call(
                lambda found: find_guest(found, wanted), what="find the guest", timeout=_FIND_SECONDS
            )
        except CommandFailed as error:
            if error.error_class != "VIR_ERR_NO_DOMAIN":
                raise
            raise Unreachable(host, f"it has no guest {wanted}") from None

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> Qemu:
        """Open an end.

        :raise QemuError: the guest is not there.
        :raise HostError: its libvirt cannot be asked.
        """
        end = await self._ends.open(self._source_name, socket, role="source")
        end.address_text = str(self._here)
        self._source = end
        return end

    async def reopen(self, facts: Mapping[str, Any]) -> dict[str, EndLocation]:
        """Open both ends that a record speaks of, whether they can be asked or not; return where they are."""
        from migrator.engine.migration.services import EndLocation  # noqa: PLC0415 - see above

        place = place_of(str(facts["source"]["identity"]["domain"]))
        self._source = await self._ends.open(self._source_name, place, role="source", known=True)
        self._destination = await self._ends.open(self._target_name, place, role="destination", known=True)
        locations = {}
        for side, end, address in (
            ("source", self._source, self._here),
            ("destination", self._destination, self._there),
        ):
            end.address_text = str(address)
            locations[side] = EndLocation(host=str(address), socket=place, identity=dict(end.identity))
        return locations

    async def check(self, guest: Guest, source: Qemu, target: str, policy: Policy) -> tuple[Finding, ...]:
        """Return what both libvirts, and both hosts, say against it.

        :raise HostError: one of them cannot be asked.
        :raise QemuError: libvirt refused to describe the guest.
        """
        ahead, self._checking = self._checking, None  # what is asked again is to be as it is then
        if ahead is not None and ahead[:2] == (guest, policy):
            return await ahead[2]
        return await self._ask(guest, policy)

    async def _ask(self, guest: Guest, policy: Policy) -> tuple[Finding, ...]:
        if policy.disks is CopiedDisks.AUTO:  # nobody makes images here for what would be copied
            policy = policy.but(disks=CopiedDisks.NONE)
        return await self._checks.check(replace(guest, host=self._source_name), self._target_name, policy)

    async def start_destination(
        self,
        guest: Guest,
        source: Qemu,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> ArrivingGuest:
        """Return the place of the guest at the target: its libvirt starts what is to be there.

        :raise HostError: it cannot be asked.
        """
        arriving = await self._ends.start_destination(guest, self._target_name)
        self._destination = arriving.qemu
        self._destination.address_text = str(self._there)
        return arriving

    async def stream_tls(self, source: str, target: str, policy: Policy) -> TlsChoice:
        """See :meth:`migrator.ports.Site.stream_tls`."""
        return await self._tls.choose(policy)

    async def spare_cpus(self, source: str, target: str) -> float | None:
        """Return nothing: memory of libvirt's guests is not compressed."""
        return None

    async def mend_clock(self, host: str, end: Any, *, stood_seconds: float) -> str:
        """Do nothing: no agent of such a guest is ours to speak with."""
        return ""

    async def guest_taps(self, host: str, pid: int, *, taps: Sequence[str] = ()) -> GuestTaps:
        """Return nothing: what a guest's network hangs on is libvirt's."""
        return GuestTaps()

    def stream_path(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamPath:
        """See :meth:`migrator.ports.Site.stream_path`."""
        if is_loopback(self._address) or not (self._here.host or self._there.host):
            return UnprobedPath(addresses=(self._address,))
        from migrator.hosts.path_probe import PathProbe  # noqa: PLC0415 - not within one machine

        access = self._connections.access
        return PathProbe(
            here=access(self._source_name), there=access(self._target_name), addresses=(self._address,)
        )

    def stream_tunnel(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamTunnel:
        """Refuse: libvirt has its stream go from QEMU to QEMU.

        :raise UsageError: always.
        """
        raise UsageError("--stream ssh: a guest of libvirt does not go through a tunnel; see --tls")

    async def close(self) -> None:
        """Let both go."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (self._source, self._destination):
            if end is not None:
                await end.close()
        self._source = self._destination = None
        await self._daemons.close()
        close_unused()


def _opened(end: DomainEnd | None) -> DomainEnd:
    if end is None:
        raise RuntimeError("it is not open")
    return end
