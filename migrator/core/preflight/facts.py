"""Facts that one QEMU process shows before a migration, for preflight to compare."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from migrator.core.model import MigrationStatus, RunState
from migrator.core.preflight.non_migrated_state import NonMigratedState


@dataclass(frozen=True, kw_only=True, order=True)
class Device:
    """One device as the guest sees it."""

    #: Its id where it has one, else its place among those without.
    name: str
    #: QEMU's type name, e.g. ``virtio-blk-pci``.
    driver: str
    #: ``bus pcie.0 slot 3.0`` for a device on PCI, ``bus scsi.0`` on another bus; else empty.
    slot: str = ""
    #: Id of the card that takes over where QEMU unplugs this one for a migration; empty: it stays.
    standby: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Features of a disk's image that a copy of it has to have, or cannot have."""

    allocated_bytes: int = 0
    #: Options of qemu-img that make an image with the same features: ``cluster_size=65536``.
    options: tuple[str, ...] = ()
    encrypted: bool = False
    #: Of an encrypted disk: what is before its contents, and has the keys.
    header_bytes: int = 0
    #: Internal snapshots, and persistent dirty bitmaps.
    snapshots: int = 0
    bitmaps: int = 0
    #: Its contents are in an external data file.
    data_file: bool = False
    #: The image that it is based on, as it names it, and that one's format; empty: it is based on none.
    backing_file: str = ""
    backing_format: str = ""
    #: What is allocated of all that it is based on.
    backing_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Disk:
    """One disk or other block device that the guest has."""

    #: The device it belongs to (its id or QOM path).
    device: str
    #: QEMU's own file name of the top node.
    file: str
    format: str
    #: Size that the guest sees, in bytes.
    virtual_bytes: int
    read_only: bool = False
    #: Device and inode of the file on this machine, where it can be looked up; else empty.
    identity: str = ""
    image: ImageFeatures = ImageFeatures()

    def copied_bytes(self, *, keep_backing: bool) -> int:
        """Return how much a copy of it takes, as far as that is known before."""
        if self.image.header_bytes:  # what is encrypted has no holes
            return self.virtual_bytes + self.image.header_bytes
        allocated = self.image.allocated_bytes or self.virtual_bytes
        return min(allocated + (0 if keep_backing else self.image.backing_bytes), self.virtual_bytes)

    @property
    def is_flash(self) -> bool:
        """True for the machine's flash (variables of its firmware), whose contents QEMU carries and writes anew.

        Nothing that a user can give a name has one like these.
        """
        return re.fullmatch(r"/machine/[^/]*flash[^/]*", self.device) is not None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One QEMU process. Everything here can be read without changing anything."""

    #: ``7.2.22``.
    version: str
    run: RunState
    status: MigrationStatus
    #: "" where the process was started without one.
    uuid: str = ""
    guest_name: str = ""
    #: Aliases resolved: ``pc-q35-7.2``.
    machine: str = ""
    #: ``kvm`` or ``tcg``.
    accelerator: str = ""
    memory_bytes: int = 0
    #: Id and size in bytes of every memory backend; QEMU matches memory by these ids.
    memory_backends: tuple[tuple[str, int], ...] = ()
    #: One entry for every plugged vCPU: QEMU's type name and where it sits in the topology.
    cpus: tuple[str, ...] = ()
    #: CPUID words of the first vCPU, by register; empty where this architecture has none.
    cpu_features: dict[str, int] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    disks: tuple[Disk, ...] = ()
    #: Why QEMU says it cannot migrate now.
    blockers: tuple[str, ...] = ()
    capabilities: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    #: State that does not travel.
    non_migrated: NonMigratedState = field(default_factory=NonMigratedState)
    #: QEMU already listens for a migration.
    listening: bool = False
    #: The value of -incoming, where the command line can be read; ``None`` where not.
    incoming: str | None = None
    #: pid, where it is known.
    pid: int | None = None
    #: Another controller that has marked it and may not be followed, for a person; empty where there is none.
    driven_by: str = ""

    @property
    def unplugged_to_move(self) -> tuple[Device, ...]:
        """Cards that the guest has, and QEMU unplugs for a migration because another one takes over."""
        return tuple(device for device in self.devices if device.standby)
