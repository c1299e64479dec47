"""Configuration of a host, as far as reaching it and finding its guests goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from migrator.errors import UsageError
from migrator.hosts.access import HostAccess
from migrator.hosts.local import LocalAccess

#: Where a distribution's units and our own destinations have their monitors.
DEFAULT_SOCKETS = ("/run/qemu/*.qmp", "/run/migrator/guests/*/control.qmp")


@dataclass(frozen=True, kw_only=True)
class SshConfig:
    """How to reach a host over SSH."""

    #: Name or address of its SSH server.
    host: str
    #: 0: as the user's SSH configuration says, else 22.
    port: int = 0
    #: Empty: as the user's SSH configuration says, else as whom the controller runs.
    user: str = ""
    #: Private key; ``None``: those of the agent, and the usual files of the user.
    key: Path | None = None
    #: ``None``: the user's ``~/.ssh/known_hosts`` and ``/etc/ssh/ssh_known_hosts``. Always checked.
    known_hosts: Path | None = None
    #: Commands at a time; OpenSSH's server allows 10 sessions a connection, two of which watch.
    max_sessions: int = 8
    connect_seconds: float = 10.0
    #: A connection over which a migration is steered is dropped when nothing came over it for three times as long.
    keepalive_seconds: float = 5.0


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """One host."""

    name: str
    #: Where other hosts reach it with a migration's stream.
    address: str = "127.0.0.1"
    #: Glob patterns of QMP sockets; absolute.
    sockets: tuple[str, ...] = DEFAULT_SOCKETS
    #: Every QEMU process there is a guest; else only those with one of these sockets.
    processes: bool = True
    #: Patterns of sockets of other hosts on the same machine; what has one of those is a guest there.
    others: tuple[str, ...] = ()
    #: The QEMU to start there; empty: what is found in its PATH.
    qemu: str = ""
    #: Put before every command; for hosts on this machine.
    prefix: tuple[str, ...] = ()
    #: ``None``: this machine.
    ssh: SshConfig | None = None

    def __post_init__(self) -> None:
        for pattern in self.sockets:
            if not pattern.startswith("/"):
                raise UsageError(f"host {self.name}: {pattern!r} is no absolute path: write /run/qemu/*.qmp")
        if self.ssh is not None and self.prefix:
            raise UsageError(f"host {self.name}: a command prefix is for hosts on this machine, not over SSH")


@runtime_checkable
class Reconfigurable(Protocol):
    """A way that can be told to be another, to the same host."""

    def configure(self, config: SshConfig) -> None:
        """Go by this from now on; cannot fail."""


def access(config: HostConfig) -> HostAccess:
    """The way to that host; nothing is connected before it is used."""
    if config.ssh is None:
        return LocalAccess(config.name, config.prefix)
    from migrator.hosts.ssh import SshAccess  # noqa: PLC0415 - half a second that local hosts need not wait

    return SshAccess(config.name, config.ssh)
