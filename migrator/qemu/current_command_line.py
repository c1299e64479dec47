"""A command line brought up to date: it says what the guest has now, not what it was started with. Pure.

What is gone is left out, and what is left keeps its place; a drive that is empty starts empty; a disk that has become
another image starts with that; what stands behind a card or a port is what stands there now. What was plugged in since
is not in it: that is given to the new QEMU over QMP (:mod:`migrator.qemu.devices`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.process.options import FIRST, Value, escape
from migrator.errors import Refused
from migrator.qemu import current_disks
from migrator.qemu.backends import chardev_words, netdev_add, netdev_words
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.drive_ids import drives

Options = list[tuple[str, str | None]]
#: Properties of a device's place that are numbers.
_NUMBERS = frozenset({"nr", "scsi-id", "lun", "channel", "unit"})


#: Options that say where the guest is seen, or may.
_DISPLAYS = frozenset({"curses", "display", "nographic", "readconfig", "sdl", "spice", "vnc"})


@dataclass(frozen=True, kw_only=True)
class CurrentCommandLine:
    """A guest's command line as it would read had the guest been started as it is now."""

    options: Options
    #: Findings about what cannot be had again as it is now.
    findings: tuple[Finding, ...] = ()


def value_of(name: str, text: str | None) -> Value:
    """The argument of an option, taken apart."""
    return Value(text or "", first=FIRST.get(name, ""))


def current_command_line(
    options: Sequence[tuple[str, str | None]], *, machine: str, current_devices: CurrentDevices
) -> CurrentCommandLine:
    """Bring the options of a command line up to date with what the guest has now.

    :param machine: its type with the alias resolved.
    """
    work = _Rewrite(options, machine, current_devices)
    return CurrentCommandLine(options=work.options(), findings=tuple(work.findings))


def plugged_networks(options: Sequence[tuple[str, str | None]], current_devices: CurrentDevices) -> Options:
    """Return options for the networks that were plugged in since the start, as far as QEMU shows enough of them."""
    written = {value_of(name, text).get("id") for name, text in options if name in ("netdev", "nic", "net")}
    found: Options = []
    for name, netdev in (current_devices.netdevs or {}).items():
        if (name not in written or netdev.successor) and not name.startswith("#"):
            try:
                new = netdev.successor or netdev
                found.append(("netdev", json.dumps(netdev_add(name, new, vhost=False)[1])))
            except Refused:
                continue  # said when the destination is to be given it
    return found


def lacks_devices(
    options: Sequence[tuple[str, str | None]], *, machine: str, current_devices: CurrentDevices
) -> bool:
    """Tell whether something that the command line names is gone, so that the places of the rest matter."""
    return bool(_Rewrite(options, machine, current_devices).gone)


