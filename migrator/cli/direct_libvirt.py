"""``migrator direct`` with a guest of libvirt: its libvirt and the target's carry the move out, and this decides."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from migrator.addresses import host_port
from migrator.cli import Exit
from migrator.cli.direct_command import Request
from migrator.cli.direct_drive import PairCommand, drive
from migrator.cli.direct_left import left_by_another
from migrator.cli.direct_moved import refuse_moved_there
from migrator.cli.direct_network import is_loopback, listen_uri
from migrator.cli.direct_paths import direct_path
from migrator.cli.direct_policy import policy_of
from migrator.cli.direct_site import UnattendedSite
from migrator.cli.direct_tls import DirectTls
from migrator.cli.libvirt_address import LibvirtAddress, parse
from migrator.cli.over_ssh import OverSsh
from migrator.cli.recording import Recorder
from migrator.cli.show import Screen
from migrator.core.findings import accept
from migrator.core.inventory import Guest
from migrator.core.managed_guest import LIBVIRT, place_of
from migrator.core.model import Finding
from migrator.core.policy import CopiedDisks, Policy
from migrator.core.preflight.stream_tls import TlsChoice
from migrator.core.process.guest_network import GuestTaps
from migrator.engine.migration.services import EndLocation
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

#: Seconds to find the guest.
_FIND_SECONDS = 10.0
#: Seconds until the hosts are at work on what a check asks.
_ASKED_SECONDS = 0.015
#: Options about monitors, of which a guest of libvirt has none that is ours.
_OF_MONITORS = ("wait", "destination_pid", "fence_command", "tls_ca", "tls_cert", "tls_key", "take_over")


async def direct(request: Request, screen: Screen, recorder: Recorder, *, json_output: bool) -> Exit:
    """Move one guest of libvirt, as the options say.

    :raise MigratorError: nothing was changed.
    """
    here, there = _both(request)
    policy = policy_of(request)
    accept((), request.accept)  # before anybody is asked
    listen = listen_uri(request.listen, there.socket_address)
    if host_port(listen.partition(":")[2], least=0)[1]:
        raise UsageError("--listen: libvirt chooses the port of its streams: write tcp:ADDR:0")
    left = await left_by_another(str(here), str(there), screen, _never_gone)
    over_ssh = OverSsh()
    pair = LibvirtPair(
        here,
        there,
        over_ssh,
        tls=DirectTls(
            over_ssh,
            here.socket_address,
            there.socket_address,
            directory=request.tls_dir,
            name=request.tls_name,
            listen=listen,
        ),
        listen=listen,
    )
    try:
        guest = await pair.find(left.facts if left is not None else None)
        command = PairCommand(
            source=str(here),
            destination=str(there),
            guest=guest,
            policy=policy,
            accepted=request.accept,
            shared_path=lambda: direct_path(here.socket_address, listen),
            left=left,
            name=left.record.path.stem if left is not None else os.urandom(6).hex(),
        )
        return await drive(pair, command, screen, recorder, json_output=json_output)
    except Unreachable:
        if left is None:
            await refuse_moved_there(str(here), str(there), pair.arrived)
        raise
    finally:
        await pair.close()
        await over_ssh.close()


def _both(request: Request) -> tuple[LibvirtAddress, LibvirtAddress]:
    for flag, given in (("--source", request.source), ("--destination", request.destination)):
        if given is None:
            raise UsageError(f"{flag} is missing")
        if not given.startswith("qemu"):
            raise UsageError(
                f"{flag}: {given!r} is no libvirt, and a guest of libvirt moves to another one: write "
                "qemu:///system or qemu+ssh://HOST/system"
            )
    if request.rescue or request.guest_at is not None or request.run_state is not None:
        raise UsageError(
            "--rescue is for guests at QMP addresses: what a move of libvirt's left is ended with virsh, and then "
            "by this command again"
        )
    for name in _OF_MONITORS:
        if getattr(request, name) not in (None, False):
            raise UsageError(
                f"--{name.replace('_', '-')} is for QMP addresses, and a guest of libvirt has none"
            )
    here, there = parse(request.source or ""), parse(request.destination or "")
    if not here.guest:
        raise UsageError(f"--source: {here} names no guest: add ?guest=NAME")
    if there.guest not in ("", here.guest):
        raise UsageError(f"--destination: a guest keeps its name: leave guest={there.guest} out")
    there = replace(there, guest=here.guest)
    if here == there:
        raise UsageError(f"--source and --destination are the same: {here.site_name}")
    return here, there


async def _load_driver() -> None:
    """Load what will drive the migration, while hosts and daemons find their answers."""
    await asyncio.sleep(_ASKED_SECONDS)
    import migrator.engine.migration.managed_driver  # noqa: F401, PLC0415 - for who needs it next


async def _never_gone(where: str, identity: Mapping[str, Any]) -> bool:
    """Return False: a guest of libvirt outlives its process."""
    return False


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
        self._ahead: asyncio.Future[Any] | None = None

    @property
    def source(self) -> DomainEnd:
        """Return the end that the guest leaves."""
        return _opened(self._source)

    @property
    def destination(self) -> DomainEnd:
        """Return the end at which it arrives."""
        return _opened(self._destination)

    async def find(self, facts: Mapping[str, Any] | None) -> Guest:
        """Return the guest that the source's address names.

        :param facts: a record of an earlier run: the guest is the one that it speaks of, wherever that is now.
        :raise HostError: a libvirt cannot be asked.
        :raise Unreachable: the source has no such guest.
        :raise Refused: it does not run.
        """
        self._ahead = self._ask_ahead()
        if facts is not None:
            uuid, name = str(facts["source"]["identity"]["domain"]), str(facts.get("guest", ""))
        else:
            found = await self._look_up(self._source_name)
            if not found.active:
                raise Refused(f"{found.name} does not run: {self._source_name} has it shut off")
            uuid, name = found.uuid, found.name
        return Guest(
            key=uuid,
            host=str(self._here),
            uuid=uuid,
            name=name,
            socket=place_of(uuid),
            managed_by=LIBVIRT,
        )

    def _ask_ahead(self) -> asyncio.Future[Any]:
        """Begin to open the target, which the check will ask; what fails is told there."""
        target = self._daemons.connection(self._target_name)
        return asyncio.gather(*([target.open()] if target is not None else []), return_exceptions=True)

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
        if policy.disks is CopiedDisks.AUTO:  # nobody makes images here for what would be copied
            policy = policy.but(disks=CopiedDisks.NONE)
        found, _ = await asyncio.gather(
            self._checks.check(replace(guest, host=self._source_name), self._target_name, policy),
            _load_driver(),
        )
        return found

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
        if self._ahead is not None:
            self._ahead.cancel()
            with suppress(asyncio.CancelledError):
                await self._ahead
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
