"""The inventory of one QEMU: devices, backends, disks and their places; read over QMP, nothing changed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from migrator.core.preflight.host_network import NUMBERS_NETWORKS_SINCE
from migrator.core.process.options import read
from migrator.errors import CommandFailed
from migrator.qemu import marks
from migrator.qemu.backends import Netdev, netdevs
from migrator.qemu.block_graph import Nodes, block_nodes
from migrator.qemu.current_command_line import lacks_devices
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.drive_slots import PERIPHERAL, DriveSlot, read_bus_address, read_drive_slots
from migrator.qemu.monitor import Monitor
from migrator.qemu.querying import QUERY_SECONDS, query

_LIMITS = (
    *("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"),
    *("bps_max", "bps_rd_max", "bps_wr_max", "iops_max", "iops_rd_max", "iops_wr_max"),
    *("bps_max_length", "bps_rd_max_length", "bps_wr_max_length"),
    *("iops_max_length", "iops_rd_max_length", "iops_wr_max_length", "iops_size", "group"),
)
#: A line of ``info usb``.
_USB = re.compile(r"^ *Device [\d.]+, Port (?P<port>[\d.]+), .*, ID: (?P<id>\S+?)\r?$", re.MULTILINE)


#: The end of the QOM path of a device that has no id.
_NAMELESS = re.compile(r"/peripheral-anon/device\[(\d+)\]$")


@dataclass(frozen=True, kw_only=True)
class PluggedDevice:
    """One device that can be plugged and unplugged."""

    #: In QOM.
    path: str
    #: Empty where it has none.
    id: str
    driver: str
    #: QOM path of the bus it sits on; empty where it needs none.
    bus: str = ""
    #: Port of a USB bus, which its properties do not tell where QEMU has chosen it.
    port: str = ""
    #: Where on its bus it sits, of one without an id: that tells it from others of its kind.
    place: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeviceInventory:
    """Everything that one QEMU has, its built-in devices aside."""

    #: Major and minor.
    version: tuple[int, int]
    devices: tuple[PluggedDevice, ...]
    #: Type of every user-created object, by id; our own marks are left out.
    objects: dict[str, str]
    netdevs: dict[str, Netdev]
    #: Backends that were removed, and on which a card still hangs.
    dead_netdevs: frozenset[str]
    #: How query-chardev shows each.
    chardevs: dict[str, str]
    nodes: Nodes
    #: QOM path of every vCPU that was plugged, with its place in the topology.
    cpus: dict[str, dict[str, Any]]
    #: Every drive, by the name that it has in every QEMU.
    drives: Mapping[str, DriveSlot]
    #: Ids of its VNC servers.
    vnc: frozenset[str] = frozenset()

    @property
    def drive_ids(self) -> frozenset[str]:
        """Ids of the drives that have one."""
        return frozenset(drive.block["device"] for drive in self.drives.values() if drive.block["device"])

    @property
    def disks(self) -> dict[str, str]:
        """Name of the disk of each device that has one, by the QOM path of the device."""
        return {
            drive.handle: drive.block["device"] or drive.inserted["node-name"]
            for drive in self.drives.values()
            if drive.block.get("qdev") and drive.inserted
        }

    def current_devices(self) -> CurrentDevices:
        """Return the part that :func:`migrator.qemu.current_command_line.current_command_line` needs."""
        return CurrentDevices(
            devices={device.id: device.driver for device in self.devices if device.id},
            nameless={
                int(found[1]): device.driver
                for device in self.devices
                if (found := _NAMELESS.search(device.path))
            },
            objects=self.objects,
            netdevs=self.netdevs,
            dead_netdevs=self.dead_netdevs,
            numbers_networks=self.version >= NUMBERS_NETWORKS_SINCE,
            chardevs=self.chardevs,
            nodes=self.nodes,
            drives=tuple(self.drives.values()),
            vnc=self.vnc,
        )


async def read_inventory(monitor: Monitor) -> DeviceInventory:
    """Read the inventory in three pipelined round trips; nothing is changed.

    :raise QemuError: when it cannot be asked.
    """
    (
        version,
        named,
        unnamed,
        objects,
        cpus,
        nodes,
        graph,
        blocks,
        network,
        chardevs,
        usb,
        vnc,
    ) = await asyncio.gather(
        query(monitor, "query-version"),
        query(monitor, "qom-list", path=PERIPHERAL),
        query(monitor, "qom-list", path=f"{PERIPHERAL}-anon"),
        query(monitor, "qom-list", path="/objects"),
        query(monitor, "query-hotpluggable-cpus", otherwise=[]),
        query(monitor, "query-named-block-nodes", flat=True),
        query(monitor, "x-debug-query-block-graph", otherwise={"nodes": [], "edges": []}),
        query(monitor, "query-block"),
        query(monitor, "human-monitor-command", **{"command-line": "info network"}),
        query(monitor, "query-chardev"),
        query(monitor, "human-monitor-command", **{"command-line": "info usb"}),
        query(monitor, "query-vnc-servers", otherwise=[]),
    )
    devices = [(f"{PERIPHERAL}/{name}", name, kind) for name, kind in _children(named)]
    devices += [(f"{PERIPHERAL}-anon/{name}", "", kind) for name, kind in _children(unnamed)]
    buses = await asyncio.gather(
        *(query(monitor, "qom-get", path=path, property="parent_bus", otherwise="") for path, _, _ in devices)
    )
    nameless = [path for path, identity, _ in devices if not identity]
    drives, found = await asyncio.gather(
        read_drive_slots(monitor, blocks),
        asyncio.gather(*(read_bus_address(monitor, path) for path in nameless)),
    )
    where = {path: tuple(sorted(place.items())) for path, place in zip(nameless, found, strict=True)}
    ports = {found["id"]: found["port"] for found in _USB.finditer(usb)}
    backends = netdevs(network)
    return DeviceInventory(
        version=(version["qemu"]["major"], version["qemu"]["minor"]),
        devices=tuple(
            PluggedDevice(
                path=path,
                id=identity,
                driver=kind,
                bus=bus or "",
                port=ports.get(identity, ""),
                place=where.get(path, ()),
            )
            for (path, identity, kind), bus in zip(devices, buses, strict=True)
        ),
        objects={name: kind for name, kind in _children(objects) if not name.startswith(marks.PREFIX)},
        netdevs=backends,
        dead_netdevs=await _dead(monitor, backends),
        chardevs={entry["label"]: entry["filename"] for entry in chardevs},
        nodes=block_nodes(nodes, graph, blocks, where=monitor.name),
        cpus={cpu["qom-path"]: cpu["props"] for cpu in cpus if "qom-path" in cpu},
        drives={drive.name: drive for drive in drives},
        vnc=frozenset(server["id"] for server in vnc),
    )


async def _dead(monitor: Monitor, backends: Mapping[str, Netdev]) -> frozenset[str]:
    """Return the network backends that are only shown because a card hangs on them."""

    async def is_dead(name: str) -> bool:
        # QEMU looks for the name before it looks for the descriptor, which there is not: nothing is made either way.
        attempt = {"type": "tap", "id": name, "fd": "migrator-no-such-descriptor"}
        try:
            await monitor.execute("netdev_add", attempt, timeout=QUERY_SECONDS)
        except CommandFailed as error:
            return "escriptor" in error.description
        return False

    names = [
        name
        for name, each in backends.items()
        if each.attached and not each.successor and not name.startswith("#")
    ]
    answers = await asyncio.gather(*(is_dead(name) for name in names))
    return frozenset(
        [name for name, dead in zip(names, answers, strict=True) if dead]
        + [name for name, each in backends.items() if each.successor]
    )


def limits_of(drive: DriveSlot) -> dict[str, Any]:
    """Return the limits that were set on a disk, as block_set_io_throttle takes them; empty where there are none."""
    limits = {name: drive.inserted[name] for name in _LIMITS if name in drive.inserted}
    return limits if any(limits.get(name) for name in _LIMITS[:6]) else {}


async def read_bus_addresses(monitor: Monitor, devices: Iterable[PluggedDevice]) -> dict[str, dict[str, str]]:
    """Read where QEMU, or somebody, has put each device, as its own properties say it; see
    :attr:`CurrentDevices.places`.

    :raise QemuError: when it cannot be asked.
    """

    async def place(device: PluggedDevice) -> tuple[str, dict[str, str]]:
        found = await read_bus_address(monitor, device.path)
        # QEMU makes up addresses in the order of the cards.
        mac = await query(monitor, "qom-get", path=device.path, property="mac", otherwise="")
        found |= {"mac": mac} if mac else {}
        number = _NAMELESS.search(device.path)
        return device.id or f"#{number[1] if number else ''}", (
            found | {"bus": device.bus.rpartition("/")[2]} | ({"port": device.port} if device.port else {})
        )

    return dict(await asyncio.gather(*(place(device) for device in devices if device.bus)))


async def read_current_devices(monitor: Monitor, argv: Sequence[str]) -> tuple[str, CurrentDevices]:
    """Read the type of the machine with its alias resolved, and the devices that the guest has now.

    :raise QemuError: when it cannot be asked.
    """
    kind, inventory = await asyncio.gather(
        query(monitor, "qom-get", path="/machine", property="type"), read_inventory(monitor)
    )
    machine, current_devices = str(kind).removesuffix("-machine"), inventory.current_devices()
    if lacks_devices(read(argv[1:]), machine=machine, current_devices=current_devices):
        current_devices = replace(
            current_devices, places=await read_bus_addresses(monitor, inventory.devices)
        )
    return machine, current_devices


def _children(listing: Iterable[dict[str, str]]) -> list[tuple[str, str]]:
    return [(entry["name"], entry["type"][6:-1]) for entry in listing if entry["type"].startswith("child<")]
