"""Run directories: each QEMU that is started on a host has one of its own there, with its sockets, pid file and log."""

from __future__ import annotations

import asyncio
import re
import secrets
import string
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from migrator import logs
from migrator.errors import HostError, MigratorError
from migrator.hosts import launch_scripts
from migrator.hosts.access import HostAccess
from migrator.hosts.customary_places import customary_places

if TYPE_CHECKING:
    from migrator.settings.host_sections import HostDefaults  # slow, and for who reads a configuration

#: Longest label in the name of a run directory: sockets below it have to have short paths.
_LABEL_CHARACTERS = 24
#: sun_path of struct sockaddr_un, without its last NUL.
SOCKET_PATH_BYTES = 107
#: Time-out of a small command, in seconds.
_SHORT = 10.0


@dataclass(frozen=True, kw_only=True)
class RunDirectory:
    """The run directory of one QEMU on its host, with the log and the unit that belong to it."""

    #: Only its owner may enter it; sockets and the pid file are in it, and it is removed with the process.
    path: str
    #: File that its standard error is appended to; kept.
    log: str
    #: Name of its transient unit; empty where it has none.
    unit: str = ""

    @property
    def pid_file(self) -> str:
        """Path of the file that QEMU writes its pid to."""
        return f"{self.path}/qemu.pid"


class RunDirectories:
    """Makes the run directories of one host, finds them again, and removes them.

    :param section: ``run_dir``: directory of the run directories; empty is :data:`RUN_DIRECTORY`, or below
        ``$XDG_RUNTIME_DIR`` for a user who is not root. ``log_dir``: empty is ``/var/log/migrator/guests``, or below
        ``$XDG_STATE_HOME``. ``systemd``: QEMU becomes a transient unit of its own, not a part of ours or of the SSH
        session; ``None``: where systemd is pid 1 and we are root. ``start_timeout``: until it is known to be up.
    :param former: pairs of such directories that were configured before: what was started there is still ours.
    """

    def __init__(
        self,
        host: HostAccess,
        section: HostDefaults,
        *,
        former: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.host = host
        self.timeout_seconds = section.start_timeout
        self._base, self._log_directory, self._systemd = section.run_dir, section.log_dir, section.systemd
        #: Directories of runs and of logs, the present pair first.
        self._places = [(section.run_dir, section.log_dir), *former]

    async def _settle(self) -> None:
        """Find out the customary directories of that host, where nothing else was configured."""
        customary = await customary_places(self.host)
        self._places = [
            (runs or customary.run_directories, logs_ or customary.logs) for runs, logs_ in self._places
        ]
        self._base, self._log_directory = self._places[0]
        self._systemd = customary.systemd if self._systemd is None else self._systemd

    async def places(self) -> list[tuple[str, str]]:
        """Return the directories of runs and of logs that are, or were, ours.

        :raise HostError: when the host cannot be asked.
        """
        await self._settle()
        return list(dict.fromkeys(self._places))

    async def base(self) -> str:
        """Return the directory in which run directories are made.

        :raise HostError: when the host cannot be asked.
        """
        await self._settle()
        return self._base

    async def make_run_directory(self, migration: str, *, other_user: bool = False) -> RunDirectory:
        """Choose a run directory and the log, and make it; see :meth:`make`."""
        run_dir = await self.choose_run_directory(migration)
        await self.make(run_dir, migration, other_user=other_user)
        return run_dir

    async def choose_run_directory(self, migration: str) -> RunDirectory:
        """Choose a run directory and the log for a migration; nothing is made.

        :raise HostError: the host cannot be asked, or nothing can be made there.
        """
        await self._settle()
        short = re.sub(r"[^A-Za-z0-9._-]", "-", migration)[:_LABEL_CHARACTERS].strip(".-") or "guest"
        mark = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(6))
        # Named here, so that it can be removed whatever became of the command that makes it.
        run_dir = self.run_directory(f"{self._base.rstrip('/')}/{short}-{mark}", self._log_directory)
        if len(f"{run_dir.path}/control.qmp".encode()) > SOCKET_PATH_BYTES:
            raise HostError(
                self.host.name,
                f"{self._base} is too long for the path of a socket; configure a shorter directory",
            )
        return run_dir

    async def make(
        self,
        run_dir: RunDirectory,
        migration: str,
        *,
        other_user: bool = False,
        paths: str = "",
        images: Sequence[str] = (),
    ) -> frozenset[str]:
        """Make a run directory (0700); return those of the images at whose paths there is nothing.

        :param migration: id of the migration it is for.
        :param other_user: it will be given to another user, who has to get there.
        :param paths: content of its file of links; see :mod:`migrator.hosts.path_links`.
        :raise HostError: it cannot be made; nothing is left.
        """
        where = (self._base, self._log_directory, run_dir.path)
        words = ("open" if other_user else "", "paths" if paths else "")
        try:
            said = await self._run(
                *("sh", "-c", launch_scripts.MAKE, "sh", *where, migration, *words, *images),
                stdin=paths.encode(),
            )
            answers = said.split("\0")
            if len(answers) != len(images) + 1:
                raise HostError(self.host.name, "images cannot be looked at: no answer")
            return frozenset(
                path for path, answer in zip(images, answers, strict=False) if answer == "absent"
            )
        except BaseException:  # cancelled too: nothing is left at the host; raised again
            await finish_cleanup(self.remove(run_dir), name=f"remove {run_dir.path}")
            raise

    def run_directory(self, run_directory: str, log_directory: str) -> RunDirectory:
        """Return the run directory at that path."""
        name = run_directory.rpartition("/")[2]
        unit = f"migrator-guest-{name}.service" if self._systemd else ""
        return RunDirectory(path=run_directory, log=f"{log_directory}/{name}.log", unit=unit)

    async def run_directories_of(self, migration: str) -> list[RunDirectory]:
        """Return the run directories that were made for a migration and are still there.

        :raise HostError: when the host cannot be asked.
        """
        run_dirs = []
        for base, log_directory in await self.places():
            found = await self._run("sh", "-c", launch_scripts.OF_MIGRATION, "sh", base, migration)
            run_dirs += [self.run_directory(path, log_directory) for path in found.split("\0")[:-1]]
        return run_dirs

    async def run_directory_at(self, socket: str) -> RunDirectory | None:
        """Return the run directory that a socket is in; ``None`` when it is in none of ours.

        :raise HostError: when the host cannot be asked.
        """
        directory = socket.rpartition("/")[0]
        if not re.search(r"-[A-Za-z0-9]{6}$", directory):
            return None
        await self._settle()
        above = directory.rpartition("/")[0]
        found = (
            self.run_directory(directory, log) for base, log in self._places if above == base.rstrip("/")
        )
        return next(found, None)

    async def remove(self, run_dir: RunDirectory) -> None:
        """Remove the run directory of a process that has ended, and its log if there is nothing in it."""
        await self._run("sh", "-c", launch_scripts.REMOVE, "sh", run_dir.path)
        if run_dir.log:
            await self.host.run(["find", run_dir.log, "-maxdepth", "0", "-empty", "-delete"], timeout=_SHORT)

    async def _run(self, *argv: str, stdin: bytes = b"") -> str:
        done = await self.host.run(argv, timeout=_SHORT, stdin=stdin)
        if done.status:
            raise HostError(self.host.name, done.complaint or f"{argv[0]} ended with status {done.status}")
        return done.text


async def finish_cleanup(cleaning: Coroutine[Any, Any, None], *, name: str) -> None:
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
