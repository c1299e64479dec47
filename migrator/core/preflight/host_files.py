"""Findings against a host because of the files, devices and processes that a guest's command line names. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.preflight.host_pair import HostPair
from migrator.core.process.command_line import CommandLine, Option
from migrator.core.process.files import FileKind
from migrator.core.process.named_files import named_files, served
from migrator.core.process.tpm_emulator import tpm_socket

#: The first version that says by itself what blocks a migration (blocked-reasons).
_SAYS_BLOCKERS = (6, 0)
_PCI = "/sys/bus/pci/devices"
#: Devices that are the host's.
_OF_HOST = frozenset(
    {"usb-host", "scsi-generic", "scsi-block", "pci-assign", "ccid-card-passthru", "u2f-passthru"}
)


def paths_to_read(command: CommandLine) -> list[str]:
    """Return every path that :func:`check` and the checks of memory look at."""
    paths = [path for file in named_files(command) for path in (file.path, file.instead) if path]
    paths += [path for _, path in _sockets(command)]
    for path in memory_paths(command):
        paths += [path, _parent(path)]
    for option in command.all("device"):
        paths += [path for path in _vfio_paths(option) if path]
    return paths


def memory_paths(command: CommandLine) -> list[str]:
    """Return the directories and files that the guest's memory lies in."""
    paths = [option.text for option in command.all("mem-path")]
    paths += [option["mem-path"] for option in command.all("object")]
    return [path for path in paths if path]


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or "/"


def page_bytes(pair: HostPair, path: str) -> int:
    """Return the size of the huge pages that memory at `path` is made of; 0 for normal pages."""
    here = pair.files_here.file(path)
    return here.block_bytes if here.filesystem == "hugetlbfs" else 0


def memory_path(pair: HostPair, path: str) -> Iterator[Finding]:
    """Yield findings where memory cannot lie in the same place at the target."""
    here, there = pair.files(path)
    if here.kind is not FileKind.DIRECTORY and not there.exists:
        # A file that QEMU makes by itself; its directory has to be there.
        there = pair.files_there.file(_parent(path))
    if not there.exists:
        yield finding(
            "memory-path", f"{path}, which the guest's memory lies in, does not exist at {pair.target}"
        )
        return
    page = page_bytes(pair, path)
    if page and (there.filesystem != "hugetlbfs" or there.block_bytes != page):
        what = (
            f"with pages of {there.block_bytes} bytes"
            if there.filesystem == "hugetlbfs"
            else there.filesystem
        )
        yield finding(
            "memory-path",
            f"{path}, which the guest's memory lies in, is hugetlbfs with pages of {page} bytes here and "
            f"{what or 'something else'} at {pair.target}",
        )


def check(pair: HostPair) -> Iterator[Finding]:
    """Yield findings about files, devices of the host, and processes that serve devices."""
    for file in named_files(pair.command):
        here, there = pair.files(file.path)
        if file.instead and not there.exists:
            here, there = pair.files(file.instead)
        if not there.exists:
            yield finding("file-missing", f"{file.path}, {file.what}, does not exist at {pair.target}")
        elif not there.readable:
            yield finding("file-access", f"{file.path}, {file.what}, cannot be read at {pair.target}")
        elif file.compared and here.exists and here.size_bytes != there.size_bytes:
            yield finding(
                "file-differs",
                f"{file.path}, {file.what}, has {here.size_bytes} bytes here and {there.size_bytes} at {pair.target}",
            )
    yield from _served(pair)
    yield from _vfio(pair)
    for option in pair.command.all("device"):
        if option["driver"].startswith("vhost-vsock"):
            yield finding("vsock", f"connections over vsock (cid {option['guest-cid']}) are lost")
        elif option["driver"] in _OF_HOST or option["driver"].startswith("virtio-input-host"):
            yield finding(
                "host-device", f"device {option['id'] or option['driver']} is one of the host's own"
            )
    for option in pair.command.options:
        if what := _terminal(option):
            yield finding("host-device", f"{what} is a device of the host's own")


def _terminal(option: Option) -> str:
    """Describe an option that uses a terminal, port or keyboard of the host; empty for every other option."""
    if option.name == "object" and option["qom-type"] == "input-linux":
        return f"object {option['id']} ({option['evdev']})"
    if option.name == "chardev" and option["backend"] in ("serial", "tty", "parallel", "parport"):
        return f"chardev {option['id']} ({option['path']})"
    if option.name in ("serial", "parallel", "monitor", "debugcon") and option.text.startswith("/dev/"):
        return f"-{option.name} {option.text}"
    return ""


