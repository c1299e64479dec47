"""QEMU's command line, taken apart for what speaks of its host: options in order, their values as flat mappings. Pure.

Values are read by :mod:`migrator.core.process.options` into one flat form with dots, in which what is on is ``on``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from migrator.core.process.options import FIRST, Value, read

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
    #: QEMU opens it again by its name when it gives up writing, as it does at the switch (``auto-read-only``).
    reopened: bool = False


class CommandLine:
    """A QEMU's arguments, the program first.

    :param arguments: as in ``/proc/PID/cmdline``.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.program = arguments[0] if arguments else ""
        self.options: tuple[Option, ...] = tuple(_option(*each) for each in read(arguments[1:]))

    def __bool__(self) -> bool:
        return bool(self.program)

    def all(self, *names: str) -> list[Option]:
        """Return the options of these names, in order."""
        return [option for option in self.options if option.name in names]

    def has(self, name: str) -> bool:
        """Tell whether an option of that name is there."""
        return any(option.name == name for option in self.options)

    @property
    def cpu_of_host(self) -> bool:
        """True where the guest is shown the CPU of its host, whatever that is."""
        models = [option["model"] for option in self.all("cpu")]
        return bool(models) and models[-1] in ("host", "max")

    def images(self) -> list[ImageUse]:
        """Return every image that it names by a path."""
        throwaway = self.has("snapshot")
        found = [_drive(option, throwaway) for option in self.all("drive")]
        found += [
            ImageUse(path=option.text, snapshot=throwaway, reopened=True) for option in self.all(*_IMAGES)
        ]
        for option in self.all("blockdev"):
            found += _nodes(option.parts)
        return [image for image in found if image.path and is_path(image.path)]

    def network(self) -> list[Option]:
        """Return the backends that the guest's network cards hang on; ``type`` tells the kind."""
        found = [*self.all("netdev", "nic"), *self.all("net")]
        found = [option for option in found if option["type"] not in ("nic", "none", "hubport")]
        if self and not self.all("netdev", "nic", "net") and not self.has("nodefaults"):
            found.append(Option(name="nic", text="user", parts={"type": "user"}))
        return found


def only_of_qmp(options: Iterable[tuple[str, str | None]]) -> set[str]:
    """Return the ids of the character devices that nothing but a QMP monitor uses.

    :param options: names and values, as :func:`migrator.core.process.options.read` gives them.
    """
    used: set[str] = set()
    control: set[str] = set()
    for name, text in options:
        if name == "chardev" or text is None:
            continue
        value = Value(text, first=FIRST.get(name, ""))
        if name == "mon" and value.get("mode") == "control":
            control.add(value.get("chardev"))
        elif name in ("qmp", "qmp-pretty"):
            control.add(text.removeprefix("chardev:"))
        else:
            used |= {value.get("chardev"), text.removeprefix("chardev:")}
    return control - used


def is_path(text: str) -> bool:
    """Tell whether the text is a path on the host, as against ``nbd://…`` or ``rbd:…``."""
    head = text.partition("/")[0]
    return ":" not in head


def path_of(file: str) -> str:
    """Return the path in a file name as QEMU writes it (plain, ``file:…`` or ``json:…``); empty where there is none."""
    if file.startswith("json:"):
        parts = Value(file.removeprefix("json:"), first="").flat()
        # What it is based on may be written within it, and before it; and where the driver vvfat keeps what is written.
        own = {
            key: value
            for key, value in parts.items()
            if not {"backing", "write-target"} & set(key.split("."))
        }
        return next((image.path for image in _nodes(own)), "")
    for prefix in ("file:", "host_device:", "host_cdrom:"):
        file = file.removeprefix(prefix)
    return file if file and is_path(file) else ""


def _option(name: str, text: str | None) -> Option:
    if not name:
        return Option(name="hda", text=text or "", parts={})
    parts = Value(text, first=FIRST.get(name, "")).flat() if text else {}
    return Option(name=name, text=text or "", parts=parts)


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
        reopened="off" not in (option["file.auto-read-only"], option["auto-read-only"]),
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
                reopened=_inherited(parts, prefix, "auto-read-only"),
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
