"""Program at a host that writes a guest's state into a file, or sends it to the QEMU that takes it up again.

One module, long as it is: its text is sent there as it stands, for ``python3 -c PROGRAM MODE PATH …``. So it uses the
standard library alone. It says what becomes
of it in lines of JSON on its standard output. It ends when its standard input does: whoever began it has gone.

Beside PATH, the state, is PATH.json: whose state it is, how a QEMU is started for it, its checksum, and whether it may
be used. The second is made after the first is whole and on the disk, and only what has both is anything at all. While
it is written the state is PATH.MIGRATION.part; whoever writes or reads it holds a lock on it.

A QEMU is started with what PATH.json says: it is believed only where nobody but root and this user can have written it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

_CHUNK = 1 << 20
#: Forms of a state: QEMU's stream; or each page at a place of its own, written and read by the QEMUs themselves.
STREAM, MAPPED = "stream", "mapped-ram"
#: Bytes that are held back until the file is marked as used: the QEMU cannot have taken the guest without them.
_LAST = 64
#: A description is longer than this only where something is wrong.
_MOST_DOCUMENT = 8 << 20
#: How QEMU ends a stream: a byte for its end, then one for the description of what is in it, its length, and it.
_END, _DESCRIPTION = b"\x00", b"\x06"
#: What of a description changes with the use that is made of the file; all else is covered by its checksum.
_CHANGES = frozenset({"state", "loaded_by", "loaded_at", "checksum"})
#: What a survey tells of a description.
_IN_SHORT = (
    "format",
    "migration",
    "state",
    "saved_at",
    "guest",
    "machine",
    "bytes",
    "loaded_by",
    "loaded_at",
)
#: Seconds in which somebody who only looks has let go of a lock.
_LOOK_SECONDS = 2.0


def say(**what: Any) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def sync_directory(path: str) -> None:
    """Have the names in the directory of a path on the disk."""
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def whole(file: Any, size: int) -> bool:
    """Tell whether a state ends as QEMU ends one; one that was cut off does not."""
    tail = min(size, 4 << 20)
    file.seek(size - tail)
    content = file.read(tail)
    at = content.rfind(_DESCRIPTION, 0, max(0, len(content) - 4))
    while at > 0:
        length = int.from_bytes(content[at + 1 : at + 5], "big")
        if at + 5 + length == len(content) and content[at - 1 : at] == _END:
            return True
        at = content.rfind(_DESCRIPTION, 0, at)
    return False


class Gone(Exception):
    """Whoever began it has gone."""


def read_input(*others: Any, timeout: float | None = None) -> list[Any]:
    """Wait until one of the others can be read.

    :raise Gone: the standard input has ended.
    """
    ready, _, _ = select.select([sys.stdin.buffer.fileno(), *others], [], [], timeout)
    if sys.stdin.buffer.fileno() in ready and not os.read(sys.stdin.buffer.fileno(), 4096):
        raise Gone
    return [each for each in ready if each != sys.stdin.buffer.fileno()]


def checksum(file: Any, form: str = STREAM) -> tuple[int, str]:
    """Return size and SHA-256 of a file, read from the disk.

    With ``mapped-ram`` it is that of the parts that are not zero, each with its place: most of such a file may be
    holes, and a copy of it may have others.

    :raise Gone: the standard input has ended meanwhile.
    """
    with contextlib.suppress(OSError):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    found, size = hashlib.sha256(), 0
    if form == MAPPED:
        size = os.fstat(file.fileno()).st_size
        for at in _data_chunks(file, size):
            chunk = os.pread(file.fileno(), _CHUNK, at)
            read_input(timeout=0)
            if chunk.count(0) != len(chunk):
                found.update(at.to_bytes(8, "big") + chunk)
        return size, found.hexdigest()
    while chunk := file.read(_CHUNK):
        read_input(timeout=0)
        found.update(chunk)
        size += len(chunk)
    return size, found.hexdigest()


def _data_chunks(file: Any, size: int) -> Iterator[int]:
    """Yield where the chunks of a file begin that may hold anything but zeroes."""
    at = 0
    while at < size:
        try:
            data = os.lseek(file.fileno(), at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # the rest is a hole
            raise
        hole = os.lseek(file.fileno(), data, os.SEEK_HOLE)
        at = max(at, data - data % _CHUNK)
        while at < hole:
            yield at
            at += _CHUNK


def distrust(path: str) -> str:
    """Return why what is at a path may be of somebody else than root and this user; empty where it cannot be.

    What is not there is no reason; directories in which nobody can rename what is another's (``/tmp``) are none either.
    """
    seen = set()
    for start in (os.path.abspath(path), os.path.join(os.path.realpath(os.path.dirname(path)), "x")):
        name = start
        while name not in seen:
            seen.add(name)
            with contextlib.suppress(FileNotFoundError):
                if why := _foreign(name, os.lstat(name)):
                    return why
            name = os.path.dirname(name)
    return ""


def _foreign(name: str, found: os.stat_result) -> str:
    user, group = os.geteuid(), os.getegid()
    if found.st_uid not in (0, user):
        return f"{name} belongs to another user (uid {found.st_uid})"
    if stat.S_ISLNK(found.st_mode) or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return ""
    # A group of the user's own has the number of the user, as a rule.
    own_group = found.st_gid == 0 or found.st_gid == group == user
    if found.st_mode & (stat.S_IWOTH | (0 if own_group else stat.S_IWGRP)):
        return f"others may write to {name}"
    return ""


def open_regular(name: str, flags: int) -> Any:
    """Open a file, and nothing else: a device may begin to do something when it is opened.

    :raise OSError: it is none.
    """
    file = os.fdopen(
        os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY),
        "r+b" if flags & os.O_RDWR else "rb",
    )
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(f"{name} is no file")


def is_regular(name: str) -> bool:
    """Tell whether there is a file of that name; a link to one is none."""
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.lstat(name).st_mode)
    return False


def lock(file: Any) -> None:
    """Lock a file that is open for writing, as file systems of a network want it.

    :raise BlockingIOError: somebody works on it.
    """
    until = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def stamp(image: str, *, settle: bool = False) -> list[int]:
    """Return size and time of the last change of an image; nothing where it is no file: a device has no such time.

    :param settle: have them on the disk first.
    """
    with contextlib.suppress(OSError):
        found = os.stat(image)
        if not stat.S_ISREG(found.st_mode):
            return []
        if settle:
            with open(image, "rb") as file:
                os.fsync(file.fileno())
                found = os.fstat(file.fileno())
        return [found.st_size, found.st_mtime_ns]
    return []


def file_system_of(path: str) -> str:
    """Return where the file system is mounted that a file is on, or would be; empty: there is no such directory."""
    directory = os.path.realpath(os.path.dirname(path))
    if not os.path.isdir(directory):
        return ""
    while not os.path.ismount(directory):
        directory = os.path.dirname(directory)
    return directory


def no_room(error: OSError, path: str, document: dict[str, Any], written: int) -> OSError:
    """Return an error that says which file system lacks room, and how much, where that is what an error says."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    memory = int(document.get("facts", {}).get("memory_bytes", 0))
    short = f", and the state of a guest with {memory >> 20} MiB may take {max(0, memory - written) >> 20} MiB more"
    where = f"the file system at {file_system_of(path)} took {written >> 20} MiB of it"
    return OSError(f"{path}: {error.strerror}: {where}{short if memory else ''}")


