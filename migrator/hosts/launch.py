"""Starts a QEMU on a host so that it outlives whoever started it, and leaves nothing behind when it does not start."""

from __future__ import annotations

import asyncio
import re
import secrets
import string
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from migrator import logs
from migrator.errors import HostError, MigratorError
from migrator.hosts.access import Access
from migrator.hosts.new_files import remove_files, remove_memory
from migrator.ports import GuestProcess

#: Of a label in the name of a run directory: sockets below it have to have short paths.
_LABEL_CHARACTERS = 24
_WORDS_BYTES = 2000
#: sun_path of struct sockaddr_un, without its last NUL.
SOCKET_PATH_BYTES = 107
#: Time-out of a small command, in seconds.
_SHORT = 10.0
_KILL_SECONDS = 10.0
#: How often, and how many seconds apart, the command line of one that was started is looked for: a dead one has none.
_EXEC_LOOKS, _EXEC_PAUSE_SECONDS = 20, 0.02
#: For what puts a process into the background.
_START_SECONDS = 20.0

# Fixed texts: what comes from outside is only ever in their arguments.
_BASES = """
u=$(id -u)
if [ "$u" = 0 ]; then r=/run s=/var/log
else r=${XDG_RUNTIME_DIR:-} s=${XDG_STATE_HOME:-$HOME/.local/state}
fi
if [ -z "$r" ]; then
  r=/tmp/migrator-$u
  mkdir -m 700 -- "$r" 2>/dev/null
  if [ -L "$r" ] || [ ! -O "$r" ]; then echo "$r belongs to somebody else" >&2; exit 1; fi
fi
if [ "$u" = 0 ] && [ -d /run/systemd/system ]; then i=systemd; else i=; fi
printf '%s\\0' "$r/migrator/guests" "$s/migrator/guests" "$i"
"""
# A run directory is its owner's alone. Those above it may be passed through, where QEMU will be somebody else.
_MAKE = """
umask 077 && mkdir -p -- "$1" "$2" && mkdir -- "$3" || exit
env printf %s "$4" >"$3/migration" || { echo "(writing $3/migration)" >&2; exit 1; }
echo "$(cat /proc/sys/kernel/random/boot_id) $(readlink /proc/self/ns/pid)" >"$3/made-in"
[ -n "$5" ] && [ "$(id -u)" = 0 ] || exit 0
for d in "$1" "${1%/*}"; do
  case $d in */migrator|*/migrator/guests|"$1") [ ! -O "$d" ] || chmod go+x -- "$d" || exit ;; esac
done
"""
_OF_MIGRATION = """
for d in "$1"/*-??????; do
  if [ -f "$d/migration" ] && [ "$(cat -- "$d/migration")" = "$2" ]; then printf '%s\\0' "$d"; fi
done
"""
_LOGGED = 'exec "$@" >>"$0" 2>&1 </dev/null'
# What can fail is tried where its reason can still be told. As long as there is a file `starting`, it does.
_START = """
script=$1; shift
: >>"$1" || exit
env printf starting >"$2/starting" || { echo "(writing $2/starting)" >&2; exit 1; }
exec setsid --fork sh -c "$script" "$@"
"""
# A session of its own, a child of nobody. Not -daemonize: QEMU's sandbox kills it for that where it forbids to fork.
# Whoever renames or removes `starting` first decides whether it goes on; its pid stands in `start.pid` from then on.
_DETACHED = """
exec >>"$0" 2>&1 </dev/null &&
  [ -e "$1/starting" ] && mv -- "$1/starting" "$1/start.pid" || { rm -f -- "$1/starting"; exit; }
env printf %s "$$" >"$1/start.pid" || { rm -f -- "$1/start.pid"; exit; }
shift
exec "$@"
"""
_UP = """
if [ -s "$1/qemu.pid" ]; then printf up; exit; fi
if [ -e "$1/starting" ]; then exit; fi
p=$(cat -- "$1/start.pid" 2>/dev/null) || { printf gone; exit; }
case $p in ''|*[!0-9]*) exit ;; esac
case $(sed 's/.*) //; s/ .*//' "/proc/$p/stat" 2>/dev/null) in ''|Z|X) printf gone;; esac
"""
# With a second argument, a start that has not gone on so far does not go on any more.
_STARTED = """
[ -z "$2" ] || rm -f -- "$1/starting"
n=0
while p=$(cat -- "$1/start.pid" 2>/dev/null) && [ $n -lt 200 ]; do
  case $p in ''|*[!0-9]*) n=$((n + 1)); sleep 0.01 ;; *) printf %s "$p"; exit ;; esac
done
"""
_USERS = 'grep -lsaF -e "$1" /proc/[0-9]*/cmdline'
# With the links that lead into it (migrator.hosts.path_links).
_REMOVE = """
case "$1" in */*-??????) ;; *) exit 2;; esac
if [ -f "$1/paths" ]; then
  xargs -0 -r -n 2 sh -c 'if [ "$(readlink -- "$0")" = "$1" ]; then rm -f -- "$0"; fi' <"$1/paths" || :
fi
rm -rf -- "$1"
"""


