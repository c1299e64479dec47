"""The machine the controller runs on, and processes on it: whether they live, their end, their last words."""

from __future__ import annotations

import asyncio
import os
import posixpath
import select
import signal
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from migrator.core.migration.drivers import Driver
from migrator.core.process.qemu_program import is_qemu

_PR_SET_PDEATHSIG = 1

#: Variables of the environment that a command which we start is given; secrets and what systemd told us are not.
_CHILD_VARIABLES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "SSH_AUTH_SOCK"}
    | {f"XDG_{which}" for which in ("RUNTIME_DIR", "STATE_HOME", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME")}
    | {"DBUS_SESSION_BUS_ADDRESS"}
)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that commands which we start may see: a QEMU keeps it for as long as it lives.

    :param environ: ours.
    """
    return {
        name: value for name, value in environ.items() if name in _CHILD_VARIABLES or name.startswith("LC_")
    }


def end_with(parent: int) -> bool:
    """Have this process end when the one that started it does; False: that has ended already."""
    import ctypes  # noqa: PLC0415 - slow, and not for every command

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def boot_id() -> str:
    """Tells one boot of this machine from the next."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def own_network() -> str:
    """Tells the network namespace that this process is in from others; empty where that cannot be read."""
    try:
        return str(Path("/proc/self/ns/net").readlink())
    except OSError:
        return ""


def replace_file(path: Path, text: str) -> None:
    """Write a file of ours as a whole: whoever reads it meanwhile, or after a crash, finds what it was or what it is.

    :raise OSError: it cannot be written; it is as it was.
    """
    new = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as file:
            file.write(text)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


async def wait_readable(fd: int, timeout: float) -> bool:
    """Wait up to `timeout` seconds until `fd` can be read; a pidfd can when its process has ended."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        async with asyncio.timeout(timeout):
            await readable.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


def exists(pid: int) -> bool:
    """Tell whether there is a process of that pid now."""
    return Path(f"/proc/{pid}").is_dir()


def describes(record: Mapping[str, Any], process: Mapping[str, Any]) -> bool:
    """Tell whether a record is of this process.

    :param record: may say more of it than who it is.
    :param process: who it is: pid, start time, boot.
    """
    return bool(process) and all(record.get(key) == value for key, value in process.items())


def is_gone(identity: Mapping[str, Any]) -> bool:
    """Tell whether the process that :attr:`LocalProcess.identity` once described is certainly gone."""
    if not identity:
        return False
    if identity["boot_id"] != boot_id():
        return True
    try:
        process = LocalProcess(int(identity["pid"]))
    except ProcessLookupError:
        return True
    try:
        return not describes(identity, process.identity) or not process.alive
    finally:
        process.close()


def own_process() -> dict[str, Any]:
    """Describe this process, so that others can tell whether it still lives; see :func:`is_gone_as_seen_here`."""
    process = LocalProcess(os.getpid())
    try:
        return {**process.identity, "pid_namespace": _pid_namespace()}
    finally:
        process.close()


def this_driver(program: str, *, controller: str, lease: int = 0) -> Driver:
    """Describe this process as the driver of QEMUs.

    :param program: for people: ``migrator direct``.
    :param controller: what stays the same when it is started again to go on with its work.
    :param lease: token of the lease that gives it the right; see :attr:`migrator.core.migration.drivers.Driver.lease`.
    """
    return Driver(
        token=os.urandom(6).hex(),
        controller=controller,
        who=f"{program}, pid {os.getpid()} on {os.uname().nodename}",
        process=own_process(),
        lease=lease,
    )


def is_gone_as_seen_here(process: Mapping[str, Any]) -> bool | None:
    """Tell whether what :func:`own_process` once described is gone; ``None`` where that cannot be told.

    Another boot may be another machine, and in another pid namespace a pid means somebody else.
    """
    known = {key: process.get(key) for key in ("pid", "start_time", "boot_id")}
    if process.get("pid_namespace") != _pid_namespace() or known["boot_id"] != boot_id():
        return None
    if not (isinstance(known["pid"], int) and 0 < known["pid"] < 2**22):  # no more are there
        return None
    return is_gone(known)


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _file_identity(path: Path) -> str:
    found = path.stat()
    block = stat.S_ISBLK(found.st_mode)
    return f"device {found.st_rdev}" if block else f"{found.st_dev}:{found.st_ino}"


class LocalProcess:
    """One process, held by its pidfd, so that a pid used again is never mistaken for it.

    :raise ProcessLookupError: when there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        try:
            words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            ended = not self.alive
            self.close()
            if not ended:
                raise
            raise ProcessLookupError(f"there is no process {pid}") from error
        #: In clock ticks since boot: with the pid it names a process for as long as the machine is up.
        self.start_time = int(words.rpartition(")")[2].split()[19])
        self._stderr = self._stderr_file()

    @property
    def identity(self) -> dict[str, Any]:
        """pid and start time, and the boot they belong to."""
        return {"pid": self.pid, "start_time": self.start_time, "boot_id": boot_id()}

    @property
    def is_qemu(self) -> bool:
        """True where its program is a QEMU. A passed socket names its creator, which must never be killed."""
        return is_qemu(self.executable().name.removesuffix(" (deleted)"), self.arguments())

    def executable(self) -> Path:
        """The program it runs; empty when that cannot be read."""
        try:
            return Path(str(Path(f"/proc/{self.pid}/exe").readlink()).removesuffix(" (deleted)"))
        except OSError:
            return Path()

    def binary_identity(self) -> str:
        """Tells one build of the program from another; empty when it cannot be read."""
        try:
            found = Path(f"/proc/{self.pid}/exe").stat()
        except OSError:
            return ""
        return f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"

    def arguments(self) -> list[str]:
        """Return its command line; empty when that cannot be read."""
        try:
            return os.fsdecode(Path(f"/proc/{self.pid}/cmdline").read_bytes()).split("\0")[:-1]
        except OSError:
            return []

    def opened(self, path: str) -> str:
        """Return the identity of the file that it opened under `path`; empty where we may not see it.

        No other file of this machine has the same identity. The path may lead to another file by now. One that it has
        not open,
        whatever its name, is ``other``. Where a relative one went from need not be where the process is: QEMU leaves
        that
        directory for the background.
        """
        root = Path(f"/proc/{self.pid}")
        where = root / "root" if path.startswith("/") else root / "cwd"
        held: set[str] = set()
        by_name, ending = "", set()
        relative = "" if path.startswith("/") else posixpath.normpath(path)
        try:
            for link in (root / "fd").iterdir():
                try:
                    identity, name = _file_identity(link), os.readlink(link)  # noqa: PTH115 - as it is written
                except OSError:
                    continue  # closed meanwhile
                held.add(identity)
                if name in (path, f"{path} (deleted)"):
                    by_name = identity
                if relative and name.removesuffix(" (deleted)").endswith(f"/{relative}"):
                    ending.add(identity)
        except OSError:
            return ""
        try:
            now = _file_identity(where / path.lstrip("/"))
        except (OSError, ValueError):  # ValueError: no path at all, as one with a zero byte
            now = ""
        if now in held or not relative:
            return now if now in held else by_name or "other"
        if len(ending) == 1:
            return ending.pop()
        return "" if ending or relative.startswith("..") else "other"

    @property
    def alive(self) -> bool:
        """False is proof of its death."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    async def wait_dead(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for its end; True when it is dead."""
        await wait_readable(self._fd, timeout)
        return not self.alive

    async def kill(self, timeout: float) -> bool:
        """SIGKILL; True when it was seen dead within `timeout` seconds."""
        if not self.alive:
            return True
        signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        return await self.wait_dead(timeout)

    def _stderr_file(self) -> tuple[Path, int] | None:
        link = Path(f"/proc/{self.pid}/fd/2")
        try:
            path = link.readlink()
            return (path, path.stat().st_size) if path.is_file() else None
        except OSError:
            return None

    def stderr_tail(self) -> str:
        """Return what it wrote to its standard error since this object was made, if that is a file we may read."""
        if self._stderr is None:
            return ""
        path, start = self._stderr
        try:
            with path.open("rb") as file:
                file.seek(max(start, path.stat().st_size - 2000))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "; ".join(line.strip() for line in lines[-5:])

    async def ask_sockets(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a request about its sockets answered: see :func:`migrator.process_sockets.answer`."""
        from migrator import process_sockets  # noqa: PLC0415 - ctypes, which most processes are looked at without

        return process_sockets.answer({**request, "process": self.identity})

    def close(self) -> None:
        """Let go of the pidfd."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def waited_for_processor_seconds(pid: int) -> float:
    """Return the seconds that the first thread of a process has waited for a processor; 0 where nobody tells that."""
    try:
        _, waited, _ = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0.0
    return int(waited) / 1e9


def thread_worked_seconds() -> float:
    """Return the seconds that this thread has computed, and waited for a processor where the kernel tells that."""
    try:
        computed, waited, _ = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(computed) + int(waited)) / 1e9
