"""QEMU's command line, taken apart for what speaks of its host: options in order, their values as flat mappings. Pure.

Values come as ``a=b,c=d`` (a comma is doubled) or as JSON; both are read into the same flat form with dots, in which
what is on is ``on``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Options that are followed by no value; all others are.
_ALONE = frozenset(
    {
        *("S", "alt-grab", "async-teardown", "ctrl-grab", "curses", "daemonize", "enable-kvm"),
        *("enable-sync-profile", "full-screen", "h", "help", "localtime", "mem-prealloc"),
        *("no-acpi", "no-fd-bootchk", "no-frame", "no-hpet", "no-kvm", "no-quit", "no-reboot"),
        *("no-shutdown", "no-user-config", "nodefaults", "nodefconfig", "nographic", "old-param"),
        *("one-insn-per-tb", "only-migratable", "portrait", "preconfig", "s", "sdl", "semihosting"),
        *("singlestep", "snapshot", "usb", "version", "win2k-hack"),
        *("xen-attach", "xen-domid-restrict", "nouserconfig", "rtc-td-hack", "tdf"),
    }
)
#: What a value without ``=`` at its beginning stands for.
_FIRST = {
    "blockdev": "driver",
    "chardev": "backend",
    "cpu": "model",
    "device": "driver",
    "fsdev": "fsdriver",
    "fw_cfg": "name",
    "m": "size",
    "machine": "type",
    "M": "type",
    "net": "type",
    "netdev": "type",
    "nic": "type",
    "object": "qom-type",
    "tpmdev": "type",
    "virtfs": "fsdriver",
}
#: Drives by an option of their own.
_IMAGES = ("hda", "hdb", "hdc", "hdd", "cdrom", "sd", "mtdblock", "pflash", "fda", "fdb")
#: Block drivers whose ``filename`` is a path on the host.
LOCAL_DRIVERS = frozenset(
    {"file", "host_device", "host_cdrom", "io_uring", "nvme-io_uring", "virtio-blk-vhost-vdpa"}
)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of the command line."""

    #: Without its dashes.
    name: str
    #: As it stands there; empty for one that takes none.
    text: str
    #: Its parts, ``{"": text}`` never included; empty where it has none.
    parts: Mapping[str, str]

    def __getitem__(self, key: str) -> str:
        return self.parts.get(key, "")


@dataclass(frozen=True, kw_only=True)
class ImageUse:
    """How the command line has an image opened."""

    path: str
    #: It goes around the host's page cache.
    direct: bool = False
    #: ``cache=unsafe``: what the guest flushes is not.
    no_flush: bool = False
    #: Writes go to a temporary file.
    snapshot: bool = False
    locked: bool = True


class CommandLine:
    """A QEMU's arguments, the program first.

    :param arguments: as in ``/proc/PID/cmdline``.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.program = arguments[0] if arguments else ""
        self.options: tuple[Option, ...] = tuple(_options(arguments[1:]))

    def __bool__(self) -> bool:
        return bool(self.program)

    def all(self, *names: str) -> list[Option]:
        """The options of these names, in order."""
        return [option for option in self.options if option.name in names]

    def has(self, name: str) -> bool:
        """Whether an option of that name is there."""
        return any(option.name == name for option in self.options)

    @property
    def cpu_of_host(self) -> bool:
        """The guest is shown the CPU of its host, whatever that is."""
        models = [option["model"] for option in self.all("cpu")]
        return bool(models) and models[-1] in ("host", "max")

    def images(self) -> list[ImageUse]:
        """Every image that it names by a path."""
        throwaway = self.has("snapshot")
        found = [_drive(option, throwaway) for option in self.all("drive")]
        found += [ImageUse(path=option.text, snapshot=throwaway) for option in self.all(*_IMAGES)]
        for option in self.all("blockdev"):
            found += _nodes(option.parts)
        return [image for image in found if image.path and is_path(image.path)]

    def network(self) -> list[Option]:
        """What the guest's network cards hang on; ``type`` tells the kind."""
        found = [*self.all("netdev", "nic"), *self.all("net")]
        found = [option for option in found if option["type"] not in ("nic", "none", "hubport")]
        if self and not self.all("netdev", "nic", "net") and not self.has("nodefaults"):
            found.append(Option(name="nic", text="user", parts={"type": "user"}))
        return found