def part_of(path: str, migration: str) -> str:
    """Return the name of a state while it is written, by one migration alone."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", migration):
        raise ValueError(f"{migration!r} is no migration's id")
    return f"{path}.{migration}.part"


def document_checksum(document: dict[str, Any]) -> str:
    """Return the SHA-256 of what never changes in a description."""
    kept = {key: value for key, value in document.items() if key not in _CHANGES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def write_document(path: str, document: dict[str, Any], *, new: bool) -> None:
    """Write PATH.json so that it is there as a whole or not at all."""
    made = part_of(f"{path}.json", document["migration"])
    with contextlib.suppress(FileNotFoundError):
        os.unlink(made)
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        json.dump({**document, "checksum": document_checksum(document)}, file)
        file.flush()
        os.fsync(file.fileno())
    if new:
        os.link(made, f"{path}.json")  # fails where there is one
        os.unlink(made)
    else:
        os.replace(made, f"{path}.json")
    sync_directory(path)


def read_document(path: str) -> dict[str, Any] | None:
    """Return what PATH.json says; ``None`` where there is none.

    :raise OSError: it is not to be believed.
    """
    try:
        with open_regular(f"{path}.json", os.O_RDONLY) as file:
            found = json.loads(file.read(_MOST_DOCUMENT))
    except FileNotFoundError:
        return None
    if why := distrust(f"{path}.json") or distrust(path):
        raise PermissionError(
            1, f"it is not believed, as a QEMU is started with what it says: {why}", f"{path}.json"
        )
    if not isinstance(found, dict):
        raise TypeError(f"{path}.json is no description of a saved guest")
    if found.get("checksum") != document_checksum(found):
        raise ValueError(f"{path}.json is not what was written: its checksum is another")
    return found


def receive(path: str) -> None:
    """Take a stream at a socket of its own, and make PATH and PATH.json of it."""
    document = json.loads(sys.stdin.buffer.readline(_MOST_DOCUMENT))
    if why := distrust(path):
        raise PermissionError(1, f"nothing is written there: {why}", path)
    for name in (path, f"{path}.json"):
        if os.path.lexists(name):
            raise FileExistsError(17, "it is there already", name)
    part, form = part_of(path, document["migration"]), document.get("form", STREAM)
    file = open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "r+b")  # noqa: SIM115
    directory = ""
    try:
        if why := _foreign(part, os.fstat(file.fileno())):
            raise PermissionError(1, f"nothing is written there: {why}", path)
        lock(file)
        if form == MAPPED:
            _let_write(part)
            size = os.fstat(file.fileno()).st_size
            written = ""
        else:
            directory = tempfile.mkdtemp(prefix="migrator-save-")
            _receive_stream(directory, file)
            size, written = file.tell(), taken.hexdigest()
        if not whole(file, size):
            raise OSError(f"the stream was cut off after {size} bytes")
        os.fsync(file.fileno())
        read = checksum(file, form)
        if read != (size, written or read[1]):
            raise OSError("what was written is not what is read back: the disk is not to be trusted")
        written = read[1]
        read_input(timeout=0)
        # The guest stands still, and its QEMU has given its images out of its hands.
        document["images"] = {image: stamp(image, settle=True) for image in document.get("images", {})}
        os.link(part, path)  # fails where there is one by now
        write_document(path, {**document, "bytes": size, "sha256": written}, new=True)
        os.unlink(part)
        sync_directory(path)
    except OSError as error:
        told = no_room(error, path, document, os.fstat(file.fileno()).st_size)
        remove(path, document["migration"], own=True)
        raise told from None
    except BaseException:  # whatever it was; raised again
        remove(path, document["migration"], own=True)
        raise
    finally:
        if directory:
            shutil.rmtree(directory, ignore_errors=True)
    say(event="done", bytes=size, sha256=written)


taken = hashlib.sha256()


def _let_write(part: str) -> None:
    """Have a QEMU write the file by itself, until it is said to be done."""
    say(event="listening", file=part)
    if sys.stdin.buffer.readline(16) != b"done\n":
        raise Gone


def _receive_stream(directory: str, file: Any) -> None:
    """Take a stream at a socket in a directory."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/stream")
        listener.listen(1)
        say(event="listening", socket=f"{directory}/stream")
        while not read_input(listener):
            pass
        connection, _ = listener.accept()
    _take(connection, file)


