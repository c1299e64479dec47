"""Findings about images that would be made at the target for a guest's disks, and about the room there. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.policy import Backing, CopiedDisks, SourceImages
from migrator.core.preflight.disk_images import longest_end_seconds, why_not_copied
from migrator.core.preflight.disk_room import copied_disk
from migrator.core.preflight.facts import Disk
from migrator.core.preflight.host_pair import HostPair
from migrator.core.process.command_line import ImageUse, path_of
from migrator.core.process.files import OF_MANY_HOSTS, FileKind, SameFile, parent, same_file
from migrator.units import show_bytes, show_seconds

#: A file of raw contents that ends within one of these is seen by the guest to its end.
_SECTOR_BYTES = 512
#: Room that is not known.
_ANY_ROOM = 1 << 62


def check_new_flash(pair: HostPair, disk: Disk, path: str) -> Iterator[Finding]:
    """Yield findings about a flash that is made before the destination is started."""
    where = pair.files_there.file(parent(path))
    if not path.startswith("/") or not where.exists:
        yield finding(
            "disk-file-missing",
            f"{path} of disk {disk.device} cannot be made at {pair.target}: there is no directory {parent(path)}",
        )
    elif not where.writable:
        yield finding(
            "disk-access",
            f"{path} of disk {disk.device} cannot be made at {pair.target}: {parent(path)} cannot be written to",
        )


def check_new_image(pair: HostPair, disk: Disk, path: str, use: ImageUse | None) -> Iterator[Finding]:
    """Yield findings about a disk whose image is not there at the target: one is made, and the contents are copied."""
    at = pair.image_paths.at_target(path)
    missing = f"{at} of disk {disk.device} does not exist at {pair.target}"
    refused = pair.policy is not None and pair.policy.disks is CopiedDisks.NONE
    replicated = pair.process is None or pair.process.replicated
    if disk.read_only or refused or not replicated:
        yield finding("disk-file-missing", missing)
        return
    if _is_volume(pair, path):
        yield from _new_volume(pair, disk, path, use)
        return
    where = pair.files_there.file(parent(at))
    if not path.startswith("/") or not where.exists:
        yield finding(
            "disk-file-missing",
            f"{missing}, and there is no directory {parent(at)} to make it in: "
            "an image is made at the same path, its directory is not",
            f"mount its storage there at the same path; where the disk is to be copied, make {parent(at)}, with "
            "the owner and mode that it has at the source, or say where it goes (image_directories)",
        )
        return
    here = pair.files_here.file(path)
    if here.filesystem in OF_MANY_HOSTS and (pair.policy is None or pair.policy.disks is not CopiedDisks.ALL):
        yield finding(
            "disk-file-missing",
            f"{missing}, and at the source it is on storage that hosts share ({here.filesystem} of "
            f"{here.mount_source}): it may not be mounted there",
            "mount it there; or have the disk copied all the same (disks = all)",
        )
        return
    if why := _why_not_made(pair, disk, path, use):
        yield finding("disk-not-copied", f"{missing}, and cannot be copied to there: {why}")
        return
    if not where.executable:
        yield finding(
            "disk-access", f"{missing}, and QEMU's user could not reach it in {parent(at)} if it were made"
        )
    needed = disk.copied_bytes(keep_backing=_keeps_backing(pair))
    based = (
        f", on the same base as now, {disk.image.backing_file}"
        if _keeps_backing(pair) and disk.image.backing_file
        else ""
    )
    yield copied_disk(
        f"{missing}: it is copied to there first ({show_bytes(needed)} of {show_bytes(disk.virtual_bytes)}){based}"
        + _burst(pair),
        copied_bytes=needed,
        directory=parent(at),
        file_system=where.device,
        free_bytes=where.free_bytes,
        held_bytes=where.held_bytes,
    )


def _new_volume(pair: HostPair, disk: Disk, path: str, use: ImageUse | None) -> Iterator[Finding]:
    """Yield findings about a block device that is not there at the target: the target's own commands make it."""
    at = pair.image_paths.at_target(path)
    missing = f"{at} of disk {disk.device} does not exist at {pair.target}"
    why = _why_not_made(pair, disk, path, use)
    if not why and disk.format not in ("raw", "qcow2"):
        why = f"a block device with {disk.format} in it is not made"
    if not why and not pair.volumes:
        yield finding(
            "disk-not-copied",
            f"{missing}, and is a block device: {pair.target} has no command that makes one",
            "give that host an image_template, as in config/migrator.toml; or make the disk reachable there",
        )
    elif why:
        yield finding("disk-not-copied", f"{missing}, and cannot be copied to there: {why}")
    else:
        # What a volume group or a pool has left is not known: whoever makes it refuses where that is too little.
        copied = (
            disk.virtual_bytes
            if disk.format == "raw"
            else disk.copied_bytes(keep_backing=_keeps_backing(pair))
        )
        yield copied_disk(
            f"{missing}: a volume is made there, and it is copied first ({show_bytes(copied)})",
            copied_bytes=copied,
            directory=parent(at),
            file_system=f"volumes of {parent(at)}",
            free_bytes=_ANY_ROOM,
        )


