"""A file as one host sees it, and whether two hosts see the same one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class FileKind(StrEnum):
    """Kind of the file that a path leads to."""

    REGULAR = "regular"
    DIRECTORY = "directory"
    BLOCK = "block"
    CHARACTER = "character"
    SOCKET = "socket"
    OTHER = "other"
    #: Nothing, or nothing that may be looked at.
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Facts of the file that a path leads to on one host, links followed."""

    kind: FileKind = FileKind.MISSING
    #: Its path without links.
    real: str = ""
    size_bytes: int = 0
    #: Device number ``major:minor`` of the file system it lies in, or of itself where it is a block device.
    device: str = ""
    inode: int = 0
    #: As /proc/self/mountinfo names it: ``ext4``, ``nfs4``, ``hugetlbfs``.
    filesystem: str = ""
    #: Mounted source, ``nas:/export``, and the path of this file within it.
    mount_source: str = ""
    inner_path: str = ""
    #: Block size of the file system; on hugetlbfs the size of a page.
    block_bytes: int = 0
    #: Room that is left in the file system it lies in.
    free_bytes: int = 0
    #: Of a directory: what images will take of that yet which migrations are filling there, by the migrations' ids.
    held_bytes: Mapping[str, int] = field(default_factory=dict)
    #: Identity of a block device, unique among all hosts; empty where nothing certain tells it.
    serial: str = ""
    #: As the user that QEMU will be there, where that is known, else as the one that migrator is.
    readable: bool = False
    writable: bool = False
    executable: bool = False
    owner: int = 0
    group: int = 0
    permissions: int = 0

    @property
    def exists(self) -> bool:
        """True where the path leads to a file."""
        return self.kind is not FileKind.MISSING


@dataclass(frozen=True, kw_only=True)
class QemuProgramFacts:
    """Machines, devices and CPUs that one QEMU program knows; whatever could not be read is empty."""

    #: Tells this file from another, and from itself after an upgrade.
    identity: str = ""
    version: str = ""
    #: Names that it lists with ``-machine help``, ``-device help`` and ``-cpu help``.
    machines: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    cpus: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class HostFiles:
    """Facts read of one host for one guest."""

    files: Mapping[str, FileFacts] = field(default_factory=dict)
    #: By path of the image: itself and what it is based on, as absolute paths; no entry where that was not read.
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Images that qemu-img complained about, with its words.
    complaints: Mapping[str, str] = field(default_factory=dict)
    #: The QEMU that would be started there; empty: none was found.
    qemu: str = ""
    offer: QemuProgramFacts = field(default_factory=QemuProgramFacts)
    #: Network interfaces and the bridge they are on.
    masters: Mapping[str, str] = field(default_factory=dict)
    #: KVM there offers virtualisation to its guests; ``None``: it does not say.
    nested: bool | None = None
    #: It has KVM, for who looked.
    kvm: bool = False
    #: Of the machine's kernel since it was started: two hosts with the same are one machine. Empty: not known.
    boot_id: str = ""
    #: Device and inode (``major:minor:inode``) of images that some process there holds open for writing.
    written: frozenset[str] = frozenset()
    #: Uid that `readable` and the like were tried as.
    user: int | None = None
    #: From where relative paths go: the directory of the source's QEMU.
    directory: str = "/"
    #: The program that the source's QEMU is.
    program: str = ""

    def file(self, path: str) -> FileFacts:
        """Return the file that `path` leads to; a missing one where it was not looked for."""
        return self.files.get(path, _MISSING)


_MISSING = FileFacts()


def parent(path: str) -> str:
    """Return the directory that a file is in."""
    return path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")


class SameFile(StrEnum):
    """Answer to whether a path leads to the same file on two hosts."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


#: File systems of one host alone.
_OWN = frozenset(
    {
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "f2fs",
        "zfs",
        "tmpfs",
        "ramfs",
        "devtmpfs",
        "squashfs",
        "vfat",
        "ext2/ext3",
    }
)
#: File systems whose source and inode numbers mean the same on every host.
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "fuse.glusterfs", "fuse.ceph", "beegfs"}
)
#: File systems of many hosts whose caches know of each other.
COHERENT = frozenset({"gfs2", "ocfs2", "ceph", "fuse.ceph", "lustre", "gpfs"})
#: File systems that other hosts may see too.
OF_MANY_HOSTS = _NETWORK | COHERENT
_LOCAL_SOURCES = ("localhost:", "127.", "[::1]")


def same_file(here: FileFacts, there: FileFacts, *, one_machine: bool) -> SameFile:
    """Compare two files by their identities; only what is certain is not ``UNKNOWN``.

    :param one_machine: the two hosts run on one kernel (equal boot ids).
    """
    if here.kind is not there.kind:
        return SameFile.NO
    if one_machine:
        same = (here.device, here.inode) == (there.device, there.inode)
        if here.kind is FileKind.BLOCK:
            same = here.device == there.device
        return SameFile.YES if same else SameFile.NO
    if here.kind is FileKind.BLOCK:
        return _same_device(here, there)
    if here.filesystem in _OWN or there.filesystem in _OWN:
        return SameFile.NO
    source = here.mount_source
    if (
        here.filesystem == there.filesystem
        and here.filesystem in _NETWORK
        and source == there.mount_source
        and not source.startswith(_LOCAL_SOURCES)
        and (here.inner_path, here.inode, here.size_bytes)
        == (there.inner_path, there.inode, there.size_bytes)
    ):
        return SameFile.YES
    return SameFile.UNKNOWN


def _same_device(here: FileFacts, there: FileFacts) -> SameFile:
    if not here.serial or not there.serial:
        return SameFile.UNKNOWN
    if here.serial == there.serial:
        return SameFile.YES
    # Named by different things (a path to it here, itself there) they may still be one.
    return (
        SameFile.NO if here.serial.partition("=")[0] == there.serial.partition("=")[0] else SameFile.UNKNOWN
    )
