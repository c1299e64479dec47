"""Serves the application at each of its entrances. No signals are handled here."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from migrator.http.acceptor import Acceptor
from migrator.http.admission import Admission, Gate, within_descriptors
from migrator.http.connection import ClientConnection, log_as_we_do
from migrator.http.dependencies import Dependencies
from migrator.http.listeners import Listeners, Tcp, UnixSocket
from migrator.http.probes import create_probes

#: Of this process' file descriptors each entrance may hold so much, in connections.
_SHARES = {"tcp": 0.25, "unix": 0.125, "metrics": 0.0625}
_LARGEST_HEAD_BYTES = 32 * 1024
_KEEP_ALIVE_SECONDS = 30


class Servers:
    """Serves `app` while the ``async with`` block lasts.

    Leaving it ends the streams, gives what is being answered `timeout_seconds`, and closes every connection.

    :param metrics: only the probes and metrics, to whoever can reach it; for Prometheus.
    :param inherited: see :class:`Listeners`.
    :param admission: what may come by each entrance; fewer connections where file descriptors are short.
    :raise UsageError: on entering, when one of the places cannot be listened at; none is then.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        unix: UnixSocket | None = None,
        tcp: Tcp | None = None,
        metrics: Tcp | None = None,
        inherited: Mapping[str, socket.socket] | None = None,
        admission: Admission | None = None,
        timeout_seconds: int = 5,
    ) -> None:
        self._app = app
        self._admission = admission or Admission()
        self._listeners = Listeners(unix=unix, tcp=tcp, metrics=metrics, inherited=inherited)
        self._timeout_seconds = timeout_seconds
        self._servers: list[_Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def addresses(self) -> list[str]:
        """Where it listens; see :attr:`Listeners.addresses`."""
        return self._listeners.addresses

    async def __aenter__(self) -> Self:
        log_as_we_do()
        await self._listeners.bind()
        bound: list[tuple[_Server, socket.socket]] = []
        for name, listener in self._listeners.sockets.items():
            app = create_probes(self._app) if name == "metrics" else self._app
            server = self._server(_entrance(app, name), self._listeners.tls(name), self._gate(name))
            bound.append((server, listener))
        for (server, listener), where in zip(bound, self.addresses, strict=True):
            self._servers.append(server)
            self._tasks.append(asyncio.create_task(server.serve([listener]), name=f"http {where}"))
        ready = [asyncio.create_task(server.ready.wait(), name="http start") for server in self._servers]
        try:
            await asyncio.gather(*ready)
        except BaseException:  # cancelled too: no server goes on by itself; raised again
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def wait(self) -> None:
        """Wait for a server that ends by itself, and raise why; for the service's group of tasks."""
        if not self._tasks:
            await asyncio.Event().wait()  # nothing is served, and nothing can end
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _stop(self) -> None:
        # Nobody new finds it from here on, and whoever starts in its place may have the path.
        self._listeners.unlink()
        dependencies = self._app.state.dependencies
        assert isinstance(dependencies, Dependencies)
        for server in self._servers:
            server.stop_listening()
        await dependencies.close(self._timeout_seconds)
        for server in self._servers:
            server.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._timeout_seconds + 2)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _gate(self, entrance: str) -> Gate:
        admission = within_descriptors(self._admission, share=_SHARES[entrance])
        if entrance == "unix":
            # Who may open it is an operator of this machine, and there is no TLS to be agreed upon.
            admission = replace(admission, connects_per_second=1000.0, connects_burst=1000)
        return Gate(entrance, admission)

    def _server(self, app: ASGIApp, tls: ssl.SSLContext | None, gate: Gate) -> _Server:
        config = uvicorn.Config(
            app,
            http=ClientConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            # They would let a client say where it comes from.
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=self._timeout_seconds,
            h11_max_incomplete_event_size=_LARGEST_HEAD_BYTES,
        )
        config.load()
        config.ssl = tls
        return _Server(config, gate)


class _Server(uvicorn.Server):
    """One listener; it leaves signals alone and does not wake up ten times a second to see whether it shall end."""

    def __init__(self, config: uvicorn.Config, gate: Gate) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._gate = gate
        self._stop = asyncio.Event()
        self._acceptors: list[Acceptor] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The service owns the signals."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, through the gate."""
        await self.lifespan.startup()
        for listener in sockets or ():
            listener.setblocking(False)
            self._acceptors.append(Acceptor(listener, self._gate, self._connection, tls=self.config.ssl))
        self.started = True
        self.ready.set()

    def _connection(self, address: str, leave: Callable[[], None]) -> ClientConnection:
        return ClientConnection(
            gate=self._gate,
            address=address,
            leave=leave,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    async def main_loop(self) -> None:
        """Until :meth:`stop`."""
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is being answered end within the time that it is given; then close every connection."""
        self.stop_listening()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        until = loop.time() + (self.config.timeout_graceful_shutdown or 0)
        while (self.server_state.connections or self.server_state.tasks) and loop.time() < until:
            await asyncio.sleep(0.01)
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for listener in sockets or ():
            listener.close()

    def stop_listening(self) -> None:
        """Take no more connections; those that are there go on."""
        for acceptor in self._acceptors:
            acceptor.close()

    def stop(self) -> None:
        """Answer what was asked and end."""
        self._stop.set()


def _entrance(app: ASGIApp, name: str) -> ASGIApp:
    async def entered(scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["entrance"] = name
        await app(scope, receive, send)

    return entered