def _why_not_made(pair: HostPair, disk: Disk, path: str, use: ImageUse | None) -> str:
    here = pair.files_here.file(path)
    if sum(path_of(other.file) == path for other in pair.source.disks) > 1:
        return "another disk of the guest has the same image, and each would get one of its own"
    if here.kind not in (FileKind.REGULAR, FileKind.BLOCK):
        return f"it is no regular file at the source ({here.kind})"
    if any(
        option.name == "chroot" or "chroot=" in option.text
        for option in pair.command.all("chroot", "run-with")
    ):
        return "QEMU runs in a directory of its own (chroot)"
    chain = pair.based.get(path) or pair.files_here.chains.get(path) or ()
    if len(chain) > 1 and any(
        "backing" in option.text for option in pair.command.all("drive", "blockdev", "set")
    ):
        return "its backing chain is given on the command line"
    if use is not None and use.snapshot:
        return "what the guest writes goes to a temporary file"
    if here.kind is FileKind.BLOCK and disk.format == "luks":
        return f"it is a block device with {disk.format} in it"
    if disk.format == "raw" and not here.size_bytes <= disk.virtual_bytes < here.size_bytes + _SECTOR_BYTES:
        what = "block device" if here.kind is FileKind.BLOCK else "file"
        return f"the guest sees {disk.virtual_bytes} bytes of the {here.size_bytes} of that {what}"
    remove = pair.policy is not None and pair.policy.source_images is SourceImages.REMOVE
    if here.kind is FileKind.BLOCK and remove:
        return "the policy would have its source removed (source_images = remove), and volumes are not: set it to keep"
    return why_not_copied(disk) or (_why_not_kept(pair, disk, chain) if _keeps_backing(pair) else "")


def _burst(pair: HostPair) -> str:
    """Return what a copied disk may cost a guest beyond its ceiling."""
    if pair.policy is None or pair.policy.offline:
        return ""
    longest = longest_end_seconds(pair.policy.max_downtime_seconds)
    return (
        f"; a burst of writes just before its switch may keep the guest standing for {show_seconds(longest)} before "
        "that is undone"
    )


def _keeps_backing(pair: HostPair) -> bool:
    return pair.policy is not None and pair.policy.backing is Backing.KEEP


def _why_not_kept(pair: HostPair, disk: Disk, chain: Sequence[str]) -> str:
    """Return why its image cannot be based on what it is based on now; empty where it can, or is based on nothing."""
    if not disk.image.backing_file:
        return ""
    at = pair.image_paths.at_target(path_of(disk.file))
    if at != path_of(disk.file) and not disk.image.backing_file.startswith("/"):
        return (
            f"what it is based on ({disk.image.backing_file}) is to be kept (backing = keep), and would not be found "
            f"from {at}"
        )
    if not disk.image.backing_format or disk.image.backing_file.startswith("json:"):
        return f"what it is based on ({disk.image.backing_file}) is to be kept (backing = keep), and is no plain file"
    for file in chain[1:] or (disk.image.backing_file,):
        here, there = pair.files(file)
        same = there.exists and same_file(here, there, one_machine=pair.one_machine) is SameFile.YES
        if not same:
            return (
                f"it is based on {file}, which is to be kept (backing = keep) and is not seen to be the same file at "
                f"{pair.target}: set backing = flatten"
            )
        if not there.readable:
            return f"it is based on {file}, which cannot be read at {pair.target}"
    return ""


def check_room(pair: HostPair) -> Iterator[Finding]:
    """Yield findings about file systems of the target that have no room for the images that would be made there."""
    wanted: Counter[str] = Counter()
    for disk in pair.source.disks:
        path = path_of(disk.file)
        there = pair.image(path)[1]
        if disk.read_only or disk.is_flash or not path or there.exists or _is_volume(pair, path):
            continue
        wanted[parent(pair.image_paths.at_target(path))] += disk.copied_bytes(
            keep_backing=_keeps_backing(pair)
        )
    devices: Counter[str] = Counter()
    for directory, needed in wanted.items():
        devices[pair.files_there.file(directory).device] += needed
    for directory in wanted:
        where = pair.files_there.file(directory)
        needed = devices.pop(where.device, 0)
        if where.exists and needed > where.free_bytes:
            yield finding(
                "disk-room",
                f"{directory} at {pair.target} has {show_bytes(where.free_bytes)} left, and {show_bytes(needed)} of "
                "the guest's disks would be copied to there",
            )


def _is_volume(pair: HostPair, path: str) -> bool:
    """Tell whether the image that would be made for a disk at the target is a block device."""
    return pair.image_paths.is_volume(path, here=pair.files_here.file(path).kind is FileKind.BLOCK)
