"""The sockets: a Unix socket, TCP with TLS or on loopback, and a port for Prometheus. No signals are handled here."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import ipaddress
import os
import pwd
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from migrator.errors import UsageError
from migrator.http.acceptor import Acceptor
from migrator.http.admission import Admission, Gate, within_descriptors
from migrator.http.connection import Connection, log_as_we_do
from migrator.http.parts import Parts
from migrator.http.probes import create_probes

#: Of this process' file descriptors each entrance may hold so much, in connections.
_SHARES = {"tcp": 0.25, "unix": 0.125, "metrics": 0.0625}
_LARGEST_HEAD_BYTES = 32 * 1024
_KEEP_ALIVE_SECONDS = 30
#: For a probe of a socket that may be stale.
_PROBE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class UnixSocket:
    """Where the API is by default: who may open it is an operator."""

    path: Path
    mode: int = 0o660
    #: Of its directory, where that must be made; one that is there is left as it is.
    directory_mode: int = 0o750
    #: Names; ``None`` leaves ours.
    owner: str | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tcp:
    """A TCP entrance: bearer tokens, and TLS unless it is on loopback."""

    host: str = "127.0.0.1"
    #: 0 takes a free one.
    port: int = 0
    tls: ssl.SSLContext | None = None


class Servers:
    """Serves `app` while the ``async with`` block lasts.

    Leaving it ends the streams, gives what is being answered `patience_seconds`, and closes every connection.

    :param metrics: only the probes and metrics, to whoever can reach it; for Prometheus.
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
        admission: Admission | None = None,
        patience_seconds: int = 5,
    ) -> None:
        self._app = app
        self._admission = admission or Admission()
        self._unix = unix
        self._tcp = tcp
        self._metrics = metrics
        self._patience = patience_seconds
        self._servers: list[_Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._inode: tuple[int, int] | None = None
        #: Where it listens, for people and tests: ``unix:PATH``, ``https://HOST:PORT``, ``http://HOST:PORT``.
        self.addresses: list[str] = []

    async def __aenter__(self) -> Self:
        log_as_we_do()
        bound: list[tuple[_Server, socket.socket]] = []
        try:
            if self._unix is not None:
                listener = await asyncio.to_thread(_bind_unix, self._unix)
                status = self._unix.path.stat()
                self._inode = (status.st_dev, status.st_ino)
                bound.append((self._server(_entrance(self._app, "unix"), None, self._gate("unix")), listener))
                self.addresses.append(f"unix:{self._unix.path}")
            if self._tcp is not None:
                if self._tcp.tls is None:
                    _require_loopback(self._tcp.host)
                listener = _bind_tcp(self._tcp)
                bound.append(
                    (self._server(_entrance(self._app, "tcp"), self._tcp.tls, self._gate("tcp")), listener)
                )
                self.addresses.append(_url(self._tcp, listener))
            if self._metrics is not None:
                listener = _bind_tcp(self._metrics)
                probes = create_probes(self._app)
                served = _entrance(probes, "metrics")
                bound.append((self._server(served, self._metrics.tls, self._gate("metrics")), listener))
                self.addresses.append(_url(self._metrics, listener))
        except BaseException:
            for _, listener in bound:
                listener.close()
            self._unlink()
            raise
        for (server, listener), where in zip(bound, self.addresses, strict=True):
            self._servers.append(server)
            self._tasks.append(asyncio.create_task(server.serve([listener]), name=f"http {where}"))
        ready = [asyncio.create_task(server.ready.wait(), name="http start") for server in self._servers]
        try:
            await asyncio.gather(*ready)
        except BaseException:
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
        self._unlink()
        parts = self._app.state.parts
        assert isinstance(parts, Parts)
        for server in self._servers:
            server.stop_listening()
        await parts.close(self._patience)
        for server in self._servers:
            server.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._patience + 2)
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
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            # They would let a client say where it comes from.
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=self._patience,
            h11_max_incomplete_event_size=_LARGEST_HEAD_BYTES,
        )
        config.load()
        config.ssl = tls
        return _Server(config, gate)

    def _unlink(self) -> None:
        if self._unix is None or self._inode is None:
            return
        with contextlib.suppress(FileNotFoundError):
            status = self._unix.path.stat()
            if (status.st_dev, status.st_ino) == self._inode:
                self._unix.path.unlink()
        self._inode = None


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

    def _connection(self, address: str, leave: Callable[[], None]) -> Connection:
        return Connection(
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
        """Let what is being answered end within the patience; then close every connection."""
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


def _bind_unix(where: UnixSocket) -> socket.socket:
    path = where.path
    if len(os.fsencode(path)) > 90:
        raise UsageError(f"http: {path} is too long for a socket: at most 90 bytes")
    try:
        if not path.parent.exists():
            path.parent.mkdir()
            path.parent.chmod(where.directory_mode)
            _give(path.parent, where)
        _require_free(path)
        # Under another name until it is as it shall be; until it listens nobody can connect either.
        first = path.with_name(f".{path.name}.{os.getpid()}")
        first.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.bind(str(first))
            _give(first, where)
            first.chmod(where.mode)
            listener.listen(128)
            first.rename(path)
        except BaseException:
            listener.close()
            first.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UsageError(f"http: cannot listen at {path}: {error.strerror or error}") from error
    return listener


def _require_free(path: Path) -> None:
    """Remove a socket at `path` that nobody listens at.

    :raise UsageError: when somebody does, or it is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"http: {path} is there and is no socket; move it away or configure another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass  # its queue is full: somebody holds it
    raise UsageError(f"http: another service listens at {path}; stop it first (migrator status asks it)")


def _give(path: Path, where: UnixSocket) -> None:
    try:
        uid = -1 if where.owner is None else pwd.getpwnam(where.owner).pw_uid
    except KeyError:
        raise UsageError(
            f"http: there is no user {where.owner!r}; create it, or configure another owner"
        ) from None
    try:
        gid = -1 if where.group is None else grp.getgrnam(where.group).gr_gid
    except KeyError:
        raise UsageError(
            f"http: there is no group {where.group!r}; create it, or configure another"
        ) from None
    if (uid, gid) != (-1, -1):
        os.chown(path, uid, gid)


def _bind_tcp(where: Tcp) -> socket.socket:
    try:
        family = ipaddress.ip_address(where.host).version == 6
    except ValueError:
        family = False
    try:
        listener = socket.create_server(
            (where.host, where.port), family=socket.AF_INET6 if family else socket.AF_INET, backlog=128
        )
    except OSError as error:
        # create_server puts Python's own words behind it.
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise UsageError(
            f"http: cannot listen at {where.host}:{where.port}: {why}; see who does (ss -ltnp), or configure another"
        ) from error
    listener.setblocking(False)
    # Those accepted have it from here: asyncio sets it only where the protocol's number was given. Without it the body
    # of an answer waits 40 ms for the client to acknowledge the head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _require_loopback(host: str) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"http: {host} is no address: {error.strerror or error}") from error
    if not all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found):
        raise UsageError(
            f"http: {host} is not loopback: configure a TLS certificate and key, or listen at 127.0.0.1"
        )


def _url(where: Tcp, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "http" if where.tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
