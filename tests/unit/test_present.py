"""A command line brought up to date, case by case; real guests are in ``tests/integration/test_live_guest.py``."""

from __future__ import annotations

from typing import Any

import pytest

from migrator.core.process.options import Value, read
from migrator.errors import Refused
from migrator.qemu.backends import Netdev, chardev_words, netdev_words
from migrator.qemu.block_graph import Nodes
from migrator.qemu.current_command_line import current_command_line
from migrator.qemu.current_devices import CurrentDevices
from migrator.qemu.drive_ids import drives
from migrator.qemu.drive_slots import DriveSlot

Q35, PC = "pc-q35-7.2", "pc-i440fx-7.2"


@pytest.mark.parametrize(
    ("words", "machine", "ids"),
    [
        (("-hda", "a", "-hdd", "b"), PC, ["ide0-hd0", "ide1-hd1"]),
        (("-hda", "a", "-hdd", "b"), Q35, ["ide0-hd0", "ide3-hd0"]),
        (("-cdrom", "a"), PC, ["ide1-cd0"]),
        (("-cdrom", "a", "b"), Q35, ["ide2-cd0", "ide0-hd0"]),
        (
            ("-drive", "file=a", "-drive", "file=b", "-drive", "file=c"),
            PC,
            ["ide0-hd0", "ide0-hd1", "ide1-hd0"],
        ),
        (("-drive", "if=virtio,file=a", "-drive", "if=virtio,file=b,index=4"), PC, ["virtio0", "virtio4"]),
        (
            ("-fda", "a", "-fdb", "b", "-pflash", "c", "-pflash", "d"),
            PC,
            ["floppy0", "floppy1", "pflash0", "pflash1"],
        ),
        (("-drive", "if=none,file=a,id=mine", "-drive", "if=scsi,bus=1,unit=3"), PC, ["mine", "scsi1-hd3"]),
        (("-drive", "file=a"), "virt-7.2", ["virtio0"]),
    ],
)
def test_drives_are_called_as_qemu_calls_them(words: tuple[str, ...], machine: str, ids: list[str]) -> None:
    assert [drive.id for drive in drives(read(words), machine)] == ids


def seat(
    identity: str, file: str = "", driver: str = "raw", *, removable: bool = False, qdev: str = ""
) -> DriveSlot:
    block: dict[str, Any] = {"device": identity, "removable": removable, "qdev": qdev}
    if file:
        block["inserted"] = {"file": file, "drv": driver, "ro": False, "node-name": "#block1"}
    return DriveSlot(name=identity or qdev, handle=qdev or identity, block=block)


def now(*words: str, drives: tuple[DriveSlot, ...], machine: str = PC) -> tuple[list[str], list[str]]:
    """The options, and the codes of what was found."""
    current_devices = CurrentDevices(drives=drives, nodes=Nodes(nodes={}, children={}))
    found = current_command_line(read(words), machine=machine, current_devices=current_devices)
    flat = [word for name, text in found.options for word in (f"-{name}", text or "")]
    return flat, [finding.code for finding in found.findings]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("if=none,id=d,file=/a,format=raw,cache=none", "if=none,id=d,cache=none,file=/b,format=qcow2"),
        ("/a,if=none,id=d", "if=none,id=d,file=/b,format=qcow2"),
        (
            "if=none,id=d,file.filename=/a,file.locking=off,bps=5",
            "if=none,id=d,file.locking=off,bps=5,file=/b,format=qcow2",
        ),
        ("if=none,id=d,driver=qcow2,file.filename=/b", "if=none,id=d,driver=qcow2,file.filename=/b"),
        ("if=none,id=d,file=/b", "if=none,id=d,file=/b"),
        ("if=none,id=d,file=nbd:h:1", "if=none,id=d,file=/b,format=qcow2"),
        ("if=none,id=d,file=/a,snapshot=on", "if=none,id=d,file=/a,snapshot=on"),
    ],
)
def test_a_drive_starts_with_what_is_in_it(text: str, said: str) -> None:
    assert now("-drive", text, drives=(seat("d", "/b", "qcow2"),)) == (["-drive", said], [])


