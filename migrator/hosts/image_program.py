"""Program at a host that reads disks block by block, for a comparison, and removes images that guests have left.

Run by the python3 there (``python3 -I -c PROGRAM MODE``), which is told over standard input what is wanted; it uses the
standard library alone, and says what it finds in lines of JSON on its standard output.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

#: Of the NBD protocol: what a server begins with, an answer to an option, a request, and an answer to one.
_GREETING, _OPTION = b"NBDMAGICIHAVEOPT", b"IHAVEOPT"
_OPTION_REPLY, _REQUEST, _REPLY = 0x3E889045565A9, 0x25609513, 0x67446698
_GO, _ACK, _INFO, _DISCONNECT = 7, 1, 3, 2
#: Seconds for a server to begin, and for it to answer.
_BEGIN_SECONDS, _ANSWER_SECONDS = 10.0, 60.0
#: Entries of a directory that are looked at for images that are based on one.
_MOST_ENTRIES = 20_000
_QCOW2 = b"QFI\xfb"
_MOST_NAME = 4096
#: Asks for a lock of an open file, as QEMU's are (``F_OFD_GETLK``, which Python has a name for since 3.9).
_GET_LOCK = 36


class ImageProblem(Exception):
    """Something that is said, in one line, to whoever began the program."""


def say(**what: Any) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _connected(path: str, within: float) -> socket.socket:
    """Connect to a server; the file of its socket is there a moment before it listens."""
    until = time.monotonic() + within
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(path)
            return connection
        except OSError as error:
            connection.close()
            if not isinstance(error, ConnectionRefusedError) or time.monotonic() >= until:
                raise
        time.sleep(0.01)


class NbdDisk:
    """A disk that is served over NBD at a unix socket.

    :param within: seconds in which its server begins to listen, where that has only just been started.
    :raise OSError: there is no server, or it has gone.
    """

    def __init__(self, path: str, export: str, *, within: float = 0.0) -> None:
        self._socket = _connected(path, within)
        if not self._take(18).startswith(_GREETING):
            raise ImageProblem(f"there is no NBD server at {path}")
        name = export.encode()
        data = struct.pack(">L", len(name)) + name + struct.pack(">H", 0)
        self._socket.sendall(struct.pack(">L", 3) + _OPTION + struct.pack(">LL", _GO, len(data)) + data)
        self.size = -1
        while True:
            magic, _, answer, length = struct.unpack(">QLLL", self._take(20))
            content = self._take(length)
            if magic != _OPTION_REPLY or answer >= 1 << 31:
                raise ImageProblem(
                    f"{export} is not served: {content.decode(errors='replace') or hex(answer)}"
                )
            if answer == _ACK:
                break
            if answer == _INFO and content[:2] == b"\0\0":
                self.size = struct.unpack(">Q", content[2:10])[0]
        if self.size < 0:
            raise ImageProblem(f"the size of {export} was not told")

    def _take(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._socket.recv(min(count, 1 << 20))
            if not part:
                raise ImageProblem("the disk's server has gone")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def read(self, offset: int, length: int) -> bytes:
        """Return what is there."""
        self._socket.sendall(struct.pack(">LHHQQL", _REQUEST, 0, 0, 1, offset, length))
        magic, error, _ = struct.unpack(">LLQ", self._take(16))
        if magic != _REPLY or error:
            raise ImageProblem(f"{length} bytes at {offset} cannot be read: {os.strerror(error)}")
        return self._take(length)

    def close(self) -> None:
        """Say that nothing more is wanted."""
        with contextlib.suppress(OSError):
            self._socket.sendall(struct.pack(">LHHQQL", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        self._socket.close()


@contextlib.contextmanager
def served(image: str, form: str) -> Iterator[str]:
    """Serve an image that no QEMU has open, to be read by one client; yield the path of the socket."""
    with tempfile.TemporaryDirectory(prefix="migrator-") as directory:
        path = f"{directory}/nbd"
        # It ends with its only client, whatever becomes of this program.
        argv = ["qemu-nbd", "--read-only", "--shared=1", f"--socket={path}", f"--format={form}"]
        with subprocess.Popen(
            [*argv, "--export-name=disk", "--", image], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            try:
                until = time.monotonic() + _BEGIN_SECONDS
                while not os.path.exists(path) and process.poll() is None and time.monotonic() < until:
                    time.sleep(0.01)
                if not os.path.exists(path):
                    process.kill()
                    said = (process.stderr.read() if process.stderr else b"").decode(errors="replace")
                    raise ImageProblem(
                        f"{image} cannot be opened: {' '.join(said.split())[-300:] or 'no answer'}"
                    )
                yield path
            finally:
                process.kill()  # it only reads, and is not to be waited for


def identity(image: str) -> list[int]:
    """Return what tells a file, as it is now, from every other: device, inode, size, and time of its last change."""
    at = os.lstat(image)
    return [at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns]


def digests(wanted: dict[str, Any]) -> None:
    """Print the digest of each block of a disk that is not all zeroes, then the size of the disk.

    ``socket`` and ``export``: of a server; or ``image`` and ``format``. ``block``: bytes. ``ranges``: the first
    block and how many. ``rate``: bytes per second that are read at most.
    """
    if "image" not in wanted:
        say(size=_digests(NbdDisk(wanted["socket"], wanted["export"]), wanted))
        return
    before = identity(wanted["image"])
    with served(wanted["image"], wanted["format"]) as path:
        size = _digests(NbdDisk(path, "disk", within=_BEGIN_SECONDS), wanted)
    if identity(wanted["image"]) != before:
        raise ImageProblem(f"{wanted['image']} was written to while it was read")
    say(size=size, identity=before)


def _digests(disk: NbdDisk, wanted: dict[str, Any]) -> int:
    block = wanted["block"]
    zeroes, began, count = bytes(block), time.monotonic(), 0
    lines: list[str] = []
    for number in (first + each for first, many in wanted["ranges"] for each in range(many)):
        offset = number * block
        length = min(block, disk.size - offset)
        if length <= 0:
            break
        content = disk.read(offset, length)
        if content != (zeroes if length == block else bytes(length)):
            lines.append(f"{number} {hashlib.blake2b(content, digest_size=16).hexdigest()}")
            count += length
            ahead = count / wanted["rate"] - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)
    size = disk.size
    disk.close()
    say(digests=lines)
    return size


def user_of(image: str, names: list[str], directories: list[str]) -> str:
    """Return why an image may be in use by another in its directory, in one of these or below them, or beside an image
    that a process has open.

    That is based on a file of one of these names, or cannot be read; empty: there is none.
    """
    reals = {os.path.realpath(each) for each in names}
    said = ""
    for directory in sorted({os.path.dirname(image), *directories_in_use()}):
        said = said or _user_in(directory, names, reals, below=False)
    for directory in dict.fromkeys(directories):
        said = said or _user_in(directory, names, reals, below=True)
    return said


def directories_in_use() -> set[str]:
    """Return the directories in which processes have a qcow2 image open, as far as we may know: guests that are at rest
    have theirs beside those of guests that run.
    """
    found = set()
    for at in _open_files():
        with contextlib.suppress(OSError):
            there = os.stat(at)
            # Opening or reading others, as those of /proc, may wait, or do something.
            if not stat.S_ISREG(there.st_mode) or not there.st_blocks:
                continue
            with open(at, "rb") as file:
                if file.read(4) == _QCOW2:
                    found.add(os.path.dirname(os.readlink(at)))
    return found


def _open_files() -> Iterator[str]:
    """Yield the path in /proc of each open file of each process, as far as we may know."""
    for process in os.listdir("/proc"):
        if process.isdigit():
            with contextlib.suppress(OSError):
                yield from [f"/proc/{process}/fd/{number}" for number in os.listdir(f"/proc/{process}/fd")]


def _user_in(directory: str, names: list[str], reals: set[str], *, below: bool) -> str:
    left, count = [directory], 0
    while left:
        at = left.pop()
        try:
            entries = list(os.scandir(at))
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{at}, which cannot be read ({error.strerror}), may have an image that is based on it"
        count += len(entries)
        if count > _MOST_ENTRIES:
            many = f"one of more than {_MOST_ENTRIES} files in {directory}"
            return f"{many}, which are not looked at, may be based on it"
        for entry in entries:
            if below and entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
            elif entry.is_file(follow_symlinks=False) and (why := _why_user(entry.path, names, reals)):
                return why
    return ""


def _why_user(path: str, names: list[str], reals: set[str]) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(32)
            if head[:4] != _QCOW2 or len(head) < 20:
                return ""
            offset, length = struct.unpack(">QL", head[8:20])
            if not offset:
                return ""
            file.seek(offset)
            name = os.fsdecode(file.read(min(length, _MOST_NAME)))
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path}, which cannot be read ({error.strerror}), may be based on it"
    of = name.removeprefix("file:")
    # In JSON names of files may be written in other ways.
    said = [os.path.basename(each) for each in names] if name.startswith("json:") else names
    if os.path.realpath(os.path.join(os.path.dirname(path), of)) in reals or any(
        each in name for each in said
    ):
        return f"{path} is based on it"
    return ""


def locked(image: str) -> bool:
    """Tell whether a process has a lock on a file, as every QEMU has that has it open."""
    at = os.lstat(image)
    this = f"{os.major(at.st_dev):02x}:{os.minor(at.st_dev):02x}:{at.st_ino}"
    with open("/proc/locks", encoding="ascii", errors="replace") as locks:
        if any(this in line.split() for line in locks):
            return True
    # Some file systems (btrfs, overlays) have another number there; a server of files knows of other hosts' locks.
    with open(image, "rb") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        held, *_ = struct.unpack("hhqqi4x", fcntl.fcntl(file, _GET_LOCK, asked))
        return bool(held != fcntl.F_UNLCK)


def opened(image: str) -> bool:
    """Tell whether a process has a file open, as far as we may know."""
    at = os.lstat(image)
    for each in _open_files():
        with contextlib.suppress(OSError):
            there = os.stat(each)
            if (there.st_dev, there.st_ino) == (at.st_dev, at.st_ino):
                return True
    return False


def remove(wanted: dict[str, Any]) -> None:
    """Remove an image that is as it was when it was compared, and that nobody has any use for.

    ``image``; ``named``: its name before the guest left; ``directories``: where other images are, besides its own;
    ``identity``: as :func:`digests` told it. Prints ``done``, and ``why`` where that is false; an image that is
    not there any more is done.
    """
    image = wanted["image"]
    try:
        at = os.lstat(image)
    except FileNotFoundError:
        say(done=True)
        return
    why = ""
    if not stat.S_ISREG(at.st_mode):
        why = "it is no regular file any more"
    elif not (why := user_of(image, [image, wanted["named"]], wanted.get("directories", []))):
        # What may have changed while the directory was looked through is looked at last.
        if identity(image) != wanted["identity"]:
            why = "it is another file by now, or was written to"
        elif locked(image) or opened(image):
            why = "a process has it open"
    if why:
        say(done=False, why=why)
        return
    os.unlink(image)
    descriptor = os.open(os.path.dirname(image), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    say(done=True)


def main() -> int:
    """Do one thing: the mode is the only argument, what is wanted comes as JSON over standard input."""
    wanted = json.load(sys.stdin)
    try:
        {"digests": digests, "remove": remove}[sys.argv[1]](wanted)
    except (OSError, ImageProblem) as error:
        say(why=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
