"""Findings against a host because of the guest's disks. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.core.findings import finding
from migrator.core.model import Finding
from migrator.core.policy import CopiedDisks
from migrator.core.preflight import host_process
from migrator.core.preflight.facts import Disk, Facts
from migrator.core.preflight.host_pair import HostPair
from migrator.core.preflight.new_images import check_new_flash, check_new_image, check_room
from migrator.core.process.command_line import ImageUse, path_of
from migrator.core.process.files import COHERENT, FileFacts, FileKind, SameFile, parent, same_file
from migrator.core.process.image_paths import ImagePaths

#: Formats whose images may be based on others. Their names are given to qemu-img: it must never guess, because a
#: guest can write a header into a raw disk that names any file of the host.
CHAINED = frozenset({"qcow2", "qed", "vmdk", "qcow", "vhdx", "vpc"})
_FDSET = "/dev/fdset/"
#: Protocols behind which there is nothing to reach.
_NOWHERE = ("null-co:", "null-aio:", "blkdebug:", "fat:", "vvfat:")


def images(source: Facts) -> dict[str, str]:
    """Return the paths of the images that may be based on others, with their format."""
    found = {path_of(disk.file): disk.format for disk in source.disks if disk.format in CHAINED}
    found.pop("", None)
    return found


def paths_to_probe(pair: HostPair) -> list[str]:
    """Return the paths of the disks whose identities do not tell whether both hosts see the same file."""
    unclear = []
    for path in _writable_paths(pair.source):
        here, there = pair.image(path)
        if (
            here.kind is FileKind.REGULAR
            and there.exists
            and same_file(here, there, one_machine=pair.one_machine) is SameFile.UNKNOWN
        ):
            unclear.append(path)
    return unclear


def _writable_paths(source: Facts) -> list[str]:
    paths = [path_of(disk.file) for disk in source.disks if not disk.read_only and not disk.is_flash]
    return list(dict.fromkeys(path for path in paths if path))


def check(pair: HostPair) -> Iterator[Finding]:
    """Yield findings about every disk of the guest."""
    uses = {image.path: image for image in pair.command.images()}
    throwaway = [image for image in uses.values() if image.snapshot]
    for image in throwaway:
        yield finding(
            "snapshot", f"what the guest writes to {image.path} goes to a temporary file (snapshot=on)"
        )
    of_disks = set()
    for disk in pair.source.disks:
        path = path_of(disk.file)
        of_disks.add(path)
        if not path:
            everything = pair.policy is not None and pair.policy.disks is CopiedDisks.ALL
            if everything and not (disk.read_only or disk.is_flash):
                yield finding(
                    "disk-not-copied",
                    f"disk {disk.device} ({disk.file}) is no file of the host, and the policy would have it copied "
                    "(disks = all): it would be written over with itself",
                    "set disks = auto",
                )
            if ":" in disk.file and not disk.file.startswith((*_NOWHERE, "json:")):
                yield finding("disk-remote", f"disk {disk.device} is {disk.file}")
            continue
        if path.startswith(_FDSET):
            yield finding(
                "passed-descriptor",
                f"disk {disk.device} is an open file ({path}) that another program handed to QEMU",
            )
            continue
        if throwaway and (path not in uses or uses[path].snapshot):
            continue  # the temporary file, or what is beneath it: said above
        yield from _disk(pair, disk, path, uses.get(path))
    yield from check_room(pair)
    for path in sorted(uses.keys() - of_disks):
        if path.startswith(_FDSET) or uses[path].snapshot:
            continue
        if not pair.files_there.file(path).exists and not pair.image(path)[1].exists:
            yield finding("disk-file-missing", f"{path} does not exist at {pair.target}")


def _disk(pair: HostPair, disk: Disk, path: str, use: ImageUse | None) -> Iterator[Finding]:
    written = not disk.read_only and not disk.is_flash
    here, there = pair.image(path) if written else pair.files(path)
    replaced = list(host_process.disk_replaced(pair.process, path, here, disk.device))
    if replaced:
        yield from replaced
        return
    if disk.is_flash and not disk.read_only and not there.exists:
        yield from check_new_flash(pair, disk, path)
        return
    if not there.exists:
        yield from check_new_image(pair, disk, path, use)
        return
    needed = there.readable and (disk.read_only or there.writable)
    if not needed:
        tried = pair.process is not None and pair.process.target is not None
        user = "that QEMU will be there" if tried else "that migrator is there"
        at = _at_target(pair, disk, path)
        number = "" if pair.files_there.user is None else f" (uid {pair.files_there.user})"
        yield finding(
            "disk-access",
            f"{at} of disk {disk.device} cannot be {'read' if disk.read_only else 'written'} at {pair.target} by "
            f"the user {user}{number}; it belongs to {there.owner}:{there.group}, mode {there.permissions:o}",
        )
    yield from _backing(pair, disk, path)
    if disk.read_only:
        if here.exists and here.size_bytes != there.size_bytes:
            yield _other_size(pair, disk, path)
        return
    yield from _shared(pair, disk, path, use)


def _shared(pair: HostPair, disk: Disk, path: str, use: ImageUse | None) -> Iterator[Finding]:
    """Yield findings where source and target do not write to the same file, or may not."""
    here, there = pair.files(path) if disk.is_flash else pair.image(path)
    same = _same(pair, disk, path)
    if disk.is_flash and same is not SameFile.YES:
        if disk.format not in CHAINED and here.exists and here.size_bytes != there.size_bytes:
            yield _other_size(pair, disk, path)
        elif f"{there.device}:{there.inode}" in pair.files_there.written:
            yield _locked(pair, disk, path)
        return
    if same is SameFile.NO:
        yield finding(
            "disk-not-shared",
            f"{_at_target(pair, disk, path)} of disk {disk.device} is another file at {pair.target}"
            f"{_where(here, there)}: the guest would go on with other contents, and what is there is never written "
            "over",
        )
        return
    if pair.policy is not None and pair.policy.disks is CopiedDisks.ALL and not disk.is_flash:
        seen = "is the same" if same is SameFile.YES else "may be the same"
        yield finding(
            "disk-not-copied",
            f"{path} of disk {disk.device} {seen} file at {pair.target}, and the policy would have it copied "
            "(disks = all): it would be written over with itself",
            "set disks = auto",
        )
    if same is SameFile.UNKNOWN:
        yield finding(
            "disk-maybe-not-shared",
            f"whether {path} of disk {disk.device} is the same at {pair.target} cannot be seen{_where(here, there)}",
        )
    if not pair.one_machine:
        yield from _two_machines(pair, disk, path, use)
    if use is not None and not use.locked:
        yield finding("disk-lock-off", f"QEMU does not lock {path} of disk {disk.device} (locking=off)")


def paths_to_read(source: Facts, image_paths: ImagePaths) -> list[str]:
    """Return the paths to be looked at besides the disks' own: where an image is, or would be, and its directory."""
    paths = [path_of(disk.file) for disk in source.disks if not disk.read_only]
    found = [image_paths.at_target(path) for path in paths if path.startswith("/")]
    return [each for path in found for each in ([parent(path)] if path in paths else [path, parent(path)])]


