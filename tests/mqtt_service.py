"""The MQTT entrance in front of the real engine of a simulated site.

::

    site = a_site(tmp_path, guests=("web", "db"))
    async with serving(site, settings(broker)) as service, peer(broker) as scheduler:
        await scheduler.command("migrate", id="c1", guest="web")
        ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from migrator.api.commands import Command
from migrator.api.replies import Answer
from migrator.api.requests import Caller
from migrator.engine.commands.dispatcher import Dispatcher
from migrator.mqtt import Mqtt, MqttConfig
from migrator.replica.channel import MessageKind
from migrator.replica.publisher import Publisher
from migrator.replica.queries import ReplicaQueries
from migrator.replica.requests import SteeringRequests
from migrator.replica.state import ReplicaState
from migrator.testing.lab import until
from migrator.testing.simulated_service import MemorySamples, RunningEngine, SimulatedService
from migrator.testing.workload import MIB, idle

#: Links over which a guest arrives at once, and over which it does not while a test lasts.
FAST, SLOW = 1000 * MIB, 2 * MIB


def a_site(
    directory: Path,
    *,
    guests: Sequence[str] = ("web", "db"),
    hosts: Sequence[str] = ("a", "b"),
    link: float = FAST,
) -> SimulatedService:
    """Return a service with these hosts; the guests are on the first."""
    service = SimulatedService(directory)
    for name in hosts:
        service.site.add_host(name, link=link, start_seconds=0.0)
    full = replace(idle(), constant_bytes=112 * MIB)  # what is zero takes no time on the way
    for name in guests:
        service.site.add_guest(name, host=hosts[0], memory_bytes=128 * MIB, workload=full)
    return service


def set_link(service: SimulatedService, bytes_per_second: float) -> None:
    """Give every host's link that speed; an engine that is started later knows it."""
    for host in service.site.hosts.values():
        for link in (host.out, host.into):
            link.bytes_per_second = bytes_per_second


class MqttService:
    """One MQTT entrance with a dispatcher of its own; several may be in front of one engine.

    :ivar bus: the engine's; events that a test publishes there take the way of all others.
    :ivar begun: every command that was carried out, in that order.
    :ivar counted: every command, as whoever counts them is told: interface, verb and outcome.
    :ivar before: awaited before a command is carried out.
    """

    def __init__(self, engine: RunningEngine, configured: MqttConfig, **fields: Any) -> None:
        self.engine, self.bus = engine, engine.bus
        journal: Any = engine.dispatcher.log
        self._replica = ReplicaState()
        #: As the process that answers asks: a replica of what the engine knows, and the journal.
        self.queries: Any = ReplicaQueries(
            state=self._replica, journal=journal, samples=MemorySamples(), requests=SteeringRequests()
        )
        self._publisher = Publisher(source=engine.queries, events=engine.bus)
        self.begun: list[tuple[Command, Caller, str]] = []
        self.counted: list[tuple[str, str, str]] = []
        self.before: Callable[[Command], Awaitable[None]] | None = None
        self.dispatcher = Dispatcher(
            controller=self, log=journal, count=lambda *each: self.counted.append(each)
        )
        self.mqtt = Mqtt(
            config=configured,
            commands=self.dispatcher,
            queries=self.queries,
            journal=journal,
            # As kept in a state directory: one service after the other has it.
            **{"client_id": f"migrator-{configured.site}-{configured.instance}-{'0' * 32}", **fields},
        )

    async def carry_out(self, command: Command, caller: Caller, *, key: str) -> Answer:
        """Have the engine carry it out; see :class:`migrator.engine.commands.dispatcher.Controller`."""
        if self.before is not None:
            await self.before(command)
        answer = await self.engine.engine.handlers.carry_out(command, caller, key=key)
        self.begun.append((command, caller, key))
        return answer

    def send(self, kind: MessageKind, body: bytes = b"", number: int = 0) -> None:
        """Give the replica what the engine tells it; see :class:`migrator.replica.publisher.MessageSender`."""
        del number
        self._replica.receive(kind, body)

    async def heard(self) -> None:
        """Wait until the entrance has heard all that is journalled of what was published."""
        await until(lambda: self.queries.bus.last_event_id == self.bus.place, what="what is published")

    @property
    def connected(self) -> bool:
        """Whether the broker is there, as it says."""
        return self.mqtt.connected

    @asynccontextmanager
    async def running(self, *, connects: bool = True) -> AsyncIterator[MqttService]:
        """Serve until the end of the block; its end is bounded.

        :param connects: it is waited for until the broker is there.
        """
        publishing = asyncio.create_task(self._publisher.run(), name="publisher")
        self._publisher.attach(self)
        await self._replica.complete.wait()
        task = asyncio.create_task(self.mqtt.run(), name="service under test")
        try:
            while connects and not self.connected and not task.done():
                await asyncio.sleep(0.005)
            if task.done():
                task.result()
            yield self
        finally:
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=10)
            publishing.cancel()
            await asyncio.wait({publishing})
            assert done, "it did not end"
            if not task.cancelled() and task.exception():
                raise task.exception()  # type: ignore[misc]


@asynccontextmanager
async def serving(
    service: SimulatedService, configured: MqttConfig, **fields: Any
) -> AsyncIterator[MqttService]:
    """Run an engine with an MQTT entrance in front of it while the block lasts.

    :param fields: of :class:`migrator.mqtt.Mqtt`.
    """
    async with service.running() as engine, MqttService(engine, configured, **fields).running() as entrance:
        yield entrance
