"""What one QEMU has been given: devices, backends, disks and where they are; read over QMP, nothing changed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from migrator.errors import CommandFailed
from migrator.qemu import marks
from migrator.qemu.backends import Netdev, Nodes, block_nodes, netdevs
from migrator.qemu.cmdline import Live
from migrator.qemu.monitor import Monitor

#: Where QEMU keeps what has an id; what has none is beside it.
PERIPHERAL = "/machine/peripheral"
#: Seconds that one command may take here.
ASK_SECONDS = 20.0
#: What says where on its bus a device sits.
_PLACES = ("addr", "nr", "scsi-id", "lun", "channel", "port", "unit")
_LIMITS = (
    *("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"),
    *("bps_max", "bps_rd_max", "bps_wr_max", "iops_max", "iops_rd_max", "iops_wr_max"),
    *("bps_max_length", "bps_rd_max_length", "bps_wr_max_length"),
    *("iops_max_length", "iops_rd_max_length", "iops_wr_max_length", "iops_size", "group"),
)
#: A line of ``info usb``.
_USB = re.compile(r"^ *Device [\d.]+, Port (?P<port>[\d.]+), .*, ID: (?P<id>\S+?)\r?$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Plugged:
    """One device that can be plugged and unplugged."""

    #: In QOM.
    path: str
    #: Empty where it has none.
    id: str
    driver: str
    #: QOM path of the bus it sits on; empty where it needs none.
    bus: str = ""
    #: Of a USB bus, which its properties do not tell where QEMU has chosen it.
    port: str = ""


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What one QEMU has, its built-in devices aside."""

    devices: tuple[Plugged, ...]
    #: Type of every user-created object, by id; our own marks are left out.
    objects: dict[str, str]
    netdevs: dict[str, Netdev]
    #: How query-chardev shows each.
    chardevs: dict[str, str]
    nodes: Nodes
    #: Ids of drives.
    drives: frozenset[str]
    #: QOM path of every vCPU that was plugged, with its place in the topology.
    cpus: dict[str, dict[str, Any]]
    #: What each device that has a disk calls it, by its QOM path.
    disks: dict[str, str]
    #: Limits that were set on each device's disk, as block_set_io_throttle takes them; those without are left out.
    throttles: dict[str, dict[str, Any]]
    #: Of every drive whose medium can be changed: the device's QOM path, and the file in it (empty: none).
    media: dict[str, str]

    def live(self) -> Live:
        """As :func:`migrator.qemu.cmdline.replicate` wants it."""
        return Live(
            devices=frozenset(device.id for device in self.devices),
            objects=frozenset(self.objects),
            netdevs=frozenset(self.netdevs),
            chardevs=frozenset(self.chardevs),
            nodes=frozenset(self.nodes.nodes),
            drives=self.drives,
        )


async def take_inventory(monitor: Monitor) -> Inventory:
    """Read it; two pipelined round trips, nothing is changed.

    :raise QemuError: when it cannot be asked.
    """
    named, unnamed, objects, cpus, nodes, graph, blocks, network, chardevs, usb = await asyncio.gather(
        ask(monitor, "qom-list", path=PERIPHERAL),
        ask(monitor, "qom-list", path=f"{PERIPHERAL}-anon"),
        ask(monitor, "qom-list", path="/objects"),
        ask(monitor, "query-hotpluggable-cpus", otherwise=[]),
        ask(monitor, "query-named-block-nodes", flat=True),
        ask(monitor, "x-debug-query-block-graph", otherwise={"nodes": [], "edges": []}),
        ask(monitor, "query-block"),
        ask(monitor, "human-monitor-command", **{"command-line": "info network"}),
        ask(monitor, "query-chardev"),
        ask(monitor, "human-monitor-command", **{"command-line": "info usb"}),
    )
    devices = [(f"{PERIPHERAL}/{name}", name, kind) for name, kind in _children(named)]
    devices += [(f"{PERIPHERAL}-anon/{name}", "", kind) for name, kind in _children(unnamed)]
    buses = await asyncio.gather(
        *(ask(monitor, "qom-get", path=path, property="parent_bus", otherwise="") for path, _, _ in devices)
    )
    ports = {found["id"]: found["port"] for found in _USB.finditer(usb)}
    return Inventory(
        devices=tuple(
            Plugged(path=path, id=identity, driver=kind, bus=bus or "", port=ports.get(identity, ""))
            for (path, identity, kind), bus in zip(devices, buses, strict=True)
        ),
        objects={name: kind for name, kind in _children(objects) if not name.startswith(marks.PREFIX)},
        netdevs=netdevs(network),
        chardevs={entry["label"]: entry["filename"] for entry in chardevs},
        nodes=block_nodes(nodes, graph, blocks),
        drives=frozenset(block["device"] for block in blocks if block["device"]),
        cpus={cpu["qom-path"]: cpu["props"] for cpu in cpus if "qom-path" in cpu},
        disks={
            block["qdev"]: block["device"] or block["inserted"]["node-name"]
            for block in blocks
            if block.get("qdev") and "inserted" in block
        },
        throttles={
            block["qdev"]: limits for block in blocks if block.get("qdev") and (limits := _limits(block))
        },
        media={
            block["qdev"]: block.get("inserted", {}).get("file", "")
            for block in blocks
            if block.get("removable") and block.get("qdev")
        },
    )


def _limits(block: dict[str, Any]) -> dict[str, Any]:
    shown = block.get("inserted", {})
    limits = {name: shown[name] for name in _LIMITS if name in shown}
    return limits if any(limits.get(name) for name in _LIMITS[:6]) else {}


async def places(monitor: Monitor, devices: Iterable[Plugged]) -> dict[str, dict[str, str]]:
    """Where QEMU, or somebody, has put each device that has an id, as its own properties say it.

    :raise QemuError: when it cannot be asked.
    """

    async def place(device: Plugged) -> dict[str, str]:
        values = await asyncio.gather(
            *(ask(monitor, "qom-get", path=device.path, property=name, otherwise="") for name in _PLACES)
        )
        found = {
            name: str(value) for name, value in zip(_PLACES, values, strict=True) if value not in ("", -1)
        }
        if "addr" in found:
            found["addr"] = pci_address(int(found["addr"]))
        return found | {"bus": device.bus.rpartition("/")[2]} | ({"port": device.port} if device.port else {})

    seated = [device for device in devices if device.id and device.bus]
    return dict(zip([device.id for device in seated], await asyncio.gather(*map(place, seated)), strict=True))


def pci_address(value: Any) -> Any:
    """As device_add wants the ``addr`` that QEMU shows as a number."""
    return f"{value >> 3:x}.{value & 7:x}" if isinstance(value, int) else value


async def ask(monitor: Monitor, command: str, *, otherwise: Any = None, **arguments: Any) -> Any:
    """The answer; `otherwise`, if that is given, where this QEMU has no such thing."""
    try:
        return await monitor.execute(command, arguments or None, timeout=ASK_SECONDS)
    except CommandFailed:
        if otherwise is None:
            raise
        return otherwise


def _children(listing: Iterable[dict[str, str]]) -> list[tuple[str, str]]:
    return [(entry["name"], entry["type"][6:-1]) for entry in listing if entry["type"].startswith("child<")]
