"""What a guest has now is what it arrives with, whatever it was started with: one test for each way it may change."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from migrator.core.findings import accept
from migrator.core.model import Severity
from migrator.site.host_checks import SiteChecks
from migrator.testing.lab import GuestMachine, Habit, Lab, LabQemu, RawMonitor, until
from tests.command import ACCEPTED_CODES
from tests.destinations import MIB, POLICY, Moved, Site, guest_of, site_of

HABIT = Habit(region_bytes=8 * MIB, bytes_per_second=4 * MIB)
PC, Q35 = "pc-i440fx-7.2", "pc-q35-7.2"
SCSI = ("-device", "virtio-scsi-pci,id=scsi,addr=0xa")


@pytest.fixture
async def site(lab: Lab) -> AsyncIterator[Site]:
    async with site_of(lab) as site:
        yield site


@dataclass(frozen=True)
class Change:
    """One thing that happens to a guest. In `words` and `commands` ``{dir}`` is a directory with the images."""

    words: tuple[str, ...]
    #: QMP commands with their arguments; a text is one of HMP, a callable is awaited.
    commands: tuple[Any, ...]
    #: Files that nobody needs afterwards: they are deleted before the guest moves.
    unneeded: tuple[str, ...] = ()
    machine: str = Q35


def node(name: str, image: str, driver: str = "raw", **more: str) -> str:
    below = {"driver": "file", "filename": f"{{dir}}/{image}"}
    return json.dumps({"driver": driver, "node-name": name, "file": below, **more})


async def no_jobs(monitor: RawMonitor) -> None:
    async def idle() -> bool:
        return not await monitor.execute("query-jobs")

    await until(idle, what="the end of the job")


async def ready(monitor: RawMonitor) -> None:
    async def all_ready() -> bool:
        return all(job["status"] == "ready" for job in await monitor.execute("query-jobs"))

    await until(all_ready, what="the job")


async def gone(monitor: RawMonitor) -> None:
    """What was told to go is gone; the guest of these tests does not say so itself, which PCI asks for."""
    for port, value in ((0xAE10, 0), (0xAE08, 1 << 7)):
        await monitor.execute("human-monitor-command", {"command-line": f"o /w {port} {value}"})

    async def left() -> bool:
        names = [
            entry["name"] for entry in await monitor.execute("qom-list", {"path": "/machine/peripheral"})
        ]
        names += [block.get("qdev", "") for block in await monitor.execute("query-block")]
        return not any("goes" in name for name in names)

    await until(left, what="that the device is unplugged")


QCOW2 = {"sync": "full", "format": "qcow2"}
COMPLETE = (ready, ("block-job-complete", {"device": "job"}), no_jobs)
#: By what happens. Each guest has its own disk besides.
CHANGES = {
    "cdrom-ejected": Change(
        ("-cdrom", "{dir}/a"), (("eject", {"device": "ide2-cd0", "force": True}),), ("a",)
    ),
    "cdrom-changed": Change(("-cdrom", "{dir}/a"), ("change ide2-cd0 {dir}/b raw",), ("a",)),
    "cdrom-filled": Change(
        ("-drive", "if=none,id=d,media=cdrom", "-device", "ide-cd,drive=d,id=cd"),
        (("blockdev-change-medium", {"id": "cd", "filename": "{dir}/b", "format": "raw"}),),
    ),
    "medium-changed": Change(
        (
            *SCSI,
            *("-drive", "if=none,id=d,media=cdrom,format=raw,cache=none,file={dir}/a"),
            *("-device", "scsi-cd,drive=d,id=cd,bus=scsi.0"),
        ),
        (("blockdev-change-medium", {"device": "d", "filename": "{dir}/b", "format": "raw"}),),
        ("a",),
    ),
    "medium-of-a-node-ejected": Change(
        (*SCSI, "-blockdev", node("n", "a"), "-device", "scsi-cd,drive=n,id=cd,bus=scsi.0"),
        (("eject", {"id": "cd", "force": True}),),
        ("a",),
    ),
    "medium-of-a-node-changed": Change(
        (*SCSI, "-blockdev", node("n", "a"), "-device", "scsi-cd,drive=n,id=cd,bus=scsi.0"),
        (
            ("blockdev-open-tray", {"id": "cd", "force": True}),
            ("blockdev-remove-medium", {"id": "cd"}),
            ("blockdev-del", {"node-name": "n"}),
            (
                "blockdev-add",
                {
                    "driver": "raw",
                    "node-name": "m",
                    "read-only": True,
                    "file": {"driver": "file", "filename": "{dir}/b"},
                },
            ),
            ("blockdev-insert-medium", {"id": "cd", "node-name": "m"}),
            ("blockdev-close-tray", {"id": "cd"}),
        ),
        ("a",),
    ),
    "floppy-ejected": Change(("-fda", "{dir}/floppy"), ("eject -f floppy0",), ("floppy",), PC),
    "floppy-changed": Change(
        ("-drive", "if=floppy,file={dir}/floppy,format=raw"),
        ("change floppy0 {dir}/other raw",),
        ("floppy",),
        PC,
    ),
    "snapshot-of-a-drive": Change(
        (
            "-drive",
            "if=none,id=d,file={dir}/a,format=raw,cache=none",
            "-device",
            "virtio-blk-pci,drive=d,id=v",
        ),
        (("blockdev-snapshot-sync", {"device": "d", "snapshot-file": "{dir}/over", "format": "qcow2"}),),
    ),
    "snapshot-of-a-nameless-drive": Change(
        ("-drive", "if=virtio,file={dir}/a,format=raw"),
        (
            (
                "blockdev-snapshot-sync",
                {"device": "virtio0", "snapshot-file": "{dir}/over", "format": "qcow2"},
            ),
        ),
    ),
    "snapshot-of-hda": Change(
        ("-hda", "{dir}/a"),
        (
            (
                "blockdev-snapshot-sync",
                {"device": "ide0-hd0", "snapshot-file": "{dir}/over", "format": "qcow2"},
            ),
        ),
    ),
    "snapshot-of-a-node": Change(
        ("-blockdev", node("n", "a"), "-device", "virtio-blk-pci,drive=n,id=v"),
        (
            (
                "blockdev-snapshot-sync",
                {"node-name": "n", "snapshot-file": "{dir}/over", "snapshot-node-name": "over"},
            ),
            (
                "blockdev-snapshot-sync",
                {"node-name": "over", "snapshot-file": "{dir}/over2", "snapshot-node-name": "over2"},
            ),
        ),
    ),
    "snapshot-committed": Change(
        ("-blockdev", node("n", "a"), "-device", "virtio-blk-pci,drive=n,id=v"),
        (
            (
                "blockdev-snapshot-sync",
                {"node-name": "n", "snapshot-file": "{dir}/over", "snapshot-node-name": "over"},
            ),
            ("block-commit", {"job-id": "job", "device": "over"}),
            *COMPLETE,
        ),
        ("over",),
    ),
    "drive-mirrored": Change(
        ("-drive", "if=none,id=d,file={dir}/a,format=raw", "-device", "virtio-blk-pci,drive=d,id=v"),
        (
            (
                "drive-mirror",
                {"job-id": "job", "device": "d", "target": "{dir}/copy", "sync": "full", "format": "qcow2"},
            ),
            *COMPLETE,
        ),
        ("a",),
    ),
    "node-mirrored": Change(
        ("-blockdev", node("n", "a"), "-device", "virtio-blk-pci,drive=n,id=v"),
        (
            (
                "blockdev-add",
                {"driver": "raw", "node-name": "m", "file": {"driver": "file", "filename": "{dir}/b"}},
            ),
            ("blockdev-mirror", {"job-id": "job", "device": "n", "target": "m", "sync": "full"}),
            *COMPLETE,
        ),
        ("a",),
    ),
    "stream": Change(
        (
            *("-blockdev", node("base", "a"), "-blockdev", node("n", "based", "qcow2", backing="base")),
            *("-device", "virtio-blk-pci,drive=n,id=v"),
        ),
        (("block-stream", {"job-id": "job", "device": "n"}), no_jobs),
        ("a",),
    ),
    "resized": Change(
        ("-drive", "if=none,id=d,file={dir}/a,format=raw", "-device", "virtio-blk-pci,drive=d,id=v"),
        (("block_resize", {"device": "d", "size": 3 * MIB}),),
    ),
    "throttled": Change(
        (
            "-drive",
            "if=none,id=d,file={dir}/a,format=raw,bps=1000000",
            "-device",
            "virtio-blk-pci,drive=d,id=v",
        ),
        (
            (
                "block_set_io_throttle",
                {
                    "device": "d",
                    "bps": 0,
                    "bps_rd": 0,
                    "bps_wr": 0,
                    "iops": 0,
                    "iops_rd": 0,
                    "iops_wr": 0,
                },
            ),
        ),
    ),
    "disk-unplugged": Change(
        (
            *SCSI,
            *(
                "-drive",
                "if=none,id=d,file={dir}/a,format=raw",
                "-device",
                "scsi-hd,drive=d,id=goes,bus=scsi.0",
            ),
            *(
                "-drive",
                "if=none,id=e,file={dir}/b,format=raw",
                "-device",
                "scsi-hd,drive=e,id=stays,bus=scsi.0",
            ),
        ),
        (("device_del", {"id": "goes"}), gone, "drive_del d"),
        ("a",),
    ),
    "node-unplugged": Change(
        (
            *(*SCSI, "-blockdev", node("n", "a"), "-device", "scsi-hd,drive=n,id=goes,bus=scsi.0"),
            *("-blockdev", node("m", "b"), "-device", "scsi-hd,drive=m,id=stays,bus=scsi.0"),
        ),
        (("device_del", {"id": "goes"}), gone, ("blockdev-del", {"node-name": "n"})),
        ("a",),
    ),
    "device-unplugged-and-node-left": Change(
        (*SCSI, "-blockdev", node("n", "a"), "-device", "scsi-hd,drive=n,id=goes,bus=scsi.0"),
        (("device_del", {"id": "goes"}), gone),
        ("a",),
    ),
    "nameless-unplugged": Change(
        (
            *(
                "-device",
                "virtio-serial-pci,id=ports",
                "-device",
                "virtserialport",
                "-device",
                "virtserialport",
            ),
            *("-device", '{"driver": "virtserialport"}', "-drive", "if=virtio,file={dir}/b,format=raw"),
        ),
        (("device_del", {"id": "/machine/peripheral-anon/device[0]"}),),
    ),
    "card-unplugged": Change(
        (
            *("-netdev", "user,id=n", "-netdev", "user,id=m"),
            *(
                "-device",
                "virtio-net-pci,netdev=n,id=goes,addr=7",
                "-device",
                "virtio-net-pci,netdev=m,id=stays",
            ),
        ),
        (("device_del", {"id": "goes"}), gone, ("netdev_del", {"id": "n"})),
        machine=PC,
    ),
    "network-removed": Change(
        ("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,id=card"), (("netdev_del", {"id": "n"}),)
    ),
    "network-replaced": Change(
        ("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,id=goes,addr=7"),
        (
            *(("device_del", {"id": "goes"}), gone, ("netdev_del", {"id": "n"})),
            ("netdev_add", {"type": "user", "id": "n", "net": "10.9.0.0/24", "restrict": True}),
            ("device_add", {"driver": "e1000", "id": "goes", "netdev": "n", "addr": "9"}),
        ),
        machine=PC,
    ),
    "network-removed-and-another-of-its-name": Change(
        ("-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n,id=card"),
        (
            ("netdev_del", {"id": "n"}),
            ("netdev_add", {"type": "user", "id": "n", "net": "10.9.0.0/24"}),
        ),
    ),
    "port-changed": Change(
        ("-chardev", "pty,id=c", "-device", "isa-serial,chardev=c,id=port"),
        (("chardev-change", {"id": "c", "backend": {"type": "null", "data": {}}}),),
    ),
    "port-became-a-socket": Change(
        ("-chardev", "null,id=c", "-device", "isa-serial,chardev=c,id=port"),
        (
            (
                "chardev-change",
                {
                    "id": "c",
                    "backend": {
                        "type": "socket",
                        "data": {
                            "addr": {"type": "unix", "data": {"path": "{dir}/port.sock"}},
                            "server": True,
                            "wait": False,
                        },
                    },
                },
            ),
        ),
    ),
    "link-off": Change(
        ("-netdev", "user,id=n", "-device", "e1000,netdev=n,id=card"),
        (("set_link", {"name": "card", "up": False}),),
    ),
}


def fill(what: Any, directory: Path) -> Any:
    if isinstance(what, str):
        return what.replace("{dir}", str(directory))
    if isinstance(what, dict):
        return {key: fill(value, directory) for key, value in what.items()}
    return what


def images(directory: Path) -> None:
    sizes = {"a": MIB, "b": MIB, "c": MIB, "floppy": 1440 << 10, "other": 1440 << 10}
    sizes |= {f"gone{number}": MIB for number in (1, 2, 3)}
    for name, size in sizes.items():
        (directory / name).write_bytes(b"\0" * size)


async def shown(qemu: LabQemu) -> dict[str, Any]:
    """What QEMU says of the guest's drives, networks and ports; names that QEMU makes up are left out."""
    async with qemu.monitor() as monitor:

        async def ask(command: str, **arguments: Any) -> Any:
            return await monitor.execute(
                command, {key.replace("_", "-"): value for key, value in arguments.items()}
            )

        drives = {}
        for block in await ask("query-block"):
            inside = block.get("inserted", {})
            chain, image = [], inside.get("image")
            while image:
                chain.append((image["filename"], image["format"], image["virtual-size"]))
                image = image.get("backing-image")
            name = block["device"] or block["qdev"]
            drives[name] = (
                chain,
                inside.get("ro"),
                block.get("tray_open"),
                inside.get("cache"),
                inside.get("bps"),
            )
        network = (await ask("human-monitor-command", command_line="info network")).splitlines()
        chardevs = {each["label"]: each["filename"].partition(":")[0] for each in await ask("query-chardev")}
        return {
            "drives": drives,
            "network": sorted(line.strip().partition(",udp=")[0] for line in network if "#" not in line),
            "chardevs": {
                label: kind
                for label, kind in chardevs.items()
                if not label.startswith(("compat_monitor", "monitor-", "migrator-", "serial"))
            },
            "devices": [
                sorted((entry["name"], entry["type"]) for entry in await ask("qom-list", path=path))
                for path in ("/machine/peripheral",)
            ],
            "link": await _link(ask),
        }


