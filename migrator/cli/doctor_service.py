"""The checks of ``migrator doctor`` on this machine: the journal, its disk, and the service itself."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from migrator.cli.diagnosis import DoctorCheck, fail, ok, warn
from migrator.settings import Settings
from migrator.store import belonging, schema
from migrator.units import show_bytes

#: Less is too little to write down what is under way.
_ROOM_BYTES = 64 << 20
_AMPLE_BYTES = 512 << 20
#: A large journal is not read to its end.
_READ_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
#: A token that ends within so long is said.
_SOON_SECONDS = 14 * 86400.0
_NETWORK = re.compile(r"nfs|cifs|smb|ceph|gluster|9p|fuse")


def state_directory(journal: Path) -> list[DoctorCheck]:
    """Check rights, owner and room where the journal is."""
    about, directory = "state directory", journal.parent
    try:
        status = directory.stat()
    except FileNotFoundError:
        return [warn(about, f"{directory} is not there yet", "the service makes it at its first start")]
    except OSError as error:
        return [fail(about, f"{directory}: {error.strerror}", "run this as the service's user")]
    if not os.access(directory, os.W_OK | os.X_OK):
        text = f"{directory} cannot be written by this user"
        return [
            fail(about, text, f"see its owner and whether its file system is read-only: ls -ld {directory}")
        ]
    found = []
    if stat.S_IMODE(status.st_mode) & 0o077:
        text = f"{directory} is open to other users"
        found.append(warn(about, text, f"chmod 700 {directory}"))
    strangers = [each.name for each in directory.iterdir() if each.lstat().st_uid != status.st_uid]
    if strangers:
        remedy = f"chown -R --reference={directory} {directory}"
        found.append(fail(about, f"not of its owner: {', '.join(sorted(strangers)[:5])}", remedy))
    kind = _file_system(directory)
    if _NETWORK.match(kind):
        text = f"{directory} is on {kind}, where SQLite's locks cannot be relied on"
        found.append(fail(about, text, "put [store] path on a local disk"))
    elif kind in ("tmpfs", "ramfs"):
        text = f"{directory} is on {kind}: the journal does not survive a reboot"
        found.append(warn(about, text, "put [store] path on a disk"))
    room = os.statvfs(directory)
    free = room.f_bavail * room.f_frsize
    if free < _ROOM_BYTES or (room.f_files and not room.f_favail):
        text = f"{show_bytes(free)} and {room.f_favail} files are free at {directory}"
        found.append(fail(about, text, "make room there"))
    elif free < _AMPLE_BYTES:
        found.append(warn(about, f"only {show_bytes(free)} are free at {directory}", "make room there"))
    return found or [ok(about, f"{directory}: {show_bytes(free)} free")]


def _file_system(directory: Path) -> str:
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == number:
                return after.split()[0]
    return ""


def journal(path: Path) -> list[DoctorCheck]:
    """Check that the journal opens, is whole, and of which version it is; read-only."""
    about = "journal"
    if not path.exists():
        return [warn(about, f"{path} is not there yet", "the service makes it at its first start")]
    try:
        with contextlib.closing(_read_only(path)) as database:
            revision = _revision(database)
            deadline = time.monotonic() + _READ_SECONDS
            database.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
            try:
                said = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                said = "ok"  # as far as it was read
            database.set_progress_handler(None, 0)
            unfinished = _unfinished(database) if revision == schema.HEAD else 0
            doubt = _doubt(database, path.parent / "steps") if revision == schema.HEAD else ""
            ending = _ending(database) if revision == schema.HEAD else []
    except (OSError, sqlite3.Error) as error:
        return [fail(about, f"{path} cannot be read: {error}", "see its owner; or put the last backup there")]
    if said != "ok":
        remedy = "stop the service, move it away, put the last backup in its place"
        return [fail(about, f"{path} is damaged: {' '.join(said.split())}", remedy)]
    size = show_bytes(path.stat().st_size)
    if revision != schema.HEAD:
        text = f"{path} is of schema {revision or 'none'}, this migrator's is {schema.HEAD}"
        return [warn(about, text, "the service brings it to its own at its start, and keeps a copy")]
    found = [ok(about, f"{path}: schema {revision}, {size}")]
    if doubt:
        remedy = (
            "put both from the same backup there, or look at every migration that is held after the start"
        )
        found.append(warn(about, doubt, remedy))
    for name, end in ending:
        found.append(
            warn(
                "tokens",
                f"the token {name} ends on {end:%Y-%m-%d}",
                f"make another: migrator token create {name}-2",
            )
        )
    if unfinished and _holder(path) is None:
        text = f"{unfinished} migrations are under way, and no service looks after them"
        found.append(fail(about, text, "start it: systemctl start migrator"))
    return found


def _read_only(path: Path) -> sqlite3.Connection:
    # Without its log nobody has it open, and then nothing needs to be made beside it.
    beside = path.with_name(f"{path.name}-wal").exists()
    how = "mode=ro" if beside else "mode=ro&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True, timeout=_ANSWER_SECONDS)


def _revision(database: sqlite3.Connection) -> str:
    """Return the journal's schema revision; empty where there is none."""
    if not database.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
        return ""
    row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


