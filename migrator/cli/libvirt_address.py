"""Addresses of libvirt's guests as libvirt itself writes them: ``qemu:///system?guest=NAME``."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

from migrator.core.managed_guest import SYSTEM_SOCKETS, DaemonAddress
from migrator.errors import UsageError
from migrator.qemu.address import Address
from migrator.text import shortened

_HELP = "write qemu:///system?guest=NAME, or qemu+ssh://USER@HOST/system?guest=NAME"


@dataclass(frozen=True, kw_only=True)
class LibvirtAddress:
    """A guest of the libvirt daemon of this machine, or of a host over SSH."""

    #: Where the daemon listens on its host.
    daemon: DaemonAddress
    #: As it was typed; empty: the daemon's usual one.
    socket: str = ""
    #: Over SSH; empty: this machine.
    host: str = ""
    user: str = ""
    #: Its name or its uuid; empty: not said.
    guest: str = ""

    @property
    def site_name(self) -> str:
        """Return the address of the daemon, as the name of its host."""
        scheme = "qemu+ssh" if self.host else "qemu"
        user = f"{quote(self.user)}@" if self.user else ""
        server = f"[{self.host}]" if ":" in self.host else self.host
        socket = f"?socket={quote(self.socket)}" if self.socket else ""
        return f"{scheme}://{user}{server}/{self.daemon.instance}{socket}"

    @property
    def socket_address(self) -> Address:
        """Return the address of the daemon's socket, as of a monitor at the same place."""
        path = self.socket or self.daemon.sockets[-1]
        if not self.host:
            return Address(kind="unix", path=path)
        return Address(kind="ssh", host=self.host, user=self.user, path=path)

    def __str__(self) -> str:
        guest = f"guest={quote(self.guest)}" if self.guest else ""
        return f"{self.site_name}{'&' if self.socket else '?'}{guest}" if guest else self.site_name


def parse(text: str) -> LibvirtAddress:
    """Read an address of libvirt's.

    :raise UsageError: with what was expected.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UsageError(f"{shortened(text)} is no address of libvirt's: {error}; {_HELP}") from None
    over_ssh = parts.scheme == "qemu+ssh"
    if parts.scheme not in ("qemu", "qemu+unix", "qemu+ssh"):
        raise UsageError(f"{shortened(text)} is no address of libvirt's that can be reached here; {_HELP}")
    if over_ssh != bool(host):
        wrong = "names no host" if over_ssh else "leads to another host"
        raise UsageError(f"{shortened(text)} {wrong}; {_HELP}")
    if port is not None:
        raise UsageError(f"{shortened(text)} has a port: write that of a host into ~/.ssh/config")
    query = parse_qs(parts.query, keep_blank_values=True)
    guests, sockets = query.pop("guest", []), query.pop("socket", [])
    if query or parts.fragment or len(guests) > 1 or "" in guests or len(sockets) > 1:
        raise UsageError(f"{shortened(text)} has more, or less, than a guest and a socket; {_HELP}")
    instance, socket = parts.path.removeprefix("/"), sockets[0] if sockets else ""
    if instance not in ("system", "session") or not parts.path.startswith("/"):
        raise UsageError(f"{shortened(text)} is neither the system's libvirt nor a user's; {_HELP}")
    if sockets and not socket.startswith("/"):
        raise UsageError(f"{shortened(text)}: its socket is no absolute path")
    if instance == "session" and not socket:
        raise UsageError(
            f"{shortened(text)} takes its socket: qemu:///session?socket=/run/user/UID/libvirt/libvirt-sock"
        )
    return LibvirtAddress(
        daemon=DaemonAddress(sockets=(socket,) if socket else SYSTEM_SOCKETS, instance=instance),
        socket=socket,
        host=host,
        user=unquote(parts.username or ""),
        guest=guests[0] if guests else "",
    )
