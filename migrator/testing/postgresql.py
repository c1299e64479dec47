"""A real PostgreSQL of its own for tests: made in a second, reached by a Unix socket, killed and frozen by a test."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from migrator.store.backend import Server
from migrator.testing.cleanup_process import CleanupProcess
from migrator.testing.stale import owned

#: Who the server runs as where root runs the tests: initdb refuses root.
_USERS = ("postgres", "nobody")
_START_SECONDS = 30.0
#: What makes it quick: nothing of it has to survive a power failure.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "autovacuum_naptime": "5min",
    "log_min_messages": "warning",
}


def programs() -> Path | None:
    """The directory of the newest server's programs; ``None`` where there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if there := shutil.which("initdb"):
        found.append(Path(there).resolve().parent)
    return max(found, key=lambda path: path.parent.name.isdigit() and int(path.parent.name), default=None)


class Postgres:
    """A server, from :meth:`start` to :meth:`remove`; a context manager does both.

    :param name: tells several of one process from each other.
    :param follows: the one that it is a standby of.
    :param settings: of the server, in place of those that make it quick.
    """

    def __init__(self, name: str = "postgresql", *, follows: Postgres | None = None, **settings: str) -> None:
        bin_directory = programs()
        if bin_directory is None:
            raise RuntimeError("there is no PostgreSQL server here (Debian's package postgresql)")
        self._programs = bin_directory
        self.directory = Path(tempfile.gettempdir()) / owned(name)
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self._follows = follows
        self._settings = settings
        self._user = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._caretaker = CleanupProcess(self.directory)
        self._made = 0

    def __enter__(self) -> Self:
        self._caretaker.__enter__()
        try:
            self._make()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def standby(self, name: str) -> Postgres:
        """Another that follows this one, to be started as a context manager; see :meth:`promote`."""
        return Postgres(name, follows=self)

    def promote(self) -> None:
        """From now on it takes writes by itself."""
        self._run("pg_ctl", "promote", "--wait", f"--pgdata={self.data}")

    def _make(self) -> None:
        self.directory.mkdir(mode=0o700)
        if os.geteuid() == 0:
            self._user = next(each for each in _USERS if _exists(each))
            found = pwd.getpwnam(self._user)
            os.chown(self.directory, found.pw_uid, found.pw_gid)
        if self._follows is not None:
            where = (
                f"--host={self._follows.directory}",
                "--username=migrator",
                "--checkpoint=fast",
                "--no-sync",
            )
            self._run("pg_basebackup", f"--pgdata={self.data}", "--write-recovery-conf", *where)
            return
        options = ("--auth=trust", "--username=migrator", "--encoding=UTF8", "--no-locale", "--no-sync")
        self._run("initdb", f"--pgdata={self.data}", *options)

    def _as_user(self) -> list[str]:
        if not self._user:
            return []
        found = pwd.getpwnam(self._user)
        return ["setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--clear-groups"]

    def _run(self, program: str, *arguments: str, within: float = 60) -> str:
        command = [*self._as_user(), str(self._programs / program), *arguments]
        done = subprocess.run(
            command, cwd=self.directory, capture_output=True, text=True, timeout=within, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def start(self, **settings: str) -> None:
        """Returns once it takes connections."""
        given = {**_SETTINGS, "unix_socket_directories": str(self.directory), **self._settings, **settings}
        options = [f"--{name}={value}" for name, value in given.items()]
        command = [*self._as_user(), str(self._programs / "postgres"), "-D", str(self.data), *options]
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command, cwd=self.directory, stdout=log, stderr=log, start_new_session=True
                )
            while self._process.poll() is None:
                if self.ready():
                    return
                if time.monotonic() > deadline:
                    raise RuntimeError(f"it does not start: {self._said()}")
                time.sleep(0.02)
            # What was left by one that was killed may take a moment to go.
            if time.monotonic() > deadline or "shared memory block" not in self._said():
                raise RuntimeError(f"it does not start: {self._said()}")
            time.sleep(0.1)

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def ready(self) -> bool:
        """Tell whether it takes connections."""
        with contextlib.suppress(RuntimeError):
            self._run("pg_isready", "--quiet", f"--host={self.directory}", "--timeout=2")
            return True
        return False

    def stop(self) -> None:
        """Stop it as an administrator does who does not wait for those who are connected."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the postmaster: the rest of it notices that and ends."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            backends = self._backends()
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(30)
            self._process = None
            for pid in backends:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def freeze(self) -> None:
        """Freeze all of it: connections are taken by the kernel, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """The end of :meth:`freeze`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("it does not run")
        for pid in (self._process.pid, *self._backends()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _backends(self) -> list[int]:
        children = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int(path.read_text().rpartition(")")[2].split()[1])
                if self._process is not None and parent == self._process.pid:
                    children.append(int(path.parent.name))
        return children

    def remove(self) -> None:
        """Nothing of it is left."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._caretaker.__exit__(None, None, None)

    def sql(self, *statements: str, database: str = "postgres", within: float = 60) -> list[str]:
        """Run statements, and return what they find, a line each."""
        commands = [f"--command={each}" for each in statements]
        options = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
        where = (f"--host={self.directory}", "--username=migrator", f"--dbname={database}")
        return self._run("psql", *options, *where, *commands, within=within).splitlines()

    def create(self, *, template: str = "template0") -> str:
        """A database of its own; its name."""
        self._made += 1
        name = f"test{self._made}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def place(self, database: str) -> Server:
        """Where a journal in that database is."""
        return Server(url=f"postgresql+asyncpg://migrator@/{database}?host={self.directory}")


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
