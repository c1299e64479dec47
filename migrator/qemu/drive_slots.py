"""Names for a guest's drives and devices that every version of QEMU gives them alike.

QEMU numbers what has no id in the order in which it happens to make it: ``/machine/unattached/device[23]`` is the disk
that another version calls ``device[4]``. What the guest sees does not depend on that: which drive it is, on which bus
a device sits and where on it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from migrator.errors import CommandFailed
from migrator.qemu.monitor import Monitor
from migrator.qemu.querying import query

#: Where QEMU keeps what has an id; what has none is beside it.
PERIPHERAL = "/machine/peripheral"
#: Properties that say where on its bus a device sits.
BUS_ADDRESS_PROPERTIES = ("addr", "nr", "scsi-id", "lun", "channel", "port", "unit")
#: What QEMU puts behind a virtio device to say where its disk is; a person knows the disk by the device.
_BACKEND = "/virtio-backend"
_NUMBERED = re.compile(r"/machine/(?:unattached|peripheral-anon)/device\[\d+\]")


@dataclass(frozen=True, kw_only=True)
class DriveSlot:
    """One drive of a guest, whether or not something is in it."""

    #: The same in every QEMU that has this guest: the id of the device, else of the drive, else the device's place.
    name: str
    #: Name by which this one QEMU knows it, and takes for an id in commands about drives.
    handle: str
    #: Its entry in query-block.
    block: Mapping[str, Any]

    @property
    def inserted(self) -> Mapping[str, Any]:
        """QEMU's description of the medium in it; empty where there is none."""
        found: Mapping[str, Any] = self.block.get("inserted") or {}
        return found


async def read_drive_slots(monitor: Monitor, blocks: Sequence[Mapping[str, Any]]) -> list[DriveSlot]:
    """Read the drives of query-block under names that every QEMU gives them alike.

    :param blocks: what query-block answered a moment ago.
    :raise QemuError: when it cannot be asked.
    """
    names = await asyncio.gather(*(_name(monitor, block) for block in blocks))
    # A drive may have the id that another's device has.
    of_devices = {name for name, block in zip(names, blocks, strict=True) if name != block["device"]}
    names = [
        f"drive {name}" if name == block["device"] and name in of_devices else name
        for name, block in zip(names, blocks, strict=True)
    ]
    return [
        DriveSlot(name=name, handle=block.get("qdev") or block["device"], block=block)
        for name, block in zip(names, blocks, strict=True)
    ]


async def read_inserted(monitor: Monitor, device: str) -> Mapping[str, Any]:
    """Return QEMU's description of the medium in a drive, by the name that every QEMU gives that alike.

    :param device: as of :class:`DriveSlot`, or as records of earlier versions have it.
    :raise CommandFailed: there is no such drive, or nothing in it.
    :raise QemuError: when it cannot be asked.
    """
    blocks = await monitor.execute("query-block")
    for slot in await read_drive_slots(monitor, blocks):
        if slot.name == device.removesuffix(_BACKEND) and slot.inserted:
            return slot.inserted
    raise CommandFailed(monitor.name, "query-block", "DeviceNotFound", f"there is no disk {device}")


async def _name(monitor: Monitor, block: Mapping[str, Any]) -> str:
    path = str(block.get("qdev") or "")
    numbered = _NUMBERED.match(path)
    if path and not numbered:
        return path.removeprefix(f"{PERIPHERAL}/").removesuffix(_BACKEND)
    if numbered is None or block["device"]:
        return str(block["device"])
    driver, bus, place = await asyncio.gather(
        query(monitor, "qom-get", path=numbered[0], property="type", otherwise="device"),
        *_where(monitor, numbered[0]),
    )
    return " ".join(
        [str(driver), "at", str(bus).rpartition("/")[2], *(f"{k}={v}" for k, v in sorted(place.items()))]
    )


def _where(monitor: Monitor, path: str) -> tuple[Any, Any]:
    return query(monitor, "qom-get", path=path, property="parent_bus", otherwise=""), read_bus_address(
        monitor, path
    )


async def read_bus_address(monitor: Monitor, path: str) -> dict[str, str]:
    """Read where on its bus a device sits, as its own properties say it and as device_add takes it.

    :raise QemuError: when it cannot be asked.
    """
    values = await asyncio.gather(
        *(
            query(monitor, "qom-get", path=path, property=name, otherwise="")
            for name in BUS_ADDRESS_PROPERTIES
        )
    )
    found = {
        name: str(value)
        for name, value in zip(BUS_ADDRESS_PROPERTIES, values, strict=True)
        if value not in ("", -1)
    }
    if "addr" in found:
        found["addr"] = pci_address(int(found["addr"])) if found["addr"].isdecimal() else found["addr"]
    return found


def pci_address(value: Any) -> Any:
    """Turn the ``addr`` that QEMU shows as a number into the text that device_add wants."""
    return f"{value >> 3:x}.{value & 7:x}" if isinstance(value, int) else value
