"""Two libvirtd on one machine, each with one guest that is measured; see :mod:`migrator.testing.libvirtd`."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

from bench.options import MEMORY_BYTES
from migrator.testing.libvirtd import LibvirtDaemon, why_not
from migrator.testing.libvirtd import LibvirtUnavailable as Unavailable
from migrator.testing.network import LabHost
from migrator.testing.raw_qmp import RawMonitor

__all__ = ["GUEST", "Libvirtd", "Unavailable", "remove_cgroups", "why_not"]

GUEST = "migrator-bench"
_PATIENCE_SECONDS = 60.0
_DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='b'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <features><acpi/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <emulator>{binary}</emulator>
    {disks}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'><source path='/run/guest.serial'/></serial>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:/run/guest.qmp,server=on,wait=off'/>
  </qemu:commandline>
</domain>
"""
_DISK = """\
<disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='writeback'/>
      <source file='{image}'/>
      <target dev='{target}' bus='virtio'/>
      {more}
    </disk>"""
#: Of a disk that both ends have open.
_SHARED = """<shareable/>
      <boot order='1'/>
      <address type='pci' domain='0' bus='0' slot='4' function='0'/>"""
#: Of the disk that a guest boots from.
BOOT = "<boot order='1'/>"


def disk(image: Path, target: str, more: str = "") -> str:
    """Return a raw disk of a definition.

    :param more: elements that it has besides.
    """
    return _DISK.format(image=image, target=target, more=more)


def domain(binary: Path, *disks: str, memory_bytes: int = MEMORY_BYTES) -> str:
    """Return the definition of a guest with these disks, with a uuid that no other has."""
    shown = "\n    ".join(disks)
    return _DOMAIN.format(name=GUEST, uuid=uuid.uuid4(), memory=memory_bytes, binary=binary, disks=shown)


class Libvirtd(LibvirtDaemon):
    """One libvirtd with one guest. A context manager, ``async``.

    :param cgroups: ``False`` where it is not to put guests into control groups.
    """

    def __init__(self, host: LabHost, directory: Path, *, cgroups: bool) -> None:
        super().__init__(host, directory, cgroups=cgroups)
        #: Of the guest: its serial port and a monitor that libvirt leaves alone, as seen from outside.
        self.serial = directory / "run" / "guest.serial"
        self.qmp = directory / "run" / "guest.qmp"

    async def create(self, image: Path, binary: Path, *, memory_bytes: int = MEMORY_BYTES) -> None:
        """Start the guest."""
        shared = disk(image, "vda", _SHARED)
        await self.create_domain(domain(binary, shared, memory_bytes=memory_bytes))

    async def create_domain(self, definition: str) -> None:
        """Start a guest by libvirt's definition of it; its name is to be :data:`GUEST`."""
        for path in (self.serial, self.qmp):
            path.unlink(missing_ok=True)
        domain = self.directory / "domain.xml"
        domain.write_text(definition)
        await self.virsh("create", str(domain))

    async def destroy(self) -> None:
        """Kill the guest, if it is here."""
        with contextlib.suppress(Unavailable):
            await self.virsh("destroy", GUEST)

    def count_beats(self) -> int:
        """Return how often the guest has said here that it runs."""
        return self.serial.read_bytes().count(b"B") if self.serial.exists() else 0

    async def wait_guest(self) -> None:
        """Wait for a beat that was not there yet."""
        before, deadline = self.count_beats(), time.monotonic() + _PATIENCE_SECONDS
        while self.count_beats() <= before:
            if time.monotonic() > deadline:
                raise Unavailable(f"the guest does not run on {self.host.name}")
            await asyncio.sleep(0.005)

    async def monitor(self, stack: AsyncExitStack) -> RawMonitor:
        """The guest's own monitor as soon as there is one, open until the end of ``stack``."""
        while True:
            try:
                return await stack.enter_async_context(RawMonitor(self.qmp))
            except (FileNotFoundError, ConnectionError):
                await asyncio.sleep(0.005)


def remove_cgroups() -> None:
    """Remove the control groups that libvirtd leaves empty."""
    for machines in [*Path("/sys/fs/cgroup").glob("machine"), *Path("/sys/fs/cgroup").glob("*/machine")]:
        inside = sorted(machines.glob(f"qemu-*-{GUEST}.libvirt-qemu/**/"), reverse=True)
        for group in [*inside, machines]:
            with contextlib.suppress(OSError):  # not empty: somebody else's
                group.rmdir()
