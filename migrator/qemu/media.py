"""Media in a guest's drives, made the same in another QEMU that has the drives."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process.command_line import path_of
from migrator.core.process.image_paths import TargetImage
from migrator.qemu.backends import Command
from migrator.qemu.device_inventory import DeviceInventory, limits_of
from migrator.qemu.drive_slots import DriveSlot


def media_changes(
    here: DeviceInventory, there: DeviceInventory, made: Collection[str], images: Mapping[str, TargetImage]
) -> Iterator[Command]:
    """Yield the commands that give the drives that both have the media and the limits of the first.

    :param made: names of nodes and drives that the other has already.
    :param images: those that have another path there, by their paths here.
    :raise Refused: when QEMU does not show enough of a medium to have it again.
    """
    for name, drive in here.drives.items():
        other = there.drives.get(name)
        if other is None:
            continue
        if drive.block.get("removable") and _medium(drive, images) != _medium(other, {}):
            yield from _change(here, drive, other, made)
        limits = limits_of(drive)
        if limits_of(other) != limits and drive.inserted:
            yield "block_set_io_throttle", {**_of(other), **(limits or _UNLIMITED)}


_UNLIMITED = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)


def _of(drive: DriveSlot) -> dict[str, str]:
    return {"id": drive.handle} if drive.block.get("qdev") else {"device": drive.handle}


def _node(drive: DriveSlot) -> str:
    """Return the node's name if somebody has given it one; those that QEMU makes up differ from process to process."""
    name = str(drive.inserted.get("node-name", ""))
    return "" if name.startswith("#") else name


def _medium(drive: DriveSlot, images: Mapping[str, TargetImage]) -> tuple[Any, ...]:
    there = drive.inserted
    return (_there(there["file"], images), there["drv"], there["ro"], _node(drive)) if there else ()


def _change(
    here: DeviceInventory, drive: DriveSlot, other: DriveSlot, made: Collection[str]
) -> Iterator[Command]:
    at, there = _of(other), drive.inserted
    if not there:
        yield "eject", {**at, "force": True}
    elif node := _node(drive):
        yield from here.nodes.commands(node, tuple(made))
        yield "blockdev-open-tray", {**at, "force": True}
        if other.inserted:
            yield "blockdev-remove-medium", at
        yield "blockdev-insert-medium", {**at, "node-name": node}
        yield "blockdev-close-tray", at
    else:
        # Never left to QEMU's guess: a guest can write a header into a raw medium.
        how = "read-only" if there["ro"] else "read-write"
        yield (
            "blockdev-change-medium",
            {**at, "filename": there["file"], "format": there["drv"], "read-only-mode": how, "force": True},
        )


def _there(file: str, images: Mapping[str, TargetImage]) -> str:
    return images[path_of(file)].path if path_of(file) in images else file


def media_differences(
    here: DeviceInventory,
    there: DeviceInventory,
    images: Mapping[str, TargetImage],
    made: Collection[str],
) -> Iterator[Finding]:
    """Yield a finding for each drive whose media are not the same files, whatever was done about it.

    :param made: drives whose images were made there: what these are based on need not be the same.
    """
    for name, drive in here.drives.items():
        other = there.drives.get(name)
        if other is None or not drive.inserted or not other.inserted:
            continue  # said of the device, or of its medium
        mine = [
            (_there(file, images), driver) for file, driver in here.nodes.chain(drive.inserted["node-name"])
        ]
        theirs = there.nodes.chain(other.inserted["node-name"])
        if name in made:
            mine, theirs = mine[:1], theirs[:1]
        if mine != theirs:
            yield finding(
                "disk-not-shared",
                f"disk {name} is {_shown(mine)} now, but the destination has opened {_shown(theirs)}: it was changed "
                "by a snapshot or a copy while the guest ran",
                "merge it into one file (block-commit), or start the destination by a template",
            )


def _shown(chain: list[tuple[str, str]]) -> str:
    return ", based on ".join(f"{file} ({driver})" for file, driver in chain)