async def _link(ask: Callable[..., Awaitable[Any]]) -> list[Any]:
    return [each["promiscuous"] for each in await ask("query-rx-filter")]


async def happen(qemu: LabQemu, change: Change, directory: Path) -> None:
    async with qemu.monitor() as monitor:
        for command in change.commands:
            if callable(command):
                await command(monitor)
            elif isinstance(command, str):
                said = await monitor.execute(
                    "human-monitor-command", {"command-line": fill(command, directory)}
                )
                assert "rror" not in said, said
            else:
                await monitor.execute(command[0], fill(command[1], directory))


#: Many of them in one guest.
MANY = Change(
    (
        *(*SCSI, "-cdrom", "{dir}/gone1", "-drive", "if=floppy,file={dir}/floppy,format=raw"),
        *("-blockdev", node("n1", "gone2"), "-device", "scsi-cd,drive=n1,id=cd,bus=scsi.0"),
        *(
            "-drive",
            "if=none,id=d1,file={dir}/a,format=raw,cache=none",
            "-device",
            "virtio-blk-pci,drive=d1,id=v1",
        ),
        *("-blockdev", node("n2", "c"), "-device", "virtio-blk-pci,drive=n2,id=v2"),
        *(
            "-drive",
            "if=none,id=d3,file={dir}/gone3,format=raw",
            "-device",
            "scsi-hd,drive=d3,id=goes1,bus=scsi.0",
        ),
        *("-netdev", "user,id=w1", "-device", "virtio-net-pci,netdev=w1,id=goes2,addr=7"),
        *("-netdev", "dgram,id=w2,local.type=unix,local.path={dir}/w2,remote.type=unix,remote.path={dir}/w3"),
        *("-device", "virtio-net-pci,netdev=w2,id=stays"),
        *("-chardev", "pty,id=c", "-device", "isa-serial,chardev=c,id=port"),
    ),
    (
        ("eject", {"device": "ide1-cd0", "force": True}),
        "change floppy0 {dir}/other raw",
        *CHANGES["medium-of-a-node-changed"].commands[:2],
        ("blockdev-del", {"node-name": "n1"}),
        *CHANGES["medium-of-a-node-changed"].commands[3:],
        ("blockdev-snapshot-sync", {"device": "d1", "snapshot-file": "{dir}/over", "format": "qcow2"}),
        (
            "blockdev-snapshot-sync",
            {"node-name": "n2", "snapshot-file": "{dir}/over2", "snapshot-node-name": "o2"},
        ),
        ("block_resize", {"device": "d1", "size": 3 * MIB}),
        *(("device_del", {"id": "goes1"}), ("device_del", {"id": "goes2"}), gone, "drive_del d3"),
        ("netdev_del", {"id": "w1"}),
        *CHANGES["port-changed"].commands,
    ),
    ("gone1", "gone2", "gone3", "floppy"),
    PC,
)


