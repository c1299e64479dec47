"""A shared site as one of several controllers sees it: over a network.

What all of them share is a :class:`~migrator.testing.shared_site.SharedSite`; each process of a controller has a
:class:`SiteView` of it, and an :class:`~migrator.testing.endpoint_view.EndpointView` of each QEMU that it opens. Former
controllers' connections are ended by the real :class:`~migrator.site.monitor_clients.MonitorClients`.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from migrator.core.image_removal import ImageRemoval
from migrator.core.inventory import Guest
from migrator.core.migration.drivers import Driver
from migrator.core.model import Finding
from migrator.core.policy import Policy
from migrator.core.preflight.stream_tls import TlsChoice
from migrator.core.process.guest_network import GuestTaps
from migrator.errors import HostError, Unreachable
from migrator.ports import (
    HostLook,
    StreamPath,
    StreamTunnel,
)
from migrator.site.monitor_clients import MonitorClients
from migrator.testing.endpoint_view import EndpointView
from migrator.testing.shared_site import SharedSite
from migrator.testing.simulated_guard import SimulatedGuard
from migrator.testing.wire import Lost, Wire

T = TypeVar("T")

_HOST_SECONDS = 10.0


class _WaitingView:
    """Implements :class:`migrator.ports.IncomingDestination`."""

    def __init__(self, view: EndpointView, site: SiteView) -> None:
        self.qemu, self.listen, self.socket = view, "sim", view.socket
        self.notes: tuple[Finding, ...] = ()
        self.new_images: tuple[str, ...] = ()
        self._site = site

    async def discard(self, *, images: bool = False) -> None:  # noqa: ARG002 - no guest here has any
        async def work() -> None:
            qemu = self.qemu.qemu
            if not qemu.dead and qemu.waits:
                qemu.die()

        await self._site.host_call(self.qemu.host, work)


class SiteView:
    """See :class:`migrator.ports.Site`: the site of one process of a controller.

    :param client: names the process, as hosts know it.
    :param clients: sees to it that no former controller holds a monitor.
    :param runs: whether the process runs now, for the guards at the hosts; without it there are none.
    :ivar driver: who marks the QEMUs that are changed; see :meth:`act_as`.
    """

    def __init__(
        self,
        shared: SharedSite,
        wire: Wire,
        *,
        client: str,
        name: str,
        live: Callable[[], Mapping[str, int]],
        live_now: Callable[[], Awaitable[Mapping[str, int]]],
        last_tokens: Callable[[], Mapping[str, int]],
        read: Callable[[str], Awaitable[Mapping[str, str]]],
        keep: Callable[[str, str], Awaitable[None]],
        runs: Callable[[], bool] | None = None,
    ) -> None:
        self.shared, self.wire, self.client = shared, wire, client
        self.driver = Driver(token=client, controller="", who=client)
        self.lease_holds: Callable[[], bool] = lambda: True
        self._runs = runs
        self._guards: dict[str, SimulatedGuard] = {}
        self._clients = MonitorClients(
            name=name,
            read=read,
            keep=keep,
            live=live,
            live_now=live_now,
            last_tokens=last_tokens,
            disconnect=self._disconnect,
        )

    def guard_process(self, host: str) -> SimulatedGuard | None:
        """See :attr:`migrator.site.connections.HostConnections`: each host has one guard."""
        if self._runs is None:
            return None
        if host not in self._guards:
            self._guards[host] = SimulatedGuard(
                self.shared, self.wire, host=host, client=self.client, runs=self._runs
            )
        return self._guards[host]

    def act_as(self, driver: Driver, lease_holds: Callable[[], bool]) -> None:
        """See :meth:`migrator.site.hosts.SiteHosts.act_as`."""
        self.driver, self.lease_holds = driver, lease_holds

    def driven_by(self, driver: Driver, lease_holds: Callable[[], bool]) -> SiteView:
        """See :meth:`migrator.site.from_settings.ConfiguredSite.driven_by`."""
        same = copy.copy(self)
        same.act_as(driver, lease_holds)
        return same

    def mark_with(self, number: int) -> None:
        """See :meth:`migrator.site.hosts.SiteHosts.mark_with`."""
        self.driver = replace(self.driver, lease=number)

    def note_driven_elsewhere(
        self, migration: str, *, source: tuple[str, str], target: str, destination: str = ""
    ) -> None:
        """A look here opens no monitor."""

    def forget_driven_elsewhere(self, migration: str) -> None:
        """See :meth:`note_driven_elsewhere`."""

    async def _disconnect(self, access: Any, patterns: Sequence[str], client: Mapping[str, Any]) -> int:  # noqa: ARG002 - all sockets
        async def work() -> int:
            return self.shared.disconnect(access.name, str(client["client"]))

        return await self.host_call(access.name, work)

    async def settle_clients(self, host: str) -> None:
        """See :meth:`migrator.site.connections.HostConnections.settle_clients`."""
        await self._clients.prepare(_Access(host, self.client), ())

    async def disconnect_again(self, host: str) -> bool:
        """See :meth:`migrator.site.monitor_clients.MonitorClients.disconnect_again`."""
        try:
            return bool(await self._clients.disconnect_again(_Access(host, self.client), ()))
        except HostError:
            return False

    async def host_call(self, host: str, work: Callable[[], Awaitable[T]]) -> T:
        """Have something done at a host.

        :raise HostError: it does not answer.
        """
        try:
            return await self.wire.call(host, work, seconds=_HOST_SECONDS)
        except Lost as error:
            raise HostError(host, "it does not answer") from error

    async def watch(self, host: str, changed: Callable[[], None]) -> None:  # noqa: ARG002 - nothing is noticed
        await asyncio.Event().wait()

    async def look(self, host: str) -> HostLook:
        return await self.host_call(host, lambda: self.shared.look(host))

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> EndpointView:
        try:
            qemu = await self.host_call(
                host, lambda: self.shared.open(host, socket, role=role, identity=identity)
            )
        except HostError:
            if not absent:
                raise
            qemu = await self.shared.open(host, socket, role=role, identity=identity, absent=True)
        view = EndpointView(self, qemu)
        try:
            await view.connect()
        except Unreachable:
            if not identity:
                raise
        return view

    async def check(self, guest: Guest, source: Any, target: str, policy: Policy) -> tuple[Finding, ...]:
        return await self.host_call(target, lambda: self.shared.check(guest, source, target, policy))

    async def start_destination(
        self,
        guest: Guest,
        source: Any,
        target: str,
        *,
        migration: str,
        accepted: Sequence[str] = (),
        keep_backing: bool = False,
    ) -> _WaitingView:
        waiting = await self.host_call(
            target,
            lambda: self.shared.start_destination(
                guest,
                source,
                target,
                migration=migration,
                accepted=accepted,
                keep_backing=keep_backing,
            ),
        )
        view = EndpointView(self, waiting.qemu)
        await view.connect()
        return _WaitingView(view, self)

    async def guest_taps(self, host: str, pid: int, *, taps: Sequence[str] = ()) -> GuestTaps:
        return await self.host_call(host, lambda: self.shared.guest_taps(host, pid, taps=taps))

    async def abandon(self, host: str, *, migration: str, images: bool = False) -> None:
        await self.host_call(host, lambda: self.shared.abandon(host, migration=migration, images=images))

    async def keep_images(self, host: str, *, migration: str) -> None:
        await self.host_call(host, lambda: self.shared.keep_images(host, migration=migration))

    async def put_aside(self, guest: Guest, paths: Sequence[str], *, migration: str) -> Mapping[str, str]:
        return await self.host_call(
            guest.host, lambda: self.shared.put_aside(guest, paths, migration=migration)
        )

    async def compare_images(self, removal: ImageRemoval) -> ImageRemoval:
        return await self.host_call(removal.host, lambda: self.shared.compare_images(removal))

    async def remove_images(self, removal: ImageRemoval) -> Mapping[str, str]:
        return await self.host_call(removal.host, lambda: self.shared.remove_images(removal))

    async def mend_clock(self, host: str, end: Any, *, stood_seconds: float) -> str:
        return await self.host_call(
            host, lambda: self.shared.mend_clock(host, end, stood_seconds=stood_seconds)
        )

    async def suppress_restart(self, guest: Guest) -> None:
        await self.host_call(guest.host, lambda: self.shared.suppress_restart(guest))

    async def allow_restart(self, guest: Guest) -> None:
        await self.host_call(guest.host, lambda: self.shared.allow_restart(guest))

    async def settle(self, guest: Guest) -> Sequence[str]:
        return await self.host_call(guest.host, lambda: self.shared.settle(guest))

    async def clear(self, guest: Guest) -> None:
        await self.host_call(guest.host, lambda: self.shared.clear(guest))

    async def sweep(self, host: str, *, under_way: Callable[[str], bool]) -> Sequence[str]:
        return await self.host_call(host, lambda: self.shared.sweep(host, under_way=under_way))

    async def stream_tls(self, source: str, target: str, policy: Policy) -> TlsChoice:
        return await self.shared.stream_tls(source, target, policy)

    async def spare_cpus(self, source: str, target: str) -> float | None:
        return await self.shared.spare_cpus(source, target)

    def stream_path(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamPath:
        return self.shared.stream_path(source, target, processes=processes)

    def stream_tunnel(
        self, source: str, target: str, *, processes: tuple[int | None, int | None]
    ) -> StreamTunnel:
        return self.shared.stream_tunnel(source, target, processes=processes)

    async def close(self) -> None:
        return


class _Access:
    def __init__(self, name: str, client: str) -> None:
        self.name, self._client = name, client

    async def client_identity(self) -> Mapping[str, Any]:
        return {"client": self._client}
