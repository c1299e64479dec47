"""Devices that a guest was given and has lost since its QEMU was started, made the same in another QEMU.

The source is compared with the destination as it came up, not with a command line: whatever the source has and the
destination lacks is added over QMP, at the same bus and address, before the destination listens.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.preflight.host_network import NUMBERS_NETWORKS_SINCE
from migrator.core.process.image_paths import TargetImage
from migrator.errors import CommandFailed, Refused
from migrator.qemu import media
from migrator.qemu.backends import Command, chardev_add, netdev_add
from migrator.qemu.block_graph import lasting_name
from migrator.qemu.device_inventory import DeviceInventory, PluggedDevice, read_inventory
from migrator.qemu.drive_slots import PERIPHERAL, pci_address
from migrator.qemu.image_locations import relocated_node
from migrator.qemu.monitor import Monitor
from migrator.qemu.querying import QUERY_SECONDS, query

#: Properties that QEMU lists among a device's arguments but sets by itself.
_NOT_GIVEN = frozenset({"size", "busnr", "crash-information", "thread-id"})
#: Objects that serve others come first.
_FIRST_OBJECTS = ("secret", "thread-context", "authz-", "tls-creds", "can-bus")
#: Objects that watch or change traffic for somebody at the source: not the guest's.
_NOT_THE_GUESTS = ("filter-", "colo-")
#: How QEMU names an argument that it does not take; some are set by QEMU alone.
_REFUSED = re.compile(
    r"'(?:[\w.-]+\.)?(?P<name>[\w-]+)' (?:(?P<set>is read-only|is not writable)|is unexpected|not found)"
)
#: Properties in which 0 stands for nothing given, and cannot be given.
_UNSET_AT_ZERO = frozenset({"label-size", "hugetlbsize", "align"})
#: Those in which nothing stands for none at all, where a device that is told nothing takes its own.
_NONE_IF_EMPTY = frozenset({"romfile"})


async def replicate_devices(
    source: Monitor,
    destination: Monitor,
    *,
    run_directory: str,
    same_files: bool = True,
    images: Mapping[str, TargetImage] = MappingProxyType({}),
    made: Collection[str] = (),
    same_machine: bool = False,
) -> tuple[Finding, ...]:
    """Give the destination, which does not listen yet, all that the source has and it lacks.

    :param run_directory: where the destination's sockets are.
    :param same_files: disks have the same names on both sides, but for those of `images`.
    :param images: those that have another path there, by their paths here.
    :param made: disks whose images were made there.
    :param same_machine: a file that one has mapped is the one that the other would map.
    :returns: what is not the same even so.
    :raise Refused: QEMU does not show enough of something to make it again.
    :raise CommandFailed: the destination refused one of them; some may have been added.
    """
    here, there = await asyncio.gather(read_inventory(source), read_inventory(destination))
    added = _in_order(_lacking(here.devices, there.devices), here)
    for name, kind in _objects_in_order(here.objects):
        if name not in there.objects and not kind.startswith(_NOT_THE_GUESTS):
            given = await _object(source, name, kind)
            if same_machine and given.get("share") and given.get("mem-path"):
                raise Refused(
                    f"memory {name} is the file {given['mem-path']}, which both would write into on one machine: "
                    "unplug it, or choose a target on another machine"
                )
            await _add(destination, "object-add", given)
    nodes = {name for name in there.nodes.nodes if not name.startswith("#")}
    known = {*nodes, *there.drive_ids, *there.netdevs, *there.chardevs}
    for device in added:
        if device.path in here.cpus:
            arguments: dict[str, Any] = {"driver": device.driver, **here.cpus[device.path]}
        else:
            arguments = await _arguments(source, destination, device, here.disks)
            for command, backend in await _behind(source, here, device, arguments, known, run_directory):
                await _add(destination, command, relocated_node(backend, images))
                known.add(str(backend.get("node-name") or backend["id"]))
        if device.id:
            arguments["id"] = device.id
        await _add(destination, "device_add", arguments)
    for command, change in _networks(here, there):
        await _add(destination, command, change)
    for command, change in media.media_changes(here, await read_inventory(destination), known, images):
        await _add(destination, command, relocated_node(change, images))
    differing = [found for device in added for found in await _compare(source, destination, device)]
    if same_files:
        differing += media.media_differences(here, await read_inventory(destination), images, made)
    return tuple(differing)


def _networks(here: DeviceInventory, there: DeviceInventory) -> Iterator[Command]:
    """Networks on which no card hangs, and cards that have lost theirs: either may be a part of the stream."""
    numbered = [each.version >= NUMBERS_NETWORKS_SINCE for each in (here, there)]
    for name in sorted(here.dead_netdevs - there.dead_netdevs):
        # One of QEMU's own that was removed stays in the stream of later versions, and is no more in earlier ones.
        if here.netdevs[name].kind != "user" or numbered != [True, False]:
            yield "netdev_del", {"id": name}
    for name, netdev in here.netdevs.items():
        loose = netdev.successor or (None if netdev.attached or name in there.netdevs else netdev)
        if loose is not None and not name.startswith("#"):
            yield netdev_add(name, loose, vhost=False)
    for name, netdev in there.netdevs.items():
        if name not in here.netdevs and not netdev.attached and not name.startswith("#"):
            yield "netdev_del", {"id": name}


def _lacking(here: Sequence[PluggedDevice], there: Sequence[PluggedDevice]) -> list[PluggedDevice]:
    def key(device: PluggedDevice) -> tuple[object, ...]:
        """Return the key that tells a device from all others of its QEMU, and is the same in another QEMU."""
        if device.id:
            return (device.id,)
        return device.driver, device.bus.rpartition("/")[2], device.place

    left = Counter(key(device) for device in there)
    lacking = []
    for device in here:
        if left[key(device)]:
            left[key(device)] -= 1
        else:
            lacking.append(device)
    return lacking


def _in_order(devices: Sequence[PluggedDevice], here: DeviceInventory) -> list[PluggedDevice]:
    """Sort devices: vCPUs first, then memory, then whatever sits on a bus after the device that has that bus."""
    paths = {device.path for device in here.devices}

    def rank(device: PluggedDevice) -> tuple[int, int, int, str]:
        depth = 0
        at: PluggedDevice | None = device
        while at is not None and depth <= len(paths):
            holder = "/".join(at.bus.split("/")[:4])
            at = next((other for other in here.devices if other.path == holder), None)
            depth += 1
        kind = 0 if device.path in here.cpus else 1 if not device.bus else 2
        return kind, depth, device.port.count("."), device.path

    return sorted(devices, key=rank)


def _objects_in_order(objects: dict[str, str]) -> list[tuple[str, str]]:
    def rank(entry: tuple[str, str]) -> tuple[int, str]:
        kinds = [n for n, kind in enumerate(_FIRST_OBJECTS) if entry[1].startswith(kind)]
        return (kinds or [len(_FIRST_OBJECTS)])[0], entry[0]

    return sorted(objects.items(), key=rank)


async def _object(source: Monitor, name: str, kind: str) -> dict[str, Any]:
    path = f"/objects/{name}"
    listing = await query(source, "qom-list", path=path)
    names = [
        entry["name"]
        for entry in listing
        if entry["name"] not in ("type", "loaded", "opened")
        and not entry["name"].startswith("x-")
        and not entry["type"].startswith("child<")
    ]
    values = await asyncio.gather(
        *(query(source, "qom-get", path=path, property=name, otherwise="") for name in names)
    )
    given = {
        key: value
        for key, value in zip(names, values, strict=True)
        if value not in ("", [], None) and not (key in _UNSET_AT_ZERO and not value)
    }
    return {"qom-type": kind, "id": name, **given}


async def _properties(monitor: Monitor, device: PluggedDevice) -> dict[str, tuple[str, Any, Any]]:
    """Return type, default and value of every property of a device, by the property's name."""
    listing = await query(monitor, "device-list-properties", typename=device.driver)
    listing = [entry for entry in listing if not entry["type"].startswith("child<")]
    unreadable = object()
    values = await asyncio.gather(
        *(
            query(monitor, "qom-get", path=device.path, property=entry["name"], otherwise=unreadable)
            for entry in listing
        )
    )
    return {
        entry["name"]: (entry["type"], entry.get("default-value"), value)
        for entry, value in zip(listing, values, strict=True)
        if value is not unreadable and not isinstance(value, dict)  # that is a state, not an argument
    }


