"""The QMP side of a fake QEMU: sockets, sessions, the protocol; what commands do is not decided here."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

Message = dict[str, Any]


class CommandRefused(Exception):
    """A command is answered with an error.

    :param kind: QMP's error class.
    """

    def __init__(self, description: str, kind: str = "GenericError") -> None:
        super().__init__(description)
        self.answer: Message = {"class": kind, "desc": description}


class NeverAnswered(Exception):
    """The main loop blocks on the command; it is never answered."""


class MonitorFaults:
    """Faults of the monitors of one QEMU; set to make them misbehave."""

    def __init__(self) -> None:
        #: The process is stopped: nobody is greeted, nothing is answered.
        self.frozen = False
        #: The main loop is blocked: only out-of-band commands are answered.
        self.stalled = False
        #: Every answer comes so many seconds late.
        self.late_seconds = 0.0
        #: Commands whose answer breaks off in the middle, and the session with it.
        self.cut: set[str] = set()
        #: What is sent instead of the answer to a command; given the command and its id; ``None``: the answer itself.
        self.distort: Callable[[str, Any], bytes | None] = lambda command, identity: None


class FakeMonitor:
    """One monitor (``-qmp``): serves one client at a time, and lets the others wait without a word.

    :param execute: carries out a command; returns its answer or raises :class:`CommandRefused`.
    :param oob_commands: those that may be executed out of band.
    """

    def __init__(
        self,
        greeting: Message,
        manners: MonitorFaults,
        execute: Callable[[str, Message], Any],
        oob_commands: frozenset[str],
    ) -> None:
        self.greeting = greeting
        self.manners = manners
        self.execute = execute
        self.oob_commands = oob_commands
        self._server: asyncio.Server | None = None
        self._clients: deque[_Session] = deque()

    async def listen_unix(self, path: Path) -> None:
        """Serve a Unix socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Session(self), path)

    async def listen_tcp(self, host: str, port: int) -> int:
        """Serve a TCP port, 0 for any; return the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Session(self), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    def emit(self, event: Message) -> None:
        """Send an event to the client that is served."""
        if self._clients:
            self._clients[0].emit(event)

    def wake(self) -> None:
        """Serve what had to wait, as far as the faults allow it."""
        if self._clients:
            self._clients[0].serve()

    def close(self) -> None:
        """Hang up on everyone, as a process that ends does: what was answered still arrives."""
        if self._server is not None:
            self._server.close()
        clients, self._clients = self._clients, deque()
        for client in clients:
            client.hang_up()

    def arrived(self, session: _Session) -> None:
        """Note another client."""
        self._clients.append(session)
        self.wake()

    def left(self, session: _Session) -> None:
        """Note that a client has gone; the next one is served."""
        if session in self._clients:
            self._clients.remove(session)
            self.wake()


class _Session(asyncio.Protocol):
    """One client, from its connection to its end."""

    _transport: asyncio.Transport

    def __init__(self, port: FakeMonitor) -> None:
        self._port = port
        self._text = ""
        self._waiting: deque[Message] = deque()
        self._decoder = json.JSONDecoder()
        self._greeted = self._negotiated = self._oob = False

    # called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._port.arrived(self)

    def data_received(self, data: bytes) -> None:
        self._text += data.decode(errors="replace")
        if self._greeted:
            self.serve()

    def connection_lost(self, error: Exception | None) -> None:
        del error  # whatever it was, the client has gone
        self._port.left(self)

    # called by the port

    def serve(self) -> None:
        """Greet, and answer what there is to answer."""
        if self._port.manners.frozen:
            return
        if not self._greeted:
            self._greeted = True
            self._send(self._port.greeting)
        self._read()
        while self._waiting and not (self._port.manners.stalled or self._transport.is_closing()):
            self._answer(self._waiting.popleft())

    def emit(self, event: Message) -> None:
        """Send an event to a client that has negotiated."""
        if self._negotiated and not self._port.manners.frozen:
            self._send(event)

    def hang_up(self) -> None:
        """Close the connection from this side."""
        self._transport.close()

    # the protocol

    def _read(self) -> None:
        """Read commands. A client need not send line ends: a command ends where its JSON does."""
        while text := self._text.lstrip():
            try:
                message, end = self._decoder.raw_decode(text)
            except json.JSONDecodeError:
                if not text.startswith("{"):
                    self._text = ""
                    self._send({"error": CommandRefused("JSON parse error, invalid keyword").answer})
                return
            self._text = text[end:]
            if not isinstance(message, dict):
                self._send({"error": CommandRefused("QMP input must be a JSON object").answer})
            elif "exec-oob" in message and self._oob:
                self._answer(message)
            else:
                self._waiting.append(message)
        self._text = ""

    def _answer(self, message: Message) -> None:
        identity = {"id": message["id"]} if "id" in message else {}
        try:
            answer: Message = {"return": self._perform(message)}
        except CommandRefused as error:
            answer = {"error": error.answer}
        except NeverAnswered:
            self._port.manners.stalled = True
            return
        command = str(message.get("execute", message.get("exec-oob")))
        if (instead := self._port.manners.distort(command, message.get("id"))) is not None:
            self._write(instead, cut=False)
            return
        cut = message.get("execute") in self._port.manners.cut
        self._send(answer | identity, cut=cut)

    def _perform(self, message: Message) -> Any:
        extra = set(message) - {"execute", "exec-oob", "arguments", "id"}
        if extra or ("exec-oob" in message and not self._oob):
            raise CommandRefused(f"QMP input member '{next(iter(extra), 'exec-oob')}' is unexpected")
        oob = "exec-oob" in message
        name: Any = message.get("exec-oob", message.get("execute"))
        if not isinstance(name, str):
            raise CommandRefused("QMP input lacks member 'execute'")
        arguments = message.get("arguments", {})
        if name == "qmp_capabilities":
            return self._negotiate(arguments)
        if not self._negotiated:
            text = "Expecting capabilities negotiation with 'qmp_capabilities'"
            raise CommandRefused(text, "CommandNotFound")
        if oob and name not in self._port.oob_commands:
            raise CommandRefused(f"The command {name} does not support OOB")
        return self._port.execute(name, arguments)

    def _negotiate(self, arguments: Message) -> Message:
        if self._negotiated:
            text = "Capabilities negotiation is already complete, command ignored"
            raise CommandRefused(text, "CommandNotFound")
        self._negotiated = True
        self._oob = "oob" in arguments.get("enable", ())
        return {}

    def _send(self, message: Message, *, cut: bool = False) -> None:
        data = json.dumps(message).encode() + b"\r\n"
        late = self._port.manners.late_seconds
        if late > 0 and "event" not in message and "QMP" not in message:
            asyncio.get_running_loop().call_later(late, self._write, data, cut)
        else:
            self._write(data, cut)

    def _write(self, data: bytes, cut: bool) -> None:
        if self._transport.is_closing():
            return
        if cut:
            self._transport.write(data[: len(data) // 2])
            self._transport.close()
        else:
            self._transport.write(data)


def event(name: str, data: Message) -> Message:
    """Return an event with its time stamp."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    stamp = {"seconds": seconds, "microseconds": rest // 1000}
    return {"timestamp": stamp, "event": name, **({"data": data} if data else {})}