def test_a_drive_that_is_empty_starts_empty() -> None:
    empty = seat("d", removable=True)
    words = ("-drive", "if=none,id=d,media=cdrom,file=/a,format=raw,cache=none,werror=report")
    assert now(*words, drives=(empty,)) == (["-drive", "if=none,id=d,media=cdrom,werror=report"], [])
    assert now("-cdrom", "/a", drives=(seat("ide1-cd0", removable=True),))[0] == [
        "-drive",
        "index=2,media=cdrom",
    ]


def test_a_drive_that_lost_its_disk_cannot_be_had_again() -> None:
    assert now("-drive", "if=none,id=d,file=/a", drives=(seat("d"),))[1] == ["backend-lost"]


def test_those_that_are_left_keep_their_numbers() -> None:
    words = ("-drive", "if=virtio,file=/a", "-drive", "if=virtio,file=/b")
    assert now(*words, drives=(seat("virtio1", "/b"),))[0] == ["-drive", "if=virtio,file=/b,index=1"]


@pytest.mark.parametrize(
    ("written", "shown", "words"),
    [
        ("pty,id=c", "pty:/dev/pts/3", ""),
        ("pty,id=c", "null", "null,id=c"),
        ("socket,id=c,path=/a,server=on", "disconnected:unix:/a,server=on", ""),
        ("socket,id=c,path=/a,server=on", "unix:/b,server=on <-> ", "socket,id=c,path=/b,server=on,wait=off"),
        ("socket,id=c,host=h,port=1,server=on", "disconnected:tcp:0.0.0.0:1,server=on", ""),
        (
            "null,id=c",
            "disconnected:tcp:0.0.0.0:1,server=on",
            "socket,id=c,host=0.0.0.0,port=1,server=on,wait=off",
        ),
        ("null,id=c", "pty:/dev/pts/1", "pty,id=c"),
        ("spicevmc,id=c,name=vdagent", "spicevmc", ""),
        ("vc,id=c", "something-of-a-later-version", ""),
    ],
)
def test_a_port_starts_as_what_it_is(written: str, shown: str, words: str) -> None:
    assert chardev_words(Value(written, first="backend"), shown) == words


def test_a_port_that_became_what_qemu_does_not_show() -> None:
    with pytest.raises(Refused, match="does not show enough"):
        chardev_words(Value("null,id=c", first="backend"), "udp")


@pytest.mark.parametrize(
    ("written", "kind", "detail", "changed"),
    [
        ("user,id=n", "user", "net=10.0.2.0,restrict=off", False),
        ("user,id=n,net=10.9.0.0/24,restrict=on", "user", "net=10.9.0.0,restrict=on", False),
        ("user,id=n", "user", "net=10.9.0.0,restrict=off", True),
        ("tap,id=n,ifname=t0", "tap", "ifname=t0,script=no,downscript=no", False),
        ("tap,id=n,ifname=t0", "tap", "ifname=t1,script=no,downscript=no", True),
        ("tap,id=n", "tap", "ifname=tap0,script=/etc/qemu-ifup,downscript=no", False),
        ("bridge,id=n,br=br0", "tap", "helper=/usr/lib/qemu/qemu-bridge-helper,br=br0", False),
        ("user,id=n", "tap", "ifname=t1,script=no,downscript=no", True),
    ],
)
def test_a_network_starts_as_what_it_is(written: str, kind: str, detail: str, changed: bool) -> None:
    words = netdev_words(Value(written, first="type"), Netdev(kind=kind, detail=detail))
    assert bool(words) == changed


def test_a_comma_at_the_end_is_nothing() -> None:
    value = Value("file=/a,if=none,", first="file")
    assert value.get("file") == value.flat()["file"] == "/a"
    assert "" not in value.keys
