"""Preflight of a guest that libvirt manages: what the libvirt of both hosts says, and what the hosts show."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from migrator.core.findings import errors_first, finding
from migrator.core.inventory import Guest
from migrator.core.managed_guest import uuid_at
from migrator.core.model import Finding
from migrator.core.policy import Backing, CopiedDisks, Policy, SourceImages, StreamRoute
from migrator.core.preflight.disk_room import by_file_system, copied_disk, copied_disks
from migrator.core.preflight.facts import Disk
from migrator.core.process.files import FileKind, HostFiles, SameFile, parent, same_file
from migrator.errors import HostError, QemuError
from migrator.hosts.own_files import read_files
from migrator.hosts.sharing_probe import probe_sharing
from migrator.libvirt.connection import LibvirtConnection
from migrator.libvirt.domain_xml import DiskXml, DomainXml
from migrator.libvirt.target_checks import LeavingGuest, ask_target, judge, read_leaving, unsafe_disk
from migrator.site.host_directory import ManagedHosts, image_paths
from migrator.site.libvirt_connections import LibvirtConnections
from migrator.units import show_bytes

#: Seconds that the libvirt of a host may take to answer all that it is asked.
_SECONDS = 30.0
#: Disks whose images are files of the host.
_FILES = ("file", "block")


class ManagedChecks:
    """Checks guests of libvirt against targets; changes nothing but by the probe of sharing."""

    def __init__(self, connections: ManagedHosts, daemons: LibvirtConnections) -> None:
        self._connections, self._daemons = connections, daemons

    async def check(self, guest: Guest, target: str, policy: Policy) -> tuple[Finding, ...]:
        """Return what speaks against a target for a guest, errors first.

        :param policy: what it would be moved under.
        :raise HostError: a host, or the libvirt of the guest's own, cannot be asked.
        :raise QemuError: that libvirt refused to describe the guest.
        """
        source = self._daemons.connection(guest.host)
        if source is None:
            raise HostError(
                guest.host, 'the configuration leaves its guests of libvirt alone (libvirt = "off")'
            )
        uuid = uuid_at(guest.socket) or guest.uuid
        leaving = await source.call(
            lambda connection: read_leaving(connection, uuid), what="read the guest", timeout=_SECONDS
        )
        asked, files, links = await asyncio.gather(
            self._ask(leaving, target),
            self._files(leaving, guest.host, target, policy),
            self._links(leaving.xml, target),
        )
        return errors_first([*refused_wishes(policy), *asked, *links, *files])

    async def _ask(self, leaving: LeavingGuest, target: str) -> list[Finding]:
        connection: LibvirtConnection | None = self._daemons.connection(target)
        if connection is None:
            return [finding("libvirt-target", f'the configuration of {target} says libvirt = "off"')]
        try:
            answers = await connection.call(
                lambda found: ask_target(found, leaving),
                what="ask whether the guest could come",
                timeout=_SECONDS,
            )
        except (HostError, QemuError) as error:
            return [finding("libvirt-target", str(error))]
        return list(judge(leaving, answers, target))

    async def _files(
        self,
        leaving: LeavingGuest,
        host: str,
        target: str,
        policy: Policy,
    ) -> list[Finding]:
        """Return what the hosts show that libvirt is not asked for: the guest's files, and whether there is KVM."""
        xml = leaving.xml
        disks = [disk for disk in xml.disks if disk.kind in _FILES and disk.source.startswith("/")]
        paths = [disk.source for disk in disks]
        moves = image_paths(self._connections, host, target)
        at_target = {
            disk.source: moves.at_target(disk.source)
            if disk.kind == "file" and not disk.read_only
            else disk.source
            for disk in disks
        }
        bases = [path for disk in disks for path in disk.backing_files]
        looked_at = [*at_target.values(), *map(parent, at_target.values()), *_firmware_of(xml), *bases]
        access = self._connections.access(host), self._connections.access(target)
        files_here, files_there = await asyncio.gather(
            read_files(access[0], paths),
            read_files(access[1], looked_at),
        )
        one_machine = bool(files_here.boot_id) and files_here.boot_id == files_there.boot_id
        same = {
            path: same_file(files_here.file(path), files_there.file(moved), one_machine=one_machine)
            for path, moved in at_target.items()
        }
        unclear = {
            path: (files_here.file(path), files_there.file(at_target[path]))
            for path, answer in same.items()
            if answer is SameFile.UNKNOWN and files_here.file(path).kind is FileKind.REGULAR
        }
        if unclear:
            same |= await probe_sharing(*access, unclear)
        found = [
            finding("libvirt-firmware", f"{path} does not exist at {target}")
            for path in _firmware_of(xml)
            if not files_there.file(path).exists
        ]
        if xml.virt == "kvm" and not files_there.kvm:
            found.append(finding("kvm-missing", f"{xml.name} runs under KVM, and {target} has none"))
        sizes = {disk.device: disk for disk in leaving.disks}
        for disk in disks:
            path = at_target[disk.source]
            if policy.disks is not CopiedDisks.NONE and not files_there.file(path).exists:
                found += copied(disk, sizes.get(disk.target), target, files_there, path=path, policy=policy)
            else:
                found += _disk(disk, target, files_here, files_there, same[disk.source], path=path)
        return [*found, *_room(found, target)]

    async def _links(self, xml: DomainXml, target: str) -> list[Finding]:
        """Return what the guest's network hangs on and the target lacks; its host is asked only where it does."""
        if not xml.bridges and not xml.direct_devices:
            return []
        there = await self._connections.facts.recent(target)
        return [
            *(
                finding("bridge-missing", f"bridge {bridge} of {xml.name} does not exist at {target}")
                for bridge in xml.bridges
                if bridge not in there.bridges
            ),
            *(
                finding("net-interface", f"interface {device} of {xml.name} does not exist at {target}")
                for device in xml.direct_devices
                if device not in there.interfaces
            ),
        ]


