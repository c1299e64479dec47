"""A simulated site that several controllers share: monitors that serve one client at a time, and marks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from migrator.errors import CommandFailed, Occupied
from migrator.testing.simulated_host import SimulatedGuest
from migrator.testing.simulated_qemu import SimulatedQemu
from migrator.testing.simulated_site import SimulatedSite


@dataclass
class Connection:
    """A client's connection to a monitor."""

    host: str
    client: str
    open: bool = True
    #: Called when it was ended from outside.
    on_break: Callable[[], None] = lambda: None
    #: What goes over it arrives in order.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class SharedSite(SimulatedSite):
    """The site itself.

    :ivar on_command: called with an ``EndpointView``, the command and the present mark of the QEMU when a command that
        changes something is carried out.
    """

    def __init__(self) -> None:
        super().__init__()
        #: By the socket: a QEMU has one client, and objects by their ids.
        self.clients: dict[str, Connection] = {}
        self.marks: dict[str, dict[str, str]] = {}
        self.on_command: Callable[[Any, str, str | None], None] = lambda view, command, mark: None
        self._sources: dict[str, SimulatedQemu] = {}
        self._started: dict[str, SimulatedQemu] = {}

    async def start_destination(self, *args: Any, **how: Any) -> Any:
        waiting = await super().start_destination(*args, **how)
        self._started[waiting.socket] = waiting.qemu
        return waiting

    def _source_of(self, machine: SimulatedGuest, host: str, socket: str, *, known: bool) -> SimulatedQemu:
        """Return one QEMU to all who open it; it shows what became of its last migration until the next begins."""
        found = super()._source_of(machine, host, socket, known=known)
        there = self._sources.get(socket)
        if found.stream is None and there is not None and not there.dead:
            return there
        self._sources[socket] = found
        return found

    async def open(
        self,
        host: str,
        socket: str,
        *,
        role: str,
        identity: Mapping[str, Any] | None = None,
        absent: bool = False,
    ) -> SimulatedQemu:
        """See :meth:`migrator.ports.Site.open`; an end that is known is found after it was cleared away, or arrived."""
        if identity:
            for end in (self._started.get(socket), self._sources.get(socket)):
                if end is not None and (end.dead or role == "destination"):
                    return end
        return await super().open(host, socket, role=role, identity=identity, absent=absent)

    def source_at(self, socket: str) -> SimulatedQemu | None:
        """Return the QEMU at a socket that a guest leaves, or may; ``None`` where nobody opened it."""
        return self._sources.get(socket)

    def exists(self, machine: SimulatedGuest) -> bool:
        """Tell whether a process that lives has the whole of a guest."""
        socket = machine.socket
        stream = self.streams.get(socket)
        if stream is None:
            source, arrived = self._sources.get(socket), self._started.get(socket)
            return (source is None or not source.dead) and (arrived is None or not arrived.dead)
        whole = stream.simulator.ready or stream.simulator.at_destination
        return any(not end.dead and (whole or not end.is_destination) for end in stream.listeners)

    def disconnect(self, host: str, client: str) -> int:
        """End the connections that a process holds at a host; how many there were."""
        ended = [each for each in self.clients.values() if (each.host, each.client) == (host, client)]
        for each in ended:
            each.open = False
        self.clients = {socket: each for socket, each in self.clients.items() if each.open}
        for each in ended:
            each.on_break()
        return len(ended)

    def connect(self, host: str, socket: str, client: str) -> Connection:
        """Take the monitor.

        :raise Occupied: another client has it.
        """
        there = self.clients.get(socket)
        if there is not None and there.open:
            raise Occupied(f"{host}:{socket}", "another client holds it")
        connection = self.clients[socket] = Connection(host, client)
        return connection

    def object_command(self, socket: str, command: str, arguments: Mapping[str, Any]) -> Any:
        """Carry out a command about the objects of a QEMU, marks among them."""
        objects = self.marks.setdefault(socket, {})
        name = str(arguments.get("id") or str(arguments["path"]).rpartition("/")[2])
        if (command == "object-add") is (name in objects):
            raise CommandFailed(socket, command, "GenericError", f"no, as for {name}")
        match command:
            case "object-add":
                objects[name] = arguments["identity"]
            case "object-del":
                del objects[name]
            case "qom-set":
                objects[name] = arguments["value"]
            case "qom-get":
                return objects[name]
        return {}
