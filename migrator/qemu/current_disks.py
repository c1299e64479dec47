"""The disks of a command line brought up to date; a part of :mod:`migrator.qemu.current_command_line`. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process.command_line import path_of
from migrator.core.process.options import FIRST, Value, escape
from migrator.errors import Refused
from migrator.qemu.block_graph import Nodes, lasting_name
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.drive_ids import NumberedDrive
from migrator.qemu.drive_slots import DriveSlot

#: Keys about a drive, not about the image in it.
_OF_THE_DRIVE = ("id", "if", "index", "bus", "unit", "media", "werror", "rerror", "readonly", "read-only")
#: Keys about how a file is opened, whichever it is.
_OF_OPENING = (
    *("aio", "discard", "detect-zeroes", "cache", "cache.writeback", "cache.direct", "cache.no-flush"),
    *("copy-on-read", "file.locking", "group"),
)
_LIMITS = ("throttling.", "bps", "iops")


class Disks:
    """Brings each option that has to do with disks up to date.

    :param drives: by the number of their option.
    :param devices: what each device goes by, by the number of its option.
    :param gone: numbers of the options of which nothing is left.
    """

    def __init__(
        self,
        options: Sequence[tuple[str, str | None]],
        current_devices: CurrentDevices,
        drives: Mapping[int, NumberedDrive],
        devices: Mapping[int, str],
        gone: Collection[int],
    ) -> None:
        self._options, self._current_devices, self._drives, self._devices = (
            options,
            current_devices,
            drives,
            devices,
        )
        self._nodes = current_devices.nodes or Nodes(nodes={}, children={})
        self._gone = gone
        #: By name: the option that makes a node, and its value.
        self._made: dict[str, tuple[int, Value]] = {}
        for number, (name, text) in enumerate(options):
            if name == "blockdev" and number not in gone:
                value = Value(text or "", first=FIRST["blockdev"])
                self._made[value.get("node-name")] = number, value
        self.findings: list[Finding] = []
        #: Numbers of options for nodes that a device had and nobody uses any more.
        self.left_over = self._find_left_over()
        #: Nodes that have to be made besides, each after those it stands on.
        self._more: dict[str, str] = {}
        self._moved_interfaces = {drives[number].interface for number in gone if number in drives}

    # --- drives -----------------------------------------------------------------------------------------------

    def drive(self, number: int) -> tuple[str, str | None]:
        """Return the option for a drive that is still there."""
        numbered = self._drives[number]
        slot = self._current_devices.drive(numbered.id)
        name, text = self._options[number]
        value, before = numbered.value, str(numbered.value)
        # Those that have no place of their own move up when one before them is left out.
        if (
            not numbered.placed
            and numbered.interface in self._moved_interfaces
            and numbered.interface != "none"
        ):
            value.set("index", str(numbered.index))
        if slot is not None and not _is_thrown_away(value, self._options):
            if not slot.inserted:
                value = self._empty(numbered, slot)
            elif not _same(value, *self._contents(slot)):
                value = self._fill(numbered, slot)
        return (name, text) if str(value) == before else ("drive", str(value))

    def _contents(self, slot: DriveSlot) -> tuple[str, str]:
        """Return file and driver of the image that is in the drive, whatever filters are before it."""
        root = str(slot.inserted["node-name"])
        found = self._nodes.nodes.get(self._nodes.contents(root), slot.inserted)
        return str(found["file"]), str(found["drv"])

    def _empty(self, numbered: NumberedDrive, slot: DriveSlot) -> Value:
        if not slot.block.get("removable"):
            self._lost(numbered.id, "its disk")
            return numbered.value
        return _kept(numbered.value, _OF_THE_DRIVE)

    def _fill(self, numbered: NumberedDrive, slot: DriveSlot) -> Value:
        value = _kept(numbered.value, (*_OF_THE_DRIVE, *_OF_OPENING), _LIMITS)
        file, driver = self._contents(slot)
        value.set("file", file)
        if not file.startswith("json:"):
            value.set("format", driver)
        if value.get("media") != "cdrom":
            read_only = "read-only" if value.get("read-only") else "readonly"
            if bool(slot.inserted["ro"]) != value.is_on(read_only):
                value.set(read_only, "on" if slot.inserted["ro"] else "off")
        return value

    def _lost(self, device: str, what: str) -> None:
        self.findings.append(
            finding("backend-lost", f"device {device} is still there, but {what} was taken from it")
        )

    # --- devices ----------------------------------------------------------------------------------------------

    def device(self, device: str, value: Value) -> None:
        """Change a device's option so that it names the disk that it has now."""
        named = value.get("drive")
        slot = self._current_devices.of_device(device)
        if not named or slot is None or slot.block["device"]:
            return  # a drive by its id, of which the drive's own option tells
        if not slot.inserted:
            if slot.block.get("removable"):
                value.remove("drive")
            else:
                self._lost(device, f"its disk {named}")
            return
        root = str(slot.inserted["node-name"])
        if named in self._ids or root != named:
            value.set("drive", self._want(root))

    @property
    def _ids(self) -> set[str]:
        return {drive.id for drive in self._drives.values()}

    # --- nodes ------------------------------------------------------------------------------------------------

    def _find_left_over(self) -> set[int]:
        if self._current_devices.nodes is None or self._current_devices.nodes.used is None:
            return set()
        had: set[str] = set()
        waiting = [
            Value(self._options[number][1] or "", first=FIRST["device"]).get("drive")
            for number in self._devices
        ]
        while waiting:
            name = waiting.pop()
            if name in self._made and name not in had:
                had.add(name)
                value = self._made[name][1]
                waiting += [
                    value.get(key) for key in value.keys if key.rpartition(".")[2] in ("file", "backing")
                ]
        return {self._made[name][0] for name in had - self._current_devices.nodes.used}

    def _want(self, node: str) -> str:
        """Ask for a node to be made, and return its name."""
        name = lasting_name(node)
        if name in self._made or name in self._more:
            return name
        try:
            for _, arguments in self._nodes.commands(node, [*self._made, *self._more]):
                self._more[arguments["node-name"]] = json.dumps(arguments)
        except Refused as refused:
            self.findings.append(finding("backend-unreadable", str(refused)))
        return name

    def node(self, number: int) -> str:
        """Return the option for a node that is still there."""
        text = self._options[number][1] or ""
        name = Value(text, first=FIRST["blockdev"]).get("node-name")
        if self._current_devices.nodes is None or name not in self._current_devices.nodes.nodes:
            return text
        value = self._made[name][1]
        before, shown = str(value), self._current_devices.nodes.nodes[name]
        below = self._current_devices.nodes.children.get(name, {})
        for edge in ("file", "backing"):
            named, child = value.get(edge), below.get(edge, "")
            if named and not child:
                value.remove(edge)
            elif child and not child.startswith("#") and child != named:
                value.set(edge, self._want(child))
            elif named and child.startswith("#") and named in self._made:
                value.remove(edge)  # QEMU finds it in the image
        if not value.is_on("auto-read-only"):
            read_only = value.is_on("read-only")
            if (shown["ro"] and not read_only and name in self._nodes.bases) or (
                read_only and not shown["ro"]
            ):
                value.set("read-only", "on" if shown["ro"] else "off")
        return text if str(value) == before else str(value)

    def in_order(self, changed: Sequence[tuple[int, tuple[str, str | None]]]) -> list[tuple[str, str | None]]:
        """Return all options, each node after those that it stands on."""
        plain = [option for _, option in changed]
        if not self._more and plain == [self._options[number] for number, _ in changed]:
            return plain
        nodes = [option for option in plain if option[0] == "blockdev"]
        nodes += [("blockdev", text) for text in self._more.values()]

        def depth(option: tuple[str, str | None]) -> int:
            name = Value(option[1] or "", first=FIRST["blockdev"]).get("node-name")
            return self._nodes.depth(name)

        nodes.sort(key=depth)
        first = next((n for n, option in enumerate(plain) if option[0] == "blockdev"), len(plain))
        rest = [option for option in plain if option[0] != "blockdev"]
        return [*rest[:first], *nodes, *rest[first:]]


def _is_thrown_away(value: Value, options: Sequence[tuple[str, str | None]]) -> bool:
    """Tell whether writes go to a temporary file, which is refused for being one."""
    everywhere = any(name == "snapshot" for name, _ in options)
    return value.is_on("snapshot") or (everywhere and value.get("snapshot") != "off")


def _kept(value: Value, keys: Collection[str], beginnings: tuple[str, ...] = ("\0",)) -> Value:
    """Return a copy of the value with nothing but these keys, and those that begin like `beginnings`."""
    parts = {key: text for key, text in value.flat().items() if key in keys or key.startswith(beginnings)}
    return Value(",".join(f"{key}={escape(text)}" for key, text in parts.items()), first=FIRST["drive"])


def _same(value: Value, file: str, driver: str) -> bool:
    """Tell whether a drive's option still names the image that is in it."""
    given = value.get("file") or value.get("file.filename")
    if given == file:
        return value.get("format") in ("", driver)
    here, there = path_of(given), path_of(file)
    if here or there:
        return here == there and value.get("format") in ("", driver)
    # Neither is a file of the host; QEMU writes an address in its own way.
    return bool(given) or any(key not in (*_OF_THE_DRIVE, *_OF_OPENING) for key in value.keys)
