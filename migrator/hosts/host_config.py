"""Configuration of a host, as far as reaching it and finding its guests goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from migrator.addresses import bracketed
from migrator.core.inventory import MONITOR_SOCKETS, RUN_DIRECTORY, TLS_DIRECTORY, Host
from migrator.core.managed_guest import DaemonAddress
from migrator.errors import UsageError
from migrator.hosts.access import HostAccess
from migrator.hosts.local import LocalAccess
from migrator.hosts.ssh_config import SshConfig

if TYPE_CHECKING:  # slow, and for who reads a configuration
    from migrator.settings.host_sections import HostSettings
    from migrator.settings.models import LimitsSettings


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Configuration of one host."""

    name: str
    #: Where other hosts reach it with a migration's stream, the usual address first.
    addresses: tuple[str, ...] = (Host.address,)
    #: Glob patterns of QMP sockets; absolute.
    sockets: tuple[str, ...] = MONITOR_SOCKETS
    #: Every QEMU process there is a guest; else only those with one of these sockets.
    processes: bool = True
    #: Patterns of sockets of other hosts on the same machine; what has one of those is a guest there.
    others: tuple[str, ...] = ()
    #: The QEMU to start there; empty: what is found in its PATH.
    qemu: str = ""
    #: It can make volumes for disks that are block devices.
    volumes: bool = False
    #: Directories of images there, or volume groups, by names that hosts share.
    image_directories: Mapping[str, str] = field(default_factory=dict)
    #: Put before every command; for hosts on this machine.
    prefix: tuple[str, ...] = ()
    #: Directory there of the certificates for QEMU.
    tls_dir: str = TLS_DIRECTORY
    #: The libvirt daemon there; ``None``: guests of libvirt there are left to it.
    libvirt: DaemonAddress | None = None
    #: By which the libvirtd of other hosts reach it; empty: they do not.
    libvirt_peer_uri: str = ""
    #: ``None``: this machine.
    ssh: SshConfig | None = None

    @property
    def address(self) -> str:
        """Return where streams usually come in."""
        return self.addresses[0]

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """Return the names that a certificate of the host may be for, its own first."""
        ssh = (self.ssh.host,) if self.ssh is not None else ()
        return tuple(dict.fromkeys((self.name, *self.addresses, *ssh)))

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


def host_config(host: HostSettings, hosts: Sequence[HostSettings], limits: LimitsSettings) -> HostConfig:
    """Return what reaching a host takes.

    :param hosts: all that are configured.
    """
    ssh = None
    if host.ssh is not None:
        ssh = SshConfig(
            host=host.ssh.host,
            port=host.ssh.port,
            user=host.ssh.user,
            key=host.key_file,
            known_hosts=host.known_hosts,
            max_sessions=limits.ssh_sessions,
            connect_seconds=limits.ssh_connect_timeout,
            keepalive_seconds=limits.ssh_keepalive,
        )
    return HostConfig(
        name=host.name,
        addresses=host.addresses,
        sockets=_sockets(host, hosts),
        processes=host.look_for == "processes",
        others=tuple(
            pattern
            for other in hosts
            if other.name != host.name and (other.ssh, other.prefix) == (host.ssh, host.prefix)
            for pattern in _sockets(other, hosts)
        ),
        qemu=host.qemu,
        volumes=host.image_template is not None,
        image_directories=host.image_directories,
        tls_dir=host.tls_dir,
        libvirt=_libvirt(host),
        libvirt_peer_uri=host.libvirt_peer_uri.format(address=bracketed(host.addresses[0]), name=host.name),
        prefix=host.prefix,
        ssh=ssh,
    )


def _libvirt(host: HostSettings) -> DaemonAddress | None:
    """Return where its libvirt is; what a prefix leads into need not have the files that this machine has."""
    return None if host.prefix and host.libvirt == "auto" else DaemonAddress.parse(host.libvirt)


def _sockets(host: HostSettings, hosts: Sequence[HostSettings]) -> tuple[str, ...]:
    """Where QMP sockets are looked for: as configured, and where the destinations that are started there have theirs.

    Else a guest would be out of sight once it has been moved. Not where another host on the same machine has that
    directory too: whose its guests are could not be told.
    """
    own = f"{escape(host.run_dir or RUN_DIRECTORY)}/*/control.qmp"
    shared = any(
        (other.ssh, other.run_dir) == (host.ssh, host.run_dir) for other in hosts if other.name != host.name
    )
    return host.sockets if shared or own in host.sockets else (*host.sockets, own)
