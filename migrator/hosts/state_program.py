"""Program at a host that writes a guest's state into a file, or sends it to the QEMU that takes it up again.

Run by the python3 there (``python3 -c PROGRAM MODE PATH …``); it uses the standard library alone. It says what becomes
of it in lines of JSON on its standard output. It ends when its standard input does: whoever began it has gone.

Beside PATH, the state, is PATH.json: whose state it is, how a QEMU is started for it, its checksum, and whether it may
be used. The second is made after the first is whole and on the disk, and only what has both is anything at all. While
it is written the state is PATH.part; whoever writes or reads it holds a lock on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import select
import shutil
import socket
import sys
import tempfile
from typing import Any

_CHUNK = 1 << 20
#: Bytes that are held back until the file is marked as used: the QEMU cannot have taken the guest without them.
_LAST = 64
#: A description is longer than this only where something is wrong.
_MOST_DOCUMENT = 8 << 20
#: How QEMU ends a stream: a byte for its end, then one for the description of what is in it, its length, and it.
_END, _DESCRIPTION = b"\x00", b"\x06"


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


def checksum(file: Any) -> tuple[int, str]:
    """Return size and SHA-256 of a file, read from the disk."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    found, size = hashlib.sha256(), 0
    while chunk := file.read(_CHUNK):
        found.update(chunk)
        size += len(chunk)
    return size, found.hexdigest()


def write_document(path: str, document: dict[str, Any], *, new: bool) -> None:
    """Write PATH.json so that it is there as a whole or not at all."""
    made = f"{path}.json.part"
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    if new:
        os.link(made, f"{path}.json")  # fails where there is one
        os.unlink(made)
    else:
        os.replace(made, f"{path}.json")
    sync_directory(path)


def read_document(path: str) -> dict[str, Any] | None:
    """Return what PATH.json says; ``None`` where there is none."""
    try:
        with open(f"{path}.json", encoding="utf-8") as file:
            found = json.loads(file.read(_MOST_DOCUMENT))
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise TypeError(f"{path}.json is no description of a saved guest")
    return found


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


def receive(path: str) -> None:
    """Take a stream at a socket of its own, and make PATH and PATH.json of it."""
    document = json.loads(sys.stdin.buffer.readline(_MOST_DOCUMENT))
    for name in (path, f"{path}.json"):
        if os.path.lexists(name):
            raise FileExistsError(17, "it is there already", name)
    part = f"{path}.part"
    file = open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "r+b")  # noqa: SIM115
    directory = ""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        directory = tempfile.mkdtemp(prefix="migrator-save-")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{directory}/stream")
            listener.listen(1)
            say(event="listening", socket=f"{directory}/stream")
            while not read_input(listener):
                pass
            connection, _ = listener.accept()
        _take(connection, file)
        size = file.tell()
        if not whole(file, size):
            raise OSError(f"the stream was cut off after {size} bytes")
        os.fsync(file.fileno())
        written = taken.hexdigest()
        if checksum(file) != (size, written):
            raise OSError("what was written is not what is read back: the disk is not to be trusted")
        os.link(part, path)  # fails where there is one by now
        write_document(path, {**document, "bytes": size, "sha256": written}, new=True)
        os.unlink(part)
        sync_directory(path)
    except BaseException:  # whatever it was; raised again
        remove(path, document["migration"], part=True)
        raise
    finally:
        if directory:
            shutil.rmtree(directory, ignore_errors=True)
    say(event="done", bytes=size, sha256=written)


taken = hashlib.sha256()


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
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if checksum(file) != (document["bytes"], document["sha256"]):
            raise OSError(f"{path} is not what was saved: its checksum is another")
        say(event="checked")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(where)
            file.seek(0)
            left = int(document["bytes"]) - _LAST
            while left > 0:
                chunk = file.read(min(_CHUNK, left))
                if not chunk:
                    raise OSError(f"{path} has become shorter")
                _give(connection, chunk)
                left -= len(chunk)
            say(event="ready")
            line = sys.stdin.buffer.readline(16)
            if line != b"go\n":
                raise Gone
            connection.sendall(file.read())
            connection.shutdown(socket.SHUT_WR)
            say(event="sent")
            # Until the QEMU has read it all.
            with contextlib.suppress(OSError):
                connection.settimeout(600)
                while connection.recv(4096):
                    pass


def _give(connection: socket.socket, chunk: bytes) -> None:
    """Send it, unless whoever began this goes meanwhile."""
    view = memoryview(chunk)
    while view:
        _, writable, _ = select.select([], [connection], [], 1.0)
        read_input(timeout=0)
        if writable:
            view = view[connection.send(view) :]


def look(path: str) -> None:
    """Say what there is."""
    locked = False
    for name in (f"{path}.part", path):
        try:
            with open(name, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            locked = True
        except FileNotFoundError:
            pass
    document = read_document(path)
    there = os.path.isfile(path)
    free = (
        shutil.disk_usage(os.path.dirname(path) or ".").free if os.path.isdir(os.path.dirname(path)) else None
    )
    say(document=document, locked=locked, there=there, free=free)


def mark(path: str, change: str) -> None:
    """Change what PATH.json says of its use, where it says so now; what it says afterwards is printed."""
    wanted = json.loads(change)
    while True:
        with open(f"{path}.json", "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(held.fileno()), os.stat(f"{path}.json")):
                continue  # another has changed it while we waited
            document = read_document(path) or {}
            fits = any(
                all(document.get(key) == value for key, value in each.items()) for each in wanted["where"]
            )
            if fits:
                document.update(wanted["set"])
                write_document(path, document, new=False)
            say(document=document, done=fits)
            return


def remove(path: str, migration: str, *, part: bool = False) -> bool:
    """Remove what a migration has left here that is no saved guest; True when nothing of it can be used any more.

    :param part: PATH.part is known to be its own.
    """
    document = read_document(path)
    if document is not None:
        if document.get("migration") != migration:
            return True
        if document.get("state") != "unconfirmed":
            return False
        os.unlink(f"{path}.json")
        sync_directory(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    made = f"{path}.part"
    with contextlib.suppress(FileNotFoundError):
        with open(made, "rb") as file:
            if not part:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where somebody still writes
            if os.path.exists(path) and os.path.samefile(path, made):
                os.unlink(path)
        os.unlink(made)
    for left in (f"{path}.json.part",):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)
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
                look(path)
            case "mark":
                mark(path, *rest)
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
