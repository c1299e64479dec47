"""What a host answers about files, as types: devices of hardware that no test machine has, mounts, locks."""

from __future__ import annotations

import os

import pytest

from migrator.core.process.files import FileFacts, FileKind, HostFiles, SameFile, same_file
from migrator.hosts.host_files import parse

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:40 /exports/vm /mnt/im\\040ages rw - nfs4 nas:/pool rw,vers=4.2
31 22 0:41 / /mnt rw - tmpfs hidden rw
32 31 0:42 / /mnt rw - xfs /dev/sdb rw
rubbish
"""


def answers(
    files: list[tuple[str, str, str]], *, mounts: str = MOUNTS, locks: str = "", links: str = ""
) -> HostFiles:
    """What is made of an answer about these files."""
    names = [real for _, _, real in files]
    host = ["1000", "/", "/usr/bin/qemu", mounts, locks, links, "", "boot id", "kvm"]
    words = [*host, *[""] * 6]
    return parse(
        [*words, *(part for file in files for part in file), "end", ""], paths=names, images={}, directory="/"
    )


def one(path: str) -> FileFacts:
    return answers([(f"81a4 5 {os.makedev(0, 40)} 7 0 0 0 0 644 r- 4096", "", path)]).file(path)


def disk(serial: str, *, minor: int = 0) -> FileFacts:
    """A block device of 1 MiB that says this of itself."""
    numbers = f"61b0 0 5 99 8 {minor:x} 0 6 660 wr- 4096"
    return answers([(numbers, f"size 2048\n{serial}", "/dev/sda")]).file("/dev/sda")


@pytest.mark.parametrize(
    ("path", "filesystem", "source", "inner"),
    [
        ("/a", "ext4", "/dev/vda1", "/a"),
        ("/mnt/im ages/x/disk", "nfs4", "nas:/pool", "/exports/vm/x/disk"),
        ("/mnt/im agesx", "xfs", "/dev/sdb", "/im agesx"),
        ("/mnt", "xfs", "/dev/sdb", "/"),
        ("/mntx", "ext4", "/dev/vda1", "/mntx"),
    ],
)
def test_file_lies_in_the_innermost_and_last_mount(
    path: str, filesystem: str, source: str, inner: str
) -> None:
    seen = one(path)
    assert (seen.filesystem, seen.mount_source, seen.inner_path) == (filesystem, source, inner)


def test_numbers() -> None:
    seen = one("/mnt/im ages/disk")
    assert (seen.kind, seen.size_bytes, seen.device, seen.inode) == (FileKind.REGULAR, 5, "0:40", 7)
    assert (seen.readable, seen.writable, seen.executable, seen.permissions) == (True, False, False, 0o644)


@pytest.mark.parametrize(("major", "minor"), [(8, 1), (254, 300), (259, 1 << 19), (4095, 255), (0, 0)])
def test_number_of_a_device_is_taken_apart_as_the_c_library_does(major: int, minor: int) -> None:
    number = os.makedev(major, minor)
    seen = answers([(f"81a4 5 {number} 7 0 0 0 0 644 r- 4096", "", "/a")]).file("/a")
    assert seen.device == f"{major}:{minor}"


class TestBlockDevices:
    @pytest.mark.parametrize(
        ("said", "serial"),
        [
            ("device/wwid naa.6001405", "wwid=naa.6001405"),
            ("wwid eui.0025388", "wwid=eui.0025388"),
            ("wwid uuid.1-2-3", "wwid=uuid.1-2-3"),
            ("dm/uuid mpath-36001405", "wwid=naa.6001405"),
            ("dm/uuid LVM-abc\nslave naa.6001405", "lvm=LVM-abc on naa.6001405"),
            ("dm/uuid LVM-abc\nslave naa.2\nslave naa.1", "lvm=LVM-abc on naa.1,naa.2"),
            ("partition 3\nwwid eui.0025388", "wwid=eui.0025388 partition 3"),
            (
                "device/cluster_fsid f-1\ndevice/pool_id 4\ndevice/name vm",
                "rbd=f-1/4/vm",
            ),
            # Made up by whoever emulates the disk, or copied with the host it lies on: the same everywhere.
            ("device/wwid t10.ATA     QEMU HARDDISK   QM00001", ""),
            ("wwid nvme.1b36-6e766d65-51454d55", ""),
            ("dm/uuid LVM-abc", ""),
            ("dm/uuid LVM-abc\nslave t10.ATA QEMU", ""),
            ("dm/uuid CRYPT-LUKS2-1", ""),
            ("", ""),
        ],
    )
    def test_only_what_is_unique_in_the_world_identifies(self, said: str, serial: str) -> None:
        seen = disk(said)
        assert seen.serial == serial
        assert seen.kind is FileKind.BLOCK
        assert seen.size_bytes == 1 << 20
        assert seen.device == "8:0"

    def test_path_and_multipath_to_one_disk_are_the_same(self) -> None:
        path, many = disk("device/wwid naa.6001405", minor=16), disk("dm/uuid mpath-36001405")
        assert same_file(path, many, one_machine=False) is SameFile.YES
        assert same_file(path, disk("device/wwid naa.6001406"), one_machine=False) is SameFile.NO
        assert same_file(path, disk(""), one_machine=False) is SameFile.UNKNOWN


class TestLocks:
    @pytest.mark.parametrize(
        ("line", "held"),
        [
            ("1: OFDLCK ADVISORY  READ -1 fe:01:1234 201 201", True),
            ("2: OFDLCK ADVISORY  READ -1 fe:01:1234 101 101", True),
            ("3: OFDLCK ADVISORY  READ -1 fe:01:1234 100 103", True),
            ("4: POSIX  ADVISORY  WRITE 77 fe:01:1234 0 EOF", True),
            # It only reads.
            ("5: OFDLCK ADVISORY  READ -1 fe:01:1234 100 100", False),
            ("6: OFDLCK ADVISORY  READ -1 fe:01:1234 203 203", False),
            # It waits for the lock.
            ("7: -> POSIX  ADVISORY  WRITE 77 fe:01:1234 0 EOF", False),
            ("8: FLOCK  ADVISORY  WRITE 77 fe:01:1235 0", False),
        ],
    )
    def test_who_writes(self, line: str, held: bool) -> None:
        assert answers([], locks=line).written == ({"254:1:1234"} if held else set())


def test_taps_and_their_bridges() -> None:
    links = (
        "1: lo: <LOOPBACK> mtu 65536 qdisc noop state DOWN mode DEFAULT\\    link/loopback\n"
        "7: vm7: <BROADCAST> mtu 1500 qdisc noop master br0 state DOWN mode DEFAULT\\    link/ether\n"
        "8: vm8@if3: <BROADCAST> mtu 1500 master br1 state UP\n"
    )
    assert answers([], links=links).masters == {"vm7": "br0", "vm8": "br1"}


def test_which_machine_it_is_and_whether_it_has_kvm() -> None:
    seen = answers([])
    assert (seen.boot_id, seen.kvm) == ("boot id", True)