def _sockets(command: CommandLine) -> list[tuple[str, str]]:
    devices = served(command)
    return [
        (devices[option["id"]], option["path"])
        for option in command.all("chardev")
        if option["id"] in devices and option["path"] and option["server"] not in ("on", "yes", "true")
    ]


def _served(pair: HostPair) -> Iterator[Finding]:
    for option in pair.command.all("device", "netdev"):
        kind = option["driver"] or option["type"]
        if kind.startswith("vhost-user"):
            yield finding("vhost-user", f"{option['id'] or kind} is served by another process ({kind})")
    for option in pair.command.all("tpmdev"):
        if option["type"] == "emulator":
            yield from _emulated(pair, f"{option['id']}, the guest's TPM, is another process")
        elif option["type"] == "passthrough":
            where = option["path"] or "/dev/tpm0"
            yield finding("tpm-of-host", f"{option['id']}, the guest's TPM, is {where} of its host")
    for device, path in _sockets(pair.command):
        if pair.tpm is not None and not pair.tpm.source and path == tpm_socket(pair.command):
            continue
        if not pair.files_there.file(path).exists:
            yield finding(
                "vhost-user-socket", f"{path}, the socket of {device}, does not exist at {pair.target}"
            )


def _emulated(pair: HostPair, what: str) -> Iterator[Finding]:
    if pair.tpm is None:
        yield finding("tpm", what)
        return
    if pair.tpm.source:
        yield finding("tpm", f"{what}: {pair.tpm.source}")
    if pair.tpm.target:
        yield finding("tpm-emulator", f"{what}: {pair.tpm.target}")
    if pair.tpm.state:
        yield finding("tpm-state", f"{what}: {pair.tpm.state}")


# --- hardware passed through --------------------------------------------------------------------------------


def _vfio_paths(option: Option) -> tuple[str, str]:
    """The device in sysfs and the driver it is bound to; empty where it is none."""
    if not option["driver"].startswith("vfio-"):
        return "", ""
    if option["sysfsdev"]:
        return option["sysfsdev"], ""
    if not option["host"]:
        return "", ""
    address = option["host"] if option["host"].count(":") == 2 else f"0000:{option['host']}"
    return f"{_PCI}/{address}", f"{_PCI}/{address}/driver"


def _vfio(pair: HostPair) -> Iterator[Finding]:
    options = {option["id"]: option for option in pair.command.all("device") if option["id"]}
    unnamed = [option for option in pair.command.all("device") if not option["id"]]
    known = [*options.values(), *unnamed]
    for option in known:
        passed = option["driver"].startswith("vfio-")
        name = option["id"] or option["host"] or option["driver"]
        if option["failover_pair_id"] and not (why := _no_standby(options.get(option["failover_pair_id"]))):
            yield finding(
                "vfio-failover",
                f"QEMU unplugs {name} before it copies memory, and waits until the guest lets go of it;"
                f" {option['failover_pair_id']} takes over",
            )
        elif passed:
            unpaired = f": {option['failover_pair_id']} {why}" if option["failover_pair_id"] else ""
            yield _passed(pair, name, unpaired)
        if not passed:
            continue
        device, driver = _vfio_paths(option)
        if device and not pair.files_there.file(device).exists:
            yield finding("vfio-missing", f"{device} ({name}) does not exist at {pair.target}")
        elif driver and not pair.files_there.file(driver).real.rpartition("/")[2].startswith("vfio"):
            yield finding("vfio-missing", f"{device} ({name}) is not bound to vfio-pci at {pair.target}")
    for device_ in pair.source.devices:
        if device_.driver.startswith("vfio-") and device_.name and device_.name not in options:
            yield _passed(pair, device_.name)


def _no_standby(partner: Option | None) -> str:
    """Return why a card cannot take over for the one that names it; empty where it can."""
    if partner is None:
        return "does not exist, so that it cannot take over"
    if not partner["driver"].startswith("virtio-net"):
        return "is no virtio-net card, so that it cannot take over"
    return (
        ""
        if partner["failover"] in ("on", "yes", "true")
        else "has no failover=on, so that it cannot take over"
    )


def _passed(pair: HostPair, name: str, unpaired: str = "") -> Finding:
    version = tuple(int(part) for part in pair.source.version.split(".")[:2])
    if version < _SAYS_BLOCKERS or any("vfio" in reason.lower() for reason in pair.source.blockers):
        return finding("vfio", f"{name} is hardware of the source's host, passed through{unpaired}")
    return finding("vfio-state", f"{name} is hardware of the source's host, passed through{unpaired}")