@dataclass(frozen=True, kw_only=True)
class Like:
    """What a QEMU is to be beside its command line."""

    #: Put before its command line: it makes the process so, and becomes it.
    become: Sequence[str] = ()
    #: Of its unit, where it has one.
    slice: str = "machine.slice"
    properties: Sequence[str] = ()


_AS_WE_ARE = Like()


@dataclass(frozen=True, kw_only=True)
class Nest:
    """The place of one QEMU on its host."""

    #: Only its owner may enter it; sockets and the pid file are in it, and it goes with the process.
    run_directory: str
    #: What it says on its standard error; kept.
    log: str
    #: Name of its transient unit; empty where it has none.
    unit: str = ""

    @property
    def pid_file(self) -> str:
        """Where it writes its pid."""
        return f"{self.run_directory}/qemu.pid"


class Launcher:
    """Starts QEMUs on one host.

    :param base: directory of the run directories; empty is ``/run/migrator/guests``, or below ``$XDG_RUNTIME_DIR``
        for a user who is not root.
    :param log_directory: empty is ``/var/log/migrator/guests``, or below ``$XDG_STATE_HOME``.
    :param former: such pairs that were configured before: what was started there is still ours.
    :param systemd: QEMU becomes a transient unit of its own, not a part of ours or of the SSH session; ``None``: where
        systemd is pid 1 and we are root.
    :param timeout_seconds: for the start, until it is known to be up.
    """

    def __init__(
        self,
        host: Access,
        *,
        base: str = "",
        log_directory: str = "",
        former: Sequence[tuple[str, str]] = (),
        systemd: bool | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self.host = host
        self.timeout_seconds = timeout_seconds
        self._base, self._log_directory, self._systemd = base, log_directory, systemd
        #: Directories of runs and of logs, the present pair first.
        self._places = [(base, log_directory), *former]

    async def _settle(self) -> None:
        """Find out what is the custom of that host, where nothing else was configured."""
        base, log_directory, init = (await self._run("sh", "-c", _BASES)).split("\0")[:3]
        self._places = [(runs or base, logs_ or log_directory) for runs, logs_ in self._places]
        self._base, self._log_directory = self._places[0]
        self._systemd = init == "systemd" if self._systemd is None else self._systemd

    async def places(self) -> list[tuple[str, str]]:
        """Directories of runs and of logs that are, or were, ours.

        :raise HostError: when the host cannot be asked.
        """
        await self._settle()
        return list(dict.fromkeys(self._places))

    async def base(self) -> str:
        """Where run directories are made.

        :raise HostError: when the host cannot be asked.
        """
        await self._settle()
        return self._base

    async def make_nest(self, migration: str, *, other_user: bool = False) -> Nest:
        """Make a run directory (0700) and choose the log.

        :param migration: id of the migration it is for.
        :param other_user: it will be given to another user, who has to get there.
        :raise HostError: it cannot be made; nothing is left.
        """
        await self._settle()
        short = re.sub(r"[^A-Za-z0-9._-]", "-", migration)[:_LABEL_CHARACTERS].strip(".-") or "guest"
        mark = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(6))
        # Named here, so that it can be removed whatever became of the command that makes it.
        nest = self.nest(f"{self._base.rstrip('/')}/{short}-{mark}", self._log_directory)
        if len(f"{nest.run_directory}/control.qmp".encode()) > SOCKET_PATH_BYTES:
            raise HostError(
                self.host.name,
                f"{self._base} is too long for the path of a socket; configure a shorter directory",
            )
        try:
            where = (self._base, self._log_directory, nest.run_directory)
            await self._run("sh", "-c", _MAKE, "sh", *where, migration, "open" if other_user else "")
        except BaseException:
            await certainly(self.remove(nest), name=f"remove {nest.run_directory}")
            raise
        return nest

    def nest(self, run_directory: str, log_directory: str) -> Nest:
        """The place of the QEMU whose directory that is."""
        name = run_directory.rpartition("/")[2]
        unit = f"migrator-guest-{name}.service" if self._systemd else ""
        return Nest(run_directory=run_directory, log=f"{log_directory}/{name}.log", unit=unit)

    async def nests_of(self, migration: str) -> list[Nest]:
        """The nests that were made for a migration and are still there.

        :raise HostError: when the host cannot be asked.
        """
        nests = []
        for base, log_directory in await self.places():
            found = await self._run("sh", "-c", _OF_MIGRATION, "sh", base, migration)
            nests += [self.nest(path, log_directory) for path in found.split("\0")[:-1]]
        return nests

    async def nest_at(self, socket: str) -> Nest | None:
        """The nest that a socket is in; ``None`` when it is in none of ours.

        :raise HostError: when the host cannot be asked.
        """
        await self._settle()
        directory = socket.rpartition("/")[0]
        if not re.search(r"-[A-Za-z0-9]{6}$", directory):
            return None
        above = directory.rpartition("/")[0]
        found = (self.nest(directory, log) for base, log in self._places if above == base.rstrip("/"))
        return next(found, None)

    async def start(
        self, nest: Nest, argv: Sequence[str], *, by_itself: bool = False, like: Like = _AS_WE_ARE
    ) -> GuestProcess | None:
        """Start it, and take hold of its process.

        :param argv: without ``-daemonize``, and with ``-pidfile`` in the run directory.
        :param like: what its process is to be.
        :param by_itself: `argv` is a command that starts QEMU in whatever way it likes, and ends.
        :returns: ``None`` when a command wrote no pid file: nobody knows which process it is.
        :raise HostError: it did not start, in its own words; whatever came up is ended, only the log is left.
        """
        try:
            if by_itself:
                await self._run_starter(nest, argv)
            else:
                await self._start(nest, argv, like)
            process = await self._process(nest)
            if process is None and not by_itself:
                raise HostError(self.host.name, await self.obituary(nest, argv[0]))
            return process
        except BaseException:
            await certainly(self.discard(nest), name=f"clear {nest.run_directory}")
            raise

    async def _run_starter(self, nest: Nest, argv: Sequence[str]) -> None:
        try:
            done = await self.host.run(["sh", "-c", _LOGGED, nest.log, *argv], timeout=self.timeout_seconds)
        except HostError as error:
            raise HostError(self.host.name, f"{await self._too_slow(nest, argv[0])}; {error}") from error
        if done.status:
            words = await self.last_words(nest) or done.complaint or "it said nothing"
            raise HostError(
                self.host.name, f"{argv[0]} ended with status {done.status}: {words} (log: {nest.log})"
            )

    async def _start(self, nest: Nest, argv: Sequence[str], like: Like) -> None:
        whole = [*like.become, *argv]
        session = ["sh", "-c", _START, "sh", _DETACHED, nest.log, nest.run_directory, *whole]
        command = unit_command(nest, whole, like) if nest.unit else session
        done = await self.host.run(command, timeout=_START_SECONDS)
        if done.status:
            words = await self.last_words(nest) or done.complaint or "it said nothing"
            raise HostError(self.host.name, f"{argv[0]} could not be started: {words} (log: {nest.log})")
        # There is a process; that it is a QEMU shows when it has written its pid file.
        try:
            async with asyncio.timeout(self.timeout_seconds):
                while not await self._is_up(nest):
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise HostError(self.host.name, await self._too_slow(nest, argv[0])) from error

    async def _is_up(self, nest: Nest) -> bool:
        """It has written its pid file, or has ended."""
        state = (await self.host.run(["sh", "-c", _UP, "sh", nest.run_directory], timeout=_SHORT)).text
        if nest.unit and state != "up":  # it leaves no trace of its start
            active = await self.host.run(["systemctl", "is-active", "--quiet", nest.unit], timeout=_SHORT)
            return active.status != 0
        return state in ("up", "gone")

    async def _too_slow(self, nest: Nest, program: str) -> str:
        words = await self.last_words(nest)
        said = f": {words}" if words else ""
        limit = f"{self.timeout_seconds:g} s (start_timeout)"
        return f"{program} did not come up within {limit} and was ended{said} (log: {nest.log})"

    async def obituary(self, nest: Nest, program: str = "QEMU") -> str:
        """What there is to say about one that has ended."""
        words = await self.last_words(nest) or "it said nothing"
        return f"{program} ended right after its start: {words} (log: {nest.log})"

    async def _process(self, nest: Nest) -> GuestProcess | None:
        pid = await self._read_pid(nest)
        return await self.host.process(pid) if pid else None

    async def _read_pid(self, nest: Nest) -> int | None:
        done = await self.host.run(["cat", "--", nest.pid_file], timeout=_SHORT)
        return int(done.text) if done.status == 0 and done.text.strip().isdecimal() else None

    async def last_words(self, nest: Nest) -> str:
        """The end of its log in one line; empty where there is none. Never raises for a host that is gone."""
        try:
            done = await self.host.run(["tail", "-c", str(_WORDS_BYTES), "--", nest.log], timeout=_SHORT)
        except HostError:
            return ""
        lines = done.stdout.decode(errors="replace").split("\n")
        said = [" ".join(line.split()) for line in lines if line.strip()]
        return "; ".join("".join(c if c.isprintable() else "?" for c in line) for line in said[-5:])[-500:]

    async def discard(self, nest: Nest, process: GuestProcess | None = None) -> None:
        """End whatever was started in this nest and remove it; the log is kept, unless it is empty.

        :param process: one that is not to be found by its command line.

        :raise HostError: the host cannot be asked, or the process could not be seen dead; then the nest is left.
        """
        if nest.unit:
            await self.host.run(["systemctl", "kill", "--signal=SIGKILL", nest.unit], timeout=_SHORT)
            await self.host.run(["systemctl", "stop", nest.unit], timeout=_KILL_SECONDS + _SHORT)
            await self.host.run(["systemctl", "reset-failed", nest.unit], timeout=_SHORT)
        found = await self._inhabitants(nest, end=True)
        try:
            for one in [*found, *([process] if process is not None else [])]:
                if not await one.kill(_KILL_SECONDS):
                    raise HostError(
                        self.host.name,
                        f"QEMU (pid {one.pid}) could not be ended; end it, then remove {nest.run_directory}",
                    )
        finally:
            for one in found:
                one.close()
        await remove_files(self.host, nest.run_directory)
        await self.remove(nest)

    async def _inhabitants(self, nest: Nest, *, end: bool = False) -> list[GuestProcess]:
        """Every QEMU whose command line names the run directory, a name that nobody else has; and what becomes one.

        :param end: one that is only about to be started is not started any more.
        """
        argv = ["sh", "-c", _STARTED, "sh", nest.run_directory, "end" if end else ""]
        started = (await self.host.run(argv, timeout=_SHORT)).text
        users = await self.host.run(["sh", "-c", _USERS, "sh", nest.run_directory], timeout=_SHORT)
        pids = dict.fromkeys(re.findall(r"(?m)^/proc/(\d+)/cmdline$", users.text))
        found = []
        for pid in dict.fromkeys([*([started] if started else []), *pids]):
            process = await self._named(int(pid), nest.run_directory, wait=pid == started)
            if process is None:
                continue
            if process.is_qemu or pid == started or _DETACHED in process.arguments():
                found.append(process)
            else:
                process.close()
        return found

    async def _named(self, pid: int, run_directory: str, *, wait: bool) -> GuestProcess | None:
        """Take hold of a process whose command line names the run directory; ``None``: it is gone, or another.

        :param wait: at the instant at which a process becomes another program its command line is empty.
        """
        for _ in range(_EXEC_LOOKS if wait else 1):
            process = await self.host.process(pid)
            if process is None:
                return None
            words = process.arguments()
            if any(run_directory in word for word in words):
                return process
            process.close()
            if words:
                return None
            await asyncio.sleep(_EXEC_PAUSE_SECONDS)
        return None

    async def lives(self, nest: Nest) -> bool:
        """Whether a QEMU of this nest is there."""
        found = await self._inhabitants(nest)
        for one in found:
            one.close()
        return bool(found)

    async def clear(self, nest: Nest) -> None:
        """Remove the nest of a process that has ended by itself.

        :raise HostError: the host cannot be asked, or the process still lives.
        """
        if await self.lives(nest):
            raise HostError(
                self.host.name, f"a QEMU still runs in {nest.run_directory}, which is left as it is"
            )
        await remove_memory(self.host, nest.run_directory)
        await self.remove(nest)

    async def remove(self, nest: Nest) -> None:
        """Remove the run directory of a process that has ended, and its log if there is nothing in it."""
        await self._run("sh", "-c", _REMOVE, "sh", nest.run_directory)
        if nest.log:
            await self.host.run(["find", nest.log, "-maxdepth", "0", "-empty", "-delete"], timeout=_SHORT)

    async def _run(self, *argv: str) -> str:
        done = await self.host.run(argv, timeout=_SHORT)
        if done.status:
            raise HostError(self.host.name, done.complaint or f"{argv[0]} ended with status {done.status}")
        return done.text


def unit_command(nest: Nest, argv: Sequence[str], like: Like = _AS_WE_ARE) -> list[str]:
    """How systemd is told to start it. Pure."""
    # systemd puts the values of variables into a command line; a dollar that is doubled stands for itself.
    return [
        *("systemd-run", "--quiet", "--collect", f"--unit={nest.unit}", f"--slice={like.slice}"),
        *("--service-type=exec", "--property=KillMode=mixed", "--property=TasksMax=16384"),
        *(f"--property=StandardOutput=append:{nest.log}", f"--property=StandardError=append:{nest.log}"),
        *(f"--property={each}" for each in like.properties),
        "--",
        *(word.replace("$", "$$") for word in argv),
    ]


async def certainly(cleaning: Coroutine[Any, Any, None], *, name: str) -> None:
    """Carry on to the end of a clean-up even if this task is cancelled meanwhile.

    What goes wrong in it is logged: the error that made it necessary is the one to tell.
    """

    async def told() -> None:
        try:
            await cleaning
        except MigratorError as error:
            logs.logger().warning("something is left behind", error=str(error))

    task = asyncio.create_task(told(), name=name)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