def _take(connection: socket.socket, file: Any) -> None:
    with connection:
        while True:
            if not read_input(connection):
                continue
            chunk = connection.recv(_CHUNK)
            if not chunk:
                file.flush()
                return
            taken.update(chunk)
            file.write(chunk)


def send(path: str, where: str) -> None:
    """Check PATH against its description, and send it to a socket; its last bytes when it is told to."""
    document = read_document(path)
    if document is None:
        raise FileNotFoundError(2, "there is no description of it", f"{path}.json")
    with open_regular(path, os.O_RDWR) as file:
        lock(file)
        form = document.get("form", STREAM)
        if checksum(file, form) != (document["bytes"], document["sha256"]):
            raise OSError(f"{path} is not what was saved: its checksum is another")
        say(event="checked")
        if form == MAPPED:
            _let_read()
            return
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(where)
            file.seek(0)
            sent = hashlib.sha256()
            left = int(document["bytes"]) - _LAST
            while left > 0:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    raise OSError(f"{path} has become shorter")
                sent.update(chunk)
                _give(connection, chunk)
                left -= len(chunk)
            last = file.read()
            sent.update(last)
            if sent.hexdigest() != document["sha256"]:
                raise OSError(f"{path} has changed while it was read")
            say(event="ready")
            line = sys.stdin.buffer.readline(16)
            if line != b"go\n":
                raise Gone
            connection.sendall(last)
            connection.shutdown(socket.SHUT_WR)
            say(event="sent")
            # Until the QEMU has read it all.
            with contextlib.suppress(OSError):
                connection.settimeout(600)
                while connection.recv(4096):
                    pass


def _let_read() -> None:
    """Have a QEMU read the file by itself, once it is marked as used; nobody else works on it meanwhile."""
    say(event="ready")
    if sys.stdin.buffer.readline(16) != b"go\n":
        raise Gone
    say(event="sent")
    sys.stdin.buffer.read()  # until whoever began this has seen what became of it


def _give(connection: socket.socket, chunk: bytes) -> None:
    """Send it, unless whoever began this goes meanwhile."""
    view = memoryview(chunk)
    while view:
        _, writable, _ = select.select([], [connection], [], 1.0)
        read_input(timeout=0)
        if writable:
            view = view[connection.send(view) :]