def _is_default(of: tuple[str, Any, Any]) -> bool:
    # Neither was told then, and the machine type sees to it that the guest sees the same; what another version shows
    # for it may be written differently (rombar: 1, or -1), or be what it has worked out (physical_block_size).
    return bool(of[1] is not None and of[1] == of[2])


async def _arguments(
    source: Monitor, destination: Monitor, device: PluggedDevice, disks: dict[str, str]
) -> dict[str, Any]:
    """Return the arguments with which device_add makes the same device."""
    taken = {
        entry["name"] for entry in await query(destination, "device-list-properties", typename=device.driver)
    }
    arguments: dict[str, Any] = {"driver": device.driver}
    if device.bus:
        arguments["bus"] = device.bus.rpartition("/")[2]
    for name, (kind, default, value) in (await _properties(source, device)).items():
        # What begins with x- is set by the machine type, there as here.
        if name in _NOT_GIVEN or name.startswith("x-") or name not in taken:
            continue
        if value == "" and name in _NONE_IF_EMPTY:
            arguments[name] = value
        if value in (default, "", [], None) or (name == "bootindex" and value < 0):
            continue
        if name in _UNSET_AT_ZERO and not value:
            continue
        if kind.startswith("link<"):
            elsewhere = str(value).startswith(("/objects/", f"{PERIPHERAL}/"))
            if not elsewhere or str(value).startswith(f"{device.path}/"):
                continue  # to a part of itself or of the machine
        arguments[name] = pci_address(value) if name == "addr" and kind in ("int32", "str") else value
    if device.port:
        arguments["port"] = device.port
    if "drive" in taken and "drive" not in arguments:  # usb-storage hands it on to a disk within
        within = [disk for path, disk in disks.items() if path.startswith(f"{device.path}/")]
        arguments |= {"drive": within[0]} if within else {}
    return arguments


