"""Files of a host and nothing else of it; those of this machine are read in this process.

The script that other hosts are read with starts a dozen programs, which takes longer than libvirt to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from migrator.core.process.files import HostFiles
from migrator.errors import HostError
from migrator.hosts.access import HostAccess
from migrator.hosts.host_files import FileQuery, parse, read_host_files
from migrator.hosts.local import LocalAccess

#: What the script tells of a host besides its files: of processes, locks, network and QEMUs nothing is told here.
_BEFORE_MOUNTS, _BEFORE_BOOT, _OF_QEMU = 3, 3, 6


async def read_files(access: HostAccess, paths: Sequence[str], *, timeout: float = 30.0) -> HostFiles:
    """Return the files, whether the host has KVM, and the id of its boot.

    :param paths: absolute.
    :raise HostError: when the host cannot be asked, or did not answer in time.
    """
    if isinstance(access, LocalAccess) and not access.prefix:
        try:
            told = await _read(paths, timeout=timeout)
        except TimeoutError:
            raise HostError(access.name, f"its files do not answer within {timeout:g} s") from None
        if told is not None:
            return parse(told, paths=paths, images={}, directory="/")
    return await read_host_files(access, FileQuery(paths=paths), timeout=timeout)


async def _read(paths: Sequence[str], *, timeout: float) -> list[str] | None:
    """Return what the script would tell of these files; ``None`` where one takes the script, as block devices do.

    :raise TimeoutError: a file system did not answer in time.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[str] | None] = loop.create_future()

    def read() -> None:
        found = _told(paths)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(found))

    threading.Thread(target=read, name="read files", daemon=True).start()
    async with asyncio.timeout(timeout):
        return await future


def _told(paths: Sequence[str]) -> list[str] | None:
    mounts = _content("/proc/self/mountinfo")
    boot = _content("/proc/sys/kernel/random/boot_id").split("\n")[0]
    told = [*[""] * _BEFORE_MOUNTS, mounts, *[""] * _BEFORE_BOOT, boot, "kvm" if _opens("/dev/kvm") else ""]
    told += [""] * _OF_QEMU
    for path in paths:
        try:
            answers = _file(path)
        except OSError:
            answers = ["", "", ""]  # nothing, or nothing that may be looked at
        if answers is None:
            return None
        told += answers
    return told


def _file(path: str) -> list[str] | None:
    """Return what is told of one file; ``None`` where this does not know how.

    :raise OSError: it is not there.
    """
    seen = Path(path).stat()
    if stat.S_ISBLK(seen.st_mode):
        return None  # what is unique of it stands in many files
    if stat.S_ISDIR(seen.st_mode) and any(Path(path).glob(".migrator-room-*")):
        return None  # of what is held there the script knows what counts
    modes = (("r", os.R_OK), ("w", os.W_OK), ("x", os.X_OK))
    access = "".join(letter for letter, mode in modes if os.access(path, mode))
    room = os.statvfs(path)
    numbers = (
        f"{seen.st_mode:x} {seen.st_size} {seen.st_dev} {seen.st_ino} {os.major(seen.st_rdev):x} "
        f"{os.minor(seen.st_rdev):x} {seen.st_uid} {seen.st_gid} {stat.S_IMODE(seen.st_mode):o} {access}- "
        f"{room.f_frsize} {room.f_bavail}"
    )
    return [numbers, "", os.path.realpath(path)]


def _content(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    return ""


def _opens(path: str) -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        return True
    return False