def _other_size(pair: HostPair, disk: Disk, path: str) -> Finding:
    here, there = pair.files(path)
    return finding(
        "disk-size",
        f"{path} of disk {disk.device} has {here.size_bytes} bytes at the source and {there.size_bytes} at "
        f"{pair.target}",
    )


def _locked(pair: HostPair, disk: Disk, path: str) -> Finding:
    return finding(
        "disk-locked", f"a process at {pair.target} holds {path} of disk {disk.device} open for writing"
    )


def _at_target(pair: HostPair, disk: Disk, path: str) -> str:
    return path if disk.read_only or disk.is_flash else pair.image_paths.at_target(path)


def _same(pair: HostPair, disk: Disk, path: str) -> SameFile:
    here, there = pair.files(path) if disk.is_flash else pair.image(path)
    if not here.exists:
        return SameFile.UNKNOWN
    same = same_file(here, there, one_machine=pair.one_machine)
    return pair.probed.get(path, same) if same is SameFile.UNKNOWN else same


def _where(here: FileFacts, there: FileFacts) -> str:
    if not here.mount_source or not there.mount_source:
        return ""
    return (
        f" ({here.filesystem} of {here.mount_source} here, {there.filesystem} of {there.mount_source} there)"
    )


def _two_machines(pair: HostPair, disk: Disk, path: str, use: ImageUse | None) -> Iterator[Finding]:
    there = pair.files_there.file(_at_target(pair, disk, path))
    if f"{there.device}:{there.inode}" in pair.files_there.written:
        yield _locked(pair, disk, path)
    # A flash is read into memory when QEMU starts, and goes on from there at the target.
    if there.filesystem in COHERENT or disk.is_flash:
        return
    opened = pair.opened.get(path, use)
    if opened is None:
        yield finding("cache-unknown", f"how {path} of disk {disk.device} is cached cannot be seen")
    elif not opened.direct:
        how = "cache=unsafe" if opened.no_flush else "no cache=none or directsync"
        yield finding(
            "cache-unsafe",
            f"{path} of disk {disk.device} goes through the page cache ({how}), and {pair.target} is another machine",
        )


def _backing(pair: HostPair, disk: Disk, path: str) -> Iterator[Finding]:
    if disk.format not in CHAINED:
        return
    mine, theirs = pair.files_here.chains.get(path), pair.files_there.chains.get(_at_target(pair, disk, path))
    # What QEMU itself has open counts; the command line may say otherwise than the image.
    chain = pair.based.get(path) or mine or theirs
    if chain is None:
        complaint = pair.files_there.complaints.get(path, "")
        yield finding(
            "backing-unknown",
            f"what {path} of disk {disk.device} is based on cannot be read"
            + (f": {complaint}" if complaint else " (no qemu-img)"),
        )
        return
    if mine and theirs and mine[1:] != theirs[1:]:
        yield finding(
            "backing-differs",
            f"{path} of disk {disk.device} is based on {_chain(mine)} here and on {_chain(theirs)} at {pair.target}",
        )
        return
    for file in chain[1:]:
        here, there = pair.files(file)
        if not there.exists:
            yield finding(
                "backing-missing",
                f"{file}, which {path} of disk {disk.device} is based on, does not exist at {pair.target}",
            )
        elif here.exists and same_file(here, there, one_machine=pair.one_machine) is not SameFile.YES:
            if here.size_bytes != there.size_bytes:
                yield finding(
                    "backing-differs",
                    f"{file}, which {path} of disk {disk.device} is based on, has {here.size_bytes} bytes here and "
                    f"{there.size_bytes} at {pair.target}",
                )
            else:
                yield finding(
                    "backing-not-shared",
                    f"{file}, which {path} of disk {disk.device} is based on, may be a copy at {pair.target}",
                )


def _chain(files: tuple[str, ...]) -> str:
    return ", ".join(files[1:]) or "nothing"
