"""Guests that libvirt manages: where one is found, what libvirt says of it, and how its daemon is reached. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit

from migrator.text import shortened

#: Begins the place of a guest of libvirt on its host, in the place of a monitor's path; its uuid follows.
PREFIX = "libvirt:"
#: Its name as the manager of a guest.
LIBVIRT = "libvirt"
#: Sockets of the daemons that have guests of QEMU, the modular one first.
SYSTEM_SOCKETS = ("/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock")
_HELP = "write auto, off, qemu:///system, or qemu:///system?socket=/run/libvirt/libvirt-sock"


def place_of(uuid: str) -> str:
    """Return the place of a guest of libvirt on its host."""
    return PREFIX + uuid


def uuid_at(place: str) -> str | None:
    """Return the uuid of the guest of libvirt at a place; ``None`` where the place is not one of libvirt's."""
    return place.removeprefix(PREFIX) if place.startswith(PREFIX) else None


@dataclass(frozen=True, kw_only=True)
class DaemonAddress:
    """Address of the libvirt daemon of a host, as seen from that host."""

    #: Paths at which it may listen, the first choice first.
    sockets: tuple[str, ...] = SYSTEM_SOCKETS
    #: ``system`` or ``session``.
    instance: str = "system"
    #: The host may have none.
    optional: bool = False

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the address that a person typed; ``None``: guests of libvirt there are none of ours.

        :raise ValueError: it is none; says what to write.
        """
        if text == "off":
            return None
        if text == "auto":
            return cls(optional=True)
        parts = urlsplit(text)
        if parts.scheme not in ("qemu", "qemu+unix") or parts.netloc:
            what = (
                "leads to another host: migrator reaches the host itself, over the SSH it has"
                if parts.netloc
                else "is no address of libvirt's QEMU driver"
            )
            raise ValueError(f"{shortened(text)} {what}; {_HELP}")
        instance, given = parts.path.strip("/"), parse_qs(parts.query)
        if instance not in ("system", "session") or set(given) - {"socket"}:
            raise ValueError(f"{shortened(text)} is neither the system's libvirt nor a user's; {_HELP}")
        sockets = tuple(given.get("socket", ()))
        if not all(path.startswith("/") for path in sockets):
            raise ValueError(f"{shortened(text)}: its socket is no absolute path on the host")
        if instance == "session" and not sockets:
            raise ValueError(
                f"{shortened(text)} takes its socket: ?socket=/run/user/UID/libvirt/virtqemud-sock"
            )
        return cls(sockets=sockets or SYSTEM_SOCKETS, instance=instance)

    def uri(self, local_path: str) -> str:
        """Return the URI that libvirt's client opens, where the daemon's socket is at `local_path` here."""
        return f"qemu+unix:///{self.instance}?socket={quote(local_path)}"


@dataclass(frozen=True, kw_only=True)
class ManagedDomain:
    """Facts that libvirt gives of a guest, besides what is known of every guest."""

    #: It has a definition that outlasts it.
    persistent: bool = True
    #: It is started when its host is.
    autostart: bool = False
    #: Its state was saved by libvirt, to be started from.
    managed_save: bool = False
    snapshots: int = 0
    checkpoints: int = 0
    #: Targets of the disks that a job of libvirt works on (``vda``).
    block_jobs: tuple[str, ...] = ()
    #: Devices of its host that it has, by what libvirt calls them (``pci 0000:01:00.0``).
    host_devices: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """Return it as plain JSON, for :meth:`from_fields`."""
        return {
            **asdict(self),
            "block_jobs": list(self.block_jobs),
            "host_devices": list(self.host_devices),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Return what :meth:`fields` described; what only a newer version knows of it is left out."""
        known = {name: value for name, value in fields.items() if name in cls.__dataclass_fields__}
        for name in ("block_jobs", "host_devices"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)
