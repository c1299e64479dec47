"""QEMU's names for the drives of a command line: their ids, or names of its own where they have none. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from migrator.core.process.options import FIRST, Value, escape

#: Options that stand for a drive: its interface (empty: the machine's), its index, its medium.
_SHORT: dict[str, tuple[str, int | None, str]] = {
    "": ("", 0, "disk"),
    "hda": ("", 0, "disk"),
    "hdb": ("", 1, "disk"),
    "hdc": ("", 2, "disk"),
    "hdd": ("", 3, "disk"),
    "cdrom": ("", 2, "cdrom"),
    "fda": ("floppy", 0, ""),
    "fdb": ("floppy", 1, ""),
    "pflash": ("pflash", None, ""),
    "sd": ("sd", None, ""),
    "mtdblock": ("mtd", None, ""),
}
#: How many units a bus has, where drives are told apart by both.
_UNITS = {"ide": 2, "scsi": 7}


@dataclass(frozen=True, kw_only=True)
class NumberedDrive:
    """One drive of a command line."""

    #: Which of its options.
    option: int
    #: As query-block has it.
    id: str
    interface: str
    index: int
    #: Its place is written there, and does not follow from the drives before it.
    placed: bool
    #: The option as ``-drive`` has it.
    value: Value


def drives(options: Sequence[tuple[str, str | None]], machine: str) -> list[NumberedDrive]:
    """Return every drive of a command line, in order.

    :param machine: its type with the alias resolved.
    """
    default, units = _of_machine(machine)
    taken: set[tuple[str, int, int]] = set()
    found = []
    for number, (name, text) in enumerate(options):
        if name != "drive" and name not in _SHORT:
            continue
        value = _as_drive(name, text or "")
        interface = value.get("if") or default
        of_bus = units.get(interface, 0)
        index, bus, unit = (_number(value.get(key)) for key in ("index", "bus", "unit"))
        placed = index is not None or unit is not None
        if index is not None:
            bus, unit = (index // of_bus, index % of_bus) if of_bus else (0, index)
        elif unit is None:
            bus, unit = bus or 0, 0
            while (interface, bus, unit) in taken:
                unit += 1
                if of_bus and unit >= of_bus:
                    bus, unit = bus + 1, 0
        bus = bus or 0
        taken.add((interface, bus, unit))
        found.append(
            NumberedDrive(
                option=number,
                id=value.get("id") or _id(interface, bus, unit, of_bus, cd=value.get("media") == "cdrom"),
                interface=interface,
                index=bus * of_bus + unit,
                placed=placed,
                value=value,
            )
        )
    return found


def _of_machine(machine: str) -> tuple[str, dict[str, int]]:
    """The interface of drives that name none, and how many units the buses of each have."""
    if machine.startswith("microvm"):
        return "none", {**_UNITS, "none": 1}
    if machine.startswith("pc-q35"):
        return "ide", {**_UNITS, "ide": 1}
    if machine.startswith(("pc", "isapc")):
        return "ide", _UNITS
    return (
        "virtio",
        _UNITS,
    )  # as most others have it; of what is not so no drive is found, and nothing is changed


def _as_drive(name: str, text: str) -> Value:
    if name == "drive":
        return Value(text, first=FIRST["drive"])
    interface, index, media = _SHORT[name]
    parts = [f"if={interface}"] if interface else []
    parts += [] if index is None else [f"index={index}"]
    parts += [f"media={media}"] if media else []
    return Value(",".join([*parts, f"file={escape(text)}"]), first=FIRST["drive"])


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _id(interface: str, bus: int, unit: int, of_bus: int, *, cd: bool) -> str:
    medium = ("-cd" if cd else "-hd") if interface in ("ide", "scsi") else ""
    return f"{interface}{bus if of_bus else ''}{medium}{unit}"
