"""The guard of a shared site's host: the real rules of :mod:`migrator.qemu.guard` over simulated QEMUs.

It takes its controller to be gone when that is dead, frozen, or cut off from the host for as long as a real one waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from migrator.core.model import MigrationStatus, RunState
from migrator.errors import CommandFailed, Occupied
from migrator.hosts.guard import SILENCE_SECONDS
from migrator.qemu.guard import Guarded, GuardMonitor, RefusedByQemu
from migrator.qemu.marks import PREFIX
from migrator.testing.shared_site import SharedSite
from migrator.testing.wire import Wire, elsewhere

_LOOK_SECONDS = 0.05
_CLIENT = "guard"


class SimulatedGuard:
    """Implements :class:`migrator.qemu.source_guard.GuardProcess` for one process of a controller at one host.

    :param client: names the process, as its monitors know it.
    :param runs: whether the process runs now.
    """

    def __init__(
        self, shared: SharedSite, wire: Wire, *, host: str, client: str, runs: Callable[[], bool]
    ) -> None:
        self._shared, self._wire, self._host, self._client, self._runs = shared, wire, host, client, runs
        #: What the controller wants guarded, and what its guard was told of.
        self._wanted: dict[str, Mapping[str, Any]] = {}
        self._guarded: dict[str, Guarded] = {}
        self._left: set[str] = set()
        self._watch: asyncio.Task[None] | None = None

    def guard(self, name: str, request: Mapping[str, Any]) -> None:
        """See :meth:`migrator.hosts.guard.HostGuard.guard`."""
        self._wanted[name] = request
        self._left.discard(name)
        if self._heard:
            self._guarded[name] = self._told(request)
        if self._watch is None or self._watch.done():
            self._watch = elsewhere(self._look_after_all(), f"guard at {self._host} of {self._client}")

    def near(self, name: str, near: bool) -> None:
        """See :meth:`migrator.hosts.guard.HostGuard.near`; this one notices a silence always as late."""

    def release_soon(self, name: str) -> None:
        """See :meth:`migrator.hosts.guard.HostGuard.release_soon`."""
        self._wanted.pop(name, None)
        if self._heard:
            self._guarded.pop(name, None)

    async def release(self, name: str) -> bool:
        """See :meth:`migrator.hosts.guard.HostGuard.release`."""
        await asyncio.sleep(0.002)
        if self._heard:
            self._wanted.pop(name, None)
            self._guarded.pop(name, None)
        return self._heard

    async def leave(self, name: str) -> bool:
        """See :meth:`migrator.hosts.guard.HostGuard.leave`."""
        await asyncio.sleep(0.002)
        if not self._heard or name not in self._wanted:
            return False
        self._left.add(name)
        return True

    @property
    def _heard(self) -> bool:
        return self._runs() and self._host not in self._wire.cut

    def _told(self, request: Mapping[str, Any]) -> Guarded:
        def open_monitor(path: str, *, greeting_seconds: float) -> Any:  # noqa: ARG001 - at once, or not at all
            return _Monitor(self._shared, self._host, path)

        return Guarded(dict(request), monitor=open_monitor)

    async def _look_after_all(self) -> None:
        now = asyncio.get_running_loop().time
        heard_at = now()
        while self._wanted or self._guarded:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._heard:
                heard_at = now()
                for name in [each for each in self._wanted if each not in self._guarded]:
                    self._guarded[name] = self._told(self._wanted[name])  # a guard that is begun anew
                self._act(self._left)
            elif now() - heard_at > SILENCE_SECONDS:
                self._shared.disconnect(self._host, self._client)
                self._act(set(self._guarded))
                if not self._runs() and not self._guarded:
                    return

    def _act(self, names: set[str]) -> None:
        for name in sorted(names & self._guarded.keys()):
            try:
                needed = self._guarded[name].act()
            except RefusedByQemu:
                continue
            except OSError:
                needed = False
            if not needed:
                self._left.discard(name)
                del self._guarded[name]
                self._wanted.pop(name, None)


class _Monitor(GuardMonitor):
    """A session with a simulated QEMU, for one look: nothing else happens meanwhile.

    :raise OSError: the process has ended, or another client has it.
    """

    def __init__(self, shared: SharedSite, host: str, socket: str) -> None:
        qemu = shared.source_at(socket)
        if qemu is None or qemu.dead:
            raise ConnectionRefusedError(socket)
        try:
            self._connection = shared.connect(host, socket, _CLIENT)
        except Occupied as error:
            raise BlockingIOError(str(error)) from error
        self._shared, self._at, self._qemu = shared, socket, qemu

    def execute(self, command: str, **arguments: Any) -> Any:
        """See :meth:`migrator.qemu.guard.GuardMonitor.execute`."""
        stream = self._qemu.stream
        if stream is not None:
            stream.advance()
        run, status, sample = self._qemu.shown()
        match command:
            case "query-migrate":
                sent = {"ram": {"transferred": sample.transferred_bytes}} if sample is not None else {}
                return {"status": "" if status is MigrationStatus.NONE else str(status), **sent}
            case "query-status":
                return {"status": "paused" if run is RunState.PAUSED else str(run)}
            case "migrate_cancel" if stream is not None:
                self._cancel(stream)
            case "migrate-set-parameters" if stream is not None:
                changed = replace(
                    stream.simulator.parameters,
                    max_bandwidth_bytes_per_second=float(arguments["max-bandwidth"]),
                    downtime_limit_seconds=arguments["downtime-limit"] / 1000,
                )
                stream.simulator.parameters = changed
            case "cont" if stream is not None:
                stream.simulator.cont()
            case _:
                try:
                    return self._shared.object_command(self._at, command, arguments)
                except CommandFailed as error:
                    raise RefusedByQemu(str(error)) from error
        return {}

    def _cancel(self, stream: Any) -> None:
        """Cancel it, which ends the destination as soon as it has lost the stream."""
        stream.simulator.cancel()
        stream.advance()
        simulator = stream.simulator
        for end in stream.listeners:
            if end.is_destination and not (simulator.ready or simulator.at_destination):
                end.die()

    def yank(self) -> None:
        """See :meth:`migrator.qemu.guard.GuardMonitor.yank`."""
        if self._qemu.stream is not None:
            self._cancel(self._qemu.stream)

    def mark(self, name: str) -> str:
        """See :meth:`migrator.qemu.guard.GuardMonitor.mark`."""
        return self._shared.marks.get(self._at, {}).get(f"{PREFIX}{name}", "")

    def close(self) -> None:
        """See :meth:`migrator.qemu.guard.GuardMonitor.close`."""
        self._connection.open = False
        if self._shared.clients.get(self._at) is self._connection:
            del self._shared.clients[self._at]