def is_path(text: str) -> bool:
    """A path on the host, as against ``nbd://…`` or ``rbd:…``."""
    head = text.partition("/")[0]
    return ":" not in head


def path_of(file: str) -> str:
    """The path in a file name as QEMU writes it (plain, ``file:…`` or ``json:…``); empty where there is none."""
    if file.startswith("json:"):
        try:
            parts = _flat(json.loads(file.removeprefix("json:")))
        except ValueError:
            return ""
        # What it is based on may be written within it, and before it.
        own = {key: value for key, value in parts.items() if "backing" not in key.split(".")}
        return next((image.path for image in _nodes(own)), "")
    for prefix in ("file:", "host_device:", "host_cdrom:"):
        file = file.removeprefix(prefix)
    return file if file and is_path(file) else ""


def _options(words: Sequence[str]) -> Iterator[Option]:
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            yield Option(name="hda", text=word, parts={})
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        if name in _ALONE:
            yield Option(name=name, text="", parts={})
            continue
        text = next(rest, "")
        yield Option(name=name, text=text, parts=_parts(text, _FIRST.get(name, "")))


def _parts(text: str, first: str) -> dict[str, str]:
    if text.startswith("{"):
        try:
            return _flat(json.loads(text))
        except ValueError:
            return {}
    parts: dict[str, str] = {}
    for number, part in enumerate(_split(text)):
        key, equals, value = part.partition("=")
        if equals:
            parts[key] = value
        elif number == 0 and first:
            parts[first] = key
        elif key.startswith("no") and len(key) > 2:
            parts[key[2:]] = "off"
        elif key:
            parts[key] = "on"
    return parts


def _split(text: str) -> list[str]:
    parts = [""]
    at = 0
    while at < len(text):
        if text[at] != ",":
            parts[-1] += text[at]
        elif text[at : at + 2] == ",,":
            parts[-1] += ","
            at += 1
        else:
            parts.append("")
        at += 1
    return parts


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        items: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    else:
        if isinstance(value, bool):
            value = "on" if value else "off"
        return {prefix: "" if value is None else str(value)}
    flat: dict[str, str] = {}
    for key, inner in items:
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _drive(option: Option, throwaway: bool) -> ImageUse:
    mode = option["cache"]
    file = option["file.filename"] or option["file"]
    direct = mode in ("none", "directsync", "off")
    if option["cache.direct"]:
        direct = option["cache.direct"] == "on"
    if file.startswith("json:"):
        return ImageUse(path=path_of(file), direct=direct, snapshot=throwaway)
    snapshot = option["snapshot"] == "on" or (throwaway and option["snapshot"] != "off")
    return ImageUse(
        path=path_of(file),
        direct=direct,
        no_flush=mode == "unsafe" or option["cache.no-flush"] == "on",
        snapshot=snapshot and option["readonly"] != "on" and option["read-only"] != "on",
        locked="off" not in (option["file.locking"], option["locking"]),
    )


def _nodes(parts: Mapping[str, str]) -> list[ImageUse]:
    """The files that a block node and those written within it name; they inherit how they are cached."""
    found = []
    for key, path in parts.items():
        if key.rpartition(".")[2] != "filename":
            continue
        prefix = key.removesuffix("filename")
        if parts.get(f"{prefix}driver", "file") not in LOCAL_DRIVERS:
            continue
        found.append(
            ImageUse(
                path=path,
                direct=_inherited(parts, prefix, "cache.direct"),
                no_flush=_inherited(parts, prefix, "cache.no-flush"),
                locked=parts.get(f"{prefix}locking") != "off",
            )
        )
    return found


def _inherited(parts: Mapping[str, str], prefix: str, option: str) -> bool:
    while True:
        if prefix + option in parts:
            return parts[prefix + option] == "on"
        if not prefix:
            return False
        prefix = prefix[:-1].rpartition(".")[0]
        prefix += "." if prefix else ""
