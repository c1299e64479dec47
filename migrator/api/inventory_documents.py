"""Documents of hosts and of the guests on them.

See :mod:`migrator.api.documents` for their units.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from migrator.api.documents import Document
from migrator.core.inventory import HostState
from migrator.core.process.guest_network import NetworkState


class HostDocument(Document):
    """One host."""

    host: str
    state: HostState
    #: No new guests come here, whatever its state; those that are here stay.
    cordoned: bool = False
    up: bool
    error: str = ""
    address: str = ""
    guests: int = 0
    #: Of these: QEMUs without a monitor where it was looked for.
    guests_unmonitored: int = 0
    #: Of these: in a migration that nobody drives.
    guests_undriven: int = 0
    #: Of these: cannot be moved at all; each says why.
    guests_not_movable: int = 0
    #: Uuids that run here and, at the same time, once more, here or elsewhere: an emergency.
    guests_duplicate: list[str] = Field(default_factory=list)
    memory_total_bytes: int = 0
    memory_free_bytes: int = 0
    cpus: int = 0
    kvm: bool = False
    #: Why its libvirt cannot be asked, in one line; empty where it can, or there is none.
    libvirt_error: str = ""
    #: Guests that its libvirt has shut off: they are none of ``guests``, and stay when it is emptied.
    guests_shut_off: int = 0
    link_bytes_per_second: float | None = None
    #: What the slowest paths from it were seen to hold streams back at, by target, bytes per second: ten at most.
    slowest_paths: dict[str, float] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    qemus: dict[str, str] = Field(default_factory=dict)
    #: When the first of its certificates for encrypted streams expires; ``None``: it has none.
    certificates_expire_at: datetime | None = None
    looked_at: datetime | None = None
    #: The next evacuation that is scheduled for it, and when it begins and ends.
    scheduled: str | None = None
    scheduled_at: datetime | None = None
    scheduled_until: datetime | None = None


class LibvirtGuestDocument(Document):
    """Facts that libvirt gives of a guest, besides what is known of every guest."""

    #: It has a definition that outlasts it.
    persistent: bool
    #: It is started when its host is.
    autostart: bool
    managed_save: bool
    snapshots: int
    checkpoints: int
    #: Targets of the disks that a job of libvirt works on (``vda``).
    block_jobs: list[str]
    #: Devices of its host that it has (``pci 0000:01:00.0``).
    host_devices: list[str]


class GuestDocument(Document):
    """One guest."""

    guest: str
    name: str = ""
    uuid: str = ""
    #: Ours, for one that was started without a uuid: it stays when the guest moves.
    identity: str = ""
    host: str
    #: QEMU's word for it; ``lost-contact`` while it cannot be asked.
    run_state: str
    #: It has a monitor where its host's are looked for.
    monitored: bool = True
    memory_bytes: int = 0
    vcpus: int = 0
    dirty_rate_bytes_per_second: float | None = None
    policy: str = ""
    #: Whether what carries its network cards is up (``up``, ``down``, ``none``: it has no tap, ``unknown``), and what
    #: is not, in one line.
    network_state: NetworkState = NetworkState.UNKNOWN
    network_problem: str = ""
    movable: bool = True
    #: Why not, in one line.
    obstacle: str = ""
    obstacle_code: str = ""
    #: Its uuid runs twice: an emergency.
    duplicate: bool = False
    #: Who else manages it: ``libvirt``, ``proxmox``, ``systemd:UNIT``…; empty where nobody is known to.
    managed_by: str = ""
    #: What libvirt says of it; ``None`` where it is not libvirt's, or that cannot be asked.
    libvirt: LibvirtGuestDocument | None = None
    #: Its migration under way.
    migration: str | None = None
