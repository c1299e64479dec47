"""Taps that the two QEMUs of ``migrator direct`` have open, and the interfaces that they hang on."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from migrator.addresses import bracketed, host_port, reachable
from migrator.cli.over_ssh import OverSsh
from migrator.core.process.guest_network import GuestTaps
from migrator.errors import UsageError
from migrator.ports import PathHealth, StreamPath, StreamTunnel, UnprobedPath
from migrator.qemu.address import Address

if TYPE_CHECKING:
    from migrator.hosts.access import (
        HostAccess,
    )  # what `migrator direct` does not load where it needs no host


class DirectGuestNetworks:
    """Implements :class:`migrator.ports.GuestNetworks` for ends that are named by their addresses.

    It knows the network between them, too: :meth:`path`.
    """

    def __init__(self, over_ssh: OverSsh, *addresses: Address) -> None:
        self._over_ssh = over_ssh
        self._addresses = {str(address): address for address in addresses}
        #: Where processes were, once they have ended.
        self._accessed: dict[tuple[str, int], HostAccess] = {}

    async def guest_taps(self, host: str, pid: int, *, taps: Sequence[str] = ()) -> GuestTaps:
        """Read the taps of a process: over SSH for another machine; no command is run for one here that has no tap.

        :param taps: see :class:`migrator.ports.GuestNetworks`.
        :raise HostError: the host cannot be asked.
        """
        address = self._addresses[host]
        if address.kind != "ssh" and not taps and not (opened := _opened(pid)):
            return GuestTaps(taps=None if opened is None else ())
        from migrator.hosts.guest_network import read_guest_taps  # noqa: PLC0415 - few guests of this command have a tap

        if (access := self._access(host, pid) or self._accessed.get((host, pid))) is None:
            return GuestTaps()
        self._accessed[host, pid] = access
        return (await read_guest_taps(access, [pid], learned_on=taps))[pid]

    def path(
        self, source: str, target: str, *, pids: tuple[int | None, int | None], listen: str
    ) -> StreamPath:
        """Return the network from one of the QEMUs to the other.

        :param listen: where the destination takes the stream: ``tcp:ADDR:0``.
        """
        host = host_port(listen.partition(":")[2], least=0)[0]
        return _DirectPath(self, (source, target), pids, host)

    def tunnel(
        self, source: str, target: str, *, pids: tuple[int | None, int | None], listen: str
    ) -> StreamTunnel:
        """Return a tunnel from the host of one of the QEMUs to that of the other.

        :param listen: where others reach the destination's host: ``tcp:ADDR:0``.
        """
        from migrator.hosts.local import LocalAccess  # noqa: PLC0415 - few migrations have a tunnel
        from migrator.hosts.stream_tunnel import SshTunnel, TunnelEnd  # noqa: PLC0415 - likewise

        def end(name: str, pid: int | None) -> TunnelEnd:
            address = self._addresses[name]
            if address.kind == "ssh":
                access = self._over_ssh.access(address)
                return TunnelEnd(
                    access=access, server=address.host, user=address.user, ssh=self._over_ssh.config(address)
                )
            there = self._access(name, pid) or LocalAccess("this machine")
            return TunnelEnd(access=there, server=host_port(listen.partition(":")[2], least=0)[0])

        return SshTunnel(end(source, pids[0]), end(target, pids[1]))

    async def probe(
        self, ends: tuple[str, str], pids: tuple[int | None, int | None], address: str
    ) -> PathHealth:
        """Probe the network from one of the QEMUs to that address of the other."""
        from migrator.hosts.path_probe import PathProbe  # noqa: PLC0415 - only a postcopy takes one

        here, there = (self._access(end, pid) for end, pid in zip(ends, pids, strict=True))
        if here is None or there is None or is_loopback(address):
            return await UnprobedPath(addresses=(address,)).probe(address)
        return await PathProbe(here=here, there=there, addresses=(address,)).probe(address)

    def _access(self, host: str, pid: int | None) -> HostAccess | None:
        """Return the host of a QEMU, with the network that it is in; ``None`` where that is not known."""
        from migrator.hosts.local import LocalAccess  # noqa: PLC0415 - few migrations of this command need one

        address = self._addresses[host]
        if address.kind == "ssh":
            return self._over_ssh.access(address)
        elsewhere = _in_another_network(pid) if pid is not None else None
        if elsewhere is None:
            return None
        return LocalAccess(host, ("nsenter", f"--net=/proc/{pid}/ns/net", "--") if elsewhere else ())


class _DirectPath:
    """Implements :class:`migrator.ports.StreamPath` between two QEMUs that are named by their addresses."""

    def __init__(
        self,
        networks: DirectGuestNetworks,
        ends: tuple[str, str],
        pids: tuple[int | None, int | None],
        address: str,
    ) -> None:
        self._networks, self._ends, self._pids = networks, ends, pids
        self.addresses = (address,)

    async def probe(self, address: str, /) -> PathHealth:
        """See :meth:`migrator.ports.StreamPath.probe`."""
        return await self._networks.probe(self._ends, self._pids, address)


def listen_uri(text: str | None, destination: Address) -> str:
    """Return where the destination takes the stream, as ``--listen`` says or by default.

    :raise UsageError: that is no such address.
    """
    if text is None:
        host = destination.host if destination.kind != "unix" else "127.0.0.1"
        return f"tcp:{bracketed(host)}:0"
    kind, _, rest = text.partition(":")
    if kind != "tcp":
        raise UsageError(
            f"--listen: {text!r} is not an address: write tcp:ADDR:PORT, with port 0 for any free one"
        )
    try:
        host, port = host_port(rest, least=0)
        reachable(host)
    except UsageError as error:
        raise UsageError(
            f"--listen: {text!r} is not an address: {error}; port 0 stands for any free one"
        ) from None
    return f"tcp:{bracketed(host)}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether an address or a name is of this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _opened(pid: int) -> list[str] | None:
    """Return the taps that a process of this machine has open; ``None`` where that cannot be read."""
    taps = []
    try:
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            text = path.read_text(encoding="utf-8", errors="replace")
            taps += [line.split()[1] for line in text.splitlines() if line.startswith("iff:")]
    except OSError:
        return None  # no right to, or it has ended
    return taps


def _in_another_network(pid: int) -> bool | None:
    """Tell whether its network namespace is not ours; ``None`` where that cannot be read."""
    own, its = Path("/proc/self/ns/net"), Path(f"/proc/{pid}/ns/net")
    try:
        return own.readlink() != its.readlink()
    except OSError:
        return None
