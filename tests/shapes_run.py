"""Shapes of the corpus made to run on this machine: without KVM, with less memory, their files in one directory."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from migrator.core.process.options import read, write
from tests.shapes import Shape

#: Those that no machine of a test can run, and why.
NOT_HERE = {
    **dict.fromkeys(
        ("proxmox-ceph", "proxmox-linux", "proxmox-windows"), "options that Proxmox has added to its QEMU"
    ),
    **dict.fromkeys(
        ("add-fd", "libvirt-descriptors", "libvirt-old", "readconfig-descriptor", "wiki-macvtap", "ganeti"),
        "open files of another program's",
    ),
    **dict.fromkeys(("input", "tpm-passthrough", "vdpa", "vfio", "vmspawn"), "hardware"),
    **dict.fromkeys(("fedora", "wiki-bridge", "wiki-script"), "bridges, and scripts for them"),
    **dict.fromkeys(
        ("shared-memory", "tpm-emulator", "vhost-user", "sockets-net"), "processes that serve the guest"
    ),
    **dict.fromkeys(
        ("dbus-display", "egl-headless", "quickemu", "quickemu-2d", "spice-local", "wiki-bare", "windows"),
        "windows",
    ),
    **dict.fromkeys(
        ("kernel-console", "microvm", "sound", "tracing"), "kernels, and programs that are not installed"
    ),
    **dict.fromkeys(("spice", "vnc-tls"), "certificates"),
    **dict.fromkeys(("hugepages", "numa", "sev"), "huge pages, or another CPU"),
    **dict.fromkeys(("incus", "readconfig", "once"), "configurations in files"),
    **dict.fromkeys(("ganeti-chroot", "runas", "run-with", "run-with-chroot"), "users, or roots"),
    **dict.fromkeys(
        ("saved", "resumed", "preconfig", "replay", "shared-memory-taken"), "states that last for a moment"
    ),
    "arm": "another architecture",
    "objects": "keys of the kernel, and of a disk",
    "remote-disks": "servers of disks",
    "serial-forms": "a port of the machine's own",
    "came-by-us": "what only we have",
}
_PATH = re.compile(r"(?<![\w./])/(?:dev/vg|run|var|srv|home|etc|opt|mnt|tmp|nix|usr/share)/(?:,,|[^,\"\s])+")
_DIRECTORIES = frozenset({"share", "other", "tftp", "spice"})
_LESS = {
    "enable-kvm": "",
    "accel=kvm:tcg": "accel=tcg",
    "accel=kvm": "accel=tcg",
    ",kernel_irqchip=split": "",
    "=1G": "=128M",
    "1073741824": "134217728",
    "1048576k": "131072k",
}


def can_run(shape: Shape, version: str) -> bool:
    """Whether a QEMU of that version on this machine can be this shape."""
    return shape.name not in NOT_HERE and ("-10.0" not in shape.machine or version == "10.0")


@dataclass(frozen=True, kw_only=True)
class Made:
    """One that can be started."""

    argv: tuple[str, ...]
    #: Where each of its paths is.
    paths: dict[str, str]
    directory: Path

    def there(self, paths: Iterable[str]) -> str:
        """Paths of the shape where they are, parted by spaces."""
        return " ".join(self.paths.get(path, path) for path in paths)


def make(shape: Shape, binary: Path, directory: Path, *, version: str = "") -> Made:
    """Put its files into a directory that is there and empty.

    :param version: of its machine type, instead of the newest that the QEMU has.
    """
    found: dict[str, str] = {}

    def moved(match: re.Match[str]) -> str:
        path = match[0].replace(",,", ",")
        if path not in found:
            place = directory / str(len(found))
            place.mkdir()
            found[path] = str(place / path.rpartition("/")[2])
        return found[path].replace(",", ",,")

    (directory / "run").mkdir()
    options = []
    for name, text in read(shape.command[1:]):
        if name == "enable-kvm":
            continue
        value = None if text is None else _PATH.sub(moved, text)
        if name in ("M", "machine") and value is not None:
            value = re.sub(r"^(?:type=)?(q35|pc)(?=,|$)", lambda kind: _versioned(kind[1], version), value)
        options.append((name, value if value is None else _less(name, value)))
    if version and not any(name in ("M", "machine") for name, _ in options):
        options.append(("machine", _versioned("pc", version)))
    for entry in shape.files:
        kind, _, path = entry.partition(" ")
        if kind in ("image", "file") and path not in shape.listed("missing"):
            _write(Path(found.get(path, directory / path)), kind)
    return Made(argv=(str(binary), *write(options)), paths=found, directory=directory)


def _versioned(kind: str, version: str) -> str:
    return f"{'pc-q35' if kind == 'q35' else 'pc-i440fx'}-{version}" if version else kind


def _less(name: str, value: str) -> str:
    for old, new in _LESS.items():
        value = value.replace(old, new)
    if name == "accel" and value.startswith("kvm"):
        return "tcg"
    if name == "cpu" and value.startswith(("host", "max")):
        return "max"
    if name == "cpu":
        return "qemu64"
    return re.sub(r"^(size=)?\d+[GM]?(?=,|$)", r"\g<1>128M", value) if name == "m" else value


def _write(path: Path, kind: str) -> None:
    if path.is_absolute() and str(path).startswith(("/dev/", "/sys/", "/usr/")):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name in _DIRECTORIES:
        path.mkdir()
    elif kind == "image" and (path.suffix == ".qcow2" or path.name == "diffdisk"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "4M"], check=True)
    elif kind == "image":
        path.write_bytes(bytes(4 << 20))
    elif path.name == "seabios.bin":
        path.write_bytes(Path("/usr/share/seabios/bios-256k.bin").read_bytes())
    else:
        path.write_text("c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=\n")
