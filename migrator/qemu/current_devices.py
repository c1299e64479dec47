"""Devices and backends that a guest has now, as far as they bear on how another QEMU for it is started. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from migrator.core.process.options import Value
from migrator.qemu.backends import Netdev
from migrator.qemu.block_graph import Nodes
from migrator.qemu.drive_slots import DriveSlot

#: QEMU's other names for the drivers of devices, but for those that only leave out the bus.
_ALIASES = {"ahci": "ich9-ahci", "e1000-82540em": "e1000", "lsi": "lsi53c895a"}
_BUSES = ("-pci", "-ccw", "-device")


@dataclass(frozen=True, kw_only=True)
class CurrentDevices:
    """Devices and backends of the source as they are now; the rest of its command line was unplugged since its start.

    A field that is ``None`` was not asked for, and everything is taken to be there as the command line has it.
    """

    #: Driver of every device that has an id, and of those that have none by their number among these.
    devices: Mapping[str, str] | None = None
    nameless: Mapping[int, str] | None = None
    #: Type of every object.
    objects: Mapping[str, str] | None = None
    netdevs: Mapping[str, Netdev] | None = None
    #: Backends that were removed while a card hangs on them.
    dead_netdevs: Collection[str] = frozenset()
    #: Networks of QEMU's own stand in the stream by the order in which they were made.
    numbers_networks: bool = False
    #: How query-chardev shows each.
    chardevs: Mapping[str, str] | None = None
    nodes: Nodes | None = None
    drives: Collection[DriveSlot] | None = None
    #: Ids of its VNC servers.
    vnc: Collection[str] | None = None
    #: Of each device, by its id or ``#`` and its number: its bus and where on it it sits. Needed where something has
    #: gone: what QEMU places by itself moves up when something before it is left out.
    places: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def drive(self, identity: str) -> DriveSlot | None:
        """Return the drive of that id."""
        return next((drive for drive in self.drives or () if drive.block["device"] == identity), None)

    def of_device(self, device: str) -> DriveSlot | None:
        """Return the drive that belongs to a device, which goes by its id or ``#`` and its number."""
        for drive in self.drives or ():
            handle = drive.handle.removeprefix("/machine/peripheral/")
            if device.startswith("#"):
                handle = handle.replace("/machine/peripheral-anon/device[", "#").replace("]", "")
            if drive.block.get("qdev") and handle.partition("/")[0] == device:
                return drive
        return None

    def has(self, name: str, value: Value) -> bool:
        """Tell whether the thing that an option makes is still there and is still of the kind that the option says."""
        identity = value.get("node-name" if name == "blockdev" else "id")
        if name == "set":
            group, _, rest = str(value).partition(".")
            there = {"device": self.devices, "netdev": self.netdevs, "object": self.objects}.get(group)
            return there is None or rest.partition(".")[0] in there
        if not identity or value.get("failover_pair_id"):
            return True  # the partner of a card is hidden until the guest takes it, and again while it moves
        if name == "device" and self.devices is not None:
            return _is(self.devices.get(identity), value.get("driver"))
        if name == "object" and self.objects is not None:
            return self.objects.get(identity) == value.get("qom-type")
        if name == "netdev" and self.netdevs is not None:
            return identity in self.netdevs
        if name == "chardev" and self.chardevs is not None:
            return identity in self.chardevs
        if name == "blockdev" and self.nodes is not None:
            return identity in self.nodes.nodes
        return True

    def has_nameless(self, number: int, driver: str) -> bool:
        """Tell whether the device without an id of that number is still there."""
        return self.nameless is None or _is(self.nameless.get(number), driver)


def _is(there: str | None, driver: str) -> bool:
    """Tell whether a device is of that driver, as command lines name it."""
    return there in (driver, _ALIASES.get(driver, driver), *(f"{driver}{bus}" for bus in _BUSES))