def look(path: str, migration: str = "") -> None:
    """Say what there is.

    :param migration: whose unfinished state is looked for.
    """
    locked = False
    for name in (path, *([part_of(path, migration)] if migration else [])):
        if not is_regular(name):
            continue
        try:
            with open_regular(name, os.O_RDONLY) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = True
        except FileNotFoundError:
            pass
    document = read_document(path)
    directory = os.path.dirname(path)
    images = document.get("images", {}) if document is not None else {}
    say(
        document=document,
        locked=locked,
        there=any(map(os.path.lexists, (path, f"{path}.json"))),
        size=os.lstat(path).st_size if is_regular(path) else None,
        free=shutil.disk_usage(directory).free if os.path.isdir(directory) else None,
        filesystem=file_system_of(path),
        distrust=distrust(path),
        changed=[image for image, seen in images.items() if seen and stamp(image) != seen],
    )


def survey(*paths: str) -> None:
    """Say of each file what its description says of it in short, and what is there; one line for each."""
    for path in paths:
        found: dict[str, Any] = {"path": path, "document": None, "problem": ""}
        try:
            document = read_document(path)
            found["size"] = os.lstat(path).st_size if is_regular(path) else None
            if document is not None:
                found["document"] = {name: document.get(name) for name in _IN_SHORT} | {
                    "binary": (document.get("arguments") or [""])[0],
                    "version": (document.get("facts") or {}).get("version", ""),
                }
                images = document.get("images", {})
                found["changed"] = [image for image, seen in images.items() if seen and stamp(image) != seen]
        except OSError as error:
            found["problem"] = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except (ValueError, KeyError, TypeError) as error:
            found["problem"] = str(error)
        say(**found)


@contextlib.contextmanager
def held_document(path: str) -> Iterator[dict[str, Any]]:
    """Hold what PATH.json says now against others who would change it."""
    while True:
        with open_regular(f"{path}.json", os.O_RDWR) as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(held.fileno()), os.stat(f"{path}.json")):
                continue  # another has changed it while we waited
            yield read_document(path) or {}
            return


def says(document: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Tell whether a description has these values."""
    return all(document.get(key) == value for key, value in wanted.items())


def mark(path: str, change: str) -> None:
    """Change what PATH.json says of its use, where it says so now; what it says afterwards is printed."""
    wanted = json.loads(change)
    with held_document(path) as document:
        fits = any(says(document, each) for each in wanted["where"])
        if fits:
            document.update(wanted["set"])
            write_document(path, document, new=False)
        say(document=document, done=fits)


def discard(path: str, where: str) -> None:
    """Delete PATH, then PATH.json, where that says this now; whoever reads PATH meanwhile keeps it."""
    with held_document(path) as document:
        fits = says(document, json.loads(where))
        if fits:
            with contextlib.suppress(FileNotFoundError), open_regular(path, os.O_RDWR) as file:
                try:
                    lock(file)
                except BlockingIOError:
                    raise OSError(f"{path} is not deleted: somebody works on it") from None
                os.unlink(path)
            os.unlink(f"{path}.json")
            sync_directory(path)
        say(done=fits)


def remove(path: str, migration: str, *, own: bool = False) -> bool:
    """Remove what a migration has left here that is no saved guest; True when nothing of it can be used any more.

    :param own: this program is the one that writes.
    """
    try:
        document = read_document(path)
    except (OSError, TypeError, ValueError):
        document = {}  # whoever's it is: nobody can use it
    if document is not None and document.get("migration") == migration:
        if document.get("state") != "unconfirmed":
            return False
        os.unlink(f"{path}.json")
        sync_directory(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    made = part_of(path, migration)
    with contextlib.suppress(FileNotFoundError), open_regular(made, os.O_RDWR) as file:
        if not own:
            lock(file)  # raises where somebody still writes
        if os.path.exists(path) and os.path.samefile(path, made):
            os.unlink(path)
        os.unlink(made)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part_of(f"{path}.json", migration))
    with contextlib.suppress(FileNotFoundError):
        sync_directory(path)
    return True


def main(arguments: list[str]) -> int:
    """Do what the arguments say; 0 when it is done."""
    mode, path, *rest = arguments
    try:
        match mode:
            case "receive":
                receive(path)
            case "send":
                send(path, *rest)
            case "look":
                look(path, *rest)
            case "mark":
                mark(path, *rest)
            case "discard":
                discard(path, *rest)
            case "survey":
                survey(path, *rest)
            case "remove":
                say(done=remove(path, *rest))
    except Gone:
        return 3
    except OSError as error:
        say(
            event="failed",
            why=f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error),
        )
        return 1
    except (ValueError, KeyError, TypeError) as error:
        say(event="failed", why=f"{path}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
