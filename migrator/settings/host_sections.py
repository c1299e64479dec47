"""Sections of the configuration about hosts: ``[host_defaults]`` and ``[[hosts]]``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from migrator.core.inventory import MONITOR_SOCKETS, TLS_DIRECTORY, Host
from migrator.settings.section import Arguments, Duration, Positive, Section
from migrator.settings.values import (
    AutoOrBool,
    LibvirtDaemon,
    LibvirtPeer,
    Name,
    OptionalPath,
    RateOrAuto,
    ReachableHosts,
    Size,
    SshAddress,
    Text,
    wrong,
)
from migrator.text import shortened


def _absolute(value: Any) -> Any:
    if isinstance(value, str) and value and not value.startswith("/"):
        raise wrong(f"{shortened(value)} is no absolute path on the host")
    return value


#: A path on the host, not here.
HostPath = Annotated[str, BeforeValidator(_absolute)]


def _plain_directory(value: Any) -> Any:
    parts = (
        value.removeprefix("/").rstrip("/").split("/")
        if isinstance(value, str) and value != "/"
        else ["root"]
    )
    if any(each in ("", ".", "..") for each in parts):
        raise wrong(f"{shortened(value)} is no directory: write its path without `.`, `..` and `//`")
    return value


#: A directory on the host, by which paths are compared as they are written.
HostDirectory = Annotated[HostPath, BeforeValidator(_plain_directory)]

#: In it are ``MIGRATION-XXXXXX/control.qmp``, with ids of 12 characters, and the path of a Unix socket takes 107 bytes.
_RUN_DIRECTORY_BYTES = 107 - len("/0123456789ab-XXXXXX/control.qmp")


def _with_room_for_sockets(value: Any) -> Any:
    if isinstance(value, str) and (size := len(value.rstrip("/").encode())) > _RUN_DIRECTORY_BYTES:
        raise wrong(
            f"{shortened(value)} has {size} bytes: with more than {_RUN_DIRECTORY_BYTES} the sockets in it have no "
            "room for their names; choose a shorter directory"
        )
    return value


#: A directory on the host in which guests' sockets are made.
RunDirectoryPath = Annotated[HostPath, BeforeValidator(_with_room_for_sockets)]


class ImageTemplate(Section):
    """``image_template`` of a host: how a volume is made there for a disk that is one at the source.

    Commands with ``{path}``, ``{name}`` and ``{group}`` (the last part of the path and the one before it), and
    ``{size}`` in bytes.
    """

    make: Arguments
    remove: Arguments

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for key, words, needed in (("make", self.make, "{size}"), ("remove", self.remove, "")):
            if not words:
                raise wrong(f"{key} is empty: give the command and its arguments")
            try:
                filled = self.filled(words, path="/dev/group/name", size_bytes=1)
            except (KeyError, IndexError, ValueError):
                raise wrong(
                    f"{key} names what does not exist; there are {{path}}, {{name}}, {{group}}, {{size}}"
                ) from None
            if filled == words or not any(needed in word for word in words):
                raise wrong(
                    f"{key} does not say which volume, or of what size: use {{path}} or {{name}}, and {{size}}"
                )
        return self

    @staticmethod
    def filled(words: Arguments, *, path: str, size_bytes: int) -> tuple[str, ...]:
        """Return a command for one volume."""
        parent, _, name = path.rpartition("/")
        about = {"path": path, "name": name, "group": parent.rpartition("/")[2], "size": str(size_bytes)}
        return tuple(word.format(**about) for word in words)


class HostDefaults(Section):
    """``[host_defaults]``: what :class:`HostSettings` take that say nothing else."""

    key_file: OptionalPath = None
    known_hosts: OptionalPath = None
    sockets: tuple[HostPath, ...] = MONITOR_SOCKETS
    look_for: Literal["processes", "sockets"] = "processes"
    qemu: HostPath = ""
    run_dir: RunDirectoryPath = ""
    log_dir: HostPath = ""
    systemd: AutoOrBool = None
    start_timeout: Duration = 30.0
    launch: Literal["replicate", "template", "attached"] = "replicate"
    template: Arguments = ()
    attached: HostPath = ""
    link_speed: RateOrAuto = None
    memory: Size = 0
    #: Bytes that are never given to guests: what the host itself needs.
    memory_reserve: Size = 2 << 30
    cpu_overcommit: Annotated[float, Field(gt=0)] = Host.cpu_overcommit_ratio
    labels: dict[Text, str] = Field(default_factory=dict)
    max_incoming: Positive | None = None
    max_outgoing: Positive | None = None
    ports: Literal["keep", "any"] = "keep"
    #: Directory of certificates for QEMU, as QEMU names its files.
    tls_dir: HostPath = TLS_DIRECTORY
    #: Directories of images, or volume groups, by names that hosts share.
    image_directories: dict[Text, HostDirectory] = Field(default_factory=dict)
    #: ``None``: disks that are block devices are not copied to there.
    image_template: ImageTemplate | None = None
    #: Directory for guests that an evacuation saves as a last resort.
    saved_dir: HostPath = ""
    #: Where the libvirt of a host is, as that host sees it; ``auto``: where it usually is, if there is one.
    libvirt: LibvirtDaemon = "auto"
    #: By which the libvirtd of other hosts reach it; empty: they do not.
    libvirt_peer_uri: LibvirtPeer = ""


class HostSettings(HostDefaults):
    """One of ``[[hosts]]``."""

    name: Name
    ssh: SshAddress | None = None
    prefix: Arguments = ()
    address: ReachableHosts = (Host.address,)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.ssh is not None and self.prefix:
            raise wrong("ssh and prefix contradict each other: a prefix is for hosts on this machine")
        if not any(self.sockets):
            raise wrong("sockets is empty: no guest would ever be found there")
        if self.launch == "template" and not self.template:
            raise wrong('launch = "template" takes template: the command that starts the QEMU')
        if self.launch == "attached" and not self.attached:
            raise wrong('launch = "attached" takes attached: the QMP socket of the QEMU that waits')
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return where other hosts reach it with a migration's stream, the usual address first."""
        return self.address

    def as_host(self) -> Host:
        """Return the host as the engine knows it before it has been looked at."""
        return Host(
            name=self.name,
            address=self.addresses[0],
            link_bytes_per_second=self.link_speed,
            memory_bytes=self.memory,
            memory_reserve_bytes=self.memory_reserve,
            cpu_overcommit_ratio=self.cpu_overcommit,
            labels=self.labels,
            max_incoming=self.max_incoming,
            max_outgoing=self.max_outgoing,
            spare_ports=self.ports == "any",
            saved_dir=self.saved_dir,
        )