def _doubt(database: sqlite3.Connection, steps: Path) -> str:
    """Say why journal and records of steps do not belong together; empty where they do."""
    row = database.execute("SELECT value FROM meta WHERE key = ?", (belonging.KEY,)).fetchone()
    marks = belonging.Marks(journal=str(row[0]) if row else None, records=belonging.read(steps))
    return marks.doubt(steps)


def _ending(database: sqlite3.Connection) -> list[tuple[str, datetime]]:
    """Return the tokens that end by themselves within two weeks, with when."""
    now = time.time()
    query = "SELECT name, expires_at FROM tokens WHERE revoked_at IS NULL AND expires_at BETWEEN ? AND ?"
    rows = database.execute(query, (int(now * 1e6), int((now + _SOON_SECONDS) * 1e6)))
    return [(str(name), datetime.fromtimestamp(end / 1e6, UTC)) for name, end in rows]


def _unfinished(database: sqlite3.Connection) -> int:
    query = "SELECT count(*) FROM documents WHERE kind = 'migration' AND ended_at IS NULL"
    return int(database.execute(query).fetchone()[0])


def _holder(journal: Path) -> int | None:
    """Return the process that has the journal as its own, if there is one. Asked without taking the lock."""
    try:
        inode = journal.with_name(f"{journal.name}.lock").stat().st_ino
        locks = Path("/proc/locks").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"FLOCK +ADVISORY +WRITE +(-?\d+) +\w+:\w+:{inode} ", locks)
    return int(found[1]) if found else None


@dataclass(kw_only=True)
class RunningService:
    """Answers of the service that runs."""

    answers: bool = False
    #: Its guests by host, as documents.
    guests: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: The service's connection to the broker; ``None`` where it has none.
    mqtt: bool | None = None
    checks: list[DoctorCheck] = field(default_factory=list)


def running(settings: Settings) -> RunningService:
    """Query the service over its Unix socket."""
    about, socket = "service", settings.http.socket
    holder = _holder(settings.store.path)
    start = "start it: systemctl start migrator (or: migrator serve --config FILE)"
    if socket is None:
        text = "it has no Unix socket, so it was not asked"
        return RunningService(
            checks=[warn(about, text if holder else "it does not run", "" if holder else start)]
        )
    try:
        return _ask(socket, about)
    except httpx2.TransportError as error:
        if "Permission denied" in str(error):
            remedy = f"add this user to the group that owns it: ls -l {socket}"
            return RunningService(checks=[warn(about, f"this user may not open {socket}", remedy)])
        if holder is None:
            return RunningService(checks=[warn(about, "it does not run", start)])
        text = f"pid {holder} has the journal, but {socket} does not answer"
        return RunningService(
            checks=[fail(about, text, "see journalctl -u migrator; systemctl restart migrator")]
        )
    except (KeyError, ValueError, httpx2.HTTPError) as error:
        text = f"what answers at {socket} is not this migrator: {error}"
        return RunningService(
            checks=[fail(about, text, "see who has it: ss -xlp; restart the service after an upgrade")]
        )


def _ask(socket: Path, about: str) -> RunningService:
    transport = httpx2.HTTPTransport(uds=str(socket), verify=False)  # there is no TLS
    with httpx2.Client(
        base_url="http://migrator", transport=transport, timeout=_ANSWER_SECONDS, trust_env=False
    ) as client:
        began = time.monotonic()
        ready = client.get("/readyz").json()
        took = time.monotonic() - began
        guests = client.get("/api/v1/guests").raise_for_status().json()["items"]
        hosts = client.get("/api/v1/hosts").raise_for_status().json()["items"]
        metrics = client.get("/metrics").raise_for_status().text
    known: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for guest in guests:
        known[guest["host"]].append(guest)
    connected = re.search(r"^migrator_mqtt_connected (\d)", metrics, re.MULTILINE)
    version = re.search(r'^migrator_build_info\{[^}]*version="([^"]*)"', metrics, re.MULTILINE)
    held = re.search(r"^migrator_migrations_held (\d+)", metrics, re.MULTILINE)
    checks = [fail(about, text, "fix it: no new work is taken until then") for text in ready["complaints"]]
    if held and int(held[1]):
        text = f"{held[1]} migrations are held"
        checks.append(fail(about, text, "migrator status lists them and says what to check"))
    if not checks:
        which = f"version {version[1]}" if version else "of unknown version"
        checks.append(ok(about, f"answers at {socket} within {took * 1e3:.0f} ms, {which}"))
    if cordoned := [host["host"] for host in hosts if host.get("cordoned")]:
        text = f"no new guests come to {', '.join(cordoned[:10])}{', …' * (len(cordoned) > 10)}: cordoned"
        checks.append(warn("hosts", text, "once they may come again: migrator uncordon HOST"))
    return RunningService(
        answers=True, guests=known, mqtt=None if connected is None else connected[1] == "1", checks=checks
    )
