"""Where HTTP is listened for: a Unix socket, TCP, and a port for Prometheus; bound, and not served yet."""

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from migrator.errors import UsageError

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


class Listeners:
    """The sockets of one service, by entrance: ``unix``, ``tcp``, ``metrics``.

    :param inherited: sockets that are bound already, by another process that removes their paths too.
    """

    def __init__(
        self,
        *,
        unix: UnixSocket | None = None,
        tcp: Tcp | None = None,
        metrics: Tcp | None = None,
        inherited: Mapping[str, socket.socket] | None = None,
    ) -> None:
        self._unix = unix
        self._ports = {
            name: where for name, where in (("tcp", tcp), ("metrics", metrics)) if where is not None
        }
        self._inherited = inherited or {}
        self._inode: tuple[int, int] | None = None
        self.sockets: dict[str, socket.socket] = {}
        #: For people and tests, in the order of the sockets: ``unix:PATH``, ``https://HOST:PORT``, ``http://HOST:PORT``.
        self.addresses: list[str] = []

    def tls(self, entrance: str) -> ssl.SSLContext | None:
        """Return the TLS context of an entrance; ``None`` for one without."""
        return self._ports[entrance].tls if entrance in self._ports else None

    async def bind(self) -> None:
        """Bind all.

        :raise UsageError: one of the places cannot be listened at; none is then.
        """
        try:
            if self._unix is not None:
                listener = self._inherited.get("unix")
                if listener is None:
                    listener = await asyncio.to_thread(_bind_unix, self._unix)
                    status = self._unix.path.stat()
                    self._inode = (status.st_dev, status.st_ino)
                self.sockets["unix"] = listener
                self.addresses.append(f"unix:{self._unix.path}")
            for name, where in self._ports.items():
                if name == "tcp" and where.tls is None:
                    _require_loopback(where.host)
                self.sockets[name] = self._inherited.get(name) or _bind_tcp(where)
                self.addresses.append(_url(where, self.sockets[name]))
        except BaseException:  # cancelled too: no socket stays bound; raised again
            self.close()
            raise

    def unlink(self) -> None:
        """Let nobody new find the Unix socket, and whoever starts next have the path; another's is left there."""
        if self._unix is None or self._inode is None:
            return
        with contextlib.suppress(FileNotFoundError):
            status = self._unix.path.stat()
            if (status.st_dev, status.st_ino) == self._inode:
                self._unix.path.unlink()
        self._inode = None

    def close(self) -> None:
        """Unlink and close; in whatever state they are."""
        self.unlink()
        for listener in self.sockets.values():
            listener.close()


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
        except BaseException:  # cancelled too: no socket stays bound; raised again
            listener.close()
            first.unlink(missing_ok=True)
            raise
    except OSError as error:
        remedy = ""
        if isinstance(error, PermissionError):
            user = pwd.getpwuid(os.geteuid()).pw_name
            remedy = (
                f" for {user}: as root, install -d -o {user} -m {where.directory_mode:04o} {path.parent}, "
                "or have [http] socket elsewhere"
            )
        raise UsageError(f"http: cannot listen at {path}: {error.strerror or error}{remedy}") from error
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