async def test_a_guest_to_which_much_has_happened(
    lab: Lab, site: Site, one_crossing: tuple[Path, Path]
) -> None:
    await arrives(lab, site, one_crossing, MANY)


SEVERAL_NETWORKS = ("card-unplugged", "network-removed-and-another-of-its-name")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.matrix) for name in CHANGES])
async def test_a_guest_arrives_with_what_it_has(
    lab: Lab, site: Site, each_crossing: tuple[Path, Path], name: str
) -> None:
    if name in SEVERAL_NETWORKS and each_crossing[0] != each_crossing[1]:
        pytest.skip("QEMU before 8.2 takes in only one network of its own from a later one")
    await arrives(lab, site, each_crossing, CHANGES[name])


async def arrives(lab: Lab, site: Site, crossing: tuple[Path, Path], change: Change) -> None:
    directory = lab.directory
    images(directory)
    run = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        str(directory / "a"),
        "-F",
        "raw",
        str(directory / "based"),
    ]
    subprocess.run(run, check=True)
    words = tuple(fill(word, directory) for word in change.words)
    machine = GuestMachine(type=change.machine, habit=HABIT, extra=words)
    qemu = await lab.boot(machine, binary=crossing[0])
    await happen(qemu, change, directory)
    for name in change.unneeded:
        (directory / name).unlink()
    before = await shown(qemu)
    site.have(*crossing)
    guest = guest_of(qemu)
    found = await SiteChecks(site.connections).check(
        replace(guest, pid=qemu.pid), await site.source(guest), "beta", policy=POLICY
    )
    found = accept(found, ACCEPTED_CODES)
    assert [finding.message for finding in found if finding.severity is Severity.ERROR] == []
    await site.close()
    for target in ("beta", "alpha"):
        guest = await site.move(guest, target)
        moved = Moved(machine, lab, guest.socket)
        await moved.check_memory()
        assert await shown(moved) == before
