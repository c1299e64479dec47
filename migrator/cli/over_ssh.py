"""The ``ssh:`` addresses of ``migrator direct``. Whoever has none does not wait for what this imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from migrator.errors import HostError
from migrator.machine import describes, is_gone
from migrator.qemu import address
from migrator.qemu.address import Address
from migrator.qemu.transport import MonitorTransport

if TYPE_CHECKING:
    from migrator.hosts.ssh import SshAccess
    from migrator.hosts.ssh_config import SshConfig


class OverSsh:
    """SSH connections of one command, one to each host."""

    def __init__(self) -> None:
        self._hosts: dict[tuple[str, str], SshAccess] = {}

    def access(self, address: Address) -> SshAccess:
        """Return the access to the host of an ``ssh:`` address."""
        from migrator.hosts.ssh import SshAccess  # noqa: PLC0415 - see above

        key = address.user, address.host
        if key not in self._hosts:
            self._hosts[key] = SshAccess(address.host, self.config(address))
        return self._hosts[key]

    def config(self, address: Address) -> SshConfig:
        """Return how the host of an ``ssh:`` address is reached."""
        from migrator.hosts.ssh_config import SshConfig  # noqa: PLC0415 - see above

        # Nobody else steers these guests: a connection that is lost is found out sooner than the service's.
        return SshConfig(
            host=address.host, user=address.user, max_sessions=6, connect_seconds=10.0, keepalive_seconds=2.0
        )

    def transport(self, address: Address) -> MonitorTransport | None:
        """Return the transport to the monitor at `address`; ``None`` where that is not over SSH."""
        if address.kind != "ssh":
            return None
        from migrator.hosts.sockets import RemoteMonitorTransport  # noqa: PLC0415 - see above

        return RemoteMonitorTransport(self.access(address), address.path)

    async def is_gone(self, address: Address, identity: Mapping[str, Any]) -> bool:
        """Tell whether the process that was once behind `address` is certainly gone."""
        if address.kind != "ssh":
            return is_gone(identity)
        if not identity:
            return False
        try:
            process = await self.access(address).process(int(identity["pid"]))
        except HostError:
            return False
        if process is None:
            return True
        process.close()
        return not describes(identity, process.identity)

    async def has_gone_from(self, text: str, identity: Mapping[str, Any]) -> bool:
        """Tell the same of an address as a person types it."""
        return await self.is_gone(address.parse(text), identity)

    async def close(self) -> None:
        """Close the connection to every host."""
        for access in self._hosts.values():
            await access.close()