class _Rewrite:
    def __init__(
        self, options: Sequence[tuple[str, str | None]], machine: str, current_devices: CurrentDevices
    ) -> None:
        self._source, self._current_devices = list(options), current_devices
        self._drives = {drive.option: drive for drive in drives(self._source, machine)}
        #: Id of each device by its option, or ``#`` and its number among those that have none.
        self._devices = dict(_devices(self._source))
        self.findings: list[Finding] = []
        #: Numbers of the options of which nothing is left.
        self.gone = {number for number in range(len(self._source)) if self._is_gone(number)}

    def _is_gone(self, number: int) -> bool:
        name, text = self._source[number]
        if number in self._drives:
            return self._current_devices.drives is not None and not self._has_drive(number)
        value = value_of(name, text)
        if name == "device" and self._devices[number].startswith("#"):
            return not self._current_devices.has_nameless(int(self._devices[number][1:]), value.get("driver"))
        return not self._current_devices.has(name, value)

    def _has_drive(self, number: int) -> bool:
        drive = self._drives[number]
        return self._current_devices.drive(drive.id) is not None or (
            # Where QEMU was seen to number them otherwise than we do, nothing is said of those that have no id.
            not drive.value.get("id") and not self._numbers_are_known
        )

    @property
    def _numbers_are_known(self) -> bool:
        own = [drive for drive in self._drives.values() if not drive.value.get("id")]
        return any(self._current_devices.drive(drive.id) is not None for drive in own)

    def options(self) -> Options:
        disks = current_disks.Disks(
            self._source, self._current_devices, self._drives, self._devices, self.gone
        )
        changed: list[tuple[int, tuple[str, str | None]]] = []
        serial = 0
        for number, (name, text) in enumerate(self._source):
            label = f"serial{serial}"
            serial += name == "serial"
            if number in self.gone or number in disks.left_over:
                changed += [(number, ("netdev", text)) for text in self._ghost(number)]
                continue
            option = (name, text)
            if number in self._drives:
                option = disks.drive(number)
                if places := self._current_devices.places.get(self._devices.get(number, "")):
                    option, card = _apart(option[1] or "", self._drives[number].id, places)
                    changed.append((number, card))
            elif name == "device":
                option = (name, self._device(number, disks))
            elif name == "blockdev":
                option = (name, disks.node(number))
            elif name in ("netdev", "chardev"):
                option = (name, self._backend(name, text or ""))
            elif name == "serial":
                option = self._serial(label, text or "")
            changed.append((number, option))
        self.findings += disks.findings
        return [*disks.in_order(changed), *self._display()]

    def _display(self) -> Iterator[tuple[str, str]]:
        """Yield the display that QEMU chose by itself, which depends on what its host has installed."""
        if self._current_devices.vnc is None or any(name in _DISPLAYS for name, _ in self._source):
            return
        if "default" in self._current_devices.vnc:
            yield "vnc", "localhost:0,to=99,id=default"
        else:
            self.findings.append(finding("display", "its window stays behind"))
            yield "display", "none"

    def _ghost(self, number: int) -> Iterator[str]:
        """Yield a network of QEMU's own that has gone, where another one was made after it.

        These stand in the stream by their number, so the new QEMU makes it too, and removes it as the old one did.
        """
        is_user = [
            name == "netdev" and value_of(name, text).get("type") == "user" for name, text in self._source
        ]
        later = [n for n in range(number + 1, len(self._source)) if is_user[n] and n not in self.gone]
        if self._current_devices.numbers_networks and is_user[number] and later:
            yield f"user,id={escape(value_of(*self._source[number]).get('id'))},restrict=on"

    def _device(self, number: int, disks: current_disks.Disks) -> str:
        name, text = self._source[number]
        value = value_of(name, text)
        device, before = self._devices[number], str(value)
        keys = value.keys
        for key, where in self._current_devices.places.get(device, {}).items():
            if key not in keys:
                value.set(key, where, number=key in _NUMBERS)
        disks.device(device, value)
        if (
            value.get("netdev")
            and self._current_devices.netdevs is not None
            and value.get("netdev") not in self._current_devices.netdevs
        ):
            self._lost(device, f"its network {value.get('netdev')}")
        return (text or "") if str(value) == before else str(value)

    def _lost(self, device: str, what: str) -> None:
        self.findings.append(
            finding("backend-lost", f"device {device} is still there, but {what} was taken from it")
        )

    def _backend(self, name: str, text: str) -> str:
        value, current_devices = value_of(name, text), self._current_devices
        identity = value.get("id")
        try:
            if name == "netdev":
                return netdev_words(value, (current_devices.netdevs or {}).get(identity)) or text
            return chardev_words(value, (current_devices.chardevs or {}).get(identity)) or text
        except Refused as refused:
            self.findings.append(finding("backend-unreadable", str(refused)))
            return text

    def _serial(self, label: str, text: str) -> tuple[str, str | None]:
        shown = (self._current_devices.chardevs or {}).get(label)
        if shown is None or text.startswith(("chardev:", "mon:")) or text in ("none", "null"):
            return "serial", text
        kind, _, rest = text.partition(":")
        backend = {"unix": "socket", "tcp": "socket", "telnet": "socket", "websocket": "socket"}.get(
            kind, kind
        )
        value = Value(f"{backend},id={label}", first="backend")
        if kind == "unix":
            value.set("path", Value(rest, first="path").get("path"))
        try:
            words = chardev_words(value, shown)
        except Refused as refused:
            self.findings.append(finding("backend-unreadable", str(refused)))
            return "serial", text
        return "serial", _short(words) if words else text


def _short(words: str) -> str:
    """A character device as ``-serial`` has it."""
    value = Value(words, first="backend")
    if value.get("backend") != "socket":
        return value.get("backend")
    where = (
        f"unix:{value.get('path')}" if value.get("path") else f"tcp:{value.get('host')}:{value.get('port')}"
    )
    return f"{where},server=on,wait=off" if value.is_on("server") else where


def _apart(text: str, identity: str, places: Mapping[str, str]) -> tuple[tuple[str, str], tuple[str, str]]:
    """A drive that comes with its card as the two of them, so that the card can be told its place."""
    drive = Value(text, first=FIRST["drive"])
    drive.remove("index", "bus", "unit")
    drive.set("if", "none")
    drive.set("id", identity)
    where = "".join(f",{key}={escape(value)}" for key, value in places.items())
    return ("drive", str(drive)), ("device", f"virtio-blk-pci,drive={escape(identity)}{where}")


def _devices(options: Sequence[tuple[str, str | None]]) -> Iterator[tuple[int, str]]:
    """Number of each option for a device, and what it goes by.

    QEMU makes those in JSON after all others, and those of ``-drive if=virtio`` between them.
    """
    plain: list[int] = []
    virtio: list[int] = []
    late: list[int] = []
    for number, (name, text) in enumerate(options):
        if name == "device":
            (late if (text or "").startswith("{") else plain).append(number)
        elif name == "virtfs":
            plain.append(number)
        elif name == "drive" and value_of(name, text).get("if") == "virtio":
            virtio.append(number)
    count = 0
    for number in [*plain, *virtio, *late]:
        identity = value_of(*options[number]).get("id") if options[number][0] == "device" else ""
        yield number, identity or f"#{count}"
        count += not identity