async def _behind(
    source: Monitor,
    here: DeviceInventory,
    device: PluggedDevice,
    arguments: dict[str, Any],
    made: set[str],
    run_directory: str,
) -> list[Command]:
    """Return the commands that make what the device needs, to be carried out before it is added."""
    commands: list[Command] = []
    if drive := arguments.get("drive"):
        commands += here.nodes.commands(drive, tuple(made))
        arguments["drive"] = lasting_name(drive)
    if (netdev := arguments.get("netdev")) and netdev not in made:
        if netdev not in here.netdevs:
            raise Refused(f"device {device.id or device.driver} names {netdev}, which QEMU does not show")
        shown = await query(
            source, "x-query-virtio-status", path=f"{device.path}/virtio-backend", otherwise={}
        )
        commands.append(netdev_add(netdev, here.netdevs[netdev], vhost=bool(shown.get("vhost-started"))))
    if (chardev := arguments.get("chardev")) and chardev not in made:
        commands.append(chardev_add(chardev, here.chardevs.get(chardev, "nothing"), run_directory))
    return commands


async def _add(destination: Monitor, command: str, arguments: dict[str, Any]) -> None:
    """Execute a command without arguments that nobody can give, or that this QEMU lacks and that change nothing."""
    while True:
        try:
            await destination.execute(command, arguments, timeout=QUERY_SECONDS)
        except CommandFailed as error:
            said = _REFUSED.search(error.description)
            name = said["name"] if said else ""
            if said is None or name not in arguments:
                raise _named(error, arguments) from error
            if not said["set"] and arguments[name] not in (False, 0, "auto", "off"):
                raise _named(error, arguments) from error
            arguments = {key: value for key, value in arguments.items() if key != name}
        else:
            return


def _named(error: CommandFailed, arguments: dict[str, Any]) -> CommandFailed:
    name = arguments.get("id") or arguments.get("node-name") or arguments.get("driver")
    return CommandFailed(error.where, f"{error.command} {name}", error.error_class, error.description)


async def _compare(source: Monitor, destination: Monitor, device: PluggedDevice) -> list[Finding]:
    """Compare every property of a device that was added on both sides."""
    if not device.id or device.driver.endswith("-cpu"):
        return []
    here, there = await asyncio.gather(_properties(source, device), _properties(destination, device))
    if device.port and "port" in here:
        here["port"] = (*here["port"][:2], device.port)  # it was told there what was chosen here
    bus = await query(destination, "qom-get", path=device.path, property="parent_bus", otherwise="")
    differing = [
        f"{name} {here[name][2]!r} against {there[name][2]!r}"
        for name in sorted(here.keys() & there.keys() - _NOT_GIVEN)
        if here[name][2] != there[name][2] and not _is_default(here[name])
    ]
    if (bus or "") != device.bus:
        differing.insert(0, f"bus {device.bus} against {bus}")
    if not differing:
        return []
    said = f"device {device.id} ({device.driver}) could not be made the same at the destination"
    return [finding("device-property", f"{said}: {'; '.join(differing)}")]