def refused_wishes(policy: Policy) -> Iterator[Finding]:
    """Yield what the policy asks for and a move by libvirt has not: it must not go on without that unsaid."""
    if policy.stream is StreamRoute.SSH:
        yield finding(
            "libvirt-policy",
            "the policy has the stream go through SSH (stream = ssh), and libvirt sends it from QEMU to QEMU",
            "set stream to direct, and tls to require where it is to be encrypted",
        )
    if policy.disks is CopiedDisks.ALL:
        yield finding(
            "libvirt-policy",
            "the policy has all disks copied (disks = all), and libvirt writes over no image that is there already",
            "set disks to auto, which copies those that the target has not",
        )


def copied(
    disk: DiskXml, facts: Disk | None, target: str, there: HostFiles, *, path: str, policy: Policy
) -> Iterator[Finding]:
    """Yield findings about a disk whose image is not at the target, and is made and filled there where it can be.

    :param path: of its image there.
    """
    missing = f"{path} of disk {disk.target} does not exist at {target}"
    where = there.file(parent(path))
    if disk.read_only or not where.exists or disk.kind != "file":
        yield finding("disk-file-missing", missing)
        return
    if why := _not_copied(disk, facts, path, policy):
        yield finding("disk-not-copied", f"{missing}, and cannot be copied to there: {why[0]}", why[1])
        return
    if facts is None:
        raise RuntimeError("it is said why not")
    needed = facts.copied_bytes(keep_backing=False)
    yield copied_disk(
        f"{missing}: it is copied to there first ({show_bytes(needed)} of {show_bytes(facts.virtual_bytes)})",
        copied_bytes=needed,
        directory=parent(path),
        file_system=where.device,
        free_bytes=where.free_bytes,
        held_bytes=where.held_bytes,
    )


def _not_copied(disk: DiskXml, facts: Disk | None, path: str, policy: Policy) -> tuple[str, str] | None:
    """Return why no image at that path is made for a disk, and what to do; ``None`` where one can be."""
    if disk.based and policy.backing is Backing.KEEP:
        return (
            "the policy would have it based on the same image there (backing = keep), which libvirt is not asked for",
            "set backing to flatten, which copies what it is based on too",
        )
    if facts is None or facts.format not in ("raw", "qcow2"):
        return f"its driver is {disk.format or 'not known'}", ""
    if path.startswith("/dev/"):
        return (
            "image_directories would have it be a block device there",
            "have that directory of the target be one of files, or use virsh migrate --copy-storage-all --xml",
        )
    if policy.source_images is SourceImages.REMOVE:
        return (
            "the policy would have its source removed (source_images = remove), which is not done",
            "set source_images to keep, and delete the old image once the guest was seen to do well",
        )
    return None


def _firmware_of(xml: DomainXml) -> list[str]:
    """Return the paths of the firmware that a guest was started with."""
    return [xml.loader] if xml.loader else []


def _room(found: Sequence[Finding], target: str) -> Iterator[Finding]:
    """Yield findings about file systems that have no room for the disks that would be copied to there."""
    disks = copied_disks(found)
    for file_system, needed in by_file_system(disks).items():
        where = next(disk for disk in disks if disk.file_system == file_system)
        if needed > where.free_bytes:
            yield finding(
                "disk-room",
                f"{where.directory} at {target} has {show_bytes(where.free_bytes)} left, and {show_bytes(needed)} of "
                "the guest's disks would be copied to there",
            )


def _disk(
    disk: DiskXml, target: str, here: HostFiles, there: HostFiles, same: SameFile, *, path: str
) -> Iterator[Finding]:
    """Yield what speaks against one disk that is an image, or a block device, of the host.

    :param path: of it at the target.
    """
    if not there.file(path).exists:
        yield finding("disk-file-missing", f"{path} of disk {disk.target} does not exist at {target}")
        return
    for base in disk.backing_files:
        if not there.file(base).exists:
            text = f"{base}, which {path} of disk {disk.target} is based on, does not exist at {target}"
            yield finding("backing-missing", text)
    if disk.read_only:
        return
    if same is SameFile.NO:
        text = (
            f"{path} of disk {disk.target} is another file at {target}: the guest would go on with old data"
        )
        yield finding("disk-not-shared", text)
        return
    if same is SameFile.UNKNOWN:
        text = f"whether {path} of disk {disk.target} is the same file at {target} cannot be told"
        yield finding("disk-maybe-not-shared", text)
    if why := unsafe_disk(disk, here.file(disk.source).filesystem):
        yield finding("libvirt-unsafe-cache", f"{path} of disk {disk.target}: {why}")
